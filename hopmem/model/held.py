"""The weights of states to which few memories matter: those are scored again, and every weight of theirs is held."""

import math

import torch
from torch import Tensor

from hopmem.model.entmax import conjugate, weights
from hopmem.model.kernel import Features, blocks
from hopmem.model.scan import RowBlocks
from hopmem.model.weighing import VISIBLE, Association, Weighing

CLOSE = 1e-6  # scores of unit features that lie closer are one to float32


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
    index, S = _table(state, rows, torch.cat(exact), len(Y))
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


def held(index: Tensor, S: Tensor, how: Weighing) -> Association:
    """All weights of the memories that matter.

    Returns:
        The association.
    """
    P = weights(how.beta * S, how.alpha)
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
