"""`hopmem inspect --json` against the literal equations of `reference.py`."""

import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from hopmem import header
from hopmem.bank import MemoryBank
from hopmem.model.kernel import FeatureMap
from tests import reference
from tests.conftest import VECTOR_NAMES, Array, Ask, Hopmem


@pytest.fixture(scope="module", params=["raw", "learned"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def inspected(side: str, bank: Path, learned: Path) -> Path:
    return bank if side == "raw" else learned


@pytest.fixture(scope="module")
def Z(side: str, inspected: Path, vectors: Array) -> Array:
    tensors = load_file(inspected)
    return reference.features(vectors, tensors.get("feature_map.weight"), tensors.get("feature_map.bias"))


def test_the_separation_is_that_of_the_equations(side, inspected: Path, Z: Array, ask: Ask):
    report, delta = ask("inspect", inspected)["separation"][side], reference.separation(Z)
    cosine = max(reference.pair_cosines(Z).values())
    assert report["min"] == pytest.approx(delta.min(), abs=1e-5)
    assert report["mean"] == pytest.approx(delta.mean(), abs=1e-5)
    assert report["max_cosine"] == pytest.approx(cosine, abs=1e-5)
    assert report["min_angle_degrees"] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-2)
    assert report["radius"] == pytest.approx(math.sqrt(2 - 2 * cosine) / 2, abs=1e-5)
    for share, value in report["quantiles"].items():
        below, above = (np.quantile(delta, float(share), method=m) for m in ("lower", "higher"))
        assert below - 1e-5 <= value <= above + 1e-5


@pytest.mark.parametrize("beta", [5, 40])
@pytest.mark.parametrize("error", [1e-3, 0.1])
def test_the_bounds_are_those_of_the_equations(error, beta, inspected: Path, Z: Array, ask: Ask):
    bounds = ask("inspect", inspected, "--beta", beta, "--error", error, "--alpha", 2)["bounds"]
    cosine, M, D = max(reference.pair_cosines(Z).values()), len(Z), Z.shape[1]
    delta, radius = 1 - cosine, math.sqrt(2 - 2 * cosine) / 2
    near = {"rel": 1e-3, "abs": 1e-5}
    ratio = math.sqrt(math.pi) / M * math.gamma((D + 1) / 2)
    assert bounds["lower"] == pytest.approx(0.5 * (ratio / math.gamma(D / 2 + 1)) ** (2 / (D - 1)))
    assert bounds["upper"] == pytest.approx(2 * (2 * ratio / math.gamma(D / 2)) ** (1 / (D - 1)))
    assert bounds["lemma1_error"] == pytest.approx(reference.lemma1(delta, radius, M, beta), **near)
    sharp = max(reference.sharp_error(Z, mu, beta, radius / 2) for mu in range(M))
    assert bounds["error"] == pytest.approx(sharp, **near)
    assert bounds["guaranteed_radius"] == pytest.approx(reference.guaranteed_radius(Z, beta, error), **near)
    exact = np.mean(reference.separation(Z) >= 1 / beta)  # Δ_μ ≥ 1/(β(α−1))
    assert bounds["exact_fraction"] == pytest.approx(exact)
    at_that_beta = max(reference.sharp_error(Z, mu, bounds["beta_for_error"], radius / 2) for mu in range(M))
    assert at_that_beta <= error * (1 + 1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 66, 100])
def test_closest_names_that_many_pairs_the_closest_first(count, inspected: Path, Z: Array, ask: Ask):
    said = ask("inspect", inspected, "--closest", count)["closest_pairs"]
    cosines = {(VECTOR_NAMES[a], VECTOR_NAMES[b]): cosine for (a, b), cosine in reference.pair_cosines(Z).items()}
    expected = sorted(cosines.values(), reverse=True)[:count]
    np.testing.assert_allclose([pair["cosine"] for pair in said], expected, atol=1e-5)
    for pair in said:
        assert cosines[pair["a"], pair["b"]] == pytest.approx(pair["cosine"], abs=1e-5)


@pytest.mark.parametrize(("beta", "size"), [(1000, "1"), (0, "0")])
def test_metastable_counts_the_stored_patterns_by_the_size_of_their_state(beta, size, inspected: Path, ask: Ask):
    metastable = ask("inspect", inspected, "--beta", beta)["metastable"]
    expected = size if beta else "more"  # at β = 0 all twelve weights are 1/12, and none is under 0.01
    assert metastable[expected] == sum(metastable.values()) == 12


def test_auto_is_the_beta_that_keeps_the_error_at_half_the_radius(inspected: Path, Z: Array, ask: Ask):
    bounds = ask("inspect", inspected)["bounds"]
    assert bounds["error"] <= 1e-3
    assert bounds["guaranteed_radius"] >= 0.999 * math.sqrt(2 - 2 * max(reference.pair_cosines(Z).values())) / 4


