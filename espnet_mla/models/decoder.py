"""ESPnet's Transformer decoder with a KV cache, and with the choice of its attentions.

ESPnet caches the outputs of its layers, and projects all of them and the whole encoder output again at each step and
for each hypothesis. Here keys and values (or latents) are cached: those of the encoder output are made once for an
utterance and shared by its hypotheses, those of the tokens once for all hypotheses that have a token in common.
Parameters, layers and beam search are ESPnet's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from espnet2.asr.decoder import transformer_decoder
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from torch import Tensor

from espnet_mla.attention import FrameCache, Past, TokenTree, build_attentions
from espnet_mla.attention.base import attend_to_cache, is_cached
from espnet_mla.attention.softmax import softmax_attention
from espnet_mla.models.signature import extended

# What a decoder can have: linear attention would need a causal state in training too, and mtla to know the padding of
# the speech before it is told.
CHOICES = {"self": ("mha", "gqa", "mla", "mtla"), "src": ("mha", "gqa", "mla")}


class CacheBytes(NamedTuple):
    """Bytes of keys and values (or latents), over all layers; of the tokens without the room that is kept for more."""

    self_attention: int = 0
    source_attention: int = 0


@dataclass(frozen=True)
class DecodingState:
    """What some hypotheses of one or several utterances know of the speech and of their tokens.

    Args:
        source: of each layer, the source attention's cache of the encoder output, a row for each utterance.
        encoded: that output, (utterances, time, d).
        tokens: those of all hypotheses; a later step may have released it, for a beam search keeps the states of
            finished hypotheses and never scores them again. Where one is scored nevertheless, its tokens are computed
            again; so are merged ones whose last group is not full, where another hypothesis has gone on from them. (A
            search that scores hypotheses one by one pays for that; batched ones do not.)
        held: (hypotheses, entries of the tree), true where this hypothesis holds that entry; the hypotheses of an
            utterance stand side by side.
        length: tokens of each hypothesis.
        growing: whether more speech may come in. ESPnet's streaming searches then go back by two steps: nothing is
            released.
    """

    source: list[FrameCache]
    encoded: Tensor
    tokens: TokenTree
    held: Tensor
    length: int = 0
    growing: bool = False

    def select(self, rows: Tensor | slice) -> "DecodingState":
        """Only these hypotheses, in that order."""
        return replace(self, held=self.held[rows])


class CachedMultiHeadedAttention(MultiHeadedAttention):
    """ESPnet's attention as it is, which a decoder may also call with a cache: see `attend_to_cache`."""

    name = "mha"

    @property
    def d_model(self) -> int:
        """The width of its input."""
        return self.h * self.d_k

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.h, self.d_k)).transpose(1, 2)  # (b, h, t, d_k)

    def project_kv(self, x: Tensor) -> FrameCache:
        """Keys and values of the frames x (b, t, d)."""
        return FrameCache((self.k_norm(self._heads(self.linear_k(x))), self._heads(self.linear_v(x))))

    def attend(self, query: Tensor, kv: FrameCache, position: None, mask: Tensor | None) -> Tensor:
        """As `espnet_mla.attention.Attention.attend`."""
        q = self.q_norm(self._heads(self.linear_q(query)))
        k, v = kv.values()
        out = softmax_attention(q, k, v, None, mask, 1 / math.sqrt(self.d_k), 0.0, self_attention=False)
        return self.linear_out(out.transpose(1, 2).flatten(-2))

    def forward(self, query, key, value, mask, expand_kv=False):
        """ESPnet's call, or a decoder's."""
        if is_cached(key, mask):
            return attend_to_cache(self, query, key, mask)
        return super().forward(query, key, value, mask, expand_kv)


