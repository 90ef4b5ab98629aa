"""How the weighings of parts of the memories, each held by another process, become that of all.

Every process weighs the memories that it holds, and answers for them alone. Of softmax, the parts have the maxima m_r
and one over their largest weights, s_r = Σ e^{β(s − m_r)}: all together have m = max m_r, s = Σ_r s_r e^{β(m_r − m)},
and mix with the shares s_r e^{β(m_r − m)}/s (the rule of `passes.fused`). For α > 1 a support ends where all memories
together let it end. To add memories raises the threshold, so that no part has left out what has a weight; c of all
follows from sums over the parts, a few numbers for each state (`threshold.log_peak`), and what is mixed from one more.

What is sent does not depend on the number of memories: for b states a few numbers each for a handful of sums, the k
best memories with their scores, and the mixture of n entries.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hopmem.divided import Division
from hopmem.model.best import above, usual
from hopmem.model.broad import free_energy
from hopmem.model.exponents import settled
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks
from hopmem.model.scan import RowBlocks
from hopmem.model.threshold import reach_of_support, stretch, tsallis_exp
from hopmem.model.weighing import BLUR, ROUNDED, VISIBLE, Association, Mixture, Terms, Weighing

EQUAL = 1e-12  # float64 scores of whole products that lie closer are one
Part = tuple[Tensor, Association]  # some of b states [c], and their association with the memories of one process


@dataclass(frozen=True)
class Shard(Division):
    """The memories that one process holds, among those of all."""

    def largest(self, X: Tensor) -> Tensor:
        """Compare.

        Args:
            X: of one shape for all.

        Returns:
            The largest of each entry with all processes.
        """
        return self.others.largest(X)

    def meet(
        self, Y: Tensor, parts: Iterable[Part], memory: Features | None, how: Weighing, first: RowBlocks, width: int
    ) -> Association:
        """Weigh the memories of all processes.

        Args:
            Y: states [b, D], float64, the same for all.
            parts: the states and their associations with the memories of this process; nothing where it holds none.
            memory: unit features of these; None where scores are not of them, but exact as they are.
            how: α, β, and what is asked for.
            first: rows of these memories that will be mixed first.
            width: their entries.

        Returns:
            The association of all states with all memories.
        """
        mine = [(states, p) for states, p in parts]
        own, index, score = self._best(Y, mine, memory, how)
        below = own - score[:, 0]  # how far the best of this process lies below the best of all [b]
        weigh = _softmax if how.alpha == 1 else _entmax
        return weigh(self, Y, mine, memory, how, first, width, index, score, below)

    def _best(
        self, Y: Tensor, mine: list[Part], memory: Features | None, how: Weighing
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k best of all memories, of equal ones the lowest first.

        They are scored again, in float64 and each alone: rounding that is the same within a process, or within a
        product of matrices, is not between them.

        Returns:
            The largest score of this process [b]; their numbers among all, and their scores [b, k].
        """
        k = min(max(2, how.top), self.memories)
        index, score = Y.new_zeros(len(Y), k, dtype=torch.int64), Y.new_full((len(Y), k), -math.inf)
        for states, p in mine:
            n = min(k, p.index.shape[1])
            index[states, :n], score[states, :n] = p.index[:, :n], p.score[:, :n]
        if memory is not None:
            _score_again(index, score, Y, memory, how.budget)
        own = score.amax(1)
        both = torch.cat([index + self.start, score.view(torch.int64)], 1)  # bits as they are: one exchange for both
        index, score = self.others.side_by_side(both).view(len(Y), -1, 2, k).transpose(1, 2).flatten(2).unbind(1)
        score = score.contiguous().view(Y.dtype)
        order = index.argsort(1)  # of equal scores the lowest memory comes first
        alike = score if memory is not None else (score / EQUAL).round()
        order = order.gather(1, alike.gather(1, order).argsort(dim=1, descending=True, stable=True))[:, :k]
        # Where those that are equal to rounding have changed places, the first still has the largest score.
        return own, index.gather(1, order), score.gather(1, order).sort(dim=1, descending=True).values


