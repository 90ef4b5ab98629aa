"""A threshold that is nearly right, and corrected, gives what float64 finds over all memories."""

import math
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from hopmem.model import association, broad, sieve, tangent
from hopmem.model.entmax import conjugate, entmax
from hopmem.model.hopfield import Dynamics, retrieve
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores
from hopmem.model.rows import Patterns, unit
from hopmem.model.tangent import approach, begin, corrected, powers
from hopmem.model.weighing import Association, Weighing
from tests.model import randn

M, d, B = 6000, 24, 10
ALPHAS = [1.125, 1.25, 1.4, 1.5]
BETAS = [0.1, 1.0, 4.0]


@pytest.fixture(autouse=True, params=[0, 100], ids=["bf16", "fp32"])
def _anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor multiplies quickly, as many states, and as few."""
    monkeypatch.setattr(sieve, "coarse_type", lambda device: torch.bfloat16)
    monkeypatch.setattr(sieve, "FEW_STATES", request.param)


def bank() -> Features:
    return Features(Patterns(randn(M, d)))


def states() -> Tensor:
    """Of memories that stand out, and of none."""
    return unit(torch.cat([randn(M, d)[:5], randn(B - 5, d, seed=1)]).double())


def literal(alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    S = states() @ unit(randn(M, d).double()).T
    return S, entmax(beta * S, alpha)


def every(alpha: float, beta: float) -> tuple[list[tuple[Tensor, Association]], Tensor]:
    """What is weighed, and what is left."""
    ways = corrected(states(), bank(), Weighing(alpha, beta, 3, 1 << 22), Patterns(randn(M, d)), d, None)
    found = list[tuple[Tensor, Association]]()
    while True:
        try:
            found.append(next(ways))
        except StopIteration as done:
            return found, done.value


def check(alpha: float, beta: float) -> int:
    """Hold all that is weighed to float64.

    Returns:
        How many passes it took.
    """
    (S, P), rows = literal(alpha, beta), randn(M, d).double()
    found, left = every(alpha, beta)
    assert not len(left)
    assert torch.equal(torch.cat([some for some, _ in found]).sort().values, torch.arange(B))
    for some, p in found:
        expected, free = P[some] @ rows, conjugate(beta * S[some], P[some], alpha)
        which = torch.arange(len(some))
        for values in (rows, randn(M, 7, seed=4).double()):
            mixed, wanted = p.mix(Patterns(values.float()), values.shape[1], which), P[some] @ values
            assert float(((mixed - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) <= 1e-5
        assert float(((p.mix(*first(), which) - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
        assert torch.equal(p.support, (P[some] > 0).sum(1))
        assert torch.allclose(p.weight[:, :3], P[some].topk(3, dim=1).values, rtol=1e-5, atol=1e-8)
        assert torch.equal(p.index[:, 0], P[some].argmax(1))
        assert torch.allclose(p.conjugate, free, rtol=1e-6, atol=1e-6)
    return len(found)


def first() -> tuple[Patterns, int]:
    return Patterns(randn(M, d)), d


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("beta", BETAS)
def test_what_is_corrected_is_what_float64_finds(alpha, beta):
    check(alpha, beta)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_states_whose_beginning_is_far_off_make_the_pass_again(monkeypatch, alpha):
    near = begin(states(), bank(), Weighing(alpha, 1.0, 3, 1 << 22))
    monkeypatch.setattr(tangent, "approach", lambda *_: (near - 0.03, torch.full_like(near, 0.05)))
    assert check(alpha, 1.0) >= 1


@pytest.mark.parametrize("off", [-0.5, -0.01, 0.003, 0.4])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_steps_in_bfloat16_lead_near_the_root_from_anywhere(alpha, off):
    how, k = Weighing(alpha, 1.0, 3, 1 << 22), 1 / (alpha - 1)
    scores = Scores(((alpha - 1) * states()).float().T, bank(), 512)
    tau, spread = approach(scores, begin(states(), bank(), how) + off, k, torch.bfloat16)
    S, _ = literal(alpha, 1.0)
    F = powers(((alpha - 1) * S - tau[:, None]).clamp_min(0), k)[0].sum(1)
    assert float((F - 1).abs().max()) <= 5e-3  # bfloat16 tells no more of some hundreds
    assert (spread > 0).all()


def answered(Xi: Tensor, X: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What retrieval reads out of the rows, and how many have a weight, beside what float64 finds."""
    rows = Patterns(Xi)
    dynamics = Dynamics(alpha, beta, 1, top=3, budget=1 << 24, spread=rows.spread, longest=rows.longest)
    found = retrieve(X, Features(rows), rows, Xi.shape[1], dynamics)
    P = entmax(beta * unit(X.double()) @ unit(Xi.double()).T, alpha)
    return found.patterns.double(), found.support, P @ Xi.double(), (P > 0).sum(1)


