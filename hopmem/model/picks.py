"""Exponents of the memories that can have a weight, picked out of all of them: for supports that are a small share.

One pass over all memories keeps, of each state, the scores above a floor. To leave out memories lowers the threshold
that α-entmax finds, as their weights are missing from its sum. So where the threshold of those that were picked lies
above the floor, all memories above that threshold are among them, and it is the threshold of all.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from hopmem.model.exponents import MOST_EDGES, limits
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores
from hopmem.model.rows import blocks
from hopmem.model.scan import Mixed, RowBlocks
from hopmem.model.sieve import group_size, maxima
from hopmem.model.threshold import partial_sums, tsallis_exp
from hopmem.model.weighing import Mixture

BYTES = 32  # for each memory that is picked: its state, its number, its exponent, and what is worked out of them
SPARSE = 16  # one weight in so many and fewer, and to add up weighted rows is quicker than the product with all
AT_ONCE = 1 << 20  # entries that are worked on at a time


@dataclass(frozen=True)
class Picks:
    """β (s_μ − m), with m the largest score, of b states and the memories that were picked for each."""

    memory: Features
    peak: Tensor  # m [b], in the type that was computed in
    beta: float
    state: Tensor  # [n] int32
    row: Tensor  # [n] int32: the memory
    exponent: Tensor  # [n]
    blocks: tuple[tuple[slice, slice], ...]  # some memories, and where those of them that were picked stand among the n

    @classmethod
    def above(cls, floor: Tensor, scores: Scores, beta: float, most: int) -> tuple["Picks", Tensor] | None:
        """Pass over all scores once, and keep those above a floor.

        Args:
            floor: of each state [b].
            scores: of b states and M memories.
            beta: β.
            most: how many scores may be kept.

        Returns:
            The picks, and the largest score of each group [G, b]; None where there are more.
        """
        T, M = scores.T, len(scores.memory)
        group, b, count = group_size(M), T.shape[1], 0
        top = torch.empty(-(-M // group), b, device=T.device)
        found, where = list[tuple[Tensor, Tensor, Tensor]](), list[tuple[slice, slice]]()
        for rows, S in scores:
            groups = top[rows.start // group : -(-rows.stop // group)]
            maxima(S, group, groups)
            state, row, score = _over(floor, groups, S.T, group)
            found.append((state.int(), (row + rows.start).int(), score))
            where.append((rows, slice(count, count + len(state))))
            count += len(state)
            if count > most:
                return None
        state, row, S = (torch.cat(each) for each in zip(*found, strict=True))
        peak = top.amax(0).to(S)
        return cls(scores.memory, peak, beta, state, row, S.sub_(peak[state]).mul_(beta), tuple(where)), top

    def of(self, states: Tensor) -> "Picks":
        """What was picked for some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Picks of c states.
        """
        if torch.equal(states, torch.arange(len(self.peak), device=states.device)):
            return self
        place = torch.full_like(self.peak, -1, dtype=torch.int32)
        place[states] = torch.arange(len(states), dtype=place.dtype, device=place.device)
        kept = place[self.state] >= 0
        before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
        where = [(rows, slice(int(before[some.start]), int(before[some.stop]))) for rows, some in self.blocks]
        state, row, exponent = place[self.state[kept]], self.row[kept], self.exponent[kept]
        return Picks(self.memory, self.peak[states], self.beta, state, row, exponent, tuple(where))

    def at(self, peak: Tensor) -> "Picks":
        """The same scores, counted from another m.

        Args:
            peak: m [b], not smaller than the largest score of these memories.

        Returns:
            Picks.
        """
        peak = peak.to(self.peak)
        shift = self.beta * (self.peak - peak)
        return replace(self, peak=peak, exponent=self.exponent + shift[self.state])

    def exactly(self, Y: Tensor, _width: int, budget: int) -> "Picks":
        """The same picks, scored in float64.

        Args:
            Y: states [b, D], float64.
            budget: bytes of working memory.

        Returns:
            Picks.
        """
        S = Y.new_empty(len(self.state))
        for some in blocks(len(S), max(1, budget // (32 * Y.shape[1]))):
            S[some] = (self.memory.exact(self.row[some]) * Y[self.state[some]]).sum(1)
        peak = Y.new_full((len(Y),), -torch.inf).scatter_reduce_(0, self.state.long(), S, "amax")
        return replace(self, peak=peak, exponent=S.sub_(peak[self.state]).mul_(self.beta))

    def sums(self, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What `threshold.log_peak` asks for.

        Args:
            c: minus the logarithm of the largest weight [b, 1].
            alpha: α > 1.

        Returns:
            Σ exp_α(u) and its derivative [b, 1].
        """
        total, rate = torch.zeros_like(c), torch.zeros_like(c)
        for some in blocks(len(self.state), AT_ONCE):
            state = self.state[some]
            more = partial_sums(self.exponent[some], c[state, 0], alpha, partial(self._by_state, state=state))
            total, rate = total.add_(more[0][:, None]), rate.add_(more[1][:, None])
        return total, rate

    def mixture(self, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, slack: Tensor) -> Mixture:
        """Mix rows, and sum up what the conjugate needs.

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
        factor, end, inside, outside = limits(self.peak, alpha, factor[:, 0], slack[:, 0])
        weight = torch.empty(len(self.state), device=total.device)
        for some in blocks(len(self.state), AT_ONCE):
            state, row, s = self.state[some], self.row[some], self.exponent[some]
            G = tsallis_exp(s * factor[state], alpha)
            total, inner = total + self._by_state(G, state), inner + self._by_state(G * s, state)
            certain = s > inside[state]
            support += torch.bincount(state[certain], minlength=len(support))
            unsure = certain.logical_not_() & (s > outside[state])
            edge = torch.cat([edge, torch.stack([state[unsure], row[unsure]]).long()], 1)
            if edge.shape[1] > MOST_EDGES:  # ties: no precision tells them apart
                inside = outside = end
            weight[some] = G
        return Mixture(self._mixed(weight, rows_of, width), total, inner, support, edge)

    def _mixed(self, weight: Tensor, rows_of: RowBlocks, width: int) -> Tensor:
        """What was picked, weighed and added up.

        Args:
            weight: of each pick [n].
            rows_of: M rows to mix.
            width: entries of a row.

        Returns:
            [b, width] float64.
        """
        b, mixed = len(self.peak), Mixed(self.peak, width)
        for rows, some in self.blocks:
            state, row, m = self.state[some], self.row[some] - rows.start, rows.stop - rows.start
            if not len(state):
                continue
            if len(state) * SPARSE > b * m:
                P = weight.new_zeros(b, m)
                P[state, row] = weight[some]
                mixed.add(P, rows_of[rows])
            elif len(state) >= m:
                mixed.add_few(state, row, weight[some], rows_of[rows])
            else:  # not all of these rows need be read
                own, place = row.unique(return_inverse=True)
                mixed.add_few(state, place.to(state), weight[some], rows_of[rows.start + own.long()])
        return mixed.total

    def _by_state(self, terms: Tensor, state: Tensor) -> Tensor:
        """Terms added up, state by state.

        Returns:
            float64 [b].
        """
        total = torch.zeros_like(self.peak, dtype=torch.float64)
        return total.index_add_(0, state, terms.double())


def _over(floor: Tensor, groups: Tensor, S: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scores above a floor, which few groups have: only those are looked into.

    Args:
        floor: of each state [b].
        groups: the largest score of each group [g, b].
        S: scores [b, m].
        group: memories in a group; the last may be smaller.

    Returns:
        States, memories, and their scores [k].
    """
    state, which = (groups >= floor).T.contiguous().nonzero(as_tuple=True)
    S = pad(S, (0, -S.shape[1] % group), value=-torch.inf) if S.shape[1] % group else S
    score = S.view(len(S), -1, group)[state, which]  # [n, group]
    over = score >= floor[state, None]
    found, place = over.nonzero(as_tuple=True)
    return state[found], which[found] * group + place, score[found, place]
