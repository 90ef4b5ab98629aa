"""Image files ↔ arrays: upright, in one size and one mode, 8 and 16 bits kept; alpha 0 means unknown."""

import ctypes
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin, _imaging
from torch import Tensor

from hopmem.errors import HopmemError, InvalidDataError, MissingInputError, UnreadableError
from hopmem.pages import require, rest
from hopmem.patterns.source import IMAGE_SUFFIXES, Form, ImageForm, Loaded, Reading, Skipped
from hopmem.patterns.unpack import allow
from hopmem.scratch import empty

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.generic]]
GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})  # Pillow opens 16-bit files in one of these
WORTH_A_THREAD = 1 << 14  # pixels from which decoding takes longer than what Python does around it
BYTES_OF_A_PIXEL, BYTES_DECODED = 4, 16  # as Pillow holds it; with its colours, its alpha and copies of them
ORIENTATION, TURNED = 0x0112, frozenset({5, 6, 7, 8})  # the EXIF tag, and its values that swap width and height
UNREADABLE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError,
    OverflowError, ZeroDivisionError, MemoryError, struct.error, zlib.error, UnidentifiedImageError,
    Image.DecompressionBombError,
)  # fmt: skip
PLUGINS = (TiffImagePlugin, WebPImagePlugin)  # or Pillow would load all of its plugins to find these two
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM")  # for some others Pillow runs a program


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

    def holds(self, form: ImageForm) -> bool:
        """Whether an image keeps its depth here.

        Returns:
            False where it is deeper.
        """
        if self.dtype == np.float32:
            return True
        return form.mode != "F" and (self.dtype == np.uint16 or form.mode not in DEEP)


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
    target, first = _first_target(files, reading)
    found, rows, masks = _decoded(files, names, target, reading, first)
    if (common := _target([each for each in found if isinstance(each, ImageForm)], reading, target)) != target:
        target = common
        found, rows, masks = _decoded(files, names, target, reading, first)
    forms = tuple(
        each if isinstance(each, ImageForm) else ImageForm(name, target.size, target.mode)
        for each, name in zip(found, names, strict=True)
    )
    loaded = Loaded(
        stored=torch.from_numpy(rows.reshape(len(rows), -1)),
        shape=target.shape,
        form=Form(kind, images=forms),
        scale={"uint8": 1 / 255, "uint16": 1 / 65535}.get(target.dtype.name, 1.0),
        layout="HW" if target.mode == "L" else "HWC",
        names=tuple(names),
        known=_known(masks, rows.shape) if masks and reading.partial else None,
        notes=_notes(0 if reading.partial else len(masks), sum(form.several for form in forms), len(files)),
    )
    bad = [Skipped(name, str(each)) for each, name in zip(found, names, strict=True) if isinstance(each, HopmemError)]
    if not bad:
        return loaded
    good = [place for place, each in enumerate(found) if isinstance(each, ImageForm)]
    if not good:
        (why, *_) = (each for each in found if isinstance(each, HopmemError))
        raise why
    return loaded.take(torch.tensor(good, dtype=torch.int64), bad)


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
    try:
        image.save(path, **options)
    except (OSError, ValueError):  # such as that a format lacks the mode; of a full disk the second try says the same
        image.convert("L" if image.mode in GREY else "RGB").save(path, **options)


def _refuse(error: OSError) -> None:
    raise UnreadableError(error.filename, "a folder that can be listed", error.strerror) from error


def _first_target(files: Sequence[Path], reading: Reading) -> tuple[Target, Path]:
    """The target as the first image that opens has it.

    Returns:
        The target, and that image.

    Raises:
        HopmemError: a file is no image, and such files are not to be skipped, or none is left.
    """
    first: HopmemError | None = None
    for file in files:
        try:
            with _opened(file, reading.unpack_limit) as image:
                width, height = _upright_size(file, image)
                require(width * height * BYTES_DECODED * torch.get_num_threads(), "to decode images of this size")
                return _target([ImageForm(file.name, (width, height), image.mode)], reading), file
        except (UnreadableError, MissingInputError, InvalidDataError) as error:
            first = first or error
            if reading.on_bad == "error":
                break
    assert first is not None  # there is at least one file
    raise first


def _decoded(
    files: Sequence[Path], names: Sequence[str], target: Target, reading: Reading, first: Path
) -> tuple[list[ImageForm | HopmemError], Pixels, dict[int, Pixels]]:
    """Decode all images, large ones by all threads.

    Returns:
        The form of each image, or why it can't be used; its pixels where the target holds them; and of those with
        transparent pixels, which are not [H, W].

    Raises:
        HopmemError: the first image that can't be used, where such are not to be skipped.
    """
    kind = getattr(torch, target.dtype.name)
    rows, masks = empty(len(files), *target.shape, dtype=kind).numpy(), dict[int, Pixels]()

    def decode(place: int) -> ImageForm | HopmemError:
        try:
            form, pixels, opaque = _decode(files[place], names[place], target, reading, first)
        except (UnreadableError, MissingInputError, InvalidDataError) as error:
            if reading.on_bad == "error":
                raise
            return error
        if pixels is not None:
            rows[place] = pixels
            rest()
        if opaque is not None and not opaque.all():
            masks[place] = opaque
        return form

    if target.size[0] * target.size[1] < WORTH_A_THREAD:
        return list(map(decode, range(len(files)))), rows, masks
    threads = torch.get_num_threads()
    with _keeping(threads), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(decode, range(len(files)))), rows, masks


