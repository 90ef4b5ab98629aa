"""Retrieve: queries → patterns → answers, back in the kind of the queries."""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from hopmem import shards, verbs
from hopmem.atomic import refuse_itself
from hopmem.bank import MemoryBank
from hopmem.devices import Room, memory_errors, resolve
from hopmem.errors import INTERRUPTED, TERMINATED, Terminated, UsageError
from hopmem.pages import require
from hopmem.patterns import Loaded, Reading, Target, writing
from hopmem.pipeline.asked import read_queries, rows_of
from hopmem.pipeline.company import Split, company, opened
from hopmem.pipeline.given import as_asked, target_of
from hopmem.pipeline.kept import Kept, interrupted, keeping, run_of
from hopmem.pipeline.outcome import RUNTIME, Machine, Outcome
from hopmem.pipeline.tally import Emit, Tally
from hopmem.results import Estimate, RetrieveResult
from hopmem.verbs.retrieve import RETRIEVING
from hopmem.verbs.work import Watch, pair_block, stage

SAMPLED = 256  # queries by which a dry run judges all
STEADY = 1 << 39  # products of entries that a block of queries takes: seconds, which is what an interruption loses
BYTES_OF_MATCH, BYTES_OF_TOP = 1200, 600  # of an answer that is reported, and of each of its next best memories
FEWEST = 1024  # queries in a block all the same: each reads the bank once
BYTES_PER_ENTRY = 32  # of a query: as read, as float32, its answer, and copies of them
BYTES_OF_ONE = 128  # of an entry where a single query and a single memory are at work: both in float64, and copies


def retrieve(
    bank_path: str,
    queries: Sequence[str],
    output: str | None,
    reading: Reading,
    machine: Machine,
    *,
    mask: str | None = None,
    missing: float | None = None,
    pictures: bool = False,
    force: bool = False,
    resume: bool = False,
    emit: Emit | None = None,
    most: int | None = None,
    dry_run: bool = False,
    split: Split = "auto",
    **options: Any,
) -> Outcome[RetrieveResult]:
    """Retrieve a stored pattern for each query, and write the answers in the kind of the queries.

    Queries go through in blocks that fit the budget: each is read, answered and written before the next. What was
    answered when a run is interrupted lies beside the output until another run goes on with it, or begins anew.

    Args:
        bank_path: the bank.
        queries: files and folders; `-` is standard input.
        output: where the answers go; None writes none.
        reading: how queries are read.
        machine: what the work runs on.
        mask: a source that is not zero where an entry is unknown: one row for all queries, or one for each.
        missing: a value, in the units of the file, that marks an unknown entry.
        pictures: whether to keep what a contact sheet shows.
        force: whether outputs may be replaced.
        resume: go on with the interrupted run, if there is one.
        emit: told the answers of each block.
        most: answers that are kept, the first; None keeps all.
        dry_run: answer a few queries, say what all would take, and write nothing.
        split: what several processes divide among them.
        **options: of `verbs.retrieve`.

    Returns:
        What came back.

    Raises:
        KeyboardInterrupt: before anything was answered.
        UsageError: pictures of rows that are no images, or nothing written that a run could go on with.
    """
    if resume and output in {None, "-"}:
        raise UsageError("--resume: expected -o OUT, a file or a folder, found none")
    if output is not None:
        _refuse_the_bank(output, bank_path)
    found = opened(bank_path, machine)
    bank = found.bank
    if pictures and (bank.layout is None or bank.values is not None):
        raise UsageError("--plot: expected a bank of images that returns its patterns, found rows of numbers or values")
    device, stopped = str(resolve(machine.device)), 0
    with memory_errors():
        width = max(bank.dimension, bank.feature_dimension, bank.readout().dimension)
        require(width * BYTES_OF_ONE, f"to work on rows of {width:,} entries")
        read = read_queries(queries, bank, reading, mask, missing)
        target = None if output is None else target_of(output, read, bank, force=force or machine.again)
        run = run_of(bank_path, read, options) if _lasts(target, len(read.stored), bank, machine.budget) else None
        # A run that torchrun has started again is not told so on every host: whatever is there of this very run counts.
        again = machine.cluster is not None
        before = interrupted(target, run, asked=resume) if target and run and (resume or again) else None
        if target is not None:
            target = target.with_standing(before)
            target.refuse_overwrite()
        most = _kept(0 if dry_run else len(read.stored), most, options.get("top", 1))
        tally = Tally(bank, read.row_names, most, emit, pictured=pictures)
        machine.begin()
        try:
            with company(bank_path, found, machine, split) as (divided, holder):
                tally.bank = whole = _tuned(divided, options.get("beta"), machine)
                options |= {"company": holder}
                target = _typed(target, read, whole)
                if dry_run:
                    estimate = _estimated(read, whole, machine, options)
                    return Outcome(estimate, device, list(read.notes), list(read.skipped))
                with keeping(target, run, before) as kept:
                    _answer(read, whole, target, kept, tally, machine, options)
        except KeyboardInterrupt as stop:
            if not tally.count or machine.cluster is not None:  # torchrun may be about to start all again
                raise
            stopped = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    warnings = [*read.notes, *tally.warnings, *_unfinished(stopped, tally.count, len(read.stored), run)]
    return Outcome(tally.result, device, warnings, list(read.skipped), tally.pictures, interrupted=stopped)


