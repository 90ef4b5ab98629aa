"""Results as tables for a person."""

import math
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from hopmem.errors import printable
from hopmem.results import Estimate, Evaluation, Inspection, OptimizeResult, RetrieveResult, StoreResult

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
    return _inspect_tables(result)


def _store_table(result: StoreResult) -> Table:
    table = _facts("stored")
    table.add_row("bank", _name(result.bank))
    table.add_row("patterns", f"{result.patterns:,} of shape {_times(result.shape)}, {result.dtype}")
    table.add_row("size", _bytes(result.bytes))
    table.add_row("duplicates", _groups(result.duplicates))
    return table


def _optimize_table(result: OptimizeResult) -> Table:
    table = Table(title=f"{result.objective} map, {result.feature_dimension} features, {result.steps} steps")
    for heading in ("", "best raw" if result.validation else "raw", "learned"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("loss", *(_number(result.loss[key]) for key in ("first", "last")))
    for key in ("max_cosine", "min_angle_degrees", "mean_cosine"):
        table.add_row(key.replace("_", " "), *(_number(result.separation[side][key]) for side in ("raw", "learned")))
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
            cells = (_name(row["method"]), f"{100 * row['accuracy']:.1f} %", _number(row["error"]))
            table.add_row(*cells, end_section=section)
        if len(rows) > len(shown):
            table.caption = f"the best of {len(rows)}; --json gives all of them"
        tables.append(table)
    return tables


def _retrieve_table(result: RetrieveResult) -> Table:
    table = Table(title=f"{len(result.results):,} queries, α {result.alpha:g}, β {result.beta:.6g}")
    table.add_column("query", overflow="fold")
    table.add_column("match", overflow="fold")
    for heading in ("confidence", "margin", "state"):
        table.add_column(heading, justify="right")
    several = any(match.top for match in result.results)
    if several:
        table.add_column("then", overflow="fold")
    for match in result.results[:ROWS_SHOWN]:
        others = ", ".join(f"{each['match']} {each['weight']:.4f}" for each in match.top[1:])
        name = Text("rejected", "red") if match.match is None else _name(match.match)
        table.add_row(
            _name(match.query),
            name,
            f"{match.confidence:.4f}",
            f"{match.margin:.4f}",
            match.state,
            *([_name(others)] if several else []),
        )
    if len(result.results) > ROWS_SHOWN:
        table.caption = f"{len(result.results) - ROWS_SHOWN:,} more; --json and --ndjson give all of them"
    return table


def _estimate_table(estimate: Estimate) -> Table:
    table = _facts("dry run: nothing is written")
    table.add_row("queries", f"{estimate.queries:,}")
    table.add_row("time, about", f"{estimate.seconds:,.1f} s")
    table.add_row("memory, at most about", _bytes(estimate.bytes))
    return table


def _inspect_tables(result: Inspection) -> list[Table]:
    facts = _facts("bank")
    facts.add_row("patterns", f"{result.patterns:,} of shape {_times(result.shape)}")
    facts.add_row("feature map", f"{result.objective}, {result.feature_dimension} features")
    if how := result.learning:
        loss = " → ".join(_number(how.loss[key]) for key in ("first", "last"))
        width = "" if how.temperature is None else f", t {how.temperature:g}"
        facts.add_row("learned", f"loss {loss} in {how.steps} steps{width}, seed {how.seed}")
    facts.add_row("duplicates", _groups(result.duplicates))
    sizes = ", ".join(f"{size}: {count}×" for size, count in result.metastable.items() if count)
    facts.add_row("self-test: memories that share the answer", sizes)
    return [facts, _separation_table(result), _bounds_table(result), _pairs_table(result)]


def _separation_table(result: Inspection) -> Table:
    sides = {name: report for name, report in result.separation.items() if report is not None}
    table = Table("separation", *sides, title="Δ = 1 − largest cosine to another pattern")
    for heading, key in (
        ("smallest Δ", "min"),
        ("mean Δ", "mean"),
        ("largest cosine", "max_cosine"),
        ("smallest angle (degrees)", "min_angle_degrees"),
        ("radius R", "radius"),
    ):
        table.add_row(heading, *(_number(getattr(report, key)) for report in sides.values()))
    for q in next(iter(sides.values())).quantiles or {}:
        values = [(report.quantiles or {})[q] for report in sides.values()]
        table.add_row(f"Δ, {float(q) * 100:g} % quantile", *(_number(value) for value in values))
    return table


def _bounds_table(result: Inspection) -> Table:
    bounds = result.bounds
    table = _facts("bounds")
    table.add_row("best possible smallest Δ", f"{_number(bounds.lower)} to {_number(bounds.upper)}")
    table.add_row(
        "error, Lemma 1 as published", "void" if bounds.lemma1_error is None else _number(bounds.lemma1_error)
    )
    table.add_row("error, sharp bound at R/2", _number(bounds.error))
    table.add_row("β that suffices", _number(bounds.beta_for_error))
    table.add_row("guaranteed radius", _number(bounds.guaranteed_radius))
    table.add_row("exact fixed points", f"{100 * bounds.exact_fraction:.1f} %")
    return table


def _pairs_table(result: Inspection) -> Table:
    table = Table(title="closest pairs")
    table.add_column("a", overflow="fold")
    table.add_column("b", overflow="fold")
    table.add_column("cosine", justify="right")
    for pair in result.closest_pairs:
        table.add_row(_name(pair.a), _name(pair.b), f"{pair.cosine:.6f}")
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


def _facts(heading: str) -> Table:
    table = Table(heading, "", show_header=True)
    table.columns[1].overflow = "fold"
    return table


def _groups(groups: list[list[str]]) -> Text:
    """Groups of names in a line.

    Returns:
        How many there are, and the first few.
    """
    if not groups:
        return Text("none")
    shown = [" = ".join([*map(printable, group[:4]), *(["…"] if len(group) > 4 else [])]) for group in groups[:5]]
    return Text(f"{len(groups)}: " + "; ".join([*shown, *(["…"] if len(groups) > 5 else [])]))


def _name(name: str) -> Text:
    """A name as it is: nothing in it is markup.

    Returns:
        The printable name.
    """
    return Text(printable(name))


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _times(shape: list[int]) -> str:
    return " × ".join(map(str, shape))


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"
