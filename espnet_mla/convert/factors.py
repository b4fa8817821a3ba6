"""Keys and values of an MHA layer as low-rank maps through one shared latent: what makes it an MLA layer.

With frames x, W = [W_k; W_v] and rank r, all ways look for W ~ U D with D (r, d): the latent is D x, and U makes keys
and values of it. They differ in what they call close; see `METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from espnet_mla.convert.statistics import CalibrationStatistics

RIDGE = 1e-6  # of the mean variance, for directions in which the calibration speech never went
# L-BFGS restarts in rounds from orthonormal latents, where it is less often caught in a narrow valley.
ROUNDS, STEPS = 8, 50  # at most
SETTLED = 1e-3  # of what is lost: a round that brings less is the last


@dataclass(frozen=True)
class Weights:
    """The maps of a layer, float64.

    Args:
        k, v: (h, d_head, d), keys and values of each head.
        out: (h, d_out, d_head), what the output makes of each head's values.
    """

    k: Tensor
    v: Tensor
    out: Tensor

    @property
    def stacked(self) -> Tensor:
        """[W_k; W_v], (2 h d_head, d)."""
        return torch.cat((self.k.flatten(0, 1), self.v.flatten(0, 1)))


@dataclass(frozen=True)
class Factors:
    """W ~ [k_up; v_up] down.

    Args:
        down: (r, d).
        k_up, v_up: (h d_head, r).
        v_shift: (h d_head,), what the values lack on the average. It comes out as it is, since the weights of a row add
            up to one, and so belongs into the bias of linear_out. (What keys lack on the average, softmax removes.)
        energy: the share captured, from 0 to 1, of the energy that the method measures.
    """

    down: Tensor
    k_up: Tensor
    v_up: Tensor
    v_shift: Tensor
    energy: float


def split(weights: Weights, statistics: CalibrationStatistics | None) -> "Split":
    """Keys and values apart, half of the rank each, by the SVD of W_k and that of W_v (MHA2MLA, arXiv 2502.14837)."""
    return Split(weights)


def joint(weights: Weights, statistics: CalibrationStatistics | None) -> "Joint":
    """The SVD of [W_k; W_v]: the least error of the weights (MHA2MLA)."""
    d = weights.k.shape[-1]
    return Joint(weights, torch.eye(d, dtype=torch.double), None)


def covariance(weights: Weights, statistics: CalibrationStatistics) -> "Joint":
    """The SVD of [W_k; W_v] C^1/2 with the covariance C of the frames: the least error of keys and values (CARE,
    2603.17946).

    CARE takes the second moment in place of C; the mean costs no rank here, see `Factors.v_shift`.
    """
    return Joint(weights, statistics.covariance, statistics.mean.expand(len(weights.v), -1))


def attention(weights: Weights, statistics: CalibrationStatistics) -> "OutputError":
    """The least error of what the attention puts out, to first order; see `OutputError`."""
    return OutputError(weights, statistics)


METHODS: dict[str, Callable[[Weights, Any], "Split | Joint"]] = {
    "split": split,
    "joint": joint,
    "covariance": covariance,
    "attention": attention,
}
"""Name -> function of weights and calibration statistics that gives an object with `spectrum` and `factors(rank)`."""


class Split:
    """As `split`."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self.svds = [torch.linalg.svd(w.flatten(0, 1), full_matrices=False) for w in (weights.k, weights.v)]
        self.spectrum = torch.stack([svd.S.square() for svd in self.svds], dim=1).flatten()[: weights.k.shape[-1]]
        """Energy of each further dimension: of keys and of values by turns."""

    def factors(self, rank: int) -> Factors:
        """With `rank` dimensions."""
        width = self.weights.k[:, :, 0].numel()
        up = torch.zeros(2 * width, rank, dtype=torch.double)
        downs, energy, column = [], 0.0, 0
        for half, (left, values, right) in enumerate(self.svds):
            size = (rank + 1 - half) // 2
            up[half * width : (half + 1) * width, column : column + size] = left[:, :size] * values[:size]
            downs.append(right[:size])
            energy += values[:size].square().sum().item()
            column += size
        total = sum(svd.S.square().sum().item() for svd in self.svds)
        shift = torch.zeros(width, dtype=torch.double)
        return Factors(torch.cat(downs), up[:width], up[width:], shift, energy / total if total else 1.0)


