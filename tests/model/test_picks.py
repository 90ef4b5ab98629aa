"""What was picked is weighed as all memories are, wherever the threshold lies above the floor, and is not claimed to be
where it does not."""

import pytest
import torch
from torch import Tensor

from hopmem.model import association, broad, picks, sieve
from hopmem.model.entmax import entmax
from hopmem.model.exponents import root
from hopmem.model.hopfield import Dynamics, retrieve
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores
from hopmem.model.picks import Picks
from hopmem.model.rows import Patterns, unit
from hopmem.model.threshold import reach_of_support, stretch
from hopmem.model.weighing import Weighing
from tests.model import randn

M, d, B, BETA = 5000, 16, 9, 2.0
ALPHAS = [1.2, 1.5, 2.0, 3.0]


def bank() -> Features:
    return Features(Patterns(randn(M, d)))


def states() -> Tensor:
    return unit(randn(B, d, seed=1).double())


def exact_scores() -> Tensor:
    return states() @ unit(randn(M, d).double()).T


def pick(share: float, rows: int = 512, most: int = 10**9) -> tuple[Picks, Tensor]:
    """Of each state as many memories as `share`, or a few more."""
    floor = exact_scores().quantile(1 - share, dim=1).float()
    found = Picks.above(floor, Scores(states().T.contiguous(), bank(), rows), BETA, most)
    assert found is not None
    return found


def start() -> Tensor:
    return torch.zeros(B, 1, dtype=torch.float64)


@pytest.mark.parametrize("rows", [64, 1000, 10_000])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_what_is_above_the_threshold_is_weighed_as_all_memories_are(alpha, rows):
    found, _ = pick(1.0, rows)
    P = entmax(BETA * exact_scores(), alpha)
    c = root(found, alpha, start(), M)
    sums = found.mixture(alpha, stretch(c, alpha), bank().patterns, d, torch.zeros_like(c))
    assert torch.allclose(1 / sums.total, P.amax(1), rtol=1e-6)
    assert torch.equal(sums.support, (P > 0).sum(1))
    assert torch.allclose(sums.mixed / sums.total[:, None], P @ randn(M, d).double(), atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
def test_the_threshold_of_some_memories_is_never_above_that_of_all(alpha, share):
    (all_of_them, _), (some, _) = pick(1.0), pick(share)
    ends = [
        each.peak - reach_of_support(root(each, alpha, start(), M), alpha)[:, 0] / BETA for each in (all_of_them, some)
    ]
    assert (ends[1] <= ends[0] + 1e-9).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("share", [0.002, 0.1, 0.5])
def test_what_is_claimed_is_exact_and_what_lies_below_the_floor_is_not_claimed(alpha, share):
    S = exact_scores()
    P = entmax(BETA * S, alpha)
    floor = S.quantile(1 - share, dim=1).float()
    how = Weighing(alpha, BETA, 3, 1 << 26)
    found = broad.picked(states(), bank(), how, floor, bank().patterns, d)
    ends = S.masked_fill(P == 0, torch.inf).amin(1)
    if found is None:
        assert not (ends >= floor + 1e-3).any()
        return
    which, weighed = found
    assert set(which.tolist()) <= set((ends >= floor).nonzero()[:, 0].tolist())
    assert set(which.tolist()) >= set((ends >= floor + 1e-3).nonzero()[:, 0].tolist())
    assert torch.equal(weighed.support, (P > 0).sum(1)[which])
    mixed = weighed.mix(bank().patterns, d, torch.arange(len(which)))
    assert torch.allclose(mixed, (P @ randn(M, d).double())[which], atol=1e-5)
    assert torch.allclose(weighed.weight[:, :3], P.topk(3, dim=1).values[which], atol=1e-6)


def test_more_than_may_be_kept_is_not_kept():
    floor = torch.full((B,), -1.0)
    assert Picks.above(floor, Scores(states().T.contiguous(), bank(), 512), BETA, B * M - 1) is None
    assert broad.picked(states(), bank(), Weighing(1.5, BETA, 2, 1000), floor, bank().patterns, d) is None


def test_picks_of_some_states_are_those_of_these_states():
    found, _ = pick(0.1)
    some = torch.tensor([5, 0, 7])
    c = root(found, 1.5, start(), M)
    one, other = found.of(some), found
    for part, whole in zip(one.sums(c[some], 1.5), other.sums(c, 1.5), strict=True):
        assert torch.allclose(part, whole[some])
    assert torch.equal(torch.bincount(one.state), torch.bincount(other.state)[some])


def test_float64_moves_exponents_by_rounding_alone():
    floor = exact_scores().quantile(0.9, dim=1).float()
    found = Picks.above(floor, Scores(states().float().T.contiguous(), bank(), 512), BETA, 10**9)
    assert found is not None
    exact = found[0].exactly(states(), d, 1 << 16)
    assert exact.exponent.dtype == torch.float64
    assert torch.allclose(exact.exponent, found[0].exponent.double(), atol=1e-5)
    assert torch.allclose(exact.peak, exact_scores().amax(1), atol=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_many_weights_and_few_are_mixed_alike(monkeypatch, alpha):
    found, _ = pick(0.1)
    factor = stretch(root(found, alpha, start(), M), alpha)
    mixed = []
    for sparse in (1, 10**9):
        monkeypatch.setattr(picks, "SPARSE", sparse)
        mixed.append(found.mixture(alpha, factor, bank().patterns, d, torch.zeros_like(factor)).mixed)
    assert torch.allclose(*mixed, atol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_support_of_a_small_share_is_picked_out_and_answers_are_those_of_all_weights(monkeypatch, alpha):
    asked = []
    monkeypatch.setattr(association, "picked", lambda *parts: asked.append(1) or broad.picked(*parts))
    monkeypatch.setattr(sieve, "coarse_type", lambda device: torch.bfloat16)
    monkeypatch.setattr(sieve, "FEW_STATES", 0)  # float32 would tell which few matter
    Xi = randn(20_000, 64)
    X = randn(20, 64, seed=3)
    memory = Features(Patterns(Xi))
    beta = {1.2: 60.0, 1.5: 8.0, 2.0: 2.0, 3.0: 0.5}[alpha]
    found = retrieve(X, memory, memory.patterns, 64, Dynamics(alpha, beta))
    P = entmax(beta * unit(X.double()) @ unit(Xi.double()).T, alpha)
    expected = P @ Xi.double()
    assert asked
    assert float(((found.patterns - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.equal(found.support, (P > 0).sum(1))
