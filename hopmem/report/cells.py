"""What stands in the cells of tables: names, numbers, sizes, bars."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from hopmem.errors import printable
from hopmem.results import BoundsReport, Inspection

SEPARATION = (  # what is shown of a separation, and the field that holds it
    ("smallest Δ", "min"),
    ("mean Δ", "mean"),
    ("largest cosine", "max_cosine"),
    ("smallest angle (degrees)", "min_angle_degrees"),
    ("radius R", "radius"),
    ("effective rank", "effective_rank"),
)
EIGHTHS = " ▏▎▍▌▋▊▉█"
HEIGHTS = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int = 20) -> str:
    """A share as a bar.

    Args:
        share: from 0 to 1; what is not, or no number, is taken to the nearest end.
        width: letters of a full bar.

    Returns:
        Blocks, with no space behind them.

    >>> bar(0.5, 4), bar(0.03125, 4), bar(0.0, 4)
    ('██', '▏', '')
    """
    eighths = round(8 * width * min(1.0, max(0.0, share if math.isfinite(share) else 0.0)))
    return (EIGHTHS[-1] * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A curve in one line.

    Args:
        values: what falls or rises; what is not finite is left out.
        width: letters, at most.

    Returns:
        Blocks from the lowest to the highest value; empty where nothing falls or rises.

    >>> sparkline([4.0, 3.0, 1.0, 0.0])
    '█▆▃▁'
    """
    kept = [value for value in values if math.isfinite(value)]
    if len(set(kept)) < 2:
        return ""
    count = min(width, len(kept))
    shown = [kept[round(place * (len(kept) - 1) / (count - 1))] for place in range(count)]
    low, high = min(shown), max(shown)
    return "".join(HEIGHTS[round((value - low) / (high - low or 1) * (len(HEIGHTS) - 1))] for value in shown)


def facts(heading: str) -> Table:
    """A table of two columns: what, and how it is.

    Args:
        heading: of the first column.

    Returns:
        The table, empty.
    """
    table = Table(heading, "", show_header=True)
    table.columns[1].overflow = "fold"
    return table


def groups(found: list[list[str]]) -> Text:
    """Groups of names in a line.

    Args:
        found: the groups.

    Returns:
        How many there are, and the first few.
    """
    if not found:
        return Text("none")
    shown = [" = ".join([*map(printable, group[:4]), *(["…"] if len(group) > 4 else [])]) for group in found[:5]]
    return Text(f"{len(found)}: " + "; ".join([*shown, *(["…"] if len(found) > 5 else [])]))


def name(text: str) -> Text:
    """A name as it is: nothing in it is markup.

    Args:
        text: the name.

    Returns:
        The printable name.
    """
    return Text(printable(text))


def number(value: float | None) -> str:
    """A number to six digits.

    Args:
        value: None and what is not finite have no digits.

    Returns:
        The digits, or a dash.
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.6g}"


def map_of(result: Inspection) -> str:
    """Which map compares the patterns.

    Args:
        result: of a bank.

    Returns:
        Its objective; of a raw bank that takes each row's mean off, that too.
    """
    centred = result.objective == "raw" and result.separation.get("learned") is not None
    return "raw, centred cosine" if centred else result.objective


def times(shape: list[int]) -> str:
    """A shape.

    Args:
        shape: its axes.

    Returns:
        As in 28 × 28.
    """
    return " × ".join(map(str, shape))


def bounds(report: BoundsReport) -> dict[str, str]:
    """What theory promises, in words and digits.

    Args:
        report: the bounds.

    Returns:
        What, and how much.
    """
    return {
        "best possible smallest Δ": number(report.optimum),
        "its lower bound": number(report.lower),
        "its upper bound": number(report.upper),
        "of it reached": "–" if report.reached is None else percent(report.reached),
        "error, Lemma 1 as published": "void" if report.lemma1_error is None else number(report.lemma1_error),
        "error, sharp bound at R/2": number(report.error),
        "β that suffices": number(report.beta_for_error),
        "guaranteed radius": number(report.guaranteed_radius),
        "Δ of an exact fixed point": number(report.delta_for_exact),
        "exact fixed points (Theorem 2)": percent(report.exact_fraction),
    }


def percent(share: float) -> str:
    """A share.

    Args:
        share: what is not finite has no digits.

    Returns:
        As in 12.5 %.
    """
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def bytes_(count: int) -> str:
    """A size in bytes.

    Args:
        count: bytes.

    Returns:
        In megabytes where there are many.
    """
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count:,} bytes"
