"""What a bank promises, against the literal bounds, random and adversarial queries, and codes that are known."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from hopmem.model.bounds import (
    beta_for_error,
    exact_fraction,
    guaranteed_radius,
    lemma1_error,
    sharp_error,
    spherical_code_bounds,
)
from hopmem.model.rows import unit
from hopmem.model.separation import separation
from tests import reference
from tests.model import randn, units

BLOCK = 1024


def near_copies(M: int, distance: float) -> Tensor:
    return unit(units(1, 6) + distance * randn(M, 6, seed=1))


def with_duplicates() -> Tensor:
    Z = units(30, 6)
    Z[[3, 17]] = Z[8].clone()
    return Z


def clustered() -> Tensor:
    return unit(units(6, 5).repeat_interleave(5, dim=0) + 0.2 * randn(30, 5, seed=1))


BANKS = {
    "random": units(30, 6),
    "duplicates": with_duplicates(),
    "clusters": clustered(),
    "near copies": near_copies(5, 1e-2),
    "pair": units(2, 4),
    "opposite": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),
    "single": units(1, 4),
}


@cache
def expected_radius(name: str, beta: float, error: float) -> float:
    return reference.guaranteed_radius(BANKS[name], beta, error)


every_bank = pytest.mark.parametrize("name", BANKS)
every_block = pytest.mark.parametrize("block", [1, 7, BLOCK])


@pytest.mark.grid(5)
@every_bank
@every_block
@pytest.mark.parametrize("r", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [1.0, 10.0, 200.0])
def test_the_sharp_error_is_that_of_the_worst_placed_memory(beta, r, block, name):
    Z = BANKS[name]
    expected = max(reference.sharp_error(Z, mu, beta, r) for mu in range(len(Z)))
    assert sharp_error(Z, separation(Z).delta, beta, r, block) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.grid(5)
@every_bank
@every_block
@pytest.mark.parametrize("error", [1e-3, 1e-1, 1.0])
@pytest.mark.parametrize("beta", [1.0, 10.0, 200.0])
def test_the_guaranteed_radius_is_where_the_sharp_bound_meets_the_error(beta, error, block, name):
    Z = BANKS[name]
    found = guaranteed_radius(Z, separation(Z).delta, beta, error, block)
    assert found == pytest.approx(expected_radius(name, beta, error), abs=1e-4)


@pytest.mark.parametrize("error", [1e-6, 1e-4])
def test_a_duplicate_costs_nothing(error):
    Z, beta = units(10, 20), 200.0
    twice = torch.cat([Z, Z[:1]])
    alone, together = (guaranteed_radius(bank, separation(bank).delta, beta, error, BLOCK) for bank in (Z, twice))
    assert alone > 0.1
    assert together == pytest.approx(alone, abs=0.01)


@pytest.mark.parametrize("beta", [2.0, 20.0, 1000.0])
@pytest.mark.parametrize("error", [1e-6, 1e-2, 1.0])
def test_a_single_memory_is_read_out_from_anywhere(error, beta):
    Z = units(1, 4)
    delta = separation(Z).delta
    assert sharp_error(Z, delta, beta, 1.9, BLOCK) == 0
    assert guaranteed_radius(Z, delta, beta, error, BLOCK) == 2


@pytest.mark.parametrize("name", ["random", "clusters", "pair", "opposite", "near copies"])
@pytest.mark.parametrize("error", [1e-3, 1e-1])
@pytest.mark.parametrize("sharpness", [3.0, 20.0])
def test_no_query_within_the_guaranteed_radius_errs_by_more(sharpness, error, name):
    Z = BANKS[name]
    delta = separation(Z).delta
    beta = sharpness * math.log(2 * len(Z) / error) / float(delta.min())
    radius = guaranteed_radius(Z, delta, beta, error, BLOCK)
    assert radius > 0
    Z, draw = Z.double().numpy(), np.random.default_rng(0)
    for mu, z in enumerate(Z):
        directions = [draw.standard_normal(len(z)) for _ in range(3)]
        directions += [other - z for nu, other in enumerate(Z) if nu != mu]  # the worst: straight to another memory
        for direction in directions:
            y = z + radius * direction / np.linalg.norm(direction)
            readout = reference.mix(reference.weights(y, Z, 1.0, beta), Z)
            assert np.linalg.norm(readout - z) <= error * (1 + 1e-3)


@pytest.mark.parametrize("name", ["random", "clusters", "pair"])
def test_the_sharp_error_bounds_the_readout_at_any_distance(name):
    Z, draw = BANKS[name].double().numpy(), np.random.default_rng(1)
    for mu, z in enumerate(Z):
        for r, beta in [(0.05, 5.0), (0.3, 20.0), (1.0, 2.0)]:
            direction = draw.standard_normal(len(z))
            y = z + r * direction / np.linalg.norm(direction)
            error = np.linalg.norm(reference.mix(reference.weights(y, Z, 1.0, beta), Z) - z)
            assert error <= reference.sharp_error(Z, mu, beta, r) + 1e-12


@pytest.mark.parametrize("name", ["random", "clusters", "pair"])
def test_the_guaranteed_radius_grows_with_beta_and_with_the_error(name):
    Z = BANKS[name]
    delta = separation(Z).delta
    by_beta = [guaranteed_radius(Z, delta, beta, 1e-2, BLOCK) for beta in (1.0, 10.0, 100.0, 1000.0, 10_000.0)]
    by_error = [guaranteed_radius(Z, delta, 100.0, error, BLOCK) for error in (1e-6, 1e-4, 1e-2, 1.0)]
    assert by_beta == sorted(by_beta)
    assert by_error == sorted(by_error)
    assert by_beta[-1] <= separation(Z).radius * 1.01  # beyond R_Φ another memory may be closer


@pytest.mark.parametrize("name", ["random", "clusters", "near copies", "pair", "opposite"])
@pytest.mark.parametrize("error", [1e-6, 1e-3, 1e-1, 0.5])
def test_the_beta_for_an_error_suffices_at_half_the_radius(error, name):
    Z = BANKS[name]
    found = separation(Z)
    beta = beta_for_error(float(found.delta.min()), len(Z), error)
    worst = max(reference.sharp_error(Z, mu, beta, found.radius / 2) for mu in range(len(Z)))
    assert worst <= error * (1 + 1e-3)


@pytest.mark.parametrize("delta", [1e-6, 0.005, 0.5, 2.0])
@pytest.mark.parametrize("M", [2, 3, 100, 10**6])
@pytest.mark.parametrize("error", [1e-6, 1e-2, 0.2, 1.0])
def test_the_beta_for_an_error_suffices_wherever_the_others_lie(error, M, delta):
    beta, closest = beta_for_error(delta, M, error), math.sqrt(2 * delta)
    for distance in np.geomspace(closest, 2, 200):  # one memory at the closest distance, all others at another
        others = distance * math.exp(-beta * distance * (distance / 2 - closest / 4))
        first = closest * math.exp(-beta * closest * closest / 4)
        assert first + (M - 2) * others <= error * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in BANKS if name != "single"])
@pytest.mark.parametrize("beta", [0.1, 1.0, 50.0])
def test_lemma_1_is_void_on_unit_features(beta, name):
    found = separation(BANKS[name])
    M = len(BANKS[name])
    assert lemma1_error(float(found.delta.min()), found.radius, M, beta) >= 2 * (M - 1) * (1 - 1e-5)


@pytest.mark.parametrize("delta", [0.0, 0.5, 3.0])
def test_lemma_1_is_the_published_formula(delta):
    assert lemma1_error(delta, 0.3, 7, 2.5) == pytest.approx(reference.lemma1(delta, 0.3, 7, 2.5), rel=1e-12)


def test_lemma_1_is_infinite_beyond_the_largest_float():
    assert lemma1_error(0.0, 1.0, 10, 1e6) == math.inf


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_the_exact_fraction_counts_the_memories_apart_enough(alpha):
    delta = torch.tensor([0.1, 0.2, 0.4, 0.8], dtype=torch.float64)
    for count, threshold in enumerate([0.9, 0.5, 0.3, 0.15, 0.05]):
        assert exact_fraction(delta, alpha, beta=1 / (threshold * (alpha - 1))) == count / 4


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1e9), (2.0, 0.0)])
def test_nothing_is_exact_under_softmax_or_without_beta(alpha, beta):
    assert exact_fraction(torch.ones(3), alpha, beta) == 0


def test_a_single_memory_is_exact():
    assert exact_fraction(separation(units(1, 4)).delta, alpha=1.5, beta=1e-6) == 1


@pytest.mark.parametrize(("M", "D"), [(2, 2), (5, 2), (12, 3), (100, 10), (3, 50)])
def test_spherical_bounds_are_the_published_formulas(M, D):
    gamma = math.gamma
    lower = 0.5 * (math.sqrt(math.pi) / M * gamma((D + 1) / 2) / gamma(D / 2 + 1)) ** (2 / (D - 1))
    upper = 2 * (2 * math.sqrt(math.pi) / M * gamma((D + 1) / 2) / gamma(D / 2)) ** (1 / (D - 1))
    assert spherical_code_bounds(M, D) == pytest.approx((lower, upper), rel=1e-9)


@pytest.mark.parametrize("M", [2, 10, 1000, 10**6, 10**12])
@pytest.mark.parametrize("D", [2, 3, 10, 784, 10**5])
def test_the_lower_spherical_bound_is_under_the_upper(D, M):
    lower, upper = spherical_code_bounds(M, D)
    assert 0 < lower <= upper


def simplex(M: int) -> Tensor:
    return unit(torch.eye(M) - 1 / M)


def cross_polytope(D: int) -> Tensor:
    return torch.cat([torch.eye(D), -torch.eye(D)])


def polygon(M: int) -> Tensor:
    angles = 2 * math.pi * torch.arange(M) / M
    return torch.stack([angles.cos(), angles.sin()], 1)


def icosahedron() -> Tensor:
    golden = (1 + math.sqrt(5)) / 2
    corners = [(0, a, b * golden) for a in (1, -1) for b in (1, -1)]
    return unit(torch.tensor([corner[i:] + corner[:i] for corner in corners for i in range(3)]))


CODES = [
    *((simplex(M), D) for M, D in [(2, 2), (3, 2), (4, 3), (4, 10), (10, 9), (100, 99), (100, 784)]),
    *((cross_polytope(D), D) for D in (2, 3, 10, 100)),
    *((polygon(M), 2) for M in (3, 4, 7, 50)),
    (icosahedron(), 3),
]


@pytest.mark.parametrize(("Z", "D"), CODES, ids=[f"{len(Z)} in R{D}" for Z, D in CODES])
def test_the_best_codes_that_are_known_lie_between_the_spherical_bounds(Z, D):
    lower, upper = spherical_code_bounds(len(Z), D)
    assert lower <= float(separation(Z).delta.min()) <= upper


@pytest.mark.parametrize(("M", "D"), [(1, 5), (0, 5), (5, 1)])
def test_spherical_bounds_are_silent_where_the_proposition_is(M, D):
    assert all(math.isnan(bound) for bound in spherical_code_bounds(M, D))


@every_block
def test_progress_rises_to_all_pairs(block):
    told, Z = [], BANKS["random"]
    sharp_error(Z, separation(Z).delta, 5.0, 0.1, block, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (900, 900)
