"""Spherical codes: the optima that theory knows, the best known ones, and a search that can be stopped and resumed."""

import csv
import itertools
import math
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hopmem.model.codes.search import Code, Stage, best_code
from hopmem.model.separation import separation

TAMMES = Path(os.environ.get("HOPMEM_DATA", "")) / "tammes3d.csv"


SHORT = {"restarts": 1, "steps": 6}


def top(points: Tensor) -> float:
    return separation(points).max_cosine


def angle(code: Code) -> float:
    assert code.finished
    lengths = code.points.norm(dim=1)
    assert float((lengths - 1).abs().max()) < 1e-12
    assert code.points.dtype == torch.float64
    assert code.curve[-1] == pytest.approx(top(code.points), abs=1e-12)
    return math.degrees(math.acos(code.curve[-1]))


@pytest.mark.parametrize(
    ("M", "D"), [(2, 1), (2, 3), (3, 2), (4, 3), (4, 100), (9, 8), (20, 19), (100, 99), (300, 299), (300, 1000)]
)
def test_up_to_d_plus_one_points_are_a_simplex(M, D):
    code = best_code(M, D)
    assert code.points.shape == (M, D)
    assert math.cos(math.radians(angle(code))) == pytest.approx(-1 / (M - 1), abs=1e-9)


@pytest.mark.parametrize(
    ("M", "D"), [(5, 3), (6, 3), (6, 4), (8, 4), (12, 10), (20, 10), (150, 100), (200, 100), (400, 200)]
)
def test_up_to_2d_points_are_at_right_angles(M, D):
    code = best_code(M, D)
    assert code.points.shape == (M, D)
    assert angle(code) == pytest.approx(90, abs=1e-9)


@pytest.mark.parametrize("M", [5, 6, 7, 50, 500])
def test_points_on_a_circle_are_a_regular_polygon(M):
    assert angle(best_code(M, 2)) == pytest.approx(360 / M, rel=1e-9)


@pytest.mark.parametrize("M", [3, 10, 11])
def test_more_than_two_points_on_a_line_must_coincide(M):
    code = best_code(M, 1)
    assert code.curve == [1.0]
    assert set(code.points.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("D", [1, 2, 7])
def test_one_point_is_as_good_as_any(D):
    code = best_code(1, D)
    assert code.finished
    assert code.points.shape == (1, D)
    assert float(code.points.norm()) == 1


@pytest.mark.parametrize(
    ("M", "D", "degrees"),
    [
        (7, 3, 77.8695421),  # Schütte, van der Waerden, 1951
        (12, 3, math.degrees(math.acos(1 / math.sqrt(5)))),  # the icosahedron
        (10, 4, math.degrees(math.acos(1 / 6))),  # the Petersen code
        pytest.param(16, 5, math.degrees(math.acos(1 / 5)), marks=pytest.mark.slow),  # the Clebsch code
    ],
)
def test_a_few_starts_find_small_optima(M, D, degrees):
    assert angle(best_code(M, D, restarts=1)) == pytest.approx(degrees, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("M", "D", "cosine"),
    [
        *[(24, 4, 0.5), (40, 5, 0.5), (72, 6, 0.5), (126, 7, 0.5), (240, 8, 0.5)],  # roots of D4, D5, E6, E7, E8
        *[(27, 6, 1 / 4), (56, 7, 1 / 3)],  # those of E8 around one, and around two
        (120, 4, (1 + math.sqrt(5)) / 4),  # the 600-cell
    ],
)
def test_kissing_and_other_regular_arrangements_are_found(M, D, cosine):
    assert math.cos(math.radians(angle(best_code(M, D)))) == pytest.approx(cosine, abs=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not TAMMES.is_file(), reason="HOPMEM_DATA names no folder with tammes3d.csv")
def test_points_in_space_lie_as_far_apart_as_the_best_known():
    lines = [line for line in TAMMES.read_text().splitlines() if not line.startswith("#")]
    best = {
        int(row["M"]): float(row["angle_degrees"]) for row in list(csv.DictReader(lines))[::3]
    }  # the rest takes long
    ratios = {M: angle(best_code(M, 3)) / known for M, known in best.items()}
    assert min(ratios.values()) > 0.999
    assert min(ratio for M, ratio in ratios.items() if M <= 24) > 0.99999
    assert sum(ratios.values()) / len(ratios) > 0.9997


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first, second, other = (best_code(9, 3, **SHORT, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.points, second.points)
    assert first.curve == second.curve
    assert not torch.equal(first.points, other.points)


def test_the_largest_cosine_falls_to_the_end():
    told = []
    code = best_code(20, 3, **SHORT, progress=lambda *what: told.append(what))
    assert told == [(stage, code.stages, cosine, 1 - cosine) for stage, cosine in enumerate(code.curve, 1)]
    assert code.curve[-1] == pytest.approx(min(code.curve), abs=1e-9)
    assert code.stages == code.stage.number == len(code.curve)


@pytest.mark.parametrize("asked", [0, 1, 50, 150])
def test_a_search_that_was_stopped_ends_as_if_it_had_not_been(asked):
    calls = iter(range(10**9))
    stopped = best_code(11, 3, **SHORT, halt=lambda: next(calls) >= asked)
    assert not stopped.finished
    assert stopped.stages == stopped.stage.number == len(stopped.curve)
    assert float((stopped.points.norm(dim=1) - 1).abs().max()) < 1e-12
    resumed, straight = best_code(11, 3, **SHORT, start=stopped.stage), best_code(11, 3, **SHORT)
    assert torch.equal(resumed.points, straight.points)
    assert stopped.curve + resumed.curve == straight.curve
    assert resumed.finished


def test_a_finished_search_has_nothing_to_resume():
    code = best_code(7, 3, **SHORT)
    again = best_code(7, 3, **SHORT, start=code.stage)
    assert (again.curve, again.finished) == ([], True)
    assert torch.equal(again.points, code.points)


def test_halt_is_asked_often():
    asked = []

    def halt() -> bool:
        asked.append(time.monotonic())
        return len(asked) > 25

    assert not best_code(600, 12, halt=halt).finished
    assert max(after - before for before, after in itertools.pairwise(asked)) < 5


def test_a_small_budget_is_kept_and_costs_no_quality():
    large, small = (best_code(30, 4, **SHORT, budget=budget) for budget in (1 << 28, 10_000))
    assert angle(small) == pytest.approx(angle(large), abs=2)


def test_more_points_than_any_table_lists():
    code = best_code(200, 5, **SHORT)
    assert code.points.shape == (200, 5)
    assert top(code.points) < 0.85


def test_rounds_that_brought_nothing_are_remembered_over_an_interruption():
    straight = best_code(9, 3, restarts=8)
    resumed = best_code(9, 3, restarts=8, start=Stage(straight.points[None], straight.stages - 1, idle=4))
    assert resumed.stage.idle == 4
    assert resumed.finished
