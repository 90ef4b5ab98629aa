"""What evaluate measured: accuracy and error of each method, over sizes or levels, or as bars."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hopmem.plots.style import color, figure_of, line_of, save, styled
from hopmem.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = "patterns"
ACROSS = 3  # noises beside one another
DECADES = 30.0  # the ratio of errors from which their axis is logarithmic
LONG = 14  # letters of a noise from which its name is turned
THIN = {"elinewidth": 0.6, "ecolor": "0.4"}  # error bars


@styled
def accuracy_chart(rows: Sequence[Row], path: Path, *, force: bool) -> None:
    """Draw accuracy, and below it error, of each method: over sizes, over the levels of a noise, or as bars.

    Args:
        rows: of one evaluation.
        path: the file, a PNG or an SVG.
        force: whether it may be replaced.
    """
    panels = _panels(rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    across = min(len(panels), ACROSS)
    down = -(-len(panels) // across)
    figure, axes = figure_of(2 * down, across, (1.8 + 4.2 * across, 5.6 * down))
    for number in range(down * across):
        place = number // across * 2 * across + number % across
        pair = axes[place], axes[place + across]
        if number < len(panels):
            panels[number].draw(*pair, methods)
        else:
            for axis in pair:
                axis.remove()
    for line in range(2 * down):
        axes[line * across].set_ylabel("error" if line % 2 else "accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    save(figure, path, force=force)


@dataclass(frozen=True)
class _Panel:
    """Two charts of the same rows, accuracy and error: lines over a number, or bars by noise."""

    title: str
    rows: list[Row]
    x: Callable[[Row], float] | None  # None: bars
    label: str = ""

    def draw(self, above: "Axes", below: "Axes", methods: list[str]) -> None:
        """Draw the rows, method by method."""
        for axis, read in ((above, _accuracy), (below, _error)):
            for number, method in enumerate(methods):
                own = [row for row in self.rows if row.method == method]
                if self.x is None:
                    self._bars(axis, own, read, number, len(methods))
                else:
                    self._line(axis, sorted(own, key=self.x), read, number)
            axis.set_xlabel(self.label)
        above.set(title=self.title, ylim=(-0.03, 1.05))
        above.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        errors = [row.error for row in self.rows]
        if min(errors) > 0 and max(errors) > DECADES * min(errors):
            below.set_yscale("log")
        else:
            below.set_ylim(bottom=0)

    def _bars(self, axis: "Axes", rows: list[Row], read: "Read", number: int, count: int) -> None:
        width = 0.84 / count
        places = [place + (number - (count - 1) / 2) * width for place in range(len(rows))]
        heights, spreads = zip(*map(read, rows), strict=True)
        axis.bar(places, heights, width, yerr=spreads, color=color(number), label=rows[0].method, error_kw=THIN)
        names = [row.noise for row in rows]
        turned = len(rows) > 1 and (len(rows) > 3 or max(map(len, names)) > LONG)
        axis.set_xticks(range(len(rows)), names, fontsize=8, rotation=25 * turned, ha="right" if turned else "center")

    def _line(self, axis: "Axes", rows: list[Row], read: "Read", number: int) -> None:
        assert self.x is not None  # who draws lines has one
        heights, spreads = zip(*map(read, rows), strict=True)
        places = [self.x(row) for row in rows]
        axis.errorbar(places, heights, spreads, elinewidth=0.8, label=rows[0].method, **line_of(number))
        if self.label == SIZES:
            axis.set_xscale("log")
            axis.set_xticks([row.size for row in rows], [f"{row.size:,}" for row in rows])
            axis.minorticks_off()


Read = Callable[[Row], tuple[float, float]]  # a row ↦ what is drawn of it, and its standard error


def _accuracy(row: Row) -> tuple[float, float]:
    return row.accuracy, row.accuracy_se


def _error(row: Row) -> tuple[float, float]:
    return row.error, row.error_se if math.isfinite(row.error_se) else 0.0


def _panels(rows: Sequence[Row]) -> list[_Panel]:
    """How to lay out rows: by noise over sizes; else by kind over levels where a kind has several, the rest as bars.

    Returns:
        At least one panel.
    """
    noises = list(dict.fromkeys(row.noise for row in rows))
    if len({row.size for row in rows}) > 1:
        return [
            _Panel(noise, [row for row in rows if row.noise == noise], lambda row: row.size, SIZES) for noise in noises
        ]
    kinds = {noise: _kind_and_level(noise) for noise in noises}
    several = {kind for kind, _ in kinds.values() if sum(kind == other for other, _ in kinds.values()) > 1}
    panels = [
        _Panel(kind, [row for row in rows if kinds[row.noise][0] == kind], lambda row: kinds[row.noise][1], "level")
        for kind in dict.fromkeys(kind for kind, _ in kinds.values() if kind in several)
    ]
    rest = [row for row in rows if kinds[row.noise][0] not in several]
    return [*panels, *([_Panel("", rest, None)] if rest else [])]


def _kind_and_level(noise: str) -> tuple[str, float]:
    """Take a noise apart; a chain, and `mixed`, is a kind of its own.

    Returns:
        The kind, with s where its level is in standard deviations, and the level.
    """
    kind, _, level = noise.partition(":")
    if "+" in noise or not level:
        return noise, 0.0
    return (f"{kind} (s)" if level.endswith("s") else kind), float(level.removesuffix("s"))
