"""What every attention shares: sizes, positions, and softmax attention in the papers' letters."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from espnet_mla.attention.cache import Cache
from espnet_mla.attention.chunks import Chunks
from espnet_mla.attention.context import attention_context
from espnet_mla.attention.positions import CachedPosition, KeyPlaces
from espnet_mla.attention.softmax import PositionTerm, softmax_attention
from espnet_mla.attention.tree import Past

# The values of ESPnet's pos_enc_layer_type. Absolute positions are added before the first layer, not in the attention.
POSITIONS = ("rel_pos", "abs_pos", "scaled_abs_pos", "rope")


class Attention(nn.Module):
    """An attention as two functions: `project_kv` makes the cache of some frames, `attend` uses it.

    Shape letters: b batch, t_q queries, t_k keys, d d_model, h heads.

    Args:
        d_model: size of a frame.
        num_heads: number of query heads.
        position: one of `POSITIONS`.
        dropout_rate: dropout on the attention weights.

    Raises:
        ValueError: a size does not divide, or the position kind is not one of `self.positions`.
    """

    positions: tuple[str, ...] = POSITIONS

    def __init__(self, *, d_model: int, num_heads: int, position: str, dropout_rate: float = 0.0):
        super().__init__()
        if num_heads < 1 or d_model % num_heads:
            raise ValueError(f"attention_heads ({num_heads}) must divide output_size ({d_model})")
        if position not in self.positions:
            raise ValueError(f"pos_enc_layer_type: {position}, but {self.name} takes {' or '.join(self.positions)}")
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_head = d_model // num_heads
        self.position = position
        self.dropout_rate = dropout_rate

    @property
    def name(self) -> str:
        """The choice in the configuration."""
        return type(self).__name__.lower()

    def project_kv(self, x: Tensor, mask: Tensor | None = None, start: Tensor | int = 0) -> Cache:
        """Make the cache of the frames x.

        Args:
            x: (b, t, d).
            mask: (b, 1, t), true for real frames. Only an attention that sums over frames needs it here.
            start: how many frames came before x; or of each row, (b,). Only an attention that merges frames needs it.
        """
        raise NotImplementedError

    def attend(
        self,
        query: Tensor,
        kv: Any,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        *,
        self_attention: bool = False,
    ) -> Tensor:
        """Attend from the last t_q frames of kv to all of them.

        Args:
            query: (b, t_q, d).
            kv: the cache that `project_kv` made of t_k frames.
            position: for rel_pos the sinusoids (1, t_q + t_k - 1, d) of the distances t_k - 1 down to 1 - t_q, as
                ESPnet's RelPositionalEncoding gives them, or a `CachedPosition` with them; else None.
            mask: (b, 1, t_k) or (b, t_q, t_k), true where a query may look; None for everywhere. A fully
                masked query gets zeros before `linear_out`.
            self_attention: whether the queries are the very frames of kv, so that the mask tells which of them are
                padding.

        Returns:
            (b, t_q, d).
        """
        raise NotImplementedError

    def attend_to_frames(
        self, query: Tensor, x: Tensor, position: Tensor | None, mask: Tensor | None, self_attention: bool
    ) -> Tensor:
        """Attend to frames x (b, t_k, d) of which nothing is cached; other arguments as in `attend`."""
        return self.attend(query, self.project_kv(x, mask), position, mask, self_attention=self_attention)

    def attend_in_chunks(self, x: Tensor, position: Tensor | None, mask: Tensor | None, chunks: Chunks) -> Tensor:
        """Attend from every frame of x (b, t, d) to the chunks that are visible to it, all chunks in one masked pass.

        Args:
            position: as in `attend`, of t queries and t keys.
            mask: (b, 1, t), true for real frames, or None.
        """
        return self.attend(x, self.project_kv(x), position, chunks.mask(x, mask))

    def forward(
        self,
        query: Tensor,
        key: Any,
        value: Any,
        *position_and_mask: Any,
        expand_kv: bool = False,
    ) -> Tensor:
        """ESPnet's call: (query, key, value, mask), or (query, key, value, pos_emb, mask) with relative positions.

        | caller | key | mask | what is done |
        | --- | --- | --- | --- |
        | encoder, full context | the query | (b, 1, t) or None | self-attention over the utterance |
        | encoder, chunks | the query | (b, 1, t) or None | what `attention_context` says |
        | decoder, in training | frames (b, t_k, d) | (b, 1 or t_q, t_k) | attention to all of them |
        | decoder, step by step, to itself | the new frames | a `Past` | appended, and attended to |
        | decoder, step by step, to the source | a cache | (rows, 1, t_k) or None | each row serves several queries |

        Args:
            expand_kv: all rows of `key` are the same, as ESPnet's partially autoregressive decoding says.

        Raises:
            ValueError: `value` is not `key`, which one latent could not stand for.
        """
        if value is not key:
            raise ValueError(f"{self.name} makes keys and values from the same frames: value must be key")
        *position, mask = position_and_mask
        if is_cached(key, mask):
            return attend_to_cache(self, query, key, mask)
        self_attention = query is key
        if self_attention and (context := attention_context()) is not None:
            return context.attend(self, query, position[0] if position else None, mask)
        if expand_kv:
            return attend_to_cache(self, query, self.project_kv(key[:1], mask), mask)
        return self.attend_to_frames(query, key, position[0] if position else None, mask, self_attention)


def is_cached(key: Tensor | Cache, mask: Tensor | Past | None) -> bool:
    """Whether a call of an attention is one that `attend_to_cache` answers."""
    return isinstance(mask, Past) or not isinstance(key, Tensor)


def attend_to_cache(attention: Any, query: Tensor, key: Any, mask: Tensor | Past | None) -> Tensor:
    """A decoder's call of an attention with a cache.

    Args:
        attention: with `project_kv` and `attend`.
        query: (b, t_q, d).
        key: a cache, with fewer rows than `query`, or as many: each is shared by as many consecutive queries, as that
            of an utterance by its hypotheses. Or, with a `Past`, the new frames (b, t_q, d).
        mask: (rows of the cache, 1, t_k) or None. Or a `Past`, to which the new frames are appended, and of which each
            query then attends to what its hypothesis holds.

    Returns:
        (b, t_q, d).
    """
    if isinstance(mask, Past):
        utterances = len(mask.visible)
        key, mask = mask.append(attention.project_kv(key.reshape(utterances, -1, key.shape[-1]))), mask.visible
    shared = query.reshape(key.rows, -1, query.shape[-1])
    return attention.attend(shared, key, None, mask).view_as(query)


class SoftmaxAttention(Attention):
    """Attention whose weights are a softmax, through PyTorch's fused kernels.

    With relative positions (Dai et al. 2019, eq. 2) the score of query i and key j is
    (q_i + u) . k_j + (q_i + v) . W_p r_{i-j}, the second term travelling as an additive mask. Its parameters bear
    ESPnet's names: linear_pos, pos_bias_u (u) and pos_bias_v (v).
    """

    def add_relative_position(self, d_key: int) -> None:
        """Add linear_pos (d, h d_key), pos_bias_u and pos_bias_v (h, d_key)."""
        self.linear_pos = nn.Linear(self.d_model, self.num_heads * d_key, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.num_heads, d_key))
        self.pos_bias_v = nn.Parameter(torch.empty(self.num_heads, d_key))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)

    def weighted_sum(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        self_attention: bool,
        to_keys: Callable[[Tensor], Tensor] = lambda q: q,
        places: KeyPlaces | None = None,
    ) -> Tensor:
        """Softmax attention, with the position term where `self.position` is rel_pos.

        Args:
            q: (b, h, t_q, d_query).
            k: (b, h or fewer, t_k, d_key).
            v: (b, h or fewer, t_k, d_value).
            position, mask, self_attention: as in `attend`.
            to_keys: carries queries into the space of the keys, where that is not theirs: d_query -> d_key.
            places: where the keys stand, if not at every frame.

        Returns:
            (b, h, t_q, d_value).

        Raises:
            ValueError: rel_pos, but no position.
        """
        scale = 1 / math.sqrt(q.shape[-1])
        term = None
        if self.position == "rel_pos":
            if position is None:
                raise ValueError(f"{self.name} was built for rel_pos, but was called without position embeddings")
            if isinstance(position, CachedPosition):
                p = position.projected(self.linear_pos)
            else:
                p = self.linear_pos(position)
            p = p.unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
            term = PositionTerm((q + self.pos_bias_v.unsqueeze(-2)) * scale, p, places)
            q = q + self.pos_bias_u.unsqueeze(-2)
        dropout = self.dropout_rate if self.training else 0.0
        return softmax_attention(to_keys(q), k, v, term, mask, scale, dropout, self_attention)
