"""The contact sheet: queries beside their answers."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hopmem.atomic import replacing
from hopmem.errors import printable
from hopmem.pipeline import Picture
from hopmem.pipeline.outcome import SHOWN

MOST = 64  # pictures on a sheet
SIDE, WIDEST = SHOWN[0] // 2, SHOWN[1]  # pixels that an image is drawn high, about, and wide, at most
GAP, LINE = 8, 15  # between images, and of a line of text
INK, PAPER, FAINT, BAD = (34, 34, 34), (255, 255, 255), (200, 200, 200), (178, 24, 43)


def contact_sheet(pictures: Sequence[Picture], path: Path, *, force: bool) -> None:
    """Draw query, answer and stored pattern side by side, with name and confidence.

    Args:
        pictures: at least one; the first 64 are drawn.
        path: the file, a PNG, or an SVG that holds it.
        force: whether it may be replaced.
    """
    shown = pictures[:MOST]
    height, width = _drawn_size(*shown[0].answer.shape[:2])
    cell = (3 * width + 5 * GAP, height + 2 * LINE + 2 * GAP)
    columns = max(1, min(len(shown), round((len(shown) * cell[1] / cell[0] * 1.6) ** 0.5)))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1] + LINE + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column in range(columns):
        for place, heading in enumerate(("query", "answer", "stored")):
            draw.text((column * cell[0] + GAP + place * (width + GAP), GAP // 2), heading, INK, font)
    for number, picture in enumerate(shown):
        left, top = number % columns * cell[0] + GAP, number // columns * cell[1] + LINE + GAP
        for place, image in enumerate((_query(picture), _pixels(picture.answer), _pixels(picture.stored))):
            smooth = Image.Resampling.LANCZOS if height < image.height else Image.Resampling.NEAREST
            sheet.paste(image.resize((width, height), smooth), (left + place * (width + GAP), top))
        _caption(draw, font, picture, (left, top + height + 2), 3 * width + 2 * GAP)
    with replacing(path, force=force) as temporary:
        if path.suffix.lower() == ".svg":
            temporary.write_text(_in_svg(sheet), encoding="utf-8")
        else:
            sheet.save(temporary, "PNG", optimize=True)


def _in_svg(sheet: Image.Image) -> str:
    """An image as an SVG.

    Returns:
        The file's text.
    """
    raw = io.BytesIO()
    sheet.save(raw, "PNG", optimize=True)
    size = f'width="{sheet.width}" height="{sheet.height}"'
    data = base64.b64encode(raw.getvalue()).decode()
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {sheet.width} {sheet.height}">'
    return f'{head}<image {size} href="data:image/png;base64,{data}"/></svg>\n'


def _drawn_size(height: int, width: int) -> tuple[int, int]:
    """How large an image is drawn: whole multiples of small ones, large ones made to fit.

    Returns:
        (height, width) in pixels.
    """
    zoom = max(1, min(round(SIDE / height), round(WIDEST / width)))
    shrink = min(1.0, 2 * SIDE / height, WIDEST / width)
    return max(1, round(height * zoom * shrink)), max(1, round(width * zoom * shrink))


def _caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    picture: Picture,
    at: tuple[int, int],
    width: int,
) -> None:
    """Write the names and the confidence below three images."""
    match = "rejected" if picture.match is None else f"= {picture.match}"
    color = BAD if picture.match is None else INK
    for line, (text, ink) in enumerate(
        ((printable(picture.name), INK), (printable(f"{match}  {picture.confidence:.3f}"), color))
    ):
        while len(text) > 4 and draw.textlength(text, font) > width:
            text = text[:-2] + "…"  # noqa: PLW2901 # shortened until it fits
        draw.text((at[0], at[1] + line * LINE), text, ink, font)


def _query(picture: Picture) -> Image.Image:
    """A query, with a chequered ground where it is unknown.

    Returns:
        An RGB image.
    """
    image = np.asarray(_pixels(picture.query)).copy()
    if picture.known is not None:
        known = picture.known.all(2) if picture.known.ndim == 3 else picture.known
        line, column = np.indices(known.shape)
        ground = np.where(((line + column) % 2 == 0)[..., None], np.array(FAINT), np.array(PAPER)).astype(np.uint8)
        image[~known.numpy()] = ground[~known.numpy()]
    return Image.fromarray(image)


def _pixels(image: Tensor) -> Image.Image:
    """An image from numbers.

    Returns:
        An RGB image.
    """
    array = image.numpy()
    array = array[:, :, 0] if array.ndim == 3 and array.shape[2] != 3 else array
    return Image.fromarray(array).convert("RGB")
