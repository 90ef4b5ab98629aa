"""Numbers stay honest at their ends: every answer is the float64 equation's, or there is a clear refusal."""

import math

import numpy as np
import pytest
import torch

import hopmem
from hopmem.bank import MemoryBank
from hopmem.model.rows import LARGEST
from tests.conftest import Array
from tests.refusal import raises_refusal

ALPHAS = [1.0, 1.000001, 1.5, 2.0, 3.0]


def bank_of(Xi: Array) -> MemoryBank:
    return MemoryBank.from_patterns(np.asarray(Xi, np.float32))


def drawn(M: int, d: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((M, d))


def mean_by_softmax(Xi: Array, X: Array, beta: float) -> Array:
    Z, Y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (Xi, X))
    S = beta * (Y @ Z.T)
    P = np.exp(S - S.max(1, keepdims=True))
    return (P / P.sum(1, keepdims=True)) @ Xi


def apart(found: Array, expected: Array) -> float:
    return float(np.max(np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)))


@pytest.mark.parametrize("beta", [0.0, 1.0, 30.0, 40.0, 41.0, 1e9])
@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e15, 1e30, 0.2 * LARGEST])
def test_patterns_of_any_length_come_back_as_the_equation_has_them(scale: float, beta: float):
    Xi = np.float64(np.float32(drawn(300, 8) * scale))
    found = hopmem.retrieve(bank_of(Xi), np.float32(Xi[:20]), beta=beta).patterns.double().numpy()
    assert apart(found / scale, mean_by_softmax(Xi / scale, Xi[:20] / scale, beta)) < 1e-5


@pytest.mark.parametrize("beta", [1.0, 39.0, 50.0, 100.0, 200.0, 300.0])
@pytest.mark.parametrize("M", [50, 3000])
def test_lengths_over_sixty_orders_of_magnitude_are_mixed_as_the_equation_has_them(M: int, beta: float):
    lengths = 10.0 ** np.random.default_rng(1).uniform(-30, 30, (M, 1))
    Xi = np.float64(np.float32(drawn(M, 20) * lengths))
    found = hopmem.retrieve(bank_of(Xi), np.float32(Xi[:10]), beta=beta).patterns.double().numpy()
    assert apart(found, mean_by_softmax(Xi, Xi[:10], beta)) < 1e-5


@pytest.mark.parametrize("beta", ["auto", 1000.0, 1e10])
@pytest.mark.parametrize(
    ("M", "d", "offset"), [(64, 300, 3e3), (200, 64, 3e3), (64, 300, 1e6), (200, 64, 1e6), (700, 64, 1e4)]
)
def test_beside_a_common_offset_every_pattern_still_finds_itself(M: int, d: int, offset: float, beta: float | str):
    bank = bank_of(drawn(M, d) + offset)
    answer = hopmem.retrieve(bank, bank.patterns, beta=beta)
    assert answer.index.tolist() == list(range(M))
    assert "no two different" not in answer.beta_source
    assert bool((answer.top_index[:, 0] == answer.index).all())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_partial_queries_tell_patterns_apart_that_float32_does_not(offset: float, alpha: float):
    Xi = drawn(300, 50)
    Xi[1] = Xi[0] + (1e-2 if offset else 1e-4) * drawn(1, 50, seed=2)[0]
    bank = bank_of(Xi + offset)
    Q = bank.patterns[:40].clone()
    Q[:, 25:] = math.nan
    assert hopmem.retrieve(bank, Q, alpha=alpha).index.tolist() == list(range(40))


