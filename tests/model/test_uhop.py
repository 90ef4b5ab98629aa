"""Stage I: the simplex where it can be reached, a loss that never rises, and rotations that change no kernel."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import average_loss, separation
from hopmem.model.uhop import Training, drawn, even_rows, learn_average
from hopmem.model.whitening import RIDGES
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


def halting(after: int) -> Callable[[], bool]:
    asked = iter(range(after))
    return lambda: next(asked, None) is None


def test_a_descent_that_is_halted_at_once_returns_the_warm_start():
    patterns = Patterns(randn(60, 10))
    halted = learn_average(patterns, SHORT, halt=lambda: True)
    warm = learn_average(patterns, replace(SHORT, steps=0))
    assert (halted.finished, halted.steps, warm.finished) == (False, 0, True)
    assert torch.equal(halted.phi.W, warm.phi.W)


def test_a_halted_descent_returns_the_best_map_so_far():
    Xi = randn(60, 10) * torch.logspace(0, 2, 10)
    halted = learn_average(Patterns(Xi), Training(steps=40), halt=halting(after=7))
    assert (halted.finished, halted.steps, len(halted.curve)) == (False, 7, 7)
    assert loss_under(halted.phi, Xi) < halted.curve[0]


@pytest.mark.parametrize("stop", [0, 1, 5, 12, 15])
@pytest.mark.parametrize("batch_size", [16, 1024])
def test_an_interrupted_descent_ends_with_the_same_bits(batch_size, stop):
    patterns, training = Patterns(randn(100, 10)), Training(steps=15, batch_size=batch_size, seed=7)
    whole = learn_average(patterns, training)
    part = learn_average(patterns, training, halt=halting(after=stop))
    rest = learn_average(patterns, training, state=part.state)
    again = learn_average(patterns, training, state=rest.state)
    for each in (rest, again):
        assert torch.equal(each.phi.W, whole.phi.W)
        assert torch.equal(each.phi.b, whole.phi.b)
        assert (each.curve, each.steps, each.finished) == (whole.curve, whole.steps, True)


def test_a_state_is_tensors_and_its_numbers_are_float64():
    state = learn_average(Patterns(randn(100, 10)), SHORT).state
    numbers = [value for value in state.values() if value.ndim < 2]
    assert numbers
    assert all(value.dtype == torch.float64 for value in numbers)


class Counted(Patterns):
    """Patterns that count the rows that are read."""

    rows = 0

    def __getitem__(self, rows):
        read = super().__getitem__(rows)
        Counted.rows += len(read)
        return read


def rows_read(M: int, steps: int) -> tuple[int, int]:
    Counted.rows = 0
    learned = learn_average(Counted(randn(M, 6)), Training(steps=steps, batch_size=32))
    return Counted.rows, learned.steps


@pytest.mark.parametrize("M", [100, 2000])
def test_a_step_reads_its_batch_however_many_memories_there_are(M):
    (before, _), (after, steps) = rows_read(M, steps=0), rows_read(M, steps=20)
    assert steps > 1
    assert after - before == 32 * steps


def test_a_map_is_learned_even_without_time():
    Xi = randn(20, 30)
    phi = learn_average(Patterns(Xi), Training(), halt=lambda: True).phi
    assert separation(unit(phi(Xi))).max_cosine == pytest.approx(-1 / 19, abs=1e-3)


def test_progress_counts_the_steps_and_tells_loss_and_separation():
    told = []
    learned = learn_average(Patterns(randn(60, 10)), Training(steps=12), lambda *news: told.append(news))
    assert [news[:3] for news in told] == [(step, 12, learned.curve[step - 1]) for step in range(1, learned.steps + 1)]
    met = float(separation(unit(learned.phi(randn(60, 10)))).delta.min())  # the batch holds all memories
    assert min(delta for *_, delta in told) <= met + 0.1
    assert all(0 < delta < 2 for *_, delta in told)


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


@pytest.mark.parametrize(("M", "size"), [(10, 3), (100, 60), (100, 99)])
def test_draws_hold_each_memory_once_and_cover_all_in_time(M, size):
    draws = [drawn(M, size, seed=0, step=step).tolist() for step in range(100)]
    assert all(draw == sorted(set(draw)) and len(draw) == size for draw in draws)
    assert set().union(*draws) == set(range(M))


@pytest.mark.parametrize("size", [10, 11, 1000])
def test_a_draw_that_could_hold_all_memories_does(size):
    assert drawn(10, size, seed=0, step=3).tolist() == list(range(10))


def test_a_draw_follows_from_seed_and_step():
    draws = {(seed, step): tuple(drawn(1000, 5, seed, step).tolist()) for seed in (0, 1) for step in (0, 1)}
    assert len(set(draws.values())) == 4
    assert tuple(drawn(1000, 5, 1, 0).tolist()) == draws[1, 0]
