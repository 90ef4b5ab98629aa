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
MOST_ROWS, MOST_SCORES = 2048, 1 << 18  # of a block: more of either, and it leaves the cache of the processor
ARRAYS = 6  # of the size of a block of scores, at the most
MOST_EDGES = 1 << 20  # memories of which it is found out exactly whether they have a weight
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
        most = max(MOST_ROWS, MOST_SCORES // T.shape[1])
        bytes_of_row = 16 * max(width, memory.dimension) + ARRAYS * T.element_size() * T.shape[1]
        return cls(T.contiguous(), memory, max(1, min(most, budget // bytes_of_row) // group) * group)

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


def peaks(scores: Scores, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest scores.

    Args:
        scores: of b states and M memories.
        kept: where all scores go [b, M], if they shall be kept.

    Returns:
        Of each state [b], and of each group [G, b] in float32.
    """
    T, M = scores.T, len(scores.memory)
    group, peak = group_size(M), T.new_full((T.shape[1],), -math.inf)
    top = torch.empty(-(-M // group), T.shape[1], device=T.device)
    for rows, S in scores:
        maxima(S, group, top[rows.start // group : -(-rows.stop // group)])
        peak = torch.maximum(peak, S.amax(0))
        if kept is not None:
            kept[:, rows] = S.T
    return peak, top


@dataclass(frozen=True)
class Exponents:
    """β (s_μ − m), with m the largest score, of b states and all memories: kept, or computed anew at each pass."""

    scores: Scores
    peak: Tensor  # m [b], in the type to compute in
    beta: float
    kept: Tensor | None = None  # [b, M]

    @classmethod
    def of_all(cls, scores: Scores, beta: float, *, keep: bool = False) -> tuple["Exponents", Tensor]:
        """Pass over all scores once.

        Args:
            scores: of b states and M memories.
            beta: β.
            keep: whether the exponents shall be kept.

        Returns:
            The exponents, and the largest score of each group [G, b].
        """
        kept = scores.T.new_empty(scores.T.shape[1], len(scores.memory)) if keep else None
        peak, top = peaks(scores, kept)
        return cls(scores, peak, beta, None if kept is None else kept.sub_(peak[:, None]).mul_(beta)), top

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Pass over the memories.

        Yields:
            Some memories and their exponents [b, m], which may not be overwritten.
        """
        if self.kept is None:
            for rows, S in self.scores:
                yield rows, S.sub_(self.peak).mul_(self.beta).T
        else:
            for rows in blocks(self.kept.shape[1], self.scores.rows):
                yield rows, self.kept[:, rows]

    def of(self, states: Tensor) -> "Exponents":
        """The exponents of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Exponents of c states.
        """
        kept = None if self.kept is None else self.kept[states]
        return Exponents(self.scores.of(states), self.peak[states], self.beta, kept)

    def sample(self, budget: int) -> Tensor:
        """The exponents of some memories, evenly spread.

        Args:
            budget: bytes that the sample may take.

        Returns:
            float64 [b, m].
        """
        T, memory = self.scores.T, self.scores.memory
        M, few = len(memory), max(16, budget // (8 * (ARRAYS * T.shape[1] + 4 * memory.dimension)))
        rows = torch.linspace(0, M - 1, min(M, SAMPLE, few), dtype=torch.float64, device=T.device).long()
        if self.kept is not None:
            return self.kept[:, rows].double()
        return ((memory.exact(rows).to(T) @ T - self.peak) * self.beta).T.double()


def root(exponents: Exponents, alpha: float, start: Tensor) -> Tensor:
    """C = −ln of the largest weight, by a few passes (see `entmax.log_peak`).

    Args:
        exponents: of b states and M memories.
        alpha: α > 1.
        start: about where c lies [b, 1] float64.

    Returns:
        c [b, 1] float64.
    """

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        total, rate = torch.zeros_like(c), torch.zeros_like(c)
        for _, s in exponents:
            more = partial_sums(s, c, alpha)
            total, rate = total.add_(more[0]), rate.add_(more[1])
        return total, rate

    M = len(exponents.scores.memory)
    c = log_peak(sums, start, M, 8 * torch.finfo(exponents.peak.dtype).eps)
    total, rate = sums(c)  # what rounds off one weight is random, and less in their sum: a last step is worth it
    return (c - (total.log() - c) / (rate / total - 1)).clamp(0, math.log(M))


def about(exponents: Exponents, alpha: float, budget: int) -> Tensor:
    """About where the root lies, by a sample of the memories.

    Args:
        exponents: of b states and M memories.
        alpha: α > 1.
        budget: bytes that the sample may take.

    Returns:
        c [b, 1] float64.
    """
    s, M = exponents.sample(budget), len(exponents.scores.memory)
    each = M / s.shape[1]

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        total, rate = partial_sums(s, c, alpha)
        return (each * total).clamp_min(1.0), each * rate  # the largest score of all counts, though it is not in it

    return log_peak(sums, s.new_zeros(len(s), 1), M)


@dataclass(frozen=True)
class Mixture:
    """What α-entmax, α > 1, sums over all memories, for b states, with G_μ = exp_α(β (s_μ − m) e^{(α−1)c})."""

    mixed: Tensor  # Σ G · rows [b, n] float32
    total: Tensor  # Σ G [b], one over the largest weight
    inner: Tensor  # Σ G β (s − m) [b]
    support: Tensor  # memories with G > 0 [b] int64, but for those at the edge,
    edge: Tensor  # [2, k] states and memories of which rounding may decide whether G > 0


def mixture(
    exponents: Exponents, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, slack: Tensor
) -> Mixture:
    """Mix rows, and sum up what the conjugate needs, in one pass.

    Args:
        exponents: of b states and M memories.
        alpha: α > 1.
        factor: e^{(α−1)c} [b, 1].
        rows_of: M rows to mix.
        width: entries of a row.
        slack: what rounding may have moved an exponent by [b, 1].

    Returns:
        The sums.
    """
    total, inner = (torch.zeros_like(exponents.peak, dtype=torch.float64) for _ in range(2))
    support = torch.zeros_like(total, dtype=torch.int64)
    edge = support.new_empty(2, 0)
    factor, end = factor.to(exponents.peak), -1 / ((alpha - 1) * factor)  # the exponent from which on G > 0
    inside, outside = ((end + shift).to(factor) for shift in (slack, -slack))
    mixed = torch.zeros(len(total), width, device=total.device)
    for rows, s in exponents:
        G = tsallis_exp(s * factor, alpha)
        total, inner = total + G.sum(1), inner + (G * s).sum(1)
        certain = s > inside
        support += certain.sum(1)
        found = (certain.logical_not_() & (s > outside)).nonzero().T
        edge = torch.cat([edge, found + found.new_tensor([[0], [rows.start]])], 1)
        if edge.shape[1] > MOST_EDGES:  # ties: no precision tells them apart
            inside = outside = end.to(factor)
        mixed.addmm_(G.float(), rows_of[rows])
    return Mixture(mixed, total, inner, support, edge)
