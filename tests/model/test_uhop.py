"""Stage I: the simplex where it can be reached, a loss that never rises, and rotations that change no kernel."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.kernel import FeatureMap, Features, Patterns, unit
from hopmem.model.separation import average_loss, separation
from hopmem.model.uhop import RIDGES, Training, _batches, even_rows, learn_average, whiten
from tests.model import randn

SHORT = Training(steps=10)


def loss_under(phi: FeatureMap, Xi: Tensor, t: float = 2.0) -> float:
    return float(average_loss(unit(phi(Xi)).double(), t))


def gram(phi: FeatureMap, Xi: Tensor) -> Tensor:
    Z = unit(phi(Xi))
    return Z @ Z.T


@pytest.mark.parametrize(
    ("M", "d"), [(2, 1), (2, 50), (3, 2), (5, 4), (5, 5), (5, 300), (20, 19), (20, 60), (50, 49), (100, 99), (100, 784)]
)
def test_up_to_d_plus_one_independent_memories_become_a_simplex(M, d):
    Xi = randn(M, d, seed=M + d)
    memory = Features(Patterns(Xi), learn_average(Patterns(Xi), SHORT).phi)
    cosines = memory[slice(0, M)] @ memory[slice(0, M)].T
    assert_close(cosines[~torch.eye(M, dtype=torch.bool)], torch.full((M * (M - 1),), -1 / (M - 1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("extra", [0, 1, 15])
def test_a_feature_space_with_room_for_it_holds_the_simplex(extra):
    Xi, M = randn(12, 30), 12
    phi = learn_average(Patterns(Xi), Training(steps=10, feature_dim=M - 1 + extra)).phi
    assert phi.W.shape == (M - 1 + extra, 30)
    assert separation(unit(phi(Xi))).max_cosine == pytest.approx(-1 / (M - 1), abs=1e-3)


def test_memories_far_from_the_origin_become_a_simplex_too():
    Xi = (randn(20, 64) * 30 + 128).clamp(0, 255).to(torch.uint8)
    patterns = Patterns(Xi, scale=1 / 255)
    phi = learn_average(patterns, SHORT).phi
    assert separation(Features(patterns, phi)).max_cosine == pytest.approx(-1 / 19, abs=1e-3)


@pytest.mark.parametrize(
    ("M", "d", "D"), [(30, 10, None), (30, 10, 3), (30, 10, 25), (8, 20, None), (8, 20, 3), (300, 5, None)]
)
def test_rows_of_the_map_have_length_one(M, d, D):
    W = learn_average(Patterns(randn(M, d)), Training(steps=5, feature_dim=D)).phi.W
    assert W.shape == (D or min(d, M - 1), d)
    assert_close(W.double().norm(dim=1), torch.ones(len(W), dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("D", [2, 6, None, 30])
def test_no_step_raises_the_loss_of_its_batch(D, t):
    learned = learn_average(Patterns(randn(60, 10)), Training(steps=40, feature_dim=D, temperature=t))
    assert learned.steps >= 1
    assert (torch.tensor(learned.curve).diff() <= 0).all()


@pytest.mark.parametrize("D", [2, 6, None, 30])
def test_learning_lowers_the_loss_of_the_raw_and_of_the_whitened_memories(D):
    Xi = randn(60, 10) * torch.logspace(0, 2, 10) + 3
    learned = learn_average(Patterns(Xi), Training(steps=40, feature_dim=D))
    assert loss_under(learned.phi, Xi) < learned.curve[0]
    if D is None or D >= 10:
        assert loss_under(learned.phi, Xi) < loss_under(FeatureMap(), Xi)


def test_without_a_step_the_map_is_the_ridge_whitening_of_lowest_loss():
    Xi = randn(60, 10) * torch.logspace(0, 1, 10)
    learned = learn_average(Patterns(Xi), Training(steps=0))
    assert (learned.curve, learned.steps) == ([], 0)
    U, sizes, _ = np.linalg.svd(Xi.double().numpy() - Xi.double().numpy().mean(0), full_matrices=False)
    codes = [unit(torch.from_numpy(U * sizes / np.sqrt(sizes**2 + ridge * sizes[0] ** 2))) for ridge in RIDGES]
    best = min(codes, key=lambda Z: float(average_loss(Z, 2.0)))
    assert_close(gram(learned.phi, Xi).double(), best @ best.T, atol=1e-5, rtol=0)


def test_more_feature_dimensions_than_the_rank_add_nothing():
    Xi = randn(60, 10)
    small, large = (learn_average(Patterns(Xi), Training(steps=5, feature_dim=D)).phi for D in (10, 30))
    assert_close(gram(small, Xi), gram(large, Xi), atol=1e-4, rtol=0)


def test_a_shift_or_a_scale_of_all_memories_changes_no_feature():
    Xi = randn(30, 8)
    expected = gram(learn_average(Patterns(Xi), SHORT).phi, Xi)
    for moved in (Xi + 5, 1000 * Xi, 0.001 * Xi):
        assert_close(gram(learn_average(Patterns(moved), SHORT).phi, moved), expected, atol=1e-3, rtol=0)


def test_a_second_order_method_in_float64_finds_no_lower_loss_nearby():
    Xi = randn(60, 10)
    learned = learn_average(Patterns(Xi), Training(steps=100)).phi
    centred = Xi.double() - Xi.double().mean(0)
    W = learned.W.double().requires_grad_(True)
    optimizer = torch.optim.LBFGS([W], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = average_loss(unit(centred @ W.T), 2.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert loss_under(learned, Xi) == pytest.approx(float(closure().detach()), abs=1e-5)


@pytest.mark.parametrize("batch_size", [16, 1024])
def test_the_same_seed_gives_the_same_bits(batch_size):
    training = Training(steps=15, batch_size=batch_size, seed=7)
    first, second = (learn_average(Patterns(randn(100, 10)), training) for _ in range(2))
    assert torch.equal(first.phi.W, second.phi.W)
    assert torch.equal(first.phi.b, second.phi.b)
    assert first.curve == second.curve


def test_another_seed_draws_other_batches():
    curves = [learn_average(Patterns(randn(100, 10)), Training(steps=15, batch_size=16, seed=s)).curve for s in (0, 1)]
    assert curves[0] != curves[1]


def test_a_rate_that_is_far_too_large_or_small_still_lowers_the_loss():
    for rate in (1e-4, 1e4):
        curve = learn_average(Patterns(randn(60, 10)), Training(steps=20, learning_rate=rate)).curve
        assert curve[-1] < curve[0]


def test_no_step_is_begun_after_the_time_limit():
    assert learn_average(Patterns(randn(60, 10)), Training(steps=1000, time_limit=-1.0)).steps == 0
    begun = time.monotonic()
    learned = learn_average(Patterns(randn(1000, 200)), Training(steps=10**7, time_limit=0.3))
    assert learned.steps < 10**7
    assert time.monotonic() - begun < 5


def test_a_map_is_learned_even_without_time():
    Xi = randn(20, 30)
    phi = learn_average(Patterns(Xi), Training(time_limit=0.0)).phi
    assert separation(unit(phi(Xi))).max_cosine == pytest.approx(-1 / 19, abs=1e-3)


def test_progress_counts_the_steps():
    told = []
    learned = learn_average(Patterns(randn(60, 10)), Training(steps=12), lambda done, total: told.append((done, total)))
    assert told == [(step, 12) for step in range(1, learned.steps + 1)]


@pytest.mark.parametrize("t", [2.0, 20.0])
def test_a_memory_at_the_mean_of_all_does_not_stop_the_descent(t):
    Xi = randn(40, 6)
    Xi[0] = Xi[1:].mean(0)
    learned = learn_average(Patterns(Xi), Training(steps=20, temperature=t))
    assert learned.steps > 1
    assert learned.phi.W.isfinite().all()


def test_constant_and_repeated_entries_do_no_harm():
    Xi = randn(50, 6)
    Xi = torch.cat([Xi, Xi[:, :2], torch.ones(50, 3)], 1)
    phi = learn_average(Patterns(Xi), SHORT).phi
    assert phi.W.isfinite().all()
    assert len(phi.W) == 6


@pytest.mark.parametrize(("D", "d"), [(1, 5), (2, 5), (7, 7), (20, 5), (200, 50)])
@pytest.mark.parametrize("kind", ["random", "uneven", "zero rows", "one row", "even"])
def test_even_rows_rotates_and_scales_and_nothing_else(kind, D, d):
    W = randn(D, d)
    if kind == "uneven":
        W *= torch.logspace(0, -6, D)[:, None]
    if kind == "zero rows":
        W[D // 2 + 1 :] = 0
    if kind == "one row":
        W[1:] = 0
    if kind == "even":
        W = unit(W)
    evened, W = even_rows(W).double(), W.double()
    assert_close(evened.norm(dim=1), torch.ones(D, dtype=torch.float64), atol=1e-5, rtol=0)
    expected = W.T @ W * (D / W.square().sum())
    assert_close(evened.T @ evened, expected, atol=1e-5 * D, rtol=0)


def test_even_rows_leaves_its_input_as_it_was():
    W = randn(6, 4)
    before = W.clone()
    even_rows(W)
    assert torch.equal(W, before)


@pytest.mark.parametrize(("M", "d"), [(40, 8), (8, 40), (8, 8), (9, 8), (2, 5), (2, 1)])
def test_whitening_is_the_inverse_of_the_covariance(M, d):
    Xi = randn(M, d) * torch.linspace(1, 5, d) + 2
    W = whiten(Patterns(Xi)).map(ridge=0).double()
    C = np.cov(Xi.double().numpy().T.reshape(d, M), bias=True).reshape(d, d)
    inverse = torch.from_numpy(np.linalg.pinv(C, rcond=1e-9, hermitian=True))
    assert_close(W.T @ W, inverse, atol=1e-4 * float(inverse.abs().max()), rtol=0)
    assert len(W) == min(d, M - 1)


def test_both_ways_of_whitening_agree():
    Xi = randn(20, 12)
    through_d = whiten(Patterns(Xi))  # [12, 12]
    through_M = whiten(Patterns(torch.cat([Xi, torch.zeros(20, 30)], 1)))  # [20, 20]
    assert_close(through_d.eigenvalues, through_M.eigenvalues, atol=1e-10, rtol=1e-8)
    for ridge in (0.0, 1e-3, 0.1):
        W, V = through_d.map(ridge), through_M.map(ridge)
        assert_close(V[:, 12:], torch.zeros(12, 30), atol=1e-6, rtol=0)
        assert_close(V[:, :12].T @ V[:, :12], W.T @ W, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("M", "d"), [(5000, 3), (40, 8), (8, 40)])
def test_whitening_knows_the_mean_and_the_spread_of_the_memories(M, d):
    Xi = randn(M, d) + 2
    whitened = whiten(Patterns(Xi))
    assert_close(whitened.mean, Xi.mean(0), atol=1e-5, rtol=0)
    assert float(whitened.eigenvalues.sum()) == pytest.approx(float(Xi.double().var(0, correction=0).sum()), rel=1e-6)
    assert (whitened.eigenvalues.diff() <= 0).all()
    assert_close(whitened.directions @ whitened.directions.T, torch.eye(len(whitened.directions)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("M", "d"), [(4, 2), (2, 4)])
def test_whitening_keeps_at_least_one_direction(M, d):
    assert len(whiten(Patterns(torch.ones(M, d))).eigenvalues) >= 1


def draw_batches(M: int, size: int, count: int) -> list[list[float]]:
    everything = torch.arange(M, dtype=torch.float32)[:, None]  # each memory is its own number
    batches = _batches(Patterns(everything), torch.zeros(1), torch.ones(1, 1), size, torch.Generator().manual_seed(0))
    return [next(batches)[:, 0].tolist() for _ in range(count)]


@pytest.mark.parametrize(("M", "size"), [(10, 3), (100, 60), (100, 99)])
def test_batches_hold_each_memory_once_and_cover_all_in_time(M, size):
    batches = draw_batches(M, size, count=100)
    assert all(len(batch) == len(set(batch)) == size for batch in batches)
    assert set().union(*batches) == set(range(M))


@pytest.mark.parametrize("size", [10, 11, 1000])
def test_a_batch_that_could_hold_all_memories_does(size):
    assert draw_batches(10, size, count=3) == 3 * [[float(mu) for mu in range(10)]]
