"""Refinement: its gradient against finite differences, its loss against the literal one, and going on after a stop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.denoise import refine as refining
from hopmem.model.denoise.refine import Refinement, Refining, Start, refine
from hopmem.model.denoise.validation import Source
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import Patterns, Rows, unit
from tests import reference
from tests.model import randn

d, D = 10, 6
HOW = Refining(steps=60, learning_rate=1e-2, batch_size=24)
every_lift = pytest.mark.parametrize("lift", [0.0, 5.0], ids=["angle", "distance"])


def source(M: int = 50, name: str = "gaussian:0.8") -> Source:
    memory = Patterns(randn(M, d))
    return Source(memory, canvas_of(memory, (d,), None), (parse_noise(name, images=False),))


def start(lift: float = 0.0) -> Start:
    return Start(randn(D, d, seed=1) / d**0.5, 0.1 * randn(d, seed=2), lift)


def begun(score: tuple[float, float] = (-math.inf, -math.inf)) -> Refinement:
    return Refinement.start(D, 5.0, score, torch.device("cpu"))


def rising() -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """A validation that finds each look better than the last."""
    looks: list[int] = []

    def score(A: Tensor, offset: Tensor) -> tuple[float, float]:
        looks.append(1)
        return float(len(looks)), 0.0

    return score


def level(A: Tensor, offset: Tensor) -> tuple[float, float]:
    return 0.0, 0.0


def smooth(A: Tensor, offset: Tensor) -> tuple[float, float]:
    """A validation that depends on nothing but the map, so that interrupted runs see the same."""
    return float((A - torch.eye(len(A))).norm()), 0.0


def stop_after(steps: int) -> Callable[[], bool]:
    asked: list[int] = []

    def halt() -> bool:
        asked.append(1)
        return len(asked) > steps

    return halt


def assert_same_state(one: Refinement, other: Refinement) -> None:
    found, expected = one.tensors(), other.tensors()
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def batch(of: Source, begin: Start, parameters: list[Tensor], step: int = 3, how: Refining = HOW) -> Tensor:
    return refining._batch_loss(begin, of, torch.arange(len(of)), parameters, how, step)[0]


def double(begin: Start, of: Source, monkeypatch: pytest.MonkeyPatch) -> tuple[Start, Source]:
    """The same in float64, whose draws are made once."""
    X, which = of.corrupted(torch.arange(len(of)), torch.Generator().manual_seed(0))
    monkeypatch.setattr(Source, "corrupted", lambda self, items, generator: (X.double()[items], which[items]))
    monkeypatch.setattr(Patterns, "__getitem__", lambda self, rows: self.stored[rows].double())
    return replace(begin, W=begin.W.double(), mean=begin.mean.double()), of


def turned(seed: int = 4) -> list[Tensor]:
    A = torch.eye(D, dtype=torch.float64) + 0.2 * randn(D, D, seed=seed).double()
    return [A, 0.1 * randn(D, seed=seed + 1).double(), torch.tensor(1.5, dtype=torch.float64)]


@every_lift
def test_the_gradient_is_that_of_finite_differences(monkeypatch, lift):
    begin, of = double(start(lift), source(8), monkeypatch)
    parameters = [each.requires_grad_(True) for each in turned()]

    def loss(*parts):
        return batch(of, begin, list(parts))

    assert torch.autograd.gradcheck(loss, parameters, atol=1e-7, check_undefined_grad=False)


@every_lift
def test_the_loss_is_the_mean_surprise_at_the_right_memory_of_the_batch(monkeypatch, lift):
    begin, of = double(start(lift), source(30), monkeypatch)
    parameters, how = turned(), replace(HOW, batch_size=1000)  # a batch this large holds every memory
    X, _ = of.corrupted(torch.arange(30), torch.Generator())
    phi = begin.map(parameters[0], parameters[1])
    W, b = phi.W, phi.b
    Y, Z = reference.features(X, W, b), reference.features(of.memory.stored, W, b)
    beta = math.exp(float(parameters[2]))
    surprises = [-math.log(reference.weights(y, Z, 1.0, beta)[place]) for place, y in enumerate(Y)]
    assert float(batch(of, begin, parameters, how=how)) == pytest.approx(sum(surprises) / 30, rel=1e-6)


@every_lift
def test_the_map_on_patterns_has_the_features_of_the_refinement(lift):
    begin, X = start(lift), randn(20, d, seed=8)
    A, offset = (each.float() for each in turned()[:2])
    phi = begin.map(A, offset)
    assert_close(unit(phi(X)), begin.states(begin.features(X), A, offset), atol=1e-5, rtol=0)
    assert phi.dimension(d) == D + (lift > 0)


def test_what_is_unknown_is_taken_to_be_the_mean():
    begin, X = start(), randn(4, d)
    filled = X.clone()
    filled[:, 3] = begin.mean[3]
    X[:, 3] = math.nan
    assert_close(begin.features(X), begin.features(filled))


@every_lift
def test_refinement_lowers_the_loss_on_copies_it_has_not_seen(lift):
    of, begin, state = source(), start(lift), begun()
    assert refine(begin, of, torch.arange(50), state, replace(HOW, steps=100), rising())
    unseen = range(10_000, 10_020)
    first = [float(batch(of, begin, begun().parameters, step)) for step in unseen]
    last = [float(batch(of, begin, state.parameters, step)) for step in unseen]
    assert sum(last) < 0.9 * sum(first)
    assert state.improved


def test_the_seed_decides_every_bit():
    states = []
    for seed in (0, 0, 1):
        state = begun()
        refine(start(), source(), torch.arange(50), state, replace(HOW, seed=seed), smooth)
        states.append(state)
    assert_same_state(states[0], states[1])
    assert not torch.equal(states[0].parameters[0], states[2].parameters[0])


@every_lift
@pytest.mark.parametrize("stops", [[0], [1], [19], [20], [33], [5, 20, 1, 0, 7]])
def test_an_interrupted_refinement_goes_on_as_if_it_had_never_stopped(stops, lift):
    whole, state = begun(), begun()
    assert refine(start(lift), source(), torch.arange(50), whole, HOW, smooth)
    for steps in stops:
        assert not refine(start(lift), source(), torch.arange(50), state, HOW, smooth, halt=stop_after(steps))
        state = Refinement.restored({name: tensor.clone() for name, tensor in state.tensors().items()})
    assert state.step == sum(stops)
    assert refine(start(lift), source(), torch.arange(50), state, HOW, smooth)
    assert_same_state(state, whole)
    assert len(state.curve) == state.step == HOW.steps


def test_a_state_is_what_its_tensors_say():
    state = begun((0.25, math.inf))
    refine(start(), source(), torch.arange(50), state, replace(HOW, steps=21), level)
    assert_same_state(Refinement.restored(state.tensors()), state)


def test_a_finished_refinement_takes_no_step_more():
    state = begun()
    assert refine(start(), source(), torch.arange(50), state, HOW, smooth)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    assert refine(start(), source(), torch.arange(50), state, HOW, smooth)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_what_does_not_validate_better_than_the_start_is_not_kept():
    state = begun((0.5, 0.0))
    assert refine(start(), source(), torch.arange(50), state, replace(HOW, steps=1000), level)
    assert not state.improved
    assert torch.equal(state.best[0], torch.eye(D))
    assert state.best_score == (0.5, 0.0)
    assert state.step == refining.LOOK_EVERY * refining.PATIENCE  # and patience has an end


def test_the_best_that_was_seen_is_kept_however_it_went_on():
    seen: list[tuple[tuple[float, float], Tensor]] = []

    def uneven(A: Tensor, offset: Tensor) -> tuple[float, float]:
        seen.append((([0.2, 0.9, 0.4][len(seen)], 0.0), A.clone()))
        return seen[-1][0]

    state = begun((0.1, 0.0))
    refine(start(), source(), torch.arange(50), state, HOW, uneven)
    assert state.best_score == (0.9, 0.0)
    assert torch.equal(state.best[0], seen[1][1])
    assert not torch.equal(state.best[0], state.parameters[0])


@dataclass(frozen=True)
class Counted(Patterns):
    """Patterns that remember how many rows were read."""

    read: list[int] = field(default_factory=list)

    def __getitem__(self, rows: Rows) -> Tensor:
        block = super().__getitem__(rows)
        self.read.append(len(block))
        return block


def test_a_step_reads_a_batch_however_many_memories_there_are():
    most = []
    for M in (50, 500, 5000):
        memory = Counted(randn(M, d))
        of = replace(source(M), memory=memory)
        refine(start(), of, torch.arange(M), begun(), replace(HOW, steps=10), level)
        most.append(sum(memory.read))
    assert max(most) <= 10 * 2 * HOW.batch_size  # the clean half of the pairs, and the memories they are told from


@pytest.mark.parametrize("shared", [False, True])
def test_given_pairs_are_refined_on_even_where_they_share_memories(shared):
    row_of = torch.arange(40) % (4 if shared else 40)
    memory = Patterns(randn(40, d))
    of = Source(memory, canvas_of(memory, (d,), None), noisy=memory[row_of] + randn(40, d, seed=3), row_of=row_of)
    state = begun()
    assert refine(start(), of, torch.arange(40), state, HOW, smooth)
    assert all(math.isfinite(loss) for loss in state.curve)
    blind = [*state.parameters[:2], torch.tensor(-50.0)]  # at β = 0 every memory of the batch is as likely,
    loss = float(batch(of, start(), blind, how=replace(HOW, batch_size=1000)))
    assert loss == pytest.approx(math.log(4 if shared else 40))  # and each counts once


def test_progress_hears_every_step_its_loss_and_the_separation_of_its_batch():
    heard: list[tuple[int, int, float, float]] = []
    state = begun()
    refine(start(), source(), torch.arange(50), state, HOW, smooth, lambda *step: heard.append(step))
    assert [news[:3] for news in heard] == [(step + 1, HOW.steps, loss) for step, loss in enumerate(state.curve)]
    assert all(0 < delta < 2 for *_, delta in heard)


def test_no_steps_leave_the_start():
    state = begun()
    assert refine(start(), source(), torch.arange(50), state, replace(HOW, steps=0), level)
    assert_same_state(state, begun())