class TransformerDecoder(transformer_decoder.TransformerDecoder):
    """Transformer decoder (Vaswani et al. 2017) that scores the tokens of a beam search with a KV cache.

    New keys: `self_attention_layer_type`, which is mha (the default), gqa, mla or mtla, and `src_attention_layer_type`,
    which is one of the first three, with their options in `self_attention_conf` and `src_attention_conf`. mha is
    ESPnet's own: the network, its training and its checkpoints stay what they are without this class.

    Raises:
        ValueError: an unknown attention or option, a size that can't work, or ESPnet's qk_norm with another than mha.
    """

    _new: ClassVar[dict[str, object]] = {
        "self_attention_layer_type": "mha",
        "self_attention_conf": {},
        "src_attention_layer_type": "mha",
        "src_attention_conf": {},
    }
    __signature__ = extended(transformer_decoder.TransformerDecoder, _new)

    def __init__(self, *args: Any, **kwargs: Any):
        given = self.__signature__.bind(*args, **kwargs)
        given.apply_defaults()
        conf = dict(given.arguments)
        new = {key: conf.pop(key) for key in self._new}
        super().__init__(**conf)
        self.cache_dtype: str | None = None
        """In what the caches are kept, see `espnet_mla.attention.CACHE_TYPES`; None for as they are computed."""
        self.cache_bytes = CacheBytes()
        """The largest caches since the last call of `init_state` or `batch_init_state`."""
        for part, slot in (("self", "self_attn"), ("src", "src_attn")):
            kind, options = new[f"{part}_attention_layer_type"], new[f"{part}_attention_conf"] or {}
            _check(part, kind, options, conf["qk_norm"])
            if kind == "mha":
                for layer in self.decoders:
                    getattr(layer, slot).__class__ = CachedMultiHeadedAttention
                continue
            attentions = build_attentions(
                kind,
                options,
                len(self.decoders),
                d_model=conf["encoder_output_size"],
                num_heads=conf["attention_heads"],
                position="abs_pos",  # added to the tokens before the first layer
                dropout_rate=conf[f"{part}_attention_dropout_rate"],
                key=f"{part}_attention_conf",
            )
            for layer, attention in zip(self.decoders, attentions, strict=True):
                setattr(layer, slot, attention)

    def batch_init_state(self, x: Tensor, xs_lengths: Tensor | None = None) -> DecodingState:
        """The initial state: the encoder output projected, once.

        Args:
            x: (time, d) of one utterance, or (utterances, time, d).
            xs_lengths: not needed, since `batch_score` gets the mask.
        """
        if x.dim() == 2:
            x = x.unsqueeze(0)
        self.cache_bytes = CacheBytes()
        return DecodingState(self._source(x), x, self._tree(), _none_held(len(x), x))

    init_state = batch_init_state

    def score(self, ys: Tensor, state: DecodingState | None, x: Tensor, return_hs: bool = False):
        """Score the tokens that may follow one hypothesis, as ESPnet's.

        Args:
            ys: (length,), int64, the tokens so far.
            state: of `init_state`, or of the step before.
            x: (time, d), the encoder output.
            return_hs: also return the hidden state before the output layer.

        Returns:
            log probabilities (vocabulary,), with return_hs the hidden state (1, d), and the state.
        """
        out, hidden, state = self._advance(ys.unsqueeze(0), self._joined([state], x.unsqueeze(0)), None)
        return (out.squeeze(0), hidden, state) if return_hs else (out.squeeze(0), state)

    def batch_score(
        self,
        ys: Tensor,
        states: list[DecodingState | None] | DecodingState,
        xs: Tensor,
        return_hs: bool = False,
        xs_mask: Tensor | None = None,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], DecodingState]:
        """Score the tokens that may follow each hypothesis, as ESPnet's.

        Args:
            ys: (hypotheses, length), int64, the tokens so far, the hypotheses of an utterance side by side.
            states: of each hypothesis, or of all.
            xs: (hypotheses, time, d), the encoder output that each goes with.
            return_hs: also return the hidden states before the output layer.
            xs_mask: (hypotheses, 1, time), true for real frames, or None.

        Returns:
            log probabilities (hypotheses, vocabulary), with return_hs paired with hidden states (hypotheses, d); and
            the state of all hypotheses.
        """
        past = self._joined(states, xs)
        if xs_mask is not None:
            xs_mask = xs_mask[:: len(ys) // past.source[0].rows]
        out, hidden, state = self._advance(ys, past, xs_mask)
        if state.tokens is not past.tokens and not past.growing:
            past.tokens.release()
        return ((out, hidden) if return_hs else out), state

    def batch_score_partially_AR(self, ys, states, xs, yseq_lengths):
        """As ESPnet's, which caches the outputs of its layers: a state of `batch_init_state` is none for it."""
        if isinstance(states, list):
            states = [None]
        return super().batch_score_partially_AR(ys, states, xs, yseq_lengths)

    def extend_state(self, states: list[DecodingState | None] | DecodingState) -> Any:
        """The states of a search that hears more speech, for which ESPnet's streaming searches call this."""
        if isinstance(states, DecodingState):
            return replace(states, growing=True)
        return [state and replace(state, growing=True) for state in states]

    def select_state(self, state: DecodingState, i: int, new_id: int | None = None) -> DecodingState:
        """The state of hypothesis i."""
        return state[i] if isinstance(state, list) else state.select(slice(i, i + 1))

    def batch_select_state(self, state: DecodingState, best_ids: Tensor) -> DecodingState:
        """The state of the hypotheses that survived pruning.

        Args:
            best_ids: (utterances, beam), the hypothesis within its utterance times the vocabulary size, plus the token.
        """
        hypotheses = len(state.held) // len(best_ids)
        first = torch.arange(0, len(state.held), hypotheses, device=best_ids.device).unsqueeze(-1)
        return state.select((best_ids // self.output_layer.out_features + first).flatten())

    def _joined(self, states: list[DecodingState | None] | DecodingState, xs: Tensor) -> DecodingState:
        """One state of all hypotheses, whose source is this encoder output."""
        if isinstance(states, DecodingState):
            state = states
        elif not (known := [state for state in states if state is not None]):
            state = replace(self.batch_init_state(xs[:1] if xs.stride(0) == 0 else xs), growing=True)
        elif all(other.tokens is known[0].tokens and other.length == known[0].length for other in known):
            state = replace(known[0], held=torch.cat([other.held for other in known]))
        else:  # one went another way: all tokens are computed again
            state = replace(known[0], tokens=self._tree())
        encoded = xs[:: len(xs) // len(state.encoded)]
        if _view(encoded) == _view(state.encoded):
            return state
        if not torch.equal(encoded, state.encoded):  # speech that is still coming in
            state = replace(state, source=self._source(encoded))
        return replace(state, encoded=encoded)  # that of the next step can be told to be the same without a comparison

    def _source(self, x: Tensor) -> list[FrameCache]:
        return [layer.src_attn.project_kv(x).stored_as(self.cache_dtype) for layer in self.decoders]

    def _tree(self) -> TokenTree:
        return TokenTree(self.cache_dtype, getattr(self.decoders[0].self_attn, "down_rate", 1))

    def _advance(self, ys: Tensor, state: DecodingState, mask: Tensor | None) -> tuple[Tensor, Tensor, DecodingState]:
        """Log probabilities, hidden state and the next state, after the tokens that `state` does not hold yet."""
        utterances, tree, held, done = state.source[0].rows, state.tokens, state.held, state.length
        if not tree.holds(done):
            tree, held, done = self._tree(), _none_held(len(ys), ys), 0
        beam = len(ys) // utterances
        held = held.view(utterances, beam, held.shape[-1])
        for length in range(done, ys.shape[1]):
            x = self.embed(ys[:, : length + 1])[:, -1:]
            tree, held = tree.prepared(held, beam, length)
            held, parents = tree.seen(held)
            for number, (layer, source) in enumerate(zip(self.decoders, state.source, strict=True)):
                x, *_ = layer(x, Past(tree, number, held, parents), source, mask)
            tree.advance(beam)
        self.cache_bytes = CacheBytes(
            max(self.cache_bytes.self_attention, sum(kv.nbytes for kv in tree.trimmed())),
            max(self.cache_bytes.source_attention, sum(kv.nbytes for kv in state.source)),
        )
        hidden = x[:, -1]
        if self.normalize_before:
            hidden = self.after_norm(hidden)
        out = hidden
        if self.output_layer is not None:
            out = torch.log_softmax(self.output_layer(hidden), dim=-1)
        state = DecodingState(
            state.source, state.encoded, tree, held.flatten(0, 1), length=ys.shape[1], growing=state.growing
        )
        return out, hidden, state


def _none_held(hypotheses: int, like: Tensor) -> Tensor:
    """The `held` of a state without tokens."""
    return torch.zeros(hypotheses, 0, dtype=torch.bool, device=like.device)


def _view(x: Tensor) -> tuple:
    """Equal for two tensors that are the same view of the same memory."""
    strides = [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return x.data_ptr(), x.shape, strides


def _check(part: str, kind: str, options: dict, qk_norm: bool) -> None:
    if kind not in CHOICES[part]:
        raise ValueError(f"{part}_attention_layer_type: {kind!r} must be one of {', '.join(CHOICES[part])}")
    rates = options.get("down_rate") if kind == "mtla" and isinstance(options, Mapping) else None
    if isinstance(rates, list) and len(set(map(str, rates))) > 1:
        raise ValueError(f"{part}_attention_conf: down_rate: {rates} must be one number for all layers")
    if kind == "mha" and options:
        raise ValueError(f"{part}_attention_conf: {options}: {part}_attention_layer_type: mha has no options")
    if kind != "mha" and qk_norm:
        raise ValueError(
            f"qk_norm: true belongs to ESPnet's own attention: {part}_attention_layer_type: {kind} has none"
        )


DECODERS = {"transformer": TransformerDecoder}
