"""Chunks: how an utterance is cut, and the attention mask that follows."""

from dataclasses import dataclass

import torch
from torch import Tensor

ALL = -1
"""As a chunk's size: the whole utterance. As chunks to the left: all of them."""


@dataclass(frozen=True)
class Chunks:
    """A chunked attention mask: a frame attends to its whole chunk and to some left chunks (U2, arXiv 2012.05481).

    With look-ahead the frames after a chunk are encoded with it and attended to as well, and then encoded again, as
    part of their own chunk (Emformer's right context, 2010.10759, section 2.1).

    Args:
        size: frames of a chunk, or `ALL`.
        left: left chunks that a frame attends to, or `ALL`.
        look_ahead: frames after a chunk that are encoded with it; only with bounded `size` and `left`.
    """

    size: int
    left: int
    look_ahead: int = 0

    @property
    def encoded(self) -> int:
        """Frames that are encoded at once, those of a chunk and of its look-ahead; `ALL` where that is its size."""
        return self.size + self.look_ahead

    @property
    def window(self) -> int | None:
        """Frames of left context before the chunk; None where it is unbounded."""
        return None if ALL in (self.size, self.left) else self.left * self.size

    def mask(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention mask of the frames x (b, t, d), of a bounded size and no look-ahead.

        A frame that is padding attends to itself too, so that no row is fully masked: a NaN there, which some kernels
        make of it, would reach real frames as 0 x NaN.

        Args:
            mask: (b, 1, t), true for real frames, or None.

        Returns:
            (b or 1, t, t), true where the frame of the row attends to that of the column.
        """
        chunk = torch.arange(x.shape[1], device=x.device) // self.size
        chunks_back = chunk.unsqueeze(1) - chunk
        visible = chunks_back >= 0
        if self.left != ALL:
            visible &= chunks_back <= self.left
        if mask is None:
            return visible.unsqueeze(0)
        return visible & mask.bool() | torch.eye(len(chunk), dtype=torch.bool, device=x.device)
