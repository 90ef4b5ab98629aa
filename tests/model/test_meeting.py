"""Memories that several processes hold answer as they do together: processes are threads here, which meet in a list."""

import threading
from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from hopmem.model.broad import broad
from hopmem.model.hopfield import Dynamics, Retrieval, complete, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.meeting import Shard
from hopmem.model.rows import Patterns

ResultT = TypeVar("ResultT")
B, d = 40, 12
# Where rows are cut: even, uneven, some that hold nothing, and more processes than memories.
CUTS = {"one": [1.0], "two": [0.5, 1.0], "uneven": [0.05, 0.9, 1.0], "empty": [0.0, 0.4, 0.4, 1.0, 1.0]}


class Meeting:
    """Threads that wait for each other."""

    def __init__(self, count: int) -> None:
        self.barrier, self.slots = threading.Barrier(count, timeout=60), [torch.empty(0)] * count
        self.sent = 0

    def all(self, rank: int, X: Tensor) -> list[Tensor]:
        self.slots[rank] = X
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        self.sent += X.nbytes if rank == 0 else 0
        return found


class Thread:
    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.slots)

    def total(self, X: Tensor) -> Tensor:
        return torch.stack(self.meeting.all(self.rank, X)).sum(0)

    def largest(self, X: Tensor) -> Tensor:
        return torch.stack(self.meeting.all(self.rank, X)).amax(0)

    def side_by_side(self, X: Tensor) -> Tensor:
        return torch.cat(self.meeting.all(self.rank, X), 1)

    def same(self, X: Tensor, rank: int = 0) -> Tensor:
        return self.meeting.all(self.rank, X)[rank].clone()


