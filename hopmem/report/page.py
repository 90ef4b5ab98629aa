"""The statistics of a bank as one HTML page that needs nothing else: no network, no library, no second file.

A name can be any text, so text becomes markup in one place only (`markup.shown` escapes whatever is no `Html` already),
and the table of patterns is data, which page.js puts into the page as text.
"""

import json
import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from hopmem.errors import printable
from hopmem.report import cells
from hopmem.report.advice import advice
from hopmem.report.markup import Html, bar, facts_of, name_of, names_of, section, set_apart, shown, table_of, tag
from hopmem.results import Inspection, SeparationReport

NAMED = 10  # names of a group of duplicates
GROUPS = 20  # of duplicates that are listed
TITLE = 80  # letters of the title of the window
PNG = "data:image/png;base64,"


@dataclass(frozen=True)
class PatternRow:
    """One pattern of the table that can be searched."""

    name: str
    delta: float  # Δ_μ in the map in force
    nearest: str  # the closest other pattern
    thumbnail: bytes | None  # a small PNG
    exact: bool | None = None  # whether it is an exact fixed point (Theorem 2); None at α = 1, where none is


@dataclass(frozen=True)
class PagePicture:
    """A picture in the page."""

    title: str
    caption: str
    png: bytes


def page(
    title: str,
    inspection: Inspection,
    patterns: Sequence[PatternRow],
    pictures: Sequence[PagePicture],
    omitted: int = 0,
) -> str:
    """Everything that inspect found, as a page to look at, search, print and send.

    Args:
        title: the name of the bank.
        inspection: its statistics.
        patterns: the rows of the table.
        pictures: what to show between the statistics and the table.
        omitted: how many patterns the table leaves out.

    Returns:
        The HTML, all of which can be encoded as UTF-8.
    """
    style, script = _part("page.css"), _part("page.js")
    body = [
        tag("header", tag("h1", name_of(title)), tag("p", _subtitle(inspection), class_="lead")),
        tag("main", *_sections(inspection, pictures), _patterns(patterns, inspection.patterns, omitted)),
        tag("footer", "Written by hopmem inspect. The page holds all that it shows and loads nothing."),
        tag("script", _data(patterns), type="application/json", id="rows"),
        tag("script", script),
    ]
    return f'<!DOCTYPE html>\n<html lang="en">\n{_head(title, style, script)}\n{tag("body", *body)}\n</html>\n'


def _head(title: str, style: Html, script: Html) -> Html:
    """The head, which allows the page its own style and script, pictures within it, and nothing else.

    Returns:
        The element.
    """
    allowed = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", f"{title[:TITLE]} · hopmem inspect"),
        tag("style", style),
    )


def _sections(result: Inspection, pictures: Sequence[PagePicture]) -> list[Html]:
    """The statistics, in the order in which one reads them.

    Returns:
        A section for each question.
    """
    small = [
        section("How far the patterns lie apart", *_separation(result)),
        *([section("Quantiles of Δ", *_quantiles(result))] if result.patterns > 1 else []),
        section("What theory promises", _bounds(result)),
        section("Self-test", *_self_test(result)),
        section("What the bank holds", facts_of(_about(result))),
        *([section("Closest pairs", _pairs(result))] if result.closest_pairs else []),
        *([section("Smallest Δ", _worst(result))] if _in_force(result).worst else []),
        *([section("Duplicates", _duplicates(result))] if result.duplicates else []),
    ]
    return [
        section("What to do next", _advice(result)),
        section("At a glance", tag("dl", *_cards(result), class_="cards")),
        tag("div", *small, class_="columns"),
        *(section(picture.title, _picture(picture)) for picture in pictures),
    ]


def _advice(result: Inspection) -> Html:
    """What to do next.

    Returns:
        A list where there are several things to do.
    """
    first, *others = map(set_apart, advice(result))
    return tag("ol", *(tag("li", line) for line in (first, *others))) if others else tag("p", first)


def _subtitle(result: Inspection) -> str:
    noun = "pattern" if result.patterns == 1 else "patterns"
    map_ = f"{cells.map_of(result)} map, {result.feature_dimension:,} features"
    return f"{result.patterns:,} {noun} of shape {cells.times(result.shape)} ({result.dimension:,} entries) · {map_}"


