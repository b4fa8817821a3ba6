"""Many streams at once: those that have a chunk ready go through the encoder in one batch."""

import logging
import math
from functools import cached_property
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor, nn

import espnet_mla
from espnet_mla.attention import ALL
from espnet_mla.models.chunked import Stream
from espnet_mla.models.streaming import StreamingEncoder
from espnet_mla.streaming import features
from espnet_mla.streaming.search import Prefix, PrefixBeam
from espnet_mla.trained import sampling_rate

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text

FULL_SCALE = 1 << 15  # of 16-bit PCM
LOUDEST = 10.0  # floating-point samples above it are taken for integers that were not scaled
RESCORED = 60.0
"""Seconds of the longest stream whose final text the attention decoder has a say in: it has learned utterances."""
AT_ONCE = 4  # hypotheses that the decoder scores


class Result:
    """What has been heard of a stream.

    Attributes:
        final: whether the stream has ended; until then the last words may still change.
        settled: how many of the tokens can't change any more.
        score: log probability of the tokens: by CTC, and in a rescored final result by CTC and decoder.
    """

    def __init__(self, pool: "StreamPool", beam: PrefixBeam, prefix: Prefix, score: float, final: bool):
        self._pool, self.score, self.final = pool, score, final
        self._heard = beam.heard(prefix)
        self.settled = len(self._heard) if final else self._heard.settled

    @property
    def tokens(self) -> list[str]:
        """The tokens."""
        return self._pool.speech2text.converter.ids2tokens(self._heard.tokens)

    @property
    def times(self) -> list[float]:
        """Where each token was most probably begun, in seconds from the beginning of the stream."""
        return [frame * self._pool.frame_seconds for frame in self._heard.frames]

    @cached_property
    def text(self) -> str:
        """The text of all tokens."""
        return self.text_from(0)

    def text_from(self, token: int) -> str:
        """The text of the tokens from that number on: of a long stream what is new, if that was the number settled."""
        tokens, tokenizer = (
            self._pool.speech2text.converter.ids2tokens(self._heard.tokens[token:]),
            self._pool.speech2text.tokenizer,
        )
        text = tokenizer.tokens2text(tokens) if tokenizer is not None else " ".join(tokens)
        return " ".join(text.split())  # CTC may have found a space of its own

    def __repr__(self) -> str:
        return f"Result(text={self.text!r}, final={self.final})"


class StreamPool:
    """Streams of one model, each of which may begin and end at any time.

    ::

        pool = StreamPool("exp/asr_conformer_mla_streaming_raw_en_bpe5000")
        stream = pool.open()
        stream.accept(samples)      # as they come; nothing is computed yet
        for changed in pool.advance():
            print(changed.result.text)

    Args:
        model: ESPnet's Speech2Text, or what `espnet_mla.from_pretrained` takes.
        chunk_size, left_chunks: as `StreamingEncoder.set_chunks` takes them.
        beam_size: prefixes that the CTC search follows.
        rescoring: whether a stream's final text is chosen among these by the attention decoder too, where there is one
            that can, and the stream is no longer than `RESCORED` seconds. Its encoder's output is kept until then.
        ctc_weight: share of CTC in the score of the final text, from 0 to 1.
        options: of `espnet_mla.from_pretrained`, where `model` is a name: device, dtype, ...

    Raises:
        ValueError: the model can't be heard piece by piece, or an option is wrong; the message says which key is missing.
        RecipeError: as `espnet_mla.from_pretrained`.
    """

    def __init__(
        self,
        model: "Speech2Text | str | Path",
        *,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        beam_size: int = 20,
        rescoring: bool = True,
        ctc_weight: float = 0.3,
        **options: object,
    ):
        if beam_size < 1:
            raise ValueError(f"beam_size: {beam_size}: at least 1 is needed")
        if not 0 <= ctc_weight <= 1:
            raise ValueError(f"ctc_weight: {ctc_weight}: it must be from 0 to 1")
        if isinstance(model, str | Path):
            model = espnet_mla.from_pretrained(model, **options)
        elif options:
            raise ValueError(f"{', '.join(options)}: of a model that is loaded already these can't be chosen")
        self.speech2text = model
        self.model = model.asr_model.eval()
        self.encoder = _streaming_encoder(self.model)
        features.check(self.model.frontend, self.model.normalize)
        self.chunks = self.encoder.stream(chunk_size, left_chunks).chunks
        self.fs = sampling_rate(vars(model.asr_train_args))
        self.beam_size, self.ctc_weight = beam_size, ctc_weight
        self.rescoring = rescoring and ctc_weight < 1 and _scores(self.model)
        self.frame_seconds = self.encoder.subsampling[0] * self.model.frontend.hop_length / self.fs
        self.streams: list[PooledStream] = []

    @property
    def nbytes(self) -> int:
        """Bytes that all open streams keep."""
        return sum(stream.nbytes for stream in self.streams)

    def open(self, fs: int | None = None) -> "PooledStream":
        """Begin a stream.

        Args:
            fs: Hz of its audio, which is resampled where the model has another; None for the model's.

        Raises:
            ValueError: fs is no rate.
        """
        if fs is not None and (not isinstance(fs, int) or fs < 1):
            raise ValueError(f"fs: {fs!r} must be a whole number of Hz")
        stream = PooledStream(self, self.encoder.stream(self.chunks.size, self.chunks.left), fs or self.fs)
        self.streams.append(stream)
        return stream

    @torch.inference_mode()
    def advance(self) -> list["PooledStream"]:
        """Encode one chunk of each stream that has one, in one batch.

        Returns:
            The streams that have a new result; none where no stream has a chunk. Those that have ended are no longer in the
            pool. Should the encoder fail, every stream is where it was.
        """
        ready = [stream for stream in self.streams if stream.ready()]
        if not ready:
            return []
        pieces, last = zip(*(stream._next() for stream in ready), strict=True)
        state = Stream.join([stream.state for stream in ready])
        frames, counts = self.encoder.forward_chunk(
            nn.utils.rnn.pad_sequence(pieces, batch_first=True), state, list(map(len, pieces)), last
        )
        log_probs = self.model.ctc.log_softmax(frames).float().cpu() if frames.shape[1] else frames
        for row, (stream, piece, count) in enumerate(zip(ready, pieces, counts.tolist(), strict=True)):
            moved = state if len(ready) == 1 else state.select([row])
            stream._moved(moved, len(piece), frames[row, :count], log_probs[row, :count])
        self.streams = [stream for stream in self.streams if not stream.state.ended[0]]
        for stream in ready:
            stream._tell()
        return ready

    def _rescored(self, beam: PrefixBeam, encoded: Tensor) -> tuple[Prefix, float]:
        """The prefix that CTC and decoder together score best, and its score."""
        scored = []
        for some in batched(beam.best, AT_ONCE):
            tokens = [torch.tensor(beam.heard(prefix).tokens, dtype=torch.long) for prefix, _ in some]
            labels = nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=self.model.ignore_id)
            lengths = torch.tensor(list(map(len, tokens)))
            frames = torch.full((len(some),), len(encoded))
            nll = self.model.nll(
                encoded.expand(len(some), -1, -1), *(x.to(encoded.device) for x in (frames, labels, lengths))
            )
            for (prefix, ctc), decoder in zip(some, nll.tolist(), strict=True):
                scored.append((prefix, self.ctc_weight * ctc - (1 - self.ctc_weight) * decoder))
        return max(scored, key=lambda one: one[1])


