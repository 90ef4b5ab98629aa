"""How many memories share a fixed point: sizes of metastable states, with and without U-Hop+, for three α.

    python -m experiments metastable --data FOLDER [--seeds 5]

Synthetic memories (M = 10 in D = 5, normally distributed, as U-Hop+ has it) and MNIST (M = 500, a choice made here).
Queries are the memories with Gaussian noise, also a choice made here, on MNIST of two strengths, since the map of
U-Hop+ makes much of noise that the raw one does not notice; retrieval runs until it has converged. The size
is the support of the weights: those not zero, of softmax those above 0.01 (U-Hop+, after Martins et al., 2023).
Beside it the table has how many queries end with their own memory on top: a state of one memory may be the wrong one.

β is 0.1 and 1, as published for the synthetic memories, and used for MNIST too as a choice made here. The papers' β
multiplies scores of patterns as they are, hopmem's those of unit features: β here is theirs times the mean squared
length of the memories. Protocol *published* gives both maps that β; *matched* gives each map the β at which
β · mean over queries of (largest score − mean score) equals that of the raw map, so that no map is merely colder.
"""

import statistics
from collections import Counter
from collections.abc import Iterator

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import hopmem
from experiments.setting import Setting, bank_of
from hopmem import MemoryBank
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import unit

BETAS = (0.1, 1.0)  # on patterns as they are
ALPHAS = (1.0, 1.5, 2.0)
NAMES = {1.0: "softmax", 1.5: "1.5-entmax", 2.0: "sparsemax"}
MOST = 10  # larger ones are counted together
SIZES = (*map(str, range(MOST + 1)), f">{MOST}")
COUNT, DIMENSION, COPIES = 10, 5, 100  # of the synthetic memories, and queries for each of them
IMAGES = 500
PROTOCOLS = ("published", "matched")
UPDATES = 200  # at most
HEADER = ("seed", "data", "map", "alpha", "published beta", "beta", "protocol", "size", "share", "right")
Key = tuple[str, str, float, float, float, str]  # data, map, α, published β, β, protocol


def synthetic(seed: int) -> MemoryBank:
    """A raw bank of normally distributed memories."""
    draws = torch.Generator().manual_seed(seed)
    return MemoryBank.from_patterns(torch.randn(COUNT, DIMENSION, generator=draws))


def queries(bank: MemoryBank, noise: str, copies: int, seed: int) -> Tensor:
    """Noisy copies of every memory [copies · M, d]."""
    Xi = bank.rows()[slice(0, len(bank))]
    draws = torch.Generator().manual_seed(seed + 1000)
    return parse_noise(noise, images=bank.layout is not None)(
        Xi.repeat(copies, 1), canvas_of(bank.rows(), bank.shape, bank.layout), draws
    )


def gap(bank: MemoryBank, X: Tensor) -> float:
    """How far the largest score lies above the mean score, averaged over the queries."""
    memory = bank.memory()
    S = unit(memory.phi(X)) @ memory[slice(0, len(bank))].T  # [B, M]
    return float((S.amax(1) - S.mean(1)).mean())


def shares(
    bank: MemoryBank, X: Tensor, alpha: float, beta: float, updates: int = UPDATES
) -> tuple[dict[str, float], float]:
    """The share of queries whose fixed point has each size, and of those that end with their own memory on top.

    Args:
        bank: the memories and their map.
        X: queries [B, d], copies of all memories one after another.
        alpha: of the entmax.
        beta: on unit features.
        updates: at most so many.

    Returns:
        Shares by size, for all of SIZES, and the share that is right.
    """
    answer = hopmem.retrieve(bank, X, alpha=alpha, beta=beta, steps=updates)
    found = Counter(answer.support.tolist())
    counted = [found[size] for size in range(MOST + 1)]
    sizes = {name: count / len(X) for name, count in zip(SIZES, [*counted, len(X) - sum(counted)], strict=True)}
    return sizes, float((answer.index == torch.arange(len(X)) % len(bank)).float().mean())


