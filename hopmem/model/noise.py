"""The corruptions that queries suffer: what `optimize` learns for, and what `evaluate` measures under."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.errors import UsageError, one_line
from hopmem.model.rows import Patterns

LARGEST = 1e18  # level, whose square float32 can hold
REACH = 4.0  # standard deviations after which a blur is cut off


@dataclass(frozen=True)
class Canvas:
    """What a corruption must know of the rows that it falls on."""

    shape: tuple[int, ...]  # of one row
    layout: str | None = None  # HW, HWC or CHW; None where the rows are no images
    low: float = 0.0  # what pepper is
    high: float = 1.0  # what salt is
    deviation: float = 1.0  # standard deviation of the stored values, for levels such as 0.5s

    def images(self, X: Tensor) -> Tensor:
        """Rows as images.

        Returns:
            [B, C, H, W], a view where that can be.
        """
        grid = X.reshape(len(X), *self.shape)
        if self.layout == "HW":
            return grid[:, None]
        return grid.permute(0, 3, 1, 2) if self.layout == "HWC" else grid

    def rows(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] as rows.

        Returns:
            [B, d].
        """
        return (images.permute(0, 2, 3, 1) if self.layout == "HWC" else images).flatten(1)


Corruption = Callable[[Tensor, Canvas, torch.Generator], Tensor]


