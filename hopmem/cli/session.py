"""What all commands do around their one call: gather the sources, set up the machine, draw, report and end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hopmem.atomic import refuse_overwrite
from hopmem.errors import INTERRUPTED, SKIPPED_SOME, MissingInputError, UsageError

if TYPE_CHECKING:
    from hopmem.pipeline import Machine, Outcome


def all_sources(sources: list[str] | None, lists: list[str] | None) -> list[str]:
    """The sources of the command line, and those that list files name.

    Returns:
        At least one.

    Raises:
        MissingInputError: no such list file.
        UsageError: no source at all.
    """
    found = list(sources or [])
    for name in lists or []:
        if name != "-" and not Path(name).is_file():
            raise MissingInputError(name, "a file with one source a line")
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8", errors="surrogateescape")
        found += [line for line in text.splitlines() if line]
    if not found:
        raise UsageError("expected at least one file or folder to read, found none (see --help)")
    return found


def answers_to(output: str | None, queries: list[str], as_json: bool, ndjson: bool) -> str | None:
    """Where answers go: what comes on stdin goes to stdout unless JSON is wanted there.

    Returns:
        The path, `-`, or None for nowhere.

    Raises:
        UsageError: more than one thing on stdout.
    """
    wanted = [name for name, given in (("-o -", output == "-"), ("--json", as_json), ("--ndjson", ndjson)) if given]
    if len(wanted) > 1:
        raise UsageError(f"expected one thing on stdout, found {' and '.join(wanted)}")
    return "-" if output is None and "-" in queries and not wanted else output


@contextmanager
def machine(
    device: str, seed: int | None, threads: int | None, memory_limit: str | None, quiet: bool
) -> "Iterator[Machine]":
    """What the shared options stand for.

    Yields:
        The machine to work on, watched from a terminal.
    """
    from hopmem import devices
    from hopmem.pipeline import Machine
    from hopmem.report import watching

    devices.set_threads(threads)
    with watching(quiet=quiet) as watch:
        yield Machine(device, seed, devices.budget(memory_limit), watch)


def draw(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw the queries and answers of retrieve."""
    from hopmem.plots import contact_sheet

    contact_sheet(outcome.pictures, plot, force=force)


def can_chart(plot: Path, force: bool) -> None:
    """Find out before the work whether its picture can be drawn."""
    from hopmem.plots import require_matplotlib

    refuse_overwrite(plot, force=force)
    require_matplotlib()


def chart_learning(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw what optimize validated and how it learned."""
    from hopmem.plots import learning_chart

    noun = "largest cosine" if outcome.result.objective == "spherical" else "loss"
    learning_chart(outcome.result.validation, outcome.curve, noun, plot, force=force)


def chart(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw what evaluate measured."""
    from hopmem.plots import accuracy_chart

    accuracy_chart(outcome.result.rows, plot, force=force)


def finish(
    outcome: "Outcome[Any]", verb: str, as_json: bool, quiet: bool, ndjson: bool = False, data_on_stdout: bool = False
) -> None:
    """Report, and end as the contract says.

    Raises:
        Exit: with 7 where inputs were skipped, with 130 where the work was interrupted.
    """
    from hopmem import report

    report.show(outcome, verb, report.Style(as_json, quiet, not ndjson, data_on_stdout))
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.skipped:
        raise typer.Exit(SKIPPED_SOME)
