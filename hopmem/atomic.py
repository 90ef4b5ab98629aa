"""Files that are written whole or not at all."""

import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path

from hopmem.errors import UnreadableError, UsageError, WouldOverwriteError

LONGEST = 64  # bytes of a suffix that a temporary name takes over; image writers go by it
PREFIX = ".hopmem-"  # of temporary files; the machine and the process follow, so that a later run knows the dead


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes the name of `path` when the block ends well.

    It is synced before it is renamed, and its folder after, so that a reader sees the old file or the new one, also
    after a crash. What a killed run left in the folder is cleared away.

    Args:
        path: where the file shall stand; missing folders are made.
        force: whether a file that stands there may be replaced.

    Yields:
        The temporary path, with the suffix of `path`.

    Raises:
        OSError: of another file than this.
        UnreadableError: the folder can't be written to.
        WouldOverwriteError: a file stands there and `force` is not given.
    """
    refuse_overwrite(path, force=force)
    path = Path(os.path.realpath(path))  # a link keeps pointing where it points
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent)
        suffix = path.suffix if len(os.fsencode(path.suffix)) <= LONGEST else ""
        handle, name = tempfile.mkstemp(prefix=f"{_own()}{os.getpid()}-", suffix=suffix, dir=path.parent)
    except OSError as error:
        raise UnreadableError(path, "a place that can be written to", error.strerror) from error
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        if error.filename not in {None, name}:
            raise  # of another file
        raise UnreadableError(path, "room to write it", error.strerror or error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refuse_overwrite(path: Path, *, force: bool) -> None:
    """Check early what `replacing` will check.

    Raises:
        UnreadableError: something stands there that is no file.
        WouldOverwriteError: a file stands there and `force` is not given.
    """
    if "\0" in str(path):
        raise UnreadableError(path, "a name for a file", "one with a zero byte")
    if path.exists() and not path.is_file():
        raise UnreadableError(path, "a name for a file", "a folder, a device or a pipe")
    if not force and path.exists():
        raise WouldOverwriteError(path)


def refuse_itself(output: str | Path, inputs: Iterable[str]) -> None:
    """Refuse to write over what is read: the bank, or the source of a bank.

    Args:
        output: what will be written.
        inputs: what is read.

    Raises:
        UsageError: they are one file.
    """
    for each in inputs:
        with suppress(OSError, ValueError):  # of what is not there, which its reader says better
            if Path(output).samefile(each):
                raise UsageError(f"{output}: expected another file than what is read, found {each}")


@cache
def _own() -> str:
    """How the temporary files of this machine begin: a process number means nothing on another.

    Returns:
        The prefix.
    """
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)  # containers may share a name, and no processes
        return f"{PREFIX}{_digest(socket.gethostname() + namespace)}-"
    return f"{PREFIX}{_digest(socket.gethostname())}-"


def _digest(text: str) -> str:
    return blake2b(os.fsencode(text), digest_size=4).hexdigest()


@cache  # once for each folder: answers may be ten thousand files
def _clear(folder: Path) -> None:
    """Take away the temporary files of processes of this machine that are no more."""
    if os.name != "posix":
        return  # elsewhere to ask after a process ends it
    with suppress(OSError), os.scandir(folder) as entries:  # a folder may be written to and not listed,
        for entry in list(entries):
            process = entry.name.removeprefix(_own()).partition("-")[0] if entry.name.startswith(_own()) else ""
            if process.isdecimal() and not _lives(int(process)):
                with suppress(OSError):  # and hold somebody else's files
                    Path(entry.path).unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _sync(folder: Path) -> None:
    """Make the new name last, where the system can: not every one opens folders."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """The process's umask, which can be read only by setting it.

    Returns:
        The bits that new files lack.
    """
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
