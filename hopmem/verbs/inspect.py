"""Inspect: how well separated a bank is, and what it can promise."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from hopmem.bank import SAME, MemoryBank
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.errors import UsageError
from hopmem.model import bounds
from hopmem.model.kernel import Features
from hopmem.model.separation import Separation, nearest, separation
from hopmem.model.spectrum import effective_rank, singular_values
from hopmem.results import (
    Appended,
    BoundsReport,
    ClosePair,
    Inspection,
    LearningReport,
    Placed,
    SelfTest,
    SeparationReport,
)
from hopmem.verbs.selftest import definition_3, own_patterns
from hopmem.verbs.work import Watch, pair_block, stage

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
WORST = 10  # patterns of smallest Δ that are named
MOST = 1.0  # Δ_min of more points than 2D, where right angles are no longer to be had
LARGEST_SIZE = 10  # metastable states of more memories are counted together


def inspect(
    bank: MemoryBank,
    *,
    closest: int = 10,
    error: float = 1e-3,
    alpha: float | None = None,
    beta: float | Literal["auto"] = "auto",
    seed: int | None = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> Inspection:
    """Measure the separation of a bank and evaluate the bounds on it, all in blocks.

    Args:
        bank: any bank.
        closest: how many of the closest pairs to name.
        error: ε, the wanted error in feature space.
        alpha: of Theorem 2 and the self-test; None takes the bank's.
        beta: at which the bounds are evaluated; auto takes the bank's.
        seed: draws the patterns of the self-test; None takes the bank's.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.

    Returns:
        The statistics.

    Raises:
        UsageError: an option out of its range.
    """
    if closest < 0 or not 0 < error < math.inf:
        raise UsageError(f"expected closest ≥ 0 and error > 0, found {closest} and {error}")
    where = resolve(device)
    block = pair_block(max(bank.dimension, bank.feature_dimension), budget)
    sides = {"raw": bank.raw_memory(where)} | ({} if bank.phi.is_identity else {"learned": bank.memory(where)})
    wanted = max(closest, 1)
    found = {
        name: separation(Z, closest=wanted, block=block, progress=stage(watch, f"measuring {name}"))
        for name, Z in sides.items()
    }
    in_force = found.get("learned", found["raw"])
    trial = own_patterns(bank, alpha, beta, bank.seed if seed is None else seed, device, budget, watch)
    reports = {
        name: _report(found[name], Z, bank.names, trial.alpha, trial.beta, budget, watch) for name, Z in sides.items()
    }
    promised = {
        name: _bounds(Z, found[name], trial.alpha, trial.beta, error, budget, watch) for name, Z in sides.items()
    }
    return Inspection(
        patterns=len(bank),
        dimension=bank.dimension,
        shape=list(bank.shape),
        feature_dimension=bank.feature_dimension,
        objective=bank.objective,
        separation={"raw": reports["raw"], "learned": reports.get("learned")},
        bounds=promised.get("learned", promised["raw"]),
        closest_pairs=[
            ClosePair(bank.names[a], bank.names[b], cosine)
            for (a, b), cosine in zip(in_force.pairs.tolist(), in_force.cosines.tolist(), strict=True)
        ][:closest],
        duplicates=[[bank.names[row] for row in group] for group in bank.duplicates],
        metastable=_histogram(trial.support),
        learning=_learning(bank),
        stored=definition_3(bank, in_force.radius, trial, device, budget, watch),
        self_test=SelfTest(trial.noise, len(trial.support), float(trial.right.double().mean())),
        appended=_appended(bank, in_force.delta),
        alpha=trial.alpha,
        beta=trial.beta,
        raw_bounds=promised["raw"] if "learned" in promised else None,
    )


def _appended(bank: MemoryBank, delta: Tensor) -> Appended | None:
    """What patterns that came after the learning did to the map.

    Returns:
        The report; None where there are none, or nobody knows.
    """
    how = bank.learning
    if how is None or not 0 < how.patterns < len(bank):
        return None
    before = 1 - how.separation["learned"]["max_cosine"]
    closer = int((delta[how.patterns :] < before).sum())
    return Appended(how.patterns, len(bank) - how.patterns, before, float(delta.min()), closer)


def _learning(bank: MemoryBank) -> LearningReport | None:
    """What the bank remembers of the learning.

    Returns:
        The report; None in a raw bank.
    """
    how = bank.learning
    if how is None:
        return None
    return LearningReport(how.steps, how.temperature, how.batch_size, bank.seed, how.loss)


def _report(
    measured: Separation,
    Z: Features,
    names: Sequence[str],
    alpha: float,
    beta: float,
    budget: int,
    watch: Watch | None,
) -> SeparationReport:
    """Summarise Δ.

    Returns:
        The summary; all None for a single pattern.
    """
    if len(measured.delta) < 2:
        return SeparationReport(None, None, None, None, None, None)
    delta, order = measured.delta.sort(stable=True)
    # torch.quantile takes at most 2²⁴ entries; the order statistics do as well.
    places = [round(q * (len(delta) - 1)) for q in QUANTILES]
    sigma = singular_values(Z, budget, stage(watch, "decomposing"))
    worst, fixed = order[:WORST], bounds.exact(delta[:WORST], alpha, beta)
    return SeparationReport(
        min=float(delta[0]),
        mean=float(delta.mean()),
        quantiles={f"{q:g}": float(delta[place]) for q, place in zip(QUANTILES, places, strict=True)},
        max_cosine=measured.max_cosine,
        min_angle_degrees=measured.min_angle_degrees,
        radius=measured.radius,
        effective_rank=None if sigma is None else effective_rank(sigma),
        worst=[
            Placed(names[row], value, names[near], is_fixed)
            for row, value, near, is_fixed in zip(
                worst.tolist(), delta[:WORST].tolist(), nearest(Z, worst).tolist(), fixed.tolist(), strict=True
            )
        ],
    )


def _bounds(
    Z: Features, measured: Separation, alpha: float, beta: float, error: float, budget: int, watch: Watch | None
) -> BoundsReport:
    """Evaluate every bound.

    Returns:
        The report.
    """
    M, D = len(Z), Z.dimension
    lower, upper = bounds.spherical_code_bounds(M, D)
    asked = bounds.delta_for_exact(alpha, beta)
    enough = asked if math.isfinite(asked) else None
    if M < 2:
        alone = BoundsReport(None, None, None, None, None, bounds.FARTHEST, float(alpha > 1))
        return replace(alone, delta_for_exact=enough)
    delta_min, block = 1 - measured.max_cosine, pair_block(D, budget)
    published = bounds.lemma1_error(delta_min, measured.radius, M, beta)
    optimum = bounds.best_separation(M, D)
    least = min(bound for bound in (upper, 1 + 1 / (M - 1), MOST) if math.isfinite(bound))
    most = least if optimum is None else optimum
    return BoundsReport(
        lower=lower if math.isfinite(lower) else None,
        upper=upper if math.isfinite(upper) else None,
        lemma1_error=published if math.isfinite(published) else None,
        error=bounds.sharp_error(Z, measured.delta, beta, measured.radius / 2, block, stage(watch, "bounding")),
        beta_for_error=bounds.beta_for_error(delta_min, M, error) if delta_min > SAME else None,
        guaranteed_radius=bounds.guaranteed_radius(
            Z, measured.delta, beta, error, block, stage(watch, "bounding radius")
        ),
        exact_fraction=bounds.exact_fraction(measured.delta, alpha, beta),
        optimum=optimum,
        reached=delta_min / most if most > 0 else 1.0,
        delta_for_exact=enough,
    )


def _histogram(support: Tensor) -> dict[str, int]:
    """Count the sizes of metastable states.

    Returns:
        Counts by size: 0 to 10, and more.
    """
    counts = support.clamp_max(LARGEST_SIZE + 1).bincount(minlength=LARGEST_SIZE + 2).tolist()
    return {str(size): count for size, count in enumerate(counts[:-1])} | {"more": counts[-1]}
