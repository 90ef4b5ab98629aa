"""L_τ = τ log Σ_{μ≠ν} exp(⟨z_μ, z_ν⟩/τ), the smooth maximum of the cosines of M free points (U-Hop+, arXiv 2410.23126).

It lies above the largest cosine by at most τ log M(M−1). Once τ is small, the pairs whose cosine is 30 τ below the
largest weigh nothing, and lists of near neighbours, valid until a point has moved farther than a given reach, take
the place of all pairs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.rows import blocks

NOTHING = 30.0  # a pair this many τ below the largest weighs e^−30
SHARE = 0.2  # lists are made where K neighbours of D entries, K (1 + D/2), are at most this share of all points
ITSELF = -1e4  # stands for the cosine of a point with itself, which no sum counts
BYTES_PER_PAIR = 24  # of a block: its cosines and their weights
CACHE = 4 << 20  # bytes of a block that stays near the processor


def largest_cosine(Z: Tensor, budget: int) -> Tensor:
    """The largest cosine of each arrangement.

    Args:
        Z: arrangements [R, M, D] of unit rows, M ≥ 2.
        budget: bytes for a block of pairs.

    Returns:
        Cosines [R].
    """
    top = Z.new_full((len(Z),), -math.inf)
    for some, _, C in _cosines(Z, budget):
        top[some] = torch.maximum(top[some], C.flatten(1).amax(1))
    return top


def over_all_pairs(Z: Tensor, tau: float, budget: int) -> tuple[Tensor, Tensor]:
    """L_τ and its gradient along the sphere, from every pair, block by block.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        tau: τ > 0.
        budget: bytes for a block of pairs.

    Returns:
        Values [R] and gradients [R, M, D].
    """
    top, total, pull = Z.new_full((len(Z),), -math.inf), Z.new_zeros(len(Z)), torch.zeros_like(Z)
    for some, rows, C in _cosines(Z, budget):
        before, top[some] = top[some].clone(), torch.maximum(top[some], C.flatten(1).amax(1))
        faded = ((before - top[some]) / tau).exp()
        P = _weights(C.sub_(top[some, None, None]), tau)
        total[some] = total[some] * faded + P.flatten(1).sum(1)
        pull[some] *= faded[:, None, None]
        pull[some, rows] = P @ Z[some]
    return top + tau * total.log(), _tangent(pull, Z, total)


@dataclass(frozen=True)
class Neighbours:
    """For each point the points near enough to weigh."""

    index: Tensor  # [R·M·K] rows of Z [R·M, D]
    reach: float  # how far a point may move before the lists are wrong

    def __call__(self, Z: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """L_τ and its gradient along the sphere, from the listed pairs.

        Args:
            Z: arrangements [R, M, D] of unit rows.
            tau: τ > 0, not larger than when the lists were made.

        Returns:
            Values [R] and gradients [R, M, D].
        """
        R, M, D = Z.shape
        near = Z.reshape(R * M, D)[self.index].view(R * M, -1, D)
        C = (near @ Z.reshape(R * M, D, 1)).view(R, -1)
        top = C.amax(1)
        P = _weights(C.sub_(top[:, None]), tau)
        total = P.sum(1)
        pull = (P.view(R * M, 1, -1) @ near).view(R, M, D)
        return top + tau * total.log(), _tangent(pull, Z, total)


def neighbours(Z: Tensor, tau: float, budget: int) -> Neighbours | None:
    """List the pairs that can weigh while no point moves farther than a tenth of the smallest distance.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        tau: the largest τ that the lists are for.
        budget: bytes for a block of pairs, and for the rows that the lists name.

    Returns:
        The lists, or None where they would name too many points to be worth it.
    """
    R, M, D = Z.shape
    top = largest_cosine(Z, budget)
    reach = 0.1 * float((2 - 2 * top).clamp_min(0).sqrt().min())
    # ‖z_μ − z_ν‖² = 2 − 2⟨z_μ, z_ν⟩, and two points come nearer by at most twice the reach
    least = 1 - ((2 - 2 * top + 2 * NOTHING * tau).sqrt() + 2 * reach).square() / 2
    K = max(int(C.ge(least[some, None, None]).sum(-1).max()) for some, _, C in _cosines(Z, budget))
    size = R * M * K * (D + 3) * 8
    if reach == 0 or K * (1 + D / 2) > SHARE * M or size > budget:
        return None
    index = torch.empty(R, M, K, dtype=torch.int64, device=Z.device)
    for some, rows, C in _cosines(Z, budget):
        index[some, rows] = C.topk(K, sorted=False).indices
    index += M * torch.arange(R, device=Z.device)[:, None, None]
    return Neighbours(index.flatten(), reach)


def _cosines(Z: Tensor, budget: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The cosines of all pairs, block by block; that of a point with itself is `ITSELF`.

    Yields:
        A range of arrangements, a range of rows and the block [r, m, M], free to be changed.
    """
    R, M, _ = Z.shape
    pairs = max(1, min(budget, CACHE) // BYTES_PER_PAIR)
    for some in blocks(R, max(1, pairs // M**2)):
        for rows in blocks(M, max(1, pairs // M)):
            C = Z[some, rows] @ Z[some].mT
            C[:, :, rows].diagonal(dim1=1, dim2=2).fill_(ITSELF)
            yield some, rows, C


def _weights(below: Tensor, tau: float) -> Tensor:
    """e^(below/τ), in place, and nothing smaller than the normal numbers, where arithmetic is slow.

    Returns:
        The weights, not normalised.
    """
    return below.div_(tau).clamp_min_(-200).exp_()


def _tangent(pull: Tensor, Z: Tensor, total: Tensor) -> Tensor:
    """The gradient along the sphere: each pair counts twice in the sum, and pulls at both of its points.

    Returns:
        Gradients [R, M, D].
    """
    g = pull * (2 / total)[:, None, None]
    return g - (g * Z).sum(-1, keepdim=True) * Z
