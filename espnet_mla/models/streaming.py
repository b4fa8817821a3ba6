"""Streaming encoders: training in chunks, and chunked inference with a stream state."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import Tensor, nn

from espnet_mla.attention import ALL, Attention, Cache, CachedPosition, Chunks, FrameCache, using_context
from espnet_mla.models.chunked import ChunkConv1d, ChunkStep, MaskedChunks, StreamState
from espnet_mla.models.look_ahead import LookAheadChunks, lay_out
from espnet_mla.models.streaming_conf import Streaming, chunk_size, left_chunks, look_ahead, read

# Key of the encoder's configuration -> the values that it can have with `streaming`, and why no others.
_STREAMABLE: dict[str, tuple[tuple, str]] = {
    "pos_enc_layer_type": (("rel_pos", "rope"), "a stream has no end that positions could be counted up to"),
    "input_layer": (
        ("conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "conv1d1", "conv1d2", "conv1d3", "linear"),
        "the encoder must take features and add positions",
    ),
    "positionwise_layer_type": (("linear", None), "the other kinds look ahead"),
    "merge_method": (("concat", "fixed_ave"), "learned_ave pools over the whole utterance"),
    "interctc_use_conditioning": ((False,), "chunks are encoded without CTC"),
    "ctc_trim": ((False,), "it removes frames"),
    "gradient_checkpoint_layers": (([], ()), "recomputed layers would see the whole utterance"),
}

_AHEAD = ("mha", "gqa", "mla")
"""Attentions that can look ahead: what they keep of a frame does not depend on the others."""


class StreamingEncoder(AbsEncoder):
    """A mixin before one of ESPnet's encoders: with `streaming`, chunked attention and inference chunk by chunk.

    Attributes:
        streaming: of the configuration; None for a full-context encoder.
        chunks: of inference and validation; see `set_chunks`.
        cache_dtype: in what caches are kept, one of `espnet_mla.attention.CACHE_TYPES`; None for as they are computed.
    """

    streaming: Streaming | None = None
    chunks: Chunks
    cache_dtype: str | None = None

    def _configure_streaming(self, conf: Mapping[str, Any]) -> None:
        """Apply `streaming` of the configuration, after ESPnet's constructor.

        Raises:
            ValueError: `streaming` is not valid, or another key of the configuration needs the whole utterance.
        """
        for key, (valid, why) in _STREAMABLE.items():
            if key in conf and conf[key] not in valid:
                choices = " or ".join(str(value) for value in valid)
                raise ValueError(f"{key}: {conf[key]} can't be used with streaming ({why}); it must be {choices}")
        self.streaming = read(conf["streaming"])
        self._input_size = conf["input_size"]
        for layer in self.encoders:
            layer.register_forward_pre_hook(lay_out)
            for parent in list(layer.modules()):
                for name, module in list(parent.named_children()):
                    if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
                        setattr(parent, name, ChunkConv1d.of(module))
        self._positions: dict[tuple, CachedPosition] = {}
        self._merged = math.lcm(*(getattr(attention, "down_rate", 1) for attention in self._attentions()))
        self.streaming = self.streaming.in_steps(self._merged)
        chunks, drawn = self.streaming.chunks, max(self.streaming.ahead, default=0)
        for key, ahead in (("look_ahead", chunks.look_ahead), ("dynamic_look_ahead", drawn)):
            self._check_look_ahead(ahead, chunks.left, f"streaming: {key}")
        self.set_chunks()

    def set_chunks(
        self, chunk_size: int | None = None, left_chunks: int | None = None, look_ahead: int | None = None
    ) -> Chunks:
        """Set the chunks of `forward` in evaluation mode, and of new streams.

        Args:
            chunk_size: frames, or -1 for the whole utterance; None for the configuration's.
            left_chunks: chunks before its own that a frame sees, or -1 for all; None for the configuration's.
            look_ahead: frames after its chunk that a frame sees; None for the configuration's.

        Raises:
            ValueError: this is a full-context encoder, or a value is not valid.
        """
        self.chunks = self._resolve_chunks(chunk_size, left_chunks, look_ahead)
        return self.chunks

    def _resolve_chunks(self, size: int | None, left: int | None, ahead: int | None) -> Chunks:
        if self.streaming is None:
            raise ValueError(
                "encoder_conf: streaming is missing, so this is a full-context encoder; it must be trained with, "
                "for instance, streaming: {chunk_size: 16, left_chunks: 8}"
            )
        default = self.streaming.chunks
        size = default.size if size is None else chunk_size(size, "chunk_size")
        left = default.left if left is None else left_chunks(left, "left_chunks")
        ahead = default.look_ahead if ahead is None else look_ahead(ahead, "look_ahead")
        ahead = 0 if size == ALL else ahead
        self._check_look_ahead(ahead, left)
        if left != ALL and any(attention.name == "linear" for attention in self._attentions()):
            raise ValueError(f"left_chunks: {left}, but linear attention sums over all earlier frames: it must be -1")
        if size != ALL and size % self._merged:
            raise ValueError(
                f"chunk_size: {size} must be a multiple of {self._merged}, since mtla merges frames (down_rate)"
            )
        return Chunks(size, left, ahead)

    def _check_look_ahead(self, ahead: int, left: int, key: str = "look_ahead") -> None:
        if not ahead:
            return
        for attention in self._attentions():
            if attention.name not in _AHEAD:
                raise ValueError(f"{key}: {ahead}: {attention.name} can't look ahead; {', '.join(_AHEAD)} can")
        if left == ALL:
            raise ValueError(f"{key}: {ahead} needs a number of left_chunks, not -1 for all; look_ahead: 0 does not")

    @property
    def subsampling(self) -> tuple[int, int]:
        """Feature frames per frame of the output, and how many one frame of the output sees (its receptive field)."""
        rate, span = 1, 1
        for module in self.embed.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                span += (module.kernel_size[0] - 1) * rate
                rate *= module.stride[0]
        return rate, span

    def forward(self, *args: Any, **kwargs: Any) -> tuple:
        """As ESPnet's; with `streaming`, with the attention masked to chunks, all chunks in one pass."""
        if self.streaming is None:
            return super().forward(*args, **kwargs)
        chunks = self.streaming.draw() if self.training else self.chunks
        if chunks.look_ahead:
            return self._forward_with_look_ahead(chunks, *args, **kwargs)
        with using_context(None if chunks.size == ALL else MaskedChunks(chunks)):
            return super().forward(*args, **kwargs)

    def _forward_with_look_ahead(self, chunks: Chunks, *args: Any, **kwargs: Any) -> tuple:
        embedding = self._position_embedding()

        def position_of(x: Tensor) -> Tensor | None:
            if embedding is None or chunks.window is None:
                return None
            return embedding.dropout(_sinusoids(embedding, chunks.window, chunks.encoded, x))

        context = LookAheadChunks(chunks, position_of)
        with using_context(context):
            out, lengths, *rest = super().forward(*args, **kwargs)
        if context.time is None:  # every layer was dropped
            return out, lengths, *rest
        lengths = context.lengths
        if isinstance(out, tuple):  # with the outputs of intermediate layers, and their numbers for CTC
            out, between = out
            between = [
                (one[0], context.frames(one[1])) if isinstance(one, tuple) else context.frames(one) for one in between
            ]
            return (context.frames(out), between), lengths, *rest
        return context.frames(out), lengths, *rest

    def stream(
        self,
        chunk_size: int | None = None,
        left_chunks: int | None = None,
        rows: int = 1,
        cache_dtype: str | None = None,
        look_ahead: int | None = None,
    ) -> StreamState:
        """The state of new streams.

        Args:
            chunk_size, left_chunks, look_ahead: as of `set_chunks`; None for all: those that were set there.
            rows: the number of streams, which are encoded as one batch.
            cache_dtype: in what the caches are kept, one of `espnet_mla.attention.CACHE_TYPES`; None for the encoder's.

        Raises:
            ValueError: as `set_chunks`; or no cache, or not that of linear attention, is kept in `cache_dtype`.
        """
        asked = (chunk_size, left_chunks, look_ahead) != (None, None, None) or self.streaming is None
        chunks = self._resolve_chunks(chunk_size, left_chunks, look_ahead) if asked else self.chunks
        cache_dtype = cache_dtype or self.cache_dtype
        like = next(self.parameters())
        no_frames = like.new_zeros(rows, 0, self.output_size())
        attention: dict[str, Cache] = {}
        convolution: dict[str, FrameCache] = {}
        for module, name in self._cached_modules().items():
            if isinstance(module, ChunkConv1d):
                silence = like.new_zeros(rows, module.reach, module.in_channels)
                convolution[name] = FrameCache((silence,)).stored_as(cache_dtype)
            else:
                with torch.no_grad():
                    attention[name] = module.project_kv(no_frames).stored_as(cache_dtype)
        features = [like.new_zeros(0, self._input_size) for _ in range(rows)]
        return StreamState(
            chunks, attention, convolution, features, [0] * rows, [False] * rows, cache_dtype=cache_dtype
        )

    def forward_chunk(
        self,
        features: Tensor,
        state: StreamState,
        lengths: Tensor | Sequence[int] | None = None,
        last: bool | Sequence[bool] = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode all chunks that new features complete, and the rest of the streams that end with them.

        ::

            state = encoder.stream(rows=2)
            frames, lengths = encoder.forward_chunk(features, state)  # features (2, time, features)

        Args:
            features: (rows, time, features), any number of frames.
            state: of `stream()`; it is updated in place.
            lengths: number of frames in each row, (rows,); None where no row is padded.
            last: whether the streams end with these features, for all rows or for each.

        Returns:
            The new frames (rows, time, d_model), and how many each row has, (rows,). A chunk is encoded as soon as the
            features have arrived that its last frame sees, or the last one that is looked ahead.

        Raises:
            ValueError: a row has ended before, the sizes don't fit the state, or the encoder is in training mode.
        """
        self.buffer(features, state, lengths, last)
        outs = [[features.new_zeros(0, self.output_size())] for _ in range(len(state))]
        while self.ready(state):
            frames, new = self.encode_chunk(state)
            for row, (out, count) in enumerate(zip(frames, new, strict=True)):
                outs[row].append(out[:count])
        rows = [torch.cat(out) for out in outs]
        counts = torch.tensor([len(row) for row in rows], device=features.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), counts

    def buffer(
        self,
        features: Tensor,
        state: StreamState,
        lengths: Tensor | Sequence[int] | None = None,
        last: bool | Sequence[bool] = False,
    ) -> None:
        """Append features to the state, where they wait for their chunk; arguments as of `forward_chunk`.

        Raises:
            ValueError: a row has ended before, or the sizes don't fit the state.
        """
        rows = len(state)
        lengths = [features.shape[1]] * rows if lengths is None else [int(length) for length in lengths]
        last = [last] * rows if isinstance(last, bool) else list(last)
        fits = features.shape[::2] == (rows, self._input_size) and len(lengths) == rows and len(last) == rows
        if not fits or not 0 <= min(lengths) <= max(lengths) <= features.shape[1]:
            raise ValueError(
                f"features {tuple(features.shape)}, lengths {lengths} and last {last}: the state needs ({rows}, time, "
                f"{self._input_size}), lengths from 0 to time"
            )
        for row, length in enumerate(lengths):
            if state.ended[row] and length:
                raise ValueError(f"row {row} of the streams has ended: a new one is begun by stream()")
        for row, (length, ends) in enumerate(zip(lengths, last, strict=True)):
            state.features[row] = torch.cat((state.features[row], features[row, :length]))
            state.ended[row] |= ends

    def ready(self, state: StreamState) -> list[int]:
        """The rows that have a chunk to be encoded: a complete one, or the rest of a stream that has ended."""
        whole = math.inf if state.chunks.size == ALL else self.input_frames(state.chunks.encoded)
        return [
            row
            for row, (features, ended) in enumerate(zip(state.features, state.ended, strict=True))
            if len(features) >= (self.input_frames(1) if ended else whole)
        ]

    @torch.no_grad()
    def encode_chunk(self, state: StreamState) -> tuple[Tensor, list[int]]:
        """Encode one chunk of each row that has one, all in one batch. Should it fail, the state is as it was.

        Args:
            state: of `stream()`, with the features that `buffer` has appended; it is updated in place.

        Returns:
            The new frames (rows, time, d_model), and how many each row has.

        Raises:
            ValueError: the encoder is in training mode.
        """
        if self.training:
            raise ValueError("an encoder in training mode can't be streamed: call eval() first")
        rows, ready = list(range(len(state))), self.ready(state)
        if not ready:
            return state.features[0].new_zeros(len(rows), 0, self.output_size()), [0] * len(rows)
        if ready == rows:
            return self._encode_rows(state)
        part = state.select(ready)
        frames, lengths = self._encode_rows(part)
        rest = [row for row in rows if row not in ready]
        joined = StreamState.join([part, state.select(rest)])
        vars(state).update(vars(joined.select([(ready + rest).index(row) for row in rows])))
        out = frames.new_zeros(len(rows), *frames.shape[1:])
        out[ready] = frames
        new = dict(zip(ready, lengths, strict=True))
        return out, [new.get(row, 0) for row in rows]

    def input_frames(self, frames: int) -> int:
        """How many feature frames so many frames of the output see."""
        rate, span = self.subsampling
        return (frames - 1) * rate + span

    def _encode_rows(self, state: StreamState) -> tuple[Tensor, list[int]]:
        """`encode_chunk`, where every row has one."""
        rate, span = self.subsampling
        whole = max(map(len, state.features))
        size, encoded = (whole, whole) if state.chunks.size == ALL else (state.chunks.size, state.chunks.encoded)
        known = 0 if state.embedded is None else state.embedded.shape[1]
        if min(map(len, state.features)) < self.input_frames(known + 1):  # a stream ends with those that are known
            known = 0
        chunks = [features[known * rate : self.input_frames(encoded)] for features in state.features]
        lengths = [known + (len(chunk) - span) // rate + 1 for chunk in chunks]
        position = self._position(state, max(lengths))
        step = ChunkStep(state, self._cached_modules(), lengths, position, chunks[0].device, known)
        with using_context(step):
            counts = torch.tensor(list(map(len, chunks)))  # on the CPU, where ESPnet makes its mask of them
            out, *_ = super().forward(nn.utils.rnn.pad_sequence(chunks, batch_first=True), counts)
        lengths = [min(length, size) for length in lengths]  # without what was looked ahead
        past, window = state.past + max(lengths), state.chunks.window
        state.past = past if window is None else min(past, window)
        state.attention, state.convolution, state.embedded = step.attention, step.convolution, step.embedded
        state.features = [features[size * rate :].clone() for features in state.features]
        state.frames = [had + new for had, new in zip(state.frames, lengths, strict=True)]
        out = out[0] if isinstance(out, tuple) else out  # without the outputs of intermediate layers
        return out[:, :size], lengths

    def _position(self, state: StreamState, time: int) -> CachedPosition | None:
        """The sinusoids of the distances in the window of a chunk of `time` frames."""
        if (embedding := self._position_embedding()) is None:
            return None
        past, like = state.past, next(self.parameters())
        steady = time == state.chunks.encoded and past == state.chunks.window
        key = past, time, like.device, like.dtype
        if steady and key in self._positions:
            return self._positions[key]
        position = CachedPosition(_sinusoids(embedding, past, time, like))
        if steady:
            self._positions[key] = position
        return position

    def _position_embedding(self) -> Any:
        """ESPnet's module with sinusoids of relative positions; None with rope."""
        return next((module for module in self.embed.modules() if hasattr(module, "extend_pe")), None)

    def _attentions(self) -> list[Attention]:
        return [module for module in self.encoders.modules() if isinstance(module, Attention)]

    def _cached_modules(self) -> dict[Attention | ChunkConv1d, str]:
        """Each attention and convolution that a stream state has a cache for -> its name."""
        return {
            module: name
            for name, module in self.encoders.named_modules()
            if isinstance(module, Attention | ChunkConv1d)
        }


def _sinusoids(embedding: Any, past: int, time: int, like: Tensor) -> Tensor:
    """Of the distances between the last `time` frames of a window and all, (1, distances, d).

    Args:
        embedding: ESPnet's, of relative positions.
        past: frames of the window before those.
        like: has the type and device that are wanted.
    """
    embedding.extend_pe(like.new_zeros(1, past + time))
    here = embedding.pe.shape[1] // 2  # distance 0
    return embedding.pe[:, here - (past + time - 1) : here + time]
