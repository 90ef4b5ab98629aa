"""Draw the 64 sample pictures and spoil every second one: ``python sample_data/make.py``."""

from pathlib import Path

import numpy as np
from PIL import Image
from scene import PLAN, SEED, SIDE, Array, draw

HERE = Path(__file__).parent


def clean() -> dict[str, Array]:
    """All clean pictures by name, sorted."""
    pictures = {}
    for place, line in PLAN["places"].items():
        horizon, times, *layers = line.split()
        for time in times.split(","):
            pictures[f"{place}-{time}"] = draw(f"{place}-{time}", float(horizon), time, layers)
    return dict(sorted(pictures.items()))


def blob(rng: np.random.Generator) -> Array:
    """A rounded region, in a random place, of 40 to 60 % of the pixels."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    while True:
        (cx, cy), (rx, ry) = rng.random(2), rng.uniform(0.3, 0.7, 2)
        region: Array = (np.abs(x - cx) / rx) ** 2.5 + (np.abs(y - cy) / ry) ** 2.5 < 1
        if 0.42 <= region.mean() <= 0.58:
            return region


def spoil(picture: Array, rng: np.random.Generator) -> dict[str, Array]:
    """The picture spoilt in every way."""
    noisy = (picture / 255 + rng.normal(0, 0.4, picture.shape)).clip(0, 1)
    hidden = picture * (np.arange(SIDE) < SIDE // 2)[:, None, None]
    hit = rng.permutation(picture.size).reshape(picture.shape) < picture.size // 2
    pepper = np.where(hit, 255 * rng.integers(0, 2, picture.shape), picture)
    opaque = ~blob(rng)[..., None]
    spoilt = {"noisy": (noisy * 255).round(), "hidden": hidden, "saltpepper": pepper}
    spoilt["transparent"] = np.concatenate([picture * opaque, 255 * opaque], axis=-1)
    return {kind: array.astype(np.uint8) for kind, array in spoilt.items()}


def save(kind: str, pictures: dict[str, Array]) -> None:
    """Write pictures as files and as one array; what is transparent is NaN in the array."""
    (HERE / kind).mkdir(exist_ok=True)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(HERE / kind / f"{name}.png", optimize=True)
    stack = np.stack(list(pictures.values()))
    if stack.shape[-1] == 4:
        stack = np.where(stack[..., 3:] > 0, stack[..., :3] / 255, np.nan).astype(np.float16)
    np.save(HERE / f"{kind}.npy", stack)


def main() -> None:
    """Draw, spoil and save."""
    pictures, rng = clean(), np.random.default_rng(SEED)
    names = list(pictures)[::2]
    spoilt = {name: spoil(pictures[name], rng) for name in names}
    save("clean", pictures)
    for kind in ("noisy", "hidden", "saltpepper", "transparent"):
        save(kind, {name: spoilt[name][kind] for name in names})
    (HERE / "queries.txt").write_text("".join(f"{row}\n" for row in range(0, len(pictures), 2)), encoding="utf-8")


if __name__ == "__main__":
    main()
