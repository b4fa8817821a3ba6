"""Calibration statistics of a layer's attention: a few covariances, whatever the number of utterances."""

import math
from dataclasses import dataclass

import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from torch import Tensor, nn

from espnet_mla.attention.gqa import MHA
from espnet_mla.attention.positions import relative_shift, rotary_rates, rotate


@dataclass(frozen=True)
class CalibrationStatistics:
    """The statistics of a layer, float64.

    x are its frames (those that keys and values are made from), a_ij its weights, and n_i = sum_j a_ij |W_o (v_j -
    o_i)|^2 how much the values differ that query i of a head mixes, in what the output makes of them.

    Args:
        frames: how many.
        mean: of x, (d,).
        covariance: of x, (d, d).
        queries: of each head the mean of n_i (q_i + u)(q_i + u)^T, (h, d_head, d_head); without relative positions
            there is no u.
        keys: of each head the mean of sum_j a_ij (x_j - m_i)(x_j - m_i)^T with m_i = sum_j a_ij x_j, each query counted
            n_i times, (h, d, d).
        values: of each head the covariance of m_i, (h, d, d).
        value_means: of each head the mean of m_i, (h, d).
        rotation: with rope, of each head and pair the mean of sum_j a_ij e^{i w (i - j)}, each query counted n_i times,
            w being the pair's rate, (h, d_head/2), complex; else None.
    """

    frames: int
    mean: Tensor
    covariance: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    value_means: Tensor
    rotation: Tensor | None = None


class StatisticsAccumulator:
    """Sums over all calls of a layer's attention, from which `statistics` makes the calibration statistics.

    Args:
        attention: ESPnet's MultiHeadedAttention, its RelPositionMultiHeadedAttention, or our `mha`; the sums are where
            its parameters are.
    """

    def __init__(self, attention: MultiHeadedAttention | MHA):
        weights = {name: parameter.detach().double() for name, parameter in attention.named_parameters()}
        self.heads: int = attention.num_heads if isinstance(attention, MHA) else attention.h
        self.weights = weights
        self.v_out = torch.einsum(  # (h, d_out, d): what the output makes of a frame by each head's values
            "ohc,hcd->hod",
            weights["linear_out.weight"].unflatten(1, (self.heads, -1)),
            weights["linear_v.weight"].unflatten(0, (self.heads, -1)),
        )
        d = weights["linear_k.weight"].shape[1]
        d_head = len(weights["linear_q.weight"]) // self.heads
        self.frames = self.calls = 0
        zeros = self.v_out.new_zeros
        self.x, self.xx = zeros(d), zeros(d, d)
        self.m, self.mm = zeros(self.heads, d), zeros(self.heads, d, d)
        self.n = zeros(self.heads)
        self.qq = zeros(self.heads, d_head, d_head)
        self.keys = zeros(self.heads, d, d)
        self.rotary = getattr(attention, "position", None) == "rope"
        self.rates = self.v_out.new_tensor(rotary_rates(d_head))
        self.turned = torch.zeros(self.heads, d_head // 2, dtype=torch.cdouble, device=self.v_out.device)

    def add(self, query: Tensor, key: Tensor, position: Tensor | None, mask: Tensor | None) -> None:
        """One utterance without padding.

        Args:
            query: (1, t_q, d).
            key: (1, t_k, d).
            position: (1, t_q + t_k - 1, d) with relative positions, else None.
            mask: (1, 1 or t_q, t_k), true where a query may look, or None.
        """
        x = key[0].double()
        q, a = self.attend(query[0].double(), x, position, mask)
        m = a @ x  # (h, t_q, d)
        outputs = x @ self.v_out.transpose(1, 2)  # (h, t_k, d_out)
        n = (a @ outputs.square().sum(-1, keepdim=True)).squeeze(-1) - (m @ self.v_out.transpose(1, 2)).square().sum(-1)
        n = n.clamp_min(0)  # (h, t_q)
        self.frames += len(x)
        self.calls += q.shape[1]
        self.x += x.sum(0)
        self.xx += x.T @ x
        self.m += m.sum(1)
        self.mm += m.transpose(1, 2) @ m
        self.n += n.sum(-1)
        self.qq += (q * n.unsqueeze(-1)).transpose(1, 2) @ q
        attended = (n.unsqueeze(1) @ a).squeeze(1)  # (h, t_k)
        self.keys += (x.T * attended.unsqueeze(1)) @ x - (m * n.unsqueeze(-1)).transpose(1, 2) @ m
        if self.rotary:
            places = torch.arange(len(x), dtype=torch.double, device=x.device).unsqueeze(-1) * self.rates
            ahead = torch.polar(torch.ones_like(places), places)  # e^{i w j}, (t_k, d_head/2)
            seen = a.to(ahead.dtype) @ ahead.conj() * ahead[-q.shape[1] :]  # (h, t_q, d_head/2)
            self.turned += (n.unsqueeze(-1) * seen).sum(1)

    def attend(self, query: Tensor, x: Tensor, position: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries with their bias u, (h, t_q, d_head), and weights, (h, t_q, t_k), by the definition."""
        w = self.weights

        def heads(name: str, x: Tensor) -> Tensor:
            return (
                nn.functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
                .unflatten(-1, (self.heads, -1))
                .transpose(0, 1)
            )

        q, k = heads("linear_q", query), heads("linear_k", x)
        scale = 1 / math.sqrt(q.shape[-1])
        if self.rotary:
            scores = rotate(q) @ rotate(k).transpose(1, 2) * scale
        elif position is None:
            scores = q @ k.transpose(1, 2) * scale
        else:
            p = heads("linear_pos", position[0].double())
            away = (q + w["pos_bias_v"].unsqueeze(1)) @ p.transpose(1, 2)
            q = q + w["pos_bias_u"].unsqueeze(1)
            scores = (q @ k.transpose(1, 2) + relative_shift(away, len(x), q.shape[1] - 1)) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask[0].bool(), -math.inf)
        return q, scores.softmax(-1)

    def statistics(self) -> CalibrationStatistics:
        """The statistics of all that was added, on the CPU."""
        mean, means = self.x / self.frames, self.m / self.calls
        n = self.n.clamp_min(torch.finfo(torch.double).tiny)[:, None, None]
        statistics = {
            "mean": mean,
            "covariance": self.xx / self.frames - torch.outer(mean, mean),
            "queries": self.qq / self.calls,
            "keys": self.keys / n,
            "values": self.mm / self.calls - means.unsqueeze(-1) * means.unsqueeze(-2),
            "value_means": means,
        }
        if self.rotary:
            statistics["rotation"] = self.turned / n[..., 0]
        return CalibrationStatistics(self.frames, **{name: value.cpu() for name, value in statistics.items()})
