"""α-entmax against a bisection on the threshold, the `entmax` package, and what a maximiser must obey."""

import numpy as np
import pytest
import torch
from entmax import entmax15, entmax_bisect, sparsemax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.entmax import conjugate, entmax
from tests import reference
from tests.model import randn

ALPHAS = [1.0, 1.0001, 1.1, 1.3, 1.5, 1.9, 2.0, 2.5, 3.0, 4.0]
FEW = [1.0, 1.1, 1.5, 2.0, 3.0]
FLOAT32 = {"atol": 2e-7, "rtol": 1e-6}
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
few_alphas = pytest.mark.parametrize("alpha", FEW)


def by_threshold(S: Tensor, alpha: float) -> Tensor:
    return torch.stack([torch.from_numpy(reference.entmax(row.numpy(), alpha)) for row in S.double()])


def by_package(S: Tensor, alpha: float) -> Tensor:
    S = S.double() - S.double().amax(-1, keepdim=True)  # with a large offset the package loses digits
    exact = {1.0: torch.softmax, 1.5: entmax15, 2.0: sparsemax}
    return exact[alpha](S, dim=-1) if alpha in exact else entmax_bisect(S, alpha, dim=-1, n_iter=64)


def assert_agrees_with_both(S: Tensor, alpha: float) -> None:
    P = entmax(S, alpha)
    assert P.dtype == S.dtype
    assert_close(P.double(), by_threshold(S, alpha), **FLOAT32)
    assert_close(P.double(), by_package(S, alpha), **FLOAT32)


@every_alpha
@pytest.mark.parametrize("M", [1, 2, 3, 10, 1000, 100_000])
def test_agrees_with_both_at_any_length(M, alpha):
    assert_agrees_with_both(randn(1, M, seed=M), alpha)


@pytest.mark.slow
@every_alpha
def test_agrees_with_both_on_a_million_entries(alpha):
    assert_agrees_with_both(randn(1, 1_000_000), alpha)


@every_alpha
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 10.0, 1000.0])
def test_agrees_with_both_at_any_scale(scale, alpha):
    assert_agrees_with_both(scale * randn(4, 300, seed=1), alpha)


@every_alpha
@pytest.mark.parametrize("offset", [-1e6, -1e3, 1e3, 1e6])
def test_agrees_with_both_at_any_offset(offset, alpha):
    assert_agrees_with_both(10 * randn(4, 300, seed=2) + offset, alpha)


@every_alpha
def test_agrees_with_both_on_ties(alpha):
    assert_agrees_with_both(randn(8, 60, seed=3).round(), alpha)


@every_alpha
def test_float64_keeps_float64_accuracy(alpha):
    S = 3 * randn(8, 100, seed=4).double()
    assert_close(entmax(S, alpha), by_threshold(S, alpha), atol=1e-11, rtol=1e-9)


