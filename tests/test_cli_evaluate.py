"""`hopmem evaluate`: what it prints and draws, and the gate that it is."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hopmem.verbs.trial import METHODS
from tests.conftest import Array, Ask, Hopmem

FEW = ("--samples", 12)
BOTH = ("--methods", "nearest", *FEW)  # beside the bank


def test_the_default_is_mixed_noise_every_method_and_the_whole_bank(ask: Ask, bank: Path):
    rows = ask("evaluate", bank, *FEW)["rows"]
    assert [row["method"] for row in rows] == list(METHODS)
    assert {(row["noise"], row["size"], row["samples"]) for row in rows} == {("mixed", 12, 12)}
    assert {row["method"] for row in rows if row["beta"] is None} == {"dam10", "nearest"}


def test_a_thousand_queries_are_the_default(ask: Ask, bank: Path):
    assert ask("evaluate", bank, "--methods", "nearest")["rows"][0]["samples"] == 1000


def test_lists_come_with_commas_or_again(ask: Ask, bank: Path):
    noises = ["--noise", "mask:0.5", "--noise", "gaussian:0.5s"]
    commas = ask("evaluate", bank, *noises, *FEW, "--methods", "bank, nearest", "--sizes", "5,12")
    again = ask(
        "evaluate", bank, *noises, *FEW, "--methods", "bank", "--methods", "nearest", "--sizes", 5, "--sizes", 12
    )
    assert commas["rows"] == again["rows"]
    keys = [(row["noise"], row["size"], row["method"]) for row in commas["rows"]]
    assert keys == [
        (noise, size, method) for noise in noises[1::2] for size in (5, 12) for method in ("bank", "nearest")
    ]


def test_a_seed_repeats_everything_but_the_seconds(ask: Ask, bank: Path):
    first, again, other = (ask("evaluate", bank, *FEW, "--seed", seed) for seed in (1, 1, 2))
    assert first | {"seconds": 0} == again | {"seconds": 0}
    assert first["rows"] != other["rows"]


def test_a_single_query_has_null_for_the_standard_error_of_its_error(ask: Ask, bank: Path):
    assert ask("evaluate", bank, "--samples", 1)["rows"][0]["error_se"] is None


@pytest.mark.parametrize("least", ["1", "0.95", "95", "95%", "100", "100%", "0.5%", "0"])
def test_a_bank_that_is_good_enough_passes_the_gate(least, hopmem: Hopmem, bank: Path):
    result = hopmem("evaluate", bank, *BOTH, "--noise", "mask:0", "--fail-under", least)
    assert result.stderr == ""


def test_a_bank_that_is_not_good_enough_is_reported_and_ends_in_8(hopmem: Hopmem, bank: Path):
    call = ["evaluate", bank, *BOTH, "--noise", "mask:0", "--noise", "mask:1", "--fail-under", "95%"]
    result = hopmem(*call, "--json", code=8)
    found = {(row["noise"], row["method"]): row["accuracy"] for row in json.loads(result.stdout)["rows"]}
    assert found["mask:0", "bank"] == 1
    short = f"{found['mask:1', 'bank']:.2%} under mask:1 with 12 patterns"
    assert result.stderr.count("\n") == 1
    for word in ("hopmem: --fail-under", "at least 95.00%", short, f"({0.95 - found['mask:1', 'bank']:.2%} short)"):
        assert word in result.stderr
    assert "mask:0" not in result.stderr
    assert "accuracy" in hopmem(*call, code=8).stdout
    assert hopmem(*call, "-q", code=8).stdout == ""


def test_the_gate_is_exact(hopmem: Hopmem, ask: Ask, bank: Path):
    call = ["evaluate", bank, "--methods", "bank", "--noise", "gaussian:1.5", "--samples", 1000]
    accuracy = ask(*call)["rows"][0]["accuracy"]
    assert 0.1 < accuracy < 0.9
    hopmem(*call, "--fail-under", f"{accuracy * 100:.1f}%")
    hopmem(*call, "--fail-under", f"{accuracy * 100 + 0.1:.1f}%", code=8)


def test_many_failures_are_one_line(hopmem: Hopmem, bank: Path):
    sizes = ",".join(map(str, range(4, 13)))
    result = hopmem("evaluate", bank, *BOTH, "--noise", "mask:1", "--sizes", sizes, "--fail-under", 1, code=8)
    assert result.stderr.count("\n") == 1
    assert "and 4 more" in result.stderr


def test_pairs_are_evaluated_on_their_patterns_and_that_is_said(
    ask: Ask, tmp_path: Path, array: Path, bank: Path, vectors: Array
):
    np.save(tmp_path / "values.npy", vectors[:, :2])
    ask("store", array, "--values", tmp_path / "values.npy", "-o", tmp_path / "pairs.safetensors")
    said = ask("evaluate", tmp_path / "pairs.safetensors", *FEW)
    assert len(said["warnings"]) == 1
    assert "patterns" in said["warnings"][0]
    assert said["rows"] == ask("evaluate", bank, *FEW)["rows"]


@pytest.mark.parametrize("columns", ["40", "60", "80", "200"])
def test_the_table_fits_and_names_every_method(columns, hopmem: Hopmem, image_bank: Path):
    out = hopmem("evaluate", image_bank, *FEW, "--noise", "blur:1", "--sizes", "4,6", env={"COLUMNS": columns}).stdout
    assert max(len(line) for line in out.splitlines()) <= int(columns)
    assert "blur:1, 4 patterns" in " ".join(out.split())
    if columns != "40":  # no row is folded
        assert all(out.count(method) == 2 for method in METHODS)
        assert len([line for line in out.splitlines() if line.startswith("│")]) == 2 * len(METHODS)


@pytest.mark.parametrize(
    "options",
    [
        ("--noise", "mixed", "--noise", "missing:0.5"),
        ("--noise", "mask:0.2", "--noise", "mask:0.8", "--noise", "gaussian:0.5s"),
        ("--noise", "mask:0.2", "--noise", "gaussian:1", "--sizes", "4,12"),
    ],
    ids=["bars", "levels", "sizes"],
)
def test_a_plot_is_a_picture_with_a_colour_for_each_method(options, hopmem: Hopmem, bank: Path, tmp_path: Path):
    hopmem("evaluate", bank, *BOTH, *options, "--plot", tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG"
        pixels = np.array(image.convert("RGB")).reshape(-1, 3).astype(int)
    blue = (abs(pixels - np.array([0, 114, 178])).sum(1) < 30).sum()  # the first of the baselines
    assert (pixels.sum(1) < 60).sum() > 100
    assert blue > 50


def test_a_plot_without_matplotlib_says_what_to_install_before_the_work(
    hopmem: Hopmem, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = hopmem("evaluate", bank, "--plot", tmp_path / "chart.png", code=2)
    assert "pip install 'hopmem[plot]'" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "chart.png").exists()