@pytest.mark.grid(3)
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", [0.0, 1e-45, 1e-9, 1e9, 1e30])
@pytest.mark.parametrize("content", ["drawn", "zeros", "constant", "one", "equal", "halves", "bytes", "tiny"])
def test_no_answer_is_nan_or_infinite(content: str, beta: float, alpha: float):
    rows = {
        "drawn": drawn(60, 7),
        "zeros": np.zeros((9, 7)),
        "constant": np.arange(9.0)[:, None] * np.ones(7),
        "one": drawn(1, 7),
        "equal": np.repeat(drawn(1, 7), 80, 0),
        "halves": np.float16(65504 * np.sign(drawn(20, 7))),
        "bytes": np.uint8(255 * (drawn(20, 7) > 0)),
        "tiny": np.float32(1e-44 * np.sign(drawn(20, 7))),
    }[content]
    rows = rows if rows.dtype != np.float64 else np.float32(rows)
    for known in (1, 0):
        Q = rows[:5].astype(np.float32)
        Q[:, 3:] = Q[:, 3:] if known else np.nan
        answer = hopmem.retrieve(MemoryBank.from_patterns(rows), Q, beta=beta, alpha=alpha, steps=3, top=2)
        numbers = (answer.patterns, answer.confidence, answer.margin, answer.top_weight)
        assert all(bool(each.isfinite().all()) for each in numbers)
        assert not bool(answer.energy.isnan().any())
        assert bool((answer.confidence <= 1 + 1e-6).all())


def test_at_beta_0_the_energy_is_minus_infinity_but_for_a_single_memory():
    assert hopmem.retrieve(bank_of(drawn(9, 4)), np.float32(drawn(2, 4)), beta=0).energy.tolist() == [-math.inf] * 2
    Xi, X = drawn(1, 4), drawn(2, 4, seed=1)
    cosine = (X @ Xi[0]) / np.linalg.norm(X, axis=1) / np.linalg.norm(Xi)
    found = hopmem.retrieve(bank_of(Xi), np.float32(X), beta=0).energy.numpy()
    np.testing.assert_allclose(found, 0.5 - cosine, atol=1e-6)


@pytest.mark.parametrize("entry", [1e33, 3e38])
def test_patterns_too_large_for_their_squares_are_refused(entry: float):
    with raises_refusal(4, "row 1", "1e+32"):
        bank_of(np.array([[1.0, 2.0], [entry, 0.0]]))


@pytest.mark.parametrize("objective", ["denoise", "average", "spherical"])
@pytest.mark.parametrize("scale", [1e-30, 1e20, 1e30])
def test_lengths_that_learning_can_not_bear_are_refused(scale: float, objective: str):
    with raises_refusal(4, "scale them"):
        hopmem.optimize(bank_of(drawn(30, 6) * scale), objective=objective)


@pytest.mark.parametrize("objective", ["average", "spherical"])
def test_where_every_pattern_has_a_copy_beta_follows_from_the_different_ones(objective: str):
    once = drawn(100, 20)
    found = hopmem.optimize(bank_of(np.repeat(once, 2, 0)), objective=objective, steps=5)
    assert found.tuning is not None
    assert found.tuning.beta > 10


@pytest.mark.parametrize("alpha", ALPHAS)
def test_answers_are_the_same_bits_again_and_the_same_to_float32_in_any_company(alpha: float):
    bank, X = bank_of(drawn(700, 30)), torch.from_numpy(np.float32(drawn(50, 30) + drawn(700, 30)[:50]))
    whole = hopmem.retrieve(bank, X, alpha=alpha, beta=20.0)
    assert torch.equal(whole.patterns, hopmem.retrieve(bank, X, alpha=alpha, beta=20.0).patterns)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    for found, rows in (
        (hopmem.retrieve(bank, X[order], alpha=alpha, beta=20.0), order),
        (hopmem.retrieve(bank, X[:1], alpha=alpha, beta=20.0), slice(0, 1)),
        (hopmem.retrieve(bank, X, alpha=alpha, beta=20.0, budget=1 << 18), slice(None)),
    ):
        torch.testing.assert_close(found.patterns, whole.patterns[rows], atol=1e-5, rtol=1e-5)
        assert torch.equal(found.index, whole.index[rows])
        assert torch.equal(found.support, whole.support[rows])