def measure(
    data: str, raw: MemoryBank, learned: MemoryBank, X: Tensor, updates: int = UPDATES
) -> Iterator[tuple[Key, dict[str, float], float]]:
    """Sizes for every map, α, β and protocol.

    Yields:
        What it is, its shares by size, and the share that is right.
    """
    length = float(raw.rows()[slice(0, len(raw))].square().sum(1).mean())
    maps = {"raw": raw, "U-Hop+": learned}
    gaps = {name: gap(bank, X) for name, bank in maps.items()}
    for published in BETAS:
        for name, bank in maps.items():
            factors = {"published": 1.0, "matched": gaps["raw"] / gaps[name]}
            for protocol in PROTOCOLS:
                beta = published * length * factors[protocol]
                for alpha in ALPHAS:
                    yield (data, name, alpha, published, beta, protocol), *shares(bank, X, alpha, beta, updates)


def draw(axis: Axes, bars: dict[str, list[float]], right: list[float]) -> None:
    """Bars of shares, the smallest size below, lightest, and above each how many queries end right."""
    colours = [colormaps["cividis"](1 - place / (len(SIZES) - 1)) for place in range(len(SIZES))]
    below = [0.0] * len(bars)
    for place, size in enumerate(SIZES):
        heights = [values[place] for values in bars.values()]
        axis.bar(range(len(bars)), heights, bottom=below, color=colours[place], edgecolor="white", linewidth=0.4)
        ink = "black" if place < len(SIZES) / 2 else "white"  # on the light and on the dark half
        for bar, (low, height) in enumerate(zip(below, heights, strict=True)):
            if height > 0.07:  # where there is room
                axis.text(bar, low + height / 2, size, ha="center", va="center", color=ink, size=7)
        below = [low + each for low, each in zip(below, heights, strict=True)]
    axis.set_xticks(range(len(bars)), list(bars), rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    for bar, share in enumerate(right):
        axis.text(bar, 1.02, f"{100 * share:.0f}", ha="center", va="bottom", size=7)
    axis.set_ylim(0, 1.1)
    axis.spines[["top", "right"]].set_visible(False)


def picture(rows: list[tuple]) -> Figure:
    """A panel for each data set and β in each protocol: the mean over seeds."""
    panels = list(dict.fromkeys((row[1], row[4]) for row in rows))
    figure = Figure(figsize=(2 * len(panels), 7), layout="constrained")
    axes = figure.subplots(len(PROTOCOLS), len(panels), sharex=True, sharey=True)
    for line, protocol in zip(axes, PROTOCOLS, strict=True):
        for axis, (data, beta) in zip(line, panels, strict=True):
            bars, right = dict[str, list[float]](), list[float]()
            for alpha in ALPHAS:
                for name in ("raw", "U-Hop+"):
                    kept = [row for row in rows if row[1:5] == (data, name, alpha, beta) and row[6] == protocol]
                    shared = [[row[8] for row in kept if row[7] == size] for size in SIZES]
                    bars[f"{NAMES[alpha]}, {name}"] = [statistics.fmean(each) for each in shared]
                    right.append(statistics.fmean(row[9] for row in kept))
            draw(axis, bars, right)
            axis.set_title(f"{data},\nβ = {beta:g}, {protocol}", fontsize=9)
        line[0].set_ylabel("share of queries")
    figure.suptitle(
        "Memories that share a fixed point (in the bars), and queries that end at their own memory in per cent (above)"
    )
    return figure


def trials(setting: Setting, seed: int) -> Iterator[tuple[str, MemoryBank, MemoryBank, Tensor]]:
    """The data sets of one seed.

    Yields:
        Name, raw bank, the bank with the map of U-Hop+, and queries.
    """
    images, copies, steps = (20, 5, 20) if setting.quick else (IMAGES, COPIES, None)
    sets = (
        (synthetic(seed), copies, {"synthetic": "gaussian:0.5"}),
        (
            bank_of(setting.mnist(), images, seed),
            1,
            {"MNIST, σ = 0.02": "gaussian:0.02", "MNIST, σ = 0.5": "gaussian:0.5"},
        ),
    )
    for raw, each, noises in sets:
        learned = hopmem.optimize(raw, objective="spherical", steps=steps, seed=seed)
        for name, noise in noises.items():
            yield name, raw, learned, queries(raw, noise, each, seed)


def run(setting: Setting) -> None:
    """Count the sizes on all data sets, write them, and draw their means."""
    rows = []
    for seed in setting.repeat(5):
        for data, raw, learned, X in trials(setting, seed):
            for key, sizes, right in measure(data, raw, learned, X, 10 if setting.quick else UPDATES):
                rows += [(seed, *key, size, share, right) for size, share in sizes.items()]
    setting.write("metastable", HEADER, rows)
    setting.save(picture(rows), "metastable")