@pytest.mark.grid(7)
@every_alpha
@pytest.mark.parametrize("M", [1, 2, 7, 100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", [-1e6, 0.0, 1e6])
def test_equal_scores_get_equal_weights(level, M, alpha):
    P = entmax(torch.full((1, M), level), alpha)
    assert_close(P, torch.full_like(P, 1 / M), atol=0, rtol=1e-5)
    assert P.unique().numel() == 1


@every_alpha
@pytest.mark.parametrize("M", [2, 1000, 100_000])
def test_a_score_far_above_the_rest_takes_all_the_weight(M, alpha):
    S = torch.zeros(1, M)
    S[0, M // 2] = 1e5
    assert torch.equal(entmax(S, alpha), (S > 0).float())


@pytest.mark.parametrize("alpha", [alpha for alpha in ALPHAS if alpha >= 1.1])
def test_is_one_hot_exactly_from_a_lead_of_one_over_alpha_minus_one(alpha):
    lead = 1 / (alpha - 1)
    inside, outside = (torch.tensor([share * lead, 0.0, 0.0], dtype=torch.float64) for share in (1 - 1e-3, 1 + 1e-3))
    assert torch.equal(entmax(outside, alpha), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    assert (entmax(inside, alpha)[1:] > 0).all()


@every_alpha
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_scores_within_a_row_get_the_same_bits(dtype, alpha):
    S = randn(5, 40).to(dtype)
    P = entmax(torch.cat([S, S], dim=-1), alpha)
    assert torch.equal(P[:, :40], P[:, 40:])


@every_alpha
def test_is_deterministic(alpha):
    S = 5 * randn(16, 3000, seed=5)
    assert torch.equal(entmax(S, alpha), entmax(S.clone(), alpha))


@every_alpha
def test_a_row_does_not_depend_on_the_rows_beside_it(alpha):
    S = torch.cat([1e-6 * randn(3, 50), randn(3, 50), 1000 * randn(3, 50), torch.zeros(1, 50)])
    assert_close(entmax(S, alpha), torch.stack([entmax(row, alpha) for row in S]), atol=1e-7, rtol=1e-6)


@every_alpha
def test_leading_axes_are_batches(alpha):
    S = randn(2, 3, 4, 9)
    assert_close(entmax(S, alpha).reshape(24, 9), entmax(S.reshape(24, 9), alpha), atol=1e-7, rtol=1e-6)


@every_alpha
def test_does_not_change_its_input(alpha):
    S = randn(3, 20)
    before = S.clone()
    entmax(S, alpha)
    assert torch.equal(S, before)


@every_alpha
def test_a_shift_that_float32_holds_changes_nothing(alpha):
    S = (randn(5, 200, seed=6) * 64).round() / 64  # so that S + 1024 is exact
    assert torch.equal(entmax(S + 1024, alpha), entmax(S, alpha))


@pytest.mark.parametrize("alpha", [*ALPHAS, 1 + 1e-9, 1 + 1e-6, 10.0, 100.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1000.0])
def test_weights_are_a_distribution_in_the_order_of_the_scores(scale, alpha):
    S = (scale * randn(6, 500, seed=7)).sort(dim=-1).values
    P = entmax(S, alpha)
    assert (P >= 0).all()
    assert (P.diff(dim=-1) >= 0).all()
    assert_close(P.double().sum(-1), torch.ones(6, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [1 + 1e-12, 1 + 1e-9, 1 + 1e-7])
def test_tends_to_softmax_as_alpha_tends_to_one(alpha):
    S = 5 * randn(6, 1000, seed=8)
    assert_close(entmax(S, alpha), torch.softmax(S, -1), atol=1e-6, rtol=1e-5)


def test_a_larger_alpha_never_widens_the_support():
    S = 2 * randn(20, 200, seed=9)
    supports = torch.stack([(entmax(S, alpha) > 0).sum(-1) for alpha in (1.1, 1.3, 1.5, 2.0, 2.5, 4.0)])
    assert (supports.diff(dim=0) <= 0).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    s=arrays(np.float32, st.integers(1, 40), elements=st.floats(-10_000, 10_000, width=32)),
    alpha=st.sampled_from(ALPHAS) | st.floats(1.001, 4.0),
)
def test_any_row_gets_the_weights_of_the_threshold_equation(s, alpha):
    S = torch.from_numpy(s)[None]
    P = entmax(S, alpha)
    assert_close(P.double(), by_threshold(S, alpha), **FLOAT32)
    assert abs(float(P.double().sum()) - 1) < 1e-6


@every_alpha
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_conjugate_is_the_value_of_the_maximum(scale, alpha):
    S = scale * randn(6, 50, seed=10).double()
    expected = torch.tensor([reference.conjugate(row.numpy(), alpha) for row in S], dtype=torch.float64)
    assert_close(conjugate(S, entmax(S, alpha), alpha), expected, atol=1e-9, rtol=1e-9)


@every_alpha
def test_no_other_distribution_exceeds_the_conjugate(alpha):
    s = 2 * randn(12, seed=11).double()
    best = float(conjugate(s, entmax(s, alpha), alpha))
    others = np.random.default_rng(0).dirichlet(np.full(12, 0.3), size=500)
    assert all(q @ s.numpy() + reference.entropy(q, alpha) <= best + 1e-12 for q in others)


@every_alpha
def test_the_gradient_of_the_conjugate_is_the_entmax(alpha):
    s, h = randn(15, seed=12).double(), 1e-5

    def value(s: Tensor) -> Tensor:
        return conjugate(s, entmax(s, alpha), alpha)

    steps = h * torch.eye(15, dtype=torch.float64)
    slope = (value(s + steps) - value(s - steps)) / (2 * h)
    assert_close(slope, entmax(s, alpha), atol=1e-6, rtol=0)


@every_alpha
def test_the_conjugate_is_convex(alpha):
    A, B = 3 * randn(2, 50, 20, seed=13).double()
    value_A, value_B, between = (conjugate(S, entmax(S, alpha), alpha) for S in (A, B, 0.3 * A + 0.7 * B))
    assert (between <= 0.3 * value_A + 0.7 * value_B + 1e-12).all()


@few_alphas
def test_the_conjugate_moves_with_a_shift_of_the_scores(alpha):
    S = randn(5, 30, seed=14).double()
    P = entmax(S, alpha)
    assert_close(conjugate(S + 7, P, alpha), conjugate(S, P, alpha) + 7, atol=1e-12, rtol=1e-12)


@few_alphas
def test_the_conjugate_is_finite_where_weights_are_zero(alpha):
    S = torch.tensor([[1e6, -1e6, 0.0], [3e38, 0.0, -3e37]])
    assert_close(conjugate(S, entmax(S, alpha), alpha), S.amax(-1), atol=0, rtol=1e-6)