class PooledStream:
    """A stream of a pool, made by `StreamPool.open`.

    Attributes:
        result: what has been heard so far.
        state: what the encoder keeps of it.
    """

    def __init__(self, pool: StreamPool, state: Stream, fs: int):
        self.pool, self.state = pool, state
        self.fs = fs
        self._resampler = soxr.ResampleStream(fs, pool.fs, 1, dtype="float32") if fs != pool.fs else None
        self._features = features.StreamingFeatures(pool.model.frontend, pool.model.normalize)
        self._pieces: list[Tensor] = []  # samples that no features were made of
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
        samples = self._features.samples + sum(map(len, self._pieces))
        waiting = 0 if self._waiting is None else len(self._waiting)
        return waiting + self._features.whole(samples) - self._features.frames >= self._missing()

    def _take(self, samples: np.ndarray) -> None:
        if len(samples):
            like = self.state.features[0]
            self._pieces.append(torch.from_numpy(samples).to(like.device, like.dtype))

    def _missing(self) -> float:
        """How many features the next chunk still needs."""
        size = self.state.chunks.size
        return math.inf if size == ALL else self.pool.encoder.features_of(size) - len(self.state.features[0])

    def _next(self) -> tuple[Tensor, bool]:
        """The features of the next chunk, or as many as there are at the end; and whether that is the end."""
        pieces = self._pieces or [self.state.features[0].new_zeros(0)]
        if self._pieces or self._ended:
            new = self._features.accept(torch.cat(pieces), last=self._ended)
            self._waiting = new if self._waiting is None else torch.cat((self._waiting, new))
            self._pieces = []
        taken = self._waiting[: min(self._missing(), len(self._waiting))]
        return taken, self._ended and len(taken) == len(self._waiting)

    def _moved(self, state: Stream, taken: int, frames: Tensor, log_probs: Tensor) -> None:
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
                best = self.pool._rescored(self._beam, torch.cat(self._encoded))
            except RuntimeError as error:  # no memory
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


def _scores(model: nn.Module) -> bool:
    """Whether the model has a decoder that scores a text from the encoder's output, and not a transducer's, say."""
    attention = type(model).nll is ESPnetASRModel.nll and not getattr(model, "use_transducer_decoder", False)
    return attention and model.decoder is not None


def _streaming_encoder(model: nn.Module) -> StreamingEncoder:
    """The model's encoder, if all of the model can be run piece by piece.

    Raises:
        ValueError: it can't.
    """
    if not isinstance(model.ctc, CTC):
        raise ValueError("model_conf: ctc_weight: 0: this model has no CTC, which speech is heard by as it comes")
    for part in ("preencoder", "postencoder"):
        if getattr(model, part, None) is not None:
            raise ValueError(
                f"{part}: {type(getattr(model, part)).__name__} can't be run piece by piece; it must be null"
            )
    if not isinstance(model.encoder, StreamingEncoder):
        raise ValueError(
            f"encoder: {type(model.encoder).__name__} can't be run piece by piece; with espnet_mla conformer, branchformer, "
            "e_branchformer and transformer can, with encoder_conf: streaming"
        )
    return model.encoder
