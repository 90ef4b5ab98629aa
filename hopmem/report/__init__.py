"""Result → rich table | JSON, and progress on stderr."""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

import hopmem
from hopmem.errors import UnreadableError, printable
from hopmem.pipeline.outcome import Outcome
from hopmem.report.cells import sparkline
from hopmem.report.tables import tables
from hopmem.results import Match, RetrieveResult

if TYPE_CHECKING:
    from hopmem.verbs.work import Watch

STARTED = time.monotonic()
NOTE = TextColumn("{task.fields[note]}")  # how well the work goes: its loss


@dataclass(frozen=True)
class Style:
    """How a result is shown."""

    as_json: bool = False
    quiet: bool = False
    table: bool = True  # unless lines of JSON are printed instead
    data_on_stdout: bool = False  # answers go to stdout, so the table goes to stderr


@contextmanager
def watching(*, quiet: bool) -> Iterator["Watch | None"]:
    """A progress bar with ETA for each stage of the work, on stderr, where a person looks.

    Yields:
        What the work reports to, or None where nobody looks.
    """
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description:>16}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), NOTE)
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def watch(label: str, done: int, total: int, note: str = "") -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total, note=note)
            bar.update(tasks[label], completed=done, total=total, note=note)

        yield watch


def show(outcome: Outcome[Any], verb: str, style: Style) -> None:
    """Print a result: JSON on stdout, or a table there (on stderr where stdout holds data).

    Raises:
        UnreadableError: stdout is closed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Greek gets escapes, not an error
    errors = Console(stderr=True, soft_wrap=True)
    for line in [] if style.quiet else outcome.warnings:
        errors.print(Text.assemble(("warning: ", "yellow"), printable(line)))
    for skip in [] if style.quiet else outcome.skipped:
        errors.print(Text.assemble(("skipped: ", "yellow"), printable(f"{skip.name}: {skip.reason}")))
    if sys.stdout is None and (style.as_json or not style.quiet):
        raise UnreadableError("standard output", "a place for the result (or -q)", "a closed one")
    if style.as_json:
        print(json.dumps(to_json(outcome, verb)))  # noqa: T201 # the one place that prints
    elif style.table and not style.quiet:
        _print_tables(outcome, Console(stderr=style.data_on_stdout))


def _print_tables(outcome: Outcome[Any], console: Console) -> None:
    """Print a result for a person, and how the loss fell where something was learned."""
    for table in tables(outcome.result):
        console.print(table)
    if curve := sparkline(outcome.curve):
        console.print(f"learning {curve} {outcome.curve[0]:.4g} → {outcome.curve[-1]:.4g}")


def show_lines(matches: Sequence[Match]) -> None:
    """Print each answer as a line of JSON on stdout, at once: somebody may be waiting at the other end of a pipe."""
    for match in matches:
        print(json.dumps(_plain(_without_empty_top(vars(match)))))  # noqa: T201 # the one place that prints
    sys.stdout.flush()


def to_json(outcome: Outcome[Any], verb: str) -> dict[str, Any]:
    """A result as JSON: the keys of the contract.

    Returns:
        Plain values; what is not finite is null.
    """
    result = asdict(outcome.result)
    if isinstance(outcome.result, RetrieveResult):
        result["results"] = [_without_empty_top(match) for match in result["results"]]
        del result["more"]  # of what was not asked for
    if result.get("estimate", ...) is None:  # of a run that was not dry
        del result["estimate"]
    shared = {
        "schema": f"hopmem.{verb}/1",
        "version": hopmem.__version__,
        "device": outcome.device,
        "seconds": round(time.monotonic() - STARTED, 3),
        "warnings": outcome.warnings,
        "skipped": [asdict(skip) for skip in outcome.skipped],
    }
    plain: dict[str, Any] = _plain(shared | result)
    return plain


def _without_empty_top(match: dict[str, Any]) -> dict[str, Any]:
    """Leave out the list of the next best memories where it was not asked for.

    Returns:
        The record.
    """
    return match if match["top"] else {key: value for key, value in match.items() if key != "top"}


def _plain(value: Any) -> Any:
    """A value that JSON can hold.

    Returns:
        The value, with null for what is not finite and lone surrogates escaped.
    """
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
