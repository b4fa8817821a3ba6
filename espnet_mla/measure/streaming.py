"""The cost of a stream: latency, time of a chunk, and bytes of the stream state."""

import math
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

CHUNKS = 50  # of speech, which is repeated
WARM_UP_SECONDS = 30.0  # of a stream before it is measured, where its left context is unbounded


def figures(
    speech2text: "Speech2Text", speech: Sequence[Tensor], device: str, cache_dtype: str | None = None
) -> dict | None:
    """In JSON's types; None where the configuration's chunks are whole utterances.

    The utterances are streamed one after the other, and again, until the caches are full; then chunks are timed:
    features, encoder and CTC search, without the final one. `bytes` are those of the encoder's stream state.

    Args:
        speech2text: of a model with `encoder_conf: streaming`.
        speech: utterances (time,).
        device: PyTorch's name of where the model computes.
        cache_dtype: in what caches are kept; None for as they are computed.

    Raises:
        ValueError: another part of the model needs the whole utterance.
    """
    recogniser = StreamingSpeech2Text(speech2text, final_search="ctc", cache_dtype=cache_dtype)
    model, chunks = recogniser.pool.model, recogniser.pool.model.chunks
    if chunks.size == ALL:
        return None
    algorithmic = latency(model.asr_model, model.fs, chunks)
    seconds = algorithmic.chunk / 1000
    size = round(seconds * model.fs)
    audio = cycle(speed.speech_of_length(speech, size * CHUNKS).cpu().float().split(size))

    def recognise_chunk() -> None:
        recogniser.accept(next(audio))

    window = WARM_UP_SECONDS if chunks.window is None else chunks.window * model.frame_seconds
    for _ in range(math.ceil(window / seconds + algorithmic.milliseconds / 1000 / seconds) + 1):
        recognise_chunk()
    state = recogniser.stream.state
    state_bytes = {
        "attention_bytes": state.attention_nbytes,
        "convolution_bytes": state.convolution_nbytes,
        "features_bytes": state.features_nbytes,
    }
    after_seconds = round(state.frames[0] * model.frame_seconds, 3)
    total = sum(state_bytes.values())
    return {
        "chunk_size": chunks.size,
        "left_chunks": chunks.left,
        "look_ahead": chunks.look_ahead,
        "latency_ms": algorithmic.milliseconds,
        "chunk_ms": algorithmic.chunk,
        "look_ahead_ms": algorithmic.look_ahead,
        "chunk": speed.measure_time(recognise_chunk, device, seconds),
        "after_seconds": after_seconds,
        **state_bytes,
        "bytes": total,
        "per_gigabyte": GIGABYTE // total if total else None,
    }
