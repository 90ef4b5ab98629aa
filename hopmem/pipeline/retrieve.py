"""Retrieve: queries → patterns → answers, back in the kind of the queries."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopmem import verbs
from hopmem.atomic import refuse_overwrite
from hopmem.bank import MemoryBank
from hopmem.devices import Room, memory_errors, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.kernel import blocks
from hopmem.patterns import Form, Layout, Loaded, Reading, Skipped, Target, kind_of, load, writing
from hopmem.pipeline.outcome import Machine, Outcome
from hopmem.pipeline.store import fitting
from hopmem.pipeline.tally import Emit, Tally
from hopmem.results import Estimate, RetrieveResult
from hopmem.verbs.retrieve import RETRIEVING
from hopmem.verbs.work import Watch, pair_block, stage

PICTURES = frozenset({"image", "folder"})
SAMPLED = 256  # queries by which a dry run judges all
RUNTIME = 250 << 20  # bytes that Python and torch take before anything is read
BYTES_PER_ENTRY = 32  # of a query: as read, as float32, its answer, and copies of them


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
    emit: Emit | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Outcome[RetrieveResult]:
    """Retrieve a stored pattern for each query, and write the answers in the kind of the queries.

    Queries go through in blocks that fit the budget: each is read, answered and written before the next.

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
        emit: told the answers of each block, which are then not kept.
        dry_run: answer a few queries, say what all would take, and write nothing.
        **options: of `verbs.retrieve`.

    Returns:
        What came back.

    Raises:
        InvalidDataError: images of another shape than the bank's.
        UsageError: pictures of rows that are no images.
    """
    bank = MemoryBank.load(bank_path)
    if pictures and (bank.layout is None or bank.values is not None):
        raise UsageError("--plot: expected a bank of images that returns its patterns, found rows of numbers or values")
    device = str(resolve(machine.device))
    with memory_errors(), ExitStack() as stack:
        read = _queries(queries, bank, reading, mask, missing)
        names = read.row_names
        target = None if output is None else _target(output, read, bank, force=force)
        for path in [] if target is None else target.files:
            refuse_overwrite(path, force=force)
        shape = read.part(slice(0, 1)).in_layout(bank.layout).shape
        if shape != bank.shape and 1 not in {len(shape), len(bank.shape)}:
            raise InvalidDataError(queries[0], f"rows of shape {list(bank.shape)} as in the bank", list(shape))
        bank = _tuned(bank, options.get("beta"), machine)
        if dry_run:
            return Outcome(_estimated(read, bank, machine, options), device, list(read.notes), list(read.skipped))
        write = None if target is None else stack.enter_context(writing(target))
        tally, room, began = Tally(bank, names, emit, pictures), Room(machine.budget), time.monotonic()
        for rows in blocks(len(names), _at_once(bank, machine.budget)):
            asked, X = _rows(read, rows, bank)
            watch = _of_all(machine.watch, rows.start, len(names), began)
            answer = room.fit(partial(verbs.retrieve, bank, X, device=device, watch=watch, **options))
            if write is not None and target is not None:
                write(rows, _as_asked(answer.patterns, target, bank))
            tally.take(rows, X, asked, answer)
    return Outcome(tally.result, device, [*read.notes, *tally.warnings], list(read.skipped), tally.pictures)


def _rows(read: Loaded, rows: slice, bank: MemoryBank) -> tuple[Loaded, Tensor]:
    """Some of the queries in the units and the layout of the patterns.

    Returns:
        They as they were read, and as float32 [n, d], NaN where unknown.
    """
    asked = read.part(rows).in_layout(bank.layout)
    X = asked.stored.float() * _query_scale(asked, bank)
    return asked, X if asked.known is None else X.masked_fill(~asked.known, torch.nan)


def _estimated(read: Loaded, bank: MemoryBank, machine: Machine, options: dict[str, Any]) -> RetrieveResult:
    """What all queries would take, by what some of them take.

    Returns:
        No answer, but an estimate.
    """
    count, device = len(read.stored), str(resolve(machine.device))
    _, X = _rows(read, slice(0, min(SAMPLED, count)), bank)
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
    """Measure once what β auto needs, not for each block.

    Returns:
        The bank.
    """
    if beta != "auto":
        return bank
    block = pair_block(bank.dimension, machine.budget)
    return bank.tuned(resolve(machine.device), block, stage(machine.watch, "measuring"))


def _at_once(bank: MemoryBank, budget: int) -> int:
    """Queries whose rows, and those of their answers, fit the budget.

    Returns:
        At least one.
    """
    return max(1, budget // (BYTES_PER_ENTRY * max(bank.dimension, bank.readout().dimension)))


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


def _queries(
    queries: Sequence[str], bank: MemoryBank, reading: Reading, mask: str | None, missing: float | None
) -> Loaded:
    """Read queries as the bank holds its patterns, and mark what is unknown of them.

    Returns:
        The queries; those of which nothing is known are left out where that was asked for.

    Raises:
        InvalidDataError: another shape than the bank's, or nothing known of a query.
    """
    loaded = load(queries, replace(fitting(reading, bank), partial=True))
    if loaded.stored.shape[1] != bank.dimension:
        expected = f"rows of {bank.dimension} entries, shape {list(bank.shape)}, as in the bank"
        if loaded.form.images and bank.layout:
            height, width = (bank.shape[1:] if bank.layout == "CHW" else bank.shape)[:2]
            expected += f" (--size {width}x{height} brings images to it)"
        elif loaded.shape == (1,) and len(loaded.stored) == bank.dimension:
            expected += f" (one query is a row: [1, {bank.dimension}])"
        raise InvalidDataError(queries[0], expected, f"{loaded.stored.shape[1]}, shape {list(loaded.shape)}")
    known = _known(loaded, mask, missing, bank)
    loaded = replace(loaded, known=known)
    if known is None:
        return loaded
    empty = (~known.any(1)).nonzero()[:, 0].tolist()
    if not empty:
        return loaded
    names = loaded.row_names
    if reading.on_bad == "error" or len(empty) == len(known):
        raise InvalidDataError(f"{queries[0]}, query {names[empty[0]]}", "at least one known entry", "none")
    kept = known.any(1).nonzero()[:, 0]
    return loaded.take(kept, [Skipped(names[row], "no entry is known") for row in empty])


def _known(loaded: Loaded, mask: str | None, missing: float | None, bank: MemoryBank) -> Tensor | None:
    """Which entries are known, by the file, by a value that marks those that are not, and by a mask.

    Returns:
        bool [B, d]; None where all are.
    """
    known = loaded.known
    if missing is not None:
        known = (loaded.stored != missing) & (True if known is None else known)
    if mask is not None:
        seen = ~_hidden(mask, loaded, bank.resized).expand(loaded.stored.shape)
        known = seen & (True if known is None else known)
    return None if known is None or bool(known.all()) else known


def _hidden(mask: str, loaded: Loaded, size: tuple[int, int] | None) -> Tensor:
    """Which entries a mask hides; a grey mask hides all channels of a pixel, masks named as the queries go by name.

    Returns:
        bool, [1 or B, d].

    Raises:
        InvalidDataError: a mask of another shape.
    """
    B, d = loaded.stored.shape
    hiding = load([mask], Reading(size=size))
    rows = hiding.stored
    if loaded.form.images and sorted(hiding.row_names) == sorted(loaded.row_names):
        place = {name: row for row, name in enumerate(hiding.row_names)}
        rows = rows[torch.tensor([place[name] for name in loaded.row_names])]
    pixels = loaded.layout in {"HWC", "CHW"} and d % 3 == 0 and d // 3
    if rows.numel() in {d, pixels} and rows.shape[1] not in {d, pixels}:
        rows = rows.reshape(1, -1)  # one array of a pattern's own shape
    hidden = rows.float() != 0
    if hidden.shape[1] == pixels:
        spread = hidden[:, :, None].expand(-1, -1, 3) if loaded.layout == "HWC" else hidden[:, None].expand(-1, 3, -1)
        hidden = spread.reshape(len(hidden), d)
    if hidden.shape[1] != d or len(hidden) not in {1, B}:
        raise InvalidDataError(mask, f"a mask [{d}] for all queries or [{B}, {d}], one for each", list(hidden.shape))
    return hidden


def _query_scale(loaded: Loaded, bank: MemoryBank) -> float:
    """What a query's unit is worth: queries of the bank's own integer type are in its units.

    Returns:
        The scale.
    """
    same = loaded.stored.dtype == bank.patterns.dtype and not bank.patterns.is_floating_point()
    return bank.scale if same else loaded.scale


def _output_kind(output: str, loaded: Loaded, bank: MemoryBank) -> str:
    """The kind of file that answers go to: that of the queries unless the name says otherwise.

    Returns:
        A kind of `patterns.save`.

    Raises:
        UsageError: a name that does not suit the answers.
    """
    layout = bank.layout if bank.values is None else bank.values_layout
    pictured = loaded.form.kind in PICTURES
    if output == "-":
        kind = "npy" if loaded.form.kind == "folder" else loaded.form.kind
    elif Path(output).is_dir() or output.endswith("/"):
        kind = "folder"
    else:
        kind = kind_of(Path(output)) or ("folder" if pictured else loaded.form.kind)
    if kind in PICTURES and layout is None:
        raise UsageError(
            f"-o {output}: expected a name ending in .npy, .csv or the like, since the answers are no images"
        )
    if kind == "image" and len(loaded.stored) > 1:
        raise UsageError(
            f"-o {output}: expected a folder or an array file for {len(loaded.stored)} answers, found one image"
        )
    return kind


def _target(output: str, read: Loaded, bank: MemoryBank, *, force: bool) -> Target:
    """Where answers go, in the units, the type and the layout of the queries, or of the values.

    Returns:
        The target.
    """
    kind = _output_kind(output, read, bank)
    if bank.values is not None:
        dtype, scale, shape, layout = bank.values.dtype, bank.values_scale, bank.values_shape or (), bank.values_layout
    elif kind in PICTURES:
        dtype, scale, shape, layout = bank.patterns.dtype, bank.scale, bank.shape, bank.layout
    else:
        dtype, scale, shape, layout = read.stored.dtype, _query_scale(read, bank), read.shape, read.layout
        if bank.patterns.is_floating_point() and not dtype.is_floating_point:
            dtype = torch.float32  # a mean of real patterns is no whole number
    if kind in PICTURES:  # pixels keep their full precision until they are written, in the depth of each file
        dtype, scale = torch.float32, 1.0
    return Target(output, kind, (len(read.stored), *shape), dtype, read.form, read.row_names, layout, scale, force)


def _as_asked(patterns: Tensor, target: Target, bank: MemoryBank) -> Tensor:
    """Answers in the units and the layout of where they go.

    Returns:
        Rows [n, ...].
    """
    if bank.values is None:
        patterns = _turned(patterns, bank.shape, bank.layout, target.layout)
    array = patterns if target.kind in PICTURES else _in_units(patterns, target.scale, target.dtype)
    return array.reshape(len(array), *target.shape[1:])


def _turned(patterns: Tensor, shape: tuple[int, ...], layout: Layout | None, wanted: Layout | None) -> Tensor:
    """Rows of colour images with their axes in another order.

    Returns:
        Rows in the layout `wanted`.
    """
    return Loaded(patterns, shape, Form("npy"), layout=layout).in_layout(wanted).stored


def _in_units(patterns: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Answers in stored units; whole numbers are rounded and kept in their range.

    Returns:
        Rows of type `dtype`.
    """
    values = patterns.double() / scale
    if dtype == torch.bool:
        return values > 0.5
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        values = values.round().clamp(limits.min, limits.max)
    return values.to(dtype)
