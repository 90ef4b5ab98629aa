"""The landscapes, basins, metastable states and loss curves: what their tables must obey whatever the numbers are."""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the experiments draw")

from experiments import basins, landscapes, losses, metastable
from experiments.published import algorithm_1
from experiments.setting import Setting
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import unit
from hopmem.model.separation import average_loss
from tests.experiment import assert_has_no_gaps, assert_is_small_picture, table

NAMES = {"landscapes": landscapes, "basins": basins, "metastable": metastable, "losses": losses}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every experiment has been run once, quick and without data."""
    folder = tmp_path_factory.mktemp("experiments")
    for module in NAMES.values():
        module.run(Setting(folder, quick=True))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_leaves_a_table_without_gaps_and_a_small_picture(out: Path, name: str) -> None:
    assert_has_no_gaps(table(out, name))
    assert_is_small_picture(out / f"{name}.png")


@pytest.mark.slow
def test_stage_one_sets_memories_apart_and_raises_the_barrier_between_unit_features(out: Path) -> None:
    rows = [row for row in table(out, "landscapes") if row["features"] == landscapes.UNIT]
    for count in {row["memories"] for row in rows}:
        found = {int(row["N"]): row for row in rows if row["memories"] == count}
        assert set(found) == set(landscapes.STEPS)
        last = max(found)
        assert float(found[last]["largest cosine"]) < float(found[0]["largest cosine"])
        assert float(found[last]["barrier"]) > 0 > float(found[0]["barrier"])


@pytest.mark.parametrize("degrees", landscapes.DEGREES)
def test_energy_is_lowest_near_a_memory_where_unit_features_lie_far_apart(degrees: tuple[int, ...]) -> None:
    Xi = landscapes.memories_at(degrees)
    Z = unit(algorithm_1(Xi, steps=5)(Xi))
    Y = landscapes.plane(landscapes.REACH, 81)
    lowest = Y[landscapes.energy(Z, Y).argmin()]
    assert float((Z - lowest).norm(dim=1).min()) < 0.1


def test_the_energy_is_the_one_that_retrieval_lowers() -> None:
    """Its gradient is y − p Z: it vanishes where an update stands still."""
    Z, Y = landscapes.memories_at((0, 90, 200)), landscapes.plane(1.0, 5).requires_grad_(True)
    (slope,) = torch.autograd.grad(landscapes.energy(Z, Y).sum(), Y)
    update = (landscapes.BETA * Y @ Z.T).softmax(1) @ Z
    torch.testing.assert_close(slope, Y - update, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_basins_and_what_lies_between_them_fill_the_plane(out: Path) -> None:
    rows = table(out, "basins")
    assert {(int(row["N"]), float(row["alpha"])) for row in rows} == {
        (N, alpha) for N in basins.STEPS for alpha in basins.ALPHAS
    }
    for row in rows:
        parts = [float(share) for name, share in row.items() if name.startswith("memory") or name == "nowhere"]
        assert len(parts) == basins.COUNT + 1
        assert min(parts) >= 0
        assert sum(parts) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("alpha", basins.ALPHAS)
def test_memories_far_apart_are_reached_from_their_side(alpha: float) -> None:
    Xi = landscapes.memories_at((0, 90, 180, 270))
    ends = basins.reached(Xi, FeatureMap(), torch.cat([Xi, 3 * landscapes.memories_at((30, 100, 200, 300))]), alpha)
    assert ends.tolist() == 2 * [0, 1, 2, 3]


def test_a_state_between_two_close_memories_is_nowhere() -> None:
    Xi = landscapes.memories_at((0, 20, 180))
    assert basins.reached(Xi, FeatureMap(), Xi, 1.0).tolist() == [basins.NOWHERE, basins.NOWHERE, 2]


@pytest.mark.slow
def test_shares_of_sizes_sum_to_one_and_matching_leaves_the_raw_map_alone(out: Path) -> None:
    groups: dict[tuple[str, ...], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in table(out, "metastable"):
        key = (row["seed"], row["data"], row["map"], row["alpha"], row["published beta"])
        groups[key][row["protocol"]][row["size"]] = float(row["share"])
    assert len(groups) == 2 * 3 * 2 * len(metastable.ALPHAS) * len(metastable.BETAS)
    for (_, _, name, *_), found in groups.items():
        assert set(found) == set(metastable.PROTOCOLS)
        for sizes in found.values():
            assert tuple(sizes) == metastable.SIZES
            assert sum(sizes.values()) == pytest.approx(1, abs=1e-4)
        if name == "raw":
            assert found["published"] == found["matched"]


def test_matched_temperature_gives_every_map_the_gap_of_the_raw_one() -> None:
    _, raw, learned, X = next(metastable.trials(Setting(Path(), quick=True), 0))
    beta = {key[1]: key[4] for key, *_ in metastable.measure("", raw, learned, X, updates=1) if key[5] == "matched"}
    gaps = [beta["raw"] * metastable.gap(raw, X), beta["U-Hop+"] * metastable.gap(learned, X)]
    assert gaps[0] == pytest.approx(gaps[1])


@pytest.mark.slow
def test_a_support_only_shrinks_from_the_widest_to_the_sparsest_at_high_temperature(out: Path) -> None:
    """At the smaller β on ten memories softmax spreads over all of them, and sparsemax over fewer."""
    mean: dict[tuple[str, str], float] = defaultdict(float)
    for row in table(out, "metastable"):
        if row["data"] == "synthetic" and row["published beta"] == "0.1" and row["protocol"] == "published":
            mean[row["map"], row["alpha"]] += float(row["share"]) * int(row["size"].lstrip(">"))
    for name in ("raw", "U-Hop+"):
        assert mean[name, "1"] >= mean[name, "2"]


@pytest.mark.slow
def test_every_step_lowers_the_loss_and_none_goes_below_the_simplex(out: Path) -> None:
    curves: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in table(out, "losses"):
        limit = losses.best(row["objective"], int(row["M"]))
        assert float(row["loss"]) >= limit[0] - 1e-4
        assert float(row["largest cosine"]) >= limit[1] - 1e-4
        if row["method"] == "Algorithm 1":
            curves[row["data"], row["M"], row["seed"], row["objective"]].append(float(row["loss"]))
    assert len(curves) == 2 * 2 * 2 * 2
    for curve in curves.values():
        assert len(curve) > 1
        assert all(after <= before for before, after in pairwise(curve))


def test_the_descent_over_the_memories_is_algorithm_1() -> None:
    Xi = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    *_, Z = losses.descent(Xi, average_loss_at_two, steps=4)
    torch.testing.assert_close(Z, unit(algorithm_1(Xi, t=2.0, steps=4)(Xi)), atol=1e-4, rtol=0)


def average_loss_at_two(Z: torch.Tensor) -> torch.Tensor:
    return average_loss(Z, 2.0)


def test_the_smooth_maximum_lies_above_the_largest_cosine_by_no_more_than_its_bound() -> None:
    Z = unit(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))
    top = float((Z @ Z.T).fill_diagonal_(-1).max())
    for tau in (1.0, 0.1, 0.01):
        above = float(losses.smooth_maximum(Z, tau)) - top
        assert 0 <= above <= tau * torch.tensor(9.0 * 8).log()
