"""Image files ↔ arrays: upright, in one size and one mode, 8 and 16 bits kept; alpha 0 means unknown."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hopmem.errors import HopmemError, InvalidDataError, MissingInputError, UnreadableError
from hopmem.patterns.source import IMAGE_SUFFIXES, Form, ImageForm, Loaded, Reading, Skipped

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})  # Pillow opens 16-bit files in one of these
ORIENTATION, TURNED = 0x0112, frozenset({5, 6, 7, 8})  # the EXIF tag, and its values that swap width and height
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Target:
    """The one form that all images of a source are brought to."""

    size: tuple[int, int]  # (width, height)
    mode: str  # L or RGB
    dtype: np.dtype[np.generic]  # uint8, uint16 or float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels of one image."""
        width, height = self.size
        return (height, width) if self.mode == "L" else (height, width, 3)


def find_images(folder: Path) -> tuple[list[Path], int]:
    """All images below a folder, sorted by their relative POSIX path; hidden files are not looked at.

    Returns:
        The files, and how many others were passed over.

    Raises:
        UnreadableError: the folder can't be listed.
    """
    files = []
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(images, key=lambda file: file.relative_to(folder).as_posix()), len(files) - len(images)


def load_images(files: Sequence[Path], names: Sequence[str], kind: str, reading: Reading) -> Loaded:
    """Decode images into rows.

    Args:
        files: at least one.
        names: one for each.
        kind: image or folder.
        reading: size and mode, and what an unusable image does.

    Returns:
        A row for each image; for queries with its transparent pixels marked as unknown.

    Raises:
        HopmemError: an unusable image, and images are not to be skipped (or none is left).
    """
    skipped: list[Skipped] = []
    forms = _probe(files, names, reading, skipped)
    target = _target(forms, reading)
    fitting = _fitting(forms, target, reading, skipped)
    rows = np.empty((len(fitting), *target.shape), target.dtype)
    opaque = np.ones((len(fitting), target.size[1], target.size[0]), bool)

    def decode(place: int) -> HopmemError | None:
        try:
            rows[place], opaque[place] = _decode(fitting[place][1], target)
        except UnreadableError as error:
            return error
        return None

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        errors = list(pool.map(decode, range(len(fitting))))
    images = tuple(form for form, _ in fitting)
    partial = not opaque.all()
    known = np.broadcast_to(opaque.reshape(*opaque.shape, *(1,) * (len(target.shape) - 2)), rows.shape)
    loaded = Loaded(
        stored=torch.from_numpy(rows.reshape(len(rows), -1)),
        shape=target.shape,
        form=Form(kind, images=images),
        scale={"uint8": 1 / 255, "uint16": 1 / 65535}.get(target.dtype.name, 1.0),
        layout="HW" if target.mode == "L" else "HWC",
        names=tuple(form.name for form in images),
        known=torch.from_numpy(np.array(known.reshape(len(rows), -1))) if partial and reading.partial else None,
        skipped=tuple(skipped),
        notes=_transparency_note(opaque) if partial and not reading.partial else (),
    )
    first_error = next(filter(None, errors), None)
    if first_error is None:
        return loaded
    good = torch.tensor([place for place, error in enumerate(errors) if error is None], dtype=torch.int64)
    if reading.on_bad == "error" or not len(good):
        raise first_error
    bad = [Skipped(images[place].name, str(error)) for place, error in enumerate(errors) if error is not None]
    return loaded.take(good, bad)


def save_image(path: Path, pixels: Tensor, mode: str, size: tuple[int, int]) -> None:
    """Write one image in the format of its suffix, as nearly lossless as the format can be.

    Args:
        path: the file.
        pixels: [H, W] or [H, W, C], from 0 to 1.
        mode: Pillow's mode that the file shall have.
        size: (width, height) that it shall have.
    """
    deep = mode in DEEP and pixels.ndim == 2
    top, dtype = (65535, np.uint16) if deep else (255, np.uint8)
    array = (pixels.double().clamp(0, 1) * top).round().numpy().astype(dtype)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    image = Image.fromarray(array)
    if image.size != size:
        image = _resized(image, size)
    if not deep:
        # A palette can't hold new colours, and alpha has done its work: what was unknown is filled in.
        wanted = {"P": image.mode, "PA": image.mode, "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "F": "L"}.get(
            mode, mode
        )
        image = image.convert(image.mode if wanted in DEEP else wanted)
    options: dict[str, Any] = {}
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        options = {"quality": 100, "subsampling": 0}
        image = image.convert("RGB") if image.mode in {"RGBA", "LA"} else image
    elif path.suffix.lower() == ".webp":
        options = {"lossless": True}
    image.save(path, **options)


def _refuse(error: OSError) -> None:
    raise UnreadableError(error.filename, "a folder that can be listed", error.strerror) from error


def _probe(
    files: Sequence[Path], names: Sequence[str], reading: Reading, skipped: list[Skipped]
) -> list[tuple[ImageForm, Path]]:
    """Read the headers: size and mode of each image as it will be seen.

    Returns:
        The forms of the readable images, with their files.

    Raises:
        HopmemError: a file is no image, and such files are not to be skipped (or none is left).
    """
    forms: list[tuple[ImageForm, Path]] = []
    error: HopmemError | None = None
    for file, name in zip(files, names, strict=True):
        try:
            with _opened(file) as image:
                size = _upright_size(file, image)
                forms.append((ImageForm(name, (size[0], size[1]), image.mode), file))
        except (UnreadableError, MissingInputError) as problem:
            error = problem
            skipped.append(Skipped(name, str(problem)))
            if reading.on_bad == "error":
                break
    if error is not None and (reading.on_bad == "error" or not forms):
        raise error
    return forms


