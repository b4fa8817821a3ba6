"""The key `streaming` of an encoder's configuration: which chunks, and what training draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from espnet_mla.attention import ALL, Chunks

_KEYS = ("chunk_size", "left_chunks", "look_ahead", "dynamic_chunk_sizes", "dynamic_look_ahead")
_RANGE = ("min", "max", "full_context")


@dataclass(frozen=True)
class Streaming:
    """`streaming` of an encoder's configuration.

    Args:
        chunks: of validation and inference, unless `set_chunks` sets others.
        sizes: chunk sizes that training draws from, one for each batch; empty for that of `chunks` alone.
        full_context: probability that a batch is trained with full context instead, from 0 to 1.
        ahead: frames of look-ahead that training draws from; empty for those of `chunks` alone.
    """

    chunks: Chunks
    sizes: Sequence[int] = ()
    full_context: float = 0.0
    ahead: Sequence[int] = ()

    def in_steps(self, step: int) -> "Streaming":
        """With those sizes of a range alone that are multiples of `step`.

        Raises:
            ValueError: there is none, or a size of a list is none.
        """
        sizes, of = self.sizes, f"must be multiples of {step}, since mtla merges frames (down_rate)"
        if not isinstance(sizes, range):
            if any(size != ALL and size % step for size in sizes):
                raise ValueError(f"streaming: dynamic_chunk_sizes: {sizes} {of}")
            return self
        multiples = range(sizes.start + -sizes.start % step, sizes.stop, step)
        if not multiples:
            raise ValueError(f"streaming: dynamic_chunk_sizes: min {sizes.start}, max {sizes.stop - 1}: sizes {of}")
        return replace(self, sizes=multiples)

    def draw(self) -> Chunks:
        """The chunks of a training batch (dynamic chunk training, U2, arXiv 2012.05481, section 3.2)."""
        size, ahead = _drawn(self.sizes, self.chunks.size), self.chunks.look_ahead
        if self.sizes and torch.rand(()).item() < self.full_context:
            size = ALL
        return Chunks(size, self.chunks.left, 0 if size == ALL else _drawn(self.ahead, ahead))


def read(conf: object) -> Streaming:
    """Read `streaming`.

    Raises:
        ValueError: a key is unknown or missing, or a value is not valid.
    """
    known = f"its keys are {', '.join(_KEYS)}"
    if not isinstance(conf, Mapping):
        raise ValueError(f"streaming: {conf!r} must be a mapping; {known}")
    for key in conf:
        if key not in _KEYS:
            raise ValueError(f"streaming: {key}: {conf[key]!r} is not an option of it; {known}")
    for key in _KEYS[:2]:
        if key not in conf:
            raise ValueError(f"streaming: {key} is missing; {known}")
    ahead = look_ahead(conf.get("look_ahead", 0))
    chunks = Chunks(chunk_size(conf["chunk_size"]), left_chunks(conf["left_chunks"]), ahead)
    given = conf.get("dynamic_look_ahead")
    drawn = () if given is None else given
    if not isinstance(drawn, list | tuple) or (given is not None and not drawn):
        raise ValueError(f"streaming: dynamic_look_ahead: {drawn!r} must be a list of numbers of frames")
    streaming = Streaming(chunks, ahead=[look_ahead(frames, "streaming: dynamic_look_ahead") for frames in drawn])
    dynamic = conf.get("dynamic_chunk_sizes")
    if dynamic is None:
        return streaming
    key = "streaming: dynamic_chunk_sizes"
    if isinstance(dynamic, Mapping):
        if set(dynamic) - set(_RANGE) or not {"min", "max"} <= set(dynamic):
            raise ValueError(f"{key}: {dynamic} must have min and max, and may have full_context")
        least, most = (chunk_size(dynamic[name], f"{key}: {name}") for name in ("min", "max"))
        full = dynamic.get("full_context", 0.0)
        if not 0 < least <= most:
            raise ValueError(f"{key}: min ({least}) must be at least 1 and at most max ({most})")
        if isinstance(full, bool) or not isinstance(full, int | float) or not 0 <= full <= 1:
            raise ValueError(f"{key}: full_context: {full!r} must be from 0 to 1")
        return replace(streaming, sizes=range(least, most + 1), full_context=float(full))
    if not isinstance(dynamic, list | tuple) or not dynamic:
        raise ValueError(f"{key}: {dynamic!r} must be a list of sizes, or min, max and full_context")
    return replace(streaming, sizes=[chunk_size(size, key) for size in dynamic])


def _drawn(choices: Sequence[int], default: int) -> int:
    return choices[int(torch.randint(len(choices), ()))] if choices else default


def chunk_size(value: object, key: str = "streaming: chunk_size") -> int:
    """`value`, checked to be a chunk size: a number of frames, or -1 for the whole utterance.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != ALL):
        raise ValueError(f"{key}: {value!r} must be a number of encoder frames, or -1 for the whole utterance")
    return value


def left_chunks(value: object, key: str = "streaming: left_chunks") -> int:
    """`value`, checked to be a number of chunks of left context, or -1 for all.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < ALL:
        raise ValueError(f"{key}: {value!r} must be a number of chunks, or -1 for all earlier ones")
    return value


def look_ahead(value: object, key: str = "streaming: look_ahead") -> int:
    """`value`, checked to be a number of frames of look-ahead.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key}: {value!r} must be a number of encoder frames, or 0 for none")
    return value
