"""The portrait of a bank: what is measured for it, and the pictures that are drawn of it."""

import base64
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import hopmem
from hopmem.bank import MemoryBank
from hopmem.pipeline.optimize import optimize
from hopmem.pipeline.outcome import Machine
from hopmem.verbs import portrait
from hopmem.verbs.optimize import Task
from hopmem.verbs.portrait import BINS
from tests import reference
from tests.conftest import Hopmem
from tests.verbs import randn

LARGEST = 1_000_000  # bytes of a picture
ALWAYS = {"cosines", "delta", "code", "spectrum", "landscape"}


def bank_of(M: int, d: int, *, learned: bool = False) -> MemoryBank:
    bank = MemoryBank.from_patterns(randn(M, d), [f"n{row}" for row in range(M)])
    return hopmem.optimize(bank, objective="average", steps=3) if learned else bank


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("M", "d"), [(2, 3), (13, 6), (60, 5)])
@pytest.mark.parametrize("budget", [1 << 16, 1 << 28])
def test_a_side_holds_what_brute_force_finds(M, d, learned, budget):
    bank = bank_of(M, d, learned=learned)
    found = portrait(bank, budget=budget)
    assert [side.name for side in found.sides] == ["raw", "learned"][: 1 + learned]
    Z = reference.features(bank.patterns, bank.phi.W, bank.phi.b)
    side, cosines = found.sides[-1], Z @ Z.T
    assert np.allclose(side.code.numpy(), cosines, atol=1e-5)
    np.fill_diagonal(cosines, -2)
    assert np.allclose(side.delta.numpy(), 1 - cosines.max(1), atol=1e-5)
    assert np.allclose(cosines[np.arange(M), side.nearest.numpy()], cosines.max(1), atol=1e-5)
    assert int(side.cosines.sum()) == M * (M - 1)
    middles = (torch.arange(BINS) + 0.5) * 2 / BINS - 1
    mean = float((side.cosines * middles).sum()) / (M * (M - 1))
    assert mean == pytest.approx(cosines[cosines > -2].mean(), abs=2 / BINS)
    assert np.allclose(side.spectrum.numpy(), np.linalg.svd(Z, compute_uv=False)[: min(Z.shape)], atol=1e-4)


def test_the_closest_pairs_come_first_and_once():
    found = portrait(bank_of(30, 4))
    pairs = [(pair.a, pair.b) for pair in found.pairs]
    assert len(set(pairs)) == len(pairs) == 6
    assert [pair.cosine for pair in found.pairs] == sorted((pair.cosine for pair in found.pairs), reverse=True)


@pytest.mark.parametrize(("M", "d"), [(2, 2), (5, 2), (3, 3), (9, 7)])
def test_memories_lie_on_their_plane_in_their_own_basin_at_low_energy(M, d):
    plane = portrait(bank_of(M, d)).plane
    assert plane.whole == (d == 2)
    for row, (x, y) in zip(plane.marked, plane.marks, strict=True):
        column, line = int((plane.x - x).abs().argmin()), int((plane.y - y).abs().argmin())
        assert plane.x[0] <= x <= plane.x[-1]
        assert plane.y[0] <= y <= plane.y[-1]
        assert float(plane.energy[line, column]) < float(plane.energy.median())
        assert int(plane.basin[line, column]) == row


def test_a_single_pattern_and_one_dimension_have_no_plane():
    assert portrait(bank_of(1, 4)).plane is None
    assert portrait(MemoryBank.from_patterns(torch.tensor([[1.0], [-1.0]]))).plane is None
    assert portrait(bank_of(5, 3)).points.shape == (5, 3)
    assert portrait(bank_of(5, 4)).points is None