def _cards(result: Inspection) -> list[Html]:
    """The figures that one looks for first.

    Returns:
        A card for each, with what it was before learning where a map was learned.
    """
    sides, force = _sides(result), _in_force(result)
    raw = sides["raw"] if len(sides) > 1 and "raw" in sides else None
    cards = [
        ("smallest Δ", cells.number(force.min), f"raw {cells.number(raw.min)}" if raw else "1 − largest cosine"),
        ("mean Δ", cells.number(force.mean), f"raw {cells.number(raw.mean)}" if raw else "over the patterns"),
        ("smallest angle", _degrees(force), f"raw {_degrees(raw)}" if raw else "of the closest pair"),
    ]
    if test := result.self_test:
        cards.append(("self-test", cells.percent(test.accuracy), f"of {test.queries:,} queries right"))
    if held := result.stored:
        cards.append(("stored", cells.percent(held.fraction), f"of {held.tested:,} by Definition 3"))
    cards.append(("guaranteed radius", cells.number(result.bounds.guaranteed_radius), "in feature space"))
    return [
        tag("div", tag("dt", what), tag("dd", value), tag("dd", note, class_="note")) for what, value, note in cards
    ]


def _separation(result: Inspection) -> list[Html]:
    """Raw beside learned.

    Returns:
        The table, and what its letters mean.
    """
    sides = _sides(result)
    rows = [
        [heading, *(cells.number(getattr(report, key)) for report in sides.values())]
        for heading, key in cells.SEPARATION
    ]
    note = "Δ of a pattern is 1 − its largest cosine to another: at 0 it has a twin. R is half the smallest distance."
    return [table_of(["", *sides], rows, numbers=range(1, 3)), tag("p", note, class_="note")]


def _quantiles(result: Inspection) -> list[Html]:
    """How Δ is spread, as numbers and bars on one scale.

    Returns:
        A table, with a bar for each side.
    """
    sides = {name: report.quantiles or {} for name, report in _sides(result).items()}
    most = max((value for spread in sides.values() for value in spread.values()), default=0.0)
    rows = []
    for q in next(iter(sides.values())):
        values = {name: spread.get(q) for name, spread in sides.items()}
        bars = Html("").join(bar((value or 0) / most if most > 0 else 0, name) for name, value in values.items())
        rows.append([f"{float(q) * 100:g} %", *map(cells.number, values.values()), Html(bars)])
    note = "Of the patterns, so many have a Δ of at most so much."
    heads = [Html(f"{bar(1, name)} {name}") for name in sides]
    return [table_of(["", *heads, ""], rows, numbers=range(1 + len(sides))), tag("p", note, class_="note")]


def _bounds(result: Inspection) -> Html:
    """What theory promises, of the raw patterns beside the map in force.

    Returns:
        A table.
    """
    sides = {} if result.raw_bounds is None else {"raw": cells.bounds(result.raw_bounds)}
    sides[list(_sides(result))[-1]] = cells.bounds(result.bounds)
    rows = [[what, *(side[what] for side in sides.values())] for what in cells.bounds(result.bounds)]
    return table_of([f"at β {result.beta:.6g}, α {result.alpha:g}", *sides], rows, numbers=range(1, 3))


def _about(result: Inspection) -> list[tuple[str, str]]:
    """What is in the bank, and how it came there.

    Returns:
        What, and how it is.
    """
    facts = [("patterns", f"{result.patterns:,} of shape {cells.times(result.shape)}")]
    facts.append(("feature map", f"{cells.map_of(result)}, {result.feature_dimension:,} features"))
    if how := result.learning:
        facts.append(("loss", " → ".join(cells.number(how.loss.get(key)) for key in ("first", "last"))))
        facts.append(("steps of gradient descent", f"{how.steps:,}"))
        facts += [] if how.temperature is None else [("temperature t", f"{how.temperature:g}")]
        facts += [] if how.batch_size is None else [("patterns in a step", f"{how.batch_size:,}")]
        facts.append(("seed", str(how.seed)))
    if came := result.appended:
        facts.append(("appended", f"{came.appended:,} after the map was learned from {came.learned_from:,}"))
        change = f"{cells.number(came.delta_before)} → {cells.number(came.delta_now)}"
        facts.append(("smallest Δ, then → now", change))
        facts.append(("appended that lie closer than any did", f"{came.closer:,}"))
    if held := result.stored:
        facts.append(("stored (Definition 3)", f"{cells.percent(held.fraction)} of the {held.tested:,} that were run"))
        facts += [("not stored", names_of(held.lost))] if held.lost else []
    groups = len(result.duplicates)
    facts.append(("duplicates", f"{groups:,} group{'' if groups == 1 else 's'}" if groups else "none"))
    return facts


