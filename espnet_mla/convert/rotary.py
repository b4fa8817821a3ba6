"""Rotary keys of many heads as one rotary key that all of them share, and a rest whose rotation is left out.

A pair of a head's rotary query and key are the complex numbers xi = q_n + i q_{n+d/2} and kappa = k_n + i k_{n+d/2}; at
a distance of D frames they add Re(xi conj(kappa) e^{i w D}) to the score, w being the rate of frequency n. The keys of
one frequency over all heads are kappa_h ~ sum_m u_hm z_m with complex numbers z_m that are linear in the frame, by the
singular value decomposition of their map, weighed by what the queries count and by the covariance of the frames. As
u_hm goes into the queries, z_m is a pair of one rotary key for all heads, as MLA has it (DeepSeek-V2, arXiv 2405.04434,
eq. 14-15); TransMLA (2502.07864) turns the heads to the same end.

Pairs are chosen by what their rotation contributes: the energy of z_m in the scores, less what is left of it where
e^{i w D} is replaced by its mean rho over the calibration speech. (MHA2MLA, 2502.14837, takes the norms of queries and
keys, without the distances.) That is how the pairs that are not chosen go into the part without positions,
together with what z_m leaves out, and are factorised with the values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from espnet_mla.convert.factors import square_root, with_ridge
from espnet_mla.convert.statistics import CalibrationStatistics


@dataclass(frozen=True)
class SharedKey:
    """What becomes of the keys of a layer.

    Args:
        frequencies: of each pair of the shared key, (r/2,) numbers from 0 to d_head/2 - 1, ascending.
        down: from frames to the shared key, (r, d), pairs being (m, m + r/2).
        coefficients: u, (h, r/2), complex.
        rest: from frames to what each head's keys have without rotation, (h, d_head, d).
        energy: the share of the scores' energy that is kept, from 0 to 1.
    """

    frequencies: list[int]
    down: Tensor
    coefficients: Tensor
    rest: Tensor
    energy: float

    def queries(self, q: Tensor) -> Tensor:
        """What the shared key is multiplied by, (h, r, ...), of a head's queries (h, d_head, ...)."""
        half = q.shape[1] // 2
        chosen = torch.complex(q[:, :half], q[:, half:])[:, self.frequencies]
        turned = chosen * self.coefficients.conj().unflatten(1, (-1, *(1,) * (q.dim() - 2)))
        return torch.cat((turned.real, turned.imag), dim=1)


def shared_key(k: Tensor, bias: Tensor, statistics: CalibrationStatistics, size: int) -> SharedKey:
    """Choose the pairs of a shared rotary key.

    Args:
        k: maps to the keys, (h, d_head, d), float64.
        bias: of them, (h, d_head). A latent has none: the linear function of the frame that is nearest to 1 takes its
            place.
        statistics: of the calibration speech.
        size: r, of the shared key.
    """
    assert statistics.rotation is not None  # of an attention with rope
    k = k + bias.unsqueeze(-1) * nearest_to_one(statistics)
    half = k.shape[1] // 2
    kappa = torch.complex(k[:, :half], k[:, half:])  # (h, d_head/2, d)
    counted = statistics.queries.diagonal(dim1=1, dim2=2)
    weight = (counted[:, :half] + counted[:, half:]).clamp_min(torch.finfo(torch.double).tiny).sqrt()  # (h, d_head/2)
    whiten, unwhiten = (root.to(kappa.dtype) for root in square_root(with_ridge(statistics.covariance)))
    left, values, right = torch.linalg.svd((kappa * weight.unsqueeze(-1)).transpose(0, 1) @ whiten, full_matrices=False)
    pairs = left.shape[-1]  # of each frequency, as many as heads
    coefficients = left * values.unsqueeze(1) / weight.T.unsqueeze(-1)  # (d_head/2, h, pairs)
    # What is left of a pair without its rotation, by head.
    shares = left.abs().square()  # (d_head/2, h, pairs)
    lost = values.square() * (shares * (1 - statistics.rotation.T.abs().square()).unsqueeze(-1)).sum(1)
    order = lost.flatten().argsort(descending=True, stable=True)[: size // 2].sort().values
    frequency, pair = order // pairs, order % pairs
    z = (right @ unwhiten)[frequency, pair]  # (r/2, d)
    u = coefficients[frequency, :, pair].T  # (h, r/2)
    kept = torch.zeros_like(kappa)
    kept.index_add_(1, frequency, u.unsqueeze(-1) * z)
    rest = (kappa - kept) * statistics.rotation.conj().unsqueeze(-1)
    total = values.square().sum()
    return SharedKey(
        frequency.tolist(),
        torch.cat((z.real, z.imag)),
        u,
        torch.cat((rest.real, rest.imag), dim=1),
        float(1 - (lost.sum() - lost.flatten()[order].sum()) / total) if total else 1.0,
    )


def nearest_to_one(statistics: CalibrationStatistics) -> Tensor:
    """The linear function (d,) of a frame that is nearest to 1 on the calibration speech."""
    moment = statistics.covariance + torch.outer(statistics.mean, statistics.mean)
    return torch.linalg.solve(with_ridge(moment), statistics.mean)
