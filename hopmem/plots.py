"""Result → picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hopmem.atomic import replacing
from hopmem.errors import UsageError, printable
from hopmem.pipeline import Picture
from hopmem.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 64  # pictures on a sheet
SIDE, WIDEST = 96, 288  # pixels that an image is drawn high, about, and wide, at most
GAP, LINE = 8, 15  # between images, and of a line of text
SIZES = "patterns"
TRIED = 14  # maps that are drawn beside those that were judged again
FEW_STEPS = 12  # that are drawn as points, too
DECADES = 100.0  # the ratio of losses from which their axis is logarithmic
LONG = 14  # letters of a noise from which its name is turned
DASHES = 4  # lines that can lie on one another and be seen
THIN = {"elinewidth": 0.6, "ecolor": "0.4"}  # error bars
INK, PAPER, FAINT, BAD = (34, 34, 34), (255, 255, 255), (200, 200, 200), (178, 24, 43)


def contact_sheet(pictures: Sequence[Picture], path: Path, *, force: bool) -> None:
    """Draw query, answer and stored pattern side by side, with name and confidence, as a PNG.

    Args:
        pictures: at least one; the first 64 are drawn.
        path: the file.
        force: whether it may be replaced.
    """
    shown = pictures[:MOST]
    height, width = _drawn_size(*shown[0].answer.shape[:2])
    cell = (3 * width + 5 * GAP, height + 2 * LINE + 2 * GAP)
    columns = max(1, min(len(shown), round((len(shown) * cell[1] / cell[0] * 1.6) ** 0.5)))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1] + LINE + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column in range(columns):
        for place, heading in enumerate(("query", "answer", "stored")):
            draw.text((column * cell[0] + GAP + place * (width + GAP), GAP // 2), heading, INK, font)
    for number, picture in enumerate(shown):
        left, top = number % columns * cell[0] + GAP, number // columns * cell[1] + LINE + GAP
        for place, image in enumerate((_query(picture), _pixels(picture.answer), _pixels(picture.stored))):
            smooth = Image.Resampling.LANCZOS if height < image.height else Image.Resampling.NEAREST
            sheet.paste(image.resize((width, height), smooth), (left + place * (width + GAP), top))
        _caption(draw, font, picture, (left, top + height + 2), 3 * width + 2 * GAP)
    with replacing(path, force=force) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def require_matplotlib() -> None:
    """Charts need what is not installed with the rest.

    Raises:
        UsageError: it is not there.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plot: expected matplotlib, found it not installed: pip install 'hopmem[plot]'")


def accuracy_chart(rows: Sequence[Row], path: Path, *, force: bool) -> None:
    """Draw the accuracy of each method as a PNG: over sizes, over the levels of a noise, or as bars.

    Args:
        rows: of one evaluation.
        path: the file.
        force: whether it may be replaced.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    panels = _panels(rows)
    methods = list(dict.fromkeys(row.method for row in rows))
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.8 + 4.6 * across, 3.6 * down), dpi=150, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharey=True).ravel().tolist()
    for axis, panel in zip(axes, panels, strict=False):
        panel.draw(axis, methods)
        axis.set_ylim(-0.03, 1.05)
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axis.grid(axis="y", color="0.9")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.remove()
    axes[0].set_ylabel("accuracy")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    with replacing(path, force=force) as temporary:
        figure.savefig(temporary, format="png")


def learning_chart(
    validation: Sequence[dict[str, Any]], curve: Sequence[float], noun: str, path: Path, *, force: bool
) -> None:
    """Draw how the maps that were tried did, best above, and how the loss fell, as a PNG.

    Args:
        validation: rows with noise, method and accuracy; none where nothing was validated.
        curve: what was lowered, step by step.
        noun: what that is.
        path: the file.
        force: whether it may be replaced.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    noises = list(dict.fromkeys(row["noise"] for row in validation))
    count = len(noises) + bool(curve)
    figure = Figure(figsize=(1 + 6 * max(count, 1), 5), dpi=150, layout="constrained")
    axes = figure.subplots(1, max(count, 1), squeeze=False).ravel().tolist()
    for axis, noise in zip(axes, noises, strict=False):
        _tried(axis, [row for row in validation if row["noise"] == noise])
        axis.set_title(f"accuracy under {noise}\nblack: judged again on fresh copies", fontsize=10)
    if curve:
        _fall(axes[-1], curve, noun)
    with replacing(path, force=force) as temporary:
        figure.savefig(temporary, format="png")


def _tried(axis: "Axes", rows: list[dict[str, Any]]) -> None:
    """Draw the best of the maps that were tried, and above them those that were judged again: learned and raw."""
    from hopmem.model.denoise.learning import FRESH

    again = [row for row in rows if row["method"].endswith(FRESH)]
    best = sorted((row for row in rows if row not in again), key=lambda row: row["accuracy"])[-TRIED:]
    shown = [*best, *sorted(again, key=lambda row: row["accuracy"])]
    names = [row["method"].removesuffix(FRESH) + (" " if row in again else "") for row in shown]  # bars need own names
    colors = [_color(0) if row in again else "0.7" for row in shown]
    axis.barh(names, [row["accuracy"] for row in shown], color=colors)
    axis.bar_label(axis.containers[0], labels=[f"{100 * row['accuracy']:.1f} %" for row in shown], padding=3)  # type: ignore[arg-type]  # bars
    axis.set(xlim=(0, 1.15), xticks=[])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="y", labelsize=7)


