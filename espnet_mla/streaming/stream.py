"""One stream of a pool: from samples to the features that wait for their chunk, and from the encoder's output to text."""

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch
from torch import Tensor

from espnet_mla.attention import ALL
from espnet_mla.models.chunked import StreamState
from espnet_mla.models.features import StreamingFeatures
from espnet_mla.streaming.result import Result
from espnet_mla.streaming.search import PrefixBeam

if TYPE_CHECKING:
    from espnet_mla.streaming.pool import StreamPool

FULL_SCALE = 1 << 15  # of 16-bit PCM
LOUDEST = 10.0  # floating-point samples above it are taken for integers that were not scaled
RESCORED = 60.0
"""Seconds of the longest stream whose final text the attention decoder has a say in: it has learned utterances."""


class PooledStream:
    """A stream of a pool, made by `StreamPool.open`.

    Attributes:
        result: what has been heard so far.
        state: what the encoder keeps of it.
    """

    def __init__(self, pool: "StreamPool", state: StreamState, fs: int):
        self.pool, self.state = pool, state
        self._resampler = soxr.ResampleStream(fs, pool.fs, 1, dtype="float32") if fs != pool.fs else None
        self._features = StreamingFeatures(pool.model.frontend, pool.model.normalize)
        self._pieces: list[Tensor] = []  # samples that no features were made of
        self._samples = 0  # that have come in all
        self._waiting: Tensor | None = None  # features that no chunk has taken
        self._ended = False
        self._beam = PrefixBeam(pool.beam_size, pool.model.blank_id)
        self._encoded: list[Tensor] = []  # the encoder's output, for rescoring
        self._tell()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept of it: the encoder's state, what waits, the tokens, with rescoring the encoder's output."""
        tensors = [*self._pieces, *self._encoded] + ([] if self._waiting is None else [self._waiting])
        return self.state.nbytes + self._features.nbytes + self._beam.nbytes + sum(tensor.nbytes for tensor in tensors)

    def accept(self, samples: "np.ndarray | Tensor") -> None:
        """Take in samples.

        Args:
            samples: (time,), any number of them: floating-point from -1 to 1, or 16-bit integers.

        Raises:
            ValueError: the stream has ended, or the samples are of another shape or kind, or not finite. What came before
                stays as it was.
        """
        if self._ended:
            raise ValueError("this stream has ended: another is begun by open()")
        samples = checked(samples)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._take(samples)

    def finish(self) -> None:
        """Say that nothing more comes; `advance` will give the final result."""
        if not self._ended and self._resampler is not None:
            self._take(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._ended = True

    def close(self) -> None:
        """Drop the stream, where its client has gone; nothing more is computed of it."""
        self._ended = True
        if self in self.pool.streams:
            self.pool.streams.remove(self)

    def ready(self) -> bool:
        """Whether a chunk can be encoded, or the stream has ended and its end has not been."""
        if self._ended:
            return not self.state.ended[0]
        waiting = 0 if self._waiting is None else len(self._waiting)
        return waiting + self._features.whole(self._samples) - self._features.frames >= self._missing()

    def _take(self, samples: np.ndarray) -> None:
        if len(samples):
            like = self.state.features[0]
            self._samples += len(samples)
            self._pieces.append(torch.from_numpy(samples).to(like.device, like.dtype))

    def _missing(self) -> float:
        """How many features the next chunk still needs."""
        size = self.state.chunks.size
        return math.inf if size == ALL else self.pool.encoder.input_frames(size) - len(self.state.features[0])

    def _next(self) -> tuple[Tensor, bool]:
        """The features of the next chunk, or as many as there are at the end; and whether that is the end."""
        pieces = self._pieces or [self.state.features[0].new_zeros(0)]
        if self._pieces or self._ended:
            new = self._features.accept(torch.cat(pieces), last=self._ended)
            self._waiting = new if self._waiting is None else torch.cat((self._waiting, new))
            self._pieces = []
        taken = self._waiting[: min(self._missing(), len(self._waiting))]
        return taken, self._ended and len(taken) == len(self._waiting)

    def _moved(self, state: StreamState, taken: int, frames: Tensor, log_probs: Tensor) -> None:
        """Go on from a chunk.

        Args:
            state: after it.
            taken: how many of the waiting features it took.
            frames: of the encoder's output that are new, (time, d_model).
            log_probs: what CTC makes of them, (time, tokens).
        """
        self.state, self._waiting = state, self._waiting[taken:].clone()
        if len(frames):
            self._beam.extend(log_probs)
        if self.pool.rescoring and state.frames[0] * self.pool.frame_seconds <= RESCORED:
            self._encoded.append(frames.clone())
        else:
            self._encoded = []

    def _tell(self) -> None:
        """Make the result."""
        final = self.state.ended[0]
        best = self._beam.best[0]
        if final and sum(map(len, self._encoded)):
            try:
                best = self.pool.rescored(self._beam, torch.cat(self._encoded))
            except RuntimeError as error:
                if "memory" not in str(error):
                    raise
                logging.warning("The decoder could not choose among the hypotheses, CTC does: %s", error)
        if final:
            self._encoded = []
        self.result = Result(self.pool, self._beam, *best, final)


def checked(samples: "np.ndarray | Tensor") -> np.ndarray:
    """Samples (time,) as float32 from -1 to 1.

    Raises:
        ValueError: they are of another shape or kind, or not finite.
    """
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f"samples of shape {samples.shape}: one channel, (time,), is needed")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / FULL_SCALE
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples of {samples.dtype}: floating-point numbers from -1 to 1 or int16 are needed")
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    finite = np.isfinite(samples)
    if not finite.all():
        wrong = int(finite.argmin())
        raise ValueError(f"sample {wrong} of {len(samples)} is {samples[wrong]}, not a number")
    if len(samples) and (peak := np.abs(samples).max()) > LOUDEST:
        raise ValueError(f"samples reach {peak:g}: floating-point ones are from -1 to 1; 16-bit integers are int16")
    return samples
