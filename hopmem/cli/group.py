"""Commands whose mistakes end in one line on stderr and the documented exit code."""

import traceback
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperGroup

from hopmem.errors import INTERRUPTED, HopmemError, UnreadableError, UsageError, printable

# Typer ships its own click, whose names are not ours to import.
CLICK_USAGE_ERROR = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])
VERBOSE = "hopmem.verbose"


class HopmemGroup(TyperGroup):
    """Commands whose mistakes end in one line on stderr and the documented exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # its click's
        """Read the tool's own options.

        Returns:
            The arguments that are left.

        Raises:
            Exit: with the code of a mistake in their use.
        """
        try:
            return super().parse_args(ctx, args)
        except CLICK_USAGE_ERROR as error:
            if not error.format_message():  # nothing was asked for, and the help has been shown
                raise typer.Exit(UsageError.exit_code) from error
            self._end(ctx, f"{error.format_message()} (see --help)", UsageError.exit_code)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer.Context is its click's Context
        """Run a command.

        Returns:
            What the command returns.

        Raises:
            Exit: with the documented code.
            BrokenPipeError: the reader of stdout has gone; click ends quietly.
        """
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except CLICK_USAGE_ERROR as error:
            self._end(ctx, f"{error.format_message()} (see --help)", UsageError.exit_code)
        except HopmemError as error:
            self._end(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            self._end(ctx, "interrupted", INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            refused = UnreadableError(error.filename, "a file that can be used", error.strerror)
            self._end(ctx, str(refused), refused.exit_code)
        except Exception as error:
            self._end(ctx, f"internal error, {type(error).__name__}: {error} (-v shows where)", HopmemError.exit_code)

    def _end(self, ctx: typer.Context, line: str, code: int) -> NoReturn:
        """Say what went wrong and leave.

        Raises:
            Exit: always.
        """
        if ctx.meta.get(VERBOSE):
            traceback.print_exc()
        typer.echo(f"hopmem: {printable(' '.join(line.split()))}", err=True)
        raise typer.Exit(code)
