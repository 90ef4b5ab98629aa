"""Δ, the closest pairs and the average loss against loops over all pairs."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import average_loss, separation
from tests import reference
from tests.model import randn, units


def memories(kind: str) -> torch.Tensor:
    Z = units(60, 7)
    if kind == "duplicates":
        Z[[5, 30, 59]] = Z[2].clone()
    if kind == "zeros":
        Z[[0, 31]] = 0
    if kind == "opposite":
        Z[40] = -Z[3]
    return Z


@cache
def pair_cosines(kind: str) -> dict[tuple[int, int], float]:
    return reference.pair_cosines(memories(kind))


KINDS = ["random", "duplicates", "zeros", "opposite"]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_block = pytest.mark.parametrize("block", [4, 7, 59, 60, 1024])


@every_kind
@every_block
def test_delta_is_the_gap_to_the_closest_memory(block, kind):
    Z = memories(kind)
    assert_close(separation(Z, block=block).delta, torch.from_numpy(reference.separation(Z)), atol=5e-7, rtol=0)


@every_kind
@every_block
def test_mean_cosine_is_the_mean_over_all_pairs(block, kind):
    cosines = list(pair_cosines(kind).values())
    assert abs(separation(memories(kind), block=block).mean_cosine - np.mean(cosines)) < 1e-7


@every_kind
@every_block
@pytest.mark.parametrize("k", [1, 5, 10_000])
def test_the_closest_pairs_are_those_of_largest_cosine(k, block, kind):
    expected = pair_cosines(kind)
    found = separation(memories(kind), closest=k, block=block)
    pairs = [tuple(pair) for pair in found.pairs.tolist()]
    assert len(set(pairs)) == len(pairs) == min(k, len(expected))
    assert_close(
        found.cosines, torch.tensor([expected[pair] for pair in pairs], dtype=torch.float64), atol=1e-12, rtol=0
    )
    best = sorted(expected.values(), reverse=True)[:k]
    assert_close(found.cosines, torch.tensor(best, dtype=torch.float64), atol=2e-7, rtol=0)
    assert found.max_cosine == found.cosines[0]


@every_block
def test_tied_pairs_are_each_named_once(block):
    Z = torch.eye(4).repeat_interleave(3, dim=0)  # 12 pairs of cosine 1, all others 0
    found = separation(Z, closest=12, block=block)
    expected = {(3 * g + a, 3 * g + b) for g in range(4) for a, b in ((0, 1), (0, 2), (1, 2))}
    assert {tuple(pair) for pair in found.pairs.tolist()} == expected
    assert torch.equal(found.cosines, torch.ones(12, dtype=torch.float64))


@pytest.mark.parametrize("angle", [1e-1, 1e-2, 1e-3, 1e-5])
def test_a_small_angle_is_measured_to_its_last_digits(angle):
    Z = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)], [0.0, 1.0]])
    half = reference.distance(reference.features(Z), 0, 1) / 2
    found = separation(Z)
    assert found.pairs.tolist() == [[0, 1]]
    assert found.min_angle_degrees == pytest.approx(2 * math.degrees(math.asin(half)), rel=1e-6)
    assert found.radius == pytest.approx(half, rel=1e-6)


def test_the_closest_of_several_close_pairs_is_found():
    angles = torch.tensor([0.0, 3e-4, 1.0, 1.0 + 1e-5, 2.0, 2.0 + 2e-4], dtype=torch.float64)
    Z = torch.stack([angles.cos(), angles.sin()], 1).float()
    assert separation(Z).pairs.tolist() == [[2, 3]]


@pytest.mark.parametrize("block", [1, 2, 1024])
def test_a_single_memory_has_no_pair(block):
    alone = separation(units(1, 5), block=block)
    assert alone.delta.tolist() == [math.inf]
    assert len(alone.pairs) == len(alone.cosines) == 0
    assert math.isnan(alone.mean_cosine)
    assert math.isnan(alone.loss)


def test_the_angle_and_the_radius_of_a_single_memory_are_nan():
    alone = separation(units(1, 5))
    assert math.isnan(alone.max_cosine)
    assert math.isnan(alone.min_angle_degrees)
    assert math.isnan(alone.radius)


def test_no_pair_is_named_where_none_is_asked_for():
    assert len(separation(units(5, 3), closest=0).pairs) == 0


@pytest.mark.parametrize("M", [2, 3, 5, 8])
def test_the_simplex_has_the_largest_separation(M):
    Z = unit(torch.eye(M) - 1 / M)
    found = separation(Z, t=2.0)
    assert found.max_cosine == pytest.approx(-1 / (M - 1), abs=1e-6)
    assert found.min_angle_degrees == pytest.approx(math.degrees(math.acos(-1 / (M - 1))), abs=0.03)
    assert found.loss == pytest.approx(-2 * 2 * M / (M - 1), abs=1e-5)


@every_kind
@every_block
@pytest.mark.parametrize("t", [0.1, 2.0, 10.0])
def test_the_loss_of_the_pass_is_definition_4(t, block, kind):
    assert separation(memories(kind), t=t, block=block).loss == pytest.approx(
        reference.average_loss(memories(kind), t), abs=2e-5
    )


@every_kind
@pytest.mark.parametrize("t", [0.1, 2.0, 10.0, 100.0])
def test_the_average_loss_is_definition_4(t, kind):
    expected = reference.average_loss(memories(kind), t)
    assert float(average_loss(unit(memories(kind).double()), t)) == pytest.approx(expected, abs=1e-10)
    assert float(average_loss(memories(kind), t)) == pytest.approx(expected, abs=1e-6 * max(1, t))


@pytest.mark.parametrize("t", [2.0, 10.0, 50.0, 200.0])
def test_the_loss_of_the_pass_is_the_average_loss_however_narrow(t):
    Z = torch.eye(6)
    assert separation(Z, t=t).loss == pytest.approx(float(average_loss(Z.double(), t)), rel=1e-6)


def test_the_gradient_of_the_average_loss_is_its_slope():
    Z = units(8, 4).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda Z: average_loss(Z, 2.0), Z)


def test_features_are_measured_as_the_tensor_they_stand_for():
    memory = Features(Patterns(randn(50, 9)), FeatureMap(randn(4, 9, seed=1), randn(4, seed=2)))
    Z = memory[slice(0, 50)]
    found, expected = separation(memory, closest=5, block=16), separation(Z, closest=5)
    assert_close(found.delta, expected.delta, atol=5e-7, rtol=0)
    assert found.pairs.tolist() == expected.pairs.tolist()


def test_measuring_does_not_change_the_memories():
    Z = units(30, 5)
    before = Z.clone()
    separation(Z, closest=3, block=8)
    assert torch.equal(Z, before)


@pytest.mark.parametrize("block", [1, 8, 1024])
def test_progress_rises_to_all_pairs(block):
    told = []
    separation(units(30, 5), block=block, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (900, 900)


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize("kind", ["float", "bytes", "zero", "loud"])
def test_wide_patterns_are_measured_in_parts_as_they_are_whole(rows, kind):
    Xi = {
        "float": randn(rows, 5000),
        "bytes": (randn(rows, 5000).sigmoid() * 255).byte(),
        "zero": randn(rows, 5000) * (torch.arange(rows) > 0)[:, None],
        "loud": randn(rows, 5000) * 1e18,
    }[kind]
    memory = Features(Patterns(Xi, 1 / 255 if kind == "bytes" else 1.0))
    parts, whole = separation(memory, closest=3, block=3, t=2.0), separation(unit(Xi.float()), closest=3, t=2.0)
    assert_close(parts.delta, whole.delta, atol=1e-6, rtol=0)
    assert_close(parts.cosines, whole.cosines, atol=1e-6, rtol=0)
    assert_close(
        torch.tensor([parts.mean_cosine, parts.loss]),
        torch.tensor([whole.mean_cosine, whole.loss]),
        atol=1e-5,
        rtol=1e-5,
        equal_nan=True,
    )
