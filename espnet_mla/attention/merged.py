"""The cache of an attention that merges neighbouring frames: an entry for each group of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from espnet_mla.attention.cache import FrameCache


@dataclass(frozen=True)
class MergedCache(FrameCache):
    """Entries that stand for `stride` frames each; the newest one changes until its group is full.

    The first of its tensors holds sums over the frames of a group, the others what its first frame has.

    Args:
        stride: frames of a group.
        before: frames of the first group that came before these: its entry goes into one of another cache.
        lacking: frames that the last group can still take.
    """

    stride: int = 1
    before: int = 0
    lacking: int = 0

    def __len__(self) -> int:
        """The number of frames held."""
        return self.entries * self.stride - self.before - self.lacking

    def append(self, other: Self) -> Self:
        """The frames of `self`, then those of `other`, which are kept as those of `self`.

        Raises:
            ValueError: `other` does not begin where `self` ends.
        """
        if not other.entries:
            return self
        if other.before != -self.lacking % self.stride:
            raise ValueError(
                f"these frames begin after {other.before} of a group of {self.stride}, but the group before has "
                f"{-self.lacking % self.stride}"
            )
        if not other.before:
            return replace(super().append(other), lacking=other.lacking)
        (old, *shared), (new, *_) = self._last().values(), other.first(1).values()
        group = replace(other, tensors=(old + new, *shared), stored=None)
        if self.stored:
            group = group.stored_as(self.stored.name)
        rest = replace(other, tensors=tuple(tensor[..., 1:, :] for tensor in other.tensors))
        joined = FrameCache.append(FrameCache.append(self.first(self.entries - 1), group), rest)
        return replace(joined, lacking=other.lacking)

    def _last(self) -> FrameCache:
        return replace(self, tensors=tuple(tensor[..., -1:, :] for tensor in self.tensors))

    @staticmethod
    def join(caches: Sequence[FrameCache]) -> FrameCache:
        """The rows of all of them, with zeros before the groups of those that have fewer.

        Raises:
            ValueError: they are not kept in the same.
        """
        joined = FrameCache.join(caches)
        assert isinstance(joined, MergedCache)
        return replace(joined, lacking=0)  # of a row that has ended, the rest of its group is padding

    def keep_last(self, frames: int) -> Self:
        """The groups of the last `frames` frames, in memory of their own."""
        dropped = max(0, self.before + len(self) - frames) // self.stride
        if not dropped:
            return self
        kept = tuple(tensor[..., dropped:, :].clone() for tensor in self.tensors)
        return replace(self, tensors=kept, before=0, lacking=self.lacking if kept[0].shape[-2] else 0)

    @property
    def nbytes_per_frame(self) -> float:
        """Bytes for one frame of one utterance, scales included: its share of those of a group."""
        size = super().nbytes_per_frame
        return size / self.stride if size % self.stride else size // self.stride
