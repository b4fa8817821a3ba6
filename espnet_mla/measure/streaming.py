"""What a stream costs: latency, the time of a chunk, and the bytes of its state."""

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

PIECES = 50  # chunks of speech, streamed over and over
UNBOUNDED = 30.0  # seconds streamed before measuring, where the left context is unlimited


def figures(speech2text: "Speech2Text", speech: Sequence[Tensor], device: str) -> dict | None:
    """In JSON's types; None where the configuration's chunks are whole utterances.

    The utterances are streamed, over and over, until the caches are full; then chunks are timed: features, encoder and
    CTC search, without rescoring. `bytes` is the size of the encoder's stream state.

    Args:
        speech2text: of a model with `encoder_conf: streaming`.
        speech: utterances (time,).
        device: PyTorch's name of the device that the model computes on.

    Raises:
        ValueError: another part of the model needs whole utterances.
    """
    recogniser = StreamingSpeech2Text(speech2text, rescoring=False)
    pool, chunks = recogniser.pool, recogniser.stream.state.chunks
    if chunks.size == ALL:
        return None
    algorithmic = latency(pool.model, pool.fs, chunks)
    seconds = algorithmic.chunk / 1000
    size = round(seconds * pool.fs)
    pieces = cycle(speed.speech_of_length(speech, size * PIECES).cpu().float().split(size))

    def process_chunk() -> None:
        recogniser.accept(next(pieces))

    window = UNBOUNDED if chunks.window is None else chunks.window * pool.frame_seconds
    for _ in range(round(window / seconds) + 2):
        process_chunk()
    state = recogniser.stream.state
    sizes = {
        "attention_bytes": state.attention_nbytes,
        "convolution_bytes": state.convolution_nbytes,
        "features_bytes": state.features_nbytes,
    }
    total = sum(sizes.values())
    return {
        "chunk_size": chunks.size,
        "left_chunks": chunks.left,
        "latency_ms": algorithmic.milliseconds,
        "chunk_ms": algorithmic.chunk,
        "look_ahead_ms": algorithmic.look_ahead,
        "chunk": speed.measure_time(process_chunk, device, seconds),
        "after_seconds": round(state.frames[0] * pool.frame_seconds, 3),
        **sizes,
        "bytes": total,
        "per_gigabyte": GIGABYTE // total if total else None,
    }
