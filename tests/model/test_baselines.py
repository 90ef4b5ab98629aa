"""The baselines against literal sums over the entries that a query knows, and the search for their β."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.baselines import BASELINES, recall, scored, squared_error
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns
from hopmem.model.temperature import COARSE, best_beta, lowest
from tests import reference
from tests.model import randn

BUDGETS = [1, 1 << 28]
NAMES = sorted(BASELINES)
PHI = FeatureMap(randn(12, 12, seed=7) + 3 * torch.eye(12))


def memory_of(Xi: Tensor, name: str) -> Features:
    return Features(Patterns(Xi), PHI if BASELINES[name].learned else FeatureMap())


def partial(X: Tensor, seed: int = 2) -> Tensor:
    hidden = torch.rand(X.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    hidden[:, 3] = False
    hidden[0] = False  # a whole query among partial ones
    return X.masked_fill(hidden, math.nan)


def literal_score(name: str, x: np.ndarray, xi: np.ndarray) -> float:
    """The score of one query and one memory, in sums over the known entries."""
    seen = ~np.isnan(x)
    a, b = x[seen], xi[seen]
    if name in {"modern", "sparse"}:
        return sum(a * b)
    if name == "dam10":
        return math.log(sum(a * b) ** 10)
    if name in {"euclidean", "nearest"}:
        return -0.5 * sum((a - b) ** 2)
    if name == "manhattan":
        return -sum(abs(a - b))
    if name == "uhop":
        W = PHI.W.double().numpy()[:, seen]
        a, b = W @ a, W @ b
    if name == "centred":
        a, b = a - a.mean(), b - b.mean()
    lengths = math.sqrt(sum(a * a)) * math.sqrt(sum(b * b))
    return sum(a * b) / lengths if lengths else 0.0


def scores(name: str, X: Tensor, Xi: Tensor, budget: int = 1 << 28) -> Tensor:
    return torch.cat([S for _, S in scored(BASELINES[name], X, memory_of(Xi, name), budget)])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("knowing", ["all", "some"])
@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_literal_sum_over_the_known_entries(name, knowing, budget):
    Xi, X = randn(40, 12) + 0.5, randn(7, 12, seed=1) + 0.5
    X = partial(X) if knowing == "some" else X
    expected = [[literal_score(name, x, xi) for xi in Xi.double().numpy()] for x in X.double().numpy()]
    assert_close(scores(name, X, Xi, budget), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_the_entmax_of_the_scores_and_read_out_the_patterns(name):
    Xi, X, baseline = randn(40, 12), randn(7, 12, seed=1), BASELINES[name]
    beta = 0.7 if baseline.beta is None else baseline.beta
    found = recall(baseline, beta, X, memory_of(Xi, name), 1 << 28)
    for row, s in enumerate(scores(name, X, Xi)):
        p = np.eye(40)[int(s.argmax())] if name == "nearest" else reference.entmax(beta * s.numpy(), baseline.alpha)
        assert int(found.index[row]) == int(p.argmax())
        assert int(found.support[row]) == int((p > (0 if baseline.alpha > 1 else 0.01)).sum())
        assert_close(found.readout[row].double(), torch.from_numpy(reference.mix(p, Xi)), atol=1e-5, rtol=1e-5)


def test_the_weights_of_dam10_are_tenth_powers_that_sum_to_one():
    Xi, X = randn(20, 12), randn(3, 12, seed=1)
    powers = (X.double() @ Xi.double().T) ** 10
    expected = (powers / powers.sum(1, keepdim=True)) @ Xi.double()
    found = recall(BASELINES["dam10"], 1.0, X, memory_of(Xi, "dam10"), 1 << 28)
    assert_close(found.readout.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [1e-15, 1e15])
@pytest.mark.parametrize("name", NAMES)
def test_patterns_of_any_norm_come_back(name, norm):
    X = torch.eye(12) * norm
    baseline, memory = BASELINES[name], memory_of(X, name)
    beta = best_beta(baseline, X, X, memory, None, 1 << 28).beta
    found = recall(baseline, beta, X, memory, 1 << 28)
    assert found.index.tolist() == list(range(12))
    assert_close(found.readout / norm, X / norm, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_flat_and_zero_rows_have_finite_scores(name):
    Xi = torch.cat([torch.zeros(1, 12), torch.full((1, 12), 0.1), randn(3, 12)])
    assert bool(scores(name, Xi, Xi).isfinite().all())
    assert bool(scores(name, partial(Xi), Xi).isfinite().all())
    if name == "centred":
        assert scores(name, Xi, Xi)[:2].abs().max() == 0


@pytest.mark.parametrize("name", ["euclidean", "manhattan", "centred"])
def test_an_offset_that_all_share_leaves_what_does_not_see_it(name):
    Xi = (randn(40, 12) * 64).round() / 64  # which float32 holds at the offset, too
    X = Xi + (randn(40, 12, seed=1) * 64).round() / 64
    assert_close(scores(name, X + 4096, Xi + 4096), scores(name, X, Xi), atol=1e-6, rtol=1e-6)


def test_the_error_is_the_sum_of_squares_after_clamping():
    readout, clean = torch.tensor([[1.5, -0.5, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert squared_error(readout, clean, (0.0, 1.0)).tolist() == [0.25]
    assert squared_error(readout, clean, None).tolist() == [0.75]


SOUGHT = [name for name in NAMES if BASELINES[name].beta is None]


@pytest.mark.parametrize("level", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", SOUGHT)
def test_no_other_beta_errs_much_less_and_the_best_is_not_at_the_edge(name, level):
    Xi = randn(30, 12)
    clean = Xi.repeat(4, 1)
    X = clean + level * randn(120, 12, seed=1)
    baseline, memory = BASELINES[name], memory_of(Xi, name)
    sharp = best_beta(baseline, X, clean, memory, None, 1 << 28)

    def error(beta: float) -> float:
        return float(squared_error(recall(baseline, beta, X, memory, 1 << 28).readout, clean, None).mean())

    # From the uniform mean to a single pattern; what a billionth of that brings is nothing.
    others = [error(sharp.beta * 2.0**step) for step in range(-12, 13)]
    assert error(sharp.beta) <= min(others) * 1.001 + 1e-7 * max(others)
    assert min(sharp.search.tried) < sharp.search.exponent < max(sharp.search.tried)


@pytest.mark.parametrize("unit", [1 / 255, 1000.0])
@pytest.mark.parametrize("name", SOUGHT)
def test_the_units_of_the_patterns_change_no_answer(name, unit):
    Xi = randn(30, 12)
    X = Xi + randn(30, 12, seed=1)
    readouts = []
    for scale in (1.0, unit):
        memory = memory_of(Xi * scale, name)
        sharp = best_beta(BASELINES[name], X * scale, Xi * scale, memory, None, 1 << 28)
        readouts.append(recall(BASELINES[name], sharp.beta, X * scale, memory, 1 << 28).readout / scale)
    assert_close(readouts[0], readouts[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SOUGHT)
def test_the_budget_does_not_change_the_best_beta(name):
    Xi = randn(30, 12)
    X, memory = Xi + randn(30, 12, seed=1), memory_of(Xi, name)
    one, other = (best_beta(BASELINES[name], X, Xi, memory, None, budget).beta for budget in BUDGETS)
    assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("place", [-2.3, 0.0, 1.72, 3.5, 4.6])
def test_the_lowest_point_of_a_valley_is_found_inside_the_grid_and_beyond(place):
    found = lowest(lambda exponents: [1 + (exponent - place) ** 2 for exponent in exponents])
    assert found.exponent == pytest.approx(place, abs=0.05)


def test_on_a_plain_the_search_stays_inside_the_coarse_grid():
    found = lowest(lambda exponents: [0.0 for _ in exponents])
    assert COARSE[0] < found.exponent < COARSE[-1]


def test_a_slope_without_end_is_not_followed_for_ever():
    for sign in (-1, 1):
        found = lowest(lambda exponents, sign=sign: [math.exp(sign * exponent) for exponent in exponents])
        assert len(found.tried) < 40


@pytest.mark.parametrize("name", NAMES)
def test_one_memory_is_every_answer(name):
    Xi = randn(1, 12)
    baseline, memory = BASELINES[name], memory_of(Xi, name)
    X = randn(5, 12, seed=1)
    beta = best_beta(baseline, X, Xi.expand(5, -1), memory, None, 1 << 28).beta
    found = recall(baseline, beta, X, memory, 1 << 28)
    assert_close(found.readout, Xi.expand(5, -1))
    assert found.support.tolist() == [1] * 5
