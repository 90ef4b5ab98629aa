"""Compressed sources, unpacked to no more than they say and than is allowed: a small file may hold a bomb."""

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hopmem.errors import InvalidDataError
from hopmem.pages import LEAST, scarce

LIMIT = 1 << 30  # bytes that one file may unpack to where nothing else is asked for
IN_MEMORY = 1 << 26  # bytes up to which they are kept in memory; more are mapped from a temporary file
AT_ONCE = 1 << 20


class Stream(Protocol):
    """What bytes come from, one after another."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, at most `size`; none at the end."""


def allow(path: Path, size: int, limit: int) -> None:
    """Refuse what would unpack to more than is allowed, before it does.

    Args:
        path: the file.
        size: bytes that it says it unpacks to.
        limit: bytes that are allowed.

    Raises:
        InvalidDataError: they are too many.
    """
    if size > limit:
        raise InvalidDataError(path, f"at most {limit:,} bytes when it is unpacked (--unpack-limit)", f"{size:,}")


def unpacked(stream: Stream, size: int) -> NDArray[np.uint8]:
    """The next bytes of a compressed stream.

    Args:
        stream: read no further than these bytes.
        size: how many.

    Returns:
        They, or fewer where the stream ends before; many of them mapped from a file without a name.
    """
    if size <= (LEAST if scarce() else IN_MEMORY):
        return np.frombuffer(bytearray(stream.read(size)), np.uint8)
    with tempfile.TemporaryFile() as file:
        left = size
        while left and (part := stream.read(min(AT_ONCE, left))):
            file.write(part)
            left -= len(part)
        file.flush()
        if left == size:
            return np.empty(0, np.uint8)
        return np.memmap(file, np.uint8, "c")  # which keeps it open