def _upright_size(file: Path, image: Image.Image) -> tuple[int, int]:
    """Width and height as the image is meant to be seen.

    Returns:
        (width, height).

    Raises:
        UnreadableError: damaged before its size was plain.
    """
    try:
        # Pillow's TIFF reader has turned the size already.
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION) in TURNED
    except UNREADABLE as error:
        raise UnreadableError(file, "a whole image", _reason(error)) from error
    return image.size[::-1] if turned else image.size


def _target(forms: list[tuple[ImageForm, Path]], reading: Reading) -> Target:
    """The form that holds all images: colour if one is in colour, 16 bits if one has them.

    Returns:
        The target.
    """
    modes = {form.mode for form, _ in forms}
    mode = reading.mode or ("L" if modes <= GREY else "RGB")
    deep = "float32" if "F" in modes else "uint16" if modes & DEEP else "uint8"
    return Target(reading.size or forms[0][0].size, mode, np.dtype(deep))


def _fitting(
    forms: list[tuple[ImageForm, Path]], target: Target, reading: Reading, skipped: list[Skipped]
) -> list[tuple[ImageForm, Path]]:
    """The images that have the target's size, or can be brought to it.

    Returns:
        Those images.

    Raises:
        InvalidDataError: two sizes, with no `--size` and nothing to be skipped.
    """
    if reading.size:
        return forms
    first, fitting = forms[0], []
    for form, file in forms:
        if form.size == target.size:
            fitting.append((form, file))
            continue
        expected = f"{target.size[0]}x{target.size[1]} like {first[1]} (or --size WxH)"
        error = InvalidDataError(file, expected, f"{form.size[0]}x{form.size[1]}")
        if reading.on_bad == "error":
            raise error
        skipped.append(Skipped(form.name, str(error)))
    return fitting


def _opened(file: Path) -> Image.Image:
    """Open an image without decoding it.

    Returns:
        The image.

    Raises:
        MissingInputError: no such file.
        UnreadableError: no image.
    """
    try:
        return Image.open(file)
    except FileNotFoundError as error:
        raise MissingInputError(file, "an image") from error
    except UNREADABLE as error:
        raise UnreadableError(file, "an image", _reason(error)) from error


def _reason(error: Exception) -> str:
    return "something else" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode(file: Path, target: Target) -> tuple[Pixels, Pixels]:
    """Decode one image into the target's form.

    Returns:
        Its pixels, and which of them are not fully transparent [H, W].

    Raises:
        UnreadableError: cut short, or damaged.
    """
    try:
        with _opened(file) as opened:
            image = ImageOps.exif_transpose(opened)
            alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
            image = _in_mode(image, target)
            pixels = _pixels(_resized(image, target.size), target, deep=image.mode in DEEP)
            if alpha is None:
                return pixels, np.ones(pixels.shape[:2], bool)
            if alpha.size == target.size:
                return pixels, np.asarray(alpha) > 0
            # A pixel is known where all that the filter took it from was seen.
            seen = alpha.point(lambda value: 255 if value else 0).resize(target.size, Image.Resampling.LANCZOS)
            return pixels, np.asarray(seen) >= 254
    except UNREADABLE as error:
        raise UnreadableError(file, "a whole image", _reason(error)) from error


def _in_mode(image: Image.Image, target: Target) -> Image.Image:
    """Bring an image to L or RGB; deep and float images keep their depth. Colours under alpha stay as they are.

    Returns:
        The image.
    """
    if image.mode in DEEP or image.mode == "F":
        return image
    if image.mode == "P" and target.mode == "L":
        image = image.convert("RGB")
    return image if image.mode == target.mode else image.convert(target.mode)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize with the Lanczos filter, in floating point where Pillow's filters know no 16 bits.

    Returns:
        The image in that size.
    """
    if image.size == size:
        return image
    return (image.convert("F") if image.mode in DEEP else image).resize(size, Image.Resampling.LANCZOS)


def _pixels(image: Image.Image, target: Target, *, deep: bool) -> Pixels:
    """The pixels in the target's depth; 8 bits widen to 16 by 257, which takes 255 to 65535.

    Returns:
        An array of the target's shape.
    """
    array = np.asarray(image)
    if target.dtype == np.float32:
        array = array.astype(np.float32) / (65535 if deep else 255 if array.dtype == np.uint8 else 1)
    elif target.dtype == np.uint16:
        array = np.clip(np.rint(array), 0, 65535).astype(np.uint16) if deep else array.astype(np.uint16) * 257
    return np.repeat(array[:, :, None], 3, 2) if array.ndim == 2 and target.mode == "RGB" else array


def _transparency_note(opaque: Pixels) -> tuple[str, ...]:
    count = int((~opaque.all(axis=(1, 2))).sum())
    return (f"{count} of {len(opaque)} images have transparent pixels; the colours beneath them were stored",)
