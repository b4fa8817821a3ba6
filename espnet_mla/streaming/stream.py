"""One stream: samples to features, and the encoder's output to text."""

import logging

import numpy as np
import soxr
import torch
from torch import Tensor

from espnet_mla.attention import ALL, FrameCache
from espnet_mla.models.chunked import StreamState
from espnet_mla.streaming.bias import Bias
from espnet_mla.streaming.endpoint import Endpointer
from espnet_mla.streaming.final import final_result
from espnet_mla.streaming.model import StreamingModel
from espnet_mla.streaming.result import Result
from espnet_mla.streaming.search import Hypothesis, PrefixBeam

FULL_SCALE = 1 << 15  # of 16-bit PCM
MAX_FLOAT_SAMPLE = 10.0  # larger floating-point samples are taken for unscaled integers
MAX_SECONDS = 60.0
"""The text of longer sentences is that of CTC: the attention decoder has been trained on utterances."""


class Stream:
    """A stream of a pool, made by `StreamPool.open`.

    Attributes:
        state: the encoder's, with the features that wait for their chunk.
        result: the text so far, or with endpointing that of the sentence which has not ended.
        closed: whether it has left its pool: after its final result, or by `close`.
    """

    def __init__(self, model: StreamingModel, fs: int, bias: Bias | None = None):
        self.model, self.state, self._bias = model, model.new_state(), bias
        self._resampler = soxr.ResampleStream(fs, model.fs, 1, dtype="float32") if fs != model.fs else None
        self._features = model.new_features()
        self._endpointer = None
        if model.endpointing is not None:
            self._endpointer = Endpointer(model.endpointing, model.asr_model.blank_id, model.frame_seconds)
        self._sentences: list[Result] = []
        self._finished = self.closed = False
        self._begin_sentence(0)
        self.result = self._partial()

    @property
    def frames(self) -> int:
        """How many frames have been encoded."""
        return self._first + self._beam.frames

    @property
    def nbytes(self) -> int:
        """Bytes of the encoder's state, the waiting samples, the tokens, and the encoder's output that is kept."""
        encoder_out = sum(frames.nbytes for frames in self._encoder_out)
        return self.state.nbytes + self._features.nbytes + self._beam.nbytes + encoder_out

    def accept(self, samples: "np.ndarray | Tensor") -> None:
        """Buffer samples, until `StreamPool.advance` encodes them.

        Args:
            samples: (time,), any number of them: floating-point from -1 to 1, or 16-bit integers.

        Raises:
            ValueError: the stream has ended, or the samples are of another shape or type, or not finite. The stream
                goes on as if they had not been given.
        """
        if self._finished:
            raise ValueError("this stream has ended: another is begun by open()")
        samples = checked(samples)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._features.accept(torch.from_numpy(samples))

    def finish(self) -> None:
        """End the audio; `StreamPool.advance` will give the final result."""
        if not self._finished and self._resampler is not None:
            self._features.accept(torch.from_numpy(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)))
        self._finished = True

    def close(self) -> None:
        """Abandon the stream, where its client has gone: it leaves its pool without a final result."""
        self._finished = self.closed = True

    def ready(self) -> bool:
        """Whether there is a chunk to be encoded, or the end of the audio."""
        if self._finished:
            return not self.closed
        missing = self._missing()
        return missing is not None and self._features.available() >= missing

    def buffer_features(self) -> None:
        """Extract the features that the next chunk still needs, or as many as there are at the end."""
        features = self._features.extract(self._missing(), last=self._finished)
        ends = self._finished and not self._features.available(last=True)
        self.model.encoder.buffer(features.unsqueeze(0), self.state, last=ends)

    def update(self, state: StreamState, encoder_out: Tensor, log_probs: Tensor) -> None:
        """Take over what a chunk has changed.

        Args:
            state: the encoder's, after the chunk.
            encoder_out: of the chunk, (time, d_model).
            log_probs: CTC's for the chunk, (time, tokens).
        """
        self.state = state
        self.closed = state.ended[0] and not self.model.encoder.ready(state)
        while self._endpointer and (ended := self._endpointer.first_end(log_probs)):
            end, spoken = ended
            self._extend(encoder_out[:end], log_probs[:end])
            encoder_out, log_probs = encoder_out[end:], log_probs[end:]
            self._end_sentence(spoken)
            if self.model.reset and not self.closed:
                self.state = self.model.new_state()
                self.state.features, self.state.ended = state.features, state.ended
        self._extend(encoder_out, log_probs)
        if self.closed:
            self._end_sentence(self._endpointer is None or self._endpointer.spoken)
        else:
            self.result = self._partial()

    def take_sentences(self) -> list[Result]:
        """The sentences that have ended since this was last asked, with endpointing; those without a text are none.

        They are kept until then.
        """
        taken, self._sentences = self._sentences, []
        return taken

    def _begin_sentence(self, frame: int) -> None:
        self._first = frame
        self._beam = PrefixBeam(self.model.beam_size, self.model.asr_model.blank_id, bias=self._bias)
        self._encoder_out: list[FrameCache] = []  # for the final search

    def _extend(self, encoder_out: Tensor, log_probs: Tensor) -> None:
        """Take frames for a part of the sentence."""
        self._beam.extend(log_probs)
        if self.model.final_search != "ctc" and self._beam.frames * self.model.frame_seconds <= MAX_SECONDS:
            frames = FrameCache((encoder_out.unsqueeze(0).clone(),))
            self._encoder_out.append(frames.stored_as(self.model.cache_dtype))
        else:
            self._encoder_out = []

    def _end_sentence(self, spoken: bool) -> None:
        """The sentence has ended, and another begins; of one that was not spoken nothing comes."""
        if spoken:
            self.result = self._final()
        else:
            nothing = Hypothesis.of([], [])
            self.result = Result(self.model, nothing, 0.0, True, [], self._first, self._beam.frames)
        if self._endpointer and self.result.text:
            self._sentences.append(self.result)
        self._begin_sentence(self.frames)

    def _missing(self) -> int | None:
        """How many features the next chunk still needs; None where it is the whole utterance."""
        chunks = self.model.chunks
        if chunks.size == ALL:
            return None
        return self.model.encoder.input_frames(chunks.encoded) - len(self.state.features[0])

    def _final(self) -> Result:
        """What the final search finds; or the best hypothesis of CTC."""
        if any(len(frames) for frames in self._encoder_out):
            try:
                encoder_out = torch.cat([frames.values()[0] for frames in self._encoder_out], dim=1)[0]
                if (found := final_result(self.model, self._beam, encoder_out, self._first)) is not None:
                    return found
            except RuntimeError as error:  # mostly for want of memory
                logging.warning("The final search failed; the best hypothesis of CTC is final: %s", error)
        return self._by_ctc(final=True)

    def _partial(self) -> Result:
        return self._by_ctc(final=False)

    def _by_ctc(self, final: bool) -> Result:
        """The best hypothesis of CTC."""
        prefix, score = (self._beam.final if final else self._beam.best)[0]
        hypothesis = self._beam.hypothesis(prefix)
        return Result(self.model, hypothesis, score, final, None, self._first, self._beam.frames)


def checked(samples: "np.ndarray | Tensor") -> np.ndarray:
    """Samples (time,) as float32 from -1 to 1.

    Raises:
        ValueError: they are of another shape or type, or not finite.
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
        raise ValueError(f"sample {wrong} of {len(samples)} is {samples[wrong]}, not a finite number")
    if len(samples) and (peak := np.abs(samples).max()) > MAX_FLOAT_SAMPLE:
        raise ValueError(f"samples reach {peak:g}: floating-point ones are from -1 to 1; 16-bit integers are int16")
    return samples
