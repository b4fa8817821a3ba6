"""Chunks that see some frames after them: all of an utterance's in one pass.

Chunk by chunk `espnet_mla.models.chunked.ChunkStep` does the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from espnet_mla.attention import Attention, Chunks, FrameCache, attention_context
from espnet_mla.models.chunked import ChunkConv1d, ChunkStep


class LookAheadChunks:
    """The attention context of whole utterances in chunks with look-ahead, all chunks in one pass.

    Between the layers each chunk stands with copies of the frames after it, as so many frames of one longer utterance:
    the copies are not what those frames are in their own chunk (Emformer, 2010.10759, section 2.1).

    Args:
        chunks: with look-ahead, and so with a bounded window.
        position_of: makes of frames the position of the queries and keys of one chunk, as `Attention.attend` takes it.
    """

    def __init__(self, chunks: Chunks, position_of: Callable[[Tensor], Tensor | None]):
        assert chunks.window is not None
        self.chunks, self.window, self._position_of = chunks, chunks.window, position_of
        # Until the frames are laid out nothing is known of these:
        self.time: int | None = None
        self.lengths: Tensor | None = None  # real frames of each utterance, (b,)
        self.position: Tensor | None = None
        self.mask: Tensor | None = None

    def laid_out(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (b, t, d) and their mask (b, 1, t), each chunk with its copies: (b, chunks encoded, d) and mask."""
        size, window = self.chunks.size, self.window
        self.time, self.lengths, self.position = x.shape[1], mask.squeeze(1).sum(1), self._position_of(x)
        more = -self.time % size + self.chunks.look_ahead
        real = nn.functional.pad(mask.squeeze(1).bool(), (window, more)).unfold(-1, window + self.chunks.encoded, size)
        x = nn.functional.pad(x, (0, 0, 0, more)).unfold(1, self.chunks.encoded, size).transpose(-1, -2)
        # A chunk of padding sees all of it: a row without any frame would make NaN of it.
        self.mask = (real | ~real.any(-1, keepdim=True)).flatten(0, 1).unsqueeze(1)  # (b chunks, 1, keys)
        return x.flatten(1, 2), real[..., window:].flatten(1, 2).unsqueeze(1)

    def frames(self, x: Tensor) -> Tensor:
        """The frames without the copies: (b, chunks encoded, d) -> (b, t, d)."""
        return x.unflatten(1, (-1, self.chunks.encoded))[:, :, : self.chunks.size].flatten(1, 2)[:, : self.time]

    def rows(self, x: Tensor) -> Tensor:
        """A row for each chunk: (b, chunks encoded, d) -> (b chunks, encoded, d)."""
        return x.unflatten(1, (-1, self.chunks.encoded)).flatten(0, 1)

    def with_past(self, x: Tensor, batch: int) -> Tensor:
        """What each chunk attends to: (b chunks, ..., encoded, d) -> (b chunks, ..., left frames and encoded, d)."""
        return torch.cat((self._past(x, batch, self.window), x), dim=-2)

    def _past(self, x: Tensor, batch: int, frames: int) -> Tensor:
        """So many frames before each chunk, zeros before the first: -> (b chunks, ..., frames, d)."""
        if not frames:
            return x[..., :0, :]
        own = x[..., : self.chunks.size, :].unflatten(0, (batch, -1)).movedim(1, -3)  # (b, ..., chunks, size, d)
        past = nn.functional.pad(own.flatten(-3, -2), (0, 0, frames, 0)).unfold(-2, frames, self.chunks.size)
        return past[..., : own.shape[-3], :, :].transpose(-1, -2).movedim(-3, 1).flatten(0, 1)

    def attend(self, attention: Attention, x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """As `AttentionContext.attend`; position and mask, which the encoder made, are not needed."""
        rows = self.rows(x)
        kv = attention.project_kv(rows)
        assert isinstance(kv, FrameCache)  # as of all that can look ahead
        kv = replace(kv, tensors=tuple(self.with_past(tensor, len(x)) for tensor in kv.tensors))
        return attention.attend(rows, kv, self.position, self.mask).view_as(x)

    def each(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each chunk of one utterance x (1, chunks encoded, d) the queries, the keys, and the position of both.

        A frame is among the keys of every chunk that sees it. Where the utterance begins or ends a chunk has fewer.
        """
        assert self.mask is not None
        rows = self.rows(x)
        seen = self.with_past(rows, 1)
        keys = seen.shape[1]
        for own, key, real in zip(rows, seen, self.mask.squeeze(1), strict=True):
            first, last = real.nonzero()[[0, -1]].flatten().tolist()
            missing = keys - 1 - last  # frames that would be behind the end
            query, here = own[: len(own) - missing], self.position
            if here is not None:
                here = here[:, first + missing : keys - 1 + len(query)]
            yield query[None], key[None, first : last + 1], here

    def convolve(self, conv: ChunkConv1d, x: Tensor) -> Tensor:
        """Each chunk with its left context and look-ahead, and zeros to its right: (b, channels, t) -> the same."""
        rows = self.rows(x.transpose(1, 2))
        seen = torch.cat((self._past(rows, len(x), conv.reach), rows), dim=1).transpose(1, 2)
        out = conv.convolve_valid(nn.functional.pad(seen, (0, conv.kernel_size[0] - 1 - conv.reach)))
        return out.transpose(1, 2).reshape(len(x), x.shape[2], -1).transpose(1, 2)


def lay_out(_layer: nn.Module, inputs: tuple) -> tuple | None:
    """Before the first of an encoder's layers that runs, put chunks with look-ahead as their context needs them.

    Args:
        inputs: the frames, or a pair of them and positions; and the mask.
    """
    context = attention_context()
    if not isinstance(context, LookAheadChunks | ChunkStep) or context.time is not None:
        return None
    frames, mask, *rest = inputs
    x, *position = frames if isinstance(frames, tuple) else (frames,)
    x, mask = context.laid_out(x, mask)
    return ((x, *position) if position else x, mask, *rest)
