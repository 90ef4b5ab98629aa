"""Small pictures of patterns, for a page."""

import io
from collections.abc import Iterator

from PIL import Image

from hopmem.verbs.portrait import Portrait

SIDE, COLOURS = 40, 48  # pixels, at most; and different colours of one
ROOM = 2_000_000  # bytes of all of them


def thumbnails(portrait: Portrait, rows: list[int]) -> Iterator[bytes | None]:
    """Patterns as small PNGs, as long as there is room for them.

    Args:
        portrait: of the bank.
        rows: of the bank.

    Yields:
        A PNG for each; None where the pattern is no image, or the room is taken.
    """
    room = ROOM if portrait.bank.layout is not None else 0
    for row in rows:
        image = portrait.image(row) if room > 0 else None
        if image is None:
            yield None
            continue
        pixels = (image.float().clamp(0, 1) * 255).round().byte().numpy()
        picture = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] != 3 else pixels)
        picture.thumbnail((SIDE, SIDE))
        raw = io.BytesIO()
        (picture if picture.mode == "L" else picture.quantize(COLOURS)).save(raw, "PNG", optimize=True)
        room -= len(raw.getvalue())
        yield raw.getvalue()
