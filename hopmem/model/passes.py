"""Passes over all memories for states to which too many of them matter: a block of scores is held, and no more.

Softmax makes one pass with a running maximum and sum. α-entmax makes one for the largest scores, a few for the
threshold, whose sums add up over blocks (`entmax.log_peak`), and one that mixes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.entmax import log_peak, partial_sums, tsallis_exp
from hopmem.model.kernel import Features, blocks
from hopmem.model.scan import RowBlocks
from hopmem.model.sieve import group_size, maxima

MILD = 40.0  # β up to which no e^{βs}, |s| ≤ 1, nor a sum of any number of them leaves float32
LOWEST = -80.0  # exponent of the least weight that is summed: below the normal numbers arithmetic crawls
SMALLEST = 1e-20  # a β that tells no weights apart, and still the scores
MOST_ROWS = 2048  # memories of a block: their scores stay near the processor
ARRAYS = 6  # of the size of a block of scores, at the most
SAMPLE = 4096  # memories that tell about where the threshold lies


@dataclass(frozen=True)
class Scores:
    """⟨z_μ, y⟩ of b states and all memories, computed anew at each pass."""

    T: Tensor  # states as columns [D, b], in the type to compute in
    memory: Features
    rows: int  # memories of a block: whole groups

    @classmethod
    def within(cls, T: Tensor, memory: Features, width: int, budget: int) -> "Scores":
        """Scores in blocks that fit a budget.

        Args:
            T: states as columns [D, b].
            memory: unit features of M memories.
            width: entries of a row that is mixed.
            budget: bytes of working memory.

        Returns:
            The scores.
        """
        group = group_size(len(memory))
        bytes_of_row = 16 * max(width, memory.dimension) + ARRAYS * T.element_size() * T.shape[1]
        return cls(T.contiguous(), memory, max(1, min(MOST_ROWS, budget // bytes_of_row) // group) * group)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Pass over the memories.

        Yields:
            Some memories and their scores [m, b], which may be overwritten, and are when the next come.
        """
        M, b = len(self.memory), self.T.shape[1]
        buffer = self.T.new_empty(b * min(M, self.rows))
        for rows in blocks(M, self.rows):
            # A state's scores lie side by side, as the product that mixes reads them.
            out = buffer[: b * (rows.stop - rows.start)].view(b, -1).T
            yield rows, self.memory.products(rows, self.T, out)

    def of(self, states: Tensor) -> "Scores":
        """The scores of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Scores of c states.
        """
        return Scores(self.T[:, states].contiguous(), self.memory, self.rows)


