"""Weights that are all held: of the few memories that matter to a state, which are scored again, or of all memories."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.model.entmax import conjugate, weights
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks
from hopmem.model.scan import RowBlocks, combine, top_scores
from hopmem.model.threshold import partial_sums, tsallis_exp
from hopmem.model.weighing import VISIBLE, Association, Mixture, Weighing

CLOSE = 1e-6  # scores of unit features that lie closer are one to float32


def rescored(
    Y: Tensor, memory: Features, group: int, matter: Tensor, floor: Tensor, how: Weighing
) -> tuple[Tensor, Tensor]:
    """The exact scores of all memories that can matter.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        group: memories in a group.
        matter: the groups to look into [G, b].
        floor: scores below it do not matter [b].
        how: β and the budget.

    Returns:
        Memories [b, k] and their scores in float64 [b, k], best first; where a state has fewer, or none, −∞.
    """
    state, which = matter.T.contiguous().nonzero(as_tuple=True)  # [n], state by state
    rows = which[:, None] * group + torch.arange(group, device=Y.device)  # [n, group]
    if group > 1:
        y, kept = Y.float(), []
        for part in blocks(len(rows), max(1, how.budget // (32 * group * Y.shape[1]))):
            U, scale = memory.raw(rows[part].clamp(max=len(memory) - 1).flatten())
            S = (U.to(y).view(-1, group, Y.shape[1]) @ y[state[part], :, None])[..., 0]  # [n, group]
            S = S if scale is None else S * scale.view_as(S)
            kept.append((floor[state[part], None] <= S) & (rows[part] < len(memory)))
        keep = torch.cat(kept)
        state, rows = state[:, None].expand_as(rows)[keep], rows[keep]
    rows, exact = rows.flatten(), []
    sharp = how.alpha > 1 or how.sharp  # the support ends where a digit decides
    for part in blocks(len(rows), max(1, how.budget // (32 * Y.shape[1]))):
        Z = memory.exact(rows[part]) if sharp else memory[rows[part]]
        exact.append((Z * Y[state[part]]).sum(1))
    index, S = _table(state, rows, torch.cat([Y.new_empty(0), *exact]), len(Y))
    if not sharp and S.shape[1] > 1:  # what float32 has rounded is no matter for the weights, and may be for the order
        _reorder(index, S, Y, memory, how)
    return index, S


def _reorder(index: Tensor, S: Tensor, Y: Tensor, memory: Features, how: Weighing) -> None:
    """Score those memories in float64 that come too close to the best for float32, and put them in order."""
    k = min(max(2, how.top), S.shape[1])
    close = (S[:, : k - 1] - S[:, 1:k] < CLOSE * Y.norm(dim=1, keepdim=True)).any(1)
    for part in blocks(int(close.sum()), max(1, how.budget // (64 * S.shape[1] * Y.shape[1]))):
        states = close.nonzero()[part, 0]
        near = (S[states] >= S[states, k - 1 : k] - CLOSE).nonzero()
        rows = index[states[near[:, 0]], near[:, 1]]
        S[states[near[:, 0]], near[:, 1]] = (memory.exact(rows) * Y[states[near[:, 0]]]).sum(1)
        order = index[states].argsort(1)  # of equal scores the lowest memory comes first
        order = order.gather(1, S[states].gather(1, order).argsort(dim=1, descending=True, stable=True))
        index[states], S[states] = index[states].gather(1, order), S[states].gather(1, order)


def _table(state: Tensor, rows: Tensor, S: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Entries of states as rows of a table, best first, of equal ones the lowest memory.

    Returns:
        Memories and scores [b, k], −∞ where a state has fewer.
    """
    order = S.argsort(descending=True, stable=True)
    if b == 1:
        return rows[order][None], S[order][None]
    order = order[state[order].argsort(stable=True)]
    count = torch.bincount(state, minlength=b)
    slot = torch.arange(len(state), device=S.device) - (count.cumsum(0) - count)[state]
    index = torch.zeros(b, int(count.max()), dtype=torch.int64, device=S.device)
    score = S.new_full(index.shape, -math.inf)
    index[state, slot], score[state, slot] = rows[order], S[order]
    return index, score


