"""Tables of numbers: .csv and .tsv, with or without a header and a column of names."""

import csv
import math
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hopmem.errors import InvalidDataError, UnreadableError, one_line
from hopmem.patterns.source import Form, Loaded, Reading, Skipped
from hopmem.scratch import joined

AT_ONCE = 1 << 18  # numbers that are held in float64: more than the least that a file is worth in float32
DELIMITERS = {"csv": ",", "tsv": "\t"}
UNKNOWN = frozenset({"", "nan", "na", "n/a", "null", "none", "?"})  # cells that hold no number, in lower case


def load_table(path: Path, kind: str, reading: Reading) -> Loaded:
    """Read a table, a pattern in each row; empty cells and NA are NaN.

    A first row with a cell that is no number is the header.

    Args:
        path: the file, in UTF-8.
        kind: csv or tsv.
        reading: the id column, and what an unusable row does.

    Returns:
        Its rows, float32.

    Raises:
        InvalidDataError: no rows, rows of different lengths, or a cell that is no number.
        UnreadableError: not a text file in UTF-8.
    """
    table = _Table(path, kind, reading)
    try:
        for number, row in _rows(path, kind):
            if row:
                table.add(number, row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableError(path, "a table in UTF-8", error) from error
    return table.loaded()


class _Table:
    """The rows of a table, taken in one by one."""

    def __init__(self, path: Path, kind: str, reading: Reading) -> None:
        self.path, self.kind, self.reading = path, kind, reading
        self.header: tuple[str, ...] | None = None
        self.id_column: int | None = None
        self.width = self.seen = 0
        self.values, self.blocks = array("d"), list[Tensor]()
        self.names: list[str] = []
        self.numbers: list[int] = []
        self.skipped: list[Skipped] = []

    def add(self, line: int, row: list[str]) -> None:
        """Take in a row; the first may be the header.

        Raises:
            InvalidDataError: an unusable row, and rows are not to be skipped.
        """
        if not self.width:
            self.width, self.header = len(row), _header(row, self.reading.id_column)
            self.id_column = _id_column(self.path, self.header, self.width, self.reading.id_column)
            if self.header:
                return
        self.seen += 1
        try:
            where = f"{self.path}, line {line}"
            self.values.extend(
                _numbers(where, row, self.width, self.id_column, self.kind, partial=self.reading.partial)
            )
        except InvalidDataError as error:
            if self.reading.on_bad == "error":
                raise
            self.skipped.append(Skipped(f"line {line}", str(error)))
            return
        if len(self.values) >= AT_ONCE:
            self.settle()
        self.numbers.append(self.seen - 1)
        if self.id_column is not None:
            self.names.append(row[self.id_column])

    def settle(self) -> None:
        """Bring the latest rows to float32, which is how they are kept."""
        if self.values:
            block = torch.frombuffer(self.values, dtype=torch.float64).float()
            self.blocks.append(joined([block]))
            self.values = array("d")

    def loaded(self) -> Loaded:
        """All rows.

        Returns:
            Float32 rows.

        Raises:
            InvalidDataError: none, or without a number.
        """
        if not self.numbers:
            found = f"{self.seen} rows, none of them usable ({self.skipped[0].reason})" if self.seen else "none"
            raise InvalidDataError(self.path, "at least one row of numbers", found)
        self.settle()
        if not self.blocks:
            raise InvalidDataError(self.path, "at least one column of numbers beside the id column", "none")
        stored = (self.blocks[0] if len(self.blocks) == 1 else joined(self.blocks)).view(len(self.numbers), -1)
        return Loaded(
            stored=stored,
            shape=(stored.shape[1],),
            form=Form(self.kind, header=self.header, id_column=self.id_column),
            names=tuple(self.names) or None,
            notes=self._doubts(),
            numbers=tuple(self.numbers) if self.skipped else None,
            skipped=tuple(self.skipped),
        )

    def _doubts(self) -> tuple[str, ...]:
        """Say so where a row of numbers, but for a few cells, was taken for the header.

        Returns:
            At most one note.
        """
        words = [cell for cell in self.header or () if not _is_number(cell)]
        if self.id_column is not None or not self.header or 2 * len(words) > len(self.header):
            return ()
        return (f"{self.path}, line 1 is taken for a header, since {one_line(words[0])!r} is no number",)


def save_table(path: Path, kind: str, answers: Tensor, form: Form, names: list[str]) -> None:
    """Write rows [N, ...] as a table, with the header and the id column that the queries had."""
    rows = answers.reshape(len(answers), -1)
    rows = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    digits = repr if answers.dtype == torch.float64 or not answers.is_floating_point() else "{:.9g}".format
    width = rows.shape[1] + (form.id_column is not None)
    with path.open("w", newline="", encoding="utf-8") as file:
        # The writer of Python 3.11 leaves a carriage return in a name bare, which ends the line for every reader.
        quoting: Literal[0, 1] = csv.QUOTE_ALL if any("\r" in name for name in names) else csv.QUOTE_MINIMAL
        writer = csv.writer(file, delimiter=DELIMITERS[kind], lineterminator="\n", quoting=quoting)
        if form.header and len(form.header) == width:
            writer.writerow(form.header)
        for name, row in zip(names, rows, strict=True):
            cells = [digits(value) for value in row.tolist()]
            if form.id_column is not None:
                cells.insert(form.id_column, name)
            writer.writerow(cells)


def _rows(path: Path, kind: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line.

    Yields:
        Line numbers from 1, and their cells.

    Raises:
        Error: quotes that do not close, or a cell of more than 131,072 characters.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader, before = csv.reader(file, delimiter=DELIMITERS[kind], strict=True), 0
        try:
            for row in reader:
                before = reader.line_num
                yield before, [cell.strip() for cell in row]
        except csv.Error as error:  # of a quote that does not close only at the end: where its row begins says more
            raise csv.Error(f"line {before + 1}: {error}") from error


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell.lower() in UNKNOWN
    return True


def _is_place(column: str) -> bool:
    return column.isascii() and column.isdecimal() and len(column) < 10


def _header(first: list[str], id_column: str | None) -> tuple[str, ...] | None:
    """The first row, where it holds a cell that is no number and is no name of a row either.

    Returns:
        The header's cells, or None.
    """
    words = [place for place, cell in enumerate(first) if not _is_number(cell)]
    if id_column is not None and _is_place(id_column):  # a number among the numbers of that row is no column's name
        words = [place for place in words if place != int(id_column)]
    return tuple(first) if words else None


def _id_column(path: Path, header: tuple[str, ...] | None, width: int, wanted: str | None) -> int | None:
    """The place of the id column.

    Returns:
        Its number, or None where there is none.

    Raises:
        InvalidDataError: no such column.
    """
    if wanted is None:
        return None
    if header and wanted in header:
        return header.index(wanted)
    if _is_place(wanted) and int(wanted) < width:
        return int(wanted)
    found = ", ".join(islice(header, 8)) if header else f"{width} columns without a header"
    raise InvalidDataError(path, f"a column {wanted!r}", found)


def _numbers(where: str, row: list[str], width: int, id_column: int | None, kind: str, *, partial: bool) -> list[float]:
    """The numbers of one row.

    Returns:
        One for each column but the id column.

    Raises:
        InvalidDataError: too few or too many cells, or one that is no number.
    """
    if len(row) != width:
        raise InvalidDataError(where, f"{width} cells, as in the first row", f"{len(row)}")
    numbers = []
    for place, cell in enumerate(row):
        if place != id_column:
            if not _is_number(cell):
                hint = "a number" if id_column is not None else "a number (--id-column names a column of names)"
                raise InvalidDataError(
                    f"{where}, column {place}", f"{hint}, cells separated by {DELIMITERS[kind]!r}", cell
                )
            number = math.nan if cell.lower() in UNKNOWN else float(cell)
            if math.isinf(number) or (math.isnan(number) and not partial):
                found = cell or "an empty cell"
                raise InvalidDataError(f"{where}, column {place}", "a finite number (or --on-bad skip)", found)
            numbers.append(number)
    return numbers
