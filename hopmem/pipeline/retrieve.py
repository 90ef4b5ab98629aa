"""Retrieve: queries → patterns → answers, back in the kind of the queries."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopmem import verbs
from hopmem.atomic import refuse_overwrite
from hopmem.bank import SMALLEST, VALIDATED, MemoryBank
from hopmem.devices import memory_errors, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.patterns import Form, Layout, Loaded, Reading, Skipped, kind_of, load, save, targets
from hopmem.pipeline.outcome import Machine, Outcome, Picture
from hopmem.pipeline.store import fitting
from hopmem.results import Match, RetrieveResult
from hopmem.verbs.retrieve import GIVEN

MOST_PICTURES = 64  # on a contact sheet
BEYOND_WHITE = 8.0  # entries above this are no noisy image from 0 to 1: they were meant from 0 to 255


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
    **options: Any,
) -> Outcome[RetrieveResult]:
    """Retrieve a stored pattern for each query, and write the answers in the kind of the queries.

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
    with memory_errors():
        read = _queries(queries, bank, reading, mask, missing)
        kind = None if output is None else _output_kind(output, read, bank)
        names = list(read.row_names)
        for path in [] if output is None or kind is None else targets(output, kind, read.form, names):
            refuse_overwrite(path, force=force)
        asked = read.in_layout(bank.layout)
        if asked.shape != bank.shape and 1 not in {len(asked.shape), len(bank.shape)}:
            raise InvalidDataError(queries[0], f"rows of shape {list(bank.shape)} as in the bank", list(asked.shape))
        X = asked.stored.float() * _query_scale(asked, bank)
        X = X if asked.known is None else X.masked_fill(~asked.known, torch.nan)
        answer = verbs.retrieve(bank, X, device=device, budget=machine.budget, watch=machine.watch, **options)
        if output is not None and kind is not None:
            _save_answers(answer.patterns, output, kind, read, bank, names, force=force)
    result = RetrieveResult(answer.alpha, answer.beta, int(answer.steps.max()), _matches(answer, names, bank))
    notes = [*read.notes, *_warnings(X, asked, answer, bank)]
    shown = _pictures(X, asked.known, answer, bank, names) if pictures else []
    return Outcome(result, device, notes, list(read.skipped), shown)


def _warnings(X: Tensor, asked: Loaded, answer: verbs.Answer, bank: MemoryBank) -> list[str]:
    """What a user may not expect of these queries and answers.

    Returns:
        A line for each.
    """
    found = []
    largest = float(X.nan_to_num(0).abs().max())
    if bank.scale != 1 and asked.stored.is_floating_point() and largest > BEYOND_WHITE:
        found.append(f"queries reach {largest:g}, where the bank's images run from 0 to 1: scale them alike")
    if answer.beta_source not in {GIVEN, SMALLEST, VALIDATED}:
        found.append(f"β {answer.beta:.6g}: {answer.beta_source}")
    if rejected := answer.match.count(None):
        found.append(f"{rejected} of {len(answer.match)} answers are rejected; what is written for them is no match")
    return found


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
    known = torch.ones_like(loaded.stored, dtype=torch.bool) if loaded.known is None else loaded.known
    if missing is not None:
        known = known & (loaded.stored != missing)
    if mask is not None:
        known = known & ~_hidden(mask, loaded, bank.resized)
    loaded = replace(loaded, known=None if bool(known.all()) else known)
    empty = (~known.any(1)).nonzero()[:, 0].tolist()
    if not empty:
        return loaded
    names = loaded.row_names
    if reading.on_bad == "error" or len(empty) == len(known):
        raise InvalidDataError(f"{queries[0]}, query {names[empty[0]]}", "at least one known entry", "none")
    kept = known.any(1).nonzero()[:, 0]
    return loaded.take(kept, [Skipped(names[row], "no entry is known") for row in empty])


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
    pictured = loaded.form.kind in {"image", "folder"}
    if output == "-":
        kind = "npy" if loaded.form.kind == "folder" else loaded.form.kind
    elif Path(output).is_dir() or output.endswith("/"):
        kind = "folder"
    else:
        kind = kind_of(Path(output)) or ("folder" if pictured else loaded.form.kind)
    if kind in {"image", "folder"} and layout is None:
        raise UsageError(
            f"-o {output}: expected a name ending in .npy, .csv or the like, since the answers are no images"
        )
    if kind == "image" and len(loaded.stored) > 1:
        raise UsageError(
            f"-o {output}: expected a folder or an array file for {len(loaded.stored)} answers, found one image"
        )
    return kind


def _save_answers(
    patterns: Tensor, output: str, kind: str, read: Loaded, bank: MemoryBank, names: list[str], *, force: bool
) -> None:
    """Write answers in the units, the type and the layout of the queries, or of the values."""
    picture = kind in {"image", "folder"}
    if bank.values is not None:
        dtype, scale, shape, layout = bank.values.dtype, bank.values_scale, bank.values_shape or (), bank.values_layout
    elif picture:
        dtype, scale, shape, layout = bank.patterns.dtype, bank.scale, bank.shape, bank.layout
    else:
        dtype, scale, shape, layout = read.stored.dtype, _query_scale(read, bank), read.shape, read.layout
        patterns = _turned(patterns, bank.shape, bank.layout, layout)
        if bank.patterns.is_floating_point() and not dtype.is_floating_point:
            dtype = torch.float32  # a mean of real patterns is no whole number
    # Pixels keep their full precision until they are written, in the depth of each file.
    array, scale = (patterns, 1.0) if picture else (_in_units(patterns, scale, dtype), scale)
    save(output, kind, array.reshape(len(array), *shape), read.form, names, layout, scale=scale, force=force)


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


def _matches(answer: verbs.Answer, names: list[str], bank: MemoryBank) -> list[Match]:
    """Answers as records.

    Returns:
        One for each query.
    """
    several = answer.top_index.shape[1] > 1
    matches = []
    for row, (indices, weights) in enumerate(zip(answer.top_index.tolist(), answer.top_weight.tolist(), strict=True)):
        best = [{"match": bank.names[m], "index": m, "weight": w} for m, w in zip(indices, weights, strict=True)]
        matches.append(
            Match(
                query=names[row],
                match=answer.match[row],
                index=int(answer.index[row]),
                confidence=float(answer.confidence[row]),
                margin=float(answer.margin[row]),
                support=int(answer.support[row]),
                state=answer.state[row],
                steps=int(answer.steps[row]),
                converged=bool(answer.converged[row]),
                energy=float(answer.energy[row]),
                top=best if several else [],
            )
        )
    return matches


def _pictures(
    X: Tensor, known: Tensor | None, answer: verbs.Answer, bank: MemoryBank, names: list[str]
) -> list[Picture]:
    """What a contact sheet shows, the least sure answers first.

    Returns:
        A picture for each query.
    """

    def image(row: Tensor) -> Tensor:
        pixels = row.reshape(bank.shape)
        return pixels.permute(1, 2, 0) if bank.layout == "CHW" else pixels

    stored = bank.rows()[answer.index]
    return [
        Picture(
            query=image(X[row].nan_to_num(0)),
            known=None if known is None else image(known[row]),
            answer=image(answer.patterns[row]),
            stored=image(stored[row]),
            name=names[row],
            match=answer.match[row],
            confidence=float(answer.confidence[row]),
        )
        for row in answer.confidence.argsort(stable=True)[:MOST_PICTURES].tolist()
    ]
