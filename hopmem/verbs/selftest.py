"""What a bank makes of its own patterns: put to it under the noise it was learned for, and run from their spheres."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.devices import resolve
from hopmem.errors import UsageError
from hopmem.model.hopfield import Dynamics
from hopmem.model.kernel import Features
from hopmem.model.noise import Noise, canvas_of, parse_noise
from hopmem.model.rows import blocks, small_blocks
from hopmem.model.separation import nearest_delta
from hopmem.model.stored import STARTS, stored
from hopmem.results import StoredReport
from hopmem.scratch import empty, gathered, joined
from hopmem.verbs.retrieve import Answer, retrieve
from hopmem.verbs.trial import Trial, require_room, same_patterns
from hopmem.verbs.work import Watch, pair_block, stage

QUERIES = 1000  # patterns, or corrupted copies, that are put to the bank
RUN = 1000  # patterns that are run from their spheres, at most,
PRODUCTS = 4e10  # and products of entries that one step of all runs may take
STEPS = 100  # after which a run is given up
NAMED = 10  # of the patterns that are not stored
BYTES_OF_ENTRY = 32  # of a query and its answer, with copies


@dataclass(frozen=True, eq=False)
class OwnPatterns:
    """How the bank answered queries made of its own patterns."""

    noise: list[str]  # that they suffered; none: they were put as they are
    support: Tensor  # [B] memories that share the answer
    right: Tensor  # [B] bool: the largest weight was on the pattern itself, or on a copy of it
    alpha: float
    beta: float
    seed: int


def own_patterns(
    bank: MemoryBank,
    alpha: float | None,
    beta: float | Literal["auto"],
    seed: int,
    device: str,
    budget: int,
    watch: Watch | None,
) -> OwnPatterns:
    """Put stored patterns to the bank as queries, corrupted as its map was learned for.

    Args:
        bank: any bank.
        alpha: α; None takes the bank's.
        beta: β; auto takes the bank's.
        seed: draws patterns and noise.
        device: where to compute.
        budget: bytes of working memory.
        watch: told how far it is.

    Returns:
        The answers to at most a thousand queries.
    """
    noises = _noises(bank)
    rows, X = _asked(bank, noises, seed, budget)
    fitting = max(1, budget // (BYTES_OF_ENTRY * bank.dimension))
    found = [
        _weighed(retrieve(bank, X[part], alpha=alpha, beta=beta, device=device, budget=budget, watch=watch))
        for part in blocks(len(X), fitting)
    ]
    index, support = (torch.cat(side) for side in zip(*((each.index, each.support) for each in found), strict=True))
    same = same_patterns(bank)
    right = same[index.cpu()] == same[rows]
    return OwnPatterns([noise.name for noise in noises], support, right, found[0].alpha, found[0].beta, seed)


def _asked(bank: MemoryBank, noises: list[Noise], seed: int, budget: int) -> tuple[Tensor, Tensor]:
    """Stored patterns as queries.

    Returns:
        Rows of the bank [B], and copies of them, corrupted where there is noise [B, d].
    """
    if not noises:
        rows = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))[:QUERIES]
        plain = empty(len(rows), bank.dimension)
        for part in small_blocks(*plain.shape):
            plain[part] = bank.rows()[rows[part]]
        return rows, plain
    require_room(bank)
    canvas = canvas_of(bank.rows(), bank.shape, bank.layout)
    trial = Trial(bank, canvas, seed, torch.device("cpu"), budget)
    each = max(1, min(QUERIES, len(bank)) // len(noises))
    asked = [(rows, joined([X])) for noise in noises for rows, X in trial.queries(noise, each, "self-test")]
    return torch.cat([rows for rows, _ in asked]), joined([X for _, X in asked])


def _weighed(answer: Answer) -> Answer:
    """An answer without its readout.

    Returns:
        What its weights say.
    """
    return replace(answer, patterns=answer.patterns.new_empty(0))  # a part of it would keep it all


def definition_3(
    bank: MemoryBank, radius: float, trial: OwnPatterns, device: str, budget: int, watch: Watch | None
) -> StoredReport | None:
    """Run patterns from their spheres.

    Args:
        bank: any bank.
        radius: R_Φ.
        trial: α, β and the seed.
        device: where to compute.
        budget: bytes of working memory.
        watch: told how far it is.

    Returns:
        The report; None of a single pattern, whose sphere has no radius.
    """
    if bank.duplicates:  # copies are one pattern: half the distance between them is no radius
        radius = _radius_of_distinct(bank, device, budget)
    if not math.isfinite(radius):
        return None
    cost = STARTS * len(bank) * bank.feature_dimension
    draws = torch.Generator().manual_seed(trial.seed)
    chosen = torch.randperm(len(bank), generator=draws)[: max(1, min(RUN, int(PRODUCTS / cost)))].sort().values
    dynamics = Dynamics(trial.alpha, trial.beta, steps=STEPS, budget=budget)
    memory = bank.memory(resolve(device))
    held = stored(memory, chosen, radius, dynamics, draws, stage(watch, "running from the spheres"))
    lost = [bank.names[row] for row in chosen[~held][:NAMED].tolist()]
    return StoredReport(len(chosen), float(held.double().mean()), lost)


def _radius_of_distinct(bank: MemoryBank, device: str, budget: int) -> float:
    """R_Φ of the patterns, each once.

    Returns:
        Half of the smallest distance; not finite where there is only one.
    """
    memory, once = bank.memory(resolve(device)), bank.distinct
    if len(once) < 2:
        return math.nan
    patterns = replace(memory.patterns, stored=gathered(memory.patterns.stored, once))
    apart = Features(patterns, memory.phi, None if memory.stored is None else gathered(memory.stored, once))
    delta = nearest_delta(apart, None, pair_block(memory.dimension, budget))
    return math.sqrt(2 * max(0.0, float(delta.min()))) / 2


def _noises(bank: MemoryBank) -> list[Noise]:
    """The noise that the bank was learned for.

    Returns:
        Noises; none where it was learned for none, or from real pairs.
    """
    if bank.learning is None:
        return []
    try:
        return [parse_noise(name, images=bank.layout is not None) for name in bank.learning.noise]
    except UsageError:
        return []
