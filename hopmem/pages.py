"""Pages of mapped files, given back before they fill the memory that was allowed.

A page of a mapped file that was read counts as memory of the process until somebody else needs the room. Pages that
nobody writes to may go at any time, and come back from the file when they are next looked at. Under a limit the files
that were opened are therefore mapped for reading only, and whoever goes through rows block by block calls `rest`.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

LEAST = 1 << 20  # bytes of a tensor from which its pages are worth giving back
SHARE = 2  # the part of the limit that may be resident before they are: blocks and their temporaries need the rest
STATM, SMAPS = Path("/proc/self/statm"), Path("/proc/self/smaps")


class Mapped(Protocol):
    """A tensor."""

    @property
    def nbytes(self) -> int:
        """Its size."""

    def data_ptr(self) -> int:
        """Where it begins."""

    def is_contiguous(self) -> bool:
        """Whether it ends as many bytes later as it has."""


@dataclass
class _Limit:
    """What may be resident, and what can be given back."""

    bytes: int
    before: int | None  # bytes that are resident before the work; None until that is known
    watched: list[tuple[int, int, Mapped]] = field(default_factory=list)  # addresses, and what keeps them mapped


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


@contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """Keep to a limit, as far as pages of mapped files go.

    Args:
        memory: bytes beside those that torch takes; None sets no limit. Only Linux knows how to keep it.

    Yields:
        Nothing.
    """
    known = memory is not None and STATM.exists()
    before = _resident() if known and "torch" in sys.modules else None
    token = _limit.set(_Limit(memory, before) if known and memory is not None else None)
    try:
        yield
    finally:
        _limit.reset(token)


def scarce() -> bool:
    """Whether there is a limit to keep to.

    Returns:
        False where nobody set one.
    """
    return _limit.get() is not None


def watch(tensor: Mapped) -> None:
    """Let the pages of a tensor be given back, where it is a file that is mapped and unchanged: it stays so.

    Args:
        tensor: as it was opened; whoever writes to it from now on is stopped by the processor.
    """
    limit = _limit.get()
    if limit is None:
        return
    if limit.before is None:
        limit.before = _resident()
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end - start < LEAST or not tensor.is_contiguous() or not _is_unchanged_file(start, end):
        return
    if _call("mprotect", start, end - start, mmap.PROT_READ):
        limit.watched.append((start, end - start, tensor))


def rest() -> None:
    """Give pages back if much of the memory that is allowed is taken: called between two blocks of rows."""
    limit = _limit.get()
    if limit is None or not limit.watched or _resident() - (limit.before or 0) <= limit.bytes // SHARE:
        return
    for start, size, _ in limit.watched:
        _call("madvise", start, size, mmap.MADV_DONTNEED)


def _resident() -> int:
    with STATM.open("rb", buffering=0) as file:
        return int(file.read(128).split()[1]) * mmap.PAGESIZE


def _call(name: str, start: int, size: int, how: int) -> bool:
    """Ask the system something about a range of addresses.

    Returns:
        Whether it did it.
    """
    done: int = getattr(ctypes.CDLL(None), name)(ctypes.c_void_p(start), ctypes.c_size_t(size), how)
    return done == 0


def _is_unchanged_file(start: int, end: int) -> bool:
    """Whether a range of addresses is one mapped file, and none of it was written to.

    Returns:
        False where it is plain memory.
    """
    inside = False
    with SMAPS.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split()
            if not words[0].endswith(":"):
                begin, stop = (int(place, 16) for place in words[0].split("-"))
                inside = begin <= start and end <= stop and words[4] != "0"
            elif inside and words[0] == "Anonymous:":
                return words[1] == "0"
    return False
