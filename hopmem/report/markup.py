"""Text as HTML: the one place where text becomes markup, and the few elements that a page is made of."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from hopmem.errors import printable


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(element: str, *inside: str, **attributes: str) -> Html:
    """An element; what is in it is escaped unless it is markup already.

    Args:
        element: its name.
        inside: text and markup.
        attributes: as in class_="n" and aria_live="polite".

    Returns:
        The markup.
    """
    named = "".join(f' {key.rstrip("_").replace("_", "-")}="{shown(value)}"' for key, value in attributes.items())
    return Html(f"<{element}{named}>{''.join(map(shown, inside))}</{element}>")


def shown(text: str) -> Html:
    """Text as markup that shows it: what can't be seen, or can't be encoded, is escaped as on a terminal.

    Args:
        text: any text, or markup.

    Returns:
        The text, or itself where it is markup already.
    """
    return text if isinstance(text, Html) else Html(escape(printable(text)))


def name_of(text: str) -> Html:
    """A name, which reads in its own direction.

    Args:
        text: the name.

    Returns:
        The markup.
    """
    return tag("bdi", text)


def names_of(names: Iterable[str]) -> Html:
    """Names in a line.

    Args:
        names: the names.

    Returns:
        The markup.
    """
    return Html(", ".join(map(name_of, names)))


def set_apart(text: str) -> Html:
    """Advice, with what stands in backticks set apart.

    Args:
        text: the advice.

    Returns:
        Every other part as a name.
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a name with a backtick of its own
        return shown(text)
    return Html("".join(tag("b", part) if i % 2 else shown(part) for i, part in enumerate(parts)))


def section(heading: str, *inside: str) -> Html:
    """A section under its heading.

    Args:
        heading: of the section.
        inside: text and markup.

    Returns:
        The element.
    """
    return tag("section", tag("h2", heading), *inside)


def table_of(headings: Iterable[str], rows: Iterable[Sequence[str]], numbers: range) -> Html:
    """A table.

    Args:
        headings: of its columns.
        rows: text, or markup.
        numbers: the columns that hold numbers.

    Returns:
        The element.
    """

    def line(kind: str, entries: Sequence[str]) -> Html:
        scope = {"scope": "col"} if kind == "th" else {}
        marks = [{"class_": "n"} if i in numbers else {} for i in range(len(entries))]
        return tag("tr", *(tag(kind, each, **scope, **mark) for each, mark in zip(entries, marks, strict=True)))

    return tag("table", tag("thead", line("th", list(headings))), tag("tbody", *(line("td", row) for row in rows)))


def facts_of(facts: Iterable[tuple[str, str]]) -> Html:
    """A table of what, and how it is.

    Args:
        facts: both, as text.

    Returns:
        The element.
    """
    rows = (tag("tr", tag("th", what, scope="row"), tag("td", value)) for what, value in facts)
    return tag("table", tag("tbody", *rows), class_="facts")


def bar(share: float, side: str) -> Html:
    """A share as a bar: attributes of SVG, because the policy of the page allows no style on an element.

    Args:
        share: from 0 to 1.
        side: raw or learned: its colour.

    Returns:
        The picture, which says nothing to those who hear the page: the number stands beside it.
    """
    width = 100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0))
    return Html(f'<svg class="bar {side}" aria-hidden="true"><rect width="{width:.2f}%" height="100%"/></svg>')
