"""An utterance in chunks: which frames see which, and what tells the attentions of an encoder so."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from espnet_mla.attention.base import Attention

ALL = -1
"""As a chunk's size: the whole utterance. As chunks to the left: all of them."""


@dataclass(frozen=True)
class Chunks:
    """How an utterance is cut: a frame sees its own chunk whole, and some chunks before it (U2, arXiv 2012.05481).

    Args:
        size: frames of a chunk, or `ALL`.
        left: chunks before its own that a frame sees, or `ALL`.
    """

    size: int
    left: int

    @property
    def window(self) -> int | None:
        """Frames before its own chunk that a frame sees; None for all of them."""
        return None if ALL in (self.size, self.left) else self.left * self.size

    def mask(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Where the frames x (b, t, d) see each other. Not for a size of `ALL`.

        Args:
            mask: (b, 1, t), true for real frames, or None.

        Returns:
            (b or 1, t, t), true where the frame of the row sees that of the column.
        """
        chunk = torch.arange(x.shape[1], device=x.device) // self.size
        back = chunk.unsqueeze(1) - chunk
        seen = back >= 0
        if self.left != ALL:
            seen &= back <= self.left
        return seen.unsqueeze(0) if mask is None else seen & mask.bool()


class View(Protocol):
    """What an attention sees, where that is not the whole utterance."""

    def attend(self, attention: "Attention", x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """From the frames x (batch, time, d) to what they see, the other arguments being those of the attention's call."""


# A variable of the context and not an attribute of the modules: an encoder may be run by several threads at once, and
# what it sees is no part of a model that is copied or saved.
_view: ContextVar[View | None] = ContextVar("view", default=None)


def view() -> View | None:
    """What is seen here and now; None for the whole utterance."""
    return _view.get()


@contextmanager
def seen_as(view: View | None) -> Iterator[None]:
    """See that within the context."""
    before = _view.set(view)
    try:
        yield
    finally:
        _view.reset(before)
