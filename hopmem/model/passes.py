"""Passes over all memories for states to which too many of them matter: a block of scores is held, and no more.

Softmax makes one pass with a running maximum and sum. α-entmax makes one for the largest scores, and then a few more
(`exponents`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.kernel import Features
from hopmem.model.rows import blocks
from hopmem.model.scan import Mixed, RowBlocks
from hopmem.model.sieve import group_size, maxima
from hopmem.model.weighing import Weighing

MILD = 40.0  # β up to which no e^{βs}, |s| ≤ 1, nor a sum of any number of them leaves float32,
ROOM = 85.0  # which holds e^85 of the same sign, also of rows that are long
LOWEST, LOWEST_OF_LOUD = (
    -80.0,
    -700.0,
)  # exponent of the least weight that is summed: below the normal numbers arithmetic crawls
SMALLEST = 1e-20  # a β that tells no weights apart, and still the scores
MOST_ROWS, MOST_SCORES = 2048, 1 << 18  # of a block: more of either, and it leaves the cache of the processor
ARRAYS = 6  # of the size of a block of scores, at the most


@dataclass(frozen=True)
class Scores:
    """⟨z_μ, y⟩ of b states and all memories, computed anew at each pass."""

    T: Tensor  # states as columns [D, b], in the type to compute in; the entries of each side by side are quickest
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
        return cls(T.T.contiguous().T, memory, max(1, min(most, budget // bytes_of_row) // group) * group)

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
        every = len(states) == self.T.shape[1]  # in their order, as no state is asked for twice
        return self if every else Scores(self.T.T[states].T, self.memory, self.rows)


def fused(scores: Scores, how: Weighing, rows_of: RowBlocks, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax and what it mixes in one pass, with a running sum and, where exponents may be large, a running maximum.

    Of two parts of the memories with maxima m and m′, sums s and s′ and mixtures a and a′, both together have the
    maximum M = max(m, m′), the sum s e^{m−M} + s′ e^{m′−M} and the mixture a e^{m−M} + a′ e^{m′−M}: an associative rule
    (Milakov, Gimelshein, 2018, arXiv 1805.02867), so parts may be taken in any order, or on different machines.

    Args:
        scores: of b states and M memories.
        how: β, and how long the rows are.
        rows_of: M rows to mix.
        width: entries of a row.

    Returns:
        p · rows [b, width] in float64, one over the largest weight [b] in float64, and the largest score of each group
        [G, b].
    """
    beta = max(how.beta, SMALLEST)
    scaled, M = Scores(scores.T * beta, scores.memory, scores.rows), len(scores.memory)
    b, group = scaled.T.shape[1], group_size(M)
    top = torch.empty(-(-M // group), b, device=scaled.T.device)
    total = scaled.T.new_zeros(b, dtype=torch.float64)
    mixed = Mixed(total, width, torch.float64 if how.loud else torch.float32)
    lowest = LOWEST_OF_LOUD if how.loud else LOWEST
    steep = beta > min(MILD, ROOM - math.log(max(1.0, how.longest) * M))
    level = scaled.T.new_full((b,), -math.inf if steep else 0.0)  # what has weight one
    for rows, S in scaled:  # β s [m, b]
        groups = top[rows.start // group : -(-rows.stop // group)]
        maxima(S, group, groups)
        if steep:
            highest = torch.maximum(level, (groups if groups.dtype == S.dtype else S).amax(0))
            faded = (level - highest).exp()
            total, level = total * faded, highest
            mixed.fade(faded)
            S.sub_(level).clamp_min_(lowest)
        P = S.exp_()
        total += P.sum(0)
        mixed.add(P.T, rows_of[rows])
    over_largest = total if steep else total * (-top.amax(0).double()).exp()
    return mixed.total / total[:, None], over_largest, top.div_(beta)


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
