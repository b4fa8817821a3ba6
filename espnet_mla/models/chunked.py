"""Chunked inference of the modules that mix frames: all chunks in one masked pass, or chunk by chunk with caches.

Those modules are an encoder's attentions and its convolutions along time. Everything else works frame by frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from espnet_mla.attention import ALL, Attention, Cache, CachedPosition, Chunks, FrameCache, attention_context


class MaskedChunks:
    """The attention context of whole utterances, masked to chunks, all chunks in one pass."""

    def __init__(self, chunks: Chunks):
        self.chunks = chunks

    def attend(self, attention: Attention, x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """As `AttentionContext.attend`."""
        return attention.attend_in_chunks(x, position, mask, self.chunks)

    def convolve(self, conv: "ChunkConv1d", x: Tensor) -> Tensor:
        """Each chunk with its left context, and zeros to its right: (b, channels, t) -> (b, channels, t)."""
        time, size, left = x.shape[-1], self.chunks.size, conv.reach
        x = nn.functional.pad(x, (left, -time % size)).unfold(-1, left + size, size)
        batch, channels, chunks, _ = x.shape  # the last axis: left + size
        x = nn.functional.pad(x.transpose(1, 2).flatten(0, 1), (0, conv.kernel_size[0] - 1 - left))
        out = conv.convolve_valid(x).unflatten(0, (batch, chunks)).transpose(1, 2)  # (b, channels, chunks, size)
        return out.reshape(batch, channels, -1)[..., :time]


class ChunkConv1d(nn.Conv1d):
    """A convolution along time that does not look beyond its chunk, where the attention context has chunks.

    With stride and dilation 1, an odd kernel, and padding that keeps the length.
    """

    @classmethod
    def of(cls, conv: nn.Conv1d) -> "ChunkConv1d":
        """The same convolution, with the same parameters."""
        sizes = {name: getattr(conv, name)[0] for name in ("kernel_size", "stride", "padding", "dilation")}
        new = cls(
            conv.in_channels, conv.out_channels, groups=conv.groups, bias=conv.bias is not None, device="meta", **sizes
        )
        new.weight, new.bias = conv.weight, conv.bias
        return new

    @property
    def reach(self) -> int:
        """Frames of input on each side that a frame of output depends on."""
        return self.kernel_size[0] // 2

    def convolve_valid(self, x: Tensor) -> Tensor:
        """Without padding: (b, channels, t + 2 reach) -> (b, channels, t)."""
        return nn.functional.conv1d(x, self.weight, self.bias, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, time) -> (batch, channels, time)."""
        context = attention_context()
        return super().forward(x) if context is None else context.convolve(self, x)


