"""Optimize: bank → feature map → bank."""

from dataclasses import asdict, replace

import torch
from torch import Tensor

from hopmem import shards
from hopmem.bank import MemoryBank
from hopmem.devices import memory_errors, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.lock import writing
from hopmem.patterns import UNPACK_LIMIT, Loaded, Reading, load
from hopmem.pipeline.checkpoint import checkpoint_of, interruptible
from hopmem.pipeline.company import divided
from hopmem.pipeline.inspect import remember
from hopmem.pipeline.outcome import Machine, Outcome
from hopmem.pipeline.store import fitting
from hopmem.results import OptimizeResult
from hopmem.verbs.denoise import Stopped
from hopmem.verbs.optimize import Task, learn, until
from hopmem.verbs.work import Course


def optimize(
    bank_path: str,
    output: str | None,
    task: Task,
    machine: Machine,
    *,
    noise_from: str | None = None,
    clean_from: str | None = None,
    unpack_limit: int = UNPACK_LIMIT,
    time_limit: float | None = None,
    resume: bool = False,
    given: frozenset[str] = frozenset(),
    follow: bool = False,
) -> Outcome[OptimizeResult]:
    """Learn the feature map of a bank and rewrite the bank with it.

    Args:
        bank_path: the bank.
        output: where the bank with the map goes; None replaces the bank.
        task: what is to be learned.
        machine: what the work runs on.
        noise_from: a source of corrupted rows, instead of a noise model.
        clean_from: the source of the clean rows that belong to them, by name or row by row.
        unpack_limit: bytes that each of them may unpack to.
        time_limit: seconds after which the best so far is taken.
        resume: go on with an interrupted run.
        given: the options of the task that were asked for: an interrupted run must have had them, too.
        follow: look at the largest cosine as it falls, which takes a little time.

    Returns:
        What was learned.
    """
    target = shards.base(output or bank_path)
    if output is not None and machine.cluster is None:
        shards.refuse_overwrite(target, force=task.force or resume)
    device, course = str(resolve(machine.device)), Course(machine.watch)
    with (
        memory_errors(),
        writing(target),
        interruptible() as interrupted,
        divided(bank_path, machine) as bank,
    ):
        pairs, notes = _pairs(noise_from, clean_from, bank, unpack_limit)
        seed = bank.seed if machine.seed is None else machine.seed
        checkpoint = checkpoint_of(target, bank, task, pairs, seed)
        # A run that torchrun has started again is not told so on every host: a checkpoint of this very run counts.
        resume = resume or (machine.cluster is not None and checkpoint.is_there())
        if output is not None:
            shards.refuse_overwrite(target, force=task.force or resume or machine.again)
        machine.begin()
        checkpoint = checkpoint.resumed(given, machine.seed) if resume else checkpoint
        found = learn(
            bank,
            replace(checkpoint.task, pairs=pairs),
            checkpoint.seed,
            device,
            machine.budget,
            course if follow else machine.watch,
            until(time_limit, lambda: bool(interrupted())),
            checkpoint.state,
            checkpoint.keeping(),
        )
        found.bank.save(target, beside=remember(found.bank, machine), force=True)
        checkpoint.left(found.state, finished=found.finished)
    warnings = [*notes, *found.warnings, *_unfinished(found, interrupted())]
    curve = found.learning.curve
    cosines = list(zip(course.steps, course.cosines, strict=True))
    stopped = 0 if found.finished else interrupted()
    return Outcome(_result(found), device, warnings, curve=curve, cosines=cosines, interrupted=stopped)


def _result(found: Stopped) -> OptimizeResult:
    """What a report says of it.

    Returns:
        The result.
    """
    how = found.learning
    return OptimizeResult(
        found.objective,
        found.bank.feature_dimension,
        how.steps,
        how.loss,
        how.separation,
        [asdict(row) for row in how.validation],
        found.kept,
        how.method,
    )


def _unfinished(found: Stopped, interrupted: int) -> list[str]:
    if found.finished:
        return []
    why = "interrupted" if interrupted else "the time limit is reached"
    return [f"{why}: the best map so far is taken; --resume goes on from here"]


def _pairs(
    noisy: str | None, clean: str | None, bank: MemoryBank, limit: int
) -> tuple[tuple[Tensor, Tensor] | None, list[str]]:
    """Read pairs of corrupted and clean rows.

    Returns:
        Both, row by row, in the units of the patterns, and what has to be said of that; None where none are given.

    Raises:
        UsageError: one source without the other.
        InvalidDataError: sources that do not pair.
    """
    if noisy is None and clean is None:
        return None, []
    if noisy is None or clean is None:
        lacking = "--noise-from" if noisy is None else "--clean-from"
        raise UsageError(f"expected --noise-from and --clean-from together, found no {lacking}")
    reading = fitting(Reading(partial=True, unpack_limit=limit), bank)
    left, right = load([noisy], reading), load([clean], replace(reading, partial=False))
    for source, loaded in ((noisy, left), (clean, right)):
        if loaded.stored.shape[1] != bank.dimension:
            expected = f"rows of {bank.dimension} entries, shape {list(bank.shape)}, as in the bank"
            raise InvalidDataError(source, expected, f"shape {list(loaded.shape)}")
    order, notes = _partners(left, right, noisy, clean)
    return (_rows(left, bank), _rows(right, bank)[order]), notes


def _partners(left: Loaded, right: Loaded, noisy: str, clean: str) -> tuple[Tensor, list[str]]:
    """Which clean row belongs to each corrupted one: that of its name where both sides have names, else its number.

    Returns:
        int64 [n], and a warning where names were of no use.

    Raises:
        InvalidDataError: a row without a partner.
    """
    if left.names and right.names and len(set(right.names)) == len(right.names):
        place = {name: row for row, name in enumerate(right.names)}
        alone = [name for name in left.names if name not in place]
        if not alone:
            return torch.tensor([place[name] for name in left.names]), []
        if len(alone) < len(left.names):
            raise InvalidDataError(clean, f"a partner for each of {noisy} by name", f"none for {alone[0]}")
    if len(left.stored) != len(right.stored):
        raise InvalidDataError(clean, f"{len(left.stored)} rows as in {noisy}, row by row", len(right.stored))
    ordered = f"{noisy} and {clean} have no names in common: their rows are paired in order"
    return torch.arange(len(left.stored)), [ordered] if left.names and right.names else []


def _rows(loaded: Loaded, bank: MemoryBank) -> Tensor:
    """Rows in the units and the layout of the patterns.

    Returns:
        float32 [n, d], NaN where an entry is unknown.
    """
    turned = loaded.in_layout(bank.layout)
    rows = turned.stored.float() * turned.scale
    return rows if turned.known is None else rows.masked_fill(~turned.known, torch.nan)
