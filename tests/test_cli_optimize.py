"""`hopmem optimize`: what it writes, what it leaves alone, and what its options do."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests import reference
from tests.conftest import Ask, Hopmem

MAP = ("feature_map.weight", "feature_map.bias", "features")


def metadata(bank: Path) -> dict[str, str]:
    with safe_open(bank, framework="np") as file:
        return dict(file.metadata())


@pytest.fixture
def copy(tmp_path: Path, bank: Path) -> Path:
    """A raw bank that a test may change."""
    return Path(shutil.copy(bank, tmp_path / "bank.safetensors"))


def test_optimize_puts_a_map_into_the_bank_and_leaves_the_rest_alone(ask: Ask, copy: Path, bank: Path):
    said = ask("optimize", "--objective", "average", copy)
    before, after = load_file(bank), load_file(copy)
    assert after.keys() - before.keys() == set(MAP)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    kept = ("format", "scale", "shape", "layout", "mode")
    assert [metadata(copy)[key] for key in kept] == [metadata(bank)[key] for key in kept]
    assert after["feature_map.weight"].shape == (said["feature_dimension"], 6)
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_o_leaves_the_bank_as_it_was(hopmem: Hopmem, tmp_path: Path, copy: Path, bank: Path):
    hopmem("optimize", "--objective", "average", copy, "-o", tmp_path / "learned.safetensors")
    assert copy.read_bytes() == bank.read_bytes()
    assert set(MAP) <= load_file(tmp_path / "learned.safetensors").keys()


def test_the_report_agrees_with_the_features_that_were_written(ask: Ask, copy: Path, vectors):
    said = ask("optimize", "--objective", "average", copy)
    tensors = load_file(copy)
    mapped = reference.features(vectors, tensors["feature_map.weight"], tensors["feature_map.bias"])
    np.testing.assert_allclose(tensors["features"], mapped, atol=1e-5)
    for side, Z in (("raw", reference.features(vectors)), ("learned", mapped)):
        cosines = list(reference.pair_cosines(Z).values())
        expected = max(cosines), np.degrees(np.arccos(max(cosines))), np.mean(cosines)
        keys = ("max_cosine", "min_angle_degrees", "mean_cosine")
        np.testing.assert_allclose([said["separation"][side][key] for key in keys], expected, atol=1e-4)
        which = "first" if side == "raw" else "last"
        assert said["loss"][which] == pytest.approx(reference.average_loss(Z, t=2), abs=1e-4)
    assert said["loss"]["last"] < said["loss"]["first"]
    assert (said["objective"], said["kept"], said["validation"]) == ("average", "learned", [])


@pytest.mark.parametrize("M", [2, 5, 7])
def test_few_patterns_end_as_a_simplex(M, ask: Ask, tmp_path: Path, vectors):
    np.save(tmp_path / "few.npy", vectors[:M])
    ask("store", tmp_path / "few.npy", "-o", tmp_path / "few.safetensors")
    learned = ask("optimize", "--objective", "average", tmp_path / "few.safetensors", "--steps", 300)["separation"][
        "learned"
    ]
    assert learned["max_cosine"] == pytest.approx(-1 / (M - 1), abs=1e-3)
    assert learned["mean_cosine"] == pytest.approx(-1 / (M - 1), abs=1e-3)


def learn(hopmem: Hopmem, bank: Path, out: Path, *options: object) -> dict[str, np.ndarray]:
    hopmem(
        "optimize",
        "--objective",
        "average",
        bank,
        "-o",
        out,
        "--feature-dim",
        2,
        "--batch-size",
        4,
        "--steps",
        5,
        *options,
    )
    return load_file(out)


def test_a_seed_gives_the_same_map_again_and_another_seed_another(hopmem: Hopmem, tmp_path: Path, bank: Path):
    first, again, other = (
        learn(hopmem, bank, tmp_path / f"{place}.safetensors", "--seed", seed)["feature_map.weight"]
        for place, seed in enumerate((1, 1, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_seed_is_the_flags_then_the_variables_then_the_banks(hopmem: Hopmem, tmp_path: Path, table: Path):
    bank = tmp_path / "bank.safetensors"
    hopmem("store", table, "--id-column", "name", "-o", bank, "--seed", 2)
    expected = learn(hopmem, bank, tmp_path / "flag.safetensors", "--seed", 2)
    remembered = learn(hopmem, bank, tmp_path / "bank's.safetensors")
    np.testing.assert_array_equal(remembered["feature_map.weight"], expected["feature_map.weight"])


def test_options_are_followed_and_written_down(ask: Ask, copy: Path):
    options = {"feature-dim": 3, "steps": 4, "temperature": 1.5, "batch-size": 8, "learning-rate": 0.05}
    said = ask(
        "optimize",
        "--objective",
        "average",
        copy,
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    )
    assert said["feature_dimension"] == 3
    assert said["steps"] <= 4
    learning = json.loads(metadata(copy)["learning"])
    assert (learning["temperature"], learning["batch_size"], learning["feature_dimension"]) == (1.5, 8, 3)
    assert len(learning["curve"]) >= said["steps"]


@pytest.mark.parametrize("options", [["--steps", 0], ["--time-limit", 0]], ids=["no steps", "no time"])
def test_without_a_step_the_warm_start_is_the_map(options, ask: Ask, copy: Path):
    said = ask("optimize", "--objective", "average", copy, *options)
    assert said["steps"] == 0
    assert ask("inspect", copy)["objective"] == "average"


def test_a_bank_is_raw_before_and_learned_after(ask: Ask, copy: Path):
    before = ask("inspect", copy)
    said = ask("optimize", "--objective", "average", copy)
    after = ask("inspect", copy)
    assert (before["objective"], before["separation"]["learned"]) == ("raw", None)
    assert after["objective"] == "average"
    assert after["separation"]["raw"] == before["separation"]["raw"]
    assert after["separation"]["learned"]["max_cosine"] == pytest.approx(said["separation"]["learned"]["max_cosine"])


def test_a_map_that_separates_less_is_warned_of(ask: Ask, copy: Path):
    assert any(
        "--feature-dim" in warning
        for warning in ask("optimize", "--objective", "average", copy, "--feature-dim", 1)["warnings"]
    )
