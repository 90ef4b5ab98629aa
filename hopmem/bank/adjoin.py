"""Parts of several files → one tensor, of which nothing is copied: they are mapped side by side.

The system maps whole pages, so that a part has to begin where the one before it ends, within its page. Where they do
not, or the system can't map them so, they are copied one behind the other.
"""

import ctypes
import math
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hopmem.scratch import joined

GRANULE = mmap.ALLOCATIONGRANULARITY  # bytes at whose multiples files are mapped
MAP_FIXED = 0x10  # which Python's module does not name; it is one on Linux, macOS and the BSDs
FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Part:
    """Rows in a file."""

    path: Path
    begin: int  # bytes from its start
    shape: tuple[int, ...]  # [m, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The size of the rows."""
        return math.prod(self.shape) * self.dtype.itemsize


def adjoined(parts: Sequence[Part]) -> Tensor:
    """Rows of several files as one tensor, which may be written to: the files stay as they are.

    Args:
        parts: at least one, of one type and width.

    Returns:
        All their rows, one after another [M, ...].
    """
    whole_pages = all(part.begin % GRANULE == 0 for part in parts[1:])
    lead = parts[0].begin % GRANULE
    whole_pages &= all((part.nbytes + (0 if number else lead)) % GRANULE == 0 for number, part in enumerate(parts[:-1]))
    if len(parts) == 1 or not (whole_pages and sys.platform in {"linux", "darwin"}):
        mapped = [_mapped(part) for part in parts]
        return mapped[0] if len(mapped) == 1 else joined(mapped)
    raw = _reserved(lead + sum(part.nbytes for part in parts))
    start = ctypes.addressof(raw)
    for number, part in enumerate(parts):
        before = 0 if number else lead
        _map_at(start, part, before)
        start += before + part.nbytes
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return torch.frombuffer(raw, dtype=parts[0].dtype, count=math.prod(shape), offset=lead).view(shape)


def _mapped(part: Part) -> Tensor:
    """Rows of one file.

    Returns:
        [m, ...].
    """
    if not part.nbytes:
        return torch.empty(part.shape, dtype=part.dtype)
    lead = part.begin % GRANULE
    with part.path.open("rb") as file:
        _require(file.fileno(), part)
        raw = mmap.mmap(file.fileno(), lead + part.nbytes, access=mmap.ACCESS_COPY, offset=part.begin - lead)
    return torch.frombuffer(raw, dtype=part.dtype, count=math.prod(part.shape), offset=lead).view(part.shape)


def _map_at(address: int, part: Part, before: int) -> None:
    """Map rows of a file, and so many bytes before them, to an address.

    Raises:
        OSError: the system has no room.
    """
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_FIXED
    flags |= getattr(mmap, "MAP_NORESERVE", 0)
    with part.path.open("rb") as file:
        _require(file.fileno(), part)
        found = _mmap()(address, before + part.nbytes, protection, flags, file.fileno(), part.begin - before)
    if found == FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(part.path))


def _require(file: int, part: Part) -> None:
    """What lies beyond the end of a file would end the process when it is looked at.

    Raises:
        OSError: the file has become shorter.
    """
    if os.fstat(file).st_size < part.begin + part.nbytes:
        raise OSError(f"{part.path.name} has become shorter")


def _reserved(size: int) -> "ctypes.Array[ctypes.c_char]":
    """Addresses that nothing else will get, until nobody holds what is there.

    Returns:
        As many bytes.

    Raises:
        OSError: there are none.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = _mmap()(None, size, 0, flags, -1, 0)
    if start == FAILED or start is None:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    raw = (ctypes.c_char * size).from_address(start)
    weakref.finalize(raw, _library().munmap, ctypes.c_void_p(start), ctypes.c_size_t(size)).atexit = False
    return raw


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


@cache
def _mmap() -> "ctypes._NamedFuncPointer":
    call = _library().mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    return call
