"""The command line: options, one call to the pipeline, one call to the report.

torch is imported inside the commands only, so that help and mistakes answer at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hopmem.cli import session
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
    UnpackLimit,
    Verbose,
    parse_number,
    parse_share,
    show_version,
    split_counts,
    split_names,
)
from hopmem.errors import UsageError

if TYPE_CHECKING:
    from hopmem.patterns import Reading
    from hopmem.verbs.optimize import Task

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
    unpack_limit: UnpackLimit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count patterns, estimate memory and time; write nothing.")
    ] = False,
    shard_size: Annotated[
        str | None,
        typer.Option(
            help="Write files of at most so many bytes, such as 5G, and an index: BANK.index.json.", metavar="SIZE"
        ),
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
    """Store clean patterns in a bank."""
    from hopmem.pipeline.store import store as run

    reading = _reading(key, id_column, format_, layout, size, mode, on_bad, session.unpack_limit(unpack_limit))
    options: dict[str, Any] = {"values": values, "dtype": dtype, "append": append, "force": force, "dry_run": dry_run}
    options["shard_size"] = session.shard_size(shard_size)
    with session.machine(device, seed, threads, memory_limit, quiet) as machine:
        outcome = run(session.all_sources(sources, files_from), output, reading, machine, **options)
    session.finish(outcome, "store", as_json, quiet)


@app.command()
def optimize(
    bank: Bank,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write here instead of into the bank.")] = None,
    objective: Annotated[
        Literal["denoise", "average", "spherical"] | None,
        typer.Option(help="For retrieval under noise (denoise, the default), or for separation: U-Hop's, U-Hop+'s."),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="What queries will suffer; repeatable; default: mixed.", metavar="KIND:LEVEL"),
    ] = None,
    noise_from: Annotated[
        str | None, typer.Option(help="Instead: a source of real corrupted rows.", metavar="SOURCE")
    ] = None,
    clean_from: Annotated[
        str | None, typer.Option(help="The clean rows that belong to them, by name or row by row.", metavar="SOURCE")
    ] = None,
    unpack_limit: UnpackLimit = None,
    feature_dim: Annotated[
        int | None,
        typer.Option(
            parser=parse_number(int, 1),
            metavar="INTEGER",
            help="Features; default: what validation chooses, or what the patterns span.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=parse_number(int, 0),
            metavar="INTEGER",
            help="Most steps of gradient descent; default: what suits the objective.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            parser=parse_number(float),
            metavar="NUMBER",
            help="Of average its inverse width t; of spherical the first τ.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(parser=parse_number(float), metavar="NUMBER", help="Of the first step; default: found."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(parser=parse_number(int, 2), metavar="INTEGER", help="Patterns in a step.")
    ] = None,
    restarts: Annotated[
        int | None,
        typer.Option(parser=parse_number(int, 1), metavar="INTEGER", help="Starts of a spherical code; default: 16."),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            parser=parse_number(float, 0),
            metavar="NUMBER",
            help="Seconds; then the best so far is judged and taken.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that was interrupted.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the validation and the learning.", metavar="PNG")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files; keep a map that does not beat the raw patterns.")
    ] = False,
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Learn the feature map that a bank retrieves best with."""
    from hopmem.pipeline.optimize import optimize as run

    asked: dict[str, Any] = {"objective": objective, "noise": tuple(noise) if noise else None, "steps": steps}
    asked |= {"feature_dim": feature_dim, "temperature": temperature, "learning_rate": learning_rate}
    asked |= {"batch_size": batch_size, "restarts": restarts}
    task, given = _task({name: value for name, value in asked.items() if value is not None}, noise_from, force)
    pairs: dict[str, Any] = {"noise_from": noise_from, "clean_from": clean_from}
    pairs["unpack_limit"] = session.unpack_limit(unpack_limit)
    drawing = session.CHART if plot else 0
    with session.machine(device, seed, threads, memory_limit, quiet, drawing, several=True) as machine:
        if machine.serves:
            from hopmem.pipeline.company import serve

            serve(bank, machine, to_the_end=True)
            return
        if plot is not None:
            session.can_chart(plot, force or machine.again)
        options: dict[str, Any] = {"time_limit": time_limit, "resume": resume, "given": given}
        outcome = run(bank, output, task, machine, **pairs, **options, follow=plot is not None)
    if plot is not None:
        session.chart_learning(outcome, plot, force or machine.again)
    session.finish(outcome, "optimize", as_json, quiet)
    session.ended(machine)


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
    unpack_limit: UnpackLimit = None,
    ndjson: Annotated[bool, typer.Option("--ndjson", help="Print each answer as a line of JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw queries and answers, the least sure first.", metavar="PNG")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate memory and time; write nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what an interrupted run has answered.")] = False,
    split: Annotated[
        Literal["auto", "memories", "queries"], typer.Option(help="What the processes of torchrun divide among them.")
    ] = "auto",
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
    from hopmem.pipeline.retrieve import retrieve as run
    from hopmem.report import show_lines
    from hopmem.report.tables import ROWS_SHOWN

    asked = session.all_sources(queries, files_from) if session.first() else []
    output = session.answers_to(output, asked, as_json, ndjson)
    reading = _reading(key, id_column, format_, layout, size, mode, on_bad, session.unpack_limit(unpack_limit))
    options: dict[str, Any] = {
        "alpha": alpha,
        "beta": beta,
        "steps": steps,
        "tolerance": tolerance,
        "snap": snap,
        "top": top,
    }
    options |= {"min_confidence": min_confidence, "mask": mask, "missing": missing, "pictures": plot is not None}
    options |= {"force": force, "resume": resume, "dry_run": dry_run}
    with session.machine(device, seed, threads, memory_limit, quiet, several=True) as machine:
        if machine.serves:
            from hopmem.pipeline.company import serve

            serve(bank, machine)
            return
        if plot is not None:
            session.can_draw(plot, force or machine.again)
        emit, most = show_lines if ndjson else None, None if as_json else 0 if ndjson or quiet else ROWS_SHOWN
        outcome = run(bank, asked, output, reading, machine, emit=emit, most=most, split=split, **options)
    if plot is not None and not dry_run:
        session.draw(outcome, plot, force or machine.again)
    session.finish(outcome, "retrieve", as_json, quiet, ndjson, output == "-")
    session.ended(machine)


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
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte with its checksum.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw pictures into this folder, as PNG and SVG.", metavar="DIR")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write one page with statistics, pictures and all patterns.", metavar="HTML")
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
    """Show how well separated a bank is, and what it can promise."""
    from hopmem.pipeline.inspect import inspect as run
    from hopmem.pipeline.inspect import verified

    drawing = 0 if plot is None and report is None else session.PORTRAIT
    with session.machine(device, seed, threads, memory_limit, quiet, drawing, several=True) as machine:
        if machine.serves:
            from hopmem.pipeline.company import serve

            serve(bank, machine)
            return
        session.can_portray(plot, report, force or machine.again)
        machine.begin()
        outcome = run(bank, machine, closest=closest, error=error, alpha=alpha, beta=beta)
        outcome = verified(bank, outcome) if verify else outcome
        session.portray(outcome, bank, machine, plot, report, force or machine.again)
    session.finish(outcome, "inspect", as_json, quiet)
    session.ended(machine)


