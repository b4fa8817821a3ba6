"""What a beam search keeps of its tokens: a tree, of which each hypothesis is a path.

Hypotheses have most of their tokens in common. In a tree a token's keys and values (or latent) stand once, and stay
where they are when the beam is pruned; all hypotheses of an utterance attend to it in one product, each through a mask
that shows it its own path.

Where tokens are merged, an entry stands for a group of them. Those of a group that is not full yet are the last block
of entries, and give way to those of the next step.
"""

from dataclasses import replace

import torch
from torch import Tensor

from espnet_mla.attention.cache import FrameCache

ROOM = 8
"""Steps, at least, between two times that a tree is made anew."""


class TokenTree:
    """The tokens of all hypotheses, of all layers.

    States of a search that differ by a few steps share one tree: what later ones append, earlier ones do not see.

    Attributes:
        cache_dtype: in what they are kept, see `CACHE_TYPES`; None for as they are.
        stride: how many tokens of a path are merged into one entry.
        caches: of each layer, a row for each utterance. The first `filled` of its entries are those of full groups, in
            the order in which they came; `unfinished` ones follow, then there is room.
        filled, unfinished: how many.
        length: tokens of each hypothesis.
    """

    def __init__(self, cache_dtype: str | None = None, stride: int = 1):
        self.cache_dtype, self.stride = cache_dtype, stride
        self.caches: list[FrameCache] = []
        self.filled = self.unfinished = self.length = 0

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self.caches)

    def trimmed(self) -> list[FrameCache]:
        """The caches without the room."""
        return [cache.first(self.filled + self.unfinished) for cache in self.caches]

    def release(self) -> None:
        """Let go what it holds; states that still have it are those of hypotheses that have ended."""
        self.caches.clear()

    def holds(self, length: int) -> bool:
        """Whether it still has the tokens of hypotheses so long: of a group that is not full, the newest alone."""
        return bool(self) and (length % self.stride == 0 or length == self.length)

    def prepared(self, held: Tensor, new: int, length: int) -> tuple["TokenTree", Tensor]:
        """A tree to which tokens can be appended after those that some hypotheses hold.

        Args:
            held: (utterances, hypotheses, entries), true where a hypothesis holds an entry.
            new: how many tokens of each utterance there will be.
            length: tokens of each hypothesis; `holds(length)`.

        Returns:
            This tree; or, where it is full or has been appended to since, one of those entries alone that some
            hypothesis holds. And `held`, of its entries.
        """
        unfinished = self.unfinished if length % self.stride else 0
        full = held.shape[-1] - unfinished
        if self._takes(full, new, length):
            return self, held
        reached = held[..., :full].any(1)
        least = -(-ROOM // self.stride) * new
        few = full <= least  # not worth asking a GPU, which would have to be waited for
        kept = full if few else int(reached.sum(-1).max())
        index = reached.int().argsort(dim=-1, descending=True, stable=True)[:, :kept]  # in the order of before
        last = torch.arange(full, full + unfinished, device=held.device).expand(len(held), -1)
        index = torch.cat((index, last), dim=-1)
        room = 0 if _learning(self.caches) else max(kept, least)
        tree = TokenTree(self.cache_dtype, self.stride)
        tree.caches = [
            replace(cache, tensors=tuple(_taken(x, index, room) for x in cache.tensors)) for cache in self.caches
        ]
        tree.filled, tree.unfinished, tree.length = kept, unfinished, length
        return tree, held.take_along_dim(index.unsqueeze(1), dim=-1)

    def append(self, layer: int, new: FrameCache, parents: Tensor | None = None) -> FrameCache:
        """Append the newest tokens of a layer, (utterances, new).

        Args:
            parents: (utterances, new), which of the unfinished entries each goes on from; None where it begins a group.

        Returns:
            All entries of the layer, with these.
        """
        if parents is not None:
            new = self._merged(layer, new, parents)
        new = new.stored_as(self.cache_dtype)
        if layer == len(self.caches):
            self.caches.append(new)
            return new
        cache, end = self.caches[layer], self.filled + new.entries
        if cache.entries < end or _learning([cache]):
            self.caches[layer] = cache.first(self.filled).append(new)
            return self.caches[layer]
        for there, tensor in zip(cache.tensors, new.tensors, strict=True):
            there[..., self.filled : end, :] = tensor
        return cache.first(end)

    def _merged(self, layer: int, new: FrameCache, parents: Tensor) -> FrameCache:
        cache = self.caches[layer].first(self.filled + self.unfinished)
        last = replace(cache, tensors=tuple(x[..., self.filled :, :] for x in cache.tensors)).values()
        index = parents.unsqueeze(-1)
        return replace(
            new, tensors=tuple(x + y.take_along_dim(index, dim=-2) for x, y in zip(new.tensors, last, strict=True))
        )

    def seen(self, held: Tensor) -> tuple[Tensor, Tensor | None]:
        """`visible` and `parents` of a `Past` in which each hypothesis has one new token; `held` as of `prepared`.

        What is visible at this step is held at the next.
        """
        parents = None
        if self.unfinished:
            parents = held[..., self.filled :].int().argmax(-1)
            held = held[..., : self.filled]
        newest = torch.eye(held.shape[1], dtype=torch.bool, device=held.device).expand(len(held), -1, -1)
        return torch.cat((held, newest), dim=-1), parents

    def advance(self, new: int) -> None:
        """All layers have had their `new` tokens of each utterance appended."""
        self.length += 1
        full = self.length % self.stride == 0
        self.filled, self.unfinished = (self.filled + new, 0) if full else (self.filled, new)

    def _takes(self, full: int, new: int, length: int) -> bool:
        """Whether as many new tokens can be written after the first `full` entries."""
        if not self.caches:
            return True
        # What was made in inference mode can't be written to outside of it.
        strange = not torch.is_inference_mode_enabled() and any(one.tensors[0].is_inference() for one in self.caches)
        enough = min(cache.entries for cache in self.caches) >= full + new
        return self.length == length and self.filled == full and enough and not strange and not _learning(self.caches)


class Past:
    """What one layer's self-attention is handed at a step of decoding.

    Args:
        tree: of the tokens before.
        layer: which one it is.
        visible: (utterances, hypotheses, entries and new ones), true where a hypothesis may look.
        parents: (utterances, hypotheses), which of the unfinished entries each goes on from; None where they begin a
            group.
    """

    def __init__(self, tree: TokenTree, layer: int, visible: Tensor, parents: Tensor | None = None):
        self.tree, self.layer, self.visible, self.parents = tree, layer, visible, parents

    @property
    def length(self) -> int:
        """Tokens of each hypothesis before the new ones."""
        return self.tree.length

    def append(self, new: FrameCache) -> FrameCache:
        """As of the tree."""
        return self.tree.append(self.layer, new, self.parents)


def _learning(caches: list[FrameCache]) -> bool:
    """Whether a gradient needs what is there to stay as it is."""
    return torch.is_grad_enabled() and any(x.requires_grad for cache in caches for x in cache.tensors)


def _taken(x: Tensor, index: Tensor, room: int) -> Tensor:
    """The frames (..., time, d) that `index` (rows, frames) names, then room for more."""
    rows, frames = index.shape
    taken = x.take_along_dim(index.view(rows, *[1] * (x.dim() - 3), frames, 1), dim=-2)
    if not room:
        return taken
    out = x.new_empty((*x.shape[:-2], frames + room, x.shape[-1]))
    out[..., :frames, :] = taken
    return out
