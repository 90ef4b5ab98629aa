"""Starts are points on the sphere, apart from each other, with the symmetry or the cosines that they are made for."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.codes.arrangements import changed, kissing, random, simplex
from hopmem.model.codes.symmetry import _group, _simple_roots, symmetric


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def largest(Z: Tensor) -> float:
    assert_close(Z.norm(dim=1), torch.ones(len(Z), dtype=torch.float64), atol=1e-12, rtol=0)
    return float((Z @ Z.T).fill_diagonal_(-9).max())


@pytest.mark.parametrize(("D", "count"), [(3, 12), (4, 24), (5, 40), (6, 72), (7, 126), (8, 240)])
def test_sections_of_the_roots_are_kissing_arrangements(D, count):
    assert largest(kissing(count, D, seeded(D))) == pytest.approx(0.5, abs=1e-12)
    assert largest(kissing(count - 5, D, seeded(D))) == pytest.approx(0.5, abs=1e-12)
    assert kissing(count + 5, D, seeded(D)).shape == (count + 5, D)


@pytest.mark.parametrize("M", [2, 3, 10, 200])
def test_the_simplex_has_equal_cosines_that_sum_to_nothing(M):
    Z = simplex(M)
    assert_close(Z @ Z.T, (torch.eye(M).double() * M - 1) / (M - 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("M", "D"), [(7, 3), (13, 3), (120, 3), (30, 4), (41, 5), (100, 10), (300, 40)])
def test_every_start_keeps_its_points_apart(M, D):
    for seed in range(20):
        Z = symmetric(M, D, seeded(seed))
        for arrangement in (random(M, D, seeded(seed)), Z, changed(Z, seeded(seed))):
            assert arrangement.shape == (M, D)
            assert largest(arrangement) < 1 - 1e-9


@pytest.mark.parametrize("D", [2, 3, 4, 6])
def test_a_group_is_closed_and_orthogonal_and_no_larger_than_the_arrangement(D):
    sizes = set()
    for seed in range(20):
        G = _group(50, D, seeded(seed))
        sizes.add(len(G))
        assert len(G) <= 50
        assert_close(G @ G.mT, torch.eye(D, dtype=torch.float64).expand_as(G), atol=1e-9, rtol=0)
        products = (G[:, None] @ G).flatten(0, 1).flatten(1)
        assert float(torch.cdist(products, G.flatten(1)).amin(1).max()) < 1e-6
    assert len(sizes) > 3


def test_simple_roots_stand_at_the_angles_of_a_finite_reflection_group():
    allowed = {round(-math.cos(math.pi / m), 9) for m in range(2, 8)}
    for seed in range(20):
        roots = _simple_roots(4, seeded(seed))
        cosines = (roots @ roots.T).round(decimals=9)
        assert {abs(value) for value in cosines.diagonal(1).tolist()} <= {abs(value) for value in allowed}
        assert float(cosines.triu(2).abs().max()) == 0


def test_a_change_moves_one_point_and_leaves_the_original_as_it_was():
    Z = random(60, 3, seeded(0))
    before = Z.clone()
    for seed in range(10):
        following = changed(Z, seeded(seed))
        kept = int((following == Z).all(1).sum())
        assert kept == 59
    assert torch.equal(Z, before)
