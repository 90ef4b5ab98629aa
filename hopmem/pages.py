"""The limit on memory, and how it is kept: pages of mapped files are given back, and what can't fit is refused.

A page of a mapped file that was read counts as memory of the process until somebody else needs the room. Pages that
nobody writes to may go at any time, and come back from the file when they are next looked at. Under a limit the files
that were opened are therefore mapped for reading only, and whoever goes through rows block by block calls `rest`. What
needs more at once than the limit leaves is refused before it begins (`require`).
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

from hopmem.errors import DeviceError

OWN = 48 << 20  # bytes that a command takes beside torch, whatever its data: its modules, and those of torch that work
FLOOR = 56 << 20  # the least limit: its own, and blocks of two mebibytes
LEAST = 1 << 20  # bytes of a tensor from which its pages are worth giving back
SHARE = 2  # the part of the limit that may be resident before they are: blocks and their temporaries need the rest
AGAIN = 8  # the part by which it must have grown since they were
MIB = 1 << 20
BYTES_OF_NAME = 250  # of a row: a short text, where it is, and room to work with it
M_MMAP_THRESHOLD = -3  # of mallopt: bytes from which a block is mapped by itself
LARGE = 1 << 17  # of those: smaller ones lie among others, which keep what was freed between them
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
    rested: int = 0  # bytes that were resident after pages were last given back


_limit: ContextVar[_Limit | None] = ContextVar("limit", default=None)


@contextmanager
def limited(memory: int | None) -> Iterator[None]:
    """Keep to a limit, as far as pages of mapped files go.

    Args:
        memory: bytes beside those that torch takes; None sets no limit. Only Linux knows how to keep it.

    Yields:
        Nothing.

    Raises:
        DeviceError: less than any command takes.
    """
    known = memory is not None and STATM.exists()
    if known and memory is not None and memory < FLOOR:
        raise DeviceError(f"--memory-limit: expected at least {FLOOR // MIB}M, found {memory / MIB:g}M")
    if known:
        _free_at_once()
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


def room() -> int | None:
    """What the limit leaves for data.

    Returns:
        Bytes beside those that the command itself takes; None without a limit.
    """
    limit = _limit.get()
    return None if limit is None else limit.bytes - OWN


def require(needed: int, what: str) -> None:
    """Refuse work that can't fit, before it begins.

    Args:
        needed: bytes that it holds at once.
        what: it does, for the message.

    Raises:
        DeviceError: the limit leaves less.
    """
    limit = _limit.get()
    if limit is not None and needed > limit.bytes - OWN:
        least = -(-(needed + OWN) // MIB)
        raise DeviceError(f"--memory-limit: expected at least {least}M {what}, found {limit.bytes / MIB:g}M")


def require_names(count: int) -> None:
    """Refuse rows whose names alone a limit leaves no room for.

    Args:
        count: of the rows.

    Raises:
        DeviceError: the limit is too low.
    """
    require(count * BYTES_OF_NAME, f"to hold the names of {count:,} rows")


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
    start, end = _whole_pages(tensor)
    if end - start < LEAST or not tensor.is_contiguous() or not _is_unchanged_file(start, end):
        return
    if _call("mprotect", start, end - start, mmap.PROT_READ):
        limit.watched.append((start, end - start, tensor))


def lend(tensor: Mapped) -> None:
    """Let the pages of a tensor be given back, where it is a file that is mapped and shared: writing to it is safe.

    Args:
        tensor: whose pages the system writes to their file before it takes them.
    """
    limit = _limit.get()
    if limit is not None:
        start, end = _whole_pages(tensor)
        limit.watched.append((start, end - start, tensor))


def rest() -> None:
    """Give pages back if much of the memory that is allowed is taken: called between two blocks of rows."""
    limit = _limit.get()
    if limit is None or not limit.watched:
        return
    resident, left = _resident(), limit.bytes - OWN
    # What is resident after pages were given back is no page of a file: asking again would not help.
    if resident - (limit.before or 0) > left // SHARE and resident - limit.rested > left // AGAIN:
        give_back()


def give_back() -> None:
    """Give all pages back, before other work than theirs begins."""
    limit = _limit.get()
    if limit is not None and limit.watched:
        for start, size, _ in limit.watched:
            _call("madvise", start, size, mmap.MADV_DONTNEED)
        limit.rested = _resident()


def _free_at_once() -> None:
    """Have the C library hand large blocks back when they are freed, where it otherwise keeps them for the next."""
    with suppress(AttributeError):  # of a library that has no such thing
        _library().mallopt(M_MMAP_THRESHOLD, LARGE)


def _whole_pages(tensor: Mapped) -> tuple[int, int]:
    """Where the first page of a tensor begins, and its last ends, that hold nothing else.

    Returns:
        Two addresses.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    return start, (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE


def _resident() -> int:
    with STATM.open("rb", buffering=0) as file:
        return int(file.read(128).split()[1]) * mmap.PAGESIZE


def _call(name: str, start: int, size: int, how: int) -> bool:
    """Ask the system something about a range of addresses.

    Returns:
        Whether it did it.
    """
    done: int = getattr(_library(), name)(ctypes.c_void_p(start), ctypes.c_size_t(size), how)
    return done == 0


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


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