@app.command()
def evaluate(
    bank: Bank,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="How queries are corrupted, such as gaussian:0.5; repeatable.", metavar="KIND:LEVEL"),
    ] = None,
    samples: Annotated[
        int, typer.Option(parser=parse_number(int, 1), metavar="INTEGER", help="Queries for each noise and size.")
    ] = 1000,
    methods: Annotated[
        list[str] | None, typer.Option(help="Baselines beside the bank, with commas; default: all.", metavar="A,B")
    ] = None,
    sizes: Annotated[
        list[str] | None, typer.Option(help="Numbers of patterns, with commas; default: all of them.", metavar="N,N")
    ] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(parser=parse_share, metavar="X", help="End in exit 8 where the bank's accuracy is lower."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the accuracy of each method.", metavar="PNG")] = None,
    force: Force = False,
    device: Device = "auto",
    seed: Seed = None,
    threads: Threads = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure how well a bank gives corrupted patterns back, beside other memories."""
    from hopmem.pipeline.evaluate import check
    from hopmem.pipeline.evaluate import evaluate as run

    options: dict[str, Any] = {"noise": noise or ["mixed"], "samples": samples}
    options |= {"methods": split_names(methods), "sizes": split_counts(sizes)}
    drawing = session.CHART if plot else 0
    with session.machine(device, seed, threads, memory_limit, quiet, drawing, several=True) as machine:
        if machine.serves:
            from hopmem.pipeline.company import serve

            serve(bank, machine)
            return
        if plot is not None:
            session.can_chart(plot, force or machine.again)
        machine.begin()
        outcome = run(bank, machine, **options)
    if plot is not None:
        session.chart(outcome, plot, force or machine.again)
    session.finish(outcome, "evaluate", as_json, quiet)
    if fail_under is not None:
        check(outcome.result, fail_under)
    session.ended(machine)


def _task(asked: dict[str, Any], noise_from: str | None, force: bool) -> "tuple[Task, frozenset[str]]":
    """What is asked of optimize, and which of it was said.

    Returns:
        The task, and the names of the options that were given.

    Raises:
        UsageError: a noise model beside real pairs, or noise for an objective that knows none.
    """
    from hopmem.verbs.optimize import Task

    if "noise" in asked and noise_from is not None:
        raise UsageError(f"expected --noise or --noise-from, found both ({asked['noise'][0]} and {noise_from})")
    task = Task(**asked, force=force)
    if ("noise" in asked or noise_from) and task.objective != "denoise":
        raise UsageError(f"--noise: expected --objective denoise, found {task.objective}")
    return task, frozenset(asked)


def _reading(*options: Any) -> "Reading":
    from hopmem.patterns import Reading

    return Reading(*options)