@dataclass
class StreamState:
    """The state of streams that are encoded as the rows of one batch; made by an encoder's `stream()`.

    Args:
        chunks: of all rows.
        attention: name of each attention's module -> its cache of earlier frames.
        convolution: name of each convolution's module -> its last input frames, (rows, half its kernel, channels).
        features: for each row, those that wait for the rest of their chunk, (frames, features). The chunk before has
            seen the first few of them.
        frames: for each row, how many frames have been encoded.
        ended: for each row, whether its last features have arrived.
        past: frames that the attentions' caches hold: those of the row with most; a row with fewer has them at the end.
        embedded: what the first layer was given of the frames that were looked ahead, (rows, frames, d_model): the
            subsampling need not be computed again. None where there are none, or not of all rows.
        cache_dtype: in what the caches are kept, see `espnet_mla.attention.CACHE_TYPES`; None for as they are computed.
    """

    chunks: Chunks
    attention: dict[str, Cache]
    convolution: dict[str, FrameCache]
    features: list[Tensor]
    frames: list[int]
    ended: list[bool]
    past: int = 0
    cache_dtype: str | None = None
    embedded: Tensor | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.features)

    @property
    def attention_nbytes(self) -> int:
        """Bytes of the attentions' caches, of all rows."""
        return sum(cache.nbytes for cache in self.attention.values())

    @property
    def convolution_nbytes(self) -> int:
        """Bytes of the convolutions' caches, of all rows."""
        return sum(frames.nbytes for frames in self.convolution.values())

    @property
    def features_nbytes(self) -> int:
        """Bytes of the features that wait for their chunk, and of the frames that were looked ahead."""
        embedded = 0 if self.embedded is None else self.embedded.nbytes
        return sum(features.nbytes for features in self.features) + embedded

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state."""
        return self.attention_nbytes + self.convolution_nbytes + self.features_nbytes

    def select(self, rows: Sequence[int]) -> "StreamState":
        """A copy of these rows, in that order."""
        index = torch.tensor(rows, device=self.features[0].device)
        past = min(self.past, max(self.frames[row] for row in rows))
        return StreamState(
            self.chunks,
            attention={name: cache.select(index).keep_last(past) for name, cache in self.attention.items()},
            convolution={name: frames.select(index) for name, frames in self.convolution.items()},
            features=[self.features[row] for row in rows],
            frames=[self.frames[row] for row in rows],
            ended=[self.ended[row] for row in rows],
            past=past,
            cache_dtype=self.cache_dtype,
            embedded=None if self.embedded is None else self.embedded.index_select(0, index),
        )

    @staticmethod
    def join(streams: Sequence["StreamState"]) -> "StreamState":
        """The rows of all of them as one state. Updating it leaves `streams` as they are.

        Raises:
            ValueError: their chunks or the types of their caches differ.
        """
        first = streams[0]
        if len(streams) == 1:
            return replace(
                first,
                attention=dict(first.attention),
                convolution=dict(first.convolution),
                features=list(first.features),
                frames=list(first.frames),
                ended=list(first.ended),
            )
        if other := next((stream for stream in streams if stream.chunks != first.chunks), None):
            raise ValueError(
                f"streams of one batch must have the same chunks, but here are {first.chunks} and {other.chunks}"
            )
        if other := next((stream for stream in streams if stream.cache_dtype != first.cache_dtype), None):
            raise ValueError(
                f"streams of one batch must have the same cache_dtype, but here are {first.cache_dtype} and "
                f"{other.cache_dtype}"
            )
        return StreamState(
            first.chunks,
            attention={
                name: type(cache).join([stream.attention[name] for stream in streams])
                for name, cache in first.attention.items()
            },
            convolution={
                name: FrameCache.join([stream.convolution[name] for stream in streams]) for name in first.convolution
            },
            features=[features for stream in streams for features in stream.features],
            frames=[frames for stream in streams for frames in stream.frames],
            ended=[ended for stream in streams for ended in stream.ended],
            past=max(stream.past for stream in streams),
            cache_dtype=first.cache_dtype,
            embedded=_joined([stream.embedded for stream in streams]),
        )


def _joined(embedded: Sequence[Tensor | None]) -> Tensor | None:
    known = [one for one in embedded if one is not None]
    if len(known) < len(embedded) or len({one.shape[1] for one in known}) > 1:
        return None
    return torch.cat(known)


class ChunkStep:
    """The attention context of the next chunk of each row of a stream state.

    Attributes:
        attention, convolution, embedded: as in `StreamState`, after this chunk.

    Args:
        stream: the state, which is not changed.
        names: each attention and convolution -> its name in that state.
        lengths: how many frames each row has, (rows,), its look-ahead among them.
        position: the sinusoids of the window, where positions are relative.
        device: of the frames.
        known: how many of the frames `stream.embedded` has; the first layer is given the others.
    """

    def __init__(
        self,
        stream: StreamState,
        names: Mapping[Any, str],
        lengths: Sequence[int],
        position: CachedPosition | None,
        device: torch.device,
        known: int = 0,
    ):
        self.time: int | None = None  # until the frames are laid out
        self.known = known
        self.embedded: Tensor | None = None
        self.position, self.window = position, stream.chunks.window
        self._start = torch.tensor(stream.frames, device=device)
        self._before, self._names = stream, names
        self.attention: dict[str, Cache] = {}
        self.convolution: dict[str, FrameCache] = {}
        past, time = stream.past, max(lengths)
        self._ahead = 0 if stream.chunks.size == ALL else max(0, time - stream.chunks.size)  # frames not to be kept
        visible = [min(frames, past) for frames in stream.frames]
        new = torch.arange(time, device=device) < torch.tensor(lengths, device=device).unsqueeze(-1)
        old = torch.arange(past, device=device) >= past - torch.tensor(visible, device=device).unsqueeze(-1)
        self._new = None if min(lengths) == time else new.unsqueeze(1)  # (rows, 1, time)
        unpadded = self._new is None and min(visible) == past
        self._mask = None if unpadded else torch.cat((old, new), dim=-1).unsqueeze(1)  # (rows, 1, past + time)

    def laid_out(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """All frames (rows, time, d) and their mask (rows, 1, time), of those that the encoder has subsampled now."""
        if self.known:
            assert self._before.embedded is not None
            x = torch.cat((self._before.embedded[:, : self.known], x), dim=1)
            mask = nn.functional.pad(mask, (self.known, 0), value=True)
        self.time = x.shape[1]
        if self._ahead:
            self.embedded = x[:, self.time - self._ahead :].clone()
        return x, mask

    def attend(self, attention: Attention, x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """As `AttentionContext.attend`; position and mask, which the encoder made for x alone, are not needed."""
        name = self._names[attention]
        kv = self._before.attention[name].append(attention.project_kv(x, self._new, self._start))
        kept = kv
        if self._ahead:
            assert isinstance(kv, FrameCache)  # as of all that can look ahead
            kept = kv.first(len(kv) - self._ahead)
        self.attention[name] = kept if self.window is None else kept.keep_last(self.window)
        return attention.attend(x, kv, self.position, self._mask)

    def convolve(self, conv: ChunkConv1d, x: Tensor) -> Tensor:
        """The chunk and its look-ahead with the cached frames before them, and with zeros after them."""
        name = self._names[conv]
        own = x[..., : x.shape[-1] - self._ahead]
        before, new = self._before.convolution[name], own[..., -conv.reach :].transpose(1, 2)
        self.convolution[name] = before.append(FrameCache((new,))).keep_last(conv.reach)
        x = torch.cat((before.values()[0].transpose(1, 2), x), dim=-1)
        return conv.convolve_valid(nn.functional.pad(x, (0, conv.kernel_size[0] - 1 - conv.reach)))
