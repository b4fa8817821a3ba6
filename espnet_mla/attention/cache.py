"""The caches of attentions: a window of frames, or one running state.

Both are immutable: every method returns a new cache and leaves the old one valid, so that hypotheses and streams can
share a common past. No cache holds positions; they are given out when it is attended to (see `positions`). Only the
weights by which `mtla` merges frames depend on where these stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from espnet_mla.attention.cache_types import FLOATS, Stored, check_cache_type
from espnet_mla.attention.positions import rotate_back


@dataclass(frozen=True)
class FrameCache:
    """Tensors with one entry a frame, whose first axis is the batch and whose last but one is time.

    Args:
        tensors: what is kept of those that attentions attend to. These are for `mha` and `gqa` keys and values, both
            (batch, num_kv_heads, time, d_head); for `mla` the latents (batch, time, kv_lora_rank) and, with rope, the
            shared key (batch, time, qk_rope_head_dim).
        stored: in what they are kept; None for as they are.
    """

    tensors: tuple[Tensor, ...]
    stored: Stored | None = None

    def __len__(self) -> int:
        """The number of frames held."""
        return self.entries

    @property
    def entries(self) -> int:
        """The number of entries held."""
        return self.tensors[0].shape[-2]

    @property
    def rows(self) -> int:
        """The size of the batch."""
        return len(self.tensors[0])

    def first(self, entries: int) -> Self:
        """The first so many entries, a view."""
        return replace(self, tensors=tuple(tensor[..., :entries, :] for tensor in self.tensors))

    def values(self) -> tuple[Tensor, ...]:
        """The tensors that attentions attend to."""
        return self.tensors if self.stored is None else self.stored.load(self.tensors)

    def stored_as(self, cache_dtype: str | None) -> Self:
        """The cache, kept in one of `CACHE_TYPES`; itself where that is None.

        Raises:
            ValueError: it is kept in another one.
        """
        if self.stored is None and cache_dtype is not None:
            stored = Stored.of(self.tensors, cache_dtype)
            return replace(self, tensors=stored.store(self.tensors), stored=stored)
        if self.stored is not None and self.stored.name != cache_dtype:
            raise ValueError(f"cache_dtype: {cache_dtype}: this cache is kept in {_name(self)}")
        return self

    def append(self, other: Self) -> Self:
        """The frames of `self`, then those of `other`, which are kept as those of `self`."""
        new = other.tensors
        if self.stored is not None and other.stored is None:
            new = self.stored.store(new)
        elif other.stored != self.stored:
            raise ValueError(f"cache_dtype: {_name(other)}: this cache is kept in {_name(self)}")
        return replace(self, tensors=tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, new, strict=True)))

    def select(self, rows: Tensor) -> Self:
        """The rows (int64, one axis) of the batch, in that order; a row may come several times."""
        return replace(self, tensors=tuple(tensor.index_select(0, rows) for tensor in self.tensors))

    @staticmethod
    def join(caches: Sequence["FrameCache"]) -> "FrameCache":
        """The rows of all of them, with zeros before the frames of those that have fewer.

        Raises:
            ValueError: they are not kept in the same.
        """
        time, first = max(cache.entries for cache in caches), caches[0]
        if other := next((cache for cache in caches if cache.stored != first.stored), None):
            raise ValueError(f"caches of one batch must be kept in the same, not in {first.stored} and {other.stored}")
        joined = tuple(
            torch.cat([nn.functional.pad(tensor, (0, 0, time - tensor.shape[-2], 0)) for tensor in tensors])
            for tensors in zip(*(cache.tensors for cache in caches), strict=True)
        )
        return replace(first, tensors=joined)

    def keep_last(self, frames: int) -> Self:
        """At most the last `frames` frames, in memory of their own."""
        if len(self) <= frames:
            return self
        start = len(self) - frames
        return replace(self, tensors=tuple(tensor[..., start:, :].clone() for tensor in self.tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache, scales included."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def nbytes_per_frame(self) -> float:
        """Bytes for one frame of one utterance, scales included."""
        return sum(tensor.shape[1:-2].numel() * tensor.shape[-1] * tensor.element_size() for tensor in self.tensors)


def _name(cache: FrameCache) -> str:
    return cache.stored.name if cache.stored else "what was computed"


@dataclass(frozen=True)
class RunningState:
    """The sums of linear attention over all frames so far: its size does not grow with them.

    With rope, keys are rotated by their distance to the latest frame, so that angles stay small however long a stream
    runs: appending n frames rotates the past back by n.

    Args:
        numerator: sum of phi(k) v^T, (batch, heads, d_head, d_head).
        denominator: sum of phi(k), (batch, heads, d_head).
        frames: how many frames `numerator` spans, padding included.
        rotated: whether the keys in `numerator` carry rotary positions.
        dtype: that the sums are computed in, where `numerator` is kept in another; None for that it is kept in.
    """

    numerator: Tensor
    denominator: Tensor
    frames: int
    rotated: bool
    dtype: torch.dtype | None = None

    def __len__(self) -> int:
        """The number of frames summed."""
        return self.frames

    @property
    def rows(self) -> int:
        """The size of the batch."""
        return len(self.numerator)

    def values(self) -> tuple[Tensor, Tensor]:
        """Numerator and denominator, to compute with."""
        return self.numerator.to(self.dtype or self.numerator.dtype), self.denominator

    def stored_as(self, cache_dtype: str | None) -> "RunningState":
        """The state, its numerator kept in float32 or bfloat16; itself where that is None.

        Raises:
            ValueError: it is to be kept in codes, in which a sum can't grow, or is kept in something else.
        """
        if cache_dtype is None and self.dtype is None:
            return self
        check_cache_type(cache_dtype)
        if cache_dtype not in FLOATS:
            raise ValueError(
                f"cache_dtype: {cache_dtype}: linear attention keeps running sums, in {' or '.join(FLOATS)}"
            )
        kept, dtype = FLOATS[cache_dtype], self.dtype or self.numerator.dtype
        if self.dtype is not None and self.numerator.dtype != kept:
            raise ValueError(f"cache_dtype: {cache_dtype}: this state is kept in {self.numerator.dtype}")
        return replace(self, numerator=self.numerator.to(kept), dtype=dtype)

    def append(self, other: "RunningState") -> "RunningState":
        """The sums over the frames of `self`, then those of `other`, kept as those of `self`."""
        (past, total), (new, new_total) = self.values(), other.values()
        if self.rotated:
            # d_key is the axis that turns, so it has to be the last one.
            past = rotate_back(past.transpose(-1, -2), len(other)).transpose(-1, -2)
        return replace(
            self,
            numerator=self._rounded(past + new),
            denominator=total + new_total,
            frames=self.frames + other.frames,
        )

    def _rounded(self, x: Tensor) -> Tensor:
        """Sums (batch, ...) in the type that the numerator is kept in.

        In bfloat16 they are rounded up or down by chance, in proportion: rounded to the nearest, a sum of 256 equal
        terms and more would not grow any further. So errors of single numbers grow with the root of the number of
        steps, but their mean is 0. The chance is the same in every row and run.
        """
        if self.numerator.dtype is not torch.bfloat16 or x.dtype is torch.bfloat16:
            return x.to(self.numerator.dtype)
        chance = torch.Generator(x.device).manual_seed(self.frames)
        low = torch.randint(1 << 16, x.shape[1:], generator=chance, device=x.device, dtype=torch.int32)
        rounded = ((x.float().view(torch.int32) + low) & -(1 << 16)).view(torch.float32)
        return torch.where(x.isfinite(), rounded, x.float()).to(torch.bfloat16)

    def select(self, rows: Tensor) -> "RunningState":
        """The rows (int64, one axis) of the batch, in that order; a row may come several times."""
        return replace(
            self, numerator=self.numerator.index_select(0, rows), denominator=self.denominator.index_select(0, rows)
        )

    @staticmethod
    def join(states: Sequence["RunningState"]) -> "RunningState":
        """The rows of all of them."""
        return replace(
            states[0],
            numerator=torch.cat([state.numerator for state in states]),
            denominator=torch.cat([state.denominator for state in states]),
            frames=max(state.frames for state in states),
        )

    def keep_last(self, frames: int) -> "RunningState":
        """The state itself: a sum can't forget single frames, and does not grow with them either."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state."""
        return self.numerator.nbytes + self.denominator.nbytes

    @property
    def nbytes_per_frame(self) -> int:
        """0: the state does not grow with frames."""
        return 0


class Cache(Protocol):
    """What `FrameCache` and `RunningState` have in common."""

    def __len__(self) -> int: ...

    @property
    def rows(self) -> int: ...

    def values(self) -> tuple[Tensor, ...]: ...

    def stored_as(self, cache_dtype: str | None) -> Self: ...

    def append(self, other: Self) -> Self: ...

    def select(self, rows: Tensor) -> Self: ...

    @staticmethod
    def join(caches: Sequence) -> "Cache": ...

    def keep_last(self, frames: int) -> Self: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def nbytes_per_frame(self) -> float: ...