@dataclass(frozen=True)
class Table:
    """Scores of b states and of those memories that can have a weight."""

    index: Tensor | None  # [b, k] the memories; None: all, in order
    S: Tensor  # [b, k] float64; −∞ where a state has fewer
    peak: Tensor  # m [b]: what exponents count from
    how: Weighing

    def at(self, peak: Tensor) -> "Table":
        """The same scores, counted from another m.

        Args:
            peak: m [b].

        Returns:
            The table.
        """
        return replace(self, peak=peak)

    def of(self, states: Tensor) -> "Table":
        """The scores of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            A table of c states.
        """
        index = None if self.index is None else self.index[states]
        return Table(index, self.S[states], self.peak[states], self.how)

    def exactly(self, _Y: Tensor, _width: int, _budget: int) -> "Table":
        """The same, counted from its own largest: these scores are float64.

        Returns:
            The table.
        """
        return replace(self, peak=self.S.amax(1))

    @property
    def exponent(self) -> Tensor:
        """β (s − m) [b, k]."""
        return (self.how.beta * (self.S - self.peak[:, None])).nan_to_num(nan=-math.inf, neginf=-math.inf)

    def sums(self, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What `threshold.log_peak` asks for.

        Args:
            c: minus the logarithm of the largest weight [b, 1].
            alpha: α > 1.

        Returns:
            Σ exp_α(u) and its derivative [b, 1].
        """
        return partial_sums(self.exponent, c, alpha)

    def mixture(self, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, _slack: Tensor) -> Mixture:
        """Mix rows, and sum up what the conjugate needs.

        Args:
            alpha: α > 1.
            factor: e^{(α−1)c} [b, 1].
            rows_of: rows to mix.
            width: entries of a row.

        Returns:
            The sums; of float64 scores nothing is left to find out at the edge.
        """
        s = self.exponent
        G = tsallis_exp(s * factor, alpha)
        inner, edge = torch.where(G > 0, G * s, 0).sum(1), torch.empty(2, 0, dtype=torch.int64, device=G.device)
        return Mixture(self.mixed(G, rows_of, width), G.sum(1), inner, (G > 0).sum(1), edge)

    def mixed(self, P: Tensor, rows_of: RowBlocks, width: int) -> Tensor:
        """Σ_μ p_μ r_μ.

        Args:
            P: weights [b, k].
            rows_of: rows to mix.
            width: entries of a row.

        Returns:
            [b, width] float64.
        """
        if self.index is None:
            return combine(P if self.how.loud else P.float(), rows_of, width, self.how.budget).double()
        mixed = P.new_zeros(len(P), width)
        state, slot = P.nonzero(as_tuple=True)
        for part in blocks(len(state), max(1, self.how.budget // (32 * width))):
            q = state[part]
            rows = rows_of[self.index[q, slot[part]]]
            mixed.index_add_(0, q, P[q, slot[part], None] * rows)
        return mixed


def held(index: Tensor, S: Tensor, how: Weighing) -> Association:
    """All weights of the memories that matter.

    Args:
        index: memories [b, k].
        S: their scores [b, k], best first; −∞ where a state has fewer.
        how: α and β.

    Returns:
        The association.
    """
    return _weighed(Table(index, S, S[:, 0], how), index)


def whole(S: Tensor, how: Weighing) -> Association:
    """All weights of all memories.

    Args:
        S: the scores of all memories [b, M], float64.
        how: α, β, and how many weights to name.

    Returns:
        The association.
    """
    best = top_scores(S, min(max(2, how.top), S.shape[1]))
    return _weighed(Table(None, S, S.gather(1, best[:, :1])[:, 0], how), best)


def _weighed(table: Table, best: Tensor) -> Association:
    """The weights of scores in a table.

    Args:
        table: of b states.
        best: the memories of the largest scores [b, k]: of a table with memories, all of them.

    Returns:
        The association.
    """
    how, S = table.how, table.S
    P = weights(how.beta * S, how.alpha)
    support = ((VISIBLE if how.alpha == 1 else 0) < P).sum(1)
    score, weight = (S, P) if table.index is not None else (S.gather(1, best), P.gather(1, best))

    def mix(rows_of: RowBlocks, width: int, some: Tensor) -> Tensor:
        return table.of(some).mixed(P[some], rows_of, width)

    return Association(best, score, weight, support, conjugate(how.beta * S, P, how.alpha), mix, table, P)
