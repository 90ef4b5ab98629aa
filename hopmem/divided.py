"""Rows that several processes hold between them, as the first process sees them: the others do what it asks.

What goes over all rows goes `everywhere`: each process runs the same function on the rows that it holds, and what they
find is put together by a few reductions. A process alone runs it on all rows, and the reductions do nothing. What only
looks at some rows indexes them as it would a tensor, and they are sent to the first process.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")
Progress = Callable[[int, int], None]  # called with (done, total)


class Others(Protocol):
    """All processes, each of which calls the same in the same order; what comes back is the same for all to the bit."""

    def total(self, X: Tensor) -> Tensor:
        """The sum of the tensors of all processes."""

    def largest(self, X: Tensor) -> Tensor:
        """Their largest entries."""

    def side_by_side(self, X: Tensor) -> Tensor:
        """Their columns [b, P·k], in the order of the processes."""

    @property
    def rank(self) -> int:
        """Which of them this one is."""

    @property
    def size(self) -> int:
        """How many they are."""

    def same(self, X: Tensor, rank: int = 0) -> Tensor:
        """That of one process, by itself the first."""

    def to_first(self, X: Tensor) -> Tensor:
        """With the first process the rows [m, ...] of all, one process after another; with the others their own."""


class Nobody:
    """The others of a process that is alone."""

    rank, size = 0, 1

    def same(self, X: Tensor, rank: int = 0) -> Tensor:
        """What one of them has.

        Returns:
            Its own.
        """
        return X

    def total(self, X: Tensor) -> Tensor:
        """What all have.

        Returns:
            Its own.
        """
        return X

    largest = side_by_side = to_first = total


@dataclass(frozen=True)
class Division:
    """The rows that one process holds, among those of all."""

    others: Others
    start: int  # the number of the first that it holds
    memories: int  # M of all
    most: int  # rows that any process holds
    progress: Progress | None = field(default=None, kw_only=True)  # of the work that is asked; with the first process

    def own(self, rows: Tensor, held: int) -> Tensor:
        """Which of some rows are held here.

        Args:
            rows: numbers among those of all, int64 [m].
            held: how many rows are held here.

        Returns:
            bool [m].
        """
        return (rows >= self.start) & (rows < self.start + held)


class Asker(Protocol):
    """The first process, whom the others serve."""

    def on_parts(self, rows: "Divided", function: Callable[..., ResultT], *args: Any, progress: Any = None) -> ResultT:
        """What `function(part, *args)` returns here, where all processes call it, each with its own rows."""

    def kept(self, rows: "Divided", function: Callable[..., Tensor], *args: Any, picked: bool) -> "Divided":
        """The rows that `function(part, *args)` makes with each process, and that stay there."""

    def forget(self, name: str) -> None:
        """Let go of rows that were kept."""


@dataclass(frozen=True, eq=False)
class Divided:
    """Rows [M, ...], of which each process holds some, in their order; to those who read it, a tensor on the CPU."""

    asker: Asker
    name: str  # by which all processes know them
    shape: torch.Size
    dtype: torch.dtype

    def __len__(self) -> int:
        """Count the rows.

        Returns:
            M.
        """
        return self.shape[0]

    def __del__(self) -> None:
        """Nobody can ask for them any more."""
        self.asker.forget(self.name)

    @property
    def device(self) -> torch.device:
        """Where rows come out."""
        return torch.device("cpu")

    @property
    def is_meta(self) -> bool:
        """Whether there are no rows."""
        return False

    @property
    def nbytes(self) -> int:
        """The size of all rows."""
        return self.shape.numel() * self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether entries are no integers.

        Returns:
            As a tensor has it.
        """
        return self.dtype.is_floating_point

    def __getitem__(self, rows: Any) -> Tensor:
        """Some rows, or some columns of them.

        Args:
            rows: a range of rows, their numbers, or such a thing and columns.

        Returns:
            [m, ...].
        """
        rows, *columns = rows if isinstance(rows, tuple) else (rows,)
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return self[(torch.arange(start, stop, step), *columns)]
            return self.asker.on_parts(self, _range, self, start, stop, columns)
        if isinstance(rows, int):
            return self[rows : rows + 1, *columns][0]
        rising, order = rows.sort(stable=True)
        found = self.asker.on_parts(self, _some, self, rising, columns)
        back = torch.empty_like(found)
        back[order] = found
        return back


