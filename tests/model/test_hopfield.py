"""Retrieval against the literal equations, the energy, Theorem 2, attention and nearest neighbours."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from hopmem.model.bounds import exact_fraction
from hopmem.model.entmax import conjugate, entmax
from hopmem.model.hopfield import Dynamics, Retrieval, complete, energy, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.scan import combine, scores
from hopmem.model.separation import separation
from tests import reference
from tests.model import randn, units

M, d, B = 40, 12, 9
ALPHAS = [1.0, 1.5, 2.0, 3.0]
IDENTITY = FeatureMap()
LEARNED = FeatureMap(randn(8, d, seed=90), randn(8, seed=91))
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
every_map = pytest.mark.parametrize("phi", [IDENTITY, LEARNED], ids=["identity", "learned"])


def bank(phi: FeatureMap = IDENTITY, rows: int = M) -> Features:
    return Features(Patterns(randn(rows, d)), phi)


def energy_of(Y: Tensor, S: Tensor, P: Tensor, dynamics: Dynamics) -> Tensor:
    return energy(Y, S.amax(1), conjugate(dynamics.beta * S, P, dynamics.alpha), dynamics.beta)


def noisy(level: float = 0.7, count: int = B) -> Tensor:
    return randn(M, d)[:count] + level * randn(count, d, seed=1)


def some_known(share: float = 0.6) -> Tensor:
    known = torch.rand(B, d, generator=torch.Generator().manual_seed(2)) < share
    known[:, 0] = True
    return known


def ask(memory: Features, X: Tensor, dynamics: Dynamics, known: Tensor | None = None) -> Retrieval:
    if known is None:
        return retrieve(X, memory, memory.patterns, d, dynamics)
    return complete(X, known, memory, memory.patterns, d, dynamics)


def update(Y: Tensor, memory: Features, dynamics: Dynamics) -> tuple[Tensor, Tensor, Tensor]:
    """y ↦ p Z with a weight for every memory: the equation, without what leaves out what weighs nothing."""
    S = scores(Y, memory, dynamics.budget)
    P = entmax(dynamics.beta * S, dynamics.alpha)
    return combine(P, memory, memory.dimension, dynamics.budget), S, P


def assert_same_answers(found: Retrieval, expected: Retrieval, tolerance: float = 1e-6) -> None:
    for each in fields(Retrieval):
        assert_close(getattr(found, each.name), getattr(expected, each.name), atol=tolerance, rtol=0)


def by_the_equations(memory: Features, X: Tensor, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    Xi, phi = memory.patterns.stored, memory.phi
    Z, Y = reference.features(Xi, phi.W, phi.b), reference.features(X, phi.W, phi.b)
    answers = [reference.retrieve(y, Z, Xi, dynamics.alpha, dynamics.beta, dynamics.steps) for y in Y]
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*answers, strict=True))


@every_map
@every_alpha
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.5, 4.0, 12.0])
def test_retrieval_is_the_literal_equation(beta, steps, alpha, phi):
    memory, dynamics = bank(phi), Dynamics(alpha=alpha, beta=beta, steps=steps, tolerance=0, top=M)
    P, readout = by_the_equations(memory, noisy(), dynamics)
    found = ask(memory, noisy(), dynamics)
    assert_close(found.patterns.double(), readout, atol=2e-5, rtol=0)
    assert_close(torch.zeros(B, M).scatter(1, found.index, found.weight).double(), P, atol=1e-5, rtol=0)


def test_values_are_read_out_in_the_place_of_patterns():
    memory, V = bank(), randn(M, 3, seed=5)
    found = retrieve(noisy(), memory, V, 3, Dynamics(beta=4, top=M))
    expected = np.stack([reference.mix(p, V[i]) for p, i in zip(found.weight, found.index, strict=True)])
    assert_close(found.patterns.double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 20.0])
def test_with_softmax_and_unit_patterns_one_step_is_attention(beta):
    Z, Y = units(M, d), units(B, d, seed=1)
    memory = Features(Patterns(Z))
    expected = scaled_dot_product_attention(Y[None], Z[None], Z[None], scale=beta)[0]
    assert_close(ask(memory, Y, Dynamics(beta=beta)).patterns, expected, atol=1e-5, rtol=0)


@every_map
@every_alpha
@pytest.mark.parametrize("beta", [0.3, 3.0, 30.0])
def test_energy_is_the_literal_equation(beta, alpha, phi):
    memory, dynamics = bank(phi), Dynamics(alpha=alpha, beta=beta)
    Z = reference.features(memory.patterns.stored, phi.W, phi.b)
    Y = 0.8 * units(B, memory.dimension, seed=7)
    _, S, P = update(Y, memory, dynamics)
    expected = torch.tensor([reference.energy(y, Z, alpha, beta) for y in Y.double().numpy()])
    assert_close(energy_of(Y, S, P, dynamics).double(), expected.double(), atol=5e-6, rtol=0)


@every_map
@pytest.mark.parametrize("alpha", [1.0, 1.1, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0, 50.0])
def test_energy_never_rises_along_the_updates(beta, alpha, phi):
    memory, dynamics = bank(phi), Dynamics(alpha=alpha, beta=beta)
    Y, energies = units(30, memory.dimension, seed=8), []
    for _ in range(10):
        following, S, P = update(Y, memory, dynamics)
        energies.append(energy_of(Y, S, P, dynamics))
        Y = following
    assert (torch.stack(energies).diff(dim=0) <= 2e-6 * max(1, 1 / beta)).all()  # Ψ*/β holds ln M / β at least


@every_map
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0])
def test_the_reported_energy_never_rises_with_more_steps(alpha, phi):
    memory = bank(phi)
    energies = [ask(memory, noisy(), Dynamics(alpha=alpha, beta=6, steps=steps)).energy for steps in range(1, 7)]
    assert (torch.stack(energies).diff(dim=0) <= 2e-6).all()


@every_map
def test_the_reported_energy_is_that_of_the_state_that_gave_the_weights(phi):
    memory, dynamics = bank(phi), Dynamics(alpha=1.5, beta=6)
    Y = unit(phi(noisy()))
    for steps in range(1, 5):
        following, S, P = update(Y, memory, dynamics)
        found = ask(memory, noisy(), replace(dynamics, steps=steps, tolerance=0))
        assert_close(found.energy, energy_of(Y, S, P, dynamics), atol=1e-5, rtol=0)
        Y = following


@pytest.mark.parametrize("alpha", [1.1, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("phi", [IDENTITY, LEARNED], ids=["identity", "learned"])
def test_memories_are_retrieved_exactly_under_theorem_2(phi, alpha):
    memory = bank(phi)
    beta = 1.001 / (float(separation(memory).delta.min()) * (alpha - 1))
    Xi = memory.patterns.stored
    found = ask(memory, Xi, Dynamics(alpha=alpha, beta=beta, steps=5))
    assert torch.equal(found.patterns, Xi)
    assert torch.equal(found.weight, torch.ones(M, 1))
    assert torch.equal(found.index[:, 0], torch.arange(M))
    assert found.converged.all()
    assert (found.steps == 1).all()


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_one_step_is_exact_from_any_query_as_near_as_theorem_2_asks(share, alpha):
    Z, direction = units(M, d), units(M, d, seed=1)
    measured = separation(Z)
    r = share * measured.radius
    closest = measured.pairs[0]
    direction[closest] = unit(Z[closest.flip(0)] - Z[closest])  # the worst there is: straight at the other of the two
    beta = max(
        1.001 / ((alpha - 1) * delta * (delta / 2 - r))
        for mu in range(M)
        for nu in range(M)
        if mu != nu and (delta := reference.distance(Z, mu, nu))
    )
    dynamics = Dynamics(alpha=alpha, beta=beta)
    _, _, P = update(Z + r * direction, Features(Patterns(Z)), dynamics)
    assert torch.equal(P, torch.eye(M))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [1.0, 2.0, 3.0, 5.0])
def test_the_exact_fraction_is_the_share_of_memories_with_one_hot_weights(beta, alpha):
    memory = bank()
    _, _, P = update(memory[slice(0, M)], memory, Dynamics(alpha=alpha, beta=beta))
    one_hot = torch.isclose(P.amax(1), torch.ones(M), atol=0, rtol=0)
    assert exact_fraction(separation(memory).delta, alpha, beta) == pytest.approx(float(one_hot.double().mean()))


@every_alpha
def test_converged_queries_do_not_move_with_more_steps(alpha):
    memory, dynamics = bank(), Dynamics(alpha=alpha, beta=8, top=M, tolerance=1e-4)
    answers = [ask(memory, noisy(1.0), replace(dynamics, steps=steps)) for steps in (1, 2, 3, 5, 10, 30, 300)]
    for now, later in pairwise(answers):
        done = now.converged
        for each in fields(Retrieval):
            assert torch.equal(getattr(later, each.name)[done], getattr(now, each.name)[done])
        assert (later.steps[~done] > now.steps[~done]).all()
    assert answers[-1].converged.all()


@every_alpha
def test_a_converged_state_is_a_fixed_point(alpha):
    memory = bank()
    dynamics = Dynamics(alpha=alpha, beta=8, steps=200, tolerance=1e-5, top=M)
    found = ask(memory, noisy(1.0), dynamics)
    assert found.converged.all()
    P = torch.zeros(B, M).scatter(1, found.index, found.weight)
    Y = P @ memory[slice(0, M)]
    assert_close(update(Y, memory, dynamics)[0], Y, atol=2e-5, rtol=0)


def test_a_query_that_still_moves_has_not_converged():
    found = ask(bank(), noisy(1.0), Dynamics(beta=8, steps=1, tolerance=1e-5))
    assert not found.converged.any()
    assert (found.steps == 1).all()


@pytest.mark.grid(5)
@every_map
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])  # beyond 2 the edge of the support magnifies float32's rounding
@pytest.mark.parametrize("budget", [1, 10_000, 100_000])
@pytest.mark.parametrize("partial", [False, True])
def test_the_budget_never_changes_the_answers(partial, budget, alpha, phi):
    memory, dynamics = Features(Patterns(units(200, d)), phi), Dynamics(alpha=alpha, beta=3, steps=2, top=3)
    known = some_known() if partial else None
    expected = ask(memory, noisy(), dynamics, known)
    found = ask(memory, noisy(), replace(dynamics, budget=budget), known)
    assert_same_answers(found, expected)


@every_alpha
@pytest.mark.parametrize("budget", [1, 10_000, 100_000])
def test_the_budget_changes_no_choice_where_the_scores_are_exact(budget, alpha):
    Xi, X = randn(200, 16).sign(), randn(B, 16, seed=1).sign()  # unit features of ±1/4: every product is exact
    memory, dynamics = Features(Patterns(Xi)), Dynamics(alpha=alpha, beta=3, top=5)
    expected = retrieve(X, memory, Xi, 16, dynamics)
    found = retrieve(X, memory, Xi, 16, replace(dynamics, budget=budget))
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.support, expected.support)
    assert_same_answers(found, expected)


@every_map
@pytest.mark.parametrize("partial", [False, True])
def test_a_query_does_not_depend_on_the_queries_beside_it(partial, phi):
    memory, dynamics = bank(phi), Dynamics(alpha=1.5, beta=3, steps=3)
    known = some_known() if partial else torch.ones(B, d, dtype=torch.bool)
    together = ask(memory, noisy(), dynamics, known if partial else None)
    for i in range(B):
        alone = ask(memory, noisy()[i : i + 1], dynamics, known[i : i + 1] if partial else None)
        assert_same_answers(alone, Retrieval(*(getattr(together, each.name)[i : i + 1] for each in fields(Retrieval))))


@every_alpha
def test_features_that_are_held_answer_alike(alpha):
    memory, dynamics = bank(LEARNED), Dynamics(alpha=alpha, beta=3, steps=3)
    assert_same_answers(ask(memory.held(1 << 20), noisy(), dynamics), ask(memory, noisy(), dynamics))


@every_alpha
@pytest.mark.parametrize("partial", [False, True])
def test_support_and_margin_are_what_the_weights_say(partial, alpha):
    found = ask(bank(), noisy(), Dynamics(alpha=alpha, beta=4, top=M), some_known() if partial else None)
    assert torch.equal(found.support, (found.weight > (0.01 if alpha == 1 else 0)).sum(1))
    largest = found.weight.sort(dim=1, descending=True).values
    assert_close(found.weight, largest, atol=0, rtol=0)
    assert_close(found.margin, largest[:, 0] - largest[:, 1], atol=0, rtol=0)


@pytest.mark.parametrize("top", [1, 2, 5, M, M + 10])
def test_the_best_memories_are_named_up_to_all_there_are(top):
    every = ask(bank(), noisy(), Dynamics(beta=4, top=M))
    found = ask(bank(), noisy(), Dynamics(beta=4, top=top))
    assert torch.equal(found.index, every.index[:, :top])
    assert torch.equal(found.weight, every.weight[:, :top])


@every_alpha
@pytest.mark.parametrize("partial", [False, True])
def test_a_single_memory_is_always_the_answer(partial, alpha):
    memory = bank(rows=1)
    found = ask(memory, noisy(), Dynamics(alpha=alpha, beta=4, steps=3), some_known() if partial else None)
    assert torch.equal(found.patterns, memory.patterns.stored.expand(B, d))
    assert torch.equal(found.margin, torch.ones(B))
    assert torch.equal(found.support, torch.ones(B, dtype=torch.int64))


@every_alpha
@pytest.mark.parametrize("partial", [False, True])
def test_at_beta_zero_the_answer_is_the_mean_of_the_memories(partial, alpha):
    memory = bank()
    found = ask(memory, noisy(), Dynamics(alpha=alpha, beta=0), some_known() if partial else None)
    assert_close(found.patterns, memory.patterns.stored.mean(0).expand(B, d), atol=1e-6, rtol=0)


def test_of_equal_memories_the_first_is_named():
    Xi = randn(5, d).repeat(3, 1)
    memory = Features(Patterns(Xi))
    found = ask(memory, Xi[:5], Dynamics(beta=50, top=3))
    assert torch.equal(found.index, torch.arange(5)[:, None] + torch.tensor([0, 5, 10]))


@every_alpha
def test_completion_names_the_nearest_neighbour_on_the_known_entries(alpha):
    memory, known, X = bank(), some_known(0.4), noisy(1.5)
    cosines = [
        [reference.cosine_on_known(x, k, xi) for xi in memory.patterns.stored] for x, k in zip(X, known, strict=True)
    ]
    found = ask(memory, X, Dynamics(alpha=alpha, beta=4), known)
    assert found.index[:, 0].tolist() == np.argmax(cosines, axis=1).tolist()


@every_alpha
def test_completion_weighs_by_the_cosines_on_the_known_entries(alpha):
    memory, known, X = bank(), some_known(), noisy()
    Xi = memory.patterns.stored
    cosines = [[reference.cosine_on_known(x, k, xi) for xi in Xi] for x, k in zip(X, known, strict=True)]
    P = np.stack([reference.entmax(4 * np.array(row), alpha) for row in cosines])
    found = ask(memory, X, Dynamics(alpha=alpha, beta=4, top=M), known)
    assert_close(
        torch.zeros(B, M).scatter(1, found.index, found.weight).double(), torch.from_numpy(P), atol=1e-5, rtol=0
    )
    assert_close(found.patterns.double(), torch.from_numpy(P @ Xi.double().numpy()), atol=2e-5, rtol=0)


@every_map
@every_alpha
def test_completion_of_a_whole_query_is_one_step_of_retrieval(alpha, phi):
    memory, dynamics = bank(phi), Dynamics(alpha=alpha, beta=4, top=5)
    found = ask(memory, noisy(), dynamics, torch.ones(B, d, dtype=torch.bool))
    expected = replace(ask(memory, noisy(), dynamics), converged=torch.ones(B, dtype=torch.bool))
    assert_same_answers(found, expected, tolerance=5e-6)


@pytest.mark.parametrize("offset", [False, True])
@every_alpha
def test_completion_through_a_learned_map_is_the_restricted_map_written_out(alpha, offset):
    W, b = LEARNED.W.double().numpy(), LEARNED.b.double().numpy() if offset else np.zeros(8)
    memory = bank(FeatureMap(LEARNED.W, LEARNED.b if offset else None))
    known, X, Xi = some_known(), noisy().double().numpy(), memory.patterns.stored.double().numpy()
    r = -np.linalg.pinv(W) @ b
    expected = []
    for x, seen in zip(X, known.numpy(), strict=True):
        offset_seen = -(W[:, seen] @ r[seen])
        Z = reference.features(Xi[:, seen], W[:, seen], offset_seen)
        y = reference.features(x[None, seen], W[:, seen], offset_seen)[0]
        expected.append(reference.retrieve(y, Z, Xi, alpha, 4.0, steps=1)[1])
    found = ask(memory, noisy(), Dynamics(alpha=alpha, beta=4), known)
    assert_close(found.patterns.double(), torch.from_numpy(np.stack(expected)), atol=5e-5, rtol=0)


@every_map
@pytest.mark.parametrize("filling", [0.0, 1e30, -7.0])
def test_the_values_of_unknown_entries_never_matter(filling, phi):
    known, dynamics = some_known(), Dynamics(beta=4, alpha=1.5, top=3)
    found = ask(bank(phi), torch.where(known, noisy(), filling), dynamics, known)
    expected = ask(bank(phi), noisy(), dynamics, known)
    for each in fields(Retrieval):
        assert torch.equal(getattr(found, each.name), getattr(expected, each.name))


@every_map
def test_completion_keeps_the_order_of_the_queries(phi):
    memory, known, dynamics = bank(phi), some_known(), Dynamics(beta=4)
    known[[1, 4, 7]] = known[[0, 0, 3]]  # masks that return
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    found = ask(memory, noisy()[order], dynamics, known[order])
    assert_close(found.patterns, ask(memory, noisy(), dynamics, known).patterns[order], atol=1e-6, rtol=0)


@every_map
@pytest.mark.parametrize("partial", [False, True])
def test_progress_rises_to_all_queries(partial, phi):
    told, memory = [], bank(phi)
    dynamics, progress = Dynamics(budget=1), lambda done, total: told.append((done, total))
    if partial:
        complete(noisy(), some_known(), memory, memory.patterns, d, dynamics, progress)
    else:
        retrieve(noisy(), memory, memory.patterns, d, dynamics, progress)
    assert told == sorted(told)
    assert told[-1] == (B, B)


def test_queries_and_memories_are_left_as_they_were():
    memory, X = bank(), noisy()
    before = X.clone(), memory.patterns.stored.clone()
    ask(memory, X, Dynamics(steps=3))
    ask(memory, X, Dynamics(), some_known())
    assert torch.equal(X, before[0])
    assert torch.equal(memory.patterns.stored, before[1])


def test_a_zero_query_weighs_all_memories_alike():
    memory = bank()
    found = ask(memory, torch.zeros(1, d), Dynamics(beta=5, top=M))
    assert_close(found.weight, torch.full((1, M), 1 / M), atol=1e-7, rtol=0)
    assert not scores(torch.zeros(1, d), memory, 1 << 20).any()
