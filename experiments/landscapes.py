"""How Stage I changes the energy landscape of 2 and of 4 memories in the plane.

    python -m experiments landscapes

Drawn is U-Hop's energy, on features as they are, E(x) = ½⟨Φ(x), Φ(x)⟩ − (1/β) ln Σ_μ exp(β⟨Φ(ξ_μ), Φ(x)⟩),
after N steps of Algorithm 1, and below it the same with memories of unit features over feature space, y = Φ(x), which
is where hopmem retrieves: normalising the rows of W does not keep Φ(ξ_μ) as long as it was, so the published energy
changes its scale with N. The barrier is how high the midpoint of the closest two lies above the shallower of them.
The memories, on the unit circle, and β are a choice made here: at N = 0 the closest two share one valley.
"""

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.published import algorithm_1
from experiments.setting import Setting
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import unit
from hopmem.model.separation import separation

BETA = 10.0
STEPS = (0, 1, 2, 5)
DEGREES = ((20, 60), (20, 60, 190, 240))  # of 2 and of 4 memories
REACH = 1.6  # of the picture, each way
AS_PUBLISHED, UNIT = "as published", "unit"
HEADER = ("memories", "N", "features", "largest cosine", "lowest energy at a memory", "highest energy at a memory",
          "energy at the midpoint", "barrier")  # fmt: skip


def memories_at(degrees: Sequence[float]) -> Tensor:
    """Points of the unit circle [M, 2]."""
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def energy(F: Tensor, Y: Tensor, beta: float = BETA) -> Tensor:
    """E = ½‖y‖² − (1/β) ln Σ exp(β⟨f_μ, y⟩).

    Args:
        F: features of the memories [M, D].
        Y: features of the queries [B, D].
        beta: inverse temperature.

    Returns:
        The energy of each query [B].
    """
    return Y.square().sum(1) / 2 - (beta * Y @ F.T).logsumexp(1) / beta


def facts(F: Tensor) -> tuple[float, ...]:
    """What the table says of features [M, D]: cosine, energies, and how high the midpoint of the closest two lies."""
    closest = separation(unit(F))
    pair = F[closest.pairs[0]]
    at, between = energy(F, F), float(energy(F, pair.mean(0, keepdim=True)))
    barrier = between - float(energy(F, pair).max())  # above the shallower of the two: below 0 they share a valley
    return closest.max_cosine, float(at.min()), float(at.max()), between, barrier


def plane(reach: float, side: int) -> Tensor:
    """A grid of queries, row by row from below.

    Args:
        reach: how far it goes each way.
        side: points of a row.

    Returns:
        [side², 2].
    """
    line = torch.linspace(-reach, reach, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def draw(axis: Axes, F: Tensor, at: Tensor, phi: FeatureMap, side: int) -> None:
    """The energy of the memories' features F over the plane that phi maps, and where in it the memories lie."""
    line = torch.linspace(-REACH, REACH, side).numpy()
    E = energy(F, phi(plane(REACH, side))).reshape(side, side)
    # Each panel has its own levels, close together in the valleys, which the walls around them would hide.
    low, high = float(E.min()), float(E.quantile(0.75))
    levels = [low + (high - low) * (step / 14) ** 2 for step in range(15)]
    axis.contourf(line, line, E.numpy(), levels=levels, cmap="cividis", extend="max")
    axis.contour(line, line, E.numpy(), levels=levels[2::3], colors="black", linewidths=0.4, linestyles="solid")
    axis.plot(*at.T.numpy(), "o", markersize=6, color="#D55E00", markeredgecolor="white", markeredgewidth=1.3)
    axis.set_aspect("equal")
    axis.set_title(f"barrier {facts(F)[-1]:.3f}", fontsize=8)


def run(setting: Setting) -> None:
    """Draw both sets of memories after each N, both ways, and write what their energies are."""
    side = 60 if setting.quick else 240
    figure = Figure(figsize=(1.9 * len(STEPS) + 0.5, 8.4), layout="constrained")
    axes = figure.subplots(2 * len(DEGREES), len(STEPS), sharex=True, sharey=True)
    rows = []
    for lines, degrees in zip((axes[:2], axes[2:]), DEGREES, strict=True):
        Xi = memories_at(degrees)
        for column, N in enumerate(STEPS):
            phi = algorithm_1(Xi, steps=N)
            F = phi(Xi)
            Z = unit(F)
            rows += [(len(Xi), N, kind, *facts(each)) for kind, each in ((AS_PUBLISHED, F), (UNIT, Z))]
            draw(lines[0, column], F, Xi, phi, side)
            draw(lines[1, column], Z, Z, FeatureMap(), side)
            angle = math.degrees(math.acos(max(-1.0, min(1.0, facts(F)[0]))))
            lines[0, column].set_title(
                f"N = {N}: features {angle:.0f}° apart\n{lines[0, column].get_title()}", fontsize=8
            )
        lines[0, 0].set_ylabel(f"{len(Xi)} memories,\nas published, over x")
        lines[1, 0].set_ylabel(f"{len(Xi)} memories,\nunit features, over y")
    figure.suptitle(f"Energy at β = {BETA:g} after N steps of Stage I (dark: low; dots: memories)")
    setting.write("landscapes", HEADER, rows)
    setting.save(figure, "landscapes")
