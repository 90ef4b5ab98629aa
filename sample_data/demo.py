"""The demo: store the sample images, set them apart, retrieve spoilt ones, and count what came back right.

Every command is shown as it is run, so that it can be typed again.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

DATA, OUT = Path("sample_data"), Path("demo")
WAYS = {
    "noisy": ("Gaussian noise of 0.4", DATA / "noisy"),
    "hidden": ("lower half hidden", DATA / "hidden"),
    "saltpepper": ("half salt and pepper", DATA / "saltpepper"),
    "transparent": ("a transparent region", DATA / "transparent"),
    "heavy": ("Gaussian noise of 1.5, not clipped", OUT / "heavy.npy"),
}
MAPS = {"raw": "demo/raw.safetensors", "learned": "demo/learned.safetensors"}


def hopmem(*arguments: str) -> dict[str, Any]:
    """Show and run one command.

    Returns:
        Its result.
    """
    print(f"$ hopmem {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "hopmem", *arguments, "--force", "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def make_heavy_noise(path: Path) -> None:
    """Spoil the same images by noise that no 8-bit file can hold."""
    clean = np.load(DATA / "clean.npy")[originals()] / 255
    np.save(path, (clean + 1.5 * np.random.default_rng(0).normal(size=clean.shape)).astype(np.float32))


def originals() -> list[int]:
    """Which stored image each query was made from.

    Returns:
        Row numbers.
    """
    return [int(line) for line in (DATA / "queries.txt").read_text().split()]


def accuracy(results: list[dict[str, Any]]) -> float:
    """The share of queries whose match is the image that they were made from.

    Returns:
        From 0 to 1.
    """
    return float(np.mean([each["index"] == row for each, row in zip(results, originals(), strict=True)]))


def main() -> None:
    """Run the demo and print its table."""
    OUT.mkdir(exist_ok=True)
    make_heavy_noise(OUT / "heavy.npy")
    stored = hopmem("store", "sample_data/clean", "-o", MAPS["raw"])
    learned = hopmem("optimize", MAPS["raw"], "-o", MAPS["learned"])
    right = {}
    for name, bank in MAPS.items():
        for way, (_, queries) in WAYS.items():
            answers = OUT / f"{way}-{name}"
            target = answers.with_suffix(queries.suffix)
            found = hopmem("retrieve", bank, str(queries), "-o", str(target), "--plot", f"{answers}.png")
            right[way, name] = accuracy(found["results"])
    angles = [learned["separation"][name]["min_angle_degrees"] for name in MAPS]
    print(f"\n{stored['patterns']} images; the closest two are {angles[0]:.0f}° apart raw, {angles[1]:.0f}° learned.\n")
    print(f"{'of 32 queries each, found right':36s}{'raw':>6s}{'learned':>10s}")
    for way, (words, _) in WAYS.items():
        print(f"{words:36s}{right[way, 'raw']:6.0%}{right[way, 'learned']:10.0%}")
    print("\nThe learned map sets the images apart, whatever the queries look like. That helps where something hides")
    print("what the images differ in (the hidden halves), and it hurts under heavy noise, which it amplifies.")
    print(f"Queries beside answers, the least sure first: {OUT}/*.png")


if __name__ == "__main__":
    main()
