"""Learning for noise from end to end: what is kept helps on queries that nothing has seen, and nothing else is kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hopmem.model.denoise import candidates, fisher, search
from hopmem.model.denoise.candidates import COVARIANCES, measure
from hopmem.model.denoise.learning import FRESH, Denoised, learn_denoise, raw_maps
from hopmem.model.denoise.refine import Refinement, Refining
from hopmem.model.denoise.validation import Source
from hopmem.model.hopfield import Dynamics, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.noise import Canvas, Noise, canvas_of, parse_noise
from hopmem.model.rows import Patterns, unit
from tests.model import randn

HOW = Refining(steps=40, learning_rate=1e-2, batch_size=64)
CANDIDATES = 2 * len(COVARIANCES)  # each centred or not


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer queries and pairs, where it isn't the statistics that are tested."""
    monkeypatch.setattr(search, "QUERIES", 100)
    monkeypatch.setattr(search, "PARTIAL_QUERIES", 20)
    monkeypatch.setattr(candidates, "FEWEST_PAIRS", 256)


def source(X: Tensor, *names: str) -> Source:
    memory = Patterns(X)
    noises = tuple(parse_noise(name, images=False) for name in names)
    return Source(memory, canvas_of(memory, (X.shape[1],), None), noises)


def half(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Strong noise on half of the entries, weak on the others."""
    level = torch.where(torch.arange(X.shape[1]) % 2 == 0, 4.0, 0.3)
    return X + level * torch.randn(X.shape, generator=generator)


def shared(X: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Strong noise in a few directions, none of them along an entry."""
    directions = randn(4, X.shape[1], seed=70)
    return (
        X
        + 3 * torch.randn(len(X), 4, generator=generator) @ directions
        + 0.3 * torch.randn(X.shape, generator=generator)
    )


STRUCTURED = {"half": half, "shared": shared}


def structured(name: str, M: int = 120, d: int = 24) -> Source:
    return replace(source(randn(M, d)), noises=(Noise(name, ((STRUCTURED[name],),)),))


def pairs(of: Source, n: int, seed: int = 0) -> Source:
    """Pairs that a user has, and the noise models gone."""
    row_of = torch.arange(n) % len(of.memory)
    X, _ = of.corrupted(row_of, torch.Generator().manual_seed(1000 + seed))
    return replace(of, noises=(), noisy=X, row_of=row_of)


def accuracy(phi: FeatureMap, of: Source, count: int = 2000) -> float:
    """How often the right memory is nearest in features, on queries that nothing has seen."""
    items = torch.arange(count) % len(of.memory)
    X, _ = of.corrupted(items, torch.Generator().manual_seed(123_456))
    Z = unit(phi(of.memory[slice(0, len(of.memory))]))
    return float(((unit(phi(X)) @ Z.T).argmax(1) == items).double().mean())


def assert_usable(found: Denoised, of: Source) -> None:
    M, d = len(of.memory), of.memory.dimension
    for each in (found.learned, found.raw):
        rows = of.memory[slice(0, M)]
        answers = retrieve(rows, Features(of.memory, each.phi), of.memory, d, Dynamics(beta=each.score.beta))
        assert answers.patterns.isfinite().all()
        assert each.score.beta > 0
        assert each.score.error.isfinite().all()
    assert all(0 <= row.accuracy <= 1 and row.error >= 0 for row in found.table)
    assert set(found.loss) == {"first", "last"}


def assert_same_map(one: FeatureMap, other: FeatureMap) -> None:
    assert torch.equal(one.W, other.W)
    assert torch.equal(one.b, other.b)


def stop_after(count: int) -> Callable[[], bool]:
    asked: list[int] = []

    def halt() -> bool:
        asked.append(1)
        return len(asked) > count

    return halt


@pytest.mark.parametrize("name", STRUCTURED)
def test_where_the_noise_has_a_structure_the_learned_map_finds_far_more_than_any_raw_one(name):
    of = structured(name)
    found = learn_denoise(of, HOW)
    assert found.better
    raw = max(accuracy(phi, of) for phi in raw_maps(of.memory).values())
    learned = accuracy(found.learned.phi, of)
    assert learned > raw + 0.3
    assert learned == pytest.approx(found.learned.score.rank[0], abs=0.06)  # what was claimed is what is found
    assert accuracy(found.raw.phi, of) == pytest.approx(found.raw.score.rank[0], abs=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_where_the_noise_has_none_the_raw_map_is_kept(seed):
    found = learn_denoise(source(randn(100, 16, seed=seed), "gaussian:1"), replace(HOW, seed=seed))
    assert not found.better
    assert found.raw.method in raw_maps(Patterns(randn(3, 3)))


@pytest.mark.parametrize("name", ["gaussian:0", "mask:0"])
def test_without_noise_nothing_is_better_than_the_raw_patterns(name):
    found = learn_denoise(source(randn(40, 8), name), HOW)
    assert not found.better
    assert found.learned.score.rank[0] == found.raw.score.rank[0] == 1


def test_structure_is_learned_from_given_pairs_too():
    of = structured("shared")
    found = learn_denoise(pairs(of, 400), HOW)
    assert found.better
    assert accuracy(found.learned.phi, of) > max(accuracy(phi, of) for phi in raw_maps(of.memory).values()) + 0.2


def test_a_few_given_pairs_do_not_confirm_what_was_fitted_to_them():
    """Isotropic noise has nothing to learn; whitening what sixteen pairs span finds these sixteen and no others."""
    of = source(randn(40, 30), "gaussian:3")
    wins, claims, facts = 0, [], []
    for seed in range(4):
        given = pairs(of, 16, seed)
        found = learn_denoise(given, replace(HOW, steps=0, seed=seed))
        wins += found.better
        claims.append(found.learned.score.rank[0])
        facts.append(accuracy(found.learned.phi, of))
    assert wins <= 1
    assert sum(claims) / 4 < sum(facts) / 4 + 0.4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("d", [1, 2, 5])
@pytest.mark.parametrize("M", [2, 3, 25])
def test_banks_of_any_shape_are_learned(M, d):
    of = source(randn(M, d), "gaussian:0.5")
    found = learn_denoise(of, replace(HOW, steps=5))
    assert found.finished
    assert_usable(found, of)
    assert found.learned.phi.W.shape[0] <= d + 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("M", [3, 30])
@pytest.mark.parametrize("D", [1, 4, 5, 9])
def test_as_many_features_as_were_asked_for_are_learned_where_there_are_so_many(M, D):
    of = source(randn(M, 5), "gaussian:0.5")
    found = learn_denoise(of, replace(HOW, steps=5), dimension=D)
    assert_usable(found, of)
    lift = not found.learned.phi.W[-1].any()
    assert found.learned.phi.W.shape[0] <= max(D, 1 + lift)
    if M > 5 >= D > 1:
        assert found.learned.phi.W.shape[0] == D


@pytest.mark.usefixtures("quick")
def test_a_constant_and_a_zero_pattern_are_memories_like_others():
    X = randn(30, 6)
    X[3], X[8], X[9] = 0, 1, 2
    of = source(X, "gaussian:0.3", "mask:0.2")
    found = learn_denoise(of, replace(HOW, steps=20))
    assert_usable(found, of)
    assert found.learned.score.rank[0] > 0.5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 100.0)])
