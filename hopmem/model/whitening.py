"""Whitening: the memories in the coordinates of their own covariance C, where they are a ball.

Ridge whitening, W = (C + ρI)^{−1/2}, comes from one eigendecomposition for all ρ. Where M ≤ D + 1 and the memories are
independent, it makes the simplex of them without a ridge.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.rows import Patterns, unit
from hopmem.pages import require

RIDGES = (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)  # ρ, in units of the largest eigenvalue of C
BYTES_OF_MATRIX = 36  # for each entry of a map, at the peak: its covariance is decomposed in float64
STEPPING = 16 << 20  # bytes that a step or a look takes, however small its blocks: modules of torch, and temporaries
BYTES_OF_ROW = 16  # for each entry of a memory that maps are compared on
RANK_CUT = 1e-12  # an eigenvalue below this share of the largest is a zero that was rounded


@dataclass(frozen=True)
class Whitened:
    """The memories in the coordinates of their own covariance."""

    mean: Tensor  # [d]
    eigenvalues: Tensor  # [r] of C, largest first, float64
    directions: Tensor  # [r, d] unit eigenvectors, float32

    def map(self, ridge: float) -> Tensor:
        """W₀ = (C + ρI)^{−1/2} on the span of the memories.

        Args:
            ridge: ρ in units of the largest eigenvalue.

        Returns:
            W₀ [r, d].
        """
        scale = (self.eigenvalues + ridge * self.eigenvalues[0]).rsqrt()
        return scale.to(self.directions)[:, None] * self.directions


def require_room(patterns: Patterns, compared: int) -> None:
    """Refuse to learn a map that a memory limit leaves no room for.

    Args:
        patterns: M memories of d entries.
        compared: memories on which maps are compared.

    Raises:
        DeviceError: the limit is too low.
    """
    M, d = len(patterns), patterns.dimension
    needed = BYTES_OF_MATRIX * min(M, d) * d + BYTES_OF_ROW * min(M, compared) * d + STEPPING
    require(needed, f"to learn a map of {d} entries from {M} patterns")


def whiten(patterns: Patterns) -> Whitened:
    """Eigendecompose the covariance of the memories, through the smaller of Ξᵀ Ξ [d, d] and Ξ Ξᵀ [M, M].

    Args:
        patterns: M memories of d entries.

    Returns:
        Mean, eigenvalues and directions, as many as the memories span and at least one.
    """
    M, d = len(patterns), patterns.dimension
    mean = patterns.mean()
    if d < M:
        C = everywhere(patterns, _covariance, patterns, mean)
        eigenvalues, directions = torch.linalg.eigh(C)
        directions = directions.T
    else:
        centred = patterns[slice(0, M)].double() - mean  # [M, d]
        eigenvalues, U = torch.linalg.eigh(centred @ centred.T / M)
        directions = unit(U.T @ centred)
    order = eigenvalues.argsort(descending=True)
    rank = int((eigenvalues > RANK_CUT * eigenvalues.max()).sum())
    order = order[: max(1, min(rank, d, M - 1))]
    return Whitened(
        mean.float(), eigenvalues[order].clamp_min(torch.finfo(torch.float32).tiny), directions[order].float()
    )


def _covariance(part: Division, patterns: Patterns, mean: Tensor) -> Tensor:
    """C, the covariance of the memories.

    Returns:
        float64 [d, d].
    """
    d = patterns.dimension
    C = torch.zeros(d, d, dtype=torch.float64, device=patterns.device)
    for rows in patterns.in_blocks():
        centred = patterns[rows].double() - mean
        C += centred.T @ centred / part.memories
    return part.others.total(C)
