"""The learning experiments: what their tables must obey, and that each memory is what it says."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib", reason="the experiments draw")

from scipy.io import savemat
from scipy.sparse import csc_matrix

from experiments import bags, images, mil
from experiments.__main__ import main
from experiments.learning import MEMORIES, StageOne, keys_at_once, paired, task_optimizer
from experiments.setting import BadDataError, MissingDataError, Setting
from tests.experiment import assert_has_no_gaps, assert_is_small_picture, table

NAMES = {"mil": mil, "images": images}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both have been run once, quick and without data."""
    folder = tmp_path_factory.mktemp("learning")
    for module in NAMES.values():
        module.run(Setting(folder, quick=True))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_leaves_tables_without_gaps_and_a_small_picture(out: Path, name: str) -> None:
    for each in (name, f"{name}_summary"):
        rows = table(out, each)
        assert {row["memory"] for row in rows} == {memory.name for memory in MEMORIES}
        assert_has_no_gaps([{key: cell for key, cell in row.items() if not key.startswith("p over")} for row in rows])
    assert_is_small_picture(out / f"{name}.png")


@pytest.mark.slow
def test_the_summary_is_what_the_rows_say(out: Path) -> None:
    rows, found = table(out, "mil"), table(out, "mil_summary")
    for each in found:
        mine = [float(row["auc"]) for row in rows if (row["set"], row["memory"]) == (each["set"], each["memory"])]
        assert math.isclose(float(each["auc"]), np.mean(mine), abs_tol=1e-5)
        assert float(each["over no map"]) == 0 or each["memory"] not in {"dense", "sparse"}


@pytest.mark.slow
def test_the_same_seeds_give_the_same_tables(out: Path, tmp_path: Path) -> None:
    mil.run(Setting(tmp_path, quick=True), replace(mil.QUICK, sets=("tiger",)))
    again = {tuple(row.values()) for row in table(tmp_path, "mil")}
    assert again == {tuple(row.values()) for row in table(out, "mil") if row["set"] == "tiger"}


X, IDS = np.arange(12.0).reshape(6, 2), np.array([[7, 7, 3, 3, 3, 9]], np.uint8)
LABELS = np.array([[1.0, 1, -1, -1, -1, 1]])


def write_set(folder: Path, **other: Any) -> None:
    savemat(folder / "elephant_100x100.mat", {"features": X, "bag_ids": IDS, "labels": LABELS} | other)


@pytest.mark.parametrize("features", [X, csc_matrix(X)])
@pytest.mark.parametrize("labels", [LABELS, (LABELS > 0).astype(np.uint8), 1.5 + LABELS / 2, np.array([[-1, 1, 1]])])
def test_a_set_is_read_bag_by_bag(tmp_path: Path, features: Any, labels: Any) -> None:
    write_set(tmp_path, features=features, labels=labels)
    found = bags.load(tmp_path, "elephant")
    assert found.y.tolist() == [0, 1, 1]  # bags 3, 7, 9
    assert found.padding.tolist() == [[False] * 3, [False, False, True], [False, True, True]]
    assert found.X[1, :2].tolist() == X[:2].tolist()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"labels": np.ones((1, 6))}, "two labels"),
        ({"labels": np.array([[1, 2, 3, 1, 1, 1]])}, "two labels"),
        ({"labels": np.array([[1, -1, 1, -1, -1, 1]])}, "both classes"),
        ({"features": X[:4]}, "4 features"),
        ({"features": np.where(X > 5, np.nan, X)}, "finite"),
    ],
)
def test_a_file_that_is_no_set_is_not_believed(tmp_path: Path, other: dict[str, Any], told: str) -> None:
    write_set(tmp_path, **other)
    with pytest.raises(BadDataError, match=told):
        bags.load(tmp_path, "elephant")


def test_a_name_stands_for_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    savemat(tmp_path / "musk1.mat", {"features": X})
    with pytest.raises(BadDataError, match="no bag_ids, labels"):
        bags.load(tmp_path, "musk1")
    savemat(tmp_path / "musk2.mat", {"features": X})
    with pytest.raises(MissingDataError, match=r"musk1\.mat, musk2\.mat"):
        bags.load(tmp_path, "musk")
    asked = ["--data", str(tmp_path), "--out", str(tmp_path), "--workers", "1"]
    assert main(["mil", "--sets", "fox", *asked]) == 3
    assert main(["mil", "--sets", "musk1", *asked]) == 4
    assert "fox*.mat" in capsys.readouterr().err