def _score_again(index: Tensor, score: Tensor, Y: Tensor, memory: Features, budget: int) -> None:
    """Score memories in float64 [b, k], where a state has them."""
    state, slot = score.isfinite().nonzero(as_tuple=True)
    for some in blocks(len(state), max(1, budget // (32 * Y.shape[1]))):
        at = state[some], slot[some]
        score[at] = (memory.exact(index[at]) * Y[state[some]]).sum(1)


def _softmax(
    shard: Shard,
    Y: Tensor,
    mine: list[Part],
    _memory: Features | None,
    how: Weighing,
    _first: RowBlocks,
    _width: int,
    index: Tensor,
    score: Tensor,
    below: Tensor,
) -> Association:
    """The shares of the processes, and what is mixed by them.

    Returns:
        The association.
    """
    peak, sums = score[:, 0], Y.new_zeros(len(Y))
    for states, p in mine:
        sums[states] = (how.beta * below[states]).exp() / p.weight[:, 0]
    total = shard.others.total(sums)
    share, visible = sums / total, torch.zeros_like(sums, dtype=torch.int64)
    for states, p in mine:
        visible[states] = ((p.weight if p.every is None else p.every) * share[states, None] > VISIBLE).sum(1)

    def mix(rows_of: RowBlocks, width: int, some: Tensor) -> Tensor:
        mixed = Y.new_zeros(len(some), width)
        for states, p in mine:
            place, own = _among(some, states, len(Y))
            if len(own):
                mixed[place] = share[some[place], None] * p.mix(rows_of, width, own)
        return shard.others.total(mixed)

    P = (how.beta * (score - peak[:, None])).nan_to_num(nan=0.0, neginf=-math.inf).exp() / total[:, None]
    support = shard.others.total(visible)
    return Association(index, score, P, support, total.log() + how.beta * peak, mix)


def _entmax(
    shard: Shard,
    Y: Tensor,
    mine: list[Part],
    memory: Features | None,
    how: Weighing,
    first: RowBlocks,
    width: int,
    index: Tensor,
    score: Tensor,
    below: Tensor,
) -> Association:
    """One threshold for all, by sums over the memories of each process.

    Returns:
        The association.
    """
    peak = score[:, 0]
    terms = _TermsOfAll(shard, below, [(states, _counted(_terms(p), below[states])) for states, p in mine])
    start, rounded = shard.others.largest(torch.cat([terms.start(mine), terms.rounded()], 1)).tensor_split(2, 1)
    coarse = bool(rounded.any())  # with any process: else all is exact as it is
    kind = torch.float32 if coarse else torch.float64
    c = terms.root(how.alpha, start.clamp(0, math.log(shard.memories)), kind)
    slack = 2 * how.beta * usual(Y)[:, None].double()
    blur = how.beta * ROUNDED * Y.norm(dim=1, keepdim=True) / reach_of_support(c, how.alpha)
    clear = (blur <= BLUR ** max(1.0, how.alpha - 1)).to(c)  # as within one process
    c, clear = shard.others.same(torch.cat([c, clear], 1)).tensor_split(2, 1)
    if coarse and (how.sharp or not bool(clear.all())):
        terms, slack = terms.exactly(Y, width, how.budget), torch.zeros_like(c)
        c = terms.root(how.alpha, c, torch.float64)
    factor = stretch(c, how.alpha)
    sums = terms.mixture(how.alpha, factor, first, width, slack)
    threshold = peak - 1 / (how.beta * (how.alpha - 1) * factor[:, 0])
    at_edge = sums.edge[0] if memory is None else above(threshold, sums.edge, Y, memory, how.budget)
    support = sums.support.index_add_(0, sums.edge[0], at_edge).double()
    own = torch.column_stack([sums.mixed, sums.total, sums.inner, support])
    mixed, total, inner, support = shard.others.total(own).tensor_split([width, width + 1, width + 2], 1)
    total, inner, support = total[:, 0], inner[:, 0], support[:, 0].long()
    exponent = (how.beta * (score - peak[:, None])).nan_to_num(nan=0.0, neginf=-math.inf)
    P = tsallis_exp(exponent * factor, how.alpha) / total[:, None]

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        if rows_of is first:
            return mixed[some] / total[some, None]
        found = terms.of(some).mixture(how.alpha, factor[some], rows_of, n, torch.zeros_like(c[some])).mixed
        return shard.others.total(found) / total[some, None]

    free = free_energy(how.beta * peak, total, inner, factor[:, 0], how.alpha)
    return Association(index, score, P, support, free, mix)


@dataclass(frozen=True)
class _TermsOfAll:
    """The exponents of all memories, of which this process has parts."""

    shard: Shard
    below: Tensor  # how far the largest score of this process lies below that of all [b], float64
    parts: list[tuple[Tensor, Terms]]  # some of the states, and the terms of the memories of this process

    def sums(self, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What `threshold.log_peak` asks for.

        Args:
            c: minus the logarithm of the largest weight [b, 1].
            alpha: α > 1.

        Returns:
            Σ exp_α(u) and its derivative [b, 1].
        """
        found = c.new_zeros(len(c), 2)
        for states, terms in self.parts:
            found[states] = torch.cat(terms.sums(c[states], alpha), 1)
        found = self.shard.others.total(found)
        return found[:, :1], found[:, 1:]

    def root(self, alpha: float, start: Tensor, kind: torch.dtype) -> Tensor:
        """C = −ln of the largest weight.

        Args:
            alpha: α > 1.
            start: about where c lies [b, 1] float64.
            kind: the least exact type that any process has scored in.

        Returns:
            [b, 1].
        """
        sums, others = partial(self.sums, alpha=alpha), self.shard.others
        return settled(sums, alpha, start, self.shard.memories, kind, others.same)

    def start(self, mine: list[Part]) -> Tensor:
        """About where c lies: nowhere below that of a part whose largest score is the largest of all.

        Returns:
            [b, 1] float64.
        """
        found = torch.zeros_like(self.below)
        for states, p in mine:
            found[states] = torch.where(self.below[states] >= 0, -p.weight[:, 0].log(), 0)
        return found[:, None]

    def rounded(self) -> Tensor:
        """Whether this process has scored in less than float64.

        Returns:
            One or zero for each state [b, 1] float64.
        """
        rounded = any(terms.peak.dtype != torch.float64 for _, terms in self.parts)
        return torch.full_like(self.below, rounded)[:, None]

    def of(self, states: Tensor) -> "_TermsOfAll":
        """The terms of some of the states.

        Returns:
            Terms of c states.
        """
        parts = []
        for some, terms in self.parts:
            place, own = _among(states, some, len(self.below))
            if len(own):
                parts.append((place, terms.of(own)))
        return _TermsOfAll(self.shard, self.below[states], parts)

    def exactly(self, Y: Tensor, width: int, budget: int) -> "_TermsOfAll":
        """The same, scored in float64.

        Returns:
            Terms.
        """
        exact = [
            (some, _counted(terms.exactly(Y[some], width, budget), self.below[some])) for some, terms in self.parts
        ]
        return _TermsOfAll(self.shard, self.below, exact)

    def mixture(self, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, slack: Tensor) -> Mixture:
        """What this process has of the sums.

        Returns:
            Its part of each.
        """
        b = len(self.below)
        mixed, total, inner = self.below.new_zeros(b, width), torch.zeros_like(self.below), torch.zeros_like(self.below)
        support = torch.zeros_like(total, dtype=torch.int64)
        edges = [support.new_empty(2, 0)]
        for some, terms in self.parts:
            found = terms.mixture(alpha, factor[some], rows_of, width, slack[some])
            mixed[some], total[some], inner[some] = found.mixed, found.total, found.inner
            support[some] = found.support
            edges.append(torch.stack([some[found.edge[0]], found.edge[1]]))
        return Mixture(mixed, total, inner, support, torch.cat(edges, 1))


def _terms(p: Association) -> Terms:
    """What α-entmax sums over.

    Returns:
        The terms, which an association has for α > 1.
    """
    assert p.terms is not None
    return p.terms


def _counted(terms: Terms, below: Tensor) -> Terms:
    """Terms of a process, counted from the largest score of all.

    By how far that of the process lies below, and not to where: a process scores in ways that differ by rounding, of
    which β may make anything.

    Returns:
        The terms.
    """
    return terms.at(terms.peak.double() - below)


def _among(asked: Tensor, states: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Which of the states that are asked for are among some.

    Args:
        asked: numbers of states [c], below b.
        states: numbers of the states of a part [n].
        b: all states.

    Returns:
        Where they stand in `asked`, and in `states`.
    """
    place = torch.full((b,), -1, device=asked.device)
    place[states] = torch.arange(len(states), device=asked.device)
    own = place[asked]
    return (own >= 0).nonzero()[:, 0], own[own >= 0]