def passes_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many states are left after each threshold was corrected."""
    left = list[int]()

    def spy(*asked: Any) -> Generator[tuple[Tensor, Association], None, Tensor]:
        remain = yield from corrected(*asked)
        left.append(len(remain))
        return remain

    monkeypatch.setattr(broad, "corrected", spy)
    for share in ("SHARE_OF_PICKS", "SHARE_OF_FEW"):
        monkeypatch.setattr(association, share, math.inf)
    return left


@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.1), (1.5, 0.3), (1.25, 0.5), (1.25, 1.0)])
@pytest.mark.parametrize("noise", [0.3, 0.05])
def test_what_classes_in_order_mix_to_is_small_beside_each_of_them(monkeypatch, alpha, beta, noise):
    left, centre = passes_over(monkeypatch), randn(1, d, seed=5)
    half = noise * randn(M, d) + centre
    found, support, expected, true_support = answered(torch.cat([half, -half[:-1]]), randn(64, d, seed=6), alpha, beta)
    assert left == [0]
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.equal(support, true_support)


@pytest.mark.parametrize("loud", [3.0, 20.0, 300.0])
def test_a_loud_row_at_the_edge_of_the_support_is_weighed_as_well(monkeypatch, loud):
    left = passes_over(monkeypatch)
    Xi, X = unit(randn(M, d)), randn(32, d, seed=6)
    P = entmax(unit(X.double()) @ unit(Xi.double()).T, 1.5)
    least = torch.where(P > 0, P, 1).argmin(1).unique()  # whose weights a wrong step changes most
    Xi[least] *= loud
    found, support, expected, true_support = answered(Xi, X, 1.5, 1.0)
    assert left == ([0] if loud < tangent.SPREAD else [])
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.equal(support, true_support)


def test_where_more_memories_lie_beside_the_threshold_than_fit_others_answer(monkeypatch):
    left = passes_over(monkeypatch)
    monkeypatch.setattr(tangent, "MOST_BESIDE", 4)
    found, support, expected, true_support = answered(randn(M, d), randn(16, d, seed=6), 1.25, 1.0)
    assert left == [16]
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.equal(support, true_support)


@pytest.mark.parametrize("below", [2e-5, 1e-4, 1e-3])
def test_copies_that_a_step_lets_in_are_counted(monkeypatch, below):
    """The threshold is put a little above 20,000 copies of one memory, whose weights no derivative there tells of."""
    alpha, beta, angle = 1.5, 2.0, 0.5455 + below
    others, copy = randn(40, d), torch.zeros(1, d)
    others[:, 0], others[:, 1], copy[0, 1] = 6, 0, 1
    X = math.cos(angle) * torch.eye(d)[:1] + math.sin(angle) * torch.eye(d)[1:2]
    above = torch.tensor([(alpha - 1) * beta * math.sin(angle) + 1e-6])
    monkeypatch.setattr(tangent, "approach", lambda scores, tau, *_: (above, torch.full_like(tau, 0.03)))
    found, support, expected, true_support = answered(torch.cat([others, copy.repeat(20000, 1)]), X, alpha, beta)
    assert float((found - expected).norm() / expected.norm()) <= 1e-5
    assert torch.equal(support, true_support)


def test_where_float32_tells_too_little_nothing_is_claimed():
    Xi = 1 + 1e-4 * randn(M, d)  # cosines within 1e-7 of one another
    memory = Features(Patterns(Xi))
    ways = corrected(unit(Xi[:B].double()), memory, Weighing(1.5, 200.0, 3, 1 << 22), memory.patterns, d, None)
    with pytest.raises(StopIteration) as done:
        next(ways)
    assert done.value.value.sort().values.tolist() == list(range(B))


@pytest.mark.parametrize("k", [2.0, 2.5, 4.0, 8.0])
def test_powers_vanish_with_their_base(k):
    x = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    for power, n in zip(powers(x.clone(), k), (k, k - 1, k - 2), strict=True):
        assert torch.allclose(power, torch.where(x > 0, x**n, 0))
