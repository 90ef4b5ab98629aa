"""Which objective retrieves best under which noise: the tables of docs/science.md.

    python -m experiments objectives --data FOLDER [--seeds 5] [--out FOLDER]

For each data set and seed, a bank of randomly drawn images is learned with every objective, and each bank is
evaluated on corrupted copies that no learning has seen. `uhop` and the baselines need no bank of their own; Algorithm 1
is U-Hop's descent as published, from W = I.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch

import hopmem
from experiments.published import algorithm_1
from experiments.setting import Setting, bank_of
from hopmem.verbs.mapped import mapped

CPU = torch.device("cpu")

NOISES = (
    "gaussian:0.5", "gaussian:2", "mask:0.5", "occlude:0.5", "block:0.6", "saltpepper:0.5", "contrast:0.5",
    "blur:3", "shift:2", "mixed",
)  # fmt: skip
BASELINES = ("modern", "cosine", "centred", "nearest", "uhop")


def measure(
    images: torch.Tensor, count: int, seed: int, samples: int, noises: Sequence[str]
) -> Iterator[tuple[str, str, float, float]]:
    """Accuracy and error of every method under every noise.

    Yields:
        Noise, method, accuracy and error.
    """
    raw = bank_of(images, count, seed)
    patterns = raw.rows()[slice(0, count)]
    shared = {
        **{f"Algorithm 1, {n} steps": mapped(raw, algorithm_1(patterns, steps=n), CPU) for n in (20, 100)},
        "mixed map": hopmem.optimize(raw, noise="mixed", seed=seed),
        "spherical": hopmem.optimize(raw, objective="spherical", seed=seed),
    }
    for noise in noises:
        for row in hopmem.evaluate(raw, noise=[noise], methods=BASELINES, samples=samples, seed=seed + 1000).rows:
            yield noise, row.method, row.accuracy, row.error
        for name, bank in (*shared.items(), ("denoise", hopmem.optimize(raw, noise=noise, seed=seed))):
            (row,) = hopmem.evaluate(bank, noise=[noise], methods=[], samples=samples, seed=seed + 1000).rows
            yield noise, name, row.accuracy, row.error


def run(setting: Setting) -> None:
    """Measure, and write a CSV of all and a Markdown table of means and spreads for each data set."""
    sets = {"mnist": (setting.mnist(), 500), "cifar10": (setting.cifar10()[0], 300)}
    noises, samples = (NOISES[:1], 20) if setting.quick else (NOISES, 500)
    for name, (images, count) in sets.items():
        found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        rows = []
        for seed in setting.repeat(5):
            for noise, method, accuracy, error in measure(images, count, seed, samples, noises):
                rows.append((seed, noise, method, accuracy, error))
                found[noise, method].append((accuracy, error))
        setting.write(f"objectives_{name}", ["seed", "noise", "method", "accuracy", "error"], rows)
        (setting.out / f"objectives_{name}.md").write_text(table(found))
        print(table(found))


def table(found: dict[tuple[str, str], list[tuple[float, float]]]) -> str:
    """Accuracy in per cent: mean and, between seeds, standard deviation.

    Returns:
        Markdown.
    """
    methods = list(dict.fromkeys(method for _, method in found))
    lines = [f"| noise | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for noise in dict.fromkeys(noise for noise, _ in found):
        cells = []
        for method in methods:
            shares = [100 * accuracy for accuracy, _ in found[noise, method]]
            spread = statistics.stdev(shares) if len(shares) > 1 else 0.0
            cells.append(f"{statistics.fmean(shares):.1f} ± {spread:.1f}")
        lines.append(f"| {noise} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
