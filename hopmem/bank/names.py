"""Names of patterns, read from their bytes when they are asked for: of a billion of them, few ever are."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor

from hopmem.model.rows import blocks

AT_ONCE = 1 << 16  # names that are read together


class Names(Sequence[str]):
    """Names, of which only the bytes are held, mapped where they are mapped."""

    def __init__(self, data: Tensor, offsets: Tensor) -> None:
        """Check that the bytes can be cut.

        Args:
            data: UTF-8 bytes, one name behind the other.
            offsets: where each begins, and where the last ends: int64 [M + 1].

        Raises:
            ValueError: no bytes, or offsets that do not cut them.
        """
        if (data.dtype, offsets.dtype, data.ndim, offsets.ndim) != (torch.uint8, torch.int64, 1, 1):
            raise ValueError("names are no bytes, or names.offsets no numbers of bytes")
        self._raw, self._ends = data, offsets
        ascending = all(bool((self._some(rows).diff() >= 0).all()) for rows in blocks(len(self), AT_ONCE))
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(self._raw) or not ascending:
            raise ValueError("names.offsets do not ascend from 0 to the length of the names")

    def __len__(self) -> int:
        """Count the names.

        Returns:
            M.
        """
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> tuple[str, ...]: ...

    def __getitem__(self, row: int | slice) -> str | tuple[str, ...]:
        """Read some.

        Returns:
            The name of a row, or those of a range.
        """
        if isinstance(row, slice):
            return tuple(self[each] for each in range(*row.indices(len(self))))
        row = range(len(self))[row]
        begin, end = self._ends[row : row + 2].tolist()
        return str(self._raw[begin:end].numpy().data, "utf-8", "surrogateescape")  # for which all bytes are text

    def __iter__(self) -> Iterator[str]:
        """Read all.

        Yields:
            Name by name.
        """
        for rows in blocks(len(self), AT_ONCE):
            raw, ends = self._raw.numpy().data, self._some(rows).tolist()
            for begin, end in pairwise(ends):
                yield str(raw[begin:end], "utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        """Compare with any names.

        Returns:
            Whether they are the same in the same order.
        """
        if not isinstance(other, Names | tuple | list):
            return NotImplemented
        return len(self) == len(other) and all(one == name for one, name in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it is a list

    def _some(self, rows: slice) -> Tensor:
        """Where the names of some rows begin, and the last ends.

        Returns:
            int64 [m + 1].
        """
        return self._ends[rows.start : rows.stop + 1]