def test_units_and_offsets_change_nothing(scale, offset):
    X = randn(60, 6) * torch.linspace(0.2, 3, 6)
    plain = learn_denoise(source(X, "gaussian:0.5s"), HOW)
    moved = learn_denoise(source((X + offset) * scale, "gaussian:0.5s"), HOW)
    assert moved.learned.score.rank[0] == pytest.approx(plain.learned.score.rank[0], abs=0.1)
    assert_usable(moved, source((X + offset) * scale))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("names", [("missing:0.4",), ("gaussian:0.5", "mask:0.3", "gaussian:0.2+missing:0.2")])
def test_the_table_has_every_noise_for_every_map(names):
    of = source(randn(40, 8), *names)
    found = learn_denoise(of, replace(HOW, steps=20))
    assert_usable(found, of)
    methods = {row.method for row in found.table}
    assert {
        *raw_maps(of.memory),
        found.learned.method,
        *(each + FRESH for each in (found.learned.method, found.raw.method)),
    } <= methods
    assert len(methods) >= 3 + CANDIDATES
    for method in methods:
        assert {row.noise for row in found.table if row.method == method} == set(names)


@pytest.mark.usefixtures("quick")
def test_progress_hears_of_every_candidate_and_every_step():
    tried: list[tuple[int, int]] = []
    steps: list[int] = []
    found = learn_denoise(
        source(randn(40, 8), "gaussian:1"),
        HOW,
        trying=lambda *part: tried.append(part),
        refining=lambda done, *_: steps.append(done),
    )
    assert tried == [(done, CANDIDATES) for done in range(1, CANDIDATES + 1)]
    assert steps == list(range(1, found.refinement.step + 1))