@contextmanager
def _keeping(count: int) -> Iterator[None]:
    """Let Pillow decode into memory that it has: to have the system clear pages anew takes as long as to decode a JPEG.

    Args:
        count: images in memory at once.

    Yields:
        Nothing.
    """
    before = _imaging.get_blocks_max()
    _imaging.set_blocks_max(max(before, count))
    try:
        yield
    finally:
        _imaging.set_blocks_max(before)


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


def _target(forms: Sequence[ImageForm], reading: Reading, least: Target | None = None) -> Target:
    """The form that holds all images: colour if one is in colour, 16 bits if one has them.

    Args:
        forms: of images of one size.
        reading: the size and the mode that are asked for.
        least: the target where there are no images.

    Returns:
        The target.
    """
    if least is not None and not forms:
        return least
    modes = {form.mode for form in forms}
    mode = reading.mode or ("L" if modes <= GREY else "RGB")
    deep = "float32" if "F" in modes else "uint16" if modes & DEEP else "uint8"
    return Target(reading.size or forms[0].size, mode, np.dtype(deep))


def _opened(file: Path, limit: int) -> Image.Image:
    """Open an image without decoding it.

    Returns:
        The image.

    Raises:
        HopmemError: it would unpack to more bytes than are allowed.
        MissingInputError: no such file.
        UnreadableError: no image.
    """
    if file.exists() and not file.is_file():
        raise UnreadableError(file, "an image", "a folder, a pipe or a device")
    try:
        image = Image.open(file, formats=FORMATS)
    except FileNotFoundError as error:
        raise MissingInputError(file, "an image") from error
    except UNREADABLE as error:
        raise UnreadableError(file, "an image", _reason(error)) from error
    if image.format == "TIFF":
        _quiet()
    try:
        allow(file, image.width * image.height * BYTES_OF_A_PIXEL, limit)
    except HopmemError:
        image.close()
        raise
    return image


@cache
def _quiet() -> None:
    """Keep libtiff from printing what ails a file, which Pillow raises and hopmem says in a line of its own.

    Pillow has no switch for it; where its library is not to be found by name, the lines stay.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setting = getattr(library, name)
            setting.argtypes, setting.restype = [ctypes.c_void_p], ctypes.c_void_p
            setting(None)


def _reason(error: Exception) -> str:
    return "something else" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode(
    file: Path, name: str, target: Target, reading: Reading, first: Path
) -> tuple[ImageForm, Pixels | None, Pixels | None]:
    """Decode one image into the target's form.

    Returns:
        Its form; its pixels, or None where the target is too narrow for them; and which of them are not fully
        transparent [H, W], or None where all are seen.

    Raises:
        InvalidDataError: of another size than the first, with no `--size`.
        UnreadableError: cut short, or damaged.
    """
    try:
        with _opened(file, reading.unpack_limit) as opened:
            mode = opened.mode  # as in the file: some formats are opened in one and decoded in another
            ImageOps.exif_transpose(opened, in_place=True)  # a copy would be made of what is upright, too
            form = ImageForm(name, opened.size, mode)
            if not reading.size and form.size != target.size:
                expected = f"{target.size[0]}x{target.size[1]} like {first} (or --size WxH)"
                raise InvalidDataError(file, expected, f"{form.size[0]}x{form.size[1]}")
            if not target.holds(form):
                return form, None, None
            alpha = opened.convert("RGBA").getchannel("A") if opened.has_transparency_data else None
            image = _in_mode(opened, target)
            pixels = _pixels(_resized(image, target.size), target, deep=image.mode in DEEP)
            form = replace(form, several=_goes_on(opened))  # last: it goes on to the next picture
            if alpha is None:
                return form, pixels, None
            if alpha.size == target.size:
                return form, pixels, np.asarray(alpha) > 0
            # A pixel is known where all that the filter took it from was seen.
            seen = alpha.point(lambda value: 255 if value else 0).resize(target.size, Image.Resampling.LANCZOS)
            return form, pixels, np.asarray(seen) >= 254
    except UNREADABLE as error:
        raise UnreadableError(file, "a whole image", _reason(error)) from error


def _goes_on(image: Image.Image) -> bool:
    """Whether another picture follows in the file, as in a film or a document.

    Returns:
        False of the second pictures that phones and cameras put beside a photo.
    """
    if image.format in {"JPEG", "MPO"}:
        return False
    try:
        image.seek(1)
    except UNREADABLE:  # the end, or a damaged one
        return False
    return True


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


def _known(masks: dict[int, Pixels], shape: tuple[int, ...]) -> Tensor:
    """Which entries are known.

    Returns:
        bool [N, d].
    """
    known = np.ones(shape, bool)
    for place, opaque in masks.items():
        known[place] = opaque.reshape(*opaque.shape, *(1,) * (len(shape) - 3))
    return torch.from_numpy(known.reshape(len(known), -1))


def _notes(transparent: int, several: int, total: int) -> tuple[str, ...]:
    """What was left out of images.

    Returns:
        Sentences.
    """
    notes = [f"{transparent} of {total} images have transparent pixels; the colours beneath them were stored"]
    more = [f"{several} of {total} files hold several images; the first of each was read"]
    return tuple((notes if transparent else []) + (more if several else []))
