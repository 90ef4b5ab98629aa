"""The pairs of memories that weigh in L_τ = τ log Σ_{μ≠ν} exp(⟨z_μ, z_ν⟩/τ), and its gradient from them alone.

Pairs are chosen by priority sampling (Duffield, Lund, Thorup, 2007): of all pairs those with the largest
cos + τ E are kept, E exponential, and a pair whose cosine lies x τ below the first key that is not kept stands for e^x
pairs. So the hardest pairs are kept for certain, and the sum over the others is estimated without bias, each of the
kept ones standing for the same part of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from hopmem.model.gram import UnitRows, gram_blocks
from hopmem.model.rows import blocks

BLOCK = 1024  # rows of a block of the Gram matrix, at most
GATHERED = 1024  # pairs whose rows are gathered at once, so that they stay near the processor
SHORT = 1e-3  # features shorter than this are pulled no harder: near zero, a gradient along the sphere has no bound


@dataclass(frozen=True)
class Pairs:
    """A sample of the pairs μ < ν."""

    index: Tensor  # [2, P] int64: μ and ν
    log_share: Tensor  # [P] log of how many pairs each stands for, float32


def all_of(pairs: Pairs, more: Pairs) -> Pairs:
    """Two samples in one.

    Returns:
        The pairs of both.
    """
    return Pairs(torch.cat([pairs.index, more.index], 1), torch.cat([pairs.log_share, more.log_share]))


def without(pairs: Pairs, known: Pairs, count: int) -> Pairs:
    """Leave out what is known: what is left estimates the sum over the unknown pairs.

    Args:
        pairs: a sample.
        known: pairs that are counted elsewhere.
        count: M; pairs are told apart by μ M + ν.

    Returns:
        A part of the sample.
    """
    new = ~torch.isin(pairs.index[0] * count + pairs.index[1], known.index[0] * count + known.index[1])
    return Pairs(pairs.index[:, new], pairs.log_share[new])


def sample(Z: UnitRows, most: int, tau: float, generator: torch.Generator, block: int = BLOCK) -> tuple[Pairs, float]:
    """Look at all pairs of some memories once, block by block.

    Args:
        Z: unit features of n ≥ 2 memories.
        most: P, pairs to keep.
        tau: τ > 0.
        generator: draws E, on the device of Z.
        block: rows of a block of the Gram matrix; memory is 48 bytes for each of its pairs.

    Returns:
        The sample, hardest first but for E, and the largest cosine of all.
    """
    top, floor = -math.inf, -math.inf
    keys, cosines = (torch.empty(0, device=generator.device) for _ in range(2))
    index = torch.empty(2, 0, dtype=torch.int64, device=generator.device)
    for first, second, cosine in gram_blocks(Z, block, None):
        C = cosine.triu(1).add_(torch.full_like(cosine, -math.inf).tril()) if first == second else cosine
        top = max(top, float(C.max()))
        u = torch.rand(C.shape, generator=generator, device=generator.device)
        key = u.neg_().log1p_().mul_(-tau).add_(C)
        near = (key > floor).nonzero().T
        keys, cosines = torch.cat([keys, key[near[0], near[1]]]), torch.cat([cosines, C[near[0], near[1]]])
        index = torch.cat([index, near + near.new_tensor([[first.start], [second.start]])], 1)
        if len(keys) > most:
            keys, order = keys.topk(most + 1)
            cosines, index, floor = cosines[order], index[:, order], float(keys[-1])
    index, cosines = index[:, :most], cosines[:most]
    return Pairs(index, ((floor - cosines) / tau).clamp_min(0)), top


@dataclass(frozen=True)
class Listed:
    """Pairs with what it takes to pull at them."""

    F: Tensor  # [n, r] the memories that are named, in whitened coordinates
    ends: Tensor  # [2, P] int64, rows of F
    log_share: Tensor  # [P]
    order: Tensor  # [2P] the ends sorted by their row,
    others: Tensor  # [2P] the other end of each,
    first: Tensor  # [n] and where each row begins

    @classmethod
    def of(cls, F: Tensor, ends: Tensor, log_share: Tensor) -> "Listed":
        """Sort the ends by their rows.

        Returns:
            The list.
        """
        rows, order = ends.flatten().sort(stable=True)
        first = torch.searchsorted(rows, torch.arange(len(F), device=F.device))
        return cls(F, ends, log_share.to(F), order, ends.flip(0).flatten()[order], first)

    def cosines(self, Z: Tensor) -> Tensor:
        """The cosine of each pair.

        Args:
            Z: unit features [n, D] of the memories that are named.

        Returns:
            Cosines [P].
        """
        C = torch.empty_like(self.log_share)
        for part in blocks(len(C), GATHERED):
            left, right = self.ends[:, part]
            C[part] = (Z[left] * Z[right]).sum(1)
        return C


def smooth_maximum(listed: Listed, tau: float, A: Tensor, offset: Tensor) -> tuple[float, Tensor, Tensor]:
    """L_τ of z = unit(A f + offset) and its gradient.

    Args:
        listed: pairs.
        tau: τ > 0.
        A: [D, r].
        offset: [D].

    Returns:
        The value, ∂L/∂A [D, r] and ∂L/∂offset [D].
    """
    Z = listed.F @ A.T + offset  # [n, D]
    length = Z.norm(dim=1, keepdim=True).clamp_min(SHORT)
    Z /= length
    exponent = listed.cosines(Z) / tau + listed.log_share
    weights = exponent.softmax(0).repeat(2)[listed.order]
    pull = embedding_bag(listed.others, Z, listed.first, mode="sum", per_sample_weights=weights)  # [n, D]
    pull -= (pull * Z).sum(1, keepdim=True) * Z
    pull /= length
    return tau * (float(exponent.logsumexp(0)) + math.log(2)), pull.T @ listed.F, pull.sum(0)
