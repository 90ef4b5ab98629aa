"""Which memories score best, and which above a threshold, exactly: where all scores are known to float32 alone.

The largest score of each group of memories tells where to look; what is found there is scored in float64.
"""

import math

import torch
from torch import Tensor

from hopmem.model.held import rescored
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks
from hopmem.model.sieve import count, group_size
from hopmem.model.weighing import Weighing

CROWD = 100  # groups beside the k best: as many as can hold visible weights, or as rounding may put in another order
FEWEST = 16  # memories that are ranked at a time, at least
RANKED_BYTES = 80  # for each memory that is ranked, with its number and copies


def usual(Y: Tensor) -> Tensor:
    """What rounding to float32 moves a score by, but for the rarest.

    Args:
        Y: states [b, D].

    Returns:
        [b].
    """
    usual: Tensor = Y.norm(dim=1).float() * ((math.sqrt(Y.shape[1]) + 8) * 2.0**-23)
    return usual


def best(Y: Tensor, memory: Features, top: Tensor, floor: Tensor, k: int, how: Weighing) -> tuple[Tensor, Tensor]:
    """The largest scores, and which memories they are of.

    Where more groups lie above the floor than the k best and a crowd, rounding can't tell which are best: a pass in
    float64 does.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        top: the largest score of each group [G, b].
        floor: scores below it are not asked for [b].
        k: as many are named at least.
        how: β and the budget.

    Returns:
        Memories [b, n] and their scores in float64 [b, n], best first; where a state has fewer, −∞.
    """
    matter, most = top >= floor, 2 * k + CROWD
    crowded = count(top, floor) > most
    few, many = (~crowded).nonzero()[:, 0], crowded.nonzero()[:, 0]
    if not len(many):
        return rescored(Y, memory, group_size(len(memory)), matter, floor, how)
    n = min(most, len(memory))
    index, S = Y.new_zeros(len(Y), n, dtype=torch.int64), Y.new_full((len(Y), n), -math.inf)
    if len(few):
        found = rescored(Y[few], memory, group_size(len(memory)), matter[:, few], floor[few], how)
        width = min(n, found[0].shape[1])
        index[few, :width], S[few, :width] = (part[:, :width] for part in found)
    for part in blocks(len(many), max(1, how.budget // (RANKED_BYTES * (n + FEWEST)))):
        index[many[part]], S[many[part]] = _ranked(Y[many[part]], memory, n, how.budget)
    return index, S


def _ranked(Y: Tensor, memory: Features, n: int, budget: int) -> tuple[Tensor, Tensor]:
    """The n largest scores of all, by a pass in float64; of equal scores the lowest memory comes first.

    Returns:
        Memories and scores [b, n].
    """
    index, S = Y.new_zeros(len(Y), 0, dtype=torch.int64), Y.new_zeros(len(Y), 0)
    for rows in blocks(len(memory), max(FEWEST, min(8192, budget // (16 * memory.dimension + RANKED_BYTES * len(Y))))):
        number = torch.arange(rows.start, rows.stop, device=Y.device).expand(len(Y), -1)
        scores = torch.cat([S, Y @ memory.exact(rows).T], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :n]
        index, S = torch.cat([index, number], 1).gather(1, order), scores.gather(1, order)
    return index, S


def above(threshold: Tensor, pairs: Tensor, Y: Tensor, memory: Features, budget: int) -> Tensor:
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
