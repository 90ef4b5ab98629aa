"""How much of U-Hop's gain is temperature: the published protocol beside the same maps at matched and at best β.

    python experiments/temperature.py --data FOLDER [--patterns 500] [--seeds 5] [--noise mask:0.5]

The published protocol trains on unit features and retrieves with unnormalised ones at β = 1, against a modern Hopfield
network at β = 1. Unnormalised features make logits longer, which is a larger β. Here each map retrieves three times: as
published, at unit features with the same β for all, and at unit features with its own best β.
"""

import argparse
import statistics
from pathlib import Path

import torch
from objectives import bank_of, cifar10, mnist
from torch import Tensor

from hopmem.model.kernel import FeatureMap, unit
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.uhop import Training, learn_average

BETAS = [2.0**power for power in range(-4, 17)]


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
    maps = {"modern (W = I)": FeatureMap(), "U-Hop (average)": learn_average(patterns, Training(seed=seed)).phi}
    found = {}
    for name, phi in maps.items():
        for protocol in ("as published, β = 1", "unit features, β = 20", "unit features, best β"):
            scale = (lambda F: F) if protocol.startswith("as") else unit
            S, T = (scale(phi(Q)) @ scale(phi(Xi)).T for Q in (X, tune))
            beta = 1.0 if protocol.startswith("as") else 20.0
            if "best" in protocol:
                beta = min(BETAS, key=lambda beta, T=T: answers(T, Xi, beta)[1])  # on corruptions of their own
            accuracy, error = answers(S, Xi, beta)
            found[protocol, name] = accuracy, error, beta * float(S.amax(1).mean())
    return found


def main() -> None:
    """Print a Markdown table for each data set: mean over seeds, and their standard deviation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--patterns", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", default="mask:0.5")
    asked = parser.parse_args()
    for name, images in (("MNIST", mnist(asked.data)), ("CIFAR-10", cifar10(asked.data))):
        runs = [measure(images, asked.patterns, asked.noise, seed) for seed in range(asked.seeds)]
        print(f"\n{name}, {asked.patterns} patterns, {asked.noise}\n")
        print("| protocol | map | largest logit | accuracy % | error |\n|---|---|---|---|---|")
        for protocol, method in runs[0]:
            accuracy, error, logit = zip(*(run[protocol, method] for run in runs), strict=True)
            cells = [f"{100 * statistics.fmean(accuracy):.1f} ± {100 * statistics.stdev(accuracy):.1f}"]
            cells.append(f"{statistics.fmean(error):.3g} ± {statistics.stdev(error):.2g}")
            print(f"| {protocol} | {method} | {statistics.fmean(logit):.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
