"""In what a cache keeps its numbers: as they were computed, rounded to two bytes, or as codes of eight or four bits.

Codes are symmetric, and a frame's numbers share a scale in groups, so that frames can be appended and dropped one by
one: per-token quantisation, as the values' of KIVI (arXiv 2402.02750); per head, since heads are apart in a cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {"int8": 8, "int4": 4}
CACHE_TYPES = (*FLOATS, *BITS)
"""The values of `cache_dtype`."""

GROUP = {8: 64, 4: 32}
"""Bits of a code -> how many numbers share a scale, at most."""

SCALE = torch.bfloat16
_TINY = torch.finfo(torch.float32).tiny
_ENLARGED = {bits: (1 + torch.finfo(SCALE).eps / 2) / (2 ** (bits - 1) - 1) for bits in BITS.values()}


def check_cache_type(cache_dtype: object) -> None:
    """See that it is one of `CACHE_TYPES`.

    Raises:
        ValueError: it is none.
    """
    if cache_dtype not in CACHE_TYPES:
        raise ValueError(f"cache_dtype: {cache_dtype!r}: valid are {', '.join(CACHE_TYPES)}")


@dataclass(frozen=True)
class Stored:
    """How the tensors of a cache are kept.

    Args:
        name: one of `CACHE_TYPES`.
        dtype: of the tensors that were given, and are given out.
        widths: the size of the last axis of each.
    """

    name: str
    dtype: torch.dtype = field(compare=False)
    widths: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], name: str) -> "Stored":
        """For such tensors.

        Raises:
            ValueError: there is no such type.
        """
        check_cache_type(name)
        return cls(name, tensors[0].dtype, tuple(tensor.shape[-1] for tensor in tensors))

    def store(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What is kept of tensors (batch, ..., time, d).

        Returns:
            Each, rounded; or the codes of each, (batch, ..., time, bytes). Those of keys and values, which have as many
            numbers, are in one tensor (batch, 2, ..., time, bytes), so that less is to be called for.
        """
        if self.name in FLOATS:
            return tuple(tensor.to(FLOATS[self.name]) for tensor in tensors)
        together = [torch.stack(list(tensors), dim=1)] if self._alike else tensors
        return tuple(quantise(tensor, BITS[self.name]) for tensor in together)

    def load(self, kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors, of what is kept of them."""
        if self.name in FLOATS:
            return tuple(tensor.to(self.dtype) for tensor in kept)
        bits = BITS[self.name]
        if self._alike:
            return dequantise(kept[0], self.widths[0], bits, self.dtype).unbind(1)
        pairs = zip(kept, self.widths, strict=True)
        return tuple(dequantise(codes, width, bits, self.dtype) for codes, width in pairs)

    @property
    def _alike(self) -> bool:
        return len(self.widths) == 2 and self.widths[0] == self.widths[1]


def quantise(x: Tensor, bits: int) -> Tensor:
    """Codes and scales of x (..., d), of which as few groups as possible have at most `GROUP` numbers each.

    A number is its code times its group's scale. Codes reach from -127 to 127, or from -7 to 7. Of numbers that are not
    finite the scale is none either, and their group comes out so.

    Returns:
        (..., bytes) in int8: the codes, of four bits two in a byte, then the scales, two bytes each.
    """
    groups, size = _groups(x.shape[-1], bits)
    if not x.numel():
        return x.new_empty(*x.shape[:-1], groups * (size * bits // 8 + SCALE.itemsize), dtype=torch.int8)
    x = _grouped(x.float(), groups, size)
    # So much larger than need be that, rounded, they are no smaller: no code is beyond the last.
    scales = (x.abs().amax(-1, keepdim=True) * _ENLARGED[bits]).to(SCALE)
    codes = (x / scales.float().clamp_min_(_TINY)).round_().to(torch.int8)
    if groups > 1:
        codes, scales = codes.flatten(-2), scales.flatten(-2)
    if bits == 4:
        low, high = codes.unflatten(-1, (-1, 2)).unbind(-1)
        codes = (low & 15) | high << 4
    return torch.cat((codes, scales.view(torch.int8)), dim=-1)


def dequantise(kept: Tensor, width: int, bits: int, dtype: torch.dtype) -> Tensor:
    """The numbers (..., width) of codes and scales, as of `quantise`."""
    groups, size = _groups(width, bits)
    codes, packed = kept.split((groups * size * bits // 8, groups * SCALE.itemsize), dim=-1)
    scales = packed.view(SCALE).to(dtype)
    if bits == 4:  # shifted to the right, the sign is that of the upper half
        codes = torch.stack((codes << 4 >> 4, codes >> 4), -1).flatten(-2)
    x = codes * scales if groups == 1 else (codes.unflatten(-1, (groups, size)) * scales.unsqueeze(-1)).flatten(-2)
    return x if x.shape[-1] == width else x[..., :width]


def _grouped(x: Tensor, groups: int, size: int) -> Tensor:
    """x (..., d) as (..., groups, size), with zeros at the end; (..., size) where there is one group."""
    if missing := groups * size - x.shape[-1]:
        x = nn.functional.pad(x, (0, missing))
    return x if groups == 1 else x.unflatten(-1, (groups, size))


def _groups(width: int, bits: int) -> tuple[int, int]:
    """How many groups, and the size of each: an even number of bytes, so that scales begin at one."""
    groups = max(1, -(-width // GROUP[bits]))
    step = 16 // bits
    return groups, -(-width // (groups * step)) * step
