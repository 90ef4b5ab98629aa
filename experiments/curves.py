"""What `memory_size` and `noise_level` share: one bank under some noises for all methods, and panels of curves."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from statistics import fmean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

import hopmem
from experiments.setting import Setting
from hopmem.bank import MemoryBank
from hopmem.results import Row
from hopmem.verbs.trial import BANK

BASELINES = ("modern", "sparse", "dam10", "euclidean", "manhattan", "nearest", "centred")
UHOP, DENOISE = "uhop", "denoise"  # what is learned: U-Hop's optimum, and hopmem's map for the noise
APART = 1000  # seeds of the queries are this far from those of the bank and its learning
STYLES = {  # colours of Okabe and Ito; a marker for each, so that print needs no colour
    "modern": ("#0072B2", "o", "-"),
    "sparse": ("#56B4E9", "s", "--"),
    "dam10": ("#009E73", "^", "-."),
    "euclidean": ("#E69F00", "D", "-"),
    "manhattan": ("#D55E00", "v", "--"),
    "nearest": ("#CC79A7", "x", ":"),
    "centred": ("0.45", "P", "--"),
    UHOP: ("#B09C00", "*", "-."),
    DENOISE: ("black", "o", "-"),
}


@dataclass(frozen=True)
class Point:
    """One method, asked once."""

    data: str
    noise: str  # kind
    level: float
    size: int  # memories
    seed: int
    method: str
    accuracy: float
    error: float  # sum of squares over the image, mean over queries
    beta: float  # its own best; nan where it has none


HEADER = tuple(field.name for field in fields(Point))
Measured = Callable[[str, Tensor, Setting], Iterable[Point]]  # name of the data, images, setting


def measure(data: str, raw: MemoryBank, noises: Sequence[str], methods: Sequence[str], samples: int) -> Iterator[Point]:
    """Put the same corrupted memories to every method.

    Args:
        data: name of the data.
        raw: the bank, with its seed.
        noises: such as mask:0.5.
        methods: baselines of hopmem, `UHOP` among them, or `DENOISE`.
        samples: queries for each noise.

    Yields:
        A point for each noise and method.
    """
    asked = {"samples": samples, "seed": raw.seed + APART}
    baselines = [method for method in methods if method != DENOISE]
    rows = [row for row in hopmem.evaluate(raw, noise=noises, methods=baselines, **asked).rows if row.method != BANK]
    for row in rows:
        yield _point(data, raw, row.method, row)
    for noise in noises if DENOISE in methods else ():
        learned = hopmem.optimize(raw, noise=noise, seed=raw.seed)
        (row,) = hopmem.evaluate(learned, noise=[noise], methods=[], **asked).rows
        yield _point(data, raw, DENOISE, row)


def record(setting: Setting, name: str, measured: Measured, x: str, label: str) -> None:
    """Measure on MNIST and CIFAR-10, write a row for each query set and method, and draw the means.

    Args:
        setting: data, and where results go.
        name: of the table and the picture.
        measured: all points of a data set.
        x: the field that is the abscissa.
        label: what it says below.
    """
    points = list(measured("mnist", setting.mnist(), setting))
    points += measured("cifar10", setting.cifar10()[0], setting)
    setting.write(name, HEADER, [astuple(point) for point in points])
    setting.save(panels(points, x, label), name)


def _point(data: str, raw: MemoryBank, method: str, row: Row) -> Point:
    """A row of `evaluate`, with all that is needed to find it again."""
    kind, level = row.noise.split(":")
    beta = math.nan if row.beta is None else row.beta
    return Point(data, kind, float(level), row.size, raw.seed, method, row.accuracy, row.error, beta)


def panels(points: Sequence[Point], x: str, label: str) -> Figure:
    """Error above accuracy, a column for each data set and kind of noise: means over seeds, and their spread.

    Args:
        points: all that was measured.
        x: the field that is the abscissa.
        label: what it says below; log-scaled where x is `size`.

    Returns:
        The figure.
    """
    columns = list(dict.fromkeys((point.data, point.noise) for point in points))
    figure = Figure(figsize=(3.4 * len(columns), 7), layout="constrained")
    grid = figure.subplots(2, len(columns), sharex="col", sharey="row", squeeze=False)
    for column, (data, noise) in enumerate(columns):
        mine = [point for point in points if (point.data, point.noise) == (data, noise)]
        for row, value in enumerate(("error", "accuracy")):
            _curves(grid[row, column], mine, x, value)
        level = f":{mine[0].level:g}" if x == "size" else ""
        grid[0, column].set_title(f"{data}, {noise}{level}")
        grid[1, column].set_xlabel(label if x == "size" else f"{label} of {noise}")
    _scales(grid[0, 0], grid[1, 0], max(point.error for point in points))
    handles = {
        text: handle for axes in grid.flat for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    return figure


def _scales(error: Axes, accuracy: Axes, largest: float) -> None:
    """Errors on a scale that shows none as well as hundreds; shares from 0 to 1."""
    error.set_yscale("symlog", linthresh=0.1)
    error.set(ylim=(-0.02, max(1.0, 2 * largest)), ylabel="error: sum of squares")
    accuracy.set(ylim=(-0.03, 1.03), ylabel="accuracy")


def _curves(axes: Axes, points: Sequence[Point], x: str, value: str) -> None:
    """One line for each method, in a band of one standard deviation between seeds."""
    for number, method in enumerate(STYLES):
        found: dict[float, list[float]] = defaultdict(list)
        for point in points:
            if point.method == method:
                found[getattr(point, x)].append(getattr(point, value))
        if not found:
            continue
        at = sorted(found)
        middle = [fmean(found[each]) for each in at]
        spread = [stdev(found[each]) if len(found[each]) > 1 else 0.0 for each in at]
        color, marker, line = STYLES[method]
        low, high = ([m + sign * s for m, s in zip(middle, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(at, [max(0.0, each) for each in low], high, color=color, alpha=0.09, linewidth=0)
        size = 11 - 0.8 * number  # lines that lie on one another stay visible as nested marks
        axes.plot(
            at, middle, color=color, marker=marker, linestyle=line, markersize=size, fillstyle="none", label=method
        )
    if x == "size":
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
