"""A bank of one size, the corruptions that it is tried with, and the methods that answer them."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.bank import VALIDATED, MemoryBank
from hopmem.model.baselines import BASELINES, Found, recall
from hopmem.model.kernel import Features
from hopmem.model.noise import Canvas, Noise
from hopmem.model.rows import blocks
from hopmem.model.temperature import best_beta
from hopmem.model.uhop import Training, learn_average
from hopmem.pages import require
from hopmem.scratch import gathered
from hopmem.verbs.retrieve import retrieve
from hopmem.verbs.work import Watch, loss_stage, pair_block, stage

BANK = "bank"  # the bank's own map
METHODS = (BANK, *BASELINES)
CHUNK = 256  # queries that are corrupted at a time; another number would make other draws
BYTES_OF_ENTRY = 48  # of a query of them: its pattern, what comes back by each method, in float64 too, and copies
TUNING = 200  # queries by which baselines get their β, none of them measured


@dataclass(frozen=True, eq=False)
class Trial:
    """A bank of one size, and what its patterns are corrupted with."""

    bank: MemoryBank
    canvas: Canvas
    seed: int
    device: torch.device
    budget: int

    @property
    def span(self) -> tuple[float, float] | None:
        """What readouts are clamped to: the values of images."""
        return None if self.bank.layout is None else (self.canvas.low, self.canvas.high)

    def queries(self, noise: Noise, count: int, purpose: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Corrupt stored patterns, each as often as another; drawn alike on every device, and anew for every purpose.

        Yields:
            Rows of the bank, and their corrupted copies [b, d], on the CPU.
        """
        draws = stream(self.seed, purpose, noise.name, len(self.bank))
        drawn = _even_rows(len(self.bank), count, draws)
        for rows in (drawn[block] for block in blocks(count, CHUNK)):
            yield rows, noise(self.bank.rows()[rows], self.canvas, draws)


@dataclass(frozen=True, eq=False)
class Contender:
    """A method that is ready to answer."""

    method: str
    beta: float | None  # None where it has none
    answer: Callable[[Tensor], Found]  # queries [b, d] on the CPU, NaN where unknown


def require_room(bank: MemoryBank) -> None:
    """Refuse to corrupt patterns for which a memory limit leaves no room.

    Args:
        bank: any bank.

    Raises:
        DeviceError: the limit is too low.
    """
    needed = BYTES_OF_ENTRY * min(CHUNK, len(bank)) * max(bank.dimension, bank.feature_dimension)
    require(needed, f"to corrupt patterns of {bank.dimension} entries")


def same_patterns(bank: MemoryBank) -> Tensor:
    """Which pattern each row holds, so that copies are one.

    Args:
        bank: any bank.

    Returns:
        int64 [M].
    """
    same = torch.arange(len(bank))
    for group in bank.duplicates:
        same[group] = group[0]
    return same


def stream(seed: int, *purpose: object) -> torch.Generator:
    """Random numbers that one seed and one purpose share with no other.

    Returns:
        A generator on the CPU.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def part(bank: MemoryBank, rows: Tensor, device: torch.device, budget: int, watch: Watch | None) -> MemoryBank:
    """Some patterns of a bank under its map, as a bank that reads out patterns.

    Args:
        bank: of pairs or of patterns.
        rows: some of its rows, or all.
        device: where to measure the separation.
        budget: bytes of working memory for a block.
        watch: told how far it is.

    Returns:
        The bank, with the β that its own separation asks for; with that of the whole where validation chose it.
    """
    if len(rows) < len(bank):
        rows, chosen = rows.sort().values, bank.tuning is not None and bank.tuning.source == VALIDATED
        bank = replace(
            bank,
            patterns=gathered(bank.patterns, rows),
            names=tuple(bank.names[row] for row in rows.tolist()),
            features=None if bank.features is None else gathered(bank.features, rows),
            tuning=bank.tuning if chosen else None,
        )
    # As values, patterns are read out whole: what a query knows is not put back over the answer.
    bank = replace(
        bank,
        values=bank.patterns,
        values_shape=bank.shape,
        values_scale=bank.scale,
        values_layout=bank.layout,
    )
    block = pair_block(max(bank.dimension, bank.feature_dimension), budget)
    return bank.tuned(device, block, stage(watch, "measuring"))


def memories(trial: Trial, methods: Sequence[str], watch: Watch | None) -> dict[str, Features]:
    """What baselines look up: the patterns, with learned features for those that have some.

    Returns:
        By method.
    """
    raw = trial.bank.raw_memory(trial.device).held(trial.budget)
    return {
        method: _learned(trial, watch).held(trial.budget) if BASELINES[method].learned else raw
        for method in methods
        if method != BANK
    }


def contenders(trial: Trial, noise: Noise, methods: Sequence[str], looked_up: dict[str, Features]) -> list[Contender]:
    """Make methods ready: a baseline gets the β at which it errs least on queries that are not measured.

    Returns:
        One for each method.
    """
    rows, corrupted = zip(*trial.queries(noise, TUNING, "tuning"), strict=True)
    X, clean = torch.cat(corrupted).to(trial.device), trial.bank.rows(trial.device)[torch.cat(rows)]
    ready = []
    for method in methods:
        if method == BANK:
            ready.append(_of_the_bank(trial))
            continue
        baseline, memory = BASELINES[method], looked_up[method]
        beta = best_beta(baseline, X, clean, memory, trial.span, trial.budget).beta
        ready.append(_of_a_baseline(method, beta, memory, trial))
    return ready


def _of_the_bank(trial: Trial) -> Contender:
    """The bank as `hopmem.retrieve` asks it.

    Returns:
        The contender.
    """
    tuning = trial.bank.tuning
    assert tuning is not None  # `part` has measured it

    def answer(X: Tensor) -> Found:
        found = retrieve(trial.bank, X, device=str(trial.device), budget=trial.budget)
        return Found(found.index, found.patterns, found.support)

    return Contender(BANK, tuning.beta, answer)


def _of_a_baseline(method: str, beta: float, memory: Features, trial: Trial) -> Contender:
    """A baseline at its β.

    Returns:
        The contender.
    """
    baseline = BASELINES[method]

    def answer(X: Tensor) -> Found:
        return recall(baseline, beta, X.to(trial.device), memory, trial.budget)

    return Contender(method, beta if baseline.beta is None else None, answer)


def _learned(trial: Trial, watch: Watch | None) -> Features:
    """Stage I of U-Hop on the patterns of the trial.

    Returns:
        Their features; the raw ones where there is nothing to set apart.
    """
    patterns, distinct = trial.bank.rows(trial.device), trial.bank.distinct
    if len(distinct) < 2:
        return Features(patterns)
    once = replace(patterns, stored=gathered(patterns.stored, distinct)) if len(distinct) < len(patterns) else patterns
    training = Training(seed=trial.seed, budget=trial.budget)
    return Features(patterns, learn_average(once, training, loss_stage(watch, "learning")).phi)


def _even_rows(size: int, count: int, draws: torch.Generator) -> Tensor:
    """Draw rows, none twice before each was drawn once, and so on.

    Returns:
        int64 [count].
    """
    whole, rest = divmod(count, size)
    rows = torch.cat([torch.arange(size).repeat(whole), torch.randperm(size, generator=draws)[:rest]])
    return rows[torch.randperm(count, generator=draws)]
