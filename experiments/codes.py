"""How near the published bounds on the separation, and hopmem's search, come to the best known spherical codes in R³.

    python -m experiments codes --data FOLDER

The bounds are those of U-Hop+, Proposition 3.1, on the best Δ_min of M points; the best known codes are N. J. A.
Sloane's. Beside them stands the upper bound of L. Fejes Tóth (1943), which is exact at M = 3, 4, 6 and 12: it says how
much of the distance to the published upper bound is the bound's own.
"""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.setting import Setting
from hopmem.model.bounds import spherical_code_bounds
from hopmem.model.codes.search import best_code

DIMENSION = 3
EVERY = 6  # of the tabulated M, and the last: a search takes up to half a minute
HEADER = ("M", "lower", "upper", "best_known", "hopmem", "share", "shortfall", "fejes_toth")

Row = tuple[int, float, float, float, float, float, float, float]


def fejes_toth(M: int) -> float:
    """Δ ≤ 2 − ½ csc²(πM / 6(M − 2)): an upper bound on the best Δ_min of M ≥ 3 points in R³."""
    return 2 - 0.5 / math.sin(math.pi * M / (6 * (M - 2))) ** 2


def measure(M: int, degrees: float) -> Row:
    """Bounds, best known and found separation of M points, and the share of the best known angle that was found."""
    found = best_code(M, DIMENSION).curve[-1]  # the largest cosine
    share = math.degrees(math.acos(max(-1.0, found))) / degrees
    known = 1 - math.cos(math.radians(degrees))
    return M, *spherical_code_bounds(M, DIMENSION), known, 1 - found, share, 1 - share, fejes_toth(M)


def run(setting: Setting) -> None:
    """Write the CSV and draw bounds and codes."""
    best = sorted(setting.tammes().items())
    chosen = best if setting.quick else [*best[:-1:EVERY], best[-1]]
    rows = [measure(M, degrees) for M, degrees in (chosen[:3] if setting.quick else chosen)]
    setting.write("codes", HEADER, rows)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_separation(left, rows)
    draw_looseness(right, rows)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks([4, 10, 20, 50, 100], ["4", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_xlabel("points M")
        axes.legend(fontsize=8)
    setting.save(figure, "codes")


def draw_separation(axes: Axes, rows: list[Row]) -> None:
    """Δ of bounds and codes against the number of points."""
    M, lower, upper, known, found, _, _, proven = zip(*rows, strict=True)
    axes.plot(M, upper, color="#D55E00", linestyle="--", label="upper bound, Prop. 3.1")
    axes.plot(M, proven, color="#CC79A7", linestyle=":", linewidth=2.5, label="upper bound, Fejes Tóth")
    axes.plot(M, known, color="black", label="best known code")
    axes.plot(M, found, "o", color="#0072B2", fillstyle="none", markersize=8, label="hopmem's search")
    axes.plot(M, lower, color="#009E73", linestyle="-.", label="lower bound, Prop. 3.1")
    axes.set_yscale("log")
    axes.set(ylim=(lower[-1] / 3, None), ylabel="separation Δ = 1 − cos(smallest angle)")
    axes.set_title("Points on the sphere in R³")


def draw_looseness(axes: Axes, rows: list[Row]) -> None:
    """By which factor each bound misses the best known separation."""
    M, lower, upper, known, _, _, _, proven = zip(*rows, strict=True)
    below = [best / bound for best, bound in zip(known, lower, strict=True)]
    above, near = ([bound / best for best, bound in zip(known, each, strict=True)] for each in (upper, proven))
    axes.plot(M, below, "v-.", color="#009E73", label="best known / lower bound, Prop. 3.1")
    axes.plot(M, above, "^--", color="#D55E00", label="upper bound, Prop. 3.1 / best known")
    axes.plot(M, near, "s:", color="#CC79A7", label="upper bound, Fejes Tóth / best known")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylim=(0, 1.45 * max(below)), ylabel="factor", title="How loose the bounds are")
