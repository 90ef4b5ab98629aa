"""U-Hop+: the known best codes, a sum and a gradient that are right, and smaller cosines than any ridge brings."""

import gzip
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model import descent
from hopmem.model.kernel import Features
from hopmem.model.pairs import Listed, Pairs, all_of, sample, smooth_maximum, without
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import separation
from hopmem.model.spherical import carried, learn_spherical
from hopmem.model.uhop import Learned, Training, learn_average
from hopmem.model.whitening import RIDGES, whiten
from tests.model import randn, units

MNIST = Path(os.environ.get("HOPMEM_DATA", "")) / "mnist-t10k-images-idx3-ubyte.gz"
SHORT = Training(steps=40)


def halting(after: int) -> Callable[[], bool]:
    asked = iter(range(after))
    return lambda: next(asked, None) is None


def max_cosine(Xi: Tensor | Patterns, learned: Learned) -> float:
    patterns = Xi if isinstance(Xi, Patterns) else Patterns(Xi)
    return separation(Features(patterns, learned.phi)).max_cosine


def of_ridge(Xi: Tensor, ridge: float) -> float:
    """The largest cosine under (C + ρI)^{−1/2}, in float64 and by an SVD."""
    U, sizes, _ = torch.linalg.svd(Xi.double() - Xi.double().mean(0), full_matrices=False)
    U, sizes = U[:, sizes > 1e-9 * sizes[0]], sizes[sizes > 1e-9 * sizes[0]]
    return separation(unit(U * sizes / (sizes.square() + ridge * sizes[0] ** 2).sqrt())).max_cosine


def assert_same(one: Learned, other: Learned) -> None:
    assert torch.equal(one.phi.W, other.phi.W)
    assert torch.equal(one.phi.b, other.phi.b)
    assert (one.curve, one.steps, one.finished) == (other.curve, other.steps, other.finished)


# Independent memories: the best spherical code


