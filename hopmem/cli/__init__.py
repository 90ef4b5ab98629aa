"""The command line: options, one call to the pipeline, one call to the report.

torch is imported inside the commands only, so that help and mistakes answer at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hopmem.atomic import refuse_overwrite
from hopmem.cli.group import HopmemGroup
from hopmem.cli.options import (
    Alpha,
    AsJson,
    Bank,
    Beta,
    Device,
    Force,
    Format,
    IdColumn,
    Key,
    LayoutOption,
    ListFile,
    MemoryLimit,
    Mode,
    OnBad,
    Queries,
    Quiet,
    Seed,
    Size,
    Sources,
    Threads,
    Verbose,
    parse_number,
    show_version,
)
from hopmem.errors import SKIPPED_SOME, MissingInputError, UsageError

if TYPE_CHECKING:
    from hopmem.patterns import Reading
    from hopmem.pipeline import Machine, Outcome

app = typer.Typer(
    cls=HopmemGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="An associative memory: store clean patterns, retrieve them from noisy, masked or partial queries.",
)


@app.callback()
def hopmem(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Options of the tool itself."""


@app.command()
def store(
    output: Annotated[str, typer.Option("-o", "--output", help="The bank to write.", metavar="BANK")],
    sources: Sources = None,
    files_from: ListFile = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the bank; its map is kept.")] = False,
    values: Annotated[str | None, typer.Option(help="A source with a row to return for each pattern.")] = None,
    dtype: Annotated[
        Literal["uint8", "float16", "bfloat16", "float32", "float64"] | None, typer.Option(help="Store in this type.")
    ] = None,
    key: Key = None,
    id_column: IdColumn = None,
    format_: Format = None,
    layout: LayoutOption = None,
    size: Size = None,
    mode: Mode = None,
    on_bad: OnBad = "error",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count patterns and bytes; write nothing.")] = False,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Store clean patterns in a bank."""
    from hopmem import pipeline

    reading = _reading(key, id_column, format_, layout, size, mode, on_bad)
    options: dict[str, Any] = {"values": values, "dtype": dtype, "append": append, "force": force, "dry_run": dry_run}
    with _machine(device, seed, threads, memory_limit, quiet) as machine:
        outcome = pipeline.store(_all_sources(sources, files_from), output, reading, machine, **options)
    _finish(outcome, "store", as_json, quiet)


@app.command()
def optimize(
    bank: Bank,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write here instead of into the bank.")] = None,
    objective: Annotated[Literal["average"], typer.Option(help="What the map is learned for.")] = "average",
    feature_dim: Annotated[
        int | None,
        typer.Option(parser=parse_number(int, 1), metavar="INTEGER", help="Features; default: what the patterns span."),
    ] = None,
    steps: Annotated[
        int, typer.Option(parser=parse_number(int, 0), metavar="INTEGER", help="Most steps of gradient descent.")
    ] = 100,
    temperature: Annotated[
        float, typer.Option(parser=parse_number(float), metavar="NUMBER", help="Inverse width t of the average loss.")
    ] = 2.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(parser=parse_number(float), metavar="NUMBER", help="Of the first step; default: found."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(parser=parse_number(int, 2), metavar="INTEGER", help="Patterns in a step.")
    ] = 1024,
    time_limit: Annotated[
        float | None,
        typer.Option(parser=parse_number(float, 0), metavar="NUMBER", help="Seconds after which no step is begun."),
    ] = None,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Learn the feature map that sets the patterns of a bank apart."""
    from hopmem import pipeline

    options: dict[str, Any] = {
        "objective": objective,
        "feature_dim": feature_dim,
        "steps": steps,
        "temperature": temperature,
    }
    options |= {"learning_rate": learning_rate, "batch_size": batch_size, "time_limit": time_limit}
    with _machine(device, seed, threads, memory_limit, quiet) as machine:
        outcome = pipeline.optimize(bank, output, machine, force=force, **options)
    _finish(outcome, "optimize", as_json, quiet)


@app.command()
def retrieve(
    bank: Bank,
    queries: Queries = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Where the answers go; - is stdout.", metavar="OUT")
    ] = None,
    files_from: ListFile = None,
    alpha: Alpha = None,
    beta: Beta = "auto",
    steps: Annotated[
        int, typer.Option(parser=parse_number(int, 1), metavar="INTEGER", help="Most updates.", envvar="HOPMEM_STEPS")
    ] = 1,
    tolerance: Annotated[
        float,
        typer.Option(parser=parse_number(float, 0), metavar="NUMBER", help="A state that moves by less has converged."),
    ] = 1e-5,
    snap: Annotated[
        bool, typer.Option("--snap", help="Return the best stored pattern, not the weighted mean.")
    ] = False,
    top: Annotated[
        int,
        typer.Option(parser=parse_number(int, 1), metavar="INTEGER", help="Name this many memories for each query."),
    ] = 1,
    min_confidence: Annotated[
        float,
        typer.Option(parser=parse_number(float, 0, 1), metavar="NUMBER", help="Reject answers below this weight."),
    ] = 0.0,
    mask: Annotated[
        str | None, typer.Option(help="A source that is not zero (white) where entries are unknown.")
    ] = None,
    missing: Annotated[
        float | None,
        typer.Option(parser=parse_number(float), metavar="NUMBER", help="A value that marks unknown entries."),
    ] = None,
    key: Key = None,
    id_column: IdColumn = None,
    format_: Format = None,
    layout: LayoutOption = None,
    size: Size = None,
    mode: Mode = None,
    on_bad: OnBad = "error",
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Print each answer as a line of JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw queries and answers, the least sure first.", metavar="PNG")
    ] = None,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Retrieve the stored pattern for each noisy, masked or partial query."""
    from hopmem import pipeline

    asked = _all_sources(queries, files_from)
    if plot is not None:
        refuse_overwrite(plot, force=force)
    output = _answers_to(output, asked, as_json, ndjson)
    reading = _reading(key, id_column, format_, layout, size, mode, on_bad)
    options: dict[str, Any] = {
        "alpha": alpha,
        "beta": beta,
        "steps": steps,
        "tolerance": tolerance,
        "snap": snap,
        "top": top,
    }
    options |= {"min_confidence": min_confidence, "mask": mask, "missing": missing, "pictures": plot is not None}
    with _machine(device, seed, threads, memory_limit, quiet) as machine:
        outcome = pipeline.retrieve(bank, asked, output, reading, machine, force=force, **options)
    if plot is not None:
        _draw(outcome, plot, force)
    _finish(outcome, "retrieve", as_json, quiet, ndjson, output == "-")


@app.command()
def inspect(
    bank: Bank,
    closest: Annotated[
        int,
        typer.Option(parser=parse_number(int, 0), metavar="INTEGER", help="How many of the closest pairs to name."),
    ] = 10,
    error: Annotated[
        float,
        typer.Option(
            parser=parse_number(float, 0),
            metavar="NUMBER",
            help="The error in feature space that the bounds are solved for.",
        ),
    ] = 1e-3,
    alpha: Alpha = None,
    beta: Beta = "auto",
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show how well separated a bank is, and what it can promise."""
    from hopmem import pipeline

    with _machine(device, seed, threads, memory_limit, quiet) as machine:
        outcome = pipeline.inspect(bank, machine, closest=closest, error=error, alpha=alpha, beta=beta)
    _finish(outcome, "inspect", as_json, quiet)


def _reading(*options: Any) -> "Reading":
    from hopmem.patterns import Reading

    return Reading(*options)


def _all_sources(sources: list[str] | None, lists: list[str] | None) -> list[str]:
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


def _answers_to(output: str | None, queries: list[str], as_json: bool, ndjson: bool) -> str | None:
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
def _machine(
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


def _draw(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    from hopmem.plots import contact_sheet

    contact_sheet(outcome.pictures, plot, force=force)


def _finish(
    outcome: "Outcome[Any]", verb: str, as_json: bool, quiet: bool, ndjson: bool = False, data_on_stdout: bool = False
) -> None:
    """Report, and end as the contract says.

    Raises:
        Exit: with 7 where inputs were skipped.
    """
    from hopmem import report

    report.show(outcome, verb, report.Style(as_json, quiet, not ndjson, data_on_stdout))
    if ndjson:
        report.show_lines(outcome)
    if outcome.skipped:
        raise typer.Exit(SKIPPED_SOME)
