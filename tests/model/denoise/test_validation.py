"""What is held out, how copies are drawn, and how a map is judged: against retrieval itself and a fine grid of β."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.denoise import search as room
from hopmem.model.denoise.candidates import measure
from hopmem.model.denoise.learning import beats, raw_maps
from hopmem.model.denoise.refine import Refinement, Refining, Start, refine
from hopmem.model.denoise.search import Search, begin
from hopmem.model.denoise.validation import Score, Source, gaps, judge, least_error, verdict
from hopmem.model.hopfield import Dynamics, complete, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import Patterns, unit
from tests import reference
from tests.model import randn

BUDGET = 1 << 26


def source(M: int, *noises: str, d: int = 8) -> Source:
    memory = Patterns(randn(M, d))
    return Source(memory, canvas_of(memory, (d,), None), tuple(parse_noise(name, images=False) for name in noises))


def pairs(n: int, M: int = 30, d: int = 8) -> Source:
    row_of = torch.randint(M, (n,), generator=torch.Generator().manual_seed(1))
    memory = Patterns(randn(M, d))
    return replace(source(M, d=d), noisy=memory[row_of] + randn(n, d, seed=2), row_of=row_of)


def search(of: Source, seed: int = 0) -> Search:
    return begin(of, seed, BUDGET)


@pytest.mark.parametrize(("M", "kept"), [(20, 10), (25, 12), (300, 150), (1000, 250), (2000, 400), (9000, 1000)])
def test_what_is_validated_on_is_not_learned_from(M, kept):
    found = search(source(M, "gaussian:1"))
    assert found.apart
    assert sorted([*found.held.tolist(), *found.fit.tolist()]) == list(range(M))
    assert len(found.held) == kept
    held = set(found.held.tolist())
    for trial in (found.trial, found.confirmation()):
        assert set(trial.truth.tolist()) <= held
    assert held <= set(found.trial.truth.tolist())
    if M <= 5000:
        assert set(found.raw_trial().truth.tolist()) == set(range(M))  # a raw map has learned from none


@pytest.mark.parametrize("M", [2, 3, 19])
def test_few_memories_are_shared_but_not_their_corruptions(M):
    found = search(source(M, "gaussian:1"))
    assert not found.apart
    assert sorted(found.held.tolist()) == sorted(found.fit.tolist()) == list(range(M))


@pytest.mark.parametrize("M", [2, 19, 40])
@pytest.mark.parametrize("noises", [("gaussian:1",), ("contrast:0.5", "gaussian:0.3")])
def test_what_chooses_what_confirms_and_what_is_fitted_are_corrupted_by_draws_of_their_own(monkeypatch, noises, M):
    seeds, corrupted = [], Source.corrupted

    def spy(self, items, generator):
        seeds.append(generator.initial_seed())
        return corrupted(self, items, generator)

    monkeypatch.setattr(Source, "corrupted", spy)
    found = search(source(M, *noises))
    found.confirmation(), found.raw_trial()
    assert len(set(seeds)) == len(seeds) == 3
    measure(found)
    how, W = Refining(steps=3), torch.eye(8)
    state = Refinement.start(8, 1.0, (0.0, 0.0), torch.device("cpu"))
    refine(Start(W, torch.zeros(8), 0.0), found.source, found.fit, state, how, lambda A, offset: (0.0, 0.0))
    assert len(set(seeds)) == 3 + 1 + 3  # the moments are one stream, each step of the refinement another


@pytest.mark.parametrize("n", [2, 3, 5, 19, 40, 203])
def test_a_given_pair_is_fitted_or_chosen_or_confirmed_on(n):
    found = search(pairs(n))
    fresh, X = found.confirmation(), found.source.noisy
    parts = [{tuple(row) for row in rows.tolist()} for rows in (X[found.fit], found.trial.X, fresh.X)]
    assert not parts[2] & (parts[0] | parts[1])
    assert all(parts)
    if n > 2:
        assert not parts[0] & parts[1]
        assert sum(map(len, parts)) == n
    assert not found.apart  # what was held out is never learned from afterwards
    assert_close(found.trial.clean, found.source.memory[found.trial.truth])


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_seed_decides_the_split_and_every_draw(seed):
    first, again, other = (search(source(50, "gaussian:1"), each) for each in (seed, seed, seed + 1))
    assert torch.equal(first.fit, again.fit)
    assert torch.equal(first.trial.X, again.trial.X)
    assert torch.equal(first.confirmation().X, again.confirmation().X)
    assert not torch.equal(first.trial.X, other.trial.X)
    assert not torch.equal(first.fit, other.fit)


def test_no_purpose_shares_its_draws_with_another():
    purposes = [getattr(room, name) for name in ("SPLIT", "CHOOSE", "CONFIRM", "FIT", "RIVAL", "RAW")]
    assert len({room.draws(seed, purpose) for seed in range(50) for purpose in purposes}) == 300


def test_rivals_hold_the_truth_and_each_memory_once():
    found = search(source(60, "gaussian:1"))
    assert torch.equal(found.rivals[found.place], found.trial.clean)
    assert len(found.rivals) == len(torch.unique(found.rivals, dim=0)) == 60


def test_noises_fall_in_equal_parts_and_on_every_memory_alike():
    of = source(16, "gaussian:0.0", "mask:1", "gaussian:3")
    trial = of.trial(torch.arange(16), 1000, 0)
    counts = torch.bincount(trial.noise)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(trial.X[trial.noise == 0], trial.clean[trial.noise == 0])
    assert not trial.X[trial.noise == 1].any()
    counts = torch.bincount(trial.truth)
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("M", [8, 16, 50])
def test_some_of_a_trial_are_copies_of_many_memories(M):
    """Where a stride through the queries divided the number of memories, it would meet the same few again and again."""
    part = source(M, "gaussian:1").trial(torch.arange(M), 1024, 0).some(128)
    assert len(part.X) <= 128
    assert len(part.truth.unique()) > M // 2
    assert torch.equal(part.clean, randn(M, 8)[part.truth])


@pytest.mark.parametrize("M", [2, 9])
def test_gaps_are_to_the_best_rival(M):
    S, truth = randn(20, M), torch.arange(20) % M
    expected = [float(row[t] - max(row[j] for j in range(M) if j != t)) for row, t in zip(S, truth, strict=True)]
    assert_close(gaps(S, truth), torch.tensor(expected))
    found = verdict(S, truth)
    assert torch.equal(found.right, torch.tensor(expected) > 0)
    assert found.margin == pytest.approx(
        float(torch.tensor(expected).mean() / torch.tensor(expected).std(correction=0))
    )


def test_a_tie_is_no_answer():
    assert not verdict(torch.ones(4, 3), torch.tensor([0, 0, 1, 2])).right.any()


@pytest.mark.parametrize("level", [0.1, 0.5, 1.0])
def test_the_beta_of_least_error_is_as_good_as_any_on_a_fine_grid(level):
    X = randn(30, 6)
    truth = torch.arange(90) % 30
    S = unit(X[truth] + level * randn(90, 6, seed=1)) @ unit(X).T
    energy = float((X - X.mean(0)).square().sum(1).mean())
    beta, error = least_error(S, truth, X, energy)

    def literal(b: float) -> float:
        answers = [reference.mix(reference.entmax(b * row, 1.0), X) for row in S.double().numpy()]
        return sum(float(((a - X[t].double().numpy()) ** 2).sum()) for a, t in zip(answers, truth, strict=True)) / 90

    assert float(error.mean()) == pytest.approx(literal(beta), rel=1e-4, abs=1e-6)
    least = min(literal(0.1 * 1.3**k) for k in range(45))
    assert literal(beta) <= 1.05 * least + 1e-4 * energy  # it is found to a factor of two


def test_of_equally_good_betas_the_smallest_is_taken():
    X = 5 * torch.eye(6)
    beta, error = least_error(torch.eye(6), torch.arange(6), X, 25.0)  # any large β is perfect
    assert float(error.mean()) < 1e-3
    assert beta < 100


@pytest.mark.parametrize("name", ["gaussian:0.6", "missing:0.4"])
@pytest.mark.parametrize("phi", [*raw_maps(Patterns(randn(30, 8))).values(), FeatureMap(randn(5, 8, seed=3), randn(5))])
def test_a_map_is_judged_by_what_retrieval_brings_back(phi, name):
    of = source(30, name)
    trial = of.trial(torch.arange(30), 24, 5)
    score = judge(phi, trial, trial, of.memory, 8.0, 8.0, BUDGET)
    features, dynamics = Features(of.memory, phi), Dynamics(beta=score.beta)
    if name.startswith("missing"):
        found = complete(trial.X.nan_to_num(9), ~trial.X.isnan(), features, of.memory, 8, dynamics)
    else:
        found = retrieve(trial.X, features, of.memory, 8, dynamics)
    assert torch.equal(score.right, (found.index[:, 0] == trial.truth).double())
    assert_close(score.error, (found.patterns - trial.clean).square().sum(1).double(), atol=1e-4, rtol=1e-4)
    assert math.log2(score.beta / 8) in range(-2, 4)


def scored(right: Tensor, error: Tensor | None = None) -> Score:
    return Score(1.0, right.double(), torch.ones(len(right)).double() if error is None else error.double())


def coin(rate: float, seed: int, count: int = 400) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < rate


TRUTH = torch.arange(400) % 100


def test_a_map_beats_another_that_is_clearly_less_often_right():
    good, bad = scored(coin(0.9, 0)), scored(coin(0.6, 1))
    assert beats(good, bad, TRUTH)
    assert not beats(bad, good, TRUTH)


def test_a_map_does_not_beat_itself():
    for error in (torch.zeros(400), randn(400).abs()):
        score = scored(coin(0.8, 0), error)
        assert not beats(score, score, TRUTH)


def test_of_two_maps_that_are_right_as_often_the_one_of_much_less_error_is_better():
    right, error = coin(0.8, 0), 1 + 0.1 * randn(400).abs()
    less, hardly = scored(right, 0.5 * error), scored(right, 0.995 * error)
    assert beats(less, scored(right, error), TRUTH)
    assert not beats(scored(right, error), less, TRUTH)
    assert not beats(hardly, scored(right, error), TRUTH)


def test_less_error_does_not_make_up_for_being_less_often_right():
    assert not beats(scored(coin(0.6, 0), torch.zeros(400)), scored(coin(0.9, 1)), TRUTH)


@pytest.mark.parametrize("groups", [3, 20, 100])
@pytest.mark.parametrize("between", [0.0, 1.0])
def test_a_difference_of_chance_alone_seldom_counts(between, groups):
    """Two maps of the same law; what the copies of a memory share (`between`) is drawn for each map anew."""
    truth, wins, runs = torch.arange(200) % groups, 0, 400
    for seed in range(runs):
        luck = randn(2, groups, seed=seed)[:, truth] * between + randn(2, 200, seed=seed + 10_000)
        errors = 5 + randn(2, 200, seed=seed + 20_000)
        one, other = (scored(luck[k] < 0.5, errors[k]) for k in range(2))
        wins += beats(one, other, truth)
    assert wins / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_copies_of_one_memory_are_not_independent_witnesses():
    """Of eight memories the one map finds six, the other four: a hundred copies of each don't make that certain."""
    memory = torch.arange(800) % 8
    one, other = (torch.tensor(found)[memory] for found in ([1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1, 1, 0]))
    assert not beats(scored(one), scored(other), memory)
    assert beats(scored(one), scored(other), torch.arange(800))  # as independent witnesses they would


def test_copies_of_the_only_memory_are_all_the_witnesses_there_are():
    memory = torch.zeros(400, dtype=torch.int64)
    assert beats(scored(coin(0.9, 0)), scored(coin(0.5, 1)), memory)
    assert not beats(scored(torch.ones(1)), scored(torch.zeros(1)), memory[:1])