class Joint:
    """The SVD of L W C^1/2, L weighing what keys and values count.

    Args:
        weights: of the layer.
        covariance: C, (d, d).
        means: what each head's values are to be right for, (h, d), or None for no shift.
        left: L, (2 h d_head, 2 h d_head), or None for the identity.
    """

    def __init__(self, weights: Weights, covariance: Tensor, means: Tensor | None, left: Tensor | None = None):
        self.weights = weights
        self.means = means
        self.whiten, self.unwhiten = square_root(with_ridge(covariance))
        weighed = weights.stacked if left is None else left @ weights.stacked
        _, values, self.right = torch.linalg.svd(weighed @ self.whiten, full_matrices=False)
        self.spectrum = values.square()
        """Energy of each further dimension."""

    def factors(self, rank: int) -> Factors:
        """With `rank` dimensions."""
        if rank == len(self.right):
            return self.exact()
        basis = self.right[:rank]
        up = self.weights.stacked @ self.whiten @ basis.T
        total = self.spectrum.sum().item()
        energy = self.spectrum[:rank].sum().item() / total if total else 1.0
        return self.with_shift(basis @ self.unwhiten, up, energy)

    def exact(self) -> Factors:
        """Of full rank: the latent is the frame itself."""
        d = self.weights.k.shape[-1]
        k, v = (w.flatten(0, 1) for w in (self.weights.k, self.weights.v))
        return Factors(torch.eye(d, dtype=torch.double), k, v, torch.zeros(len(v), dtype=torch.double), 1.0)

    def with_shift(self, down: Tensor, up: Tensor, energy: float) -> Factors:
        """Add `v_shift`."""
        k_up, v_up = up.chunk(2)
        lacking = (self.weights.v.flatten(0, 1) - v_up @ down).view_as(self.weights.v)
        shift = torch.zeros(len(v_up), dtype=torch.double)
        if self.means is not None:
            shift = (lacking @ self.means.unsqueeze(-1)).flatten()
        return Factors(down, k_up, v_up, shift, energy)


