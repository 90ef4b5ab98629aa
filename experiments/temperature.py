"""How much of U-Hop's gain is temperature: the published protocol beside the same maps at matched and at best β.

    python -m experiments temperature --data FOLDER [--seeds 5]

First one map alone: unit features times a constant s, at β = 1, which is β = s². Then the published protocol, which
trains on unit features and retrieves with unnormalised ones at β = 1, beside a modern Hopfield network at β = 1; both
maps at unit features and the β at which the largest logit is as large, on average, as the published one's; and both at
unit features and their own best β, found on corruptions of their own.
"""

import statistics

import torch
from torch import Tensor

from experiments.published import algorithm_1
from experiments.setting import Setting, bank_of
from hopmem.model.kernel import FeatureMap
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import unit

COUNT, NOISE = 500, "mask:0.5"
BETAS = [2.0**power for power in range(-4, 17)]
SCALES = (1, 4, 16, 64)


def answers(scores: Tensor, Xi: Tensor, beta: float) -> tuple[float, float]:
    """Share right, and the papers' error, of softmax retrieval."""
    readout = (beta * scores).softmax(1) @ Xi
    right = scores.argmax(1) == torch.arange(len(Xi))
    return float(right.float().mean()), float((readout - Xi).square().sum(1).mean())


def measure(images: Tensor, count: int, noise: str, seed: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Accuracy, error and mean largest logit of every map in every protocol."""
    bank = bank_of(images, count, seed)
    patterns = bank.rows()
    canvas = canvas_of(patterns, bank.shape, bank.layout)
    draws = torch.Generator().manual_seed(seed + 1000)
    Xi = patterns[slice(0, count)]
    tune, X = (parse_noise(noise, images=True)(Xi, canvas, draws) for _ in range(2))
    maps = {"modern (W = I)": FeatureMap(), "U-Hop (Algorithm 1)": algorithm_1(Xi)}
    found = {}

    def note(protocol: str, name: str, S: Tensor, beta: float) -> None:
        found[protocol, name] = *answers(S, Xi, beta), beta * float(S.amax(1).mean())

    long = {name: phi(X) @ phi(Xi).T for name, phi in maps.items()}
    alike = {name: unit(phi(X)) @ unit(phi(Xi)).T for name, phi in maps.items()}
    held = {name: unit(phi(tune)) @ unit(phi(Xi)).T for name, phi in maps.items()}
    for s in SCALES:
        note(f"unit features × {s}, β = 1", "modern (W = I)", s * s * alike["modern (W = I)"], 1.0)
    for name in maps:
        note("features as they are, β = 1", name, long[name], 1.0)
    published = float(long["U-Hop (Algorithm 1)"].amax(1).mean())
    for name in maps:
        note(
            "unit features, the published largest logit",
            name,
            alike[name],
            published / float(alike[name].amax(1).mean()),
        )
    for name in maps:
        best = min(BETAS, key=lambda beta, name=name: answers(held[name], Xi, beta)[1])
        note("unit features, own best β", name, alike[name], best)
    return found


def run(setting: Setting) -> None:
    """Write a CSV and print a Markdown table for each data set: mean over seeds, and their standard deviation."""
    for name, images in (("mnist", setting.mnist()), ("cifar10", setting.cifar10()[0])):
        runs = [measure(images, 20 if setting.quick else COUNT, NOISE, seed) for seed in setting.repeat(5)]
        header = ["seed", "protocol", "map", "accuracy", "error", "largest logit"]
        rows = [(seed, *key, *values) for seed, found in enumerate(runs) for key, values in found.items()]
        setting.write(f"temperature_{name}", header, rows)
        print(f"\n{name}, {COUNT} patterns, {NOISE}\n")
        print("| protocol | map | largest logit | accuracy % | error |\n|---|---|---|---|---|")
        for protocol, method in runs[0]:
            accuracy, error, logit = zip(*(found[protocol, method] for found in runs), strict=True)
            cells = [f"{100 * statistics.fmean(accuracy):.1f} ± {100 * statistics.stdev(accuracy):.1f}"]
            cells.append(f"{statistics.fmean(error):.3g} ± {statistics.stdev(error):.2g}")
            print(f"| {protocol} | {method} | {statistics.fmean(logit):.1f} | {' | '.join(cells)} |")
