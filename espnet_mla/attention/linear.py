"""Linear attention: a kernel instead of the softmax, so that the past fits into a state of fixed size."""

import torch
from torch import Tensor, nn

from espnet_mla.attention.base import Attention
from espnet_mla.attention.cache import RunningState
from espnet_mla.attention.chunks import ALL, Chunks
from espnet_mla.attention.positions import CachedPosition, rotate
from espnet_mla.attention.precision import full_precision


def feature_map(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, eq. 7), positive."""
    return nn.functional.elu(x) + 1


class Linear(Attention):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236, eq. 5).

    out_i = phi(q_i)^T sum_j phi(k_j) v_j^T / (phi(q_i)^T sum_j phi(k_j)), padding being left out of both sums. With
    rope phi(q_i) and phi(k_j) of the numerator are rotated (Su et al. 2021, eq. 19), the denominator stays positive.
    Relative positions are impossible: they are added to a score matrix, which is never materialised here.

    Raises:
        ValueError: a size does not divide, or `position` is rel_pos.
    """

    positions = ("rope", "abs_pos", "scaled_abs_pos")

    def __init__(self, **sizes):
        super().__init__(**sizes)
        if self.position == "rope" and self.d_head % 2:
            raise ValueError(f"rope needs an even head size, but output_size / attention_heads is {self.d_head}")
        self.linear_q = nn.Linear(self.d_model, self.d_model)
        self.linear_k = nn.Linear(self.d_model, self.d_model)
        self.linear_v = nn.Linear(self.d_model, self.d_model)
        self.linear_out = nn.Linear(self.d_model, self.d_model)
        # The field drops attention weights; here there are none to drop, so what they would have made is dropped.
        self.dropout = nn.Dropout(self.dropout_rate)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.d_head)).transpose(1, 2)  # (b, h, t, d_head)

    def project_kv(self, x: Tensor, mask: Tensor | None = None, start: Tensor | int = 0) -> RunningState:
        if mask is not None and mask.shape[1] != 1:
            raise ValueError(
                f"linear attention sums over frames once for all queries: its mask is (batch, 1, time), "
                f"not {tuple(mask.shape)}"
            )
        k = feature_map(full_precision(self._heads(self.linear_k(x))))
        v = full_precision(self._heads(self.linear_v(x)))
        if mask is not None:
            k = k * mask.unsqueeze(-1).to(k.dtype)  # (b, 1, t, 1)
        denominator = k.sum(dim=-2)
        rotated = self.position == "rope"
        if rotated:
            k = rotate(k)
        with torch.autocast(x.device.type, enabled=False):
            numerator = k.transpose(-1, -2) @ v
        return RunningState(numerator, denominator, x.shape[1], rotated)

    def attend(
        self,
        query: Tensor,
        kv: RunningState,
        position: Tensor | CachedPosition | None,
        mask: Tensor | None,
        *,
        self_attention: bool = False,
    ) -> Tensor:
        """As in `Attention`; `mask` was spent when the state was made."""
        q = feature_map(full_precision(self._heads(self.linear_q(query))))
        with torch.autocast(query.device.type, enabled=False):
            numerator, denominator = kv.values()
            total = (q * denominator.unsqueeze(-2)).sum(dim=-1, keepdim=True)  # (b, h, t_q, 1)
            if kv.rotated:
                q = rotate(q)
            # An utterance without a real frame has a total of 0, and gets zeros.
            out = (q @ numerator) / total.masked_fill(total == 0, 1)
        return self.linear_out(self.dropout(out).to(query.dtype).transpose(1, 2).flatten(-2))

    def attend_in_chunks(
        self, x: Tensor, position: Tensor | CachedPosition | None, mask: Tensor | None, chunks: Chunks
    ) -> Tensor:
        """As in `Attention`: each chunk has the sums over itself and all that was before.

        Raises:
            ValueError: chunks to the left are bounded, which a sum can't be.
        """
        if chunks.left != ALL:
            raise ValueError(f"linear attention sums over all that was before: left_chunks is -1, not {chunks.left}")
        time, size = x.shape[1], chunks.size

        def cut(heads: Tensor) -> Tensor:  # (b, h, t, d_head) -> (b, h, chunks, size, d_head)
            return nn.functional.pad(heads, (0, 0, 0, -time % size)).unflatten(-2, (-1, size))

        q = feature_map(full_precision(self._heads(self.linear_q(x))))
        k = feature_map(full_precision(self._heads(self.linear_k(x))))
        v = cut(full_precision(self._heads(self.linear_v(x))))
        if mask is not None:
            k = k * mask.unsqueeze(-1).to(k.dtype)
        with torch.autocast(x.device.type, enabled=False):
            denominator = cut(k).sum(dim=-2).cumsum(dim=-2)  # (b, h, chunks, d_head)
            total = (cut(q) * denominator.unsqueeze(-2)).sum(dim=-1, keepdim=True)
            if self.position == "rope":
                q, k = (rotate(heads) for heads in (q, k))
            numerator = (cut(k).transpose(-1, -2) @ v).cumsum(dim=-3)
            out = (cut(q) @ numerator) / total.masked_fill(total == 0, 1)
        out = out.flatten(2, 3)[..., :time, :]
        return self.linear_out(self.dropout(out).to(x.dtype).transpose(1, 2).flatten(-2))
