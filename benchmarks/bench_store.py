"""How long does it take to store image files, beside a bare loop that decodes them with Pillow on one thread?"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from ratios import Ratio, paired, ratio


def pictures(folder: Path, count: int, side: int, suffix: str) -> None:
    """Write colourful blurred images: neither flat, nor noise that no camera sees."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        image = small.resize((side, side)).filter(ImageFilter.GaussianBlur(1))
        image.save(folder / f"{number:05d}{suffix}")


def decode(folder: Path) -> None:
    """The bare loop."""
    for file in sorted(folder.iterdir()):
        with Image.open(file) as image:
            np.asarray(image)


def measure(*, quick: bool = False) -> Iterator[Ratio]:
    """All cases, one by one."""
    runs, share = (1, 10) if quick else (2, 1)
    for count, side, suffix, bar in ((10_000, 32, ".png", 1.0), (1000, 512, ".jpg", 0.6)):
        with tempfile.TemporaryDirectory() as place:
            folder, bank = Path(place, "images"), Path(place, "bank.safetensors")
            folder.mkdir()
            pictures(folder, count // share, side, suffix)
            command = [sys.executable, "-m", "hopmem", "store", str(folder), "-o", str(bank), "--force", "-q"]
            times = paired(lambda c=command: subprocess.run(c, check=True), lambda f=folder: decode(f), runs)
        case = f"hopmem store, {count // share:,} {suffix} of {side} × {side}"
        yield ratio(case, "a bare Pillow loop", times, bar)


if __name__ == "__main__":
    list(measure(quick="--quick" in sys.argv))
