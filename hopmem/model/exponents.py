"""Exponents β (s_μ − m) of α-entmax, α > 1, over all memories: where the threshold lies, and what it lets through.

Passes that add up find c = −ln of the largest weight (`threshold.log_peak`); one more mixes. The exponents are kept,
where they fit, or computed anew at each pass.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hopmem.model.kernel import Features
from hopmem.model.passes import ARRAYS, Scores, peaks
from hopmem.model.rows import blocks
from hopmem.model.scan import Mixed, RowBlocks
from hopmem.model.threshold import Agree, Sums, log_peak, partial_sums, tsallis_exp
from hopmem.model.weighing import Mixture, Terms

MOST_EDGES = 1 << 20  # memories of which it is found out exactly whether they have a weight
STEEP = 64.0  # slope of the sum of the weights that rounding of the scores may have
SAMPLE = 4096  # memories that tell about where the threshold lies


@dataclass(frozen=True)
class Exponents:
    """β (s_μ − m), with m the largest score, of b states and all memories: kept, or computed anew at each pass."""

    scores: Scores
    peak: Tensor  # m [b], in the type to compute in
    beta: float
    kept: Tensor | None = None  # [b, M]
    lift: Tensor | None = None  # what is still to be added to those that are kept [b, 1]

    @property
    def memory(self) -> Features:
        """The memories."""
        return self.scores.memory

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
                yield rows, self.kept[:, rows] if self.lift is None else self.kept[:, rows] + self.lift

    def of(self, states: Tensor) -> "Exponents":
        """The exponents of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Exponents of c states.
        """
        kept, lift = (None if each is None else each[states] for each in (self.kept, self.lift))
        return Exponents(self.scores.of(states), self.peak[states], self.beta, kept, lift)

    def at(self, peak: Tensor) -> "Exponents":
        """The same scores, counted from another m.

        Args:
            peak: m [b], not smaller than the largest score of these memories.

        Returns:
            Exponents.
        """
        peak = peak.to(self.peak)
        lift = self.beta * (self.peak - peak)[:, None]
        return replace(self, peak=peak, lift=lift if self.lift is None else lift + self.lift)

    def exactly(self, Y: Tensor, width: int, budget: int) -> "Exponents":
        """The same exponents, computed anew at each pass in float64.

        Args:
            Y: states [b, D], float64.
            width: entries of a row that is mixed.
            budget: bytes of working memory.

        Returns:
            Exponents.
        """
        return Exponents.of_all(Scores.within(Y.T, self.memory, width, budget), self.beta)[0]

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

    def sums(self, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What `threshold.log_peak` asks for, in one pass.

        Args:
            c: minus the logarithm of the largest weight [b, 1].
            alpha: α > 1.

        Returns:
            Σ exp_α(u) and its derivative [b, 1].
        """
        total, rate = torch.zeros_like(c), torch.zeros_like(c)
        for _, s in self:
            more = partial_sums(s, c, alpha)
            total, rate = total.add_(more[0]), rate.add_(more[1])
        return total, rate

    def mixture(self, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, slack: Tensor) -> "Mixture":
        """Mix rows, and sum up what the conjugate needs, in one pass.

        Args:
            alpha: α > 1.
            factor: e^{(α−1)c} [b, 1].
            rows_of: M rows to mix.
            width: entries of a row.
            slack: what rounding may have moved an exponent by [b, 1].

        Returns:
            The sums.
        """
        total, inner = (torch.zeros_like(self.peak, dtype=torch.float64) for _ in range(2))
        support = torch.zeros_like(total, dtype=torch.int64)
        edge = support.new_empty(2, 0)
        factor, end, inside, outside = limits(self.peak, alpha, factor, slack)
        mixed = Mixed(total, width)
        for rows, s in self:
            G = tsallis_exp(s * factor, alpha)
            total, inner = total + G.sum(1), inner + (G * s).sum(1)
            certain = s > inside
            support += certain.sum(1)
            found = (certain.logical_not_() & (s > outside)).nonzero().T
            edge = torch.cat([edge, found + found.new_tensor([[0], [rows.start]])], 1)
            if edge.shape[1] > MOST_EDGES:  # ties: no precision tells them apart
                inside = outside = end
            mixed.add(G, rows_of[rows])
        return Mixture(mixed.total, total, inner, support, edge)


def limits(peak: Tensor, alpha: float, factor: Tensor, slack: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the support ends, as an exponent, in the type of the largest scores.

    Args:
        peak: the largest scores [b].
        alpha: α > 1.
        factor: e^{(α−1)c} [b, ...].
        slack: what rounding may have moved an exponent by [b, ...].

    Returns:
        The factor, the end, and what lies certainly inside and certainly outside [b, ...].
    """
    end = -1 / ((alpha - 1) * factor)
    inside, outside = ((end + shift).to(peak) for shift in (slack, -slack))
    return factor.clamp_max(torch.finfo(peak.dtype).max).to(peak), end.to(peak), inside, outside


def root(terms: Terms, alpha: float, start: Tensor, M: int) -> Tensor:
    """C = −ln of the largest weight of exponents over M memories (see `settled`).

    Args:
        terms: of b states.
        alpha: α > 1.
        start: about where c lies [b, 1] float64.
        M: memories.

    Returns:
        c [b, 1] float64.
    """
    return settled(partial(terms.sums, alpha=alpha), alpha, start, M, terms.peak.dtype)


def settled(sums: Sums, alpha: float, start: Tensor, M: int, kind: torch.dtype, agree: Agree = lambda c: c) -> Tensor:
    """C = −ln of the largest weight, by a few passes (see `threshold.log_peak`).

    Args:
        sums: what `threshold.log_peak` asks for, of b states.
        alpha: α > 1.
        start: about where c lies [b, 1] float64.
        M: memories.
        kind: the type that scores were computed in.
        agree: what several processes go on with.

    Returns:
        c [b, 1] float64.
    """
    c = log_peak(sums, start, M, 8 * torch.finfo(kind).eps, STEEP if alpha <= 2 else 1.0, agree=agree)
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
