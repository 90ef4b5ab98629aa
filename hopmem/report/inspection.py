"""The statistics of a bank as tables that fit 80 columns."""

from rich.table import Table
from rich.text import Text

from hopmem.report import cells
from hopmem.results import Inspection, SeparationReport

BAR = 16  # letters


def inspection(result: Inspection) -> list[Table]:
    """Everything that inspect found.

    Args:
        result: the statistics.

    Returns:
        Tables, in the order in which one reads them.
    """
    return [
        _facts(result),
        _separation(result),
        *([_quantiles(result)] if result.patterns > 1 else []),
        _bounds(result),
        _states(result),
        *([_worst(result)] if _in_force(result).worst else []),
        _pairs(result),
    ]


def _facts(result: Inspection) -> Table:
    table = cells.facts("bank")
    table.add_row("patterns", f"{result.patterns:,} of shape {cells.times(result.shape)}")
    table.add_row("feature map", f"{cells.map_of(result)}, {result.feature_dimension} features")
    if result.verified is not None:
        known = "every byte is what was written" if result.verified else "no checksums to compare with"
        table.add_row("verified", known)
    if how := result.learning:
        loss = " → ".join(cells.number(how.loss[key]) for key in ("first", "last"))
        width = "" if how.temperature is None else f", t {how.temperature:g}"
        table.add_row("learned", f"loss {loss} in {how.steps} steps{width}, seed {how.seed}")
    table.add_row("duplicates", cells.groups(result.duplicates))
    if came := result.appended:
        change = f"smallest Δ {cells.number(came.delta_before)} → {cells.number(came.delta_now)}"
        after = f"{came.appended:,} after the map was learned from {came.learned_from:,}"
        closer = f"; {came.closer:,} lie closer than any did: optimize again" if came.closer else ""
        table.add_row("appended", f"{after}; {change}{closer}")
    if test := result.self_test:
        noise = f"under {', '.join(test.noise)}" if test.noise else "patterns as they are"
        table.add_row("self-test", f"{noise}: {100 * test.accuracy:.1f} % of {test.queries:,} queries right")
    if held := result.stored:
        runs = f"{100 * held.fraction:.1f} % of the {held.tested:,} that were run"
        table.add_row("stored (Definition 3)", Text(f"{runs}{'; not ' if held.lost else ''}").append(_names(held.lost)))
    return table


def _separation(result: Inspection) -> Table:
    sides = _sides(result)
    table = Table("separation", *sides, title="Δ = 1 − largest cosine to another pattern")
    for heading, key in cells.SEPARATION:
        table.add_row(heading, *(cells.number(getattr(report, key)) for report in sides.values()))
    return table


def _quantiles(result: Inspection) -> Table:
    sides = _sides(result)
    table = Table("Δ", title="quantiles of Δ")
    most = max(value for report in sides.values() for value in (report.quantiles or {}).values())
    for name in sides:
        table.add_column(name, justify="right")
        table.add_column("", min_width=BAR)
    for q in next(iter(sides.values())).quantiles or {}:
        row = []
        for report in sides.values():
            value = (report.quantiles or {})[q]
            row += [cells.number(value), cells.bar(value / most if most > 0 else 0.0, BAR)]
        table.add_row(f"{float(q) * 100:g} %", *row)
    return table


def _bounds(result: Inspection) -> Table:
    """What theory promises, of the raw patterns beside the map in force.

    Returns:
        The table.
    """
    sides = {} if result.raw_bounds is None else {"raw": cells.bounds(result.raw_bounds)}
    sides[list(_sides(result))[-1]] = cells.bounds(result.bounds)
    table = Table(f"at β {result.beta:.6g}, α {result.alpha:g}", title="bounds")
    for name in sides:
        table.add_column(name, justify="right")
    for what in cells.bounds(result.bounds):
        table.add_row(what, *(side[what] for side in sides.values()))
    return table


def _states(result: Inspection) -> Table:
    """How many memories share an answer of the self-test.

    Returns:
        The histogram.
    """
    table = Table("memories", title="self-test: memories that share the answer")
    table.add_column("queries", justify="right")
    table.add_column("", min_width=BAR)
    total = max(1, sum(result.metastable.values()))
    for size, count in result.metastable.items():
        if count:
            table.add_row(size, f"{count:,}", cells.bar(count / total, BAR))
    return table


def _worst(result: Inspection) -> Table:
    table = Table(title="smallest Δ")
    table.add_column("pattern", overflow="fold")
    table.add_column("Δ", justify="right")
    table.add_column("closest to", overflow="fold")
    if result.alpha > 1:
        table.add_column("exact")
    for each in _in_force(result).worst:
        exact = ["yes" if each.exact else "no"] if result.alpha > 1 else []
        table.add_row(cells.name(each.name), cells.number(each.delta), cells.name(each.nearest), *exact)
    return table


def _pairs(result: Inspection) -> Table:
    table = Table(title="closest pairs")
    table.add_column("a", overflow="fold")
    table.add_column("b", overflow="fold")
    table.add_column("cosine", justify="right")
    for pair in result.closest_pairs:
        table.add_row(cells.name(pair.a), cells.name(pair.b), f"{pair.cosine:.6f}")
    return table


def _sides(result: Inspection) -> dict[str, SeparationReport]:
    return {name: report for name, report in result.separation.items() if report is not None}


def _in_force(result: Inspection) -> SeparationReport:
    return list(_sides(result).values())[-1]


def _names(names: list[str]) -> Text:
    return Text(", ").join(cells.name(name) for name in names)
