"""The contact sheet, looked at pixel by pixel."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.errors import WouldOverwriteError
from hopmem.patterns import Reading
from hopmem.pipeline import Machine, Picture
from hopmem.pipeline.outcome import SHOWN
from hopmem.pipeline.retrieve import retrieve
from hopmem.plots import contact_sheet
from hopmem.plots.sheet import FAINT, MOST, PAPER
from tests.conftest import Array

SHAPES = [(6, 8), (6, 8, 1), (6, 8, 3)]


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def picture(shape: tuple[int, ...] = (6, 8), seed: int = 0, **changes: Any) -> Picture:
    query, answer, stored = (noise(shape, 3 * seed + place) for place in range(3))
    facts = {"query": query, "known": None, "answer": answer, "stored": stored, "name": "q.png", "match": "a.png"}
    return Picture(**facts | {"confidence": 0.5} | changes)


def drawn(tmp_path: Path, *pictures: Picture) -> Array:
    path = tmp_path / "sheet.png"
    contact_sheet(pictures, path, force=True)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image)


def rgb(image: Tensor) -> Array:
    array = image.numpy().reshape(*image.shape[:2], -1)
    return np.broadcast_to(array, (*image.shape[:2], 3))


def places(sheet: Array, image: Array, zoom: int = 16) -> list[tuple[int, int]]:
    """Where an image stands on the sheet, enlarged: (left, top)."""
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    height, width = large.shape[:2]
    first, last = (sheet == large[0, 0]).all(-1), (sheet == large[-1, -1]).all(-1)
    corners = first[: len(sheet) - height + 1, : sheet.shape[1] - width + 1] & last[height - 1 :, width - 1 :]
    found = [(left, top) for top, left in np.argwhere(corners).tolist()]
    return [(x, y) for x, y in found if np.array_equal(sheet[y : y + height, x : x + width], large)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_query_answer_and_stored_pattern_stand_side_by_side(shape, tmp_path: Path):
    one = picture(shape)
    found = [places(drawn(tmp_path, one), rgb(image)) for image in (one.query, one.answer, one.stored)]
    assert [len(place) for place in found] == [1, 1, 1]
    (query,), (answer,), (stored,) = found
    assert query[1] == answer[1] == stored[1]
    assert query[0] + 8 * 16 < answer[0] < stored[0] - 8 * 16


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unknown_pixels_are_chequered(shape, tmp_path: Path):
    known = torch.ones(shape, dtype=torch.bool)
    known[2:4] = False
    one = picture(shape, known=known)
    expected = np.array(rgb(one.query))
    lines, columns = np.indices((6, 8))
    ground = np.where(((lines + columns) % 2 == 0)[..., None], FAINT, PAPER)
    expected[2:4] = ground[2:4]
    assert len(places(drawn(tmp_path, one), expected)) == 1


def test_every_picture_up_to_the_most_is_drawn(tmp_path: Path):
    pictures = [picture((6, 8), seed) for seed in range(MOST + 1)]
    sheet = drawn(tmp_path, *pictures)
    found = [len(places(sheet, rgb(pictures[number].answer))) for number in (0, MOST - 1, MOST)]
    assert found == [1, 1, 0]


@pytest.mark.parametrize(("match", "red"), [("a.png", False), (None, True)])
def test_a_rejected_answer_is_marked_in_red(match, red, tmp_path: Path):
    sheet = drawn(tmp_path, picture((6, 8), match=match)).astype(int)
    below = sheet[-20:]
    assert bool((below[..., 0] > below[..., 1] + 100).any()) == red


@pytest.mark.parametrize("name", ["deep/" * 100 + "a.png", "日本.png", "", "line\nbreak", "\x1b[31m", "byte\udcff"])
def test_any_name_can_be_written_below(name, tmp_path: Path):
    plain = drawn(tmp_path, picture())
    assert drawn(tmp_path, picture(name=name, match=name)).shape == plain.shape


@pytest.mark.parametrize("shape", [(512, 512, 3), (300, 1), (20, 3000)], ids=str)
def test_large_images_are_drawn_small(shape, tmp_path: Path):
    sheet = drawn(tmp_path, picture(shape))
    assert sheet.shape[0] < 300
    assert sheet.shape[1] < 1000


@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (96, 96, 3), (190, 200)], ids=str)
def test_images_of_any_size_are_drawn(shape, tmp_path: Path):
    one = picture(shape)
    assert places(drawn(tmp_path, one), rgb(one.answer), zoom=max(1, min(round(96 / shape[0]), round(288 / shape[1]))))


def test_a_sheet_is_not_overwritten_without_force(tmp_path: Path):
    (tmp_path / "sheet.png").write_bytes(b"precious")
    with pytest.raises(WouldOverwriteError, match=r"sheet\.png"):
        contact_sheet([picture()], tmp_path / "sheet.png", force=False)
    assert (tmp_path / "sheet.png").read_bytes() == b"precious"


def pictured(tmp_path: Path, patterns: Array, queries: Array) -> Picture:
    """The first picture of a run."""
    layout = {3: "CHW" if patterns.shape[1] == 3 else "HWC", 2: "HW"}[patterns.ndim - 1]
    replace(MemoryBank.from_patterns(patterns), layout=layout, scale=1 / 255).save(tmp_path / "bank")
    np.save(tmp_path / "queries.npy", queries)
    asked = [str(tmp_path / "queries.npy")]
    return retrieve(str(tmp_path / "bank"), asked, None, Reading(), Machine("cpu"), pictures=True).pictures[0]


@pytest.mark.parametrize("shape", [(400, 600, 3), (3, 400, 600), (400, 600)], ids=str)
def test_pictures_are_kept_no_larger_than_they_are_drawn(shape, tmp_path: Path):
    ramp = np.arange(600) * 255 // 599
    patterns = np.broadcast_to(ramp[:, None] if shape[-1] == 3 else ramp, (2, *shape)).astype(np.uint8)
    patterns[1] = 255 - patterns[1]
    found = pictured(tmp_path, patterns, patterns[:1])
    assert found.stored.dtype == torch.uint8
    assert tuple(found.stored.shape) == (*SHOWN, *([3] if len(shape) == 3 else []))
    expected = torch.linspace(0, 255, SHOWN[1]).reshape(1, -1, *([1] if len(shape) == 3 else []))
    for image in (found.query, found.answer, found.stored):
        assert float((image - expected).abs().max()) < 3


def test_values_beyond_black_and_white_are_clamped(tmp_path: Path):
    beyond = np.linspace(-1, 2, 48, dtype=np.float32).reshape(1, 6, 8)
    patterns = np.random.default_rng(0).integers(0, 256, (3, 6, 8), dtype=np.uint8)
    found = pictured(tmp_path, patterns, beyond)
    assert torch.equal(found.query, (torch.from_numpy(beyond[0]).clamp(0, 1) * 255).round().byte())