def together(ends: list[int], work: Callable[[slice, Shard], ResultT]) -> tuple[list[ResultT], Meeting]:
    """Let each thread work on its rows, and all meet."""
    meeting, starts = Meeting(len(ends)), [0, *ends[:-1]]
    most = max(end - start for start, end in zip(starts, ends, strict=True))
    found: dict[int, ResultT | BaseException] = {}

    def run(rank: int) -> None:
        shard = Shard(Thread(meeting, rank), starts[rank], ends[-1], most)
        try:
            found[rank] = work(slice(starts[rank], ends[rank]), shard)
        except BaseException as error:
            meeting.barrier.abort()
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in range(len(ends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = list[ResultT]()
    for rank in range(len(ends)):
        each = found[rank]
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results, meeting


def of_rows(memory: Features, rows: slice) -> Features:
    stored = None if memory.stored is None else memory.stored[rows]
    return Features(Patterns(memory.patterns.stored[rows]), memory.phi, stored)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank(M: int, learned: bool) -> Features:
    Xi = draw(M, d)
    Xi[M // 2] = Xi[0]  # the same memory with two processes
    return Features(Patterns(Xi), FeatureMap(draw(9, d, seed=3), draw(9, seed=4)) if learned else FeatureMap())


def same(found: Retrieval, expected: Retrieval, case: str) -> None:
    scale = expected.patterns.norm(dim=1, keepdim=True).clamp_min(1e-6)
    assert float(((found.patterns - expected.patterns) / scale).norm(dim=1).max()) < 1e-5, case
    assert torch.equal(found.index, expected.index), case
    assert torch.equal(found.support, expected.support), case
    assert torch.equal(found.steps, expected.steps), case
    assert torch.equal(found.converged, expected.converged), case
    for name in ("weight", "margin", "energy"):
        one, other = getattr(found, name), getattr(expected, name)
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5), (case, name)


@pytest.mark.grid(7)
@pytest.mark.parametrize("learned", [False, True], ids=["raw", "learned"])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("M", [5, 300, 9000])
def test_memories_of_several_processes_answer_as_those_of_one(M: int, alpha: float, cuts: str, learned: bool):
    memory, ends = bank(M, learned), [round(M * share) for share in CUTS[cuts]]
    X = torch.cat([memory.patterns.stored[: B // 2].repeat(8, 1)[: B // 2], torch.zeros(0, d)])
    X = torch.cat([X + 0.3 * draw(len(X), d, seed=1), draw(B // 2, d, seed=2)])
    # Several steps at a large β would carry what float32 rounds off over the edge of a basin.
    for beta, steps in ((0.0, 1), (0.5, 2), (8.0, 3), (60.0, 1), (2000.0, 1)):
        dynamics = Dynamics(alpha, beta, steps, top=3, spread=memory.patterns.spread, longest=memory.patterns.longest)
        expected = retrieve(X, memory, memory.patterns, d, dynamics)

        def work(rows: slice, shard: Shard, dynamics: Dynamics = dynamics) -> Retrieval:
            part = of_rows(memory, rows)
            return retrieve(X, part, part.patterns, d, dynamics, shard=shard)

        results, _ = together(ends, work)
        for rank, found in enumerate(results):
            same(found, expected, f"β {beta}, {steps} steps, process {rank}")
            for each in fields(Retrieval):
                assert torch.equal(getattr(found, each.name), getattr(results[0], each.name)), each.name


@pytest.mark.parametrize("beta", [1.0, 1e13, 1e20, 1e30])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_ties_of_several_processes_share_the_weight_at_any_temperature(alpha: float, beta: float):
    M, copies, width, cut = 600, 450, 50, 317
    rows = draw(M, width)
    rows[:copies] = rows[0]
    memory, X = Features(Patterns(rows)), rows[0] + 0.1 * draw(20, width, seed=7)
    dynamics = Dynamics(alpha, beta, top=3)

    def work(part: slice, shard: Shard) -> Retrieval:
        held = of_rows(memory, part)
        return retrieve(X, held, held.patterns, width, dynamics, shard=shard)

    expected = retrieve(X, memory, memory.patterns, width, dynamics)
    for found in together([cut, M], work)[0]:
        assert torch.equal(found.index, torch.arange(3).expand(20, 3))
        if beta > 1:
            assert torch.allclose(found.weight, torch.tensor(1 / copies), rtol=1e-5)
        assert torch.allclose(found.weight, expected.weight, rtol=1e-4)
        assert torch.allclose(found.patterns, expected.patterns, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_ties_of_partial_queries_go_to_the_lowest_memory(alpha: float):
    M, width, cut = 997, 300, 11
    rows = draw(M, width)
    rows[cut : 2 * cut] = rows[:cut]
    memory, X, known = Features(Patterns(rows)), rows[:cut], torch.ones(cut, width, dtype=torch.bool)
    known[:, ::3] = False

    def work(part: slice, shard: Shard) -> Retrieval:
        held = of_rows(memory, part)
        return complete(X, known, held, held.patterns, width, Dynamics(alpha, 12.0), shard=shard)

    for found in together([cut, M], work)[0]:
        assert found.index[:, 0].tolist() == list(range(cut))


@pytest.mark.parametrize("beta", [0.5, 8.0, 300.0])
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_passes_over_the_memories_of_several_processes_add_up(alpha: float, beta: float):
    memory, ends = bank(9000, learned=False), [7000, 9000]
    dynamics = Dynamics(alpha, beta, budget=1 << 20)  # no room for a weight of every memory
    expected = retrieve(draw(B, d, seed=2), memory, memory.patterns, d, dynamics)

    def work(rows: slice, shard: Shard) -> Retrieval:
        part = of_rows(memory, rows)
        return retrieve(draw(B, d, seed=2), part, part.patterns, d, dynamics, shard=shard)

    for found in together(ends, work)[0]:
        same(found, expected, f"β {beta}")


@pytest.mark.parametrize("learned", [False, True], ids=["raw", "learned"])
@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_partial_queries_are_completed_alike(alpha: float, cuts: str, learned: bool):
    M = 200
    memory, ends = bank(M, learned), [round(M * share) for share in CUTS[cuts]]
    known = torch.rand(3, d, generator=torch.Generator().manual_seed(5))[torch.arange(B) % 3] > 0.4
    X = torch.where(known, memory.patterns.stored[:B] + 0.1 * draw(B, d, seed=1), 0)
    dynamics = Dynamics(alpha, 12.0, top=2)
    expected = complete(X, known, memory, memory.patterns, d, dynamics)

    def work(rows: slice, shard: Shard) -> Retrieval:
        part = of_rows(memory, rows)
        return complete(X, known, part, part.patterns, d, dynamics, shard=shard)

    for found in together(ends, work)[0]:
        same(found, expected, cuts)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_what_is_sent_does_not_depend_on_the_number_of_memories(alpha: float):
    def sent(M: int) -> int:
        memory = bank(M, learned=False)

        def work(rows: slice, shard: Shard) -> Retrieval:
            part = of_rows(memory, rows)
            return retrieve(draw(B, d, seed=2), part, part.patterns, d, Dynamics(alpha, 20.0), shard=shard)

        return together([M // 2, M], work)[1].sent

    few, many = sent(400), sent(40_000)
    assert many <= 1.5 * few  # sums for the threshold are asked for a few times more or less


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_a_process_looks_only_into_what_matters_among_the_memories_of_all(
    alpha: float, monkeypatch: pytest.MonkeyPatch
):
    M, width, passes = 9000, 64, list[int]()
    memory = Features(Patterns(draw(M, width)))
    X = memory.patterns.stored[:B] + 0.1 * draw(B, width, seed=1)  # all of them memories of the first process

    def counted(Y: Tensor, *rest: object):
        passes.append(len(Y))
        return broad(Y, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("hopmem.model.association.broad", counted)
    dynamics = Dynamics(alpha, 60.0)

    def work(rows: slice, shard: Shard) -> Retrieval:
        part = of_rows(memory, rows)
        return retrieve(X, part, part.patterns, width, dynamics, shard=shard)

    expected = retrieve(X, memory, memory.patterns, width, dynamics)
    for found in together([M // 2, M], work)[0]:
        same(found, expected, "")
    assert passes == []  # what is best among its own alone would have had the second pass over all of them again


@pytest.mark.parametrize("learned", [False, True], ids=["raw", "learned"])
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_processors_that_round_in_different_ways_do_not_part_ways(
    alpha: float, learned: bool, monkeypatch: pytest.MonkeyPatch
):
    def nudged(name: str, by: float) -> None:
        exact = getattr(Tensor, name)

        def rounded(X: Tensor, *rest: object, **options: object) -> Tensor:
            found = exact(X, *rest, **options)
            up = threading.current_thread().name == "1"  # the second process
            return torch.nextafter(found * (1 + by), torch.full_like(found, torch.inf)) if up else found

        monkeypatch.setattr(Tensor, name, rounded)

    for name, by in (("log", 1e-5), ("exp", 0.0), ("norm", 0.0)):  # the last bit of a logarithm decides too seldom
        nudged(name, by)
    M, memory = 300, bank(300, learned)
    rest = memory.patterns.stored[:B]  # where nothing moves, rounding decides whether it does
    for beta, tolerance in ((2.0, 1e-5), (200.0, 0.0), (2000.0, 1e-16), (2000.0, 0.0)):
        dynamics = Dynamics(alpha, beta, 4, tolerance, 2, spread=memory.patterns.spread)

        def work(rows: slice, shard: Shard, dynamics: Dynamics = dynamics) -> Retrieval:
            part = of_rows(memory, rows)
            return retrieve(rest, part, part.patterns, d, dynamics, shard=shard)

        one, other = together([M // 2, M], work)[0]
        assert torch.equal(one.steps, other.steps)
        assert torch.equal(one.converged, other.converged)
        assert torch.allclose(one.patterns, other.patterns, rtol=1e-4, atol=1e-5)
