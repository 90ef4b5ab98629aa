"""A process that has loaded everything and forks a child for each command: to load torch takes longer than most work.

Each line that it reads is a command, as the words after `python`; it says how the child has ended. torchrun forks its
workers in the same way here, and is itself in all else.
"""

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOADED = [
    "hopmem.cli",
    *(f"hopmem.pipeline.{verb}" for verb in ("store", "optimize", "retrieve", "inspect", "evaluate")),
]
PATIENCE = 300.0  # seconds, after which a command hangs
InChild = Callable[..., tuple[int, float]]  # the exit code, and the seconds that it took


@contextmanager
def zygote() -> Iterator[InChild]:
    """Run commands: `code, seconds = run("-m", "hopmem", "inspect", bank)`.

    Options are paths `out` and `err` for what they print, and `after`, the seconds after which they are killed.
    """
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:

        def run(*words: object, **options: Any) -> tuple[int, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps([[str(word) for word in words], options]), file=process.stdin, flush=True)
            if not select.select([process.stdout], [], [], PATIENCE)[0]:
                process.kill()
                raise TimeoutError(f"no answer to {words}")
            code, seconds = json.loads(process.stdout.readline())
            return code, seconds

        yield run
        assert process.stdin is not None
        process.stdin.close()


def forked(words: Sequence[str], prepare: Callable[[], Any]) -> int:
    """Run in a child what `python` runs with these words, and give its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        prepare()
        if words[0] == "-m":
            sys.argv = list(words[1:])
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = list(words)
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Worker:
    """What torchrun needs of a `subprocess.Popen`."""

    def __init__(self, words: tuple[str, ...], environment: dict[str, str]) -> None:
        def prepare() -> None:
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)

        self._code: int | None = None
        self.pid = forked(words[2:], prepare)  # behind `python -u`

    def poll(self) -> int | None:
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a worker", seconds)
            time.sleep(0.01)


def job(words: list[str], out: str = os.devnull, err: str = os.devnull, after: float | None = None) -> list[float]:
    """Run a command, and give its exit code and the seconds it took."""

    def prepare() -> None:
        for handle, path, how in ((0, os.devnull, os.O_RDWR), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
            os.dup2(os.open(path, how | os.O_CREAT | os.O_TRUNC, 0o600), handle)

    began = time.monotonic()
    child = forked(words, prepare)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return [os.waitstatus_to_exitcode(status), time.monotonic() - began]


def main() -> None:
    """Load everything, and run what comes."""
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    for name in LOADED:
        importlib.import_module(name)
    torch.set_num_threads(1)  # threads do not survive a fork
    SubprocessHandler._popen = Worker  # type: ignore[assignment, method-assign]
    for line in sys.stdin:
        words, options = json.loads(line)
        sys.stdout.write(json.dumps(job(words, **options)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