def _refuse_the_bank(output: str, bank_path: str) -> None:
    """Refuse to write over a bank, or to take the name by which one of several files is found.

    Raises:
        UsageError: that is asked.
    """
    refuse_itself(output, shards.files(bank_path))
    if os.path.realpath(output) == os.path.realpath(shards.base(bank_path)):
        raise UsageError(f"{output}: expected another name than that of the bank, found {bank_path}")


def _typed(target: Target | None, read: Loaded, bank: MemoryBank) -> Target | None:
    """Where answers go, in a type that holds what is stored: of an outline, that was not yet known.

    Returns:
        The target.
    """
    if target is None:
        return None
    return replace(target, dtype=target_of(target.path, read, bank, force=target.force).dtype)


def _answer(
    read: Loaded,
    bank: MemoryBank,
    target: Target | None,
    kept: Kept,
    tally: Tally,
    machine: Machine,
    options: dict[str, Any],
) -> None:
    """Answer the queries block by block, but for those that are answered already."""
    device, count = str(resolve(machine.device)), len(read.stored)
    room, began = Room(machine.budget), time.monotonic()
    with nullcontext() if target is None else writing(target) as write:
        for rows in kept.blocks(count, _at_once(bank, machine.budget)):
            asked, X = rows_of(read, rows, bank)
            answer, again = kept.answer(rows, bank), True
            if answer is None:
                watch = _of_all(machine.watch, rows.start, count, began)
                work = partial(verbs.retrieve, bank, X, device=device, watch=watch, **options)
                # Of several processes, none can do with less what the others do not.
                answer = room.fit(work) if options["company"] is None else work(budget=machine.budget)
                again = False
            if write is not None and target is not None:
                write(rows, as_asked(answer.patterns, target, bank))
            if not again and rows.stop < count:
                kept.keep(rows, answer)
            tally.take(rows, X, asked, answer, again=again)


def _kept(count: int, most: int | None, top: int) -> int:
    """How many answers are kept for the report, where a memory limit leaves room for them.

    Returns:
        At most as many as there are queries.

    Raises:
        DeviceError: the limit is too low.
    """
    kept = count if most is None else min(most, count)
    each = BYTES_OF_MATCH + (BYTES_OF_TOP * top if top > 1 else 0)
    require(kept * each, f"to report {kept:,} answers (--ndjson holds none)")
    return kept


def _lasts(target: Target | None, count: int, bank: MemoryBank, budget: int) -> bool:
    """Whether answers come in parts: as pictures of a folder, or in more than one block of queries.

    Returns:
        Whether they are worth keeping until all are there.
    """
    if target is None or target.path == "-":
        return False
    return target.kind == "folder" or count > _at_once(bank, budget)


def _unfinished(stopped: int, answered: int, count: int, run: str | None) -> list[str]:
    if not stopped:
        return []
    onward = "; --resume goes on from there" if run else ""
    return [f"interrupted: {answered} of {count} queries are answered{onward}"]


def _estimated(read: Loaded, bank: MemoryBank, machine: Machine, options: dict[str, Any]) -> RetrieveResult:
    """What all queries would take, by what some of them take.

    Returns:
        No answer, but an estimate.
    """
    count, device = len(read.stored), str(resolve(machine.device))
    _, X = rows_of(read, slice(0, min(SAMPLED, count)), bank)
    taken = []
    for _ in range(2):  # the first reads the bank from the disk
        began = time.monotonic()
        answer = verbs.retrieve(bank, X, device=device, budget=machine.budget, **options)
        taken.append(time.monotonic() - began)
    seconds = taken[0] + taken[1] * (count - len(X)) / len(X)
    width = max(bank.dimension, bank.readout().dimension)
    rows = min(count, _at_once(bank, machine.budget)) * width * BYTES_PER_ENTRY
    estimate = Estimate(count, seconds, RUNTIME + machine.budget + rows)
    return RetrieveResult(answer.alpha, answer.beta, options.get("steps", 1), [], estimate)


def _tuned(bank: MemoryBank, beta: float | str | None, machine: Machine) -> MemoryBank:
    """Measure once what β auto needs, not for each block, where the memories are.

    Returns:
        The bank.
    """
    if beta != "auto" or bank.tuning is not None:
        return bank
    block = pair_block(bank.dimension, machine.budget)
    return bank.tuned(resolve(machine.device), block, stage(machine.watch, "measuring"))


def _at_once(bank: MemoryBank, budget: int) -> int:
    """Queries whose rows, and those of their answers, fit the budget, and that are answered in seconds.

    Returns:
        At least one.
    """
    fitting = max(1, budget // (BYTES_PER_ENTRY * max(bank.dimension, bank.readout().dimension)))
    return min(fitting, max(FEWEST, STEADY // (len(bank) * bank.feature_dimension)))


def _of_all(watch: Watch | None, start: int, count: int, began: float) -> Watch | None:
    """Who watches one block hears how far all queries are, and how fast they go.

    Returns:
        What the block reports to.
    """
    if watch is None:
        return None

    def told(label: str, done: int, total: int, note: str = "") -> None:
        if label != RETRIEVING:
            watch(label, done, total, note)
            return
        rate = (start + done) / max(1e-9, time.monotonic() - began)
        watch(label, start + done, count, f"{rate:,.0f} queries/s")

    return told