@pytest.mark.parametrize(
    ("M", "d", "D"),
    [(2, 1, None), (2, 1, 1), (2, 50, None), (3, 2, 2), (12, 30, 11), (12, 30, 40), (20, 19, None), (200, 3072, None)],
)
def test_up_to_d_plus_one_memories_become_a_simplex(M, d, D):
    Xi = randn(M, d, seed=M + d)
    learned = learn_spherical(Patterns(Xi), Training(feature_dim=D))
    Z = Features(Patterns(Xi), learned.phi)[slice(0, M)]
    off = (Z @ Z.T)[~torch.eye(M, dtype=torch.bool)]
    assert learned.finished
    assert_close(off, torch.full_like(off, -1 / (M - 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("patterns", [torch.eye(12), randn(12, 12), randn(12, 100) + 5, 255 * torch.eye(12)])
@pytest.mark.parametrize(("D", "best"), [(6, 0.0), (8, 0.0), (2, math.cos(2 * math.pi / 12)), (1, 1.0)])
def test_known_codes_are_reached(patterns, D, best):
    learned = learn_spherical(Patterns(patterns), Training(feature_dim=D))
    assert learned.phi.W.shape == (D, patterns.shape[1])
    assert max_cosine(patterns, learned) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("M", "D", "degrees"),
    [(7, 3, 77.8695421), (12, 3, 63.4349488), pytest.param(24, 4, 60.0, marks=pytest.mark.slow)],
)
def test_searched_codes_have_the_known_angles(M, D, degrees):
    learned = learn_spherical(Patterns(torch.eye(M)), Training(feature_dim=D), restarts=4)
    angle = separation(Features(Patterns(torch.eye(M)), learned.phi)).min_angle_degrees
    assert angle == pytest.approx(degrees, rel=1e-6)


@pytest.mark.parametrize("make", [torch.eye, lambda M: randn(M, 3 * M), lambda M: 30 * randn(M, M) + 128])
def test_a_map_carries_memories_where_they_shall_go(make):
    Xi, Z = make(40), units(40, 5, seed=1).double()
    patterns = Patterns(Xi)
    reached = Features(patterns, carried(patterns, whiten(patterns), Z))[slice(0, 40)]
    assert_close(reached.double(), Z, atol=2e-5, rtol=0)


def test_memories_that_float32_cannot_carry_are_descended_instead():
    Xi = randn(30, 60)
    Xi[1] = Xi[0] + 2e-6 * randn(60)
    training = Training(feature_dim=2, steps=60)
    learned = learn_spherical(Patterns(Xi), training)
    warm = learn_spherical(Patterns(Xi), training, halt=lambda: True)
    assert learned.finished
    assert "A" in learned.state
    assert_same(learn_spherical(Patterns(Xi), training, state=learned.state), learned)
    assert max_cosine(Xi, learned) <= max_cosine(Xi, warm)


# The sum over pairs and its gradient


def listed_of(F: Tensor, pairs: Pairs) -> Listed:
    rows, ends = torch.unique(pairs.index, return_inverse=True)
    return Listed.of(F[rows], ends, pairs.log_share)


def every_pair(M: int) -> Pairs:
    return Pairs(torch.triu_indices(M, M, 1), torch.zeros(M * (M - 1) // 2))


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01])
def test_the_value_is_the_smooth_maximum_and_its_gradient_agrees_with_differences(tau):
    F, A, offset = randn(12, 5).double(), randn(3, 5, seed=1).double(), 0.3 * randn(3, seed=2).double()
    listed = listed_of(F, every_pair(12))
    value, of_A, of_offset = smooth_maximum(listed, tau, A, offset)
    Z = unit(F @ A.T + offset)
    cosines = (Z @ Z.T)[~torch.eye(12, dtype=torch.bool)]
    assert value == pytest.approx(tau * float((cosines / tau).logsumexp(0)), abs=1e-12)
    for place, gradient in enumerate((of_A, of_offset)):
        for entry in torch.cartesian_prod(*(torch.arange(n) for n in gradient.shape)).view(-1, gradient.ndim):
            sides = []
            for sign in (1, -1):
                both = [A.clone(), offset.clone()]
                both[place][tuple(entry)] += sign * 1e-6
                sides.append(smooth_maximum(listed, tau, *both)[0])
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(gradient[tuple(entry)]), abs=1e-7)


def kernel_sum(Z: Tensor, pairs: Pairs, tau: float) -> float:
    left, right = pairs.index
    cosines = (Z[left].double() * Z[right].double()).sum(1)
    return float((cosines / tau + pairs.log_share.double()).exp().sum())


@pytest.mark.parametrize("tau", [0.5, 0.2])
def test_the_estimate_of_the_sum_is_unbiased_also_after_steps(tau):
    Z, draws = units(60, 4), 400
    samples = [sample(Z, 100, tau, torch.Generator().manual_seed(seed))[0] for seed in range(draws)]
    for moved in (Z, unit(Z + 0.1 * randn(60, 4, seed=1))):
        sums = torch.tensor([kernel_sum(moved, pairs, tau) for pairs in samples])
        exact = kernel_sum(moved, every_pair(60), tau)
        assert abs(float(sums.mean()) - exact) < 4 * float(sums.std()) / math.sqrt(draws)
        assert float(sums.std()) < 0.3 * exact


def test_the_hardest_pairs_are_in_every_sample():
    Z = units(50, 3)
    hardest = {tuple(pair) for pair in separation(Z, closest=5).pairs.tolist()}
    for seed in range(10):
        pairs, top = sample(Z, 200, 0.01, torch.Generator().manual_seed(seed))
        assert hardest <= {tuple(pair) for pair in pairs.index.T.tolist()}
        assert top == pytest.approx(separation(Z).max_cosine, abs=1e-6)
        assert pairs.index.shape == (2, 200)


def test_a_sample_that_has_room_for_all_pairs_holds_each_once():
    pairs, _ = sample(units(1100, 3)[:30], 10**6, 0.5, torch.Generator().manual_seed(0))
    assert {tuple(pair) for pair in pairs.index.T.tolist()} == {tuple(p) for p in every_pair(30).index.T.tolist()}
    assert pairs.index.shape[1] == 30 * 29 // 2
    assert not pairs.log_share.any()


def test_known_pairs_are_counted_once():
    pairs, known = every_pair(10), Pairs(torch.tensor([[2, 0], [5, 9]]), torch.zeros(2))
    both = all_of(known, without(pairs, known, 10))
    assert both.index.shape[1] == 45
    assert len({tuple(pair) for pair in both.index.T.tolist()}) == 45


# More memories than a map can carry anywhere


@pytest.mark.parametrize(("M", "d", "D"), [(60, 10, None), (200, 20, None), (60, 10, 4), (300, 5, None)])
def test_the_largest_cosine_falls_below_that_of_every_ridge_and_of_the_average_loss(M, d, D):
    Xi = randn(M, d) * torch.logspace(0, 1, d) + 3
    learned = learn_spherical(Patterns(Xi), Training(feature_dim=D, steps=300))
    ridges = [0.0, *torch.logspace(-8, 0, 33).tolist()] if D is None else []
    average = max_cosine(Xi, learn_average(Patterns(Xi), Training(feature_dim=D)))
    best = min([average, *(of_ridge(Xi, ridge) for ridge in ridges)])
    assert 1 - max_cosine(Xi, learned) > 1.1 * (1 - best)


@pytest.mark.parametrize("steps", [0, 1, 15])
def test_no_map_is_worse_than_the_warm_start(steps):
    Xi = randn(60, 10) * torch.logspace(0, 2, 10)
    learned = learn_spherical(Patterns(Xi), Training(steps=steps, learning_rate=50.0))
    assert max_cosine(Xi, learned) <= min(of_ridge(Xi, ridge) for ridge in RIDGES) + 1e-5
    assert max_cosine(Xi, learned) == pytest.approx(min(learned.curve), abs=1e-5)


def test_the_descent_ends_where_the_largest_cosine_no_longer_falls():
    learned = learn_spherical(Patterns(randn(60, 10)), Training(steps=400, learning_rate=50.0))
    assert learned.finished
    assert learned.steps < 400


@pytest.mark.parametrize(
    ("M", "d", "D"), [(3, 1, None), (3, 1, 1), (3, 1, 5), (10, 2, None), (30, 5, 1), (30, 5, 20), (4, 2, 3)]
)
def test_any_shape_is_learned(M, d, D):
    Xi = randn(M, d)
    learned = learn_spherical(Patterns(Xi), Training(feature_dim=D, steps=20))
    assert learned.phi.W.shape == (min(D or d, d), d)
    assert learned.phi.W.isfinite().all()
    assert learned.finished


def test_a_memory_at_the_mean_and_entries_without_a_difference_do_no_harm():
    Xi = torch.cat([randn(40, 6), torch.ones(40, 2)], 1)
    Xi[0] = Xi[1:].mean(0)
    learned = learn_spherical(Patterns(Xi), SHORT)
    assert learned.phi.W.isfinite().all()
    assert max_cosine(Xi, learned) < min(of_ridge(Xi, ridge) for ridge in RIDGES)


# Stopping and going on


@pytest.mark.parametrize("stop", [0, 1, 10, 11, 23])
@pytest.mark.parametrize("looked_over", [20_000, 50])
def test_an_interrupted_descent_ends_with_the_same_bits(stop, looked_over, monkeypatch):
    monkeypatch.setattr(descent, "LOOKED_OVER", looked_over)
    patterns, training = Patterns(randn(100, 10)), Training(steps=30, batch_size=200, seed=7)
    whole = learn_spherical(patterns, training)
    part = learn_spherical(patterns, training, halt=halting(after=stop))
    assert (part.finished, part.steps) == (False, stop)
    before = {name: value.clone() for name, value in part.state.items()}
    rest = learn_spherical(patterns, training, state=part.state)
    assert_same(rest, whole)
    assert_same(learn_spherical(patterns, training, state=rest.state), whole)
    assert all(torch.equal(value, part.state[name]) for name, value in before.items())


@pytest.mark.parametrize("stop", [1, 100, 400])
def test_an_interrupted_search_for_a_code_ends_with_the_same_bits(stop):
    patterns, training = Patterns(randn(8, 20)), Training(feature_dim=3, steps=20)
    whole = learn_spherical(patterns, training, restarts=2)
    part = learn_spherical(patterns, training, restarts=2, halt=halting(after=stop))
    assert not part.finished
    assert_same(learn_spherical(patterns, training, restarts=2, state=part.state), whole)


@pytest.mark.parametrize(("M", "d", "D"), [(60, 10, None), (60, 10, 4), (12, 30, 3)])
def test_halted_at_once_it_is_no_worse_than_whitening(M, d, D):
    Xi = randn(M, d)
    halted = learn_spherical(Patterns(Xi), Training(feature_dim=D), halt=lambda: True)
    W = whiten(Patterns(Xi)).map(0.0)[:D]
    assert not halted.finished
    assert max_cosine(Xi, halted) <= separation(unit((Xi - Xi.mean(0)) @ W.T)).max_cosine + 1e-5


def test_numbers_of_a_state_are_float64():
    for M, d, D in ((60, 10, None), (12, 30, 3)):
        state = learn_spherical(Patterns(randn(M, d)), Training(feature_dim=D, steps=5), restarts=1).state
        assert all(value.dtype == torch.float64 for value in state.values() if value.ndim == 0)


def test_progress_tells_steps_the_largest_cosine_and_the_separation():
    told = []
    learned = learn_spherical(Patterns(randn(60, 10)), SHORT, progress=lambda *news: told.append(news))
    assert [done for done, *_ in told] == list(range(1, learned.steps + 1))
    assert told[-1][1:] == (40, learned.curve[-2], 1 - learned.curve[-2])


# Cost


class Counted(Patterns):
    """Patterns that count the rows that are read."""

    rows = 0

    def __getitem__(self, rows):
        read = super().__getitem__(rows)
        Counted.rows += len(read)
        return read


def rows_read(M: int, steps: int) -> int:
    Counted.rows = 0
    learn_spherical(Counted(randn(M, 6)), Training(steps=steps, batch_size=100))
    return Counted.rows


def test_steps_and_looks_read_no_more_rows_where_there_are_more_memories(monkeypatch):
    monkeypatch.setattr(descent, "LOOKED_OVER", 150)
    for M in (1000, 5000):
        assert rows_read(M, 10) == rows_read(M, 1)  # a look before the first step, and one after the last
        assert rows_read(M, 20) - rows_read(M, 10) <= 2 * 150 + 3 * 100  # a look's sample, its ruler, and ends of pairs


def test_the_pairs_and_the_sample_fit_the_budget():
    patterns, training = Patterns(randn(2000, 50)), Training(steps=1, budget=1 << 20)
    ground = descent._Ground(patterns, whiten(patterns), torch.empty(50, 50), 0.03, training)
    assert ground.looked_over * 50 * 4 <= 1 << 19
    assert 2 * ground.pairs * 50 * 4 * 3 <= 1 << 20
    assert learn_spherical(patterns, training).finished


# Real images


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.is_file(), reason="HOPMEM_DATA names no folder with the MNIST test images")
def test_the_largest_cosine_of_real_images_falls_below_that_of_every_ridge():
    stored = torch.frombuffer(bytearray(gzip.decompress(MNIST.read_bytes())[16:]), dtype=torch.uint8)
    patterns = Patterns(stored.view(-1, 784), scale=1 / 255)
    learned, whitened = learn_spherical(patterns, Training()), whiten(patterns)
    ridges = [descent.near_mean(whitened.map(ridge), None, whitened) for ridge in (0, 1e-6, 1e-5, 3e-5, 1e-4, 1e-3)]
    best = min(max_cosine(patterns, replace(learned, phi=phi)) for phi in ridges)
    assert max_cosine(patterns, learned) < best / 2
