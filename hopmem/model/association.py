"""The association weights p = α-entmax(β Z y) of states, and what they mix, without a weight for every memory.

Where few groups of memories can matter (`sieve`), those are scored again and p is held, a few weights for each state
(`held`). Where too many matter, passes over all memories tell what is asked (`broad`). Either way the largest weights,
the support and Ψ* are exact to float32, and which way was taken shows nowhere beyond that.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from hopmem.model.broad import broad, picked
from hopmem.model.held import held, rescored
from hopmem.model.kernel import Features
from hopmem.model.picks import BYTES
from hopmem.model.scan import RowBlocks
from hopmem.model.sieve import FEW, Sieve, count, reach, sieve, suited_type, unseen
from hopmem.model.tangent import suits
from hopmem.model.weighing import Association, Beside, Weighing

LEAK = 1e-8  # weight that may be lost
SHARE = 48  # it may look into one in so many; a fused pass over all of them is quicker beyond
SHARE_OF_PICKS = 6  # the same for α > 1, where several passes are what is left,
SHARE_OF_FEW = 16  # and where one is, beside quick products in bfloat16
TABLE_BYTES = 64  # for each memory that a state sees: its number, its scores and their copies


def associate(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, beside: Beside | None = None
) -> Iterator[tuple[Tensor, Association]]:
    """Weigh the memories for a block of states.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        how: α, β, and what is asked for.
        first: what will be mixed first: a fused pass mixes it on the way.
        width: its entries.
        beside: where other processes hold more memories, and weigh them now.

    Yields:
        Some of the states [c] and their association, until all are through to which any of these memories matters.
    """
    M = len(memory) if beside is None else beside.memories
    k, left = min(how.top, M), torch.arange(len(Y), device=Y.device)
    t = reach(how.alpha, how.beta, M, LEAK / how.spread)
    coarse = _coarse(Y, memory, t, k, how, beside)
    if coarse is not None:
        reaches, seen, few = _seen(coarse, t, k, how)
        floor = coarse.floor(reaches, k)
        matter = coarse.top >= floor  # [G, b]
        for some in _alike(few & (seen > 0), seen, how.budget):
            index, S = rescored(Y[some], memory, coarse.group, matter[:, some], floor[some], how)
            found = S.isfinite().any(1)  # beside better ones elsewhere, what seemed to matter may not
            if bool(found.any()):
                yield some[found], held(index[found], S[found], how)
        if how.alpha > 1 and not how.at_once and not bool(few.all()):
            for some, association in _picked(Y, memory, how, coarse, ~few, first, width):
                few[some] = True
                yield some, association
        left = left[~few]
    if not len(left) or not len(memory):
        return
    peak = None if coarse is None else coarse.top[:, left].amax(0).float()
    for some, association in broad(Y[left], memory, how, first, width, peak):
        yield left[some], association


def _coarse(Y: Tensor, memory: Features, t: float, k: int, how: Weighing, beside: Beside | None) -> Sieve | None:
    """Score the states coarsely, and compare what is best with other processes.

    Returns:
        The maxima of all groups; None where too many matter, or there is nothing.
    """
    coarse, M = None, len(memory)
    if M:
        coarse = sieve(Y, memory, t if how.alpha == 1 else None, suited_type(memory, len(Y)), how.budget)
    if beside is None:
        return coarse
    best = beside.largest(unseen(Y, M) if coarse is None else coarse.bounds(k))
    return None if coarse is None else replace(coarse, best=best)


def _picked(
    Y: Tensor, memory: Features, how: Weighing, coarse: Sieve, left: Tensor, first: RowBlocks, width: int
) -> Iterator[tuple[Tensor, Association]]:
    """Weigh the memories of those states whose support most likely is a small share of all memories.

    Yields:
        Some of the states that are left [b], and their association.
    """
    floor = coarse.likely_floor(how.alpha, how.beta, how.budget)
    groups = count(coarse.top, floor).double() / len(coarse.top)
    share = 1 - (1 - groups) ** (1 / coarse.group)  # of memories, were they independent
    quick = suits(how, memory) and coarse.top.dtype == torch.bfloat16
    sparse = left & (share * (SHARE_OF_FEW if quick else SHARE_OF_PICKS) <= 1)
    for some in _alike(sparse, (len(memory) * share).long() + 1, how.budget * TABLE_BYTES // BYTES):
        found = picked(Y[some], memory, how, floor[some], first, width)
        if found is not None:
            yield some[found[0]], found[1]


def _seen(coarse: Sieve, t: float, k: int, how: Weighing) -> tuple[Tensor, Tensor, Tensor]:
    """How far below the largest score memories matter, how many those groups have, and whether they are few enough.

    Returns:
        All three of each state [b].
    """

    def within(reaches: Tensor) -> Tensor:
        return count(coarse.top, coarse.floor(reaches, k)) * coarse.group

    largest = torch.finfo(coarse.slack.dtype).max
    M, reaches = coarse.group * len(coarse.top), torch.full_like(coarse.slack, min(t, largest))
    most = max(FEW, 2 * k * coarse.group, M // SHARE)
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
