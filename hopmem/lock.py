"""One writer of a bank at a time. Readers ask nobody: a bank is replaced whole, so they see the old one or the new."""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from hopmem.errors import LockedError, UnreadableError, UsageError

PATIENCE = "HOPMEM_LOCK_TIMEOUT"  # the variable that says how many seconds a writer waits for another,
USUAL = 60.0  # and where it says nothing
OFTEN = 0.05  # seconds between two looks


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock of a bank, which a process may take several times.

    The lock is a hidden file beside the bank, gone when nobody holds it; that of a killed process holds nobody up.

    Args:
        path: the bank, there or not.

    Yields:
        Nothing.
    """
    path, seconds = Path(os.path.realpath(path)), _patience()
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    # Whoever else may write here must be able to open the lock, too.
    lock = FileLock(_beside(path), timeout=seconds, poll_interval=OFTEN, is_singleton=True, mode=0o666)
    try:
        _acquire(lock, path, seconds)
        try:
            yield
        finally:
            if lock.lock_counter == 1 and os.name == "posix":
                Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits sees it, and makes another
            lock.release()
    finally:
        for folder in made:
            with suppress(OSError):  # of a folder that holds something by now
                folder.rmdir()


def _acquire(lock: BaseFileLock, path: Path, seconds: float) -> None:
    """Take a lock, and say so in it.

    Raises:
        LockedError: another process held it all the time.
        UnreadableError: the folder can't be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass  # which tells at once where no file can be made
        lock.acquire()
        if lock.lock_counter == 1:
            Path(lock.lock_file).write_text(json.dumps(_own()), encoding="utf-8")
    except Timeout as error:
        raise LockedError(path, _holder(Path(lock.lock_file)), seconds) from error
    except OSError as error:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
        raise UnreadableError(path, "a place that can be written to", error.strerror) from error


def _beside(path: Path) -> Path:
    """The lock of a bank: its name can't be too long, whatever the bank's is.

    Returns:
        A hidden file in the folder of the bank.
    """
    return path.with_name(f".hopmem-{blake2b(os.fsencode(path.name), digest_size=8).hexdigest()}.lock")


def _own() -> dict[str, str]:
    """Who this process is.

    Returns:
        What another may want to know.
    """
    command = " ".join(["hopmem", *sys.argv[1:2]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"process": str(os.getpid()), "host": socket.gethostname(), "command": command, "since": since}


def _holder(file: Path) -> str:
    """Who holds a lock, as far as it says.

    Returns:
        Words.
    """
    try:
        own = json.loads(file.read_text(encoding="utf-8"))
        return f"process {own['process']} on {own['host']} ({own['command']}, since {own['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _patience() -> float:
    """How long to wait for another writer.

    Returns:
        Seconds.

    Raises:
        UsageError: no number of seconds.
    """
    asked = os.environ.get(PATIENCE, str(USUAL))
    try:
        seconds = float(asked)
    except ValueError as error:
        raise UsageError(f"{PATIENCE}: expected seconds, found {asked!r}") from error
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{PATIENCE}: expected seconds, found {asked!r}")
    return seconds
