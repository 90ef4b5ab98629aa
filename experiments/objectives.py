"""Which objective retrieves best under which noise: the tables of docs/science.md.

    python experiments/objectives.py --data FOLDER [--patterns 1000] [--seeds 5] [--out FOLDER]

For each data set and seed, a bank of randomly drawn images is learned with every objective, and each bank is
evaluated on corrupted copies that no learning has seen. `uhop` and the baselines need no bank of their own; Algorithm 1
is U-Hop's descent as published, from W = I.
"""

import argparse
import csv
import gzip
import io
import statistics
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from published import algorithm_1

import hopmem
from hopmem.bank import MemoryBank
from hopmem.verbs.mapped import mapped

CPU = torch.device("cpu")

NOISES = (
    "gaussian:0.5", "gaussian:2", "mask:0.5", "occlude:0.5", "block:0.6", "saltpepper:0.5", "contrast:0.5",
    "blur:3", "shift:2", "mixed",
)  # fmt: skip
BASELINES = ("modern", "cosine", "centred", "nearest", "uhop")


def mnist(data: Path) -> torch.Tensor:
    """The MNIST test images.

    Returns:
        uint8 [10000, 28, 28].
    """
    raw = gzip.decompress((data / "mnist-t10k-images-idx3-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28).copy())


def cifar10(data: Path) -> torch.Tensor:
    """The CIFAR-10 test images.

    Returns:
        uint8 [10000, 32, 32, 3].
    """
    with tarfile.open(data / "cifar10-test-jpg.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
        pictures = (Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB") for name in names)
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))


def bank_of(images: torch.Tensor, count: int, seed: int) -> MemoryBank:
    """A raw bank of images drawn at random, in units from 0 to 1.

    Returns:
        The bank.
    """
    draw = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    layout = "HW" if images.ndim == 3 else "HWC"
    bank = MemoryBank.from_patterns(images[draw])
    return MemoryBank(bank.patterns, bank.names, bank.shape, scale=1 / 255, layout=layout, seed=seed)


def measure(
    images: torch.Tensor, count: int, seed: int, samples: int, noises: list[str]
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


def main() -> None:
    """Measure, and write a CSV of all and a Markdown table of means and spreads for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--patterns", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--noise", action="append", help="may be given again; default: all of the tables")
    parser.add_argument("--sets", default="mnist,cifar10")
    parser.add_argument("--out", type=Path, default=Path("objectives"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.sets.split(","):
        images = {"mnist": mnist, "cifar10": cifar10}[name](asked.data)
        found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        with (asked.out / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["seed", "noise", "method", "accuracy", "error"])
            for seed in range(asked.seeds):
                for noise, method, accuracy, error in measure(
                    images, asked.patterns, seed, asked.samples, asked.noise or list(NOISES)
                ):
                    rows.writerow([seed, noise, method, f"{accuracy:.4f}", f"{error:.6g}"])
                    file.flush()
                    found[noise, method].append((accuracy, error))
        (asked.out / f"{name}.md").write_text(table(found))
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


if __name__ == "__main__":
    main()
