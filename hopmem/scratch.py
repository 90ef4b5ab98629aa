"""Rows that are made and kept: in memory, or under a limit in a temporary file without a name that is mapped."""

import math
import mmap
import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from hopmem.divided import is_divided, picked
from hopmem.errors import UnreadableError
from hopmem.pages import LEAST, lend, rest, scarce

SCATTERED = 32  # rows read at a time where memory is scarce: the system brings 64 KiB and more along with each
BLOCK = 1 << 22  # bytes that are copied at a time


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for rows, whatever is in it.

    Args:
        shape: of the tensor.
        dtype: of its entries.

    Returns:
        A tensor on the CPU, which may be written to.

    Raises:
        UnreadableError: no room for the file.
    """
    size = math.prod(shape) * dtype.itemsize
    if not scarce() or size < LEAST:
        return torch.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk would otherwise end the process later
            tensor = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)
    except OSError as error:
        folder = tempfile.gettempdir()
        raise UnreadableError(folder, f"room for {size:,} bytes under --memory-limit", error.strerror) from error
    lend(tensor)
    return tensor


def gathered(stored: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a tensor, which may be many.

    Args:
        stored: any rows [M, ...] on the CPU.
        rows: int64 [m], rising.

    Returns:
        [m, ...]; of rows that are divided, where they are.
    """
    if is_divided(stored):
        return picked(stored, rows)
    if not scarce():
        return stored[rows]
    found = empty(len(rows), *stored.shape[1:], dtype=stored.dtype)
    for start in range(0, len(rows), SCATTERED):
        rest()
        torch.index_select(stored, 0, rows[start : start + SCATTERED], out=found[start : start + SCATTERED])
    return found


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows one after another.

    Args:
        parts: rows of one width and type, [m, ...] each.

    Returns:
        All of them.
    """
    if not scarce():
        return torch.cat(list(parts))
    found = empty(sum(map(len, parts)), *parts[0].shape[1:], dtype=parts[0].dtype)
    height, start = max(1, BLOCK // max(1, parts[0][:1].nbytes)), 0
    for part in parts:
        for first in range(0, len(part), height):
            rest()
            some = part[first : first + height]
            found[start : start + len(some)] = some
            start += len(some)
    return found
