"""Queries as the bank holds its patterns, and what is unknown of them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.errors import InvalidDataError
from hopmem.patterns import Loaded, Reading, Skipped, load, spoken
from hopmem.pipeline.store import fitting


def read_queries(
    queries: Sequence[str], bank: MemoryBank, reading: Reading, mask: str | None, missing: float | None
) -> Loaded:
    """Read queries as the bank holds its patterns, and mark what is unknown of them.

    Args:
        queries: files and folders; `-` is standard input.
        bank: what they will be put to.
        reading: how they are read.
        mask: a source that is not zero where an entry is unknown: one row for all queries, or one for each.
        missing: a value, in the units of the file, that marks an unknown entry.

    Returns:
        The queries; those of which nothing is known are left out where that was asked for.

    Raises:
        InvalidDataError: another shape than the bank's, or nothing known of a query.
    """
    loaded, first = load(queries, replace(fitting(reading, bank), partial=True)), spoken(queries[0])
    if loaded.stored.shape[1] != bank.dimension:
        expected = f"rows of {bank.dimension} entries, shape {list(bank.shape)}, as in the bank"
        if loaded.form.images and bank.layout:
            height, width = (bank.shape[1:] if bank.layout == "CHW" else bank.shape)[:2]
            expected += f" (--size {width}x{height} brings images to it)"
        elif loaded.shape == (1,) and len(loaded.stored) == bank.dimension:
            expected += f" (one query is a row: [1, {bank.dimension}])"
        raise InvalidDataError(first, expected, f"{loaded.stored.shape[1]}, shape {list(loaded.shape)}")
    shape = loaded.part(slice(0, 1)).in_layout(bank.layout).shape
    if shape != bank.shape and 1 not in {len(shape), len(bank.shape)}:
        raise InvalidDataError(first, f"rows of shape {list(bank.shape)} as in the bank", list(shape))
    known = _known(loaded, mask, missing, Reading(size=bank.resized, unpack_limit=reading.unpack_limit))
    loaded = replace(loaded, known=known)
    if known is None:
        return loaded
    empty = (~known.any(1)).nonzero()[:, 0].tolist()
    if not empty:
        return loaded
    names = loaded.row_names
    if reading.on_bad == "error" or len(empty) == len(known):
        raise InvalidDataError(f"{first}, query {names[empty[0]]}", "at least one known entry", "none")
    kept = known.any(1).nonzero()[:, 0]
    return loaded.take(kept, [Skipped(names[row], f"{first}, query {names[row]}: no entry is known") for row in empty])


def _known(loaded: Loaded, mask: str | None, missing: float | None, reading: Reading) -> Tensor | None:
    """Which entries are known, by the file, by a value that marks those that are not, and by a mask.

    Returns:
        bool [B, d]; None where all are.
    """
    known = loaded.known
    if missing is not None:
        known = (loaded.stored != missing) & (True if known is None else known)
    if mask is not None:
        seen = ~_hidden(mask, loaded, reading).expand(loaded.stored.shape)
        known = seen & (True if known is None else known)
    return None if known is None or bool(known.all()) else known


def _hidden(mask: str, loaded: Loaded, reading: Reading) -> Tensor:
    """Which entries a mask hides; a grey mask hides all channels of a pixel, masks named as the queries go by name.

    Returns:
        bool, [1 or B, d].

    Raises:
        InvalidDataError: a mask of another shape.
    """
    B, d = loaded.stored.shape
    hiding = load([mask], reading)
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
        raise InvalidDataError(
            spoken(mask), f"a mask [{d}] for all queries or [{B}, {d}], one for each", list(hidden.shape)
        )
    return hidden


def rows_of(read: Loaded, rows: slice, bank: MemoryBank) -> tuple[Loaded, Tensor]:
    """Some of the queries in the units and the layout of the patterns.

    Args:
        read: all of them.
        rows: which.
        bank: what they are put to.

    Returns:
        They as they were read, and as float32 [n, d], NaN where unknown.
    """
    asked = read.part(rows).in_layout(bank.layout)
    X = asked.stored.float() * query_scale(asked, bank)
    return asked, X if asked.known is None else X.masked_fill(~asked.known, torch.nan)


def query_scale(loaded: Loaded, bank: MemoryBank) -> float:
    """What a query's unit is worth: queries of the bank's own integer type are in its units.

    Args:
        loaded: the queries.
        bank: what they are put to.

    Returns:
        The scale.
    """
    same = loaded.stored.dtype == bank.patterns.dtype and not bank.patterns.is_floating_point()
    return bank.scale if same else loaded.scale
