"""The blocked pass: whatever the budget, the sums are the same; of equal scores the lowest index comes first."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns
from hopmem.model.scan import Mixed, combine, known_scores, memory_rows, query_blocks, scores, top_scores
from tests import reference
from tests.model import randn

BUDGETS = [1, 5000, 1 << 28]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("phi", [FeatureMap(), FeatureMap(randn(5, 12, seed=1), randn(5, seed=2))])
def test_scores_are_the_products_with_every_memory(phi, budget):
    memory = Features(Patterns(randn(70, 12)), phi)
    Y = randn(9, memory.dimension, seed=3)
    expected = Y.double().numpy() @ reference.features(memory.patterns.stored, phi.W, phi.b).T
    assert_close(scores(Y, memory, budget).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", BUDGETS)
def test_known_scores_are_the_cosines_on_the_known_entries(budget):
    Xi, X, known = randn(70, 12), randn(9, 12, seed=1), randn(9, 12, seed=2) > 0.3
    known[0], known[1] = True, torch.arange(12) == 4
    Xi[3] = 0
    Xi[4, known[2]] = 0
    expected = [[reference.cosine_on_known(x, seen, xi) for xi in Xi] for x, seen in zip(X, known, strict=True)]
    found = known_scores(X, known, Features(Patterns(Xi)), budget)
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=0)


def test_known_scores_never_look_at_unknown_entries():
    memory, X, known = Features(Patterns(randn(20, 8))), randn(5, 8, seed=1), randn(5, 8, seed=2) > 0
    for filling in (1e30, torch.inf, torch.nan):
        filled = torch.where(known, X, filling)
        assert torch.equal(known_scores(filled, known, memory, 1 << 20), known_scores(X, known, memory, 1 << 20))


@pytest.mark.parametrize("budget", BUDGETS)
def test_combine_is_the_weighted_sum_of_rows(budget):
    P, rows = torch.softmax(randn(6, 90), -1), randn(90, 7, seed=1)
    expected = np.stack([reference.mix(p, rows) for p in P])
    assert_close(combine(P, rows, 7, budget).double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
    assert_close(combine(P, Patterns(rows), 7, budget), combine(P, rows, 7, 1 << 28), atol=1e-6, rtol=0)


@pytest.mark.parametrize("b", [1, 6])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", [1, 5, 40])
def test_weights_are_mixed_alike_all_at_once_or_one_by_one(b, kind, blocks):
    P, rows = torch.softmax(randn(b, 150), -1).masked_fill_(randn(b, 150, seed=2) > 0.3, 0), randn(150, 7, seed=1)
    state, row = P.nonzero(as_tuple=True)
    mixed = Mixed(P, 7, kind)
    for number in range(blocks):
        if number == blocks // 2:
            mixed.fade(torch.full((b,), 0.5))
        if number % 3 < 2:
            mixed.add(P, rows)
        else:
            mixed.add_few(state, row, P[state, row], rows)
    times = blocks - blocks // 2 / 2
    assert mixed.total.dtype == torch.float64
    assert_close(mixed.total, times * (P.double() @ rows.double()), atol=1e-6 * times, rtol=0)


@pytest.mark.parametrize("b", [1, 2, 16])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("add", ["add", "add_few"])
def test_a_million_copies_mix_to_themselves(b, n, add):
    rows, P = torch.tensor([1.1, -0.3, 77.7])[:n].repeat(50_000, 1), torch.full((b, 50_000), 0.7)
    state, place = torch.ones_like(P).nonzero(as_tuple=True)
    mixed = Mixed(P, n)
    for _ in range(20):
        if add == "add":
            mixed.add(P, rows)
        else:
            mixed.add_few(state, place, P[state, place], rows)
    assert_close(mixed.total / (20 * P.double().sum(1)[:, None]), rows[:b].double(), rtol=5e-6, atol=0)


@pytest.mark.parametrize("count", [1, 10, 5000])
@pytest.mark.parametrize("budget", [1, 100_000, 1 << 30])
def test_query_blocks_visit_every_query_once(budget, count):
    cut = list(query_blocks(count, 300, budget))
    assert [row for rows in cut for row in range(count)[rows]] == list(range(count))


@pytest.mark.parametrize("budget", [1 << 16, 1 << 22, 1 << 30])
def test_blocks_shrink_with_the_budget(budget):
    widest = max(rows.stop - rows.start for rows in query_blocks(100_000, 500, budget))
    assert widest == 1 or widest * 500 * 4 <= budget
    assert memory_rows(1000, budget) == 16 or memory_rows(1000, budget) * 1000 * 4 <= budget


@pytest.mark.parametrize("k", [1, 2, 7, 30])
@pytest.mark.parametrize("tied", [False, True])
def test_top_scores_come_largest_first_and_ties_lowest_index_first(tied, k):
    S = randn(50, 30)
    S = S.round() if tied else S
    expected = [sorted(range(30), key=lambda mu, row=row: (-row[mu], mu))[:k] for row in S.tolist()]
    assert top_scores(S, k).tolist() == expected


@pytest.mark.parametrize("k", [1, 5, 30])
def test_top_scores_restores_the_scores(k):
    S = randn(50, 30).round()
    before = S.clone()
    top_scores(S, k)
    assert torch.equal(S, before)
