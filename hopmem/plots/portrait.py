"""A bank's portrait: cosines, Δ, the code, its spectrum, the closest pairs, and the landscape of the energy."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hopmem.errors import printable
from hopmem.plots.style import RESOLUTION, color, figure_of, save, styled
from hopmem.verbs.portrait import BINS, Plane, Portrait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

MOST_POINTS = 2000  # of a line: more can't be seen, and make a large SVG
LONG = 22  # letters of a name in a picture
NAMED = 12  # memories whose basins have colours of their own names
LEVELS = 24  # of the energy
MANY = 2000  # pairs from which a fine histogram on a logarithmic axis is worth it
NOTHING = 1e-5  # of the largest singular value: less is rounding


@dataclass(frozen=True)
class Chart:
    """One picture of a bank."""

    name: str  # of the file, without suffix
    title: str
    caption: str
    figure: "Figure"

    def png(self, resolution: int = RESOLUTION) -> bytes:
        """The picture as it stands on a page.

        Args:
            resolution: dots an inch.

        Returns:
            A PNG.
        """
        raw = io.BytesIO()
        self.figure.savefig(raw, format="png", dpi=resolution, metadata={"Software": None})
        return raw.getvalue()


@styled
def write_charts(found: list[Chart], folder: Path, *, force: bool) -> list[Path]:
    """Write pictures as PNG and SVG.

    Args:
        found: the pictures.
        folder: where they go; it is made where it is missing.
        force: whether files may be replaced.

    Returns:
        The files.
    """
    written = []
    for chart in found:
        for suffix in ("png", "svg"):
            written.append(folder / f"{chart.name}.{suffix}")
            save(chart.figure, written[-1], force=force)
    return written


@styled
def charts(portrait: Portrait) -> list[Chart]:
    """Draw all that can be drawn of a bank.

    Args:
        portrait: what was measured.

    Returns:
        The pictures: of a single pattern its code alone.
    """
    found: list[Callable[[Portrait], Chart]] = [_code]
    if len(portrait.bank) > 1:
        found = [_cosines, _delta, _code, _spectrum]
    if portrait.pairs and portrait.bank.layout is not None:
        found.append(_pairs)
    if portrait.plane is not None:
        found.append(_landscape)
    if portrait.points is not None:
        found.append(_sphere)
    return [draw(portrait) for draw in found]


def _cosines(portrait: Portrait) -> Chart:
    """How alike pairs of patterns are.

    Returns:
        The distribution of cosines, raw and learned.
    """
    figure, (axis,) = figure_of(1, 1, (6.4, 3.6))
    pairs = float(portrait.sides[0].cosines.sum())
    bins = BINS if pairs > MANY else BINS // 8
    edges = np.linspace(-1, 1, bins + 1)
    for number, side in enumerate(portrait.sides[::-1]):
        share = side.cosines.double().view(bins, -1).sum(1).numpy() / max(1.0, pairs)
        options: dict[str, Any] = {"color": color(number), "linestyle": "--" if number else "-"}
        axis.stairs(share, edges, label=side.name, fill=False, linewidth=1.6, **options)
    seen = np.nonzero(np.sum([side.cosines.view(bins, -1).sum(1).numpy() for side in portrait.sides], axis=0))[0]
    axis.set(xlim=(edges[seen[0]] - 0.02, edges[seen[-1] + 1] + 0.02), xlabel="cosine", ylabel="share of pairs")
    axis.set(yscale="log" if pairs > MANY else "linear", title="cosines of pairs of patterns")
    axis.legend()
    return Chart(
        "cosines", "Cosines", "How alike any two patterns are. What lies far right is easily mixed up.", figure
    )


def _delta(portrait: Portrait) -> Chart:
    """How far each pattern lies from its neighbour.

    Returns:
        Δ of all patterns, the smallest first.
    """
    figure, (axis,) = figure_of(1, 1, (6.4, 3.6))
    for number, side in enumerate(portrait.sides[::-1]):
        delta = side.delta.sort().values.numpy()
        places = np.unique(np.linspace(0, len(delta) - 1, min(len(delta), MOST_POINTS)).round().astype(int))
        axis.plot(100 * (places + 1) / len(delta), delta[places], label=side.name, **_stroke(number))
    axis.set(xlabel="% of patterns", ylabel="Δ", xlim=(0, 100), title="separation Δ of each pattern, sorted")
    axis.set_ylim(bottom=0)
    axis.legend()
    caption = "How far each pattern lies from the one closest to it: the left end is what retrieval fails on first."
    return Chart("delta", "Separation", caption, figure)


def _code(portrait: Portrait) -> Chart:
    """The cosines of the first patterns, one by one.

    Returns:
        Heat maps, raw and learned.
    """
    sides = portrait.sides
    figure, axes = figure_of(1, len(sides), (0.8 + 3.9 * len(sides), 3.6))
    low = min(float(side.code.min()) for side in sides)
    for axis, side in zip(axes, sides, strict=True):
        image = axis.imshow(side.code.numpy(), vmin=min(low, 0.0), vmax=1, interpolation="nearest")
        axis.set(title=f"{side.name}, {len(side.code)} patterns", xlabel="pattern", ylabel="pattern")
        axis.locator_params(integer=True)
        axis.grid(visible=False)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.85)
    return Chart("code", "The code", "Cosines between the first patterns: off the diagonal, dark is good.", figure)


def _spectrum(portrait: Portrait) -> Chart:
    """How many dimensions the patterns use.

    Returns:
        The singular values of Z.
    """
    figure, (axis,) = figure_of(1, 1, (6.4, 3.6))
    for number, side in enumerate(portrait.sides[::-1]):
        if side.spectrum is None:
            continue
        sigma = side.spectrum[side.spectrum > NOTHING * side.spectrum.max()].numpy()
        places = np.unique(np.geomspace(1, max(1, len(sigma)), MOST_POINTS).round().astype(int))[: len(sigma)] - 1
        marker = "o" if len(sigma) <= NAMED else None
        axis.plot(places + 1, sigma[places], label=side.name, marker=marker, **_stroke(number))
    axis.set(xlabel="place", ylabel="singular value", title="spectrum of the features")
    if min(len(portrait.bank), portrait.bank.feature_dimension) > NAMED:
        axis.set(xscale="log", yscale="log")
    else:
        axis.set_ylim(bottom=0)
        axis.locator_params(axis="x", integer=True)
    if axis.lines:
        axis.legend()
    return Chart("spectrum", "Spectrum", "A flat line uses every dimension of feature space alike.", figure)


def _pairs(portrait: Portrait) -> Chart:
    """The closest pairs of images side by side.

    Returns:
        At most six pairs.
    """
    across = min(3, len(portrait.pairs))
    down = -(-len(portrait.pairs) // across)
    ratios = ([1, 1, 0.2] * across)[:-1]  # two images, and room before the next pair
    figure, axes = figure_of(down, len(ratios), (3.4 * across, 2.0 * down + 0.3), width_ratios=ratios)
    for axis in axes:
        axis.set_axis_off()
    for number, pair in enumerate(portrait.pairs):
        left = number // across * len(ratios) + number % across * 3
        for side, row in enumerate((pair.a, pair.b)):
            axes[left + side].imshow(
                _pixels(portrait, row), interpolation="nearest", cmap="gray", vmin=0, vmax=1, rasterized=True
            )
            axes[left + side].set_title(_short(portrait.bank.names[row]), fontsize=7)
        under: dict[str, Any] = {"transform": axes[left].transAxes, "ha": "center", "va": "top", "fontsize": 7}
        axes[left].text(1.05, -0.04, f"cosine {pair.cosine:.4f}", **under)
    return Chart("pairs", "Closest pairs", "The patterns that are most easily mixed up, in the map in force.", figure)


def _landscape(portrait: Portrait) -> Chart:
    """The energy, and where the states of a plane come to rest.

    Returns:
        Two maps of the same plane.
    """
    plane = portrait.plane
    assert plane is not None  # asked before
    figure, (left, right) = figure_of(1, 2, (9.2, 4.0))
    x, y = plane.x.numpy(), plane.y.numpy()
    image = left.contourf(x, y, plane.energy.numpy(), LEVELS)
    figure.colorbar(image, ax=left, label="E", shrink=0.85)
    left.set_title(f"energy, β {portrait.beta:.3g}, α {portrait.alpha:g}")
    right.imshow(_colours(plane), origin="lower", extent=(x[0], x[-1], y[0], y[-1]), interpolation="nearest")
    right.set_title("basins of attraction; white: none alone")
    for axis in (left, right):
        _mark(axis, plane, portrait)
    where = "All of feature space" if plane.whole else "The plane of feature space through three memories"
    caption = f"{where}: the energy that retrieval descends, and the memory at which each start comes to rest."
    return Chart("landscape", "Energy and basins", caption, figure)


def _sphere(portrait: Portrait) -> Chart:
    """Features in three dimensions.

    Returns:
        The points on the sphere, seen from two sides.
    """
    points = portrait.points
    assert points is not None  # asked before
    figure, axes = figure_of(1, 2, (7.2, 3.8), subplot_kw={"projection": "3d"})
    u, v = np.mgrid[0 : 2 * np.pi : 30j, 0 : np.pi : 15j]
    for axis, turn in zip(axes, (30, 210), strict=True):
        drawn: Any = axis
        drawn.plot_wireframe(np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color="0.85", linewidth=0.4)
        drawn.scatter(*points[:MOST_POINTS].T.numpy(), color=color(1), s=18, depthshade=True)
        drawn.view_init(elev=20, azim=turn)
        drawn.set_box_aspect((1, 1, 1))
        drawn.set_axis_off()
    figure.suptitle("the features on the sphere, from two sides", fontsize=10)
    return Chart("sphere", "The sphere", "Each point is a pattern's feature.", figure)


def _mark(axis: "Axes", plane: Plane, portrait: Portrait) -> None:
    """Mark the memories that lie on the plane."""
    marks = plane.marks.numpy()
    axis.plot(marks[:, 0], marks[:, 1], "o", color="white", markeredgecolor="black", markersize=6)
    for (x, y), row in zip(marks[:NAMED], plane.marked[:NAMED], strict=True):
        axis.annotate(_short(portrait.bank.names[row]), (x, y), (4, 4), textcoords="offset points", fontsize=7,
                      bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})  # fmt: skip
    sides = [(float(each[0]), float(each[-1])) for each in (plane.x, plane.y)]
    axis.set(xlim=sides[0], ylim=sides[1], aspect="equal", xticks=[], yticks=[])
    axis.grid(visible=False)


def _colours(plane: Plane) -> "NDArray[np.float64]":
    """Basins as colours: those of the marked memories first; others share the rest; no basin is white.

    Returns:
        [n, n, 3].
    """
    from matplotlib.colors import to_rgb

    basin = plane.basin.numpy()
    order = [*plane.marked, *(row for row in np.unique(basin).tolist() if row >= 0 and row not in plane.marked)]
    image = np.ones((*basin.shape, 3))
    for number, row in enumerate(order):
        image[basin == row] = 0.45 + 0.55 * np.array(to_rgb(color(number % 9 + 1)))
    return image


def _pixels(portrait: Portrait, row: int) -> "NDArray[np.float32]":
    image = portrait.image(row)
    assert image is not None  # drawn of images alone
    return np.asarray((image[..., 0] if image.ndim == 3 and image.shape[-1] != 3 else image).clamp(0, 1))


def _short(name: str) -> str:
    text = printable(name).replace("$", r"\$")  # matplotlib would typeset what stands between two
    return text if len(text) <= LONG else f"{text[: LONG // 2]}…{text[-LONG // 2 + 1 :]}"


def _stroke(number: int) -> dict[str, Any]:
    return {"color": color(number), "linewidth": 1.8, "linestyle": "--" if number else "-"}
