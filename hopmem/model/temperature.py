"""The β at which a memory errs least, for memories that come with none."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.baselines import Baseline, answer, scored, squared_error
from hopmem.model.kernel import Features

COARSE = tuple(step / 2 for step in range(8))  # exponents of 10 that are tried first
STRIDE = 0.5  # from there outward, while the best lies at an edge
FARTHEST = 6  # exponents beyond which no weight changes
WORTH = 1e-4  # the share of the error that a step outward has to bring
NOTHING = 1e-9  # the share of the largest error that is none
FINE = 0.05  # to which the best exponent is found


@dataclass(frozen=True)
class Minimum:
    """Where an error is smallest."""

    exponent: float  # of 10; the middle one of those that err equally
    error: float
    tried: dict[float, float]  # exponent → error


@dataclass(frozen=True)
class Sharpness:
    """The β of a baseline."""

    beta: float
    search: Minimum | None  # over β times the spread of the scores; None where nothing had to be sought


def best_beta(
    baseline: Baseline,
    X: Tensor,
    clean: Tensor,
    memory: Features,
    span: tuple[float, float] | None,
    budget: int,
) -> Sharpness:
    """Seek the β of the smallest mean error over some queries.

    β is sought in units of one over the spread of the scores, so that the units of patterns change nothing.

    Args:
        baseline: the memory.
        X: queries [B, d]; NaN where an entry is not known.
        clean: what should come back [B, d].
        memory: what the queries are put to.
        span: what readouts are clamped to.
        budget: bytes of working memory for a block.

    Returns:
        The β; 1 where all memories score alike.
    """
    if baseline.beta is not None:
        return Sharpness(baseline.beta, None)
    held = list(scored(baseline, X, memory, budget)) if len(X) * len(memory) * 8 <= budget // 2 else None

    def blocks_of_scores() -> Iterable[tuple[slice, Tensor]]:
        return held if held is not None else scored(baseline, X, memory, budget)

    spread = sum(float((S.amax(1) - S.mean(1)).sum()) for _, S in blocks_of_scores()) / len(X)
    if not spread > 0:
        return Sharpness(1.0, None)

    def errors(exponents: Sequence[float]) -> list[float]:
        total = torch.zeros(len(exponents), dtype=torch.float64)
        for rows, S in blocks_of_scores():
            for place, exponent in enumerate(exponents):
                readout = answer(baseline, 10**exponent / spread, S, memory, budget).readout
                total[place] += float(squared_error(readout, clean[rows], span).sum())
        return (total / len(X)).tolist()

    search = lowest(errors)
    return Sharpness(10**search.exponent / spread, search)


def lowest(errors: Callable[[Sequence[float]], list[float]]) -> Minimum:
    """Seek the smallest error over exponents: a coarse grid, outward while that helps, then finer and finer.

    Args:
        errors: the error at each of some exponents.

    Returns:
        The best that was met.
    """
    tried = dict(zip(COARSE, errors(COARSE), strict=True))
    nothing = NOTHING * max(tried.values())

    def best() -> float:
        least = max(nothing, min(tried.values()))
        equal = sorted(exponent for exponent, error in tried.items() if error <= least)
        return equal[(len(equal) - 1) // 2]

    while (beyond := _outward(tried, best(), nothing)) is not None:
        tried[beyond] = errors([beyond])[0]
    step = STRIDE / 2
    while step >= FINE:
        sides = [best() - step, best() + step]
        tried |= dict(zip(sides, errors(sides), strict=True))
        step /= 2
    return Minimum(best(), tried[best()], tried)


def _outward(tried: dict[float, float], best: float, nothing: float) -> float | None:
    """The exponent beyond the edge of those that were tried, where the best lies there and the way there still paid.

    Returns:
        The exponent; None where it is time to look closer.
    """
    for edge, step in ((min(tried), STRIDE), (max(tried), -STRIDE)):
        gain = tried[edge + step] - tried[edge]
        if best == edge and gain > max(nothing, WORTH * tried[edge + step]) and abs(edge) < FARTHEST:
            return edge - step
    return None