def test_duplicates_are_named_and_leave_no_separation(ask: Ask, tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "in")
    Image.open(folder / "a.png").save(tmp_path / "in" / "again.png")
    ask("store", tmp_path / "in", "-o", tmp_path / "bank.safetensors")
    said = ask("inspect", tmp_path / "bank.safetensors")
    assert said["duplicates"] == [["a.png", "again.png"]]
    assert said["separation"]["raw"]["min"] == pytest.approx(0, abs=1e-6)
    assert said["closest_pairs"][0] == {"a": "a.png", "b": "again.png", "cosine": 1.0}


def test_one_pattern_has_no_neighbour(ask: Ask, hopmem: Hopmem, tmp_path: Path, folder: Path):
    ask("store", folder / "a.png", "-o", tmp_path / "bank.safetensors")
    said = ask("inspect", tmp_path / "bank.safetensors")
    assert all(value in (None, []) for value in said["separation"]["raw"].values())
    assert said["closest_pairs"] == []
    assert hopmem("inspect", tmp_path / "bank.safetensors").stdout


def test_the_shape_of_images_is_told(ask: Ask, image_bank: Path):
    said: dict[str, Any] = ask("inspect", image_bank)
    keys = ("patterns", "dimension", "shape", "feature_dimension", "objective")
    assert [said[key] for key in keys] == [6, 144, [6, 8, 3], 144, "raw"]
    assert len(said["closest_pairs"]) == min(10, len(list(combinations(range(6), 2))))


def without_memory(bank: Path, folder: Path) -> Path:
    """The same bank, written by a script: it remembers no statistics."""
    path = folder / "script.safetensors"
    MemoryBank.load(bank).save(path)
    assert "statistics" not in header.metadata(path)
    return path


def test_what_is_remembered_is_what_would_be_measured(inspected: Path, tmp_path: Path, ask: Ask):
    told, measured = (ask("inspect", path) for path in (inspected, without_memory(inspected, tmp_path)))
    assert "statistics" in header.metadata(inspected)
    assert {**told, "seconds": 0} == {**measured, "seconds": 0}


@pytest.mark.parametrize("change", ["store --append", "optimize"])
def test_a_changed_bank_remembers_what_it_is_now(change, bank: Path, array: Path, tmp_path: Path, ask: Ask):
    path = tmp_path / "bank.safetensors"
    shutil.copy(bank, path)
    if change == "optimize":
        ask("optimize", path, "--objective", "average", "--steps", 5)
    else:
        ask("store", array, "-o", path, "--append")
    told, measured = ask("inspect", path), ask("inspect", without_memory(path, tmp_path))
    assert {**told, "seconds": 0} == {**measured, "seconds": 0}
    assert told != ask("inspect", bank)


@pytest.mark.parametrize("kept", ["", "{}", "[]", '{"inspection": {}}', '{"inspection": 3}', "nonsense"])
def test_statistics_that_make_no_sense_are_measured_anew(kept, bank: Path, tmp_path: Path, ask: Ask):
    path = tmp_path / "odd.safetensors"
    MemoryBank.load(bank).save(path, beside={"statistics": kept})
    assert {**ask("inspect", path), "seconds": 0} == {**ask("inspect", bank), "seconds": 0}


def test_a_bank_that_is_cut_is_refused_whatever_its_header_remembers(bank: Path, tmp_path: Path, hopmem: Hopmem):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(bank.read_bytes()[:-9])
    assert header.metadata(path) == {}
    assert "cut.safetensors" in hopmem("inspect", path, code=6).stderr


def test_what_append_did_to_an_old_map_is_said(ask: Ask, tmp_path: Path, learned: Path, array: Path):
    copy = Path(shutil.copy(learned, tmp_path / "bank.safetensors"))
    before = ask("inspect", copy)
    assert before["appended"] is None
    ask("store", array, "--append", "-o", copy)
    said = ask("inspect", copy)
    assert said["appended"]["learned_from"] + said["appended"]["appended"] == said["patterns"]
    assert said["appended"]["appended"] == said["patterns"] - before["patterns"]
    assert said["appended"]["delta_before"] == pytest.approx(before["separation"]["learned"]["min"], abs=1e-5)
    assert said["appended"]["delta_now"] == pytest.approx(said["separation"]["learned"]["min"], abs=1e-5)


def test_the_tables_fit_eighty_columns(hopmem: Hopmem, learned: Path):
    said = hopmem("inspect", learned).stdout
    assert "effective rank" in said
    assert "█" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_raw_bank_by_centred_cosine_says_so(bank: Path, tmp_path: Path, hopmem: Hopmem):
    plain = MemoryBank.load(bank)
    replace(plain, phi=FeatureMap(centred=True), tuning=None).tuned().save(tmp_path / "centred")
    assert "raw, centred cosine" in hopmem("inspect", tmp_path / "centred").stdout
    assert "centred" not in hopmem("inspect", bank).stdout