def _fall(axis: "Axes", curve: Sequence[float], noun: str) -> None:
    """Draw how a loss fell; what is lost in rounding is drawn flat."""
    from matplotlib.ticker import MaxNLocator

    axis.plot(range(1, len(curve) + 1), curve, color=_color(0), marker="o" if len(curve) < FEW_STEPS else None)
    axis.set(xlabel="step", ylabel=noun, title="learning")
    middle, least = (max(curve) + min(curve)) / 2, 1e-3 * max(1.0, *map(abs, curve))
    if min(curve) > 0 and max(curve) > DECADES * min(curve) and max(curve) > least:
        axis.set_yscale("log")
    else:
        axis.ticklabel_format(useOffset=False)
        if max(curve) - min(curve) < least:
            axis.set_ylim(max(0.0, middle - least) if min(curve) >= 0 else middle - least, middle + least)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="0.9")


def _drawn_size(height: int, width: int) -> tuple[int, int]:
    """How large an image is drawn: whole multiples of small ones, large ones made to fit.

    Returns:
        (height, width) in pixels.
    """
    zoom = max(1, min(round(SIDE / height), round(WIDEST / width)))
    shrink = min(1.0, 2 * SIDE / height, WIDEST / width)
    return max(1, round(height * zoom * shrink)), max(1, round(width * zoom * shrink))


def _caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    picture: Picture,
    at: tuple[int, int],
    width: int,
) -> None:
    """Write the names and the confidence below three images."""
    match = "rejected" if picture.match is None else f"= {picture.match}"
    color = BAD if picture.match is None else INK
    for line, (text, ink) in enumerate(
        ((printable(picture.name), INK), (printable(f"{match}  {picture.confidence:.3f}"), color))
    ):
        while len(text) > 4 and draw.textlength(text, font) > width:
            text = text[:-2] + "…"  # noqa: PLW2901 # shortened until it fits
        draw.text((at[0], at[1] + line * LINE), text, ink, font)


def _query(picture: Picture) -> Image.Image:
    """A query, with a chequered ground where it is unknown.

    Returns:
        An RGB image.
    """
    image = np.asarray(_pixels(picture.query)).copy()
    if picture.known is not None:
        known = picture.known.all(2) if picture.known.ndim == 3 else picture.known
        line, column = np.indices(known.shape)
        ground = np.where(((line + column) % 2 == 0)[..., None], np.array(FAINT), np.array(PAPER)).astype(np.uint8)
        image[~known.numpy()] = ground[~known.numpy()]
    return Image.fromarray(image)


def _pixels(image: Tensor) -> Image.Image:
    """An image from numbers.

    Returns:
        An RGB image.
    """
    array = (image.float().clamp(0, 1) * 255).round().byte().numpy()
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] != 3 else array
    return Image.fromarray(array).convert("RGB")


@dataclass(frozen=True)
class _Panel:
    """One chart of rows: lines over a number, or bars by noise."""

    title: str
    rows: list[Row]
    x: Callable[[Row], float] | None  # None: bars
    label: str = ""

    def draw(self, axis: "Axes", methods: list[str]) -> None:
        """Draw the rows, method by method."""
        for number, method in enumerate(methods):
            own = [row for row in self.rows if row.method == method]
            if self.x is None:
                self._bars(axis, own, number, len(methods))
            else:
                self._line(axis, sorted(own, key=self.x), number)
        axis.set_title(self.title, fontsize=10)
        axis.set_xlabel(self.label)

    def _bars(self, axis: "Axes", rows: list[Row], number: int, count: int) -> None:
        width = 0.84 / count
        places = [place + (number - (count - 1) / 2) * width for place in range(len(rows))]
        heights, errors = [row.accuracy for row in rows], [row.accuracy_se for row in rows]
        axis.bar(places, heights, width, yerr=errors, color=_color(number), label=rows[0].method, error_kw=THIN)
        names = [row.noise for row in rows]
        turned = len(rows) > 1 and (len(rows) > 3 or max(map(len, names)) > LONG)
        axis.set_xticks(range(len(rows)), names, fontsize=8, rotation=25 * turned, ha="right" if turned else "center")

    def _line(self, axis: "Axes", rows: list[Row], number: int) -> None:
        assert self.x is not None  # who draws lines has one
        weight = 2.4 if number == 0 else 1.3
        axis.errorbar(
            [self.x(row) for row in rows],
            [row.accuracy for row in rows],
            [row.accuracy_se for row in rows],
            color=_color(number),
            linewidth=weight,
            linestyle="-" if number == 0 else (number % DASHES * 3, (3, 3 * (DASHES - 1))),
            elinewidth=0.8,
            marker="os^Dv<>pXP"[number % 10],
            markersize=4,
            label=rows[0].method,
        )
        if self.label == SIZES:
            axis.set_xscale("log")
            axis.set_xticks([row.size for row in rows], [f"{row.size:,}" for row in rows])
            axis.minorticks_off()


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


def _color(number: int) -> str:
    return "black" if number == 0 else f"C{number - 1}"
