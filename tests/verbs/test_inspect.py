"""Inspect: every number against brute force in NumPy."""

import math

import numpy as np
import pytest
import torch

import hopmem
from hopmem.bank import MemoryBank
from tests import reference
from tests.refusal import raises_refusal
from tests.verbs import randn

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def bank_of(M: int, d: int, *, learned: bool) -> MemoryBank:
    bank = MemoryBank.from_patterns(randn(M, d), [f"n{row}" for row in range(M)])
    return hopmem.optimize(bank, objective="average", steps=3, feature_dim=d - 1) if learned else bank


def features(bank: MemoryBank) -> np.ndarray:
    return reference.features(bank.patterns, bank.phi.W, bank.phi.b)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("M", "d"), [(2, 3), (13, 6), (60, 5)])
@pytest.mark.parametrize("budget", [1, 1 << 28])
def test_the_separation_is_that_of_brute_force(M, d, learned, budget):
    bank = bank_of(M, d, learned=learned)
    result = hopmem.inspect(bank, budget=budget)
    maps = {"raw": reference.features(bank.patterns)} | ({"learned": features(bank)} if learned else {})
    assert (result.separation["learned"] is not None) == learned
    for name, Z in maps.items():
        found, delta = result.separation[name], reference.separation(Z)
        closest = max(reference.pair_cosines(Z).values())
        distances = [reference.distance(Z, a, b) for a in range(M) for b in range(a)]
        assert found.min == pytest.approx(delta.min(), abs=1e-5)
        assert found.mean == pytest.approx(delta.mean(), abs=1e-5)
        assert found.max_cosine == pytest.approx(closest, abs=1e-5)
        assert math.cos(math.radians(found.min_angle_degrees)) == pytest.approx(closest, abs=1e-5)
        assert found.radius == pytest.approx(min(distances) / 2, abs=1e-4)
        expected = np.quantile(delta, QUANTILES, method="nearest")
        assert [float(q) for q in found.quantiles] == list(QUANTILES)
        np.testing.assert_allclose(list(found.quantiles.values()), expected, atol=1e-5)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "error"), [(1.0, 20.0, 1e-3), (1.5, 3.0, 0.1), (2.0, 50.0, 1e-6)])
def test_the_bounds_are_those_of_the_literal_formulas(alpha, beta, error, learned):
    bank = bank_of(14, 6, learned=learned)
    found = hopmem.inspect(bank, alpha=alpha, beta=beta, error=error).bounds
    Z, M, D = features(bank), 14, bank.feature_dimension
    delta = reference.separation(Z)
    radius = math.sqrt(2 * delta.min()) / 2
    sharp = max(reference.sharp_error(Z, mu, beta, radius / 2) for mu in range(M))
    gamma = math.gamma
    lower = 0.5 * (math.sqrt(math.pi) / M * gamma((D + 1) / 2) / gamma(D / 2 + 1)) ** (2 / (D - 1))
    upper = 2 * (2 * math.sqrt(math.pi) / M * gamma((D + 1) / 2) / gamma(D / 2)) ** (1 / (D - 1))
    assert found.lower == pytest.approx(lower, rel=1e-9)
    assert found.upper == pytest.approx(upper, rel=1e-9)
    assert found.lemma1_error == pytest.approx(reference.lemma1(delta.min(), radius, M, beta), rel=1e-2)
    assert found.error == pytest.approx(sharp, rel=1e-2)
    enough = found.beta_for_error
    assert max(reference.sharp_error(Z, mu, enough, radius / 2) for mu in range(M)) <= error * 1.01
    assert found.guaranteed_radius == pytest.approx(reference.guaranteed_radius(Z, beta, error), abs=1e-3)
    exact = np.mean(delta >= 1 / (beta * (alpha - 1))) if alpha > 1 else 0
    assert found.exact_fraction == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("closest", [0, 1, 5, 1000])
def test_the_closest_pairs_are_named_in_order(closest, learned):
    bank = bank_of(15, 6, learned=learned)
    pairs = sorted(reference.pair_cosines(features(bank)).items(), key=lambda pair: -pair[1])[:closest]
    found = hopmem.inspect(bank, closest=closest).closest_pairs
    assert [(pair.a, pair.b) for pair in found] == [(f"n{a}", f"n{b}") for (a, b), _ in pairs]
    np.testing.assert_allclose([pair.cosine for pair in found], [cosine for _, cosine in pairs], atol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 4.0), (1.5, 4.0), (2.0, 1.0), (1.0, 0.0), (1.0, 1e4)])