def _self_test(result: Inspection) -> list[Html]:
    """How the bank did on its own patterns, and how many memories share an answer.

    Returns:
        A sentence and a histogram.
    """
    total = max(1, sum(result.metastable.values()))
    rows = [[size, f"{n:,}", bar(n / total, "learned")] for size, n in result.metastable.items() if n]
    note = tag("p", "How many memories share the answer of how many queries.", class_="note")
    told = []
    if test := result.self_test:
        noise = f"under {', '.join(test.noise)}" if test.noise else "put as they are"
        told = [tag("p", f"Own patterns {noise}: {cells.percent(test.accuracy)} of {test.queries:,} queries right.")]
    return [*told, note, table_of(["memories", "queries", ""], rows, numbers=range(1, 2))]


def _pairs(result: Inspection) -> Html:
    rows = [[name_of(pair.a), name_of(pair.b), f"{pair.cosine:.6f}"] for pair in result.closest_pairs]
    return table_of(["a", "b", "cosine"], rows, numbers=range(2, 3))


def _worst(result: Inspection) -> Html:
    rows = [[name_of(each.name), name_of(each.nearest), cells.number(each.delta)] for each in _in_force(result).worst]
    return table_of(["pattern", "closest to", "Δ"], rows, numbers=range(2, 3))


def _duplicates(result: Inspection) -> Html:
    """Groups of equal patterns, the first few in full.

    Returns:
        A list.
    """
    items = []
    for group in result.duplicates[:GROUPS]:
        more = f" = … ({len(group) - NAMED:,} more)" if len(group) > NAMED else ""
        items.append(tag("li", Html(" = ".join(map(name_of, group[:NAMED]))), more))
    left = len(result.duplicates) - GROUPS
    return tag("ul", *items, *([tag("li", f"{left:,} more groups")] if left > 0 else []))


def _picture(picture: PagePicture) -> Html:
    source = PNG + b64encode(picture.png).decode()
    image = Html(f'<img src="{source}" alt="{shown(picture.title)}">')
    return tag("figure", image, tag("figcaption", picture.caption))


def _patterns(rows: Sequence[PatternRow], total: int, omitted: int) -> Html:
    """The place of the table that page.js fills, and what is said where no script runs.

    Returns:
        The section.
    """
    left = f"The bank holds {total:,}; the table leaves {omitted:,} of them out. " if omitted else ""
    picture = [tag("th", "", scope="col", class_="thumbnail")] if any(row.thumbnail for row in rows) else []
    columns = [("name", "pattern", ""), ("nearest", "closest to", ""), ("delta", "Δ", "n")]
    columns += [("exact", "exact fixed point", "")] if any(row.exact is not None for row in rows) else []
    heads = [
        tag("th", tag("button", text, type="button", data_key=key), scope="col", class_=kind)
        for key, text, kind in columns
    ]
    return section(
        "Patterns",
        tag("p", left, "Select a heading to sort by it.", class_="note"),
        tag("noscript", tag("p", "To search, this table needs JavaScript; all else on the page is here without it.")),
        Html('<div id="browse" hidden><label for="search">Names that hold</label>'),
        Html('<input id="search" type="search" autocomplete="off" spellcheck="false">'),
        tag("p", f"{len(rows):,} patterns", id="count", role="status", aria_live="polite"),
        tag("table", tag("thead", tag("tr", *picture, *heads)), tag("tbody", ""), id="patterns"),
        Html('<button id="more" type="button" hidden></button></div>'),
    )


def _data(rows: Sequence[PatternRow]) -> Html:
    """The rows of the table, as JSON of ASCII in which no < is left that could end the script.

    Returns:
        A list of name, Δ, nearest, whether exact, and thumbnail for each.
    """
    table = [
        [
            printable(row.name),
            float(f"{row.delta:.6g}") if math.isfinite(row.delta) else None,
            printable(row.nearest),
            row.exact,
            *([] if row.thumbnail is None else [b64encode(row.thumbnail).decode()]),
        ]
        for row in rows
    ]
    return Html(json.dumps(table, separators=(",", ":")).replace("<", "\\u003c"))


def _sides(result: Inspection) -> dict[str, SeparationReport]:
    return {name: report for name, report in result.separation.items() if report is not None}


def _in_force(result: Inspection) -> SeparationReport:
    return list(_sides(result).values())[-1]


def _degrees(report: SeparationReport) -> str:
    angle = report.min_angle_degrees
    return "–" if angle is None or not math.isfinite(angle) else f"{angle:.4g}°"


def _part(name: str) -> Html:
    return Html(files("hopmem.report").joinpath(name).read_text(encoding="utf-8"))


def _hash(inside: Html) -> str:
    return f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"
