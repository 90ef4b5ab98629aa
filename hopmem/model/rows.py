"""Rows of patterns as numbers, read block by block from where they are stored."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.pages import rest, room, scarce
from hopmem.scratch import SCATTERED

Rows = slice | Tensor  # a range of rows, or an int64 tensor of row numbers
AT_ONCE = 1 << 22  # entries of a block of patterns
BYTES_AT_ONCE = 64  # of each of them, under a limit: in float64, with copies and what is made of them
CACHED = 1 << 15  # entries in float64 that stay beside one processor while they are worked on
NARROW = 1 << 12  # entries whose squares float32 adds up without losing more than a digit
LONG = 1e15  # a length up to which products in float32 are safe from its bounds, as from its inverse on
LARGEST = torch.tensor(1e32).item()  # of an entry of a pattern: lengths and mixtures of many then stay within float32


def unit(U: Tensor) -> Tensor:
    """Scale each row to unit length; a zero row stays zero.

    Rows are divided by their largest entry first: the squares of entries of 1e-30 or 1e30 leave float32.

    Args:
        U: rows [..., D].

    Returns:
        Rows of length one (or zero) [..., D].

    >>> unit(torch.tensor([[3e30, 4e30], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    largest = U.abs().amax(-1, keepdim=True)
    U = U / torch.where(largest > 0, largest, 1)
    length: Tensor = U.norm(dim=-1, keepdim=True)
    return U / length.clamp_min(torch.finfo(U.dtype).tiny)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Cut `count` rows into consecutive slices of at most `size`.

    Between two of them, memory that mapped files take is given back where there is a limit.

    Yields:
        The slices, in order; the last may be shorter.

    >>> list(blocks(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, count, size):
        rest()
        yield slice(start, min(start + size, count))


def small_blocks(count: int, width: int) -> Iterator[slice]:
    """Cut rows into blocks that take little memory however wide they are.

    Args:
        count: rows.
        width: entries of each.

    Returns:
        Slices of at most `AT_ONCE` entries, fewer under a limit that leaves little, but at least one row, each.
    """
    left = room()
    most = AT_ONCE if left is None else min(AT_ONCE, left // BYTES_AT_ONCE)
    return blocks(count, max(1, min(4096, most // width)))


def taken(stored: Tensor, rows: Rows) -> Tensor:
    """Some rows of a tensor, which may be on another device than their numbers.

    Args:
        stored: any rows [M, ...].
        rows: m of them.

    Returns:
        [m, ...]; a view of a range.
    """
    if isinstance(rows, slice):
        return stored[rows]
    rows = rows.to(stored.device)
    if len(rows) <= SCATTERED or not scarce():
        return stored[rows]
    found = torch.empty(len(rows), *stored.shape[1:], dtype=stored.dtype, device=stored.device)
    for some in blocks(len(rows), SCATTERED):
        found[some] = stored[rows[some]]
    return found


@dataclass(frozen=True)
class Patterns:
    """Rows of patterns as numbers, read block by block from a tensor of any type."""

    stored: Tensor  # [M, d], any real type, often memory-mapped
    scale: float = 1.0  # what one stored unit is worth: 1/255 for 8-bit images
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    columns: Tensor | None = None  # int64 [k]: the entries that are seen; None sees all

    def __len__(self) -> int:
        """Count the rows.

        Returns:
            M.
        """
        return len(self.stored)

    def __reduce__(self) -> tuple[Any, ...]:
        """What others make the same of; what was worked out for all rows is of no use to who holds some.

        Returns:
            The fields.
        """
        return type(self), (self.stored, self.scale, self.device, self.columns)

    @property
    def source(self) -> Tensor:
        """What rows are read from."""
        return self.stored

    @property
    def dimension(self) -> int:
        """The number of entries of a row."""
        return self.stored.shape[1] if self.columns is None else len(self.columns)

    def in_blocks(self) -> Iterator[slice]:
        """Cut the rows into blocks that are small whatever the patterns are.

        Returns:
            Slices.
        """
        return small_blocks(len(self), self.dimension)

    def mean(self) -> Tensor:
        """The mean pattern.

        Returns:
            float64 [d] on the device.
        """
        return everywhere(self, _sum, self) / len(self)

    @cached_property
    def lengths(self) -> Tensor:
        """‖ξ_μ‖ [M] float32 on the device."""
        return everywhere(self, _lengths, self)

    @cached_property
    def longest(self) -> float:
        """The largest length."""
        return self._ends[0]

    @cached_property
    def spread(self) -> float:
        """The largest length over the smallest that is not zero; 1 where all are zero."""
        longest, shortest = self._ends
        return longest / shortest if longest > 0 else 1.0

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The largest length, and the smallest that is not zero; infinite where there is none."""
        longest, shortest = everywhere(self, _extremes, self).tolist()
        return longest, -shortest

    def __getitem__(self, rows: Rows) -> Tensor:
        """The patterns of some rows.

        Returns:
            float32 [m, d] on the device.
        """
        block = taken(self.stored, rows)
        block = block if self.columns is None else block[:, self.columns.to(block.device)]
        block = block.to(self.device, torch.float32)
        return block if self.scale == 1.0 else block * self.scale


def _sum(part: Division, patterns: Patterns) -> Tensor:
    """Σ ξ_μ.

    Returns:
        float64 [d].
    """
    total = torch.zeros(patterns.dimension, dtype=torch.float64, device=patterns.device)
    for rows in patterns.in_blocks():
        total += patterns[rows].sum(0, dtype=torch.float64)
    return part.others.total(total)


def _lengths(part: Division, patterns: Patterns) -> Tensor:
    """‖ξ_μ‖.

    Returns:
        float32 [M].
    """
    if patterns.stored.dtype == torch.uint8 and patterns.columns is None and patterns.device.type == "cpu":
        return part.others.to_first((_byte_lengths(patterns.stored) * patterns.scale).float())
    lengths = torch.empty(len(patterns), device=patterns.device)
    for rows in patterns.in_blocks():
        U = patterns[rows]
        parts = [torch.linalg.vector_norm(U[:, some], dim=1) for some in blocks(U.shape[1], NARROW)]
        found = parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)
        if not bool(((found > 1 / LONG) & (found < LONG)).all()):  # squares may have left float32
            found = torch.linalg.vector_norm(U, dim=1, dtype=torch.float64).float()
        lengths[rows] = found
    return part.others.to_first(lengths)


def _byte_lengths(U: Tensor) -> Tensor:
    """Lengths of 8-bit rows, from sums of squares that float64 holds exactly.

    All pieces go through one small buffer: fresh blocks of floats cost more than what is done with them.

    Returns:
        float64 [M].
    """
    most = CACHED * max(1, torch.get_num_threads() // 2)  # two threads would wait for each other longer than they help
    buffer, lengths = torch.empty(most, dtype=torch.float64), torch.empty(len(U), dtype=torch.float64)
    for rows in blocks(len(U), max(1, most // U.shape[1])):
        pieces = (U[rows, columns] for columns in blocks(U.shape[1], most))
        parts = [torch.linalg.vector_norm(buffer[: V.numel()].view(V.shape).copy_(V), dim=1) for V in pieces]
        lengths[rows] = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return lengths


def _extremes(part: Division, patterns: Patterns) -> Tensor:
    """The largest length, at least 0, and the smallest that is not zero, less than nothing.

    Returns:
        float64 [2].
    """
    lengths = patterns.lengths.double()
    ends = [lengths.new_zeros(1), lengths], [lengths.new_full((1,), -torch.inf), -lengths[lengths > 0]]
    return part.others.largest(torch.stack([torch.cat(each).max() for each in ends]))
