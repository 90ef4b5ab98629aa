"""Experiments of the papers' codes, point assignment and retrieval curves, in quick runs on invented data."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="experiments draw")

from experiments import assignment, codes, curves, memory_size, noise_level
from experiments.setting import Setting, bank_of, blots
from tests.experiment import assert_is_small_picture, table

ON_SPHERES = {"codes": codes, "assignment": assignment}
CURVES = {"memory_size": memory_size, "noise_level": noise_level}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    for module in ON_SPHERES.values():
        module.run(Setting(out, quick=True))
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("measured")
    for module in CURVES.values():
        module.run(Setting(out, quick=True))
    return out


@pytest.mark.parametrize("name", ON_SPHERES)
def test_an_experiment_leaves_a_small_picture(results, name):
    assert_is_small_picture(results / f"{name}.png")


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_curves_leave_a_small_picture(measured, name):
    assert_is_small_picture(measured / f"{name}.png")


def test_separations_lie_between_the_bounds_and_reach_the_best_known_code(results):
    rows = table(results, "codes")
    assert [int(row["M"]) for row in rows] == [4, 6, 12]
    for row in rows:
        lower, found, best, proven, upper = (
            float(row[key]) for key in ("lower", "hopmem", "best_known", "fejes_toth", "upper")
        )
        assert lower < found <= best + 1e-6 <= proven + 2e-6 < upper
        assert float(row["share"]) == pytest.approx(1, abs=1e-5)


def test_fejes_toth_is_exact_where_faces_are_equilateral_triangles():
    angles = {3: 120.0, 4: 109.4712206, 6: 90.0, 12: 63.4349488}
    for M, degrees in angles.items():
        assert codes.fejes_toth(M) == pytest.approx(1 - math.cos(math.radians(degrees)), abs=1e-8)


def test_every_point_on_the_circle_has_two_neighbours(results):
    rows = table(results, "assignment")
    assert len(rows) == 15 * len(assignment.WAYS)
    for way in assignment.WAYS:
        counts = [row for row in rows if row["way"] == way]
        assert sum(int(row["adjacent"]) for row in counts) == 6 * int(counts[0]["trials"])
        assert {float(row["chance"]) for row in counts} == {0.4}


def test_the_closed_form_takes_memories_in_the_order_in_which_they_are_stored(results):
    rows = [row for row in table(results, "assignment") if row["way"] == "closed form, in order"]
    names = sorted({row["a"] for row in rows} | {row["b"] for row in rows})
    ring = {frozenset(pair) for pair in pairwise([*names, names[0]])}
    for row in rows:
        expected = int(row["trials"]) if frozenset((row["a"], row["b"])) in ring else 0
        assert int(row["adjacent"]) == expected


def test_every_way_reaches_the_hexagon(results):
    for row in table(results, "assignment_tests"):
        assert float(row["regular"]) == 1.0
        assert 0 < float(row["p"]) <= 1


def test_chance_is_what_combinatorics_says():
    rng, trials = np.random.default_rng(1), 4000
    angles = torch.from_numpy(rng.random((trials, 6)) * 2 * math.pi)
    shares = np.mean([assignment.neighbours(torch.stack([a.cos(), a.sin()], 1)) for a in angles], axis=0)
    assert np.abs(shares - assignment.CHANCE).max() < 5 * math.sqrt(0.24 / trials)
    # A sum of n trials' worth of one trial's variance: n · 15 · 0.24 / (0.4 n) = 9 is the statistic's mean.
    assert assignment.simulated(50, 4000).mean() == pytest.approx(9, abs=0.4)


def test_a_binomial_p_value_is_one_at_the_mode_and_exact_at_the_end():
    assert assignment.binomial(4, 10) == pytest.approx(1)
    assert assignment.binomial(10, 10) == pytest.approx(0.4**10)


@pytest.mark.slow
def test_curves_hold_shares_and_errors_of_every_method(measured):
    for name in CURVES:
        rows = table(measured, name)
        assert {row["data"] for row in rows} == {"mnist", "cifar10"}
        assert {row["method"] for row in rows} == {*curves.BASELINES, curves.UHOP}
        assert all(0 <= float(row["accuracy"]) <= 1 and float(row["error"]) >= 0 for row in rows)


@pytest.mark.slow
def test_the_abscissae_are_those_that_were_asked_for(measured):
    assert {int(row["size"]) for row in table(measured, "memory_size")} == {10, 20}
    levels = {(row["noise"], float(row["level"])) for row in table(measured, "noise_level")}
    assert levels == {("mask", 0.1), ("mask", 0.8), ("gaussian", 3.0)}


def test_the_learned_map_is_measured_on_the_queries_of_the_others():
    raw = bank_of(blots(8, 1)[:, ::4, ::4, 0], 8, seed=0)
    points = list(curves.measure("blots", raw, ["mask:0.2"], ["nearest", curves.DENOISE], samples=40))
    nearest, learned = points
    assert (nearest.method, learned.method) == ("nearest", curves.DENOISE)
    assert learned.accuracy >= nearest.accuracy  # nearest neighbours stand for election too


def test_learning_is_left_out_where_it_takes_long():
    assert curves.DENOISE in memory_size.methods_of("mnist", 100, 0)
    assert curves.UHOP in memory_size.methods_of("mnist", 100, 9)
    assert set(memory_size.methods_of("mnist", 5000, 0)) == set(curves.BASELINES)
