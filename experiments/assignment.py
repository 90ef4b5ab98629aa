"""Which memories end side by side: six classes of CIFAR-10 on the circle, learned by U-Hop+ in D = 2.

    python -m experiments assignment --data FOLDER [--seeds 100]

In each trial one image of each class is drawn, six features are spread over the circle, and the six pairs of
neighbours are noted. Six independent memories can be carried to a regular hexagon in any order; so what decides on the
order is how a map is searched for. Four ways are compared:

* the closed form, which is what `hopmem.optimize` takes, with the images stored in the order of CLASSES;
* the closed form, with the images stored in random order;
* descent on L_τ from two random rows of W (at D = 2 there is no W = I);
* descent on L_τ from the two principal components of the centred images.

Random circular orders make each of the 15 pairs neighbours with probability 6/15. The distance of the counts from that
is measured by Σ (count − expected)²/expected; counts of one trial depend on each other, so its p-value comes from
simulated trials and not from the χ² distribution. That of a single pair, whose trials are independent, is binomial.
"""

import math
from collections.abc import Callable
from itertools import combinations, permutations
from statistics import fmean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import hopmem
from experiments.setting import Setting
from hopmem.model.rows import unit
from hopmem.model.separation import separation

CLASSES = ("airplane", "automobile", "cat", "dog", "ship", "truck")
CHANCE = 6 / 15
TRIALS = 100
SIMULATED = 10_000  # runs of as many trials with random orders
TAUS = tuple(2.0**-power for power in range(7))  # the annealing of L_τ
STEPS = 200  # of Adam at each τ
RATE = 0.02  # of the length of a row of W
REGULAR = 1.0  # degree by which the smallest angle may fall short of 60

Way = Callable[[Tensor], Tensor]  # images of all trials [T, 6, d] → features [T, 6, 2]; draws come from the trial


def closed_form(Xi: Tensor) -> Tensor:
    """The features of `hopmem.optimize`."""
    banks = (hopmem.MemoryBank.from_patterns(each) for each in Xi)
    maps = (hopmem.optimize(bank, objective="spherical", feature_dim=2, seed=n) for n, bank in enumerate(banks))
    return torch.stack([bank.features for bank in maps])


def shuffled(Xi: Tensor) -> Tensor:
    """The same, with the images of each trial stored in random order."""
    orders = torch.stack([torch.randperm(Xi.shape[1], generator=_draws(trial)) for trial in range(len(Xi))])
    trials = torch.arange(len(Xi))[:, None]
    return closed_form(Xi[trials, orders])[trials, orders.argsort(1)]


def from_random(Xi: Tensor) -> Tensor:
    """Descent from two random rows of W."""
    return descend(Xi, torch.stack([torch.randn(2, Xi.shape[2], generator=_draws(trial)) for trial in range(len(Xi))]))


def from_principal(Xi: Tensor) -> Tensor:
    """Descent from the two principal components of the centred images; nothing is drawn."""
    centred = Xi - Xi.mean(1, keepdim=True)
    return descend(centred, torch.linalg.svd(centred, full_matrices=False).Vh[:, :2])


WAYS: dict[str, Way] = {
    "closed form, in order": closed_form,
    "closed form, shuffled": shuffled,
    "descent, random W": from_random,
    "descent, principal W": from_principal,
}


def _draws(trial: int) -> torch.Generator:
    return torch.Generator().manual_seed(trial)


def descend(Xi: Tensor, W: Tensor) -> Tensor:
    """Adam on L_τ = τ log Σ_{μ≠ν} exp(⟨z_μ, z_ν⟩/τ) while τ falls, all trials at once; rows of W keep length one.

    Returns:
        Features [T, M, 2] on the circle.
    """
    W = unit(W).requires_grad_(True)
    optimizer = torch.optim.Adam([W], lr=RATE / math.sqrt(W.shape[-1]))
    itself = torch.eye(Xi.shape[1], dtype=torch.bool)
    for tau in TAUS:
        for _ in range(STEPS):
            Z = unit(Xi @ W.mT)
            losses = tau * (Z @ Z.mT / tau).masked_fill(itself, -math.inf).flatten(1).logsumexp(1)
            (W.grad,) = torch.autograd.grad(losses.sum(), W)  # a trial's gradient is its own
            optimizer.step()
            W.data = unit(W.data)
    return unit(Xi @ W.detach().mT)


def neighbours(Z: Tensor) -> np.ndarray:
    """Which pairs, in the order of `combinations`, are side by side on the circle; bool [M (M − 1)/2]."""
    order = torch.atan2(Z[:, 1], Z[:, 0]).argsort().tolist()
    beside = {frozenset(pair) for pair in zip(order, order[1:] + order[:1], strict=True)}
    return np.array([frozenset(pair) in beside for pair in combinations(range(len(Z)), 2)])