def fused(scores: Scores, beta: float, rows_of: RowBlocks, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax and what it mixes in one pass, with a running sum and, where exponents may be large, a running maximum.

    Of two parts of the memories with maxima m and m′, sums s and s′ and mixtures a and a′, both together have the
    maximum M = max(m, m′), the sum s e^{m−M} + s′ e^{m′−M} and the mixture a e^{m−M} + a′ e^{m′−M}: an associative rule
    (Milakov, Gimelshein, 2018, arXiv 1805.02867), so parts may be taken in any order, or on different machines.

    Args:
        scores: of b states and M memories.
        beta: β.
        rows_of: M rows to mix.
        width: entries of a row.

    Returns:
        p · rows [b, width] in float32, one over the largest weight [b] in float64, and the largest score of each group
        [G, b].
    """
    beta = max(beta, SMALLEST)
    scaled, M = Scores(scores.T * beta, scores.memory, scores.rows), len(scores.memory)
    b, group = scaled.T.shape[1], group_size(M)
    top = torch.empty(-(-M // group), b, device=scaled.T.device)
    total, mixed = scaled.T.new_zeros(b, dtype=torch.float64), torch.zeros(b, width, device=scaled.T.device)
    steep = beta > MILD
    level = scaled.T.new_full((b,), -math.inf if steep else 0.0)  # what has weight one
    for rows, S in scaled:  # β s [m, b]
        groups = top[rows.start // group : -(-rows.stop // group)]
        maxima(S, group, groups)
        if steep:
            highest = torch.maximum(level, (groups if groups.dtype == S.dtype else S).amax(0))
            faded = (level - highest).exp()
            total, level = total * faded, highest
            mixed.mul_(faded[:, None].float())
            S.sub_(level).clamp_min_(LOWEST)
        P = S.exp_()
        total += P.sum(0)
        mixed.addmm_(P.float().T, rows_of[rows])
    over_largest = total if steep else total * (-top.amax(0).double()).exp()
    return mixed / total[:, None].float(), over_largest, top.div_(beta)


def peaks(scores: Scores) -> tuple[Tensor, Tensor]:
    """The largest scores.

    Args:
        scores: of b states and M memories.

    Returns:
        Of each state [b], and of each group [G, b] in float32.
    """
    T, M = scores.T, len(scores.memory)
    group, peak = group_size(M), T.new_full((T.shape[1],), -math.inf)
    top = torch.empty(-(-M // group), T.shape[1], device=T.device)
    for rows, S in scores:
        maxima(S, group, top[rows.start // group : -(-rows.stop // group)])
        peak = torch.maximum(peak, S.amax(0))
    return peak, top


@dataclass(frozen=True)
class Deformed:
    """G_μ = exp_α(β (s_μ − m) e^{(α−1)c}): the α-entmax of scores but for their sum, where the largest, m, has 1."""

    alpha: float
    beta: float
    peak: Tensor  # m [b]
    factor: Tensor  # e^{(α−1)c} [b, 1]

    def exponents(self, S: Tensor) -> Tensor:
        """β (s − m).

        Args:
            S: scores [m, b]; overwritten.

        Returns:
            [b, m].
        """
        return _exponents(S, self.peak, self.beta)

    def weights(self, exponents: Tensor) -> Tensor:
        """G.

        Args:
            exponents: β (s − m) [b, m].

        Returns:
            [b, m].
        """
        return tsallis_exp(exponents * self.factor, self.alpha)

    def of(self, states: Tensor) -> "Deformed":
        """The weights of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Weights of c states.
        """
        return Deformed(self.alpha, self.beta, self.peak[states], self.factor[states])


def _exponents(S: Tensor, peak: Tensor, beta: float) -> Tensor:
    """β (s − m), in place.

    Returns:
        [b, m].
    """
    return S.sub_(peak).mul_(beta).T


def root(scores: Scores, peak: Tensor, alpha: float, beta: float, start: Tensor) -> Tensor:
    """C = −ln of the largest weight, by a few passes (see `entmax.log_peak`).

    Args:
        scores: of b states and M memories, in the type to compute in.
        peak: the largest of each state [b], in the same type.
        alpha: α > 1.
        beta: β.
        start: about where c lies [b, 1] float64.

    Returns:
        c [b, 1] float64.
    """

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        total, rate = torch.zeros_like(c), torch.zeros_like(c)
        for _, S in scores:
            more = partial_sums(_exponents(S, peak, beta), c, alpha)
            total, rate = total.add_(more[0]), rate.add_(more[1])
        return total, rate

    return log_peak(sums, start, len(scores.memory), 8 * torch.finfo(peak.dtype).eps)


def about(scores: Scores, peak: Tensor, alpha: float, beta: float, budget: int) -> Tensor:
    """About where the root lies, by a sample of the memories.

    Args:
        scores: of b states and M memories.
        peak: the largest of each state [b].
        alpha: α > 1.
        beta: β.
        budget: bytes that the sample may take with its scores.

    Returns:
        c [b, 1] float64.
    """
    T, memory = scores.T, scores.memory
    M = len(memory)
    few = max(16, budget // (8 * (ARRAYS * T.shape[1] + 4 * memory.dimension)))
    rows = torch.linspace(0, M - 1, min(M, SAMPLE, few), dtype=torch.float64, device=T.device).long()
    s = _exponents(memory.exact(rows).to(T) @ T, peak, beta).double()  # [b, m]
    each = M / len(rows)

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        total, rate = partial_sums(s, c, alpha)
        return (each * total).clamp_min(1.0), each * rate  # the largest score of all counts, though it is not in it

    return log_peak(sums, s.new_zeros(len(s), 1), M)


@dataclass(frozen=True)
class Mixture:
    """What α-entmax, α > 1, sums over all memories, for b states."""

    mixed: Tensor  # Σ G · rows [b, n] float32
    total: Tensor  # Σ G [b], one over the largest weight
    inner: Tensor  # Σ G β (s − m) [b]
    support: Tensor  # memories with G > 0 [b] int64


def mixture(scores: Scores, weights: Deformed, rows_of: RowBlocks, width: int) -> Mixture:
    """Mix rows, and sum up what the conjugate needs, in one pass.

    Args:
        scores: of b states and M memories.
        weights: of those states.
        rows_of: M rows to mix.
        width: entries of a row.

    Returns:
        The sums.
    """
    peak = weights.peak
    total, inner = (torch.zeros_like(peak, dtype=torch.float64) for _ in range(2))
    support = torch.zeros_like(peak, dtype=torch.int64)
    mixed = torch.zeros(len(peak), width, device=peak.device)
    for rows, S in scores:
        s = weights.exponents(S)
        G = weights.weights(s)
        total, inner, support = total + G.sum(1), inner + (G * s).sum(1), support + (G > 0).sum(1)
        mixed.addmm_(G.float(), rows_of[rows])
    return Mixture(mixed, total, inner, support)
