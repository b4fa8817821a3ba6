"""Softmax attention through PyTorch's fused kernels, with the term of relative positions, at no more than it must cost.

The position term travels as an additive mask. What is saved, all of it exact:

- a block of queries is scored for only the distances that it needs, half of those of all queries together, and on a CPU
  its mask stays in the cache;
- where padding stands at the end, as it does in every batch of utterances, on a CPU each utterance is computed alone at
  its own length: nothing is computed of padding, and no mask is made for it;
- where the position term needs a gradient, which no fused kernel of the CPU gives, the term is what the product of
  queries and keys is added to.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_mla.attention.positions import KeyPlaces, relative_shift

# How many queries the position term is made for at a time on a CPU, and how many are not worth a second block.
# Measured with benchmarks/position_term.py on 2 cores with 1 MiB of second-level cache each; PyTorch's fused kernel
# takes larger tiles from 192 queries on.
_ROWS = 192
_ROWS_AT_ONCE = 256

# Numbers that each row of a mask begins at a multiple of: CUDA's memory-efficient kernel reads 16 bytes at a time.
# PyTorch copies a mask whose strides are others, and refuses one of which that is true of the beginning alone.
_ALIGNMENT = 8


class PositionTerm(NamedTuple):
    """What the second term of the score of relative positions is made of.

    Args:
        q: queries with their bias v, scaled, (b, h, t_q, d).
        p: projected sinusoids, (1, h, d, t_q + t_k - 1), for distances from t_k - 1 down to 1 - t_q.
        places: where the keys stand, if not at every frame of a window, whose frames t_k is then the number of.
    """

    q: Tensor
    p: Tensor
    places: KeyPlaces | None = None

    def rows(self, start: int, end: int, time_k: int, width: int) -> Tensor:
        """The term of queries start to end, (b, h, end - start, width); what is beyond t_k columns means nothing."""
        last = self.q.shape[-2]
        if self.places is not None:
            window, frame = self.places
            term = PositionTerm(self.q, self.p).rows(start, end, window, window)
            return term.index_select(-1, nn.functional.pad(frame, (0, width - time_k)))
        p = self.p[..., last - end : last - start + time_k - 1]
        if width > time_k:
            p = nn.functional.pad(p, (0, width - time_k))
        return relative_shift(self.q[..., start:end, :] @ p, width, end - start - 1)


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    term: PositionTerm | None,
    mask: Tensor | None,
    scale: float,
    dropout: float,
    self_attention: bool,
) -> Tensor:
    """softmax(scale q k^T + term) v, where `mask` allows.

    Args:
        q: (b, h, t_q, d_key).
        k: (b, h or fewer, t_k, d_key); several heads of queries may share one.
        v: (b, h or fewer, t_k, d_value).
        term: of relative positions, or None.
        mask: (b, 1, t_k) or (b, t_q, t_k), true where a query may look, or None.
        scale: of q k^T.
        dropout: rate of dropout on the weights.
        self_attention: whether queries and keys are of the same frames, so that the mask tells the padding of both.

    Returns:
        (b, h, t_q, d_value); zeros for a fully masked query, and on a CPU with `self_attention` also for queries that
        are padding.
    """
    lengths = _lengths(q, mask) if self_attention else None
    if lengths is None:
        return _attend_batch(q, k, v, term, None if mask is None else mask.unsqueeze(1).bool(), scale, dropout)
    time_ = q.shape[-2]
    if lengths == [time_] * len(lengths) and (term is None or len(lengths) == 1):
        return _attend_batch(q, k, v, term, None, scale, dropout)
    # split and not indexing: one backward joins the gradients of all rows.
    rows = [x.split(1) for x in (q, k, v)]
    term_rows = term.q.split(1) if term else ()
    outs = []
    for row, length in enumerate(lengths):
        if length == 0:
            outs.append(v.new_zeros(1, q.shape[1], time_, v.shape[-1]))
            continue
        q_row, k_row, v_row = (x[row][..., :length, :] for x in rows)
        row_term = None
        if term:
            row_term = PositionTerm(term_rows[row][..., :length, :], term.p[..., time_ - length : time_ + length - 1])
        out = _attend_batch(q_row, k_row, v_row, row_term, None, scale, dropout)
        outs.append(nn.functional.pad(out, (0, 0, 0, time_ - length)))
    return torch.cat(outs)


def _lengths(q: Tensor, mask: Tensor | None) -> list[int] | None:
    """The real frames of each utterance, where it pays to know them; else None.

    It pays on a CPU, where asking costs nothing, and where padding stands at the end.
    """
    batch, time_ = q.shape[0], q.shape[-2]
    if mask is None or mask.shape != (batch, 1, time_):
        return None
    if not _on_cpu(q) or torch.compiler.is_compiling():
        return None
    real = mask[:, 0].bool()
    lengths = real.sum(-1)
    ends = torch.arange(time_) < lengths.unsqueeze(-1)
    return lengths.tolist() if torch.equal(ends, real) else None


def _attend_batch(
    q: Tensor, k: Tensor, v: Tensor, term: PositionTerm | None, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """As `softmax_attention`, with mask (b, 1, 1 or t_q, t_k)."""
    if term is None:
        return _fused(q, k, v, mask, scale, dropout)
    time_q, time_k = q.shape[-2], k.shape[-2]
    kernel: Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor] = _fused
    # A fully masked query needs the care that the fused kernels take.
    if mask is None and _on_cpu(q) and torch.is_grad_enabled() and term.q.requires_grad:
        kernel = _unfused
        if k.shape[1] != q.shape[1]:
            k, v = (_expanded(x, q.shape[1]) for x in (k, v))
    rows = _rows_at_a_time(q)
    width = time_k if _on_cpu(q) else time_k + -time_k % _ALIGNMENT
    outs = []
    for start in range(0, time_q, rows):
        end = min(start + rows, time_q)
        bias = term.rows(start, end, time_k, width)
        if mask is not None:
            visible = mask if mask.shape[-2] == 1 else mask[..., start:end, :]
            if width > time_k:
                visible = nn.functional.pad(visible, (0, width - time_k))
            bias = torch.where(visible, bias, -math.inf)
        elif not _on_cpu(q):
            bias = bias.contiguous()  # and the table of all distances need not be kept for the backward pass
        outs.append(kernel(q[..., start:end, :], k, v, bias[..., :time_k], scale, dropout))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=-2)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    shared = k.shape[1] != q.shape[1]
    if shared and (mask is None or mask.shape[1] == mask.shape[2] == 1):
        # The heads that share keys are as good as so many queries: the kernel then needs no copy of the keys for each.
        time_q = q.shape[2]
        q = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        return out.unflatten(2, (-1, time_q)).flatten(1, 2)
    if shared and not _on_cpu(q):  # no kernel of CUDA takes both a mask and shared heads
        k, v = (_expanded(x, q.shape[1]) for x in (k, v))
        shared = False
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=shared
    )


def _expanded(x: Tensor, heads: int) -> Tensor:
    """x (b, fewer heads, t, d) with a head for each of queries, (b, heads, t, d); one head is not copied."""
    return x.expand(-1, heads, -1, -1) if x.shape[1] == 1 else x.repeat_interleave(heads // x.shape[1], dim=1)


def _unfused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float) -> Tensor:
    """softmax(bias + scale q k^T) v, with as many heads of keys as of queries."""
    shape = q.shape[:2]
    q, k, v, bias = (x.flatten(0, 1) for x in (q, k, v, bias))
    weights = torch.baddbmm(bias, q, k.transpose(-1, -2), alpha=scale).softmax(dim=-1)
    return (nn.functional.dropout(weights, dropout) @ v).unflatten(0, shape)


def _rows_at_a_time(q: Tensor) -> int:
    """How many queries the position term is made for at a time.

    A GPU wants one large kernel, and so do torch.compile and torch.export, which would unroll the loop.
    """
    time_q = q.shape[-2]
    if not _on_cpu(q) or torch.compiler.is_compiling() or time_q <= _ROWS_AT_ONCE:
        return time_q
    return _ROWS


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu"
