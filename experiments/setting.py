"""What every experiment is given: where its data lie, where results go, how many seeds, and how long it may take."""

import csv
import gzip
import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hopmem.bank import MemoryBank

TINY = 60  # images of each kind, where a quick run has no data


class MissingDataError(Exception):
    """An experiment needs data that are not there."""


class BadDataError(Exception):
    """Data that an experiment can't be made with."""


@dataclass(frozen=True)
class Setting:
    """One run of an experiment."""

    out: Path  # where CSV and PNG go
    data: Path | None = None  # a folder with MNIST, CIFAR-10 and the best known spherical codes
    seeds: int | None = None  # repetitions; None: as many as the paper has
    quick: bool = False  # in seconds, on little data: to see that it runs

    def repeat(self, published: int) -> range:
        """The seeds of the repetitions.

        Args:
            published: how many the paper has.

        Returns:
            Seeds from 0; two in a quick run.
        """
        return range(self.seeds or (2 if self.quick else published))

    def mnist(self) -> Tensor:
        """The MNIST test images; in a quick run without data, blots.

        Returns:
            uint8 [N, 28, 28].
        """
        if self._invented:
            return blots(TINY, 1)[:, :, :, 0]
        raw = gzip.decompress((self.folder / "mnist-t10k-images-idx3-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28).copy())

    def cifar10(self) -> tuple[Tensor, list[str]]:
        """The CIFAR-10 test images and the class of each; in a quick run without data, blots.

        Returns:
            uint8 [N, 32, 32, 3], and N names.
        """
        if self._invented:
            return blots(TINY, 3), [f"class {number % 6}" for number in range(TINY)]
        with tarfile.open(self.folder / "cifar10-test-jpg.tar") as tar:
            names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))
            raw = (tar.extractfile(name) for name in names)
            pictures = [np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")) for file in raw if file]
        return torch.from_numpy(np.stack(pictures)), [Path(name).parent.name for name in names]

    def tammes(self) -> dict[int, float]:
        """The best known smallest angle in degrees of M points on the sphere in R³ (N. J. A. Sloane's tables).

        Returns:
            Angles by M; in a quick run without data, those that theory knows.
        """
        if self._invented:
            return {4: 109.4712206, 6: 90.0, 12: 63.4349488}
        with (self.folder / "tammes3d.csv").open(newline="") as file:
            rows = csv.DictReader(line for line in file if not line.startswith("#"))
            return {int(row["M"]): float(row["angle_degrees"]) for row in rows}

    @property
    def folder(self) -> Path:
        """Where the data lie.

        Raises:
            MissingDataError: nobody said.
        """
        if self.data is None:
            raise MissingDataError("expected a folder with the data: --data FOLDER or HOPMEM_DATA")
        return self.data

    @property
    def _invented(self) -> bool:
        return self.quick and self.data is None

    def write(self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
        """Write a table.

        Args:
            name: of the file, without suffix.
            header: its columns.
            rows: their values; floats are written to six digits.

        Returns:
            The CSV.
        """
        path = self.out / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(header)
            table.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
        return path

    def save(self, figure: Any, name: str) -> Path:
        """Write a picture.

        Args:
            figure: of matplotlib.
            name: of the file, without suffix.

        Returns:
            The PNG.
        """
        path = self.out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        return path


def blots(count: int, channels: int) -> Tensor:
    """Invented pictures, alike but for a few soft blots.

    Returns:
        uint8 [count, 28 or 32, the same, channels].
    """
    side = 28 if channels == 1 else 32
    rng = np.random.default_rng(0)
    small = (Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)) for _ in range(count))
    pictures = np.stack([np.asarray(each.resize((side, side), Image.Resampling.BICUBIC)) for each in small])
    return torch.from_numpy(pictures[..., :channels].copy())


def bank_of(images: Tensor, count: int, seed: int) -> MemoryBank:
    """A raw bank of images drawn at random, in units from 0 to 1.

    Args:
        images: uint8 [N, H, W] or [N, H, W, C].
        count: at most so many of them.
        seed: draws them.

    Returns:
        The bank.
    """
    draw = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    bank = MemoryBank.from_patterns(images[draw])
    layout = "HW" if images.ndim == 3 else "HWC"
    return MemoryBank(bank.patterns, bank.names, bank.shape, scale=1 / 255, layout=layout, seed=seed)


def data_folder() -> Path | None:
    """The folder of HOPMEM_DATA.

    Returns:
        None where it is not set.
    """
    found = os.environ.get("HOPMEM_DATA")
    return Path(found) if found else None
