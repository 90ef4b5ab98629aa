"""Basins of attraction of 5 memories in the plane, after N steps of Stage I and for three α.

    python -m experiments basins [--seeds 5]

From every point of a grid hopmem's retrieval runs until it has converged, in feature space, at β = 20 for all maps.
Colour says which memory it reached: the fixed point lies within half of that memory's own radius, ½ min_ν δ_μν, of its
unit feature. Grey is a fixed point that lies nowhere near one: a mixture of several memories. Since a query starts
from its unit feature, its length says nothing, and basins are sectors around the origin. The memories are drawn from a
normal distribution, which is a choice made here; the picture shows those of the first seed.
"""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from experiments.landscapes import plane
from experiments.published import algorithm_1
from experiments.setting import Setting
from hopmem.model.hopfield import Dynamics, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import average_loss, largest

COUNT, BETA = 5, 20.0
STEPS = (0, 1, 2, 5)
ALPHAS = (1.0, 1.5, 2.0)
NOWHERE = -1
REACH = 2.5  # of the picture, each way
COLOURS = ("#BBBBBB", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442")  # nowhere, then the memories
MARKS = "osD^v"


def memories(seed: int) -> Tensor:
    """Five points of the plane [5, 2]."""
    return torch.randn(COUNT, 2, generator=torch.Generator().manual_seed(seed))


def reached(Xi: Tensor, phi: FeatureMap, X: Tensor, alpha: float, beta: float = BETA) -> Tensor:
    """Which memory each query ends at.

    Args:
        Xi: memories [M, d].
        phi: the feature map.
        X: queries [B, d].
        alpha: of the entmax.
        beta: inverse temperature.

    Returns:
        int64 [B], NOWHERE where the fixed point lies near no memory.
    """
    memory = Features(Patterns(Xi), phi)
    Z = memory[slice(0, len(Xi))]
    dynamics = Dynamics(alpha, beta, steps=2000, tolerance=1e-6)
    ends = retrieve(X, memory, memory, memory.dimension, dynamics).patterns  # what is read out is the state itself
    apart = (Z[:, None] - Z).norm(dim=2).fill_diagonal_(torch.inf)
    distance, nearest = (ends[:, None] - Z).norm(dim=2).min(1)
    return torch.where(distance <= apart.amin(1)[nearest] / 4, nearest, NOWHERE)


def shares(ends: Tensor) -> list[float]:
    """The share of queries that ended at each memory, and last of those that ended nowhere."""
    return [float((ends == number).float().mean()) for number in (*range(COUNT), NOWHERE)]


def draw(axis: Axes, Xi: Tensor, ends: Tensor) -> None:
    """The basins of one map and one α."""
    side = round(len(ends) ** 0.5)
    grid, corners = ends.reshape(side, side).numpy(), (-REACH, REACH, -REACH, REACH)
    colours = ListedColormap(COLOURS)
    axis.imshow(grid, colours, vmin=NOWHERE, vmax=COUNT - 1, interpolation="nearest", origin="lower", extent=corners)
    for number, (x, y) in enumerate(Xi.tolist()):
        axis.plot(x, y, MARKS[number], color=COLOURS[1 + number], markeredgecolor="black", markersize=7)
    axis.set_title(f"{100 * shares(ends)[-1]:.0f} % nowhere", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def legend(figure: Figure) -> None:
    """Say which colour is which memory's."""
    marks = [*MARKS, "s"]
    names = [*(f"memory {number}" for number in range(1, 1 + COUNT)), "near no memory"]
    handles = [
        Line2D([], [], linestyle="", marker=mark, color=colour, markeredgecolor="black", markersize=8, label=name)
        for mark, colour, name in zip(marks, (*COLOURS[1:], COLOURS[0]), names, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def picture(found: Sequence[tuple[int, float, Tensor]], Xi: Tensor) -> Figure:
    """A panel for each N and α."""
    figure = Figure(figsize=(2.3 * len(STEPS) + 0.4, 2.45 * len(ALPHAS) + 0.9), layout="constrained")
    axes = figure.subplots(len(ALPHAS), len(STEPS))
    for N, alpha, ends in found:
        axis = axes[ALPHAS.index(alpha), STEPS.index(N)]
        draw(axis, Xi, ends)
        if alpha == ALPHAS[0]:
            axis.set_title(f"N = {N}\n{axis.get_title()}", fontsize=9)
        if STEPS[0] == N:
            axis.set_ylabel(f"α = {alpha:g}")
    figure.suptitle(f"Basins of attraction at β = {BETA:g} after N steps of Stage I")
    legend(figure)
    return figure


def run(setting: Setting) -> None:
    """Find the basins for each N and α, draw those of the first seed, and write the share that each takes."""
    X = plane(REACH, 20 if setting.quick else 100)
    rows = []
    for seed in setting.repeat(5):
        Xi = memories(seed)
        maps = {N: algorithm_1(Xi, steps=N) for N in STEPS}
        found = [(N, alpha, reached(Xi, phi, X, alpha)) for N, phi in maps.items() for alpha in ALPHAS]
        features = {N: unit(phi(Xi)) for N, phi in maps.items()}
        apart = {N: (float(average_loss(Z, t=2.0)), largest(Z)) for N, Z in features.items()}
        rows += [(seed, N, alpha, *apart[N], *shares(ends)) for N, alpha, ends in found]
        if seed == 0:
            setting.save(picture(found, Xi), "basins")
    memory = [f"memory {number}" for number in range(1, 1 + COUNT)]
    setting.write("basins", ["seed", "N", "alpha", "average loss", "largest cosine", *memory, "nowhere"], rows)