@dataclass(frozen=True)
class Range:
    """Consecutive rows of those that several processes hold, to be read in blocks."""

    source: Divided
    start: int
    stop: int

    def __len__(self) -> int:
        """Count the rows.

        Returns:
            m.
        """
        return self.stop - self.start

    @property
    def shape(self) -> torch.Size:
        """[m, ...]."""
        return torch.Size([len(self), *self.source.shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """The type of the entries."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """The size of these rows."""
        return self.shape.numel() * self.dtype.itemsize

    def __getitem__(self, rows: slice) -> Tensor:
        """Some of the rows.

        Returns:
            [m, ...].
        """
        start, stop, _ = rows.indices(len(self))
        return self.source[self.start + start : self.start + stop]


def cut(rows: Tensor, start: int, stop: int) -> Tensor:
    """Consecutive rows, of which those that are divided are read when they are asked for.

    Args:
        rows: a tensor, or rows that are divided.
        start: the first.
        stop: behind the last.

    Returns:
        [m, ...].
    """
    return cast(Tensor, Range(rows, start, stop)) if isinstance(rows, Divided) else rows[start:stop]


def everywhere(rows: object, function: Callable[..., ResultT], *args: Any, progress: Progress | None = None) -> ResultT:
    """Run a function where rows are held.

    Args:
        rows: rows of any kind; those that have a `source` are held where it is.
        function: of a module; called with the part that a process holds and the arguments, in which rows that are
            divided are then those that it holds.
        *args: what else it takes; what can be pickled.
        progress: told how far it is, as `part.progress`.

    Returns:
        What it returns: with several processes, with the first one.
    """
    source = source_of(rows)
    if isinstance(source, Divided):
        return source.asker.on_parts(source, function, *args, progress=progress)
    M = len(cast(Tensor, source))
    return function(Division(Nobody(), 0, M, M, progress=progress), *args)


def made(rows: object, function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Make rows where others are held, one for each of these, and leave them there.

    Args:
        rows: as of `everywhere`.
        function: as of `everywhere`; gives rows [m, ...] for the m that a process holds.
        *args: as of `everywhere`.

    Returns:
        [M, ...], divided as `rows` are.
    """
    source = source_of(rows)
    if isinstance(source, Divided):
        return as_tensor(source.asker.kept(source, function, *args, picked=False))
    return everywhere(source, function, *args)


def picked(rows: object, numbers: Tensor) -> Tensor:
    """Some rows that are divided, which stay where they are.

    Args:
        rows: that are divided.
        numbers: of m of them, int64, rising.

    Returns:
        [m, ...].
    """
    source = source_of(rows)
    assert isinstance(source, Divided)
    return as_tensor(source.asker.kept(source, _pick, source, numbers, picked=True))


def source_of(rows: object) -> object:
    """Where rows come from.

    Args:
        rows: a tensor, rows that are divided, or what has a `source`.

    Returns:
        A tensor, or rows that are divided.
    """
    return getattr(rows, "source", rows)


def is_divided(rows: object) -> bool:
    """Whether several processes hold rows.

    Args:
        rows: as of `source_of`.

    Returns:
        False of a tensor.
    """
    return isinstance(source_of(rows), Divided)


def as_tensor(rows: Divided) -> Tensor:
    """Rows that are divided, for those who take a tensor and ask it no more than a `Divided` answers.

    Args:
        rows: any.

    Returns:
        The same.
    """
    return cast(Tensor, rows)


def _range(part: Division, held: Tensor, start: int, stop: int, columns: list[Any]) -> Tensor:
    """Send consecutive rows to the first process.

    Returns:
        [m, ...].
    """
    first, last = (min(max(0, row - part.start), len(held)) for row in (start, max(start, stop)))
    return part.others.to_first(held[(slice(first, last), *columns)].cpu())


def _some(part: Division, held: Tensor, rows: Tensor, columns: list[Any]) -> Tensor:
    """Send rows, whose numbers rise, to the first process.

    Returns:
        [m, ...].
    """
    return part.others.to_first(held[(rows[part.own(rows, len(held))] - part.start, *columns)].cpu())


def _pick(part: Division, held: Tensor, rows: Tensor) -> Tensor:
    """The rows that are held here, of some whose numbers rise.

    Returns:
        [m, ...].
    """
    return held[rows[part.own(rows, len(held))] - part.start]
