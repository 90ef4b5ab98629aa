"""The common style of all pictures: readable in print and by the colour-blind; PNG or SVG by the suffix."""

from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hopmem.atomic import replacing
from hopmem.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")
# Okabe and Ito's colours, which the colour-blind tell apart, after black for what matters most.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#B8A800", "#6A3D9A")
MARKERS = "os^Dv<>pXP"
DASHES = 4  # lines that can lie on one another and be seen
RESOLUTION = 150  # dots an inch of a PNG, and of images inside an SVG
SUFFIXES = (".png", ".svg")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "hopmem",  # the same picture, the same bytes
    "svg.fonttype": "path",
    "image.cmap": "cividis",
}


def require_matplotlib(option: str = "--plot") -> None:
    """Charts need what is not installed with the rest.

    Args:
        option: what asked for them.

    Raises:
        UsageError: it is not there.
    """
    if find_spec("matplotlib") is None:
        raise UsageError(f"{option}: expected matplotlib, found it not installed: pip install 'hopmem[plot]'")


def require_suffix(path: Path) -> None:
    """Pictures are PNG or SVG.

    Args:
        path: of a picture.

    Raises:
        UsageError: another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot: expected a name that ends in {' or '.join(SUFFIXES)}, found {path.name}")


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Let a function draw in the common style, where matplotlib is there.

    Args:
        draw: what draws.

    Returns:
        The function.
    """

    @wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> T:
        require_matplotlib()
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **options)

    return drawn


def figure_of(down: int, across: int, size: tuple[float, float], **options: Any) -> "tuple[Figure, list[Axes]]":
    """A figure in the common style, drawn without a screen.

    Args:
        down: rows of axes.
        across: columns of axes.
        size: inches, wide and high.
        options: of the axes, as `Figure.subplots` takes them.

    Returns:
        The figure and its axes, row by row.
    """
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    figure = Figure(figsize=size, dpi=RESOLUTION, layout="constrained")
    return figure, figure.subplots(down, across, squeeze=False, **options).ravel().tolist()


def save(figure: "Figure", path: Path, *, force: bool) -> None:
    """Write a figure whole or not at all, as its suffix says; the same figure gives the same bytes.

    Args:
        figure: the figure.
        path: the file.
        force: whether it may be replaced.
    """
    kind = path.suffix.lower().removeprefix(".") or "png"
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with replacing(path, force=force) as temporary:
        figure.savefig(temporary, format=kind, metadata=metadata)


def color(number: int) -> str:
    """The colour of a method.

    Args:
        number: its place; the first is black.

    Returns:
        A colour.
    """
    return COLORS[number % len(COLORS)]


def line_of(number: int) -> dict[str, Any]:
    """How the line of a method is drawn, so that lines on one another can be told apart.

    Args:
        number: its place; the first is strong and whole.

    Returns:
        Options of a line.
    """
    return {
        "color": color(number),
        "linewidth": 2.4 if number == 0 else 1.3,
        "linestyle": "-" if number == 0 else (number % DASHES * 3, (3, 3 * (DASHES - 1))),
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
    }
