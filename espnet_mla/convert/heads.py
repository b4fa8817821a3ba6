"""An MHA layer as one whose heads share keys and values (GQA): groups of heads pooled into one.

Pooling keeps what the heads of a group have in common, so that their keys should mean the same. They need not: keys k_h
and queries q_h may be rotated together without any score changing, and values together with the output. `aligned` makes
use of that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet_mla.convert.factors import Weights, square_root, with_ridge
from espnet_mla.convert.statistics import CalibrationStatistics

ROUNDS = 30


@dataclass(frozen=True)
class Pooled:
    """Keys and values of `kv_heads` groups of consecutive heads.

    Args:
        k, v: (kv_heads, d_head, d).
        k_rotation, v_rotation: (h, d_head, d_head), the rotation R of each head: R k_h ~ k and R v_h ~ v of its group.
        v_shift: (h d_head,), as in `factors.Factors`, of the heads' values before they are rotated.
        energy: the share captured, from 0 to 1, of the energy of keys and values.
    """

    k: Tensor
    v: Tensor
    k_rotation: Tensor
    v_rotation: Tensor
    v_shift: Tensor
    energy: float


def mean(weights: Weights, statistics: CalibrationStatistics | None, kv_heads: int) -> Pooled:
    """The mean over the heads of a group (Ainslie et al. 2023, arXiv 2305.13245, section 2.1)."""
    heads, d_head, d = weights.k.shape
    identity = torch.eye(d_head, dtype=torch.double).expand(heads, -1, -1)
    return _pooled(weights, kv_heads, identity, identity, torch.eye(d, dtype=torch.double), None)


def aligned(weights: Weights, statistics: CalibrationStatistics, kv_heads: int) -> Pooled:
    """The mean after the heads were rotated so that they agree best on the calibration speech.

    Generalised Procrustes analysis of the heads' keys, and of their values, as in arXiv 2412.20677; exact where the
    heads of a group differ by a rotation.
    """
    whiten, _ = square_root(with_ridge(statistics.covariance))
    k_rotation, v_rotation = (
        torch.cat([_rotations(group @ whiten) for group in maps.chunk(kv_heads)]) for maps in (weights.k, weights.v)
    )
    return _pooled(weights, kv_heads, k_rotation, v_rotation, whiten, statistics.value_means)


METHODS: dict[str, Callable[[Weights, Any, int], Pooled]] = {"mean": mean, "aligned": aligned}
"""Name -> function of weights, of calibration statistics, and of the number of groups."""


def _pooled(
    weights: Weights, kv_heads: int, k_rotation: Tensor, v_rotation: Tensor, whiten: Tensor, means: Tensor | None
) -> Pooled:
    group_size = len(weights.k) // kv_heads
    shared, lost, total = [], 0.0, 0.0
    for maps, rotation in ((weights.k, k_rotation), (weights.v, v_rotation)):
        rotated = (rotation @ maps).unflatten(0, (kv_heads, group_size))
        pooled = rotated.mean(1)
        lost += ((rotated - pooled.unsqueeze(1)) @ whiten).square().sum().item()
        total += (rotated @ whiten).square().sum().item()
        shared.append(pooled)
    lacking = weights.v - v_rotation.transpose(1, 2) @ shared[-1].repeat_interleave(group_size, dim=0)
    shift = torch.zeros(weights.v[:, :, 0].numel(), dtype=torch.double)
    if means is not None:
        shift = (lacking @ means.unsqueeze(-1)).flatten()
    k, v = shared
    return Pooled(k, v, k_rotation, v_rotation, shift, 1 - lost / total if total else 1.0)


def _rotations(maps: Tensor) -> Tensor:
    """Rotations (n, c, c) that bring maps (n, c, d) as near to their mean as can be."""
    mean = maps[0]
    for _ in range(ROUNDS):
        left, _, right = torch.linalg.svd(mean @ maps.transpose(1, 2))
        rotations = left @ right
        mean = (rotations @ maps).mean(0)
    return rotations
