"""The anneal by which a spherical code is sought: which τ follows which, how L_τ is lowered for each, and who goes on.

Distances between neighbours are the natural unit of τ: all of it is in units of h = 1 − cos of about the angle to come.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hopmem.model.codes.lbfgs import Loss, minimise
from hopmem.model.codes.newton import settled
from hopmem.model.codes.smoothmax import neighbours, over_all_pairs

Halt = Callable[[], bool]

HOT, WARM, COLD = 0.3, 0.1, 0.03  # τ/h where an anneal begins: of starts, of changed copies, and to find odd ones
COOL = 1.2e-4  # τ/h where all of them end
FINEST = 1e-9  # the last τ, which costs the largest cosine no digit that anyone reads
FALL = 2.5  # τ is divided by about this from stage to stage
SPREAD = 0.1  # τ at which starts are spread over the sphere first
STARTS, NEWCOMERS = 8, 4  # for each restart that is asked for, where an evaluation is cheap
START_SECONDS, NEWCOMER_SECONDS, FINE_SECONDS = 2e-2, 5e-3, 30.0  # that bound them, and the steps of the fine anneal
ROUNDS = 7
SIEVE = (1, 1, 3, 6)  # of the starts one in so many goes on after the first, second, third, and each further τ
POOL = 8  # arrangements that go through the rounds
LAST = (POOL, POOL, 4, 2)  # arrangements that go on in the fine anneal
SMALL = 64  # up to so many points an anneal from HOT ends in the same few arrangements, and COLD ones find others
SECONDS = 3e-10  # that a pair costs, for each dimension and 24 more
SAME = 1e-6  # arrangements whose values differ by a smaller share of 1 − L_τ are one
NEWTON, NEWTON_LAST = 130, 400  # rows of a Hessian up to which Newton's method is faster: in rounds, and at the end
FIRST = 0.05  # no point moves farther in the first step
SETTLED = 1e-6  # a descent ends where a step promises less than this share of τ


@dataclass(frozen=True)
class Way:
    """How L_τ is lowered for one τ."""

    tau: float
    steps: int
    newton: bool = False  # by Newton's method, else by L-BFGS
    share: int = 1  # one arrangement in so many of those that the anneal began with goes on, but at least `POOL`


@dataclass(frozen=True)
class Plan:
    """What a stage does: lower L_τ for each τ in turn, of what it begins with or, in a round, of newcomers alone."""

    path: list[Way]
    keep: int  # arrangements that go on
    starts: int = 0  # newcomers of a round: new starts,
    copies: int = 0  # and changed copies of what the stage begins with
    spread: Way | None = None  # what new starts go through first
    doubtful: bool = True  # False: a round that is left out where all before it came to a single arrangement


def schedule(M: int, D: int, restarts: int, steps: int | None) -> list[Plan]:
    """All stages of a search; where evaluations are expensive, fewer starts and fewer steps.

    Args:
        M: points.
        D: dimension of the space, at least 3.
        restarts: how widely to search.
        steps: at most so many steps for each τ; None chooses.

    Returns:
        The stages in order.
    """
    h = _neighbour_distance(M, D) ** 2 / 2
    cost = M * M * (D + 24) * SECONDS  # of an evaluation, in seconds on one core
    n = max(2, round(restarts * min(STARTS, START_SECONDS / (16 * cost))))
    plans = [Plan([Way(max(SPREAD, HOT * h), steps or 20)], n)]
    plans += [Plan([way], max(POOL, n // way.share)) for way in _path(M, D, h, HOT, steps)]
    newcomers = round(restarts * min(NEWCOMERS, NEWCOMER_SECONDS / (16 * cost)))
    rounds = min(ROUNDS, 1 + M // 8) if newcomers >= 4 else 0
    plans += [_round(M, D, h, newcomers, number, steps) for number in range(rounds)]
    fine = _falling(COOL * h / FALL, FINEST)
    newton = M * (D - 1) <= NEWTON_LAST
    limit = 30 if newton else max(15, min(200, round(FINE_SECONDS / (len(fine) * cost))))
    last = [Way(tau, steps or limit, newton) for tau in fine]
    return plans + [Plan([way], LAST[min(place, 3)]) for place, way in enumerate(last)]


def _round(M: int, D: int, h: float, newcomers: int, number: int, steps: int | None) -> Plan:
    """A round: of few points from `COLD` and from `HOT` in turn; of many, mostly changed copies, from `WARM`.

    Returns:
        The stage.
    """
    if M <= SMALL:
        first, starts, copies = (COLD, HOT)[number % 2], newcomers // 2, newcomers - newcomers // 2
    elif number % 5 == 2:
        first, starts, copies = HOT, 3 * newcomers // 4, newcomers // 4
    else:
        first, starts, copies = WARM, 0, 3 * newcomers // 2
    path = _path(M, D, h, first, steps)
    spread = Way(max(SPREAD, path[0].tau), 5 if M <= SMALL else 20)
    return Plan(path, POOL, starts, copies, spread, doubtful=number == 0)


def _path(M: int, D: int, h: float, first: float, steps: int | None) -> list[Way]:
    """An anneal: few steps where τ decides who goes on, many where the survivors settle.

    Returns:
        The descents in order.
    """
    newton = M * (D - 1) <= NEWTON
    ways = []
    for place, tau in enumerate(_falling(first * h, COOL * h)):
        cool = tau < 0.7 * COLD * h and place > 1
        default = 40 if not cool else 30 if newton else 150
        ways.append(Way(tau, steps or default, cool and newton, SIEVE[min(place, 3)]))
    return ways


def _falling(high: float, low: float) -> list[float]:
    """Values of τ from the highest to the lowest, each about the same share of the one before.

    Returns:
        At least two values.
    """
    count = max(1, round(math.log(high / low) / math.log(FALL)))
    return [high * (low / high) ** (k / count) for k in range(count + 1)]


def _neighbour_distance(M: int, D: int) -> float:
    """About the smallest distance in the best code: an upper bound (U-Hop+, Proposition 3.1), at most √2.

    Returns:
        The distance.
    """
    log = math.log(2 * math.sqrt(math.pi) / M) + math.lgamma((D + 1) / 2) - math.lgamma(D / 2)
    return min(math.sqrt(2), 2 * math.exp(log / (D - 1)))


def anneal(Z: Tensor, path: list[Way], budget: int, halt: Halt) -> Tensor | None:
    """Lower L_τ for each τ of a path; copies of the same arrangement, and at each τ the worst, are left out.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        path: how to lower it.
        budget: bytes for a block of pairs.
        halt: asked before each step.

    Returns:
        Arrangements, the best first, or None where `halt` said stop.
    """
    count = len(Z)
    for way in path:
        lower = descend(Z, way, budget, halt)
        if lower is None:
            return None
        Z = best_of(lower, way.tau, max(POOL, count // way.share), budget)
    return Z


def descend(Z: Tensor, way: Way, budget: int, halt: Halt) -> Tensor | None:
    """Lower L_τ for one τ; near neighbours are listed anew when points come to the end of their reach.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        way: how to lower it.
        budget: bytes for a block of pairs.
        halt: asked before each step.

    Returns:
        Arrangements [R, M, D], or None where `halt` said stop.
    """
    tau, steps = way.tau, way.steps
    if way.newton:
        return settled(Z, tau, steps, budget, halt)
    while steps > 0:
        near = neighbours(Z, tau, budget)
        loss: Loss = partial(over_all_pairs, tau=tau, budget=budget) if near is None else partial(near, tau=tau)
        reach = math.inf if near is None else near.reach
        end = minimise(loss, Z, steps, first=min(FIRST, tau), least=SETTLED * tau, reach=reach, halt=halt)
        if end.halted:
            return None
        Z, steps = end.Z, 0 if end.settled else steps - max(1, end.steps)
    return Z


def best_of(Z: Tensor, tau: float, keep: int, budget: int) -> Tensor:
    """The best arrangements by L_τ, each of them once.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        tau: τ > 0.
        keep: at most so many are kept.
        budget: bytes for a block of pairs.

    Returns:
        Arrangements, the best first.
    """
    values, order = over_all_pairs(Z, tau, budget)[0].sort(stable=True)
    alike = SAME * float(1 - values[0])
    different = torch.cat([torch.ones_like(order[:1], dtype=torch.bool), values.diff() > alike])
    return Z[order[different][:keep]]
