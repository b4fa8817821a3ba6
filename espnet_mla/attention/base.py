"""What every attention shares: sizes, positions, and softmax attention over whatever keys and values it makes."""

import math

import torch
from torch import Tensor, nn

from espnet_mla.attention.cache import Cache
from espnet_mla.attention.positions import relative_shift, rotate

# The values of ESPnet's pos_enc_layer_type. The absolute ones are added before the first layer: an attention sees none.
POSITIONS = ("rel_pos", "abs_pos", "scaled_abs_pos", "rope")


class Attention(nn.Module):
    """An attention as two functions: what it keeps of the past, and what it does with it.

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

    def project_kv(self, x: Tensor, mask: Tensor | None = None) -> Cache:
        """Make what is kept of the frames x.

        Args:
            x: (b, t, d).
            mask: (b, 1, t), true for real frames. Only an attention that sums over frames needs it here.
        """
        raise NotImplementedError

    def attend(self, query: Tensor, kv: Cache, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Attend from the last t_q frames of kv to all of them.

        Args:
            query: (b, t_q, d).
            kv: what `project_kv` made of t_k frames.
            position: for rel_pos the sinusoids (1, t_q + t_k - 1, d) of the distances t_k - 1 down to 1 - t_q, as
                ESPnet's RelPositionalEncoding gives them; else None.
            mask: (b, 1, t_k) or (b, t_q, t_k), true where a query may look; None for everywhere. A query that may
                look nowhere gets zeros before `linear_out`.

        Returns:
            (b, t_q, d).
        """
        raise NotImplementedError

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *position_and_mask: Tensor | None) -> Tensor:
        """ESPnet's call: (query, key, value, mask), or (query, key, value, pos_emb, mask) with relative positions.

        Raises:
            ValueError: `value` is not `key`, which one latent could not stand for.
        """
        if value is not key:
            raise ValueError(f"{self.name} makes keys and values from the same frames: value must be key")
        *position, mask = position_and_mask
        return self.attend(query, self.project_kv(key, mask), position[0] if position else None, mask)


class RelativePosition(nn.Module):
    """The parameters of ESPnet's relative positions, to be mixed into an attention under ESPnet's names."""

    def add_relative_position(self, d_key: int) -> None:
        """Add linear_pos (d, h d_key), pos_bias_u and pos_bias_v (h, d_key)."""
        self.linear_pos = nn.Linear(self.d_model, self.num_heads * d_key, bias=False)
        self.pos_bias_u = nn.Parameter(torch.empty(self.num_heads, d_key))
        self.pos_bias_v = nn.Parameter(torch.empty(self.num_heads, d_key))
        nn.init.xavier_uniform_(self.pos_bias_u)
        nn.init.xavier_uniform_(self.pos_bias_v)


class SoftmaxAttention(Attention, RelativePosition):
    """Attention whose weights are a softmax, through PyTorch's fused kernels.

    With relative positions (Dai et al. 2019, eq. 2) the score of query i and key j is
    (q_i + u) . k_j + (q_i + v) . W_p r_{i-j}, the second term travelling as an additive mask.
    """

    def position_bias(self, q: Tensor, position: Tensor, time_k: int, scale: float) -> Tensor:
        """The scaled second term of the score, (b, h, t_q, t_k), of queries q (b, h, t_q, d_key)."""
        p = self.linear_pos(position).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (1, h, distances, d_key)
        q = (q + self.pos_bias_v.unsqueeze(-2)) * scale
        return relative_shift(q @ p.transpose(-1, -2), time_k)

    def score_mask(self, q: Tensor, position: Tensor | None, mask: Tensor | None, time_k: int, scale: float):
        """The additive or boolean mask for the fused kernel, broadcastable to (b, h, t_q, t_k), or None."""
        if mask is not None:
            mask = mask.unsqueeze(1).bool()  # (b, 1, 1 or t_q, t_k)
        if self.position != "rel_pos":
            return mask
        if position is None:
            raise ValueError(f"{self.name} was built for rel_pos, but was called without position embeddings")
        bias = self.position_bias(q, position, time_k, scale)
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)

    def softmax_attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """(b, h, t_q, d_key), (b, h or fewer, t_k, d_key), (b, h or fewer, t_k, d_value) -> (b, h, t_q, d_value)."""
        dropout = self.dropout_rate if self.training else 0.0
        shared = k.shape[1] != q.shape[1]
        return nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=shared
        )


def window_positions(time_q: int, time_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The positions (t_q,) and (t_k,) of the queries and the keys of a window."""
    keys = torch.arange(time_k, device=device)
    return keys[time_k - time_q :], keys


def rotate_window(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries (..., t_q, d_key) and keys (..., t_k, d_key) by their positions in the window."""
    at_q, at_k = window_positions(q.shape[-2], k.shape[-2], q.device)
    return rotate(q, at_q), rotate(k, at_k)
