"""How a map was learned: what was tried, and how the loss fell."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopmem.plots.style import color, figure_of, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COSINE = "largest cosine"
TRIED = 14  # maps that are drawn beside those that were judged again
FEW_STEPS = 12  # that are drawn as points, too
DECADES = 100.0  # the ratio of losses from which their axis is logarithmic


@styled
def learning_chart(
    validation: Sequence[dict[str, Any]],
    curve: Sequence[float],
    noun: str,
    path: Path,
    *,
    cosines: Sequence[tuple[int, float]] = (),
    force: bool,
) -> None:
    """Draw how the maps that were tried did, best above, and how the loss fell.

    Args:
        validation: rows with noise, method and accuracy; none where nothing was validated.
        curve: what was lowered, step by step.
        noun: what that is.
        cosines: steps, and the largest cosine of what was learned from then.
        path: the file, a PNG or an SVG.
        force: whether it may be replaced.
    """
    noises = list(dict.fromkeys(row["noise"] for row in validation))
    count = max(1, len(noises) + bool(curve))
    figure, axes = figure_of(1, count, (1 + 6 * count, 5))
    for axis, noise in zip(axes, noises, strict=False):
        _tried(axis, [row for row in validation if row["noise"] == noise])
        axis.set_title(f"accuracy under {noise}\nblack: judged again on fresh copies")
    if curve:
        _fall(axes[-1], curve, noun)
        if cosines and noun != COSINE:
            _cosines(axes[-1], cosines)
    save(figure, path, force=force)


def _cosines(axis: "Axes", cosines: Sequence[tuple[int, float]]) -> None:
    """Draw the largest cosine beside the loss, on an axis of its own."""
    other = axis.twinx()
    other.plot(*zip(*cosines, strict=True), color=color(2), linestyle="--")
    other.set_ylabel(f"{COSINE} (dashed)", color=color(2))
    other.spines["right"].set_visible(True)
    other.grid(visible=False)


def _tried(axis: "Axes", rows: list[dict[str, Any]]) -> None:
    """Draw the best of the maps that were tried, and above them those that were judged again: learned and raw."""
    from hopmem.model.denoise.learning import FRESH

    again = [row for row in rows if row["method"].endswith(FRESH)]
    best = sorted((row for row in rows if row not in again), key=lambda row: row["accuracy"])[-TRIED:]
    shown = [*best, *sorted(again, key=lambda row: row["accuracy"])]
    names = [row["method"].removesuffix(FRESH) + (" " if row in again else "") for row in shown]  # bars need own names
    colors = [color(0) if row in again else "0.7" for row in shown]
    axis.barh(names, [row["accuracy"] for row in shown], color=colors)
    axis.bar_label(axis.containers[0], labels=[f"{100 * row['accuracy']:.1f} %" for row in shown], padding=3)  # type: ignore[arg-type]  # bars
    axis.set(xlim=(0, 1.15), xticks=[])
    axis.spines["bottom"].set_visible(False)
    axis.grid(visible=False)
    axis.tick_params(axis="y", labelsize=7)


def _fall(axis: "Axes", curve: Sequence[float], noun: str) -> None:
    """Draw how a loss fell; what is lost in rounding is drawn flat."""
    from matplotlib.ticker import MaxNLocator

    axis.plot(range(1, len(curve) + 1), curve, color=color(0), marker="o" if len(curve) < FEW_STEPS else None)
    axis.set(xlabel="step", ylabel=noun, title="learning")
    middle, least = (max(curve) + min(curve)) / 2, 1e-3 * max(1.0, *map(abs, curve))
    if min(curve) > 0 and max(curve) > DECADES * min(curve) and max(curve) > least:
        axis.set_yscale("log")
    else:
        axis.ticklabel_format(useOffset=False)
        if max(curve) - min(curve) < least:
            axis.set_ylim(max(0.0, middle - least) if min(curve) >= 0 else middle - least, middle + least)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
