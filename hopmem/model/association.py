"""The association weights p = α-entmax(β Z y) of states, and what they mix, without a weight for every memory.

Where few groups of memories can matter (`sieve`), those are scored again, first in float32 and what remains of them in
float64: p is then held, a few weights for each state. Where too many matter, α = 1 makes one fused pass with a running
maximum and sum; α > 1 holds the scores of as many states as fit, or where few fit finds the threshold by passes over
the memories, from sums that add up. Either way the largest weights, the support and Ψ* are exact to float32, and
which way was taken shows nowhere beyond that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.entmax import conjugate, entmax, stretch, tsallis_exp
from hopmem.model.kernel import Features, blocks
from hopmem.model.passes import Exponents, Scores, about, fused, mixture, root
from hopmem.model.scan import RowBlocks, combine, memory_rows, query_blocks, top_scores
from hopmem.model.sieve import FEW, Sieve, coarse_types, group_size, reach, sieve

VISIBLE = 0.01  # a softmax weight counts toward a metastable state above this (U-Hop+, after Martins et al., 2023)
LEAK = 1e-8  # weight that may be lost
SHARE = 128  # it may look into one in so many; a fused pass over all of them is quicker beyond
SHARE_OF_SPARSE = 16  # the same for α > 1 in the end, where several passes are what is left
TABLE_BYTES = 64  # for each memory that a state sees: its number, its scores and their copies
SHARP = 256.0  # β beyond which memories enter in float64: β times what float32 rounds off is an error of p
MOST_READINGS = 8  # blocks of states that are each held with all their weights: as many passes are cheaper beyond
CROWD = 100  # groups beside the k best: as many as can hold visible weights, or as rounding may put in another order
KEPT_BYTES, FEWEST_KEPT = 8, 8  # for each score that is kept, with the blocks around it; and states worth keeping them
BLUR = 1e-3  # of the width of the support: as much may rounding move a score there at most, and far less on average
HELD_BYTES = 80  # for each weight of a state that is held, with the temporaries of entmax
STEEP = 1e4  # and the spread of lengths from which a small weight may be most of what is mixed

Mix = Callable[[RowBlocks, int, Tensor], Tensor]  # (rows, their width n, which of the states [c]) ↦ p · rows [c, n]


@dataclass(frozen=True)
class Association:
    """p of b states."""

    index: Tensor  # [b, k] the memories of the largest weights, in order; what is left out weighs nothing
    weight: Tensor  # [b, k] float64
    support: Tensor  # [b] int64: weights that are not zero; at α = 1 those above VISIBLE
    conjugate: Tensor  # [b] Ψ*_α(β Z y), float64
    nearest: Tensor  # [b] the largest score
    mix: Mix


@dataclass(frozen=True)
class Weighing:
    """How states are weighed."""

    alpha: float
    beta: float
    top: int  # largest weights to name, at least
    budget: int  # bytes of working memory
    spread: float = 1.0  # largest over smallest norm of what is mixed: by as much does a lost weight weigh more

    @property
    def sharp(self) -> bool:
        """Whether float32 rounds scores off by more than answers bear."""
        return self.beta > SHARP or self.spread > STEEP


def associate(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int
) -> Iterator[tuple[Tensor, Association]]:
    """Weigh the memories for a block of states.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        how: α, β, and what is asked for.
        first: what will be mixed first: a fused pass mixes it on the way.
        width: its entries.

    Yields:
        Some of the states [c] and their association, until all are through.
    """
    M, k, left = len(memory), min(how.top, len(memory)), torch.arange(len(Y), device=Y.device)
    t = reach(how.alpha, how.beta, M, LEAK / how.spread)
    for kind in coarse_types(how.alpha, M, Y.device):
        coarse = sieve(Y[left], memory, t if how.alpha == 1 else None, kind)
        if coarse is None:
            break
        reaches, seen, few = _seen(coarse, t, k, how)
        floor = coarse.floor(reaches, k)
        matter = coarse.top >= floor  # [G, b]
        for some in _alike(few, seen, how.budget):
            states = left[some]
            yield states, _held(*rescored(Y[states], memory, coarse.group, matter[:, some], floor[some], how), how)
        left = left[~few]
        if not len(left):
            return
    for part, association in _broad(Y[left], memory, how, first, width):
        yield left[part], association


def _broad(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int
) -> Iterator[tuple[slice, Association]]:
    """Weigh all memories, of which too many matter to look into them one by one.

    Yields:
        Some of the states and their association.
    """
    b, M = len(Y), len(memory)
    if how.alpha == 1:
        yield slice(0, b), _streamed(Y, memory, how, first, width)
        return
    parts = list(query_blocks(b, M, how.alpha, how.budget))
    if len(parts) <= MOST_READINGS and how.budget >= HELD_BYTES * M:
        for part in parts:
            yield part, _dense(Y[part], memory, how)
        return
    fit = how.budget // (KEPT_BYTES * M)
    keep = not how.sharp and fit >= FEWEST_KEPT
    for part in blocks(b, fit if keep else b):
        yield part, _summed(Y[part], memory, how, first, width, keep=keep)


def _seen(coarse: Sieve, t: float, k: int, how: Weighing) -> tuple[Tensor, Tensor, Tensor]:
    """How far below the largest score memories matter, how many those groups have, and whether they are few enough.

    Returns:
        All three of each state [b].
    """

    def within(reaches: Tensor) -> Tensor:
        return (coarse.top >= coarse.floor(reaches, k)).sum(0) * coarse.group

    M, reaches = coarse.group * len(coarse.top), torch.full_like(coarse.slack, t)
    last_resort = how.alpha > 1 and coarse.top.dtype == torch.float32
    most = max(FEW, 2 * k * coarse.group, M // (SHARE_OF_SPARSE if last_resort else SHARE))
    seen = within(reaches)
    if how.alpha > 1 and math.isfinite(t) and bool((seen > most).any()):
        reaches = coarse.reach(how.alpha, how.beta, how.budget).to(reaches)
        seen = within(reaches)
    return reaches, seen, seen <= most


def _alike(few: Tensor, seen: Tensor, budget: int) -> Iterator[Tensor]:
    """States that see about as many memories, so that a table of all of them fits the budget.

    Yields:
        Indices [c].
    """
    order = few.nonzero()[:, 0]
    if not len(order):
        return
    if TABLE_BYTES * len(order) * int(seen[order].amax()) <= budget:
        yield order
        return
    order = order[seen[order].argsort(descending=True, stable=True)]
    while len(order):
        fit = max(1, budget // (TABLE_BYTES * int(seen[order[0]])))
        yield order[:fit]
        order = order[fit:]


def rescored(
    Y: Tensor, memory: Features, group: int, matter: Tensor, floor: Tensor, how: Weighing
) -> tuple[Tensor, Tensor]:
    """The exact scores of all memories that can matter.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        group: memories in a group.
        matter: the groups to look into [G, b], at least one for each state.
        floor: scores below it do not matter [b].
        how: β and the budget.

    Returns:
        Memories [b, k] and their scores in float64 [b, k], best first; where a state has fewer, −∞.
    """
    state, which = matter.T.nonzero(as_tuple=True)  # [n], state by state
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
    return _table(state, rows, torch.cat(exact), len(Y))


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


def _held(index: Tensor, S: Tensor, how: Weighing) -> Association:
    """All weights of the memories that matter.

    Returns:
        The association.
    """
    P = entmax(how.beta * S, how.alpha)
    support = ((VISIBLE if how.alpha == 1 else 0) < P).sum(1)

    def mix(rows_of: RowBlocks, width: int, some: Tensor) -> Tensor:
        p, mixed = P[some], P.new_zeros(len(some), width)
        state, slot = p.nonzero(as_tuple=True)
        for part in blocks(len(state), max(1, how.budget // (32 * width))):
            q = state[part]
            rows = rows_of[index[some[q], slot[part]]]
            mixed.index_add_(0, q, p[q, slot[part], None] * rows)
        return mixed

    return Association(index, P, support, conjugate(how.beta * S, P, how.alpha), S[:, 0], mix)


def _dense(Y: Tensor, memory: Features, how: Weighing) -> Association:
    """Every weight of every memory, for α > 1.

    Returns:
        The association.
    """
    S = Y.new_empty(len(Y), len(memory))
    for rows in blocks(len(memory), memory_rows(2 * memory.dimension, how.budget)):
        S[:, rows] = Y @ memory.exact(rows).T  # [b, m]
    P = entmax(how.beta * S, how.alpha)
    index = top_scores(S, min(max(2, how.top), len(memory)))

    def mix(rows_of: RowBlocks, width: int, some: Tensor) -> Tensor:
        return combine(P[some].float(), rows_of, width, how.budget).double()

    free = conjugate(how.beta * S, P, how.alpha)
    return Association(index, P.gather(1, index), (P > 0).sum(1), free, S.amax(1), mix)


def _summed(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, *, keep: bool = False
) -> Association:
    """α-entmax over all memories, α > 1, by passes: over scores that are kept in float32, or are computed anew.

    Float32 moves a score at random and the threshold, a mean of many, by much less; memories that it may have moved
    across the threshold are scored in float64. Where the support is so narrow that it tells too little within, the
    passes are made once more in float64.

    Returns:
        The association.
    """
    exponents, top = Exponents.of_all(Scores.within(Y.float().T, memory, width, how.budget), how.beta, keep=keep)
    c = root(exponents, how.alpha, about(exponents, how.alpha, how.budget))
    slack = 2 * how.beta * _usual(Y)[:, None].double()
    blur = (how.alpha - 1) * stretch(c, how.alpha) * slack  # of the base of the weights, which for α > 2 is rooted
    if how.sharp or bool((blur > BLUR ** max(1.0, how.alpha - 1)).any()):
        exponents, top = Exponents.of_all(Scores.within(Y.T, memory, width, how.budget), how.beta)
        c, slack = root(exponents, how.alpha, c), torch.zeros_like(c)
    factor, peak = stretch(c, how.alpha), exponents.peak.double()
    sums = mixture(exponents, how.alpha, factor, first, width, slack)
    total = sums.total
    # Σ p^α follows from Σ G and Σ G s, since G^{α−1} = 1 + (α−1) s e^{(α−1)c}.
    power = (total + (how.alpha - 1) * factor[:, 0] * sums.inner) / total**how.alpha
    free = how.beta * peak + sums.inner / total + (1 - power) / (how.alpha * (how.alpha - 1))
    k = min(max(2, how.top), len(memory))
    group = group_size(len(memory))
    floor = Sieve(top, group, _usual(Y)).floor(0.0, k)
    index, S = rescored(Y, memory, group, _best_groups(top, floor, 2 * k + CROWD), floor, how)
    P = tsallis_exp(how.beta * (S - peak[:, None]) * factor, how.alpha) / total[:, None]
    threshold = peak - 1 / (how.beta * (how.alpha - 1) * factor[:, 0])
    support = sums.support.index_add_(0, sums.edge[0], _above(threshold, sums.edge, Y, memory, how.budget))

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        mixed = sums.mixed[some]
        if rows_of is not first:
            mixed = mixture(exponents.of(some), how.alpha, factor[some], rows_of, n, torch.zeros_like(c[some])).mixed
        return (mixed / total[some, None].float()).double()

    return Association(index, P, support, free, S[:, 0], mix)


def _above(threshold: Tensor, pairs: Tensor, Y: Tensor, memory: Features, budget: int) -> Tensor:
    """Whether memories score above the threshold of a state, exactly.

    Args:
        threshold: of each state [b], float64.
        pairs: states and memories [2, k].
        Y: states [b, D], float64.
        memory: unit features.
        budget: bytes of working memory.

    Returns:
        One or zero [k] int64.
    """
    above = torch.zeros_like(pairs[0])
    for part in blocks(pairs.shape[1], max(1, budget // (32 * Y.shape[1]))):
        state, rows = pairs[:, part]
        above[part] = ((memory.exact(rows) * Y[state]).sum(1) > threshold[state]).to(above)
    return above


def _usual(Y: Tensor) -> Tensor:
    """What rounding to float32 moves a score by, but for the rarest.

    Returns:
        [b].
    """
    usual: Tensor = Y.norm(dim=1).float() * ((math.sqrt(Y.shape[1]) + 8) * 2.0**-23)
    return usual


def _streamed(Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int) -> Association:
    """Softmax over all memories in one fused pass.

    Returns:
        The association.
    """
    scores = Scores.within((Y if how.beta > SHARP else Y.float()).T, memory, width, how.budget)
    mixed, total, top = fused(scores, how.beta, first, width)
    seen = Sieve(top, group_size(len(memory)), _usual(Y))
    below = (-math.log(VISIBLE) - total.log()).clamp_min(0) / max(how.beta, torch.finfo(total.dtype).tiny)
    k = min(max(2, how.top), len(memory))  # the runner-up says how far ahead the best is
    floor = torch.minimum(seen.floor(0.0, k), seen.floor(0.0) - below.float())
    matter = _best_groups(top, floor, 2 * k + CROWD)
    index, S = rescored(Y, memory, seen.group, matter, floor, how)
    P = (how.beta * (S - S[:, :1])).exp() / total[:, None]

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        if rows_of is first:
            return mixed[some].double()
        return fused(scores.of(some), how.beta, rows_of, n)[0].double()

    return Association(index, P, (P > VISIBLE).sum(1), total.log() + how.beta * S[:, 0], S[:, 0], mix)


def _best_groups(top: Tensor, floor: Tensor, most: int) -> Tensor:
    """The groups above a floor, of which there may be too many where scores are tied: then the first of the best.

    Returns:
        bool [G, b].
    """
    matter = top >= floor
    crowded = (matter.sum(0) > most).nonzero()[:, 0]
    if len(crowded):
        best = top[:, crowded].argsort(dim=0, descending=True, stable=True)[:most]
        matter[:, crowded] = torch.zeros_like(matter[:, crowded]).scatter(0, best, True)
    return matter
