"""Multi-head attention, and grouped-query attention, which is the same with fewer heads of keys and values."""

from torch import Tensor, nn

from espnet_mla.attention.base import SoftmaxAttention
from espnet_mla.attention.cache import FrameCache
from espnet_mla.attention.positions import CachedPosition, rotate


class GQA(SoftmaxAttention):
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245): several query heads share a head of k and v.

    ::

        num_heads = 4    num_kv_heads = 4 (mha)    num_kv_heads = 2    num_kv_heads = 1 (multi-query)
        q                0 1 2 3                   0 1 2 3             0 1 2 3
        k, v             0 1 2 3                   0 0 1 1             0 0 0 0

    Parameters are named as in ESPnet's MultiHeadedAttention and RelPositionMultiHeadedAttention; with
    num_kv_heads = num_heads their checkpoints load as they are.

    Args:
        num_kv_heads: must divide num_heads.
        Others as in `Attention`.

    Raises:
        ValueError: a size does not divide.
    """

    def __init__(self, *, num_kv_heads: int = 1, **sizes):
        super().__init__(**sizes)
        if num_kv_heads < 1 or self.num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads ({num_kv_heads}) must divide attention_heads ({self.num_heads})")
        if self.position == "rope" and self.d_head % 2:
            raise ValueError(f"rope needs an even head size, but output_size / attention_heads is {self.d_head}")
        self.num_kv_heads = num_kv_heads
        self.linear_q = nn.Linear(self.d_model, self.d_model)
        self.linear_k = nn.Linear(self.d_model, num_kv_heads * self.d_head)
        self.linear_v = nn.Linear(self.d_model, num_kv_heads * self.d_head)
        self.linear_out = nn.Linear(self.d_model, self.d_model)
        if self.position == "rel_pos":
            self.add_relative_position(self.d_head)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.d_head)).transpose(1, 2)  # (b, heads, t, d_head)

    def project_kv(self, x: Tensor, mask: Tensor | None = None, start: Tensor | int = 0) -> FrameCache:
        return FrameCache((self._heads(self.linear_k(x)), self._heads(self.linear_v(x))))

    def attend(
        self,
        query: Tensor,
        kv: FrameCache,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        *,
        self_attention: bool = False,
    ) -> Tensor:
        k, v = kv.values()
        q = self._heads(self.linear_q(query))
        if self.position == "rope":
            q, k = rotate(q), rotate(k)
        out = self.weighted_sum(q, k, v, position, mask, self_attention)
        return self.linear_out(out.transpose(1, 2).flatten(-2))


class MHA(GQA):
    """Multi-head attention (Vaswani et al. 2017): every query head has a head of keys and values of its own."""

    def __init__(self, *, num_heads: int, **sizes):
        super().__init__(num_heads=num_heads, num_kv_heads=num_heads, **sizes)
