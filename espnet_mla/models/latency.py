"""The algorithmic latency of a streaming encoder."""

from dataclasses import dataclass

from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_mla.attention import Chunks
from espnet_mla.models import features


@dataclass(frozen=True)
class Latency:
    """The algorithmic latency: that of chunked inference if computing took no time.

    Args:
        chunk: milliseconds of audio in a chunk.
        look_ahead: milliseconds beyond it that are needed: of the frames that are looked ahead, the subsampling and the
            window of the features.
    """

    chunk: float
    look_ahead: float

    @property
    def milliseconds(self) -> float:
        """From the beginning of a chunk to the last sample that it needs: the latency of the chunk's first frame."""
        return self.chunk + self.look_ahead


def latency(model: ESPnetASRModel, fs: int, chunks: Chunks) -> Latency:
    """The latency of a model with these chunks, which are not whole utterances.

    Args:
        model: ESPnetASRModel, with a `StreamingEncoder`.
        fs: Hz of its audio.

    Raises:
        ValueError: its features need the whole utterance.
    """
    features.check(model.frontend, model.normalize)
    stft, (rate, _) = model.frontend.stft, model.encoder.subsampling
    after = stft.n_fft - (stft.n_fft // 2 if stft.center else 0)
    samples = (model.encoder.input_frames(chunks.encoded) - 1) * stft.hop_length + after
    chunk = chunks.size * rate * stft.hop_length
    return Latency(1000 * chunk / fs, 1000 * (samples - chunk) / fs)