def statistic(counts: np.ndarray, trials: int) -> np.ndarray:
    """Σ (count − expected)²/expected over the last axis."""
    return ((counts - CHANCE * trials) ** 2).sum(-1) / (CHANCE * trials)


def simulated(trials: int, runs: int) -> np.ndarray:
    """The statistic of runs of trials with random circular orders [runs]."""
    rng = np.random.default_rng(0)
    hexagon = torch.tensor([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)] for k in range(6)])
    orders = [[0, *rest] for rest in permutations(range(1, 6))]  # each of the 60 circular orders twice
    beside = np.array([neighbours(hexagon[order]) for order in orders])
    return statistic(rng.multinomial(trials, np.full(len(orders), 1 / len(orders)), runs) @ beside, trials)


def binomial(count: int, trials: int) -> float:
    """Two-sided exact p-value: the probability of all counts that are no more likely than this one."""
    p = [math.comb(trials, k) * CHANCE**k * (1 - CHANCE) ** (trials - k) for k in range(trials + 1)]
    return min(1.0, sum(each for each in p if each <= p[count] * (1 + 1e-9)))


def alike(Xi: Tensor) -> np.ndarray:
    """The cosine of each pair of centred images [15]."""
    F = unit(Xi - Xi.mean(0))
    return np.array([float(F[a] @ F[b]) for a, b in combinations(range(len(Xi)), 2)])


def run(setting: Setting) -> None:
    """Write counts, tests of each way, and a picture of the counts."""
    images, names = setting.cifar10()
    classes = [name for name in CLASSES if name in names] or sorted(set(names))[:6]
    Xi = torch.stack([draw(images, names, classes, seed) for seed in setting.repeat(TRIALS)])
    trials, pairs = len(Xi), list(combinations(classes, 2))
    expected = simulated(trials, 200 if setting.quick else SIMULATED)
    counts, tests, rows = {}, [], []
    for way, learn in WAYS.items():
        Z = learn(Xi)
        beside = np.array([neighbours(each) for each in Z])
        counts[way] = beside.sum(0)
        tests.append((way, *test(Z, beside, Xi, expected)))
        for (a, b), count in zip(pairs, counts[way].tolist(), strict=True):
            rows.append((a, b, way, count, trials, CHANCE, binomial(count, trials)))
    setting.write("assignment", ["a", "b", "way", "adjacent", "trials", "chance", "p"], rows)
    setting.write("assignment_tests", ["way", "regular", "statistic", "p", "closer", "closer_se"], tests)
    setting.save(picture(counts, pairs, trials), "assignment")


def draw(images: Tensor, names: list[str], classes: list[str], seed: int) -> Tensor:
    """One image of each class [6, d], from 0 to 1."""
    rng = np.random.default_rng(seed)
    rows = [rng.choice([row for row, name in enumerate(names) if name == each]) for each in classes]
    return images[rows].flatten(1) / 255


def test(Z: Tensor, beside: np.ndarray, Xi: Tensor, expected: np.ndarray) -> tuple[float, float, float, float, float]:
    """Share of regular hexagons, statistic and its p-value, and how much more alike neighbours are than others."""
    least = [math.degrees(math.acos(min(1.0, separation(each).max_cosine))) for each in Z]
    regular = fmean(angle > 60 - REGULAR for angle in least)
    found = float(statistic(beside.sum(0), len(Z)))
    p = (1 + int((expected >= found - 1e-9).sum())) / (1 + len(expected))
    more = [float(s[near].mean() - s[~near].mean()) for s, near in zip(map(alike, Xi), beside, strict=True)]
    return regular, found, p, fmean(more), stdev(more) / math.sqrt(len(more))


def picture(counts: dict[str, np.ndarray], pairs: list[tuple[str, str]], trials: int) -> Figure:
    """Counts of each pair, way by way, and the band in which 95 % of binomial counts lie."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    band = 1.96 * math.sqrt(trials * CHANCE * (1 - CHANCE))
    ticks = [f"{a} – {b}" for a, b in pairs]
    for number, (axes, (way, count)) in enumerate(zip(figure.subplots(1, 4, sharey=True), counts.items(), strict=True)):
        axes.axvspan(CHANCE * trials - band, CHANCE * trials + band, color="0.88", label="95 % of binomial counts")
        axes.axvline(CHANCE * trials, color="black", linewidth=0.8, linestyle="--", label="chance, 6/15")
        axes.barh(range(len(pairs)), count, height=0.6, color=("#0072B2", "#56B4E9", "#E69F00", "#009E73")[number])
        axes.set(title=way, xlabel=f"trials of {trials}", xlim=(0, trials * 1.03))
        axes.title.set_fontsize(10)
        axes.set_yticks(range(len(pairs)), ticks, fontsize=8)
    axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return figure
