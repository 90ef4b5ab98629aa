"""The weights of states to which many memories matter: passes over all of them, and no weight for every memory.

Softmax makes one fused pass with a running maximum and sum. For α > 1 the support ends somewhere: where it most likely
is a small share of the memories, those are picked out in one pass (`picked`) and the rest is work on them alone; where
it is not, all weights of a few states at a time are held, or the threshold is found by passes over all memories.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hopmem.model.best import above, best, usual
from hopmem.model.exponents import Exponents, about, root
from hopmem.model.held import whole
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores, fused
from hopmem.model.picks import BYTES, Picks
from hopmem.model.rows import blocks
from hopmem.model.scan import RowBlocks, memory_rows, query_blocks
from hopmem.model.sieve import Sieve, group_size
from hopmem.model.tangent import corrected, suits
from hopmem.model.threshold import reach_of_support, stretch, tsallis_exp
from hopmem.model.weighing import BLUR, ROUNDED, VISIBLE, Association, Weighing

MOST_READINGS = 8  # blocks of states that are each held with all their weights: as many passes are cheaper beyond
KEPT_BYTES, FEWEST_KEPT = 8, 8  # for each score that is kept, with the blocks around it; and states worth keeping them
HELD_BYTES = 80  # for each weight of a state that is held, with the temporaries of entmax

Passes = Exponents | Picks


def broad(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, peak: Tensor | None
) -> Iterator[tuple[Tensor, Association]]:
    """Weigh all memories, of which too many matter to look into them one by one.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        how: α, β, and what is asked for.
        first: what will be mixed first.
        width: its entries.
        peak: about the largest score [b], where that is known.

    Yields:
        Some of the states and their association.
    """
    b, M, left = len(Y), len(memory), torch.arange(len(Y), device=Y.device)
    if how.alpha == 1:
        yield left, streamed(Y, memory, how, first, width)
        return
    if suits(how, memory):
        left = yield from corrected(Y, memory, how, first, width, peak)
    parts = list(query_blocks(len(left), M, how.budget))
    if len(parts) <= (1 if how.at_once else MOST_READINGS) and how.budget >= HELD_BYTES * M:
        for part in parts:
            yield left[part], dense(Y[left[part]], memory, how)
        return
    fit = how.budget // (KEPT_BYTES * M)
    keep = not how.sharp and fit >= (b if how.at_once else FEWEST_KEPT)
    for part in blocks(len(left), fit if keep else b):
        yield left[part], summed(Y[left[part]], memory, how, first, width, keep=keep)


def streamed(Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int) -> Association:
    """Softmax over all memories in one fused pass.

    Returns:
        The association.
    """
    scores = Scores.within((Y if how.sharp else Y.float()).T, memory, width, how.budget)
    mixed, total, top = fused(scores, how, first, width)
    seen = Sieve(top, group_size(len(memory)), usual(Y))
    below = (-math.log(VISIBLE) - total.log()).clamp_min(0) / max(how.beta, torch.finfo(total.dtype).tiny)
    k = min(max(2, how.top), len(memory))  # the runner-up says how far ahead the best is
    floor = torch.minimum(seen.floor(0.0, k), seen.floor(0.0) - below.float())
    index, S = best(Y, memory, top, floor, k, how)
    P = (how.beta * (S - S[:, :1])).exp() / total[:, None]

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        return mixed[some] if rows_of is first else fused(scores.of(some), how, rows_of, n)[0]

    return Association(index, S, P, (P > VISIBLE).sum(1), total.log() + how.beta * S[:, 0], mix)


def dense(Y: Tensor, memory: Features, how: Weighing) -> Association:
    """Every weight of every memory, for α > 1.

    Returns:
        The association.
    """
    S = Y.new_empty(len(Y), len(memory))
    for rows in blocks(len(memory), memory_rows(2 * memory.dimension, how.budget)):
        S[:, rows] = Y @ memory.exact(rows).T  # [b, m]
    return whole(S, how)


def picked(
    Y: Tensor, memory: Features, how: Weighing, floor: Tensor, first: RowBlocks, width: int
) -> tuple[Tensor, Association] | None:
    """α-entmax, α > 1, over the memories above a floor, where they turn out to be all that have a weight.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        how: α, β, and what is asked for.
        floor: the score from which on memories are picked [b].
        first: what will be mixed first.
        width: its entries.

    Returns:
        The states for which it holds [c], and their association; None where it holds for none, or too many memories lie
        above the floor.
    """
    scores = Scores.within(Y.float().T, memory, width, how.budget)
    found = Picks.above(floor, scores, how.beta, how.budget // BYTES)
    if found is None:
        return None
    below = how.beta * (found[0].peak - floor).clamp_min(torch.finfo(floor.dtype).tiny).double()[:, None]
    start = (-((how.alpha - 1) * below).log() / (how.alpha - 1)).clamp(0, math.log(len(memory)))  # `reach_of_support`
    picks, c, slack = _settled(found[0], how, Y, width, start)
    ends = picks.peak.double() - reach_of_support(c, how.alpha)[:, 0] / how.beta
    whole = (ends - usual(Y).double() >= floor).nonzero()[:, 0]
    if not len(whole):
        return None
    return whole, _weighed(picks.of(whole), found[1][:, whole], c[whole], slack[whole], Y[whole], how, first, width)


def summed(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, *, keep: bool = False
) -> Association:
    """α-entmax over all memories, α > 1, by passes: over scores that are kept in float32, or are computed anew.

    Returns:
        The association.
    """
    exponents, top = Exponents.of_all(Scores.within(Y.float().T, memory, width, how.budget), how.beta, keep=keep)
    settled, c, slack = _settled(exponents, how, Y, width, about(exponents, how.alpha, how.budget))
    return _weighed(settled, top, c, slack, Y, how, first, width)


def _settled(exponents: Passes, how: Weighing, Y: Tensor, width: int, start: Tensor) -> tuple[Passes, Tensor, Tensor]:
    """Find the threshold, in float32 where that tells enough.

    Float32 moves a score at random and the threshold, a mean of many, by much less; memories that it may have moved
    across the threshold are scored in float64 later. Where the support is so narrow that float32 tells too little
    within, all exponents are computed once more in float64.

    Returns:
        The exponents, c [b, 1], and what rounding may have moved an exponent by [b, 1].
    """
    M = len(exponents.memory)
    c = root(exponents, how.alpha, start, M)
    slack = 2 * how.beta * usual(Y)[:, None].double()
    blur = how.beta * ROUNDED * Y.norm(dim=1, keepdim=True) / reach_of_support(c, how.alpha)
    if how.sharp or not bool((blur <= BLUR ** max(1.0, how.alpha - 1)).all()):  # for α > 2 it is rooted
        exponents = exponents.exactly(Y, width, how.budget)
        return exponents, root(exponents, how.alpha, c, M), torch.zeros_like(c)
    return exponents, c, slack


def _weighed(
    exponents: Passes,
    top: Tensor,
    c: Tensor,
    slack: Tensor,
    Y: Tensor,
    how: Weighing,
    first: RowBlocks,
    width: int,
) -> Association:
    """Mix, and name the largest weights, once the threshold is known.

    Returns:
        The association.
    """
    memory = exponents.memory
    factor, peak = stretch(c, how.alpha), exponents.peak.double()
    sums = exponents.mixture(how.alpha, factor, first, width, slack)
    total = sums.total
    free = free_energy(how.beta * peak, total, sums.inner, factor[:, 0], how.alpha)
    k = min(max(2, how.top), len(memory))
    floor = Sieve(top, group_size(len(memory)), usual(Y)).floor(0.0, k)
    index, S = best(Y, memory, top, floor, k, how)
    P = tsallis_exp(how.beta * (S - peak[:, None]) * factor, how.alpha) / total[:, None]
    threshold = peak - 1 / (how.beta * (how.alpha - 1) * factor[:, 0])
    support = sums.support.index_add_(0, sums.edge[0], above(threshold, sums.edge, Y, memory, how.budget))

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        mixed = sums.mixed[some]
        if rows_of is not first:
            mixed = exponents.of(some).mixture(how.alpha, factor[some], rows_of, n, torch.zeros_like(c[some])).mixed
        return mixed / total[some, None]

    return Association(index, S, P, support, free, mix, exponents)


def free_energy(largest: Tensor, total: Tensor, inner: Tensor, factor: Tensor, alpha: float) -> Tensor:
    """Ψ*_α from what is summed: Σ p^α follows from Σ G and Σ G s, since G^{α−1} = 1 + (α−1) s e^{(α−1)c}.

    Args:
        largest: β m [b].
        total: Σ G [b].
        inner: Σ G s [b].
        factor: e^{(α−1)c} [b].
        alpha: α > 1.

    Returns:
        [b].
    """
    power = (total + (alpha - 1) * factor * inner) / total**alpha
    return largest + inner / total + (1 - power) / (alpha * (alpha - 1))
