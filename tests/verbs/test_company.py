"""What the first process does with a bank that several hold comes out as alone."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.divided import Division, Nobody
from hopmem.model.denoise.candidates import measure
from hopmem.model.denoise.search import begin
from hopmem.model.denoise.validation import Source
from hopmem.model.kernel import FeatureMap
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import average_loss, separation
from hopmem.model.uhop import Training, _Batch, learn_average
from hopmem.model.whitening import whiten
from hopmem.scratch import gathered
from hopmem.verbs import evaluate, inspect, optimize
from hopmem.verbs.mapped import mapped
from tests.company import BUDGET, in_company

SIZES = [1, 2, 3, 7]  # processes; the bank has five memories at least
KINDS = [torch.float32, torch.uint8, torch.float16, torch.bool]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bank_of(M: int, kind: torch.dtype = torch.float32, d: int = 12) -> MemoryBank:
    rows = draw(M, d) if kind.is_floating_point else draw(M, d).mul(90).clamp(0, 255)
    rows[M // 2] = rows[0]  # the same pattern with two processes
    return MemoryBank.from_patterns(rows.to(kind))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_rows_are_read_wherever_they_lie(size: int, kind: torch.dtype):
    bank, numbers = bank_of(5, kind), torch.tensor([4, 0, 0, 3, 2])

    def work(whole: MemoryBank) -> list[Tensor]:
        rows = whole.patterns
        assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (5, (5, 12), kind, bank.patterns.nbytes)
        columns = torch.tensor([3, 1])
        looks = [rows[1:4], rows[slice(None)], rows[3:3], rows[numbers], rows[1:5, columns], rows[2], rows[-2:]]
        return [*looks, gathered(rows, torch.tensor([0, 2, 4]))[torch.tensor([2, 0])]]

    found, X = in_company(size, bank, work)[0], bank.patterns
    looks = [X[1:4], X, X[3:3], X[numbers], X[1:5, [3, 1]], X[2], X[3:], X[[4, 0]]]
    for each, expected in zip(found, looks, strict=True):
        assert torch.equal(each, expected)


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_known_of_all_rows_is_known_of_rows_that_are_divided(size: int, kind: torch.dtype):
    bank = bank_of(5, kind)

    def work(whole: MemoryBank) -> tuple[list[object], list[Tensor]]:
        rows = whole.rows()
        canvas = canvas_of(rows, whole.shape, None)
        exact = [rows.longest, rows.spread, whole.duplicates, canvas.low, canvas.high]
        return exact, [rows.mean(), rows.lengths, torch.tensor(canvas.deviation)]

    exact, close = in_company(size, bank, work)[0]
    expected_exact, expected_close = work(bank)
    assert exact == expected_exact
    for found, expected in zip(close, expected_close, strict=True):
        assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("M", [5, 80])
@pytest.mark.parametrize("size", SIZES)
def test_covariances_are_those_of_all(size: int, M: int):
    def work(whole: MemoryBank) -> list[Tensor]:
        rows = whole.rows()
        source = Source(rows, canvas_of(rows, whole.shape, None), (parse_noise("mixed", images=False),))
        moments = measure(begin(source, 0, BUDGET))
        whitened = whiten(rows)
        return [
            whitened.eigenvalues,
            whitened.map(0.1).abs(),
            moments.fit.noise,
            moments.fit.memory,
            moments.held.noise,
        ]

    bank = bank_of(M)
    for found, expected in zip(in_company(size, bank, work)[0], work(bank), strict=True):
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6 * float(expected.max()))


def test_the_covariance_is_added_up_where_the_rows_are():
    few, many = (in_company(3, bank_of(M), lambda whole: whiten(whole.rows()))[1] for M in (40, 4000))
    assert [thread.sent for thread in few] == [thread.sent for thread in many]


@pytest.mark.parametrize("batch", [None, 30])
@pytest.mark.parametrize("size", SIZES)
def test_batches_are_the_same_and_their_gradients_are_added_up(size: int, batch: int | None):
    bank = MemoryBank.from_patterns(draw(90, 12, seed=5))
    how = Training(steps=3, batch_size=batch)
    found = in_company(size, bank, lambda whole: learn_average(whole.rows(), how))[0]
    expected = learn_average(bank.rows(), how)
    assert found.steps == expected.steps == 3
    assert found.curve == pytest.approx(expected.curve, abs=1e-6)
    features = [unit(each.phi(bank.patterns)) for each in (found, expected)]
    assert torch.allclose(features[0] @ features[0].T, features[1] @ features[1].T, atol=1e-4)


def test_the_gradient_of_a_batch_is_that_of_definition_4():
    Xi, W0, A = draw(50, 12), draw(6, 12, seed=1), draw(4, 6, seed=2)
    part = Division(Nobody(), 0, 50, 50)
    loss, gradient = _Batch.of(part, Patterns(Xi), torch.arange(50), Xi.mean(0), W0).gradient(A, 2.0)
    exactly = A.double().requires_grad_(True)
    expected = average_loss(unit((Xi - Xi.mean(0)).double() @ W0.double().T @ exactly.T), 2.0)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    assert torch.allclose(gradient.double(), exactly.grad, rtol=1e-4, atol=1e-6)


def test_rows_that_are_compared_in_pairs_are_passed_round_once():
    def sent(M: int) -> int:
        bank = bank_of(M, d=30)
        return sum(thread.sent for thread in in_company(3, bank, lambda whole: separation(whole.memory()))[1])

    assert sent(900) - sent(300) <= 600 * (30 + 3 * 2 + 1)  # features; Δ in two sums; names of the closest


@pytest.mark.parametrize("size", SIZES)
def test_features_are_made_where_the_patterns_are_and_written_by_the_first_process(size: int, tmp_path: Path):
    bank, phi = bank_of(40), FeatureMap(draw(7, 12, seed=3), draw(7, seed=4))
    mapped(bank, phi, torch.device("cpu")).save(tmp_path / "alone")

    def work(whole: MemoryBank) -> None:
        mapped(whole, phi, torch.device("cpu")).save(tmp_path / "together")

    in_company(size, bank, work)
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()


@pytest.mark.parametrize("size", [2, 3])
def test_what_others_keep_for_rows_that_nobody_can_ask_for_is_let_go(size: int):
    def work(whole: MemoryBank) -> int:
        for _ in range(50):
            picked = gathered(whole.patterns, torch.arange(4))
            del picked
        whole.rows().mean()
        return len(whole.patterns.asker.held)  # type: ignore[attr-defined]

    assert in_company(size, bank_of(9), work)[0] == 1


@pytest.mark.parametrize("M", [1, 2, 60])
@pytest.mark.parametrize("learned", [False, True], ids=["raw", "learned"])
@pytest.mark.parametrize("size", SIZES[1:])
def test_inspect_measures_alike(size: int, learned: bool, M: int):
    bank = bank_of(M)
    if learned:
        bank = mapped(bank, FeatureMap(draw(7, 12, seed=3), draw(7, seed=4)), torch.device("cpu"))
    same(asdict(in_company(size, bank, inspect)[0]), asdict(inspect(bank)))


@pytest.mark.parametrize(("objective", "how"), [("average", {"steps": 4}), ("spherical", {"steps": 10})])
@pytest.mark.parametrize("size", [2, 3])
def test_nobody_reads_what_another_holds_to_learn(size: int, objective: Any, how: dict[str, int]):
    bank = bank_of(80)
    learned = in_company(size, bank, lambda whole: delta_of(optimize(whole, objective=objective, **how)))[0]
    assert torch.allclose(learned, delta_of(optimize(bank, objective=objective, **how)), atol=1e-4)


@pytest.mark.parametrize("noise", ["gaussian:0.5", pytest.param("missing:0.3", marks=pytest.mark.slow)])
def test_nobody_reads_what_another_holds_to_learn_for_noise(noise: str):
    bank = bank_of(80)
    learned = in_company(3, bank, lambda whole: delta_of(optimize(whole, noise=noise, steps=4, force=True)))[0]
    assert torch.allclose(learned, delta_of(optimize(bank, noise=noise, steps=4, force=True)), atol=1e-4)


def delta_of(bank: MemoryBank) -> Tensor:
    return separation(bank.memory()).delta


@pytest.mark.parametrize("noise", ["mixed", "missing:0.3"])
def test_nobody_reads_what_another_holds_to_evaluate(noise: str):
    bank = bank_of(60)
    how: dict[str, Any] = {"noise": [noise], "samples": 20, "sizes": [9, 60]}
    found = in_company(3, bank, lambda whole: evaluate(whole, **how))[0]
    same(asdict(found), asdict(evaluate(bank, **how)), close=1e-4)  # Stage I of uhop ends where float32 tells no more


def same(found: object, expected: object, where: str = "", close: float = 1e-5) -> None:
    """Numbers to rounding, and all else to the letter."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys(), where
        for key, value in expected.items():
            same(found[key], value, f"{where}/{key}", close)
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple) and len(found) == len(expected), where
        for place, value in enumerate(expected):
            same(found[place], value, f"{where}/{place}", close)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=close, abs=close, nan_ok=True), where
    else:
        assert found == expected, where


def test_patterns_that_are_seen_in_part_are_divided_too():
    bank, columns = bank_of(9), torch.tensor([5, 2])
    seen = in_company(2, bank, lambda whole: Patterns(whole.patterns, columns=columns).mean())[0]
    assert torch.allclose(seen, bank.rows().mean()[columns])
