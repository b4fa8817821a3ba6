"""The caches of attentions: a window of frames, or one running state.

Both are immutable: every method returns a new cache and leaves the old one valid, so that hypotheses and streams can
share a common past. No cache holds positions; they are given out when it is attended to (see `positions`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from espnet_mla.attention.positions import rotate_back


@dataclass(frozen=True)
class FrameCache:
    """Tensors with one entry a frame, whose first axis is the batch and whose last but one is time.

    Args:
        tensors: for `mha` and `gqa` keys and values, both (batch, num_kv_heads, time, d_head); for `mla` the latents
            (batch, time, kv_lora_rank) and, with rope, the shared key (batch, time, qk_rope_head_dim).
    """

    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        """The number of frames held."""
        return self.tensors[0].shape[-2]

    @property
    def rows(self) -> int:
        """The size of the batch."""
        return len(self.tensors[0])

    def append(self, other: "FrameCache") -> "FrameCache":
        """The frames of `self`, then those of `other`."""
        return FrameCache(tuple(torch.cat(pair, dim=-2) for pair in zip(self.tensors, other.tensors, strict=True)))

    def select(self, rows: Tensor) -> "FrameCache":
        """The rows (int64, one axis) of the batch, in that order; a row may come several times."""
        return FrameCache(tuple(tensor.index_select(0, rows) for tensor in self.tensors))

    @staticmethod
    def join(caches: Sequence["FrameCache"]) -> "FrameCache":
        """The rows of all of them, with zeros before the frames of those that have fewer."""
        time = max(map(len, caches))
        return FrameCache(
            tuple(
                torch.cat([nn.functional.pad(tensor, (0, 0, time - tensor.shape[-2], 0)) for tensor in tensors])
                for tensors in zip(*(cache.tensors for cache in caches), strict=True)
            )
        )

    def keep_last(self, frames: int) -> "FrameCache":
        """At most the last `frames` frames, in memory of their own."""
        if len(self) <= frames:
            return self
        start = len(self) - frames
        return FrameCache(tuple(tensor.narrow(-2, start, frames).clone() for tensor in self.tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole cache."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def nbytes_per_frame(self) -> int:
        """Bytes for one frame of one utterance."""
        return sum(tensor.shape[1:-2].numel() * tensor.shape[-1] * tensor.element_size() for tensor in self.tensors)


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
    """

    numerator: Tensor
    denominator: Tensor
    frames: int
    rotated: bool

    def __len__(self) -> int:
        """The number of frames summed."""
        return self.frames

    @property
    def rows(self) -> int:
        """The size of the batch."""
        return len(self.numerator)

    def append(self, other: "RunningState") -> "RunningState":
        """The sums over the frames of `self`, then those of `other`."""
        past = self.numerator
        if self.rotated:
            # d_key is the axis that turns, so it has to be the last one.
            past = rotate_back(past.transpose(-1, -2), len(other)).transpose(-1, -2)
        return replace(
            self,
            numerator=past + other.numerator,
            denominator=self.denominator + other.denominator,
            frames=self.frames + other.frames,
        )

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

    def append(self, other: Self) -> Self: ...

    def select(self, rows: Tensor) -> Self: ...

    @staticmethod
    def join(caches: Sequence) -> "Cache": ...

    def keep_last(self, frames: int) -> Self: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def nbytes_per_frame(self) -> int: ...
