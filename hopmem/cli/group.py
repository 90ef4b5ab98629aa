"""Commands whose mistakes end in one line on stderr and the documented exit code."""

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from hopmem.errors import INTERRUPTED, TERMINATED, HopmemError, Terminated, UnreadableError, UsageError, printable

# Typer ships its own click, whose names are not ours to import.
CLICK_USAGE_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])
VERBOSE = "hopmem.verbose"
TORCHRUN = "TORCHELASTIC_RUN_ID"  # what torchrun sets in the environment of those that it starts
GRACE = 3.0  # seconds in which the first process says what all know
INTERRUPTION, TERMINATION = ("interrupted", INTERRUPTED), ("terminated", TERMINATED)


class HopmemGroup(TyperGroup):
    """Commands whose mistakes end in one line on stderr and the documented exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # its click's
        """Read the tool's own options.

        Returns:
            The arguments that are left.

        Raises:
            Exit: with the code of a mistake in their use.
            BrokenPipeError: the reader of stdout has gone; click ends quietly.
        """
        try:
            return super().parse_args(ctx, args)
        except CLICK_USAGE_ERROR as error:
            if not error.format_message():  # nothing was asked for, and the help has been shown
                raise typer.Exit(UsageError.exit_code) from error
            self._end(ctx, f"{error.format_message()} (see --help)", UsageError.exit_code)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:  # of --version and --help
            self._refuse(ctx, error)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer.Context is its click's Context
        """Run a command.

        Returns:
            What the command returns.

        Raises:
            Exit: with the documented code.
            BrokenPipeError: the reader of stdout has gone; click ends quietly.
        """
        asked: list[KeyboardInterrupt] = []
        try:
            with _interruptible(asked):
                found = super().invoke(ctx)
            _flush()
            return found
        except typer.Exit:
            raise
        except CLICK_USAGE_ERROR as error:
            self._end(ctx, f"{error.format_message()} (see --help)", UsageError.exit_code)
        except HopmemError as error:
            self._end(ctx, str(error), error.exit_code)
        except KeyboardInterrupt as stop:
            self._end(ctx, *_end_of(stop))
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            self._refuse(ctx, error)
        except Exception as error:
            # Compiled code may have lost an interruption, and an import that it broke off failed later.
            self._end(ctx, *_end_of(asked[0] if asked else error))

    def _refuse(self, ctx: typer.Context, error: OSError) -> NoReturn:
        """Say which file could not be used, and leave."""
        if error.filename is None and error.errno == errno.ENOSPC and sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try to write once more at its end
        refused = UnreadableError(error.filename or "standard output", "a file that can be used", error.strerror)
        self._end(ctx, str(refused), refused.exit_code)

    def _end(self, ctx: typer.Context, line: str, code: int) -> NoReturn:
        """Say what went wrong and leave.

        Raises:
            Exit: always.
        """
        if ctx.meta.get(VERBOSE):
            traceback.print_exc()
        if _speaks():
            typer.echo(f"hopmem: {printable(' '.join(line.split()))}", err=True)
        raise typer.Exit(code)


def _speaks() -> bool:
    """Whether this process says what went wrong.

    Returns:
        True alone, and for one of several that torchrun has started.
    """
    if TORCHRUN not in os.environ:
        return True
    if "hopmem.cluster" in sys.modules and (met := sys.modules["hopmem.cluster"].met()) is not None:
        return bool(met.first_to_speak())
    if os.environ.get("RANK") != "0":  # before they met, and most likely with all: torchrun ends this one meanwhile
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(GRACE)
    return True


def _end_of(cause: BaseException) -> tuple[str, int]:
    """What is said of an interruption, or of a mistake of the tool itself.

    Returns:
        The line and the exit code.
    """
    if isinstance(cause, KeyboardInterrupt):
        return TERMINATION if isinstance(cause, Terminated) else INTERRUPTION
    return f"internal error, {type(cause).__name__}: {cause} (-v shows where)", HopmemError.exit_code


@contextmanager
def _interruptible(asked: list[KeyboardInterrupt]) -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with what there is to tidy up tidied up, and remember both.

    Args:
        asked: what is raised is added to it.
    """
    helps = TORCHRUN in os.environ and os.environ.get("RANK") != "0"  # and has nothing to tidy up
    if helps or threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def stop(number: int, frame: Any) -> NoReturn:
        asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise asked[-1]

    heard = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    # Ctrl-C may be ignored, as where a shell started the command with &, and then it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        heard[signal.SIGINT] = signal.default_int_handler
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


def _flush() -> None:
    """Find out while it can still be said that standard output is full."""
    if sys.stdout is not None:
        sys.stdout.flush()
