"""Optimize: the separation that theory allows, the same bank otherwise, and the same bytes every time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import hopmem
from hopmem.bank import MemoryBank
from hopmem.verbs.optimize import Task, learn
from tests import reference
from tests.refusal import raises_refusal
from tests.verbs import randn


def bank_of(M: int = 12, d: int = 20, **options) -> MemoryBank:
    return MemoryBank.from_patterns(randn(M, d) + 2, [f"n{row}" for row in range(M)], **options)


def average(bank: MemoryBank, **options) -> MemoryBank:
    return hopmem.optimize(bank, **{"objective": "average"} | options)


@pytest.mark.parametrize(("M", "d"), [(2, 1), (2, 5), (4, 3), (10, 40), (30, 64)])
def test_independent_patterns_reach_the_simplex(M, d):
    bank = average(bank_of(M, d), steps=200)
    cosines = list(reference.pair_cosines(bank.features).values())
    assert max(cosines) == pytest.approx(-1 / (M - 1), abs=1e-3)
    assert min(cosines) == pytest.approx(-1 / (M - 1), abs=1e-3)


def test_what_is_stored_is_kept_and_the_given_bank_too(tmp_path):
    raw = replace(bank_of(values=randn(12, 3)), alpha=1.5, scale=0.5)
    learned = average(raw)
    assert learned.names == raw.names
    assert torch.equal(learned.patterns, raw.patterns)
    assert torch.equal(learned.values, raw.values)
    assert (learned.shape, learned.alpha, learned.scale, learned.objective) == ((20,), 1.5, 0.5, "average")
    assert (raw.phi.W, raw.features, raw.objective, raw.learning) == (None, None, "raw", None)


def test_the_features_are_those_of_the_map():
    bank = average(bank_of())
    expected = reference.features(bank.patterns, bank.phi.W, bank.phi.b)
    np.testing.assert_allclose(bank.features.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(bank.phi.W.norm(dim=1).numpy(), 1, atol=1e-4)


def test_what_is_said_of_the_learning_is_true():
    bank = average(bank_of(40, 6), temperature=3.0, steps=20)
    how = bank.learning
    for name, Z in (("raw", reference.features(bank.patterns)), ("learned", bank.features)):
        cosines = list(reference.pair_cosines(Z).values())
        assert how.separation[name]["max_cosine"] == pytest.approx(max(cosines), abs=1e-5)
        assert how.separation[name]["mean_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)
        angle = math.degrees(math.acos(max(cosines)))
        assert how.separation[name]["min_angle_degrees"] == pytest.approx(angle, abs=1e-2)
    assert how.loss["first"] == pytest.approx(reference.average_loss(reference.features(bank.patterns), 3.0), abs=1e-4)
    assert how.loss["last"] == pytest.approx(reference.average_loss(bank.features, 3.0), abs=1e-4)
    assert how.loss["last"] < how.loss["first"]
    assert len(how.curve) in {how.steps, how.steps + 1}
    assert list(how.curve) == sorted(how.curve, reverse=True)
    assert (how.temperature, how.feature_dimension) == (3.0, bank.feature_dimension)
    assert bank.tuning.delta == pytest.approx(float(reference.separation(bank.features).min()), abs=1e-5)


@pytest.mark.parametrize("batch_size", [8, 1024])
def test_learning_twice_gives_the_same_map(batch_size):
    one, other = (average(bank_of(40, 6), seed=3, batch_size=batch_size, steps=20) for _ in range(2))
    assert torch.equal(one.phi.W, other.phi.W)
    assert torch.equal(one.features, other.features)
    assert one.learning == other.learning


def test_learning_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        average(bank_of(), seed=3).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_learning_anew_does_not_depend_on_the_map_before():
    bank = bank_of(40, 6)
    once = average(bank, steps=5)
    assert torch.equal(average(once, steps=5).phi.W, once.phi.W)


@pytest.mark.parametrize("X", [torch.ones(1, 3), torch.ones(5, 3), torch.zeros(2, 2)])
def test_fewer_than_two_different_patterns_cannot_be_set_apart(X):
    with raises_refusal(4, "at least two different patterns", "1"):
        average(MemoryBank.from_patterns(X))


def test_copies_share_their_feature_and_the_rest_is_set_apart():
    X = (randn(6, 9) + 2)[[0, 1, 2, 0, 3, 4, 5, 0]]
    bank = average(MemoryBank.from_patterns(X), steps=200)
    Z = bank.features
    assert torch.allclose(Z[[3, 7]], Z[[0, 0]], atol=1e-6)
    different = list(reference.pair_cosines(Z[[0, 1, 2, 4, 5, 6]]).values())
    assert max(different) == pytest.approx(-1 / 5, abs=1e-3)
    assert hopmem.retrieve(bank, X).index.tolist() == [0, 1, 2, 0, 4, 5, 6, 0]


def test_copies_up_to_the_sign_of_zero_can_be_set_apart_no_more_than_others():
    with raises_refusal(4, "at least two different patterns"):
        average(MemoryBank.from_patterns(torch.tensor([[0.0, 1.0], [-0.0, 1.0]])))


@pytest.mark.parametrize("D", [1, 2, 5, 11, 40])
def test_the_feature_dimension_is_the_one_that_is_asked_for(D):
    bank = average(bank_of(), feature_dim=D, steps=20)
    assert bank.feature_dimension == D
    assert bank.features.shape == (12, D)
    assert bool(bank.features.isfinite().all())


def test_two_dimensions_hold_three_patterns_at_120_degrees():
    bank = average(bank_of(3, 5), feature_dim=2, steps=100)
    assert max(reference.pair_cosines(bank.features).values()) == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.float64])
def test_patterns_of_any_type_are_learned_from(dtype):
    X = (randn(8, 16) * 40 + 128).clamp(0, 255).to(dtype)
    bank = average(MemoryBank.from_patterns(X), steps=50)
    assert bank.patterns.dtype == dtype
    assert max(reference.pair_cosines(bank.features).values()) == pytest.approx(-1 / 7, abs=5e-3)


@pytest.mark.parametrize("norm", [1e-15, 1e-6, 1e6, 1e15])
def test_the_separation_does_not_depend_on_the_norm_of_the_patterns(norm):
    bank = average(MemoryBank.from_patterns((randn(8, 16) + 2) * norm))
    assert max(reference.pair_cosines(bank.features).values()) == pytest.approx(-1 / 7, abs=1e-3)


def test_the_budget_does_not_change_the_map():
    one, other = average(bank_of(50, 6), steps=5), average(bank_of(50, 6), steps=5, budget=1 << 20)
    assert torch.equal(one.phi.W, other.phi.W)
    assert one.learning.loss["last"] == pytest.approx(other.learning.loss["last"], abs=1e-6)


def test_no_steps_and_no_time_leave_the_warm_start():
    assert average(bank_of(), steps=0).learning.steps == 0
    assert average(bank_of(), time_limit=0.0).learning.steps <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "unheard-of"},
        {"feature_dim": 0},
        {"steps": -1},
        {"batch_size": 1},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"learning_rate": 0.0},
        {"learning_rate": math.inf},
        {"device": "gpu"},
    ],
)
def test_options_out_of_their_range_are_usage_errors(options):
    with raises_refusal(2):
        average(bank_of(), **options)


def test_progress_is_told_and_ends_with_all():
    told: dict[str, list[tuple[int, int]]] = {}
    average(
        bank_of(40, 6),
        steps=7,
        watch=lambda label, done, total, note="": told.setdefault(label, []).append((done, total)),
    )
    assert {"learning", "measuring raw", "measuring learned"} <= set(told)
    for label in ("measuring raw", "measuring learned"):
        assert told[label][-1][0] == told[label][-1][1]


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
def test_an_offset_that_all_patterns_share_changes_nothing(offset):
    X = torch.randn(60, 300, generator=torch.Generator().manual_seed(0)) + offset
    bank = average(hopmem.MemoryBank.from_patterns(X))
    cosines = reference.pair_cosines(bank.features).values()
    assert max(cosines) == pytest.approx(-1 / 59, abs=1e-3)
    assert min(cosines) == pytest.approx(-1 / 59, abs=1e-3)
    answer = hopmem.retrieve(bank, X)
    assert answer.index.tolist() == list(range(60))
    assert float(answer.confidence.min()) > 0.99


KEPT = [
    (replace(Task("average"), steps=9), 60, 12),
    (replace(Task("spherical"), steps=25), 60, 12),
    (replace(Task("spherical"), feature_dim=3, restarts=1), 12, 20),  # a code, and then a descent
    (replace(Task("denoise"), noise=("gaussian:0.5",), steps=25), 60, 12),
]


@pytest.mark.parametrize(("task", "M", "d"), KEPT, ids=["average", "spherical", "code", "denoise"])
def test_from_wherever_it_was_last_known_to_stand_a_run_ends_as_if_nothing_had_been(task: Task, M: int, d: int):
    bank, kept = bank_of(M, d), list[dict[str, torch.Tensor]]()

    def keep(state) -> None:
        kept.append({name: each.detach().clone() for name, each in state().items()})

    whole = learn(bank, task, keep=keep).bank
    assert len(kept) > 3
    for state in kept[:: len(kept) // 3]:
        again = learn(bank, task, state=state or None).bank
        assert torch.equal(again.patterns, whole.patterns)
        assert (again.objective, again.learning) == (whole.objective, whole.learning)
        for one, other in ((again.features, whole.features), (again.phi.W, whole.phi.W)):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
