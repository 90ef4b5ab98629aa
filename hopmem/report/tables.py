"""Results as tables for a person."""

import math
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from hopmem.errors import printable
from hopmem.report import cells
from hopmem.report.inspection import inspection
from hopmem.results import Estimate, Evaluation, OptimizeResult, RetrieveResult, StoreResult

ROWS_SHOWN = 20  # of the answers; all of them are in --json and --ndjson
ROWS_TRIED = 12  # of the validation table, best first for each noise; all of them are in --json and in the bank


def tables(result: Any) -> list[Table]:
    """A result as tables for a person.

    Returns:
        One or more tables.
    """
    if isinstance(result, StoreResult):
        return [_store_table(result)]
    if isinstance(result, OptimizeResult):
        return [*_validation_tables(result), _optimize_table(result)]
    if isinstance(result, RetrieveResult):
        return [_estimate_table(result.estimate) if result.estimate else _retrieve_table(result)]
    if isinstance(result, Evaluation):
        return _evaluate_tables(result)
    return inspection(result)


def _store_table(result: StoreResult) -> Table:
    table = cells.facts("stored" if result.estimate is None else "dry run: nothing is written")
    table.add_row("bank", cells.name(result.bank))
    table.add_row("patterns", f"{result.patterns:,} of shape {cells.times(result.shape)}, {result.dtype}")
    table.add_row("size", cells.bytes_(result.bytes))
    table.add_row("duplicates", cells.groups(result.duplicates))
    if result.estimate is not None:
        table.add_row("time, about", f"{result.estimate.seconds:,.1f} s")
        table.add_row("memory, at most about", cells.bytes_(result.estimate.bytes))
    return table


def _optimize_table(result: OptimizeResult) -> Table:
    table = Table(title=f"{result.objective} map, {result.feature_dimension} features, {result.steps} steps")
    for heading in ("", "best raw" if result.validation else "raw", "learned"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("loss", *(cells.number(result.loss[key]) for key in ("first", "last")))
    for key in ("max_cosine", "min_angle_degrees", "mean_cosine"):
        table.add_row(
            key.replace("_", " "), *(cells.number(result.separation[side][key]) for side in ("raw", "learned"))
        )
    table.add_row("kept", *(["", "yes"] if result.kept == "learned" else ["yes", ""]))
    if result.method is not None:
        table.caption = f"in the bank: {result.method}"
    elif result.steps == 0:
        table.caption = "no step improves on the start, ridge whitening"
    return table


def _validation_tables(result: OptimizeResult) -> list[Table]:
    """What was tried, best first, for each noise.

    Returns:
        A table for each noise.
    """
    from hopmem.model.denoise.learning import FRESH

    tables = []
    for noise in dict.fromkeys(row["noise"] for row in result.validation):
        rows = [row for row in result.validation if row["noise"] == noise]
        best = sorted(rows, key=lambda row: (-row["accuracy"], row["error"]))
        fresh = [row for row in rows if row["method"].endswith(FRESH)]
        shown = [*[row for row in best if row not in fresh][: ROWS_TRIED - len(fresh)], *fresh]
        table = Table(title=f"validation under {noise}")
        table.add_column("map", overflow="fold")
        table.add_column("accuracy", justify="right")
        table.add_column("error", justify="right")
        for row in shown:
            section = bool(fresh) and row is shown[-len(fresh) - 1]
            entries = (cells.name(row["method"]), f"{100 * row['accuracy']:.1f} %", cells.number(row["error"]))
            table.add_row(*entries, end_section=section)
        if len(rows) > len(shown):
            table.caption = f"the best of {len(rows)}; --json gives all of them"
        tables.append(table)
    return tables


def _retrieve_table(result: RetrieveResult) -> Table:
    listed = result.results[:ROWS_SHOWN]
    count = len(result.results) + result.more
    table = Table(title=f"{count:,} queries, α {result.alpha:g}, β {result.beta:.6g}")
    table.add_column("query", overflow="fold")
    table.add_column("match", overflow="fold")
    for heading in ("confidence", "margin", "state"):
        table.add_column(heading, justify="right")
    several = any(match.top for match in listed)
    if several:
        table.add_column("then", overflow="fold")
    for match in listed:
        others = ", ".join(f"{each['match']} {each['weight']:.4f}" for each in match.top[1:])
        name = Text("rejected", "red") if match.match is None else cells.name(match.match)
        table.add_row(
            cells.name(match.query),
            name,
            f"{match.confidence:.4f}",
            f"{match.margin:.4f}",
            match.state,
            *([cells.name(others)] if several else []),
        )
    if count > len(listed):
        table.caption = f"{count - len(listed):,} more; --json and --ndjson give all of them"
    return table


def _estimate_table(estimate: Estimate) -> Table:
    table = cells.facts("dry run: nothing is written")
    table.add_row("queries", f"{estimate.queries:,}")
    table.add_row("time, about", f"{estimate.seconds:,.1f} s")
    table.add_row("memory, at most about", cells.bytes_(estimate.bytes))
    return table


def _evaluate_tables(result: Evaluation) -> list[Table]:
    """A table for each noise and size, the best accuracy in bold.

    Returns:
        The tables.
    """
    shown = []
    for _, group in groupby(result.rows, key=lambda row: (row.noise, row.size)):
        rows = list(group)
        best = max(row.accuracy for row in rows)
        head = f"{rows[0].noise}, {rows[0].size:,} patterns, {rows[0].samples:,} queries"
        table = Table("method", title=Text(printable(head)))
        for heading in ("accuracy %", "error", "meta-\nstable\n%", "β"):
            table.add_column(heading, justify="right")
        for row in rows:
            accuracy = f"{100 * row.accuracy:.1f} ± {100 * row.accuracy_se:.1f}"
            table.add_row(
                row.method,
                Text(accuracy, "bold" if row.accuracy == best else ""),
                _plus_minus(row.error, row.error_se),
                f"{100 * row.metastable:.1f}",
                "–" if row.beta is None else _three_digits(row.beta),
            )
        shown.append(table)
    return shown


def _plus_minus(value: float, error: float) -> str:
    """A mean with its standard error, to the digits that the error leaves: at most a third of it is rounded off.

    Returns:
        Both, such as 7.31 ± 0.12.
    """
    if not (0 < error < 1e6 and 1e-2 <= value < 1e6):
        return f"{_one_digit(value)} ± {_one_digit(error)}"
    digits = max(0, -math.floor(math.log10(error / 3)))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def _one_digit(value: float) -> str:
    return f"{value:.1g}" if math.isfinite(value) else "–"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= value < 1e6 else f"{value:.3g}"