def test_metastable_states_are_counted_by_the_memories_that_share_them(alpha, beta):
    bank = bank_of(25, 6, learned=False)
    found = hopmem.inspect(bank, alpha=alpha, beta=beta).metastable
    Z, expected = features(bank), dict.fromkeys([*(str(size) for size in range(11)), "more"], 0)
    for z in Z:
        size = int((reference.weights(z, Z, alpha, beta) > (0.01 if alpha == 1 else 0)).sum())
        expected[str(size) if size <= 10 else "more"] += 1
    assert found == expected
    assert sum(found.values()) == 25


def test_of_a_large_bank_a_thousand_patterns_are_put_to_it():
    found = hopmem.inspect(MemoryBank.from_patterns(randn(1010, 40))).metastable
    assert sum(found.values()) == 1000


@pytest.mark.parametrize(("alpha", "exact"), [(1.0, 0.0), (1.5, 1.0)])
def test_one_pattern_has_no_neighbour(alpha, exact):
    result = hopmem.inspect(MemoryBank.from_patterns(torch.ones(1, 3), ["only"]), alpha=alpha)
    assert all(value in (None, []) for value in vars(result.separation["raw"]).values())
    assert (result.stored, result.appended, result.self_test.accuracy) == (None, None, 1.0)
    assert (result.bounds.guaranteed_radius, result.bounds.exact_fraction) == (2.0, exact)
    assert result.bounds.error is None
    assert result.closest_pairs == result.duplicates == []
    assert result.metastable["1"] == 1


def test_opposite_patterns_are_as_far_apart_as_can_be():
    result = hopmem.inspect(MemoryBank.from_patterns(torch.tensor([[3.0, 0.0], [-1.0, 0.0]])))
    assert result.separation["raw"].min_angle_degrees == pytest.approx(180)
    assert result.separation["raw"].radius == pytest.approx(1)
    assert [(pair.a, pair.b, pair.cosine) for pair in result.closest_pairs] == [("0", "1", -1.0)]


def test_patterns_of_one_entry_are_inspected():
    result = hopmem.inspect(MemoryBank.from_patterns(torch.tensor([[2.0], [-1.0]])))
    assert (result.bounds.lower, result.bounds.upper) == (None, None)  # the sphere of R¹ is two points
    assert result.separation["raw"].min == pytest.approx(2)


def test_copies_are_named_and_promise_nothing():
    X = randn(4, 5)[[0, 1, 0, 2, 1, 3]]
    result = hopmem.inspect(MemoryBank.from_patterns(X, list("abcdef")), alpha=2.0, beta=100.0)
    assert result.duplicates == [["a", "c"], ["b", "e"]]
    assert result.separation["raw"].radius == pytest.approx(0, abs=1e-3)
    assert result.separation["raw"].max_cosine == pytest.approx(1)
    assert {(pair.a, pair.b) for pair in result.closest_pairs[:2]} == {("a", "c"), ("b", "e")}
    assert result.bounds.exact_fraction == pytest.approx(2 / 6)


@pytest.mark.parametrize("X", [torch.zeros(3, 4), torch.ones(5, 2), torch.cat([torch.zeros(1, 3), torch.eye(3)])])
def test_zero_and_constant_patterns_give_finite_numbers_or_none(X):
    result = hopmem.inspect(MemoryBank.from_patterns(X))
    numbers = [*vars(result.bounds).values()]
    numbers += [value for value in vars(result.separation["raw"]).values() if not isinstance(value, (dict, list))]
    assert all(number is None or math.isfinite(number) for number in numbers)
    assert sum(result.metastable.values()) == len(X)


def test_what_a_bank_is_is_said():
    result = hopmem.inspect(MemoryBank.from_patterns(torch.rand(6, 2, 3)))
    assert (result.patterns, result.dimension, result.shape, result.feature_dimension) == (6, 6, [2, 3], 6)
    assert result.objective == "raw"
    learned = hopmem.inspect(bank_of(6, 5, learned=True))
    assert (learned.objective, learned.feature_dimension) == ("average", 4)


@pytest.mark.parametrize(
    "options",
    [
        {"closest": -1},
        {"error": 0.0},
        {"error": -1.0},
        {"error": math.nan},
        {"error": math.inf},
        {"alpha": 0.5},
        {"beta": -1.0},
    ],
)
def test_options_out_of_their_range_are_usage_errors(options):
    with raises_refusal(2):
        hopmem.inspect(bank_of(4, 5, learned=False), **options)
