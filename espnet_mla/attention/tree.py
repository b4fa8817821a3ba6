"""What a beam search keeps of its tokens: a tree, of which each hypothesis is a path.

Hypotheses have most of their tokens in common. In a tree a token's keys and values (or latent) stand once, and stay
where they are when the beam is pruned; all hypotheses of an utterance attend to it in one product, each through a mask
that shows it its own path.
"""

import torch
from torch import Tensor

from espnet_mla.attention.cache import FrameCache

ROOM = 8
"""Steps, at least, between two times that a tree is made anew."""


class TokenTree:
    """The tokens of all hypotheses, of all layers.

    States of a search that differ by a few steps share one tree: what later ones append, earlier ones do not see.

    Attributes:
        caches: of each layer, a row for each utterance. The first `filled` of its frames are tokens, in the order in
            which they came; after them there is room.
        filled: how many.
        cache_dtype: in what they are kept, see `CACHE_TYPES`; None for as they are.
    """

    def __init__(self, caches: list[FrameCache] | None = None, filled: int = 0, cache_dtype: str | None = None):
        self.caches = caches or []
        self.filled = filled
        self.cache_dtype = cache_dtype

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self.caches)

    def trimmed(self) -> list[FrameCache]:
        """The caches without the room."""
        return [_first(cache, self.filled) for cache in self.caches]

    def release(self) -> None:
        """Let go what it holds; states that still have it are those of hypotheses that have ended."""
        self.caches.clear()

    def prepared(self, held: Tensor, new: int) -> tuple["TokenTree", Tensor]:
        """A tree to which tokens can be appended after those that some hypotheses hold.

        Args:
            held: (utterances, hypotheses, tokens), true where a hypothesis holds a token.
            new: how many tokens of each utterance there will be.

        Returns:
            This tree; or, where it is full or has been appended to since, one of those tokens alone that some
            hypothesis holds. And `held`, of its tokens.
        """
        if self._takes(held.shape[-1], new):
            return self, held
        reached = held.any(1)
        few = held.shape[-1] <= ROOM * new  # not worth asking a GPU, which would have to be waited for
        kept = held.shape[-1] if few else int(reached.sum(-1).max())
        index = reached.int().argsort(dim=-1, descending=True, stable=True)[:, :kept]  # in the order of before
        room = 0 if self._learning() else max(kept, ROOM * new)
        caches = [
            FrameCache(tuple(_taken(x, index, room) for x in cache.tensors), cache.stored) for cache in self.caches
        ]
        return TokenTree(caches, kept, self.cache_dtype), held.take_along_dim(index.unsqueeze(1), dim=-1)

    def append(self, layer: int, new: FrameCache) -> FrameCache:
        """Append the newest tokens of a layer, (utterances, new); all its tokens, with these."""
        new = new.stored_as(self.cache_dtype)
        if layer == len(self.caches):
            self.caches.append(new)
            return new
        cache, end = self.caches[layer], self.filled + len(new)
        if len(cache) < end:
            self.caches[layer] = _first(cache, self.filled).append(new)
            return self.caches[layer]
        for there, tensor in zip(cache.tensors, new.tensors, strict=True):
            there[..., self.filled : end, :] = tensor
        return _first(cache, end)

    def _takes(self, length: int, new: int) -> bool:
        """Whether as many new tokens can be written after the first `length`."""
        if not self.caches:
            return True
        # What was made in inference mode can't be written to outside of it.
        strange = self.caches[0].tensors[0].is_inference() and not torch.is_inference_mode_enabled()
        enough = len(self.caches[0]) >= length + new
        return self.filled == length and enough and not strange and not self._learning()

    def _learning(self) -> bool:
        """Whether a gradient needs what is there to stay as it is."""
        return torch.is_grad_enabled() and any(x.requires_grad for cache in self.caches for x in cache.tensors)


class Past:
    """What one layer's self-attention is handed at a step of decoding.

    Args:
        tree: of the tokens before.
        layer: which one it is.
        visible: (utterances, hypotheses, tokens and new ones), true where a hypothesis may look.
    """

    def __init__(self, tree: TokenTree, layer: int, visible: Tensor):
        self.tree, self.layer, self.visible = tree, layer, visible

    def append(self, new: FrameCache) -> FrameCache:
        """As of the tree."""
        return self.tree.append(self.layer, new)


def _first(cache: FrameCache, frames: int) -> FrameCache:
    return FrameCache(tuple(x[..., :frames, :] for x in cache.tensors), cache.stored)


def _taken(x: Tensor, index: Tensor, room: int) -> Tensor:
    """The frames (..., time, d) that `index` (rows, frames) names, then room for more."""
    rows, frames = index.shape
    taken = x.take_along_dim(index.view(rows, *[1] * (x.dim() - 3), frames, 1), dim=-2)
    if not room:
        return taken
    out = x.new_empty((*x.shape[:-2], frames + room, x.shape[-1]))
    out[..., :frames, :] = taken
    return out
