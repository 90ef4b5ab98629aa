"""Evaluate: how often, and how exactly, a bank gives corrupted patterns back, beside other memories."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.errors import UsageError
from hopmem.model.baselines import BASELINES, squared_error
from hopmem.model.noise import Noise, canvas_of, parse_noise
from hopmem.model.uhop import RULER
from hopmem.model.whitening import require_room as require_room_to_learn
from hopmem.results import Evaluation, Row
from hopmem.verbs.trial import (
    BANK,
    METHODS,
    Contender,
    Trial,
    contenders,
    memories,
    part,
    require_room,
    same_patterns,
    stream,
)
from hopmem.verbs.work import Watch, stage

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, eq=False)
class _Score:
    """How one method answered some queries."""

    right: Tensor  # bool [b]
    error: Tensor  # float64 [b]
    shared: Tensor  # bool [b]: not a single pattern's


def evaluate(
    bank: MemoryBank,
    *,
    noise: Sequence[str] = ("mixed",),
    samples: int = 1000,
    methods: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    seed: int | None = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> Evaluation:
    """Put corrupted copies of stored patterns to a bank, and to other memories of the same patterns.

    The bank answers as `retrieve` does, with its own α and β. Softmax baselines have the β of their smallest error on
    other corruptions of the same kind. What is measured is the readout, before known entries of partial queries are put
    back; of pairs it is the patterns, not the values.

    Args:
        bank: any bank.
        noise: corruptions such as gaussian:0.5, as `parse_noise` reads them.
        samples: queries for each noise and size.
        methods: names of `BASELINES`, beside the bank itself; None takes all.
        sizes: numbers of patterns, drawn from the bank, each part of the next; None takes the whole bank.
        seed: of every draw; None takes the bank's.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.

    Returns:
        A row for each noise, size and method, in that order.
    """
    names = _each([noise] if isinstance(noise, str) else noise)
    methods, sizes = _each([BANK, *(BASELINES if methods is None else methods)]), _each(sizes or [len(bank)])
    _check(bank, names, methods, sizes, samples)
    noises = [parse_noise(name, images=bank.layout is not None) for name in names]
    require_room(bank)
    if any(BASELINES[method].learned for method in methods if method != BANK):
        require_room_to_learn(bank.rows(), RULER)
    where, seed = resolve(device), bank.seed if seed is None else seed
    canvas = canvas_of(bank.rows(where), bank.shape, bank.layout)
    order = torch.randperm(len(bank), generator=stream(seed, "sizes"))
    told = _Told(watch, len(noises) * len(sizes) * len(methods) * samples)
    rows: list[Row] = []
    for size in sizes:
        trial = Trial(part(bank, order[:size], where, budget, watch), canvas, seed, where, budget)
        looked_up = memories(trial, methods, watch)
        for each in noises:
            rows += _rows(trial, each, contenders(trial, each, methods, looked_up), samples, told)
    return Evaluation([row for name in names for row in rows if row.noise == name])


def _each(items: Sequence[ItemT]) -> list[ItemT]:
    """Leave out what was said before.

    Returns:
        Each item once, in order.
    """
    return list(dict.fromkeys(items))


def _check(bank: MemoryBank, noise: Sequence[str], methods: Sequence[str], sizes: Sequence[int], samples: int) -> None:
    """Options in their ranges.

    Raises:
        UsageError: one is not.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise UsageError(f"methods: expected some of {', '.join(METHODS)}, found {unknown[0]!r}")
    if wrong := [size for size in sizes if not 1 <= size <= len(bank)]:
        raise UsageError(f"sizes: expected numbers from 1 to {len(bank)}, the patterns of the bank, found {wrong[0]}")
    if samples < 1 or not noise:
        raise UsageError(f"expected at least one of each, found {samples} samples, {len(noise)} noises")


class _Told:
    """Counts queries for whoever watches."""

    def __init__(self, watch: Watch | None, total: int) -> None:
        self.progress, self.total, self.done = stage(watch, "evaluating"), total, 0

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


def _rows(trial: Trial, noise: Noise, ready: list[Contender], samples: int, told: _Told) -> list[Row]:
    """Put the same queries to every method.

    Returns:
        A row for each.
    """
    same, scores = same_patterns(trial.bank), [list[_Score]() for _ in ready]
    for rows, X in trial.queries(noise, samples, "measured"):
        for contender, own in zip(ready, scores, strict=True):
            own.append(_score(trial, same, rows, X, contender))
            told.add(len(rows))
    return [_row(trial, noise, contender, own) for contender, own in zip(ready, scores, strict=True)]


def _score(trial: Trial, same: Tensor, rows: Tensor, X: Tensor, contender: Contender) -> _Score:
    """Compare answers with what was corrupted.

    Returns:
        What came of each query.
    """
    found = contender.answer(X)
    clean = trial.bank.rows(found.readout.device)[rows]
    error = squared_error(found.readout, clean, trial.span)
    return _Score(same[found.index.cpu()] == same[rows], error.cpu(), found.support.cpu() != 1)


def _row(trial: Trial, noise: Noise, contender: Contender, scores: list[_Score]) -> Row:
    """Means and their standard errors.

    Returns:
        The row of one method.
    """
    right, error, shared = (torch.cat([getattr(score, name) for score in scores]) for name in _Score.__annotations__)
    accuracy, accuracy_se = _share(right)
    metastable, metastable_se = _share(shared)
    return Row(
        noise=noise.name,
        method=contender.method,
        size=len(trial.bank),
        accuracy=accuracy,
        accuracy_se=accuracy_se,
        error=float(error.mean()),
        error_se=float(error.std()) / math.sqrt(len(error)) if len(error) > 1 else math.nan,
        metastable=metastable,
        metastable_se=metastable_se,
        beta=contender.beta,
        samples=len(right),
    )


def _share(hits: Tensor) -> tuple[float, float]:
    """A share and its binomial standard error.

    Returns:
        Both.
    """
    p = int(hits.sum()) / len(hits)
    return p, math.sqrt(p * (1 - p) / len(hits))
