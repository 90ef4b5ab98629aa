"""How Stage I's loss and the largest cosine fall, step by step, for 100 and 200 memories.

    python -m experiments losses --data FOLDER [--seeds 5]

Algorithm 1 from W = I, once on U-Hop's average loss (t = 2) and once on U-Hop+'s smooth maximum (at one τ = 0.1, which
U-Hop+ lets fall; t, τ and 100 steps are choices made here). Dotted is what theory allows: images in more dimensions
than there are memories can become a simplex. Squares are hopmem.optimize with the same objective, drawn at the number
of steps that its curve has: it starts from ridge whitening, which is that simplex where the memories are independent.

Φ(Ξ) is wanted only on the memories, and every step leaves W = diag(c) + BΞ, so the descent runs on c and B, which costs
M²d and not Md² a step and is the same in exact arithmetic.
"""

import math
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import hopmem
from experiments.published import HALVINGS, STEPS
from experiments.setting import Setting, bank_of
from hopmem import MemoryBank
from hopmem.model.rows import unit
from hopmem.model.separation import average_loss, largest

COUNTS, T, TAU = (100, 200), 2.0, 0.1
COLOURS, STYLES = ("#0072B2", "#D55E00"), ("-", "-.")  # of the counts
HEADER = ("data", "M", "seed", "objective", "method", "step", "loss", "largest cosine")
Loss = Callable[[Tensor], Tensor]


def smooth_maximum(Z: Tensor, tau: float = TAU) -> Tensor:
    """L_τ = τ log Σ_{μ≠ν} exp(⟨z_μ, z_ν⟩/τ) (U-Hop+).

    Args:
        Z: unit features [M, D].
        tau: τ > 0.

    Returns:
        The loss, a scalar.
    """
    cosines = (Z @ Z.T).masked_fill(torch.eye(len(Z), dtype=torch.bool), -math.inf)
    return tau * (cosines / tau).flatten().logsumexp(0)


LOSSES: dict[str, Loss] = {"average": partial(average_loss, t=T), "spherical": smooth_maximum}


def descent(Xi: Tensor, loss_of: Loss, steps: int = STEPS) -> Iterator[Tensor]:
    """Algorithm 1 from W = I, as `published.algorithm_1` has it, for any loss.

    Args:
        Xi: memories [M, d].
        loss_of: of unit features.
        steps: at most this many.

    Yields:
        The unit features before the first step and after each.
    """
    G, c, B, rate = Xi @ Xi.T, torch.ones(Xi.shape[1]), torch.zeros(*Xi.T.shape), 1.0
    for _ in range(steps):
        F = (Xi * c + G @ B.T).requires_grad_(True)
        loss = loss_of(unit(F))
        (slope,) = torch.autograd.grad(loss, F)
        yield unit(F.detach())
        rate *= 2
        for _ in range(HALVINGS):
            after, down = rows_of_length_one(c, B - rate * slope.T, Xi, G)
            if float(loss_of(unit(Xi * after + G @ down.T))) < float(loss.detach()):
                break
            rate /= 2
        else:
            return  # no rate helps: a minimum
        c, B = after, down
    yield unit(Xi * c + G @ B.T)


def rows_of_length_one(c: Tensor, B: Tensor, Xi: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """The c and B of W = diag(c) + BΞ with its rows divided by their lengths.

    Args:
        c: [d].
        B: [d, M].
        Xi: memories [M, d].
        G: their products Ξ Ξᵀ [M, M].

    Returns:
        New c and B.
    """
    squares = c.square() + 2 * c * (B * Xi.T).sum(1) + ((B @ G) * B).sum(1)
    length = squares.sqrt()
    return c / length, B / length[:, None]


def best(objective: str, M: int) -> tuple[float, float]:
    """Loss and largest cosine of the simplex of M points."""
    cosine = -1 / (M - 1)
    return (2 * T * (cosine - 1) if objective == "average" else cosine + TAU * math.log(M * (M - 1))), cosine


def measure(bank: MemoryBank, objective: str, steps: int, seed: int) -> Iterator[tuple[str, int, float, float]]:
    """The curve of Algorithm 1, and where hopmem ends.

    Yields:
        Method, step, loss and largest cosine.
    """
    loss_of = LOSSES[objective]
    Xi = bank.rows()[slice(0, len(bank))]
    for step, Z in enumerate(descent(Xi, loss_of, steps)):
        yield "Algorithm 1", step, float(loss_of(Z)), largest(Z)
    learned = hopmem.optimize(bank, objective=objective, force=True, seed=seed)
    Z = learned.memory()[slice(0, len(bank))]
    taken = learned.learning.steps if learned.learning else 0
    yield "hopmem", taken, float(loss_of(Z)), largest(Z)


def draw(axis: Axes, rows: list[tuple], counts: tuple[int, ...], column: int) -> None:
    """A curve and its spread over the seeds for each count, and the simplex."""
    for M, colour, style in zip(counts, COLOURS, STYLES, strict=True):
        kept = [row for row in rows if row[1] == M]
        steps = sorted({row[5] for row in kept if row[4] == "Algorithm 1"})
        curve = [[row[column] for row in kept if row[4] == "Algorithm 1" and row[5] == step] for step in steps]
        axis.plot(steps, [statistics.fmean(each) for each in curve], style, color=colour, label=f"M = {M}")
        axis.fill_between(
            steps, [min(each) for each in curve], [max(each) for each in curve], color=colour, alpha=0.2, linewidth=0
        )
        ends = [row for row in kept if row[4] == "hopmem"]
        axis.plot([row[5] for row in ends], [row[column] for row in ends], "s", color=colour, markerfacecolor="none")
        limit = best(kept[0][3], M)[column - 6]
        axis.axhline(limit, color=colour, linestyle=":", linewidth=1)
    axis.grid(color="0.9")
    axis.spines[["top", "right"]].set_visible(False)


def picture(rows: list[tuple], counts: tuple[int, ...]) -> Figure:
    """Loss and largest cosine against steps, for each data set and objective."""
    panels = list(dict.fromkeys((row[0], row[3]) for row in rows))
    figure = Figure(figsize=(2.9 * len(panels), 6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex=True, squeeze=False)
    for place, (data, objective) in enumerate(panels):
        kept = [row for row in rows if (row[0], row[3]) == (data, objective)]
        for line, column in enumerate((6, 7)):
            draw(axes[line, place], kept, counts, column)
        axes[0, place].set_title(f"{data}, {objective} loss", fontsize=10)
        axes[1, place].set_xlabel("steps")
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel("largest cosine")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(counts), frameon=False)
    figure.suptitle("Algorithm 1 from W = I: mean and range over seeds (dotted: simplex; squares: hopmem)", fontsize=11)
    return figure


def run(setting: Setting) -> None:
    """Measure the curves on both data sets, write and draw them."""
    counts, steps = ((10, 20), 10) if setting.quick else (COUNTS, STEPS)
    rows = []
    for data, images in (("MNIST", setting.mnist()), ("CIFAR-10", setting.cifar10()[0])):
        for M in counts:
            for seed in setting.repeat(5):
                bank = bank_of(images, M, seed)
                for objective in LOSSES:
                    rows += [(data, M, seed, objective, *values) for values in measure(bank, objective, steps, seed)]
    setting.write("losses", HEADER, rows)
    setting.save(picture(rows, counts), "losses")
