"""What a stream costs: latency, the time of a chunk, and the bytes that are kept between chunks."""

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from torch import Tensor

from espnet_mla.attention import ALL
from espnet_mla.measure import speed
from espnet_mla.models.latency import latency
from espnet_mla.streaming.recogniser import StreamingSpeech2Text
from espnet_mla.trained.figures import GIGABYTE

if TYPE_CHECKING:
    from espnet2.bin.asr_inference import Speech2Text

PIECES = 50  # chunks of speech that are heard again and again
UNBOUNDED = 30.0  # seconds that a stream runs before it is measured, where it sees all that was before


def figures(speech2text: "Speech2Text", speech: Sequence[Tensor], device: str) -> dict | None:
    """In JSON's types; None where the configuration's chunks are whole utterances.

    A stream hears the utterances, one after the other and again, until its caches are full; then chunks are timed: features,
    encoder, and CTC search, without the decoder. `bytes` are what the encoder keeps between chunks, read off its state.

    Args:
        speech2text: of a model with `encoder_conf: streaming`.
        speech: utterances (time,).
        device: PyTorch's name of where the model computes.

    Raises:
        ValueError: something else in the model needs whole utterances.
    """
    recogniser = StreamingSpeech2Text(speech2text, rescoring=False)
    pool, chunks = recogniser.pool, recogniser.stream.state.chunks
    if chunks.size == ALL:
        return None
    algorithmic = latency(pool.model, pool.fs, chunks)
    seconds = algorithmic.chunk / 1000
    size = round(seconds * pool.fs)
    pieces = cycle(speed.of_length(speech, size * PIECES).cpu().float().split(size))

    def hear() -> None:
        recogniser.accept(next(pieces))

    window = UNBOUNDED if chunks.window is None else chunks.window * pool.frame_seconds
    for _ in range(round(window / seconds) + 2):
        hear()
    state = recogniser.stream.state
    kept = {
        "attention_bytes": state.attention_nbytes,
        "convolution_bytes": state.convolution_nbytes,
        "features_bytes": state.features_nbytes,
    }
    heard = state.frames[0] * pool.frame_seconds
    whole = sum(kept.values())
    return {
        "chunk_size": chunks.size,
        "left_chunks": chunks.left,
        "latency_ms": algorithmic.milliseconds,
        "chunk_ms": algorithmic.chunk,
        "look_ahead_ms": algorithmic.look_ahead,
        "chunk": speed.timed(hear, device, seconds),
        "after_seconds": round(heard, 3),
        **kept,
        "bytes": whole,
        "per_gigabyte": GIGABYTE // whole if whole else None,
    }
