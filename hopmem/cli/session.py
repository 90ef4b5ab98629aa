"""What all commands do around their one call: gather the sources, set up the machine, draw, report and end."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hopmem.atomic import refuse_overwrite, replacing
from hopmem.cli.group import TORCHRUN
from hopmem.errors import SKIPPED_SOME, MissingInputError, UnreadableError, UsageError

if TYPE_CHECKING:
    from hopmem.cluster import Cluster
    from hopmem.pipeline import Machine, Outcome
    from hopmem.plots.portrait import Chart
    from hopmem.results import Inspection
    from hopmem.verbs import Portrait


CHART, PORTRAIT = 48 << 20, 128 << 20  # bytes that pictures take: matplotlib, and what it draws in
MOST_ROWS, PAGE_RESOLUTION = 20_000, 110  # of the table of patterns on a page; and its pictures' dots an inch
CHARTS = ("cosines", "delta", "code", "spectrum", "pairs", "landscape", "sphere")  # that a bank may have


def all_sources(sources: list[str] | None, lists: list[str] | None) -> list[str]:
    """The sources of the command line, and those that list files name.

    Returns:
        At least one.

    Raises:
        UsageError: no source at all.
    """
    found = list(sources or [])
    for name in lists or []:
        found += [line for line in _text(name).removeprefix("\ufeff").split("\n") if line]
    if not found:
        raise UsageError("expected at least one file or folder to read, found none (see --help)")
    return found


def _text(name: str) -> str:
    """What a list file, or standard input, holds; bytes that are no UTF-8 stand for themselves.

    Returns:
        Text with one kind of line end: names may hold all other marks.

    Raises:
        MissingInputError: no such file.
        UnreadableError: standard input is closed.
    """
    if name == "-" and sys.stdin is None:
        raise UnreadableError("standard input", "a source a line", "a closed one")
    if name != "-" and (not Path(name).exists() or Path(name).is_dir()):
        raise MissingInputError(name, "a file with one source a line")
    raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return raw.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def answers_to(output: str | None, queries: list[str], as_json: bool, ndjson: bool) -> str | None:
    """Where answers go: what comes on stdin goes to stdout unless JSON is wanted there.

    Returns:
        The path, `-`, or None for nowhere.

    Raises:
        UsageError: more than one thing on stdout, or what can't be read or written again where that may be needed.
    """
    wanted = [name for name, given in (("-o -", output == "-"), ("--json", as_json), ("--ndjson", ndjson)) if given]
    if len(wanted) > 1:
        raise UsageError(f"expected one thing on stdout, found {' and '.join(wanted)}")
    once = ["queries on stdin"] if "-" in queries else [name for name in wanted if name != "--json"]
    if once and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UsageError(f"expected files under torchrun --max-restarts, which may do all again, found {once[0]}")
    return "-" if output is None and "-" in queries and not wanted else output


@contextmanager
def machine(
    device: str,
    seed: int | None,
    threads: int | None,
    memory_limit: str | None,
    quiet: bool,
    drawing: int = 0,
    *,
    several: bool = False,
) -> "Iterator[Machine]":
    """What the shared options stand for.

    Args:
        device: name of a device of torch.
        seed: of all draws.
        threads: how many work.
        memory_limit: what the user sets.
        quiet: whether progress is not shown.
        drawing: bytes that the pictures take which are asked for.
        several: whether the command knows what several processes do; else the first one works alone.

    Yields:
        The machine to work on, watched from a terminal.

    Raises:
        Exit: a process for which there is nothing to do.
    """
    from hopmem import devices
    from hopmem.pages import limited, require
    from hopmem.pipeline import Machine
    from hopmem.report import watching

    devices.set_threads(threads)
    limit = None if memory_limit is None else devices.size(memory_limit)
    if not (several or first()):
        raise typer.Exit
    with limited(limit), _others(device, several) as (where, cluster):
        require(drawing, "to draw")
        with watching(quiet=quiet or (cluster is not None and cluster.rank > 0)) as watch:
            yield Machine(where, seed, devices.budget(memory_limit), watch, cluster)


def first() -> bool:
    """Whether this process asks: alone it does, and the first one that torchrun has started.

    Returns:
        False for one that takes part.
    """
    return TORCHRUN not in os.environ or os.environ.get("RANK") == "0"


@contextmanager
def _others(device: str, several: bool) -> "Iterator[tuple[str, Cluster | None]]":
    """The processes that torchrun has started, if it has.

    Yields:
        What this one works on, and all of them; None where it is alone.

    Raises:
        Exit: there is nothing left to do, and torchrun has started it again.
    """
    if TORCHRUN not in os.environ or not several:
        yield device, None
    else:
        from hopmem import devices

        if devices.resolve(device).type == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        where = devices.resolve(device)
        from hopmem.cluster import joined

        with joined(where) as cluster:
            if cluster.done:
                raise typer.Exit
            yield device, cluster
            if cluster.rank == 0:
                cluster.tell(None)  # no bank is opened any more


def _own_pillow() -> None:
    """Let hopmem itself say how large an image may be, and what is wrong with it: each in one line."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # --unpack-limit is the limit
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def unpack_limit(text: str | None) -> int:
    """How many bytes a compressed source may unpack to: hopmem says it, and no reader beneath it.

    Returns:
        Bytes.
    """
    from hopmem import devices
    from hopmem.patterns import UNPACK_LIMIT

    _own_pillow()
    return UNPACK_LIMIT if text is None else devices.size(text, "--unpack-limit")


