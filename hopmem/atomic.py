"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hopmem.errors import UnreadableError, WouldOverwriteError

LONGEST = 64  # bytes of a suffix that a temporary name takes over; image writers go by it


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the name of `path` when the block ends well.

    It is synced before it is renamed, so that a reader sees the old file or the new one, also after a crash.

    Args:
        path: where the file shall stand; missing folders are made.
        force: whether a file that stands there may be replaced.

    Yields:
        The temporary path, with the suffix of `path`.

    Raises:
        UnreadableError: the folder can't be written to.
        WouldOverwriteError: a file stands there and `force` is not given.
    """
    refuse_overwrite(path, force=force)
    path = Path(os.path.realpath(path))  # a link keeps pointing where it points
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST else ""
        handle, name = tempfile.mkstemp(prefix=".hopmem-", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise UnreadableError(path, "a place that can be written to", error.strerror) from error
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        temporary.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_overwrite(path: Path, *, force: bool) -> None:
    """Check early what `replacing` will check.

    Raises:
        UnreadableError: something stands there that is no file.
        WouldOverwriteError: a file stands there and `force` is not given.
    """
    if path.exists() and not path.is_file():
        raise UnreadableError(path, "a name for a file", "a folder, a device or a pipe")
    if not force and path.exists():
        raise WouldOverwriteError(path)


def _umask() -> int:
    """The process's umask, which can be read only by setting it.

    Returns:
        The bits that new files lack.
    """
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
