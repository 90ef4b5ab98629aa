"""The demo: store the sample images, learn two maps, retrieve spoilt images, and count what came back right.

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
MAPS = {name: f"demo/{name}.safetensors" for name in ("raw", "average", "learned")}


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
    hopmem("optimize", MAPS["raw"], "--objective", "average", "-o", MAPS["average"])
    learned = hopmem("optimize", MAPS["raw"], "-o", MAPS["learned"])
    right = {}
    for name, bank in MAPS.items():
        for way, (_, queries) in WAYS.items():
            answers = OUT / f"{way}-{name}"
            target = answers.with_suffix(queries.suffix)
            found = hopmem("retrieve", bank, str(queries), "-o", str(target), "--plot", f"{answers}.png")
            right[way, name] = accuracy(found["results"])
    print(f"\n{stored['patterns']} images; for mixed noise the {learned['kept']} map is kept.\n")
    print(f"{'of 32 queries each, found right':36s}{'raw':>6s}{'average':>9s}{'learned':>9s}")
    for way, (words, _) in WAYS.items():
        print(f"{words:36s}{right[way, 'raw']:6.0%}{right[way, 'average']:9.0%}{right[way, 'learned']:9.0%}")
    print(
        "\n`learned` is a map for the noise that is expected (here mixed), chosen by validation; `average` is U-Hop's"
    )
    print("objective, which sets the images apart whatever the queries look like, and amplifies noise.")
    print(f"Queries beside answers, the least sure first: {OUT}/*.png")


if __name__ == "__main__":
    main()
