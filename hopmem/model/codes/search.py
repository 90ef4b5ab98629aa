"""The best spherical code: M free points in R^D whose largest cosine is smallest.

Where M memories are independent, a feature map reaches any arrangement of their features, and what is left of
U-Hop+'s objective (arXiv 2410.23126) is the search for a spherical code. Where theory knows the best one it is
written down. Elsewhere L_τ, the smooth maximum of the cosines, is minimised from many starts while τ falls, in three
parts: an anneal of all starts, of which the better half goes on now and then; rounds, in which new starts and changed
copies of the best are annealed in turn and the best of all stay, until several in turn brought no better one; and a
fine anneal of the last few.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.model.codes.anneal import Halt, Plan, anneal, best_of, descend, schedule
from hopmem.model.codes.arrangements import changed, exact, kissing, random
from hopmem.model.codes.smoothmax import largest_cosine
from hopmem.model.codes.symmetry import symmetric
from hopmem.model.separation import LossProgress

PATIENCE = 4  # rounds in turn without a better arrangement after which there are no more
BETTER = 1e-6  # by at least this share of 1 − the largest cosine


@dataclass(frozen=True)
class Stage:
    """What a search is resumed from: the state at the beginning of a stage."""

    points: Tensor  # [R, M, D] float64
    number: int  # stages done
    idle: int = 0  # rounds in turn that brought no better arrangement


@dataclass(frozen=True)
class Code:
    """What a search found."""

    points: Tensor  # [M, D] float64, unit rows: the best arrangement
    curve: list[float]  # the largest cosine after each stage that was done
    stages: int  # stages done, those before a resumption included
    finished: bool  # False where `halt` stopped it
    stage: Stage  # from which an interrupted search goes on


def best_code(
    count: int,
    dimension: int,
    *,
    restarts: int = 16,
    seed: int = 0,
    steps: int | None = None,
    budget: int = 256 << 20,
    device: torch.device | str = "cpu",
    progress: LossProgress | None = None,
    halt: Halt = lambda: False,
    start: Stage | None = None,
    keep: Callable[[Stage, list[float]], None] | None = None,
) -> Code:
    """Search for the best arrangement of points on the sphere.

    Args:
        count: M ≥ 1 points.
        dimension: D ≥ 1.
        restarts: how widely to search; time grows with it. Where evaluations are expensive, fewer starts are drawn.
        seed: draws the starts and the changes.
        steps: at most this many steps of L-BFGS at each τ; None chooses.
        budget: bytes for the pairs of a block.
        device: where to compute.
        progress: told after each stage how many are done, the largest cosine so far, and the separation.
        halt: asked before each step; where it says stop, the stage is given up.
        start: where an interrupted search with the same arguments goes on; it ends as if it had not been interrupted.
        keep: told after each stage where the search stands, and the curve from the start on.

    Returns:
        The best arrangement that was found.

    >>> round(best_code(4, 3).curve[-1], 6)
    -0.333333
    """
    known = exact(count, dimension)
    if known is not None:
        return _written_down(known.to(device), budget, progress)
    plans = schedule(count, dimension, restarts, steps)
    stage = start or Stage(_starts(count, dimension, plans[0].keep, torch.Generator().manual_seed(seed % 2**63)), 0)
    stage = replace(stage, points=stage.points.to(device))
    curve: list[float] = []
    for plan in plans[stage.number :]:
        following = _carry_out(plan, stage, seed, budget, halt)
        if following is None:
            break
        stage = following
        curve.append(float(largest_cosine(stage.points, budget).min()))
        if progress:
            progress(stage.number, len(plans), curve[-1], 1 - curve[-1])
        if keep:
            keep(stage, curve)
    best = int(largest_cosine(stage.points, budget).argmin())
    return Code(stage.points[best], curve, stage.number, stage.number == len(plans), stage)


def _written_down(Z: Tensor, budget: int, progress: LossProgress | None) -> Code:
    """A code that needs no search.

    Returns:
        The code, after its only stage.
    """
    top = float(largest_cosine(Z[None], budget)) if len(Z) > 1 else -1.0
    if progress:
        progress(1, 1, top, 1 - top)
    return Code(Z, [top], 1, finished=True, stage=Stage(Z[None], 1))


def _starts(M: int, D: int, R: int, generator: torch.Generator) -> Tensor:
    """Random and symmetric starts, and, where one is known, a kissing arrangement now and then.

    Returns:
        Arrangements [R, M, D].
    """
    kinds = 3 * [random, symmetric, symmetric] + [random, symmetric, kissing if D <= 8 else symmetric]
    return torch.stack([kinds[number % len(kinds)](M, D, generator) for number in range(R)])


def _carry_out(plan: Plan, stage: Stage, seed: int, budget: int, halt: Halt) -> Stage | None:
    """One stage.

    Returns:
        What the next begins with, or None where `halt` said stop.
    """
    old, tau, number = stage.points, plan.path[-1].tau, stage.number + 1
    if plan.copies == 0:
        lower = descend(old, plan.path[0], budget, halt)
        return None if lower is None else replace(stage, points=best_of(lower, tau, plan.keep, budget), number=number)
    if (len(old) == 1 and not plan.doubtful) or stage.idle >= PATIENCE:
        return replace(stage, number=number)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stage.number) % 2**63)
    newcomers = _newcomers(old, plan, generator, budget, halt)
    lower = None if newcomers is None else anneal(newcomers, plan.path, budget, halt)
    if lower is None:
        return None
    before, after = (float(largest_cosine(Z, budget).min()) for Z in (old, lower))
    idle = 0 if before - after > BETTER * (1 - before) else stage.idle + 1
    return Stage(best_of(torch.cat([old, lower]), tau, plan.keep, budget), number, idle)


def _newcomers(old: Tensor, plan: Plan, generator: torch.Generator, budget: int, halt: Halt) -> Tensor | None:
    """New starts, spread over the sphere, and changed copies of some of the best so far.

    Returns:
        Arrangements [R, M, D], or None where `halt` said stop.
    """
    parents = torch.randint(len(old), (plan.copies, 2), generator=generator).amin(1).tolist()  # the better of two
    copies = torch.stack([changed(old[parent], generator) for parent in parents])
    if plan.starts == 0 or plan.spread is None:
        return copies
    _, M, D = old.shape
    spread = descend(_starts(M, D, plan.starts, generator).to(old.device), plan.spread, budget, halt)
    return None if spread is None else torch.cat([spread, copies])
