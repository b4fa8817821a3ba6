"""How an utterance is cut into chunks, and which frames then see which."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        chunks_back = chunk.unsqueeze(1) - chunk
        visible = chunks_back >= 0
        if self.left != ALL:
            visible &= chunks_back <= self.left
        return visible.unsqueeze(0) if mask is None else visible & mask.bool()