@pytest.mark.usefixtures("quick")
def test_the_seed_decides_what_is_learned():
    first, again = (learn_denoise(structured("half", 40, 8), HOW) for _ in range(2))
    assert_same_map(first.learned.phi, again.learned.phi)
    assert first.table == again.table
    assert torch.equal(first.learned.score.error, again.learned.score.error)


@cache
def uninterrupted() -> Denoised:
    return learn_denoise(structured("shared", 60, 12), HOW)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stops", [[0], [CANDIDATES + 17], [0, 3, CANDIDATES + 21, 5]])
def test_what_is_stopped_is_usable_and_goes_on_to_the_same_map(stops):
    of, whole, state = structured("shared", 60, 12), uninterrupted(), None
    assert whole.finished
    for count in stops:
        part = learn_denoise(of, HOW, state=state, halt=stop_after(count))
        assert not part.finished
        assert_usable(part, of)
        state = part.refinement and Refinement.restored(part.refinement.tensors())
    assert (0 if state is None else state.step) == max(0, *(count - CANDIDATES for count in stops))
    found = learn_denoise(of, HOW, state=state)
    assert found.finished
    assert_same_map(found.learned.phi, whole.learned.phi)
    assert found.table == whole.table
    assert found.refinement.curve == whole.refinement.curve


@pytest.mark.parametrize("rows", [30, 5000])
def test_what_is_measured_is_that_of_the_whole_bank_though_it_lies_in_order(monkeypatch, rows):
    """The first half of the memories lives in other entries than the second; masking makes noise where they live."""
    monkeypatch.setattr(candidates, "FEWEST_PAIRS", 400)
    monkeypatch.setattr(candidates, "MEMORY_ROWS", 400)
    monkeypatch.setattr(candidates, "DIRECTION_ROWS", 400)
    X = randn(rows, 6)
    X[: rows // 2, 3:] = 0
    X[rows // 2 :, :3] = 0
    found = search.begin(source(X, "mask:0.5"), 0, 1 << 26)
    moments = measure(found)
    noise = (moments.fit.noise / moments.fit.pairs).diagonal()
    assert_close(noise[:3].mean(), noise[3:].mean(), atol=0.12, rtol=0)
    memory = (moments.fit.memory / moments.fit.memories).diagonal()
    assert_close(memory[:3].mean(), memory[3:].mean(), atol=0.15, rtol=0)
    rows_of = moments.frame(found.source.memory[candidates._learned_rows(found, found.fit)])
    assert_close(rows_of[:, :3].square().mean(), rows_of[:, 3:].square().mean(), atol=0.2, rtol=0)


class Shapes(TorchDispatchMode):
    """The shapes of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.seen.add(tuple(each.shape[-2:]))
        return out


@pytest.mark.usefixtures("quick")
def test_wide_patterns_are_learned_without_a_square_of_their_width(monkeypatch):
    monkeypatch.setattr(fisher, "WIDE", 48)
    monkeypatch.setattr(candidates, "WIDE", 48)
    wide = 97
    of = structured("shared", 30, wide)
    with Shapes() as made:
        found = learn_denoise(of, replace(HOW, steps=5))
    assert (wide, wide) not in made.seen
    assert (100, wide) in made.seen  # the spy does see
    assert_usable(found, of)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_many_memories_are_learned():
    of = structured("half", 30_000, 16)
    found = learn_denoise(of, replace(HOW, steps=20))
    assert found.better
    assert found.finished


@pytest.mark.slow
def test_noise_without_structure_seldom_passes_for_one_that_has():
    wins = 0
    for seed in range(20):
        X = randn(40, 12, seed=seed)
        wins += learn_denoise(source(X, "gaussian:1"), replace(HOW, steps=20, seed=seed)).better
    assert wins <= 3
