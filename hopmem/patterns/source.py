"""What is read from a source, what is asked of the reading, and what the answer has to look like."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from hopmem.errors import UsageError
from hopmem.patterns.unpack import LIMIT
from hopmem.scratch import gathered

Layout = Literal["HW", "HWC", "CHW"]
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".pbm", ".pnm"}
)


@dataclass(frozen=True)
class Reading:
    """How sources are read."""

    key: str | None = None  # the array of an .npz, .safetensors or .pt
    id_column: str | None = None  # the column of a table that names the rows: its header or its number from 0
    format: str | None = None  # the kind of what comes on standard input
    layout: str | None = None  # HW, HWC, CHW or flat, where the shape leaves a doubt
    size: tuple[int, int] | None = None  # (width, height) that images are resized to
    mode: str | None = None  # L or RGB, that images are converted to
    on_bad: Literal["error", "skip"] = "error"  # what an unusable row or image does
    unpack_limit: int = LIMIT  # bytes that a compressed file or an image may unpack to
    partial: bool = False  # NaN and transparent pixels are unknown entries (queries), not mistakes (patterns)


@dataclass(frozen=True)
class Skipped:
    """An input that was left out."""

    name: str  # file or row
    reason: str


@dataclass(frozen=True)
class ImageForm:
    """What an image file looked like, so that its answer looks the same."""

    name: str  # POSIX path below the source
    size: tuple[int, int]  # (width, height) as seen, before any resizing
    mode: str  # Pillow's mode
    several: bool = False  # whether more pictures follow the first in the file


@dataclass(frozen=True)
class Form:
    """The kind of file that rows came from, so that answers go back in the same kind."""

    kind: str  # npy, npz, csv, tsv, safetensors, pt, idx, image, folder
    key: str | None = None
    header: tuple[str, ...] | None = None  # of a table
    id_column: int | None = None  # its place in a table
    images: tuple[ImageForm, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """N rows from one or more sources."""

    stored: Tensor  # [N, d] in the source's type
    shape: tuple[int, ...]  # of one row, of product d
    form: Form
    scale: float = 1.0  # what one stored unit is worth
    layout: Layout | None = None  # None where the rows are no images
    names: tuple[str, ...] | None = None  # None: the rows are numbered
    first: int = 0  # the number of the first row
    numbers: tuple[int, ...] | None = None  # of the rows that are left, from 0, where some were skipped
    known: Tensor | None = None  # bool [N, d]; None where every entry is known
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()  # what the user should hear of

    @property
    def row_names(self) -> tuple[str, ...]:
        """The names, or the numbers, of the rows."""
        return self.names or tuple(str(self.first + row) for row in self.numbers or range(len(self.stored)))

    def take(self, rows: Tensor, skipped: list[Skipped]) -> "Loaded":
        """Keep some rows.

        Returns:
            The rows `rows` (int64), with `skipped` added to the record.
        """
        images = self.form.images and tuple(self.form.images[row] for row in rows.tolist())
        return replace(
            self,
            stored=gathered(self.stored, rows),
            names=self.names and tuple(self.names[row] for row in rows.tolist()),
            numbers=tuple((self.numbers or range(len(self.stored)))[row] for row in rows.tolist()),
            known=None if self.known is None else gathered(self.known, rows),
            form=replace(self.form, images=images),
            skipped=(*self.skipped, *skipped),
        )

    def part(self, rows: slice) -> "Loaded":
        """Some of the rows, without their names.

        Returns:
            The rows; what is memory-mapped stays so.
        """
        known = None if self.known is None else self.known[rows]
        return replace(self, stored=self.stored[rows], known=known, names=None, numbers=None)

    def in_layout(self, layout: Layout | None) -> "Loaded":
        """The same images with their axes in another order.

        Returns:
            Rows in `layout`; unchanged where either side is no image in colour.
        """
        if self.layout == layout or {self.layout, layout} != {"HWC", "CHW"}:
            return self
        order = (2, 0, 1) if layout == "CHW" else (1, 2, 0)
        shape = tuple(self.shape[axis] for axis in order)

        def turned(rows: Tensor) -> Tensor:
            axes = (0, *(axis + 1 for axis in order))
            return rows.reshape(-1, *self.shape).permute(*axes).reshape(len(rows), -1)

        known = None if self.known is None else turned(self.known)
        return replace(self, stored=turned(self.stored), shape=shape, layout=layout, known=known)


def guess_layout(shape: tuple[int, ...], wanted: str | None) -> Layout | None:
    """Which axes of one row of an array are an image's.

    Args:
        shape: of one row.
        wanted: HW, HWC, CHW or flat settles a doubt.

    Returns:
        The layout, or None where the row is no image.

    Raises:
        UsageError: a layout that the shape does not have.

    >>> guess_layout((3, 32, 32), None)
    'CHW'
    """
    if wanted == "flat" or (wanted is None and len(shape) not in {2, 3}):
        return None
    if wanted is not None:
        channels = shape[0] if wanted == "CHW" else shape[-1]
        if len(wanted) != len(shape) or (len(wanted) == 3 and channels > 4):
            raise UsageError(
                f"--layout {wanted}: expected rows with such axes and at most 4 channels, found {list(shape)}"
            )
        return cast(Layout, wanted)
    if len(shape) == 2:
        return "HW"
    return "HWC" if shape[2] <= 4 else "CHW" if shape[0] <= 4 else None


def pixel_scale(dtype: torch.dtype, layout: Layout | None) -> float:
    """What one unit of an image's type is worth: 8- and 16-bit images run from 0 to 1.

    Returns:
        1/255, 1/65535 or 1.
    """
    steps = {torch.uint8: 255.0, torch.uint16: 65535.0}
    return 1.0 if layout is None else 1 / steps.get(dtype, 1.0)


def spoken(source: str) -> str:
    """What messages call a source.

    Returns:
        Its name, or words for standard input.
    """
    return "standard input" if source == "-" else source


def safe_name(path: Path) -> str:
    """A file's name for the bank: its path as it was given, or its last part where that leads elsewhere.

    Returns:
        A relative POSIX path without `..`.
    """
    inside = not path.is_absolute() and ".." not in path.parts
    return path.as_posix() if inside else path.name