def test_inspect_draws_every_picture_as_png_and_svg(hopmem: Hopmem, image_bank: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    hopmem("inspect", image_bank, "--plot", tmp_path / "pictures")
    files = {file.name: file for file in (tmp_path / "pictures").iterdir()}
    assert set(files) == {f"{name}.{kind}" for name in ALWAYS | {"pairs"} for kind in ("png", "svg")}
    for name, file in files.items():
        assert 0 < file.stat().st_size < LARGEST
        if name.endswith("svg"):
            assert ElementTree.fromstring(file.read_text()).tag.endswith("svg")
        else:
            with Image.open(file) as image:
                assert len(image.convert("RGB").getcolors(1 << 24)) > 5


def test_pictures_are_the_same_bytes_twice_and_overwrite_only_by_force(hopmem: Hopmem, bank: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    hopmem("inspect", bank, "--plot", tmp_path / "pictures")
    before = {file: file.read_bytes() for file in (tmp_path / "pictures").iterdir()}
    refused = hopmem("inspect", bank, "--plot", tmp_path / "pictures", code=2)
    assert re.search(r"(cosines|delta|code)\.png", refused.stderr)
    hopmem("inspect", bank, "--plot", tmp_path / "pictures", "--force")
    assert {file: file.read_bytes() for file in (tmp_path / "pictures").iterdir()} == before


def test_a_picture_is_a_png_or_an_svg(hopmem: Hopmem, bank: Path, image_bank: Path, folder: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    hopmem("evaluate", bank, "--samples", 5, "--methods", "nearest", "--plot", tmp_path / "chart.svg")
    hopmem("retrieve", image_bank, folder, "--plot", tmp_path / "sheet.svg")
    for name in ("chart", "sheet"):
        assert ElementTree.fromstring((tmp_path / f"{name}.svg").read_text()).tag.endswith("svg")
    refused = hopmem("evaluate", bank, "--samples", 5, "--plot", tmp_path / "chart.jpg", code=2)
    assert ".png or .svg" in refused.stderr
    assert not (tmp_path / "chart.jpg").exists()


def test_a_report_is_one_page_of_everything(hopmem: Hopmem, image_bank: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    hopmem("inspect", image_bank, "--report", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png") >= len(ALWAYS) + 1
    (rows,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', text, re.DOTALL)
    assert {name for name, *_ in json.loads(rows)} == set(MemoryBank.load(image_bank).names)
    for *_, small in json.loads(rows):
        with Image.open(io.BytesIO(base64.b64decode(small))) as image:
            assert max(image.size) <= 40
    assert (tmp_path / "page.html").stat().st_size < 5_000_000
    hopmem("inspect", image_bank, "--report", tmp_path / "page.html", code=2)


def test_optimize_draws_the_largest_cosine_beside_the_loss(hopmem: Hopmem, bank: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    options = ("--objective", "average", "--feature-dim", "2", "--steps", "6", "--force")
    hopmem("optimize", bank, *options, "-o", tmp_path / "plain.safetensors")
    hopmem("optimize", bank, *options, "-o", tmp_path / "drawn.safetensors", "--plot", tmp_path / "learning.svg")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "drawn.safetensors").read_bytes()
    assert ElementTree.fromstring((tmp_path / "learning.svg").read_text()).tag.endswith("svg")
    outcome = pipeline_optimize(str(bank), str(tmp_path / "again.safetensors"), follow=True)
    assert [step for step, _ in outcome.cosines] == list(range(1, len(outcome.cosines) + 1))
    assert all(-1 <= cosine <= 1 + 1e-6 for _, cosine in outcome.cosines)
    assert not pipeline_optimize(str(bank), str(tmp_path / "third.safetensors"), follow=False).cosines


def pipeline_optimize(bank: str, output: str, *, follow: bool):
    task = Task(objective="average", feature_dim=2, steps=6)
    return optimize(bank, output, task, Machine(), follow=follow)


def test_a_zero_pattern_is_in_no_closer_pair_than_it_is_in():
    Xi = torch.cat([torch.zeros(1, 32), randn(20, 32)])
    Z, (pair, *_) = reference.features(Xi), portrait(MemoryBank.from_patterns(Xi)).pairs
    cosines = Z @ Z.T - 3 * np.eye(21)
    assert pair.cosine == pytest.approx(cosines.max(), abs=1e-5)
    assert cosines[pair.a, pair.b] == pytest.approx(cosines.max(), abs=1e-5)


def test_images_of_two_channels_are_drawn_and_the_page_says_its_beta(hopmem: Hopmem, tmp_path: Path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "two.npy", np.random.default_rng(0).integers(0, 256, (6, 5, 5, 2), dtype=np.uint8))
    hopmem("store", tmp_path / "two.npy", "-o", tmp_path / "two.safetensors")
    options = ("--beta", "3", "--plot", tmp_path / "pictures", "--report", tmp_path / "page.html")
    hopmem("inspect", tmp_path / "two.safetensors", *options)
    assert (tmp_path / "pictures" / "pairs.png").exists()
    assert "β 3, α 1" in (tmp_path / "page.html").read_text()


def test_a_report_never_takes_the_place_of_its_bank(hopmem: Hopmem, bank: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    before = bank.read_bytes()
    refused = hopmem("inspect", bank, "--report", bank, "--force", code=2)
    assert ".html" in refused.stderr
    assert bank.read_bytes() == before