def test_bags_are_standardised_by_others_without_their_padding() -> None:
    found = bags.load(None, "tiger")
    scaled = found.standardised(found)
    instances = scaled.X[~scaled.padding]
    torch.testing.assert_close(instances.mean(0), torch.zeros(20), atol=1e-5, rtol=0)
    torch.testing.assert_close(instances.std(0), torch.ones(20))
    assert (scaled.X[scaled.padding] == 0).all()


def networks() -> list[tuple[torch.nn.Module, tuple[Tensor, ...]]]:
    memory = next(memory for memory in MEMORIES if memory.learned)
    found = bags.load(None, "tiger")
    pictures = images.load(None, "cpu")[0].batch(slice(0, 8))[0]
    vision = images.Network(32, 3, memory, images.Options(width=16, heads=2))
    return [(mil.Network(20, memory, 8, 0.5), (found.X, found.padding)), (vision, (pictures,))]


@pytest.mark.parametrize("which", [0, 1])
def test_stage_one_moves_the_maps_of_every_layer_and_nothing_else(which: int) -> None:
    network, given = networks()[which]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    StageOne(network, "average").step(*given)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("feature_map")}
    assert len(changed) == [1, 2][which]
    groups = task_optimizer(network, 1e-3, 1e-2).param_groups
    learned = {id(parameter) for group in groups for parameter in group["params"]}
    assert all((id(p) in learned) != name.endswith("feature_map") for name, p in network.named_parameters())
    assert [group["weight_decay"] for group in groups] == [1e-2, 0.0]


def test_stage_one_leaves_the_draws_of_the_task_alone() -> None:
    network, given = networks()[0]
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    StageOne(network, "average").step(*given)
    assert torch.equal(torch.rand(1), expected)


def test_all_memories_begin_with_the_same_weights_but_for_map_and_temperature() -> None:
    for draw in (
        lambda memory: mil.Network(20, memory, 8, 0.5),
        lambda memory: images.Network(32, 3, memory, images.Options(width=16, heads=2)),
    ):
        states = []
        for memory in MEMORIES:
            torch.manual_seed(0)
            states.append(draw(memory).state_dict())
        for state in states[1:]:
            shared = [name for name in states[0] if "log_beta" not in name]
            assert all(torch.equal(state[name], states[0][name]) for name in shared)


def test_keys_at_once_counts_equal_weights() -> None:
    assert math.isclose(keys_at_once(torch.tensor([[0.25] * 4, [0.25] * 4])), 4, rel_tol=1e-6)
    assert keys_at_once(torch.tensor([[0.0, 1.0]])) == 1


def test_the_paired_test_is_that_of_student_and_more_careful_where_runs_share_data() -> None:
    differences = [0.1, 0.3, 0.2, 0.05]
    mean, p = paired(differences)
    t = mean / math.sqrt(np.var(differences, ddof=1) / 4)
    assert math.isclose(mean, 0.1625)
    # the integral of Student's density with three degrees of freedom, in closed form
    a = t / math.sqrt(3)
    assert math.isclose(p, 1 - 2 / math.pi * (math.atan(a) + a / (1 + a * a)), rel_tol=1e-6)
    assert paired(differences, shared=1 / 9)[1] > p
    assert paired([0.0, 0.0]) == (0.0, 1.0)
    for alike in ([0.2, 0.2], [0.1 + 0.2, 0.3, 0.3], [0.3]):
        assert math.isnan(paired(alike)[1])


def test_options_come_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOPMEM_DATA", raising=False)
    assert main(["mil", "--quick", "--seeds", "1", "--sets", "musk", "--out", str(tmp_path)]) == 0
    assert {row["set"] for row in table(tmp_path, "mil")} == {"musk"}
    for wrong in (["mil", "--sides", "3"], ["mil", "--quick", "--folds", "1"], ["images", "--quick", "--epochs", "0"]):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "whole number from 1 upward" in capsys.readouterr().err
    assert main(["images", "--quick", "--epochs", "1", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert {row["epoch"] for row in table(tmp_path, "images")} == {"1"}


def test_data_that_are_not_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["images", "--data", str(tmp_path), "--workers", "1", "--out", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "images: expected" in said.splitlines()[-1]
    assert "cifar10-train20k-jpg.tar" in said