class OutputError(Joint):
    """The factors that change the attention's output least on the calibration speech.

    To first order, with errors E_k x_j of keys and E_v x_j of values, the output of query i changes by

        sum_h W_o [ sum_j a_ij (v_j - o_i) (q_i + u) . E_k x_j / sqrt(d_head)  +  E_v sum_j a_ij x_j ]

    a_ij being the weights and o_i the weighted sum of values. By Cauchy-Schwarz the square of the first term is at most
    n_i sum_j a_ij ((q_i + u) . E_k (x_j - sum_l a_il x_l))^2 / d_head with n_i = sum_j a_ij |W_o (v_j - o_i)|^2, since
    sum_j a_ij (v_j - o_i) = 0. Over all queries that is, the two sides taken as independent, and what several heads or
    keys and values do together left out,

        sum_h tr(Q_h E_k S_h E_k^T) + tr(W_o^T W_o E_v V_h E_v^T)

    with Q_h, S_h and V_h as in `CalibrationStatistics`. Where all S_h and V_h are one matrix an SVD is the solution.
    Theirs with the covariance of the frames is where L-BFGS starts from, over the subspace of the latents alone: the
    best maps from latents to keys and to values follow from it by regression, in which neither Q_h nor W_o has a part.
    """

    def __init__(self, weights: Weights, statistics: CalibrationStatistics):
        d_head = weights.k.shape[1]
        self.weighing = torch.cat(
            (statistics.queries / d_head, weights.out.transpose(1, 2) @ weights.out)
        )  # (2h, d_head, d_head)
        blocks = torch.cat((statistics.keys, statistics.values))
        left = torch.block_diag(*(square_root(weight)[0] for weight in self.weighing))
        super().__init__(weights, statistics.covariance, statistics.value_means, left)
        self.blocks = self.unwhiten @ with_ridge(blocks) @ self.unwhiten  # (2h, d, d)
        self.maps = torch.cat((weights.k, weights.v)) @ self.whiten  # (2h, d_head, d)
        self.seen_maps = self.maps @ self.blocks  # (2h, d_head, d)
        self.total = (self.weighing * (self.seen_maps @ self.maps.transpose(1, 2))).sum()

    def factors(self, rank: int) -> Factors:
        """With `rank` dimensions."""
        if rank == len(self.right):
            return self.exact()
        basis = self.right[:rank]
        losses = [self.lost(basis).item()]
        for _ in range(ROUNDS):
            basis = self._searched(basis)
            losses.append(self.lost(basis).item())
            if losses[-2] - losses[-1] <= SETTLED * losses[-2]:
                break
        up = torch.linalg.solve(*self.regression(basis)).transpose(1, 2).flatten(0, 1)
        return self.with_shift(basis @ self.unwhiten, up, 1 - losses[-1])

    def _searched(self, basis: Tensor) -> Tensor:
        """Orthonormal latents (r, d) that lose no more than `basis`, by a round of L-BFGS."""
        basis = basis.clone(memory_format=torch.contiguous_format).requires_grad_()
        search = torch.optim.LBFGS([basis], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe")

        def lost() -> Tensor:
            search.zero_grad()
            loss = self.lost(basis)
            loss.backward()
            return loss

        search.step(lost)
        return torch.linalg.qr(basis.detach().T).Q.T

    def lost(self, basis: Tensor) -> Tensor:
        """The share of the energy that no maps from these latents (r, d) can give."""
        inner, cross = self.regression(basis)
        given = cross.transpose(1, 2) @ torch.linalg.solve(inner, cross)  # (2h, d_head, d_head)
        return 1 - (self.weighing * given).sum() / self.total.clamp_min(torch.finfo(torch.double).tiny)

    def regression(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """The normal equations of maps from latents to what each head has: (2h, r, r) and (2h, r, d_head)."""
        return basis @ self.blocks @ basis.T, basis @ self.seen_maps.transpose(1, 2)


def with_ridge(covariance: Tensor) -> Tensor:
    """Covariances (..., d, d) that have an inverse."""
    d = covariance.shape[-1]
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    mean = torch.where(mean > 0, mean, 1.0)
    return covariance + RIDGE * mean * torch.eye(d, dtype=covariance.dtype)


def square_root(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a positive semidefinite matrix (d, d), and its pseudoinverse."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.clamp_min(0)
    inverse = torch.where(values > 0, values.rsqrt(), 0.0)
    return (vectors * values.sqrt()) @ vectors.T, (vectors * inverse) @ vectors.T


def allocate(spectra: list[Tensor], total: int) -> list[int]:
    """Give each layer the rank that its spectrum deserves, after CARE's adjusted-rank allocation (arXiv 2603.17946).

    One dimension after the other goes to the layer of whose energy it captures the largest share.

    Args:
        spectra: of each layer the energy of each further dimension, (d,). Where they fall, as those of all methods but
            `split` do, no other ranks keep a larger sum of shares.
        total: the sum of all ranks.

    Returns:
        Of each layer its rank, from 1 to d.

    Raises:
        ValueError: `total` is less than one for each layer, or more than there are dimensions.
    """
    most = sum(map(len, spectra))
    if not len(spectra) <= total <= most:
        raise ValueError(f"{total} dimensions for {len(spectra)} layers: there must be {len(spectra)} to {most}")
    shares = [
        (share, layer)
        for layer, spectrum in enumerate(spectra)
        for share in (spectrum / (spectrum.sum() or 1.0)).tolist()[1:]
    ]
    shares.sort(key=lambda pair: -pair[0])
    ranks = [1] * len(spectra)
    for _, layer in shares[: total - len(spectra)]:
        ranks[layer] += 1
    return ranks