@dataclass(frozen=True)
class Noise:
    """Corruptions that queries suffer, in equal parts; each part is a chain of corruptions, one after another."""

    name: str  # as the user wrote it
    parts: tuple[tuple[Corruption, ...], ...]

    def __call__(self, X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        """Corrupt rows.

        Args:
            X: clean rows [B, d].
            canvas: what they are.
            generator: the draws, on the device of X.

        Returns:
            Corrupted copies [B, d]; NaN where an entry is missing.
        """
        if len(self.parts) == 1:
            return _chain(self.parts[0], X, canvas, generator)
        part_of = torch.arange(len(X), device=X.device) % len(self.parts)
        part_of = part_of[torch.randperm(len(X), generator=generator, device=X.device)]
        Y = torch.empty_like(X)
        for number, chain in enumerate(self.parts):
            Y[part_of == number] = _chain(chain, X[part_of == number], canvas, generator)
        return Y


def parse_noise(text: str, *, images: bool) -> Noise:
    """Read `gaussian:0.5`, `blur:3+gaussian:0.1` or `mixed`.

    Args:
        text: kinds with their levels, joined by `+`.
        images: whether the rows are images, which `blur` and `shift` need.

    Returns:
        The corruption.

    Raises:
        UsageError: no such kind, a level out of its range, or a kind that needs images.

    >>> parse_noise("mask:0.5", images=False).name
    'mask:0.5'
    """
    if text == "mixed":
        gaussian = "gaussian:0.5" if images else "gaussian:0.5s"
        parts = (gaussian, "mask:0.5", "occlude:0.5", "block:0.6", "saltpepper:0.5")
        return Noise(text, tuple((_parse_one(part, images=images),) for part in parts))
    kinds = text.split("+")
    if any(kind.startswith("missing:") for kind in kinds[:-1]):
        raise UsageError(f"--noise {one_line(text)}: expected missing last: what is unknown can't be corrupted further")
    return Noise(text, (tuple(_parse_one(kind, images=images) for kind in kinds),))


def canvas_of(patterns: Patterns, shape: tuple[int, ...], layout: str | None) -> Canvas:
    """Measure the canvas of stored patterns.

    Args:
        patterns: M rows.
        shape: of one row.
        layout: of an image.

    Returns:
        Salt and pepper at 0 and 1 for images that keep to them, at the extreme values else.
    """
    low, high, total, squares = everywhere(patterns, _measure, patterns).tolist()
    count = len(patterns) * patterns.dimension
    deviation = math.sqrt(max(0.0, squares / count - (total / count) ** 2))
    if layout is not None and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return Canvas(shape, layout, low, high, deviation)


def _measure(part: Division, patterns: Patterns) -> Tensor:
    """The extreme entries of patterns, their sum and the sum of their squares.

    Returns:
        float64 [4].
    """
    low, high, total, squares = math.inf, -math.inf, 0.0, 0.0
    for rows in patterns.in_blocks():
        block = patterns[rows]
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        total += float(block.sum(dtype=torch.float64))
        squares += float(block.double().square().sum())
    ends, sums = (torch.tensor(pair, dtype=torch.float64) for pair in ((-low, high), (total, squares)))
    ends = part.others.largest(ends) * torch.tensor([-1.0, 1.0])
    return torch.cat([ends, part.others.total(sums)])


def _chain(chain: tuple[Corruption, ...], X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    for corruption in chain:
        X = corruption(X, canvas, generator)
    return X


def _parse_one(text: str, *, images: bool) -> Corruption:
    kind, _, level = text.partition(":")
    if kind == "mixed" or kind not in KINDS:
        known = ", ".join([*KINDS, "mixed"])
        raise UsageError(
            f"--noise {one_line(text)}: expected KIND:LEVEL with one of {known} (mixed alone), found {kind!r}"
        )
    most, needs_images, make = KINDS[kind]
    if needs_images and not images:
        raise UsageError(
            f"--noise {one_line(text)}: expected patterns that are images, found rows of numbers (see --layout)"
        )
    in_deviations = kind in IN_VALUES and level.endswith("s")
    try:
        number = float(level.removesuffix("s") if in_deviations else level)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most or math.isinf(number) or (kind == "shift" and number != int(number)):
        what = "a whole number" if kind == "shift" else "a number"
        span = "from 0 up" if most >= LARGEST else f"from 0 to {most:g}"
        unit = ", or such a number and s for standard deviations" if kind in IN_VALUES else ""
        raise UsageError(f"--noise {one_line(text)}: expected {what} {span} after {kind}:{unit}, found {level!r}")
    return make(number, in_deviations)


def _draw(X: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(X.shape, generator=generator, device=X.device)


def _gaussian(level: float, in_deviations: bool) -> Corruption:
    """Adds N(0, S²).

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        S = level * (canvas.deviation if in_deviations else 1)
        return X + S * torch.randn(X.shape, generator=generator, device=X.device)

    return corrupt


def _mask(level: float, _: bool) -> Corruption:
    """Zeroes each entry with probability P.

    Returns:
        The corruption.
    """
    return lambda X, canvas, generator: X.masked_fill(_draw(X, generator) < level, 0)


def _missing(level: float, _: bool) -> Corruption:
    """Makes each entry unknown with probability P; one entry of a row stays.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        draw = _draw(X, generator).masked_fill(X.isnan(), -1)  # what is unknown already can't be the one
        draw[torch.arange(len(X)), draw.argmax(1)] = 1
        return X.masked_fill(draw < level, math.nan)

    return corrupt


def _occlude(level: float, _: bool) -> Corruption:
    """Zeroes the last share P of the rows of an image, or of the entries.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        Y = X.clone()
        lines = Y if canvas.layout is None else canvas.images(Y).movedim(2, 1)  # [B, H, ...], a view
        lines[:, lines.shape[1] - round(level * lines.shape[1]) :] = 0
        return Y

    return corrupt


def _block(level: float, _: bool) -> Corruption:
    """Zeroes a square whose side is the share P of the shorter side, or a span of that share of the entries.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        if canvas.layout is None:
            return X.masked_fill(_span(X, X.shape[1], round(level * X.shape[1]), generator), 0)
        images = canvas.images(X)
        H, W = images.shape[2:]
        side = round(level * min(H, W))
        down, across = _span(X, H, side, generator), _span(X, W, side, generator)
        return canvas.rows(images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0))

    return corrupt


def _span(X: Tensor, length: int, size: int, generator: torch.Generator) -> Tensor:
    """A span of `size` of `length` places for each row, anywhere.

    Returns:
        bool [B, length].
    """
    start = torch.randint(0, length - size + 1, (len(X), 1), generator=generator, device=X.device)
    place = torch.arange(length, device=X.device)
    return (place >= start) & (place < start + size)


def _saltpepper(level: float, _: bool) -> Corruption:
    """Sets each entry with probability P to the smallest or the largest value, either equally often.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        draw = _draw(X, generator)
        return X.masked_fill(draw < level, canvas.high).masked_fill(draw < level / 2, canvas.low)

    return corrupt


def _contrast(level: float, _: bool) -> Corruption:
    """Multiplies each row by e^N(0, S²) and adds N(0, S²/4) to it.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        gain, offset = level * torch.randn(2, len(X), 1, generator=generator, device=X.device)
        louder: Tensor = X * gain.exp() + offset / 2
        return louder

    return corrupt


def _blur(level: float, _: bool) -> Corruption:
    """Blurs an image with a Gaussian of S pixels; beyond its edges the image is mirrored.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        images = canvas.images(X)
        down, across = (_blurring(length, level).to(X) for length in images.shape[2:])
        return canvas.rows(down @ images @ across.T)

    return corrupt


def _blurring(length: int, level: float) -> Tensor:
    """The blur of a line of pixels as a matrix, each row of sum one.

    Returns:
        [length, length].
    """
    if level == 0:
        return torch.eye(length)
    level = min(level, 4.0 * length)  # beyond, every place weighs the same
    reach = math.ceil(REACH * level)
    step = torch.arange(-reach, reach + 1)
    weight = (-0.5 * (step.double() / level).square()).exp()
    place = (torch.arange(length)[:, None] + step) % (2 * length)  # of the line and its mirror image, over and over
    place = torch.minimum(place, 2 * length - 1 - place)
    return torch.zeros(length, length).scatter_add_(1, place, (weight / weight.sum()).float().expand(length, -1))


def _shift(level: float, _: bool) -> Corruption:
    """Moves an image by up to P pixels each way; zeros move in.

    Returns:
        The corruption.
    """

    def corrupt(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
        most, images = int(min(level, 1 << 30)), canvas.images(X)  # further moves nothing else out
        H, W = images.shape[2:]
        dy, dx = torch.randint(-most, most + 1, (2, len(X), 1), generator=generator, device=X.device)
        y, x = torch.arange(H, device=X.device) - dy, torch.arange(W, device=X.device) - dx  # [B, H], [B, W]
        seen = ((y >= 0) & (y < H))[:, :, None] & ((x >= 0) & (x < W))[:, None, :]  # [B, H, W]
        place = y.clamp(0, H - 1)[:, :, None] * W + x.clamp(0, W - 1)[:, None, :]
        flat = images.flatten(2)
        moved = flat.gather(2, place.flatten(1)[:, None].expand_as(flat)).view_as(images)
        return canvas.rows(moved.masked_fill(~seen[:, None], 0))

    return corrupt


IN_VALUES = frozenset({"gaussian"})  # kinds whose level is in units of the stored values
KINDS: dict[str, tuple[float, bool, Callable[[float, bool], Corruption]]] = {  # largest level, needs images, maker
    "gaussian": (LARGEST, False, _gaussian),
    "mask": (1, False, _mask),
    "occlude": (1, False, _occlude),
    "block": (1, False, _block),
    "saltpepper": (1, False, _saltpepper),
    "missing": (1, False, _missing),
    "contrast": (10, False, _contrast),
    "blur": (math.inf, True, _blur),
    "shift": (math.inf, True, _shift),
}
