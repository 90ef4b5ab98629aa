"""Retrieve: against the literal equations, against nearest neighbours, and what it refuses."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import hopmem
from hopmem.bank import MemoryBank
from tests import reference
from tests.refusal import raises_refusal
from tests.verbs import randn

TENSORS = ["patterns", "index", "confidence", "margin", "support", "energy", "steps", "converged", "top_index"]


def bank_of(M: int = 30, d: int = 16, *, learned: bool = False, **options) -> MemoryBank:
    bank = MemoryBank.from_patterns(randn(M, d), [f"n{row}" for row in range(M)], **options)
    return hopmem.optimize(bank, objective="average", steps=3) if learned else bank


def nearest_on_known(X: torch.Tensor, known: torch.Tensor, Xi: torch.Tensor) -> list[int]:
    return [
        int(np.argmax([reference.cosine_on_known(x, seen, xi) for xi in Xi])) for x, seen in zip(X, known, strict=True)
    ]


def test_the_example_of_the_design_runs(tmp_path):
    X = np.random.default_rng(0).normal(size=(20, 6))
    Q = X[:5] + 0.01
    bank = hopmem.MemoryBank.from_patterns(X, names=None)
    bank = hopmem.optimize(bank, objective="average", seed=0)
    bank.save(tmp_path / "bank.safetensors")
    bank = hopmem.MemoryBank.load(tmp_path / "bank.safetensors")
    answer = hopmem.retrieve(bank, Q, alpha=1.0, beta="auto", steps=1)
    assert answer.match == ["0", "1", "2", "3", "4"]
    assert_close(answer.patterns, torch.from_numpy(X[:5]).float(), atol=0.05, rtol=0)
    for name in ("confidence", "support", "energy", "steps", "converged"):
        assert len(getattr(answer, name)) == 5
    assert hopmem.inspect(bank).patterns == 20


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("alpha", "beta", "steps"), [(1.0, 5.0, 1), (1.5, 8.0, 3), (2.0, 3.0, 2), (1.0, 0.0, 1)])
def test_answers_follow_the_literal_equations(alpha, beta, steps, learned):
    bank, Q = bank_of(learned=learned), randn(4, 16, seed=1)
    answer = hopmem.retrieve(bank, Q, alpha=alpha, beta=beta, steps=steps, tolerance=0, top=3)
    Z = reference.features(bank.patterns, bank.phi.W, bank.phi.b)
    for row, y in enumerate(reference.features(Q, bank.phi.W, bank.phi.b)):
        p, readout = reference.retrieve(y, Z, bank.patterns, alpha, beta, steps)
        order = np.argsort(-p, kind="stable")
        assert_close(answer.patterns[row].double(), torch.from_numpy(readout), atol=2e-4, rtol=2e-4)
        assert float(answer.confidence[row]) == pytest.approx(p.max(), abs=1e-4)
        assert float(answer.margin[row]) == pytest.approx(p[order[0]] - p[order[1]], abs=1e-4)
        if beta:
            sharing = min(3, int((p > 0).sum()))
            assert answer.top_index[row, :sharing].tolist() == order[:sharing].tolist()
            assert answer.match[row] == f"n{order[0]}"


@pytest.mark.parametrize("make", [torch.as_tensor, np.asarray, lambda Q: Q.tolist(), lambda Q: Q.double().numpy()])
def test_queries_are_arrays_tensors_or_lists_and_answers_are_tensors(make):
    bank, Q = bank_of(), randn(3, 16, seed=1)
    answer, expected = hopmem.retrieve(bank, make(Q)), hopmem.retrieve(bank, Q)
    assert all(isinstance(getattr(answer, name), torch.Tensor) for name in TENSORS)
    assert_close(answer.patterns, expected.patterns)
    assert (answer.patterns.shape, answer.patterns.dtype) == ((3, 16), torch.float32)


def test_queries_may_have_the_shape_of_the_patterns_and_one_may_come_alone():
    X = randn(5, 2, 3)
    bank = MemoryBank.from_patterns(X)
    for Q in (X[:2], X[:2].reshape(2, 6), X[0]):
        answer = hopmem.retrieve(bank, Q, beta=50.0)
        assert answer.index.tolist() == list(range(len(answer.index)))
    assert len(answer.index) == 1


@pytest.mark.parametrize("learned", [False, True])
def test_stored_patterns_come_back(learned):
    bank = bank_of(learned=learned)
    answer = hopmem.retrieve(bank, bank.patterns)
    assert answer.index.tolist() == list(range(30))
    assert answer.state == ["single"] * 30
    assert_close(answer.patterns, bank.patterns, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("how", ["nan", "mask", "both"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_partial_queries_go_to_the_nearest_neighbour_on_their_known_entries(how, share):
    bank = bank_of(60, 24)
    X = bank.patterns[:40] + 0.3 * randn(40, 24, seed=1)
    known = torch.rand(40, 24, generator=torch.Generator().manual_seed(2)) > share
    known[:, 0] = True
    known[0] = True  # a whole query among partial ones
    first = torch.arange(24) % 2 == 0
    hidden = ~known if how == "mask" else ~known & first if how == "both" else torch.zeros_like(known)
    Q = X.masked_fill(~known & ~hidden, math.nan).masked_fill(hidden, 1e9)
    answer = hopmem.retrieve(bank, Q, mask=hidden if how != "nan" else None, beta=30.0)
    assert answer.index.tolist() == nearest_on_known(X, known, bank.patterns)
    partial = ~known.all(1)
    assert torch.equal(answer.patterns[partial][known[partial]], X[partial][known[partial]])


def test_unknown_entries_are_filled_from_the_readout():
    bank = bank_of()
    Q = bank.patterns[:3].clone()
    Q[:, 10:] = math.nan
    answer = hopmem.retrieve(bank, Q, beta=500.0)
    assert_close(answer.patterns, bank.patterns[:3], atol=1e-4, rtol=0)
    assert torch.equal(answer.patterns[:, :10], Q[:, :10])


def test_one_mask_serves_all_queries():
    bank, mask = bank_of(), torch.arange(16) > 9
    one = hopmem.retrieve(bank, bank.patterns, mask=mask.numpy(), beta=20.0)
    each = hopmem.retrieve(bank, bank.patterns, mask=mask.expand(30, -1), beta=20.0)
    assert_close(one.patterns, each.patterns)
    shaped = MemoryBank.from_patterns(bank.patterns.reshape(30, 4, 4))
    same = hopmem.retrieve(shaped, bank.patterns.reshape(30, 4, 4), mask=mask.reshape(4, 4), beta=20.0)
    assert_close(one.patterns, same.patterns)


def test_a_partial_query_of_a_learned_bank_is_compared_by_the_map_of_its_known_entries():
    bank = bank_of(learned=True)
    known = torch.rand(6, 16, generator=torch.Generator().manual_seed(2)) > 0.3
    X = bank.patterns[:6] + 0.2 * randn(6, 16, seed=1)
    answer = hopmem.retrieve(bank, X.masked_fill(~known, math.nan), beta=4.0, top=30)
    W, b = bank.phi.W.double().numpy(), bank.phi.b.double().numpy()
    r = np.linalg.lstsq(W, -b, rcond=None)[0]
    for row, seen in enumerate(known.numpy()):
        offset = -(W[:, seen] @ r[seen])
        Z = reference.features(bank.patterns[:, seen], W[:, seen], offset)
        (y,) = reference.features(X[row : row + 1, seen], W[:, seen], offset)
        p = reference.weights(y, Z, 1.0, 4.0)
        found = torch.zeros(30).scatter(0, answer.top_index[row], answer.top_weight[row])
        np.testing.assert_allclose(found.numpy(), p, atol=1e-4)


@pytest.mark.parametrize("ratio", [1e6, 1e12, 1e25])
def test_known_entries_are_compared_exactly_however_large_the_unknown_ones_are(ratio):
    X = torch.cat([randn(20, 8), randn(20, 8, seed=1) * ratio], 1)
    Q = X.clone()
    Q[:, 8:] = math.nan
    assert hopmem.retrieve(MemoryBank.from_patterns(X), Q, beta=1e3).index.tolist() == list(range(20))


def test_values_are_read_out_instead_of_the_patterns():
    values = randn(30, 2, 3, seed=3)
    bank = bank_of(values=values)
    answer = hopmem.retrieve(bank, bank.patterns, beta=3.0)
    plain = hopmem.retrieve(replace(bank, values=None), bank.patterns, beta=3.0, top=30)
    P = torch.zeros(30, 30).scatter(1, plain.top_index, plain.top_weight)
    assert_close(answer.patterns, P @ values.reshape(30, 6), atol=1e-5, rtol=1e-5)
    partial = hopmem.retrieve(bank, bank.patterns, mask=torch.arange(16) > 12, beta=3.0)
    assert partial.patterns.shape == (30, 6)


@pytest.mark.parametrize("partial", [False, True])
def test_snap_returns_a_stored_pattern_bit_for_bit(partial):
    bank, Q = bank_of(), randn(9, 16, seed=1)
    if partial:
        Q[:, 3] = math.nan
    answer = hopmem.retrieve(bank, Q, beta=1.0, snap=True)
    assert torch.equal(answer.patterns, bank.patterns[answer.index])
    whole = bank_of(values=randn(30, 2))
    assert torch.equal(hopmem.retrieve(whole, Q, snap=True, beta=1.0).patterns, whole.values[answer.index])


def test_top_lists_the_largest_weights_in_order_and_all_of_them_sum_to_one():
    bank, Q = bank_of(), randn(5, 16, seed=1)
    everything = hopmem.retrieve(bank, Q, beta=3.0, top=99)
    assert everything.top_index.sort(1).values.tolist() == [list(range(30))] * 5
    assert_close(everything.top_weight.sum(1), torch.ones(5))
    assert bool((everything.top_weight.diff(dim=1) <= 0).all())
    few = hopmem.retrieve(bank, Q, beta=3.0, top=4)
    assert torch.equal(few.top_index, everything.top_index[:, :4])
    assert torch.equal(few.index, few.top_index[:, 0])


def test_answers_under_the_wanted_confidence_are_rejected():
    bank, Q = bank_of(), randn(20, 16, seed=1)
    sure = hopmem.retrieve(bank, Q, beta=8.0)
    threshold = float(sure.confidence.median())
    answer = hopmem.retrieve(bank, Q, beta=8.0, min_confidence=threshold)
    expected = [n if c >= threshold else None for n, c in zip(sure.match, sure.confidence.tolist(), strict=True)]
    assert answer.match == expected
    assert 0 < answer.match.count(None) < 20
    assert torch.equal(answer.index, sure.index)


@pytest.mark.parametrize(("dtype", "top"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.int32, 100)])
def test_queries_of_the_banks_own_integer_type_are_in_its_stored_units(dtype, top):
    X = (torch.rand(10, 6, generator=torch.Generator().manual_seed(0)) * top).round().to(dtype)
    bank = replace(MemoryBank.from_patterns(X), scale=1 / top)
    stored = hopmem.retrieve(bank, X, beta=500.0)
    scaled = hopmem.retrieve(bank, X.float() / top, beta=500.0)
    assert stored.index.tolist() == list(range(10))
    assert_close(stored.patterns, scaled.patterns, atol=1e-5, rtol=0)
    assert float(stored.patterns.max()) <= 1 + 1e-6
    partial = hopmem.retrieve(bank, X, beta=500.0, mask=torch.arange(6) == 0)
    assert_close(partial.patterns[:, 1:], X[:, 1:].float() / top)


@pytest.mark.parametrize(
    "Q",
    [
        torch.zeros(2, 15),
        torch.zeros(2, 17),
        torch.zeros(15),
        torch.zeros(0, 16),
        torch.zeros(16, 1),
        torch.tensor(1.0),
        torch.full((1, 16), math.inf),
        torch.full((1, 16), 1e300, dtype=torch.float64),
        torch.full((1, 16), math.nan),
        torch.zeros(2, 16, dtype=torch.complex64),
        [["a"] * 16],
        [[1.0], [1.0, 2.0]],
        "query",
        None,
    ],
)
def test_queries_that_cannot_be_compared_are_invalid(Q):
    with raises_refusal(4, "queries"):
        hopmem.retrieve(bank_of(), Q)


@pytest.mark.parametrize("mask", [torch.ones(16), torch.ones(2, 16)])
def test_a_query_of_which_nothing_is_known_is_invalid(mask):
    with raises_refusal(4, "queries, row 0"):
        hopmem.retrieve(bank_of(), torch.ones(2, 16), mask=mask)


@pytest.mark.parametrize("mask", [torch.ones(15), torch.ones(3, 16), torch.ones(2)])
def test_a_mask_of_another_shape_is_invalid(mask):
    with raises_refusal(4, "mask"):
        hopmem.retrieve(bank_of(), torch.ones(2, 16), mask=mask)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.99},
        {"alpha": math.nan},
        {"alpha": math.inf},
        {"beta": -1.0},
        {"beta": math.nan},
        {"beta": math.inf},
        {"beta": "hot"},
        {"steps": 0},
        {"steps": -3},
        {"top": 0},
        {"tolerance": -1.0},
        {"tolerance": math.nan},
        {"device": "gpu"},
    ],
)
def test_options_out_of_their_range_are_usage_errors(options):
    with raises_refusal(2):
        hopmem.retrieve(bank_of(), torch.ones(1, 16), **options)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_a_bank_of_one_pattern_always_answers_it(alpha):
    bank = MemoryBank.from_patterns(torch.tensor([[1.0, 2.0, 3.0]]), ["only"])
    answer = hopmem.retrieve(bank, torch.tensor([[-9.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), alpha=alpha)
    assert answer.match == ["only", "only"]
    assert answer.confidence.tolist() == answer.margin.tolist() == [1.0, 1.0]
    assert answer.patterns.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert answer.state == ["single"] * 2


@pytest.mark.parametrize("partial", [False, True])
def test_of_equal_patterns_the_first_is_named_and_the_weight_is_shared(partial):
    X = randn(8, 5)[[0, 1, 2, 1, 3, 1]]
    Q = X.clone()
    if partial:
        Q[:, 4] = math.nan
    answer = hopmem.retrieve(MemoryBank.from_patterns(X), Q, beta=1e3, top=3)
    assert answer.index.tolist() == [0, 1, 2, 1, 4, 1]
    assert answer.top_index[1].tolist() == [1, 3, 5]
    assert_close(answer.top_weight[1], torch.full((3,), 1 / 3), atol=1e-5, rtol=0)
    assert answer.support.tolist() == [1, 3, 1, 3, 1, 3]
    assert answer.state[1] == "metastable"


def test_a_zero_pattern_lies_at_right_angles_to_every_query():
    bank = MemoryBank.from_patterns(torch.cat([torch.zeros(1, 4), torch.eye(4)]))
    answer = hopmem.retrieve(bank, torch.cat([torch.zeros(1, 4), torch.eye(4), -torch.eye(4)[:1]]), beta=100.0)
    assert bool(answer.patterns.isfinite().all())
    assert answer.index.tolist()[1:5] == [1, 2, 3, 4]
    assert answer.state[0] == "global"


def test_constant_patterns_of_one_sign_are_one_direction():
    bank = MemoryBank.from_patterns(torch.tensor([[1.0] * 4, [2.0] * 4, [-3.0] * 4]))
    answer = hopmem.retrieve(bank, torch.tensor([[5.0] * 4, [-1.0] * 4]), beta=100.0)
    assert answer.index.tolist() == [0, 2]
    assert answer.patterns[0].tolist() == pytest.approx([1.5] * 4)


@pytest.mark.parametrize("norm", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("partial", [False, True])
def test_norms_of_any_size_leave_the_weights_as_they_are(norm, partial):
    X, Q = randn(20, 8), randn(20, 8) + 0.2 * randn(20, 8, seed=1)
    hidden = (torch.arange(8) == 3) if partial else None
    usual = hopmem.retrieve(MemoryBank.from_patterns(X), Q, beta=9.0, mask=hidden)
    extreme = hopmem.retrieve(MemoryBank.from_patterns(X * norm), Q / norm, beta=9.0, mask=hidden)
    assert torch.equal(extreme.index, usual.index)
    assert_close(extreme.confidence, usual.confidence, atol=1e-5, rtol=0)
    filled = slice(None) if hidden is None else hidden
    assert_close(extreme.patterns[:, filled] / norm, usual.patterns[:, filled], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_answers_do_not_depend_on_the_budget(alpha, learned):
    bank, Q = bank_of(50, 12, learned=learned), randn(30, 12, seed=1)
    Q[::3, 5] = math.nan
    wide = hopmem.retrieve(bank, Q, alpha=alpha, beta=6.0, steps=3, top=3)
    narrow = hopmem.retrieve(bank, Q, alpha=alpha, beta=6.0, steps=3, top=3, budget=1)
    for each in fields(wide):
        one, other = getattr(wide, each.name), getattr(narrow, each.name)
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            assert_close(one, other, atol=2e-5, rtol=1e-4)
        else:
            assert one.tolist() == other.tolist() if isinstance(one, torch.Tensor) else one == other


def test_the_order_of_the_queries_is_the_order_of_the_answers():
    bank, Q = bank_of(), randn(12, 16, seed=1)
    Q[[1, 4, 5], [0, 1, 2]] = math.nan
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    together, shuffled = hopmem.retrieve(bank, Q, beta=5.0), hopmem.retrieve(bank, Q[order], beta=5.0)
    assert_close(shuffled.patterns, together.patterns[order], atol=1e-5, rtol=1e-5)
    assert torch.equal(shuffled.index, together.index[order])


def test_neither_the_bank_nor_the_queries_are_changed():
    bank, Q = bank_of(), randn(4, 16, seed=1)
    Q[0, 0] = math.nan
    X, before = bank.patterns.clone(), Q.clone()
    hopmem.retrieve(bank, Q, steps=3)
    assert torch.equal(bank.patterns, X)
    assert torch.equal(Q.nan_to_num(7), before.nan_to_num(7))


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_more_steps_never_raise_the_energy_and_end_converged(alpha):
    bank, Q = bank_of(), randn(10, 16, seed=1)
    energies = [hopmem.retrieve(bank, Q, alpha=alpha, beta=6.0, steps=n, tolerance=0).energy for n in range(1, 8)]
    assert all(bool((after <= before + 1e-6).all()) for before, after in pairwise(energies))
    last = hopmem.retrieve(bank, Q, alpha=alpha, beta=6.0, steps=1000)
    assert bool(last.converged.all())
    assert bool((last.steps < 1000).all())


def test_alpha_and_beta_come_from_the_bank_where_they_are_not_given():
    bank = replace(bank_of(), alpha=2.0).tuned()
    answer = hopmem.retrieve(bank, bank.patterns[:2])
    assert (answer.alpha, answer.beta, answer.beta_source) == (2.0, bank.tuning.beta, "smallest Δ")
    given = hopmem.retrieve(bank, bank.patterns[:2], alpha=1.0, beta=3)
    assert (given.alpha, given.beta, given.beta_source) == (1.0, 3.0, "as given")