def shard_size(text: str | None) -> int | None:
    """How many bytes a file of a bank may have.

    Returns:
        Bytes; None where nothing was said.

    Raises:
        UsageError: none at all.
    """
    from hopmem import devices

    size = None if text is None else devices.size(text, "--shard-size", 0)
    if size == 0:
        raise UsageError(f"--shard-size: expected a size such as 5G, found {text!r}")
    return size


def draw(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw the queries and answers of retrieve."""
    from hopmem.plots import contact_sheet

    contact_sheet(outcome.pictures, plot, force=force)


def can_draw(plot: Path, force: bool) -> None:
    """Find out before the work whether its picture can be written."""
    from hopmem.plots import require_suffix

    refuse_overwrite(plot, force=force)
    require_suffix(plot)


def can_chart(plot: Path, force: bool) -> None:
    """Find out before the work whether its picture can be drawn."""
    from hopmem.plots import require_matplotlib

    can_draw(plot, force)
    require_matplotlib()


def can_portray(plot: Path | None, page: Path | None, force: bool) -> None:
    """Find out before the work whether a bank's pictures and page can be written.

    Raises:
        UnreadableError: a file stands where the folder of the pictures would be.
        UsageError: a page that is not called one: a slip would overwrite a bank.
    """
    if plot is None and page is None:
        return
    from hopmem.plots import require_matplotlib

    if plot is not None:
        if plot.exists() and not plot.is_dir():
            raise UnreadableError(plot, "a folder for the pictures", "something else")
        for name in CHARTS:
            for suffix in (".png", ".svg"):
                refuse_overwrite(plot / f"{name}{suffix}", force=force)
    if page is not None:
        if page.suffix.lower() not in {".html", ".htm"}:
            raise UsageError(f"--report: expected a name that ends in .html, found {page.name}")
        refuse_overwrite(page, force=force)
    require_matplotlib("--plot" if plot is not None else "--report")


def portray(
    outcome: "Outcome[Any]", bank: str, machine: "Machine", plot: Path | None, page: Path | None, force: bool
) -> None:
    """Draw a bank, as pictures and as a page."""
    if plot is None and page is None:
        return
    from hopmem.pages import give_back
    from hopmem.pipeline.inspect import portrait
    from hopmem.plots import charts, write_charts

    with portrait(bank, machine, outcome.result.alpha, outcome.result.beta) as found:
        give_back()
        drawn = charts(found)
        if plot is not None:
            write_charts(drawn, plot, force=force)
        if page is not None:
            _write_page(page, Path(bank).name, outcome.result, found, drawn, force)


def _write_page(
    path: Path, title: str, statistics: "Inspection", found: "Portrait", drawn: "list[Chart]", force: bool
) -> None:
    """Write the page of a bank: its statistics, its pictures, and its patterns, the least separated first."""
    from hopmem.plots import thumbnails
    from hopmem.report.page import PagePicture, PatternRow, page

    order = found.sides[-1].delta.argsort(stable=True)[:MOST_ROWS]
    rows, near = (each[order].tolist() for each in (found.chosen, found.sides[-1].nearest))
    enough = statistics.bounds.delta_for_exact
    delta, names = found.sides[-1].delta[order].tolist(), found.bank.names
    patterns = [
        PatternRow(names[row], apart, names[other], small, None if enough is None else apart >= enough)
        for row, apart, other, small in zip(rows, delta, near, thumbnails(found, rows), strict=True)
    ]
    pictures = [PagePicture(chart.title, chart.caption, chart.png(PAGE_RESOLUTION)) for chart in drawn]
    with replacing(path, force=force) as temporary:
        text = page(title, statistics, patterns, pictures, omitted=len(found.bank) - len(patterns))
        temporary.write_text(text, encoding="utf-8")


def chart_learning(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw what optimize validated and how it learned."""
    from hopmem.plots import learning_chart
    from hopmem.plots.learning import COSINE

    noun = COSINE if outcome.result.objective == "spherical" else "loss"
    learning_chart(outcome.result.validation, outcome.curve, noun, plot, cosines=outcome.cosines, force=force)


def chart(outcome: "Outcome[Any]", plot: Path, force: bool) -> None:
    """Draw what evaluate measured."""
    from hopmem.plots import accuracy_chart

    accuracy_chart(outcome.result.rows, plot, force=force)


def finish(
    outcome: "Outcome[Any]", verb: str, as_json: bool, quiet: bool, ndjson: bool = False, data_on_stdout: bool = False
) -> None:
    """Report, and end as the contract says.

    Raises:
        Exit: alone with 7 where inputs were skipped, with 130 or 143 where the work was interrupted.
    """
    from hopmem import report

    report.show(outcome, verb, report.Style(as_json, quiet, not ndjson, data_on_stdout))
    if outcome.interrupted:
        raise typer.Exit(outcome.interrupted)
    if outcome.skipped and TORCHRUN not in os.environ:  # torchrun would take it for a failure, and do all again
        raise typer.Exit(SKIPPED_SOME)
    if outcome.skipped and quiet:  # nothing else would tell
        typer.echo(f"hopmem: {len(outcome.skipped)} inputs were skipped", err=True)


def ended(machine: "Machine") -> None:
    """Remember among several processes that all is done and said."""
    if machine.cluster is not None:
        if sys.stdout is not None:
            sys.stdout.flush()
        machine.cluster.end()
