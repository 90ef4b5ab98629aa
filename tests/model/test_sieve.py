"""The coarse pass: its rounding stays within the bound, and what it leaves out weighs nothing."""

import math

import pytest
import torch
from torch import Tensor

from hopmem.model import sieve as module
from hopmem.model.entmax import entmax
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.sieve import Sieve, coarse_type, maxima, reach, rounding, states_at_once, suited_type
from tests.model import randn

M = 2500  # no multiple of a group


@pytest.fixture(autouse=True, params=[300, 4096], ids=["grouped", "small"])
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories in groups of sixteen, as in a large bank, or each alone."""
    monkeypatch.setattr(module, "GROUPS", request.param)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    monkeypatch.setattr(module, "coarse_type", lambda device: request.param)
    monkeypatch.setattr(module, "FEW_STATES", 0)
    return request.param


def banks() -> dict[str, Tensor]:
    alike = randn(1, 24) + 1e-3 * randn(M, 24, seed=1)
    return {"apart": randn(M, 24), "alike": alike, "positive": randn(M, 24).abs(), "loud": randn(M, 24) * 1e12}


def states(Xi: Tensor, count: int = 20) -> Tensor:
    return unit(Xi[:count].double() + 0.3 * Xi.std() * randn(count, Xi.shape[1], seed=2))


def sifted(Y: Tensor, memory: Features, reach: float | None) -> Sieve | None:
    return module.sieve(Y, memory, reach, suited_type(memory, len(Y)), 1 << 24)


@pytest.mark.parametrize("name", list(banks()))
def test_no_coarse_maximum_is_farther_from_the_exact_one_than_the_bound_says(kind, name):
    Xi = banks()[name]
    Y, Z = states(Xi), unit(Xi.double())
    found = sifted(Y, Features(Patterns(Xi)), reach=0.01)
    assert found.top.dtype == (torch.float32 if found.group == 1 else kind)
    exact = torch.stack([(Z[start : start + found.group] @ Y.T).amax(0) for start in range(0, M, found.group)])
    assert found.top.shape == exact.shape
    assert ((found.top.double() - exact).abs() <= found.slack).all()


@pytest.mark.parametrize("k", [1, 2, 5, 12, 90, M])
@pytest.mark.parametrize("ordered", [False, True])
def test_every_one_of_the_k_best_lies_in_a_group_above_the_floor(kind, k, ordered):
    """Also where the best stand side by side, as in a bank that is sorted; then few others lie above it."""
    Xi = unit(randn(M, 24))
    Xi = Xi[(Xi @ Xi[0]).argsort()] if ordered else Xi
    Y = unit(Xi[-1:].double() + 0.1 * randn(5, 24, seed=1).double())
    found = sifted(Y, Features(Patterns(Xi)), None)
    above = found.top >= found.floor(0.0, k)
    groups = (Xi.double() @ Y.T).topk(k, dim=0).indices // found.group  # [k, b]
    assert above.gather(0, groups).all()
    if kind == torch.float32 and k <= 12:
        assert (above.sum(0) <= 2 * k + 2).all()


def test_the_bound_is_of_the_size_of_the_rounding():
    assert rounding(torch.float32, 1000) < 1e-4
    assert 4 * 2**-8 < rounding(torch.bfloat16, 1000) < 6 * 2**-8


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [150.0, 1000.0])
def test_what_lies_below_the_floor_weighs_no_more_than_the_leak(alpha, beta):
    Xi, leak = banks()["apart"], 1e-6
    Y, Z = states(Xi), unit(Xi.double())
    t = reach(alpha, beta, M, leak)
    found = sifted(Y, Features(Patterns(Xi)), t)
    matter = (found.top >= found.floor(t)).repeat_interleave(found.group, 0)[:M].T
    P = entmax(beta * (Y @ Z.T), alpha)
    assert float(P.masked_fill(matter, 0).sum(1).max()) <= (leak if alpha == 1 else 0)
    assert not bool(matter.all())


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("k", [1, 2, 5, 39, 40, 2000])
def test_the_groups_above_the_floor_hold_the_k_best_memories(k):
    Xi = banks()["apart"]
    Y, Z = states(Xi), unit(Xi.double())
    found = sifted(Y, Features(Patterns(Xi)), reach=1e-4)
    matter = (found.top >= found.floor(1e-4, k)).repeat_interleave(found.group, 0)[:M].T
    best = (Y @ Z.T).topk(k, dim=1).indices
    assert matter.gather(1, best).all()


@pytest.mark.parametrize("beta", [0.0, 0.1, 5.0])
def test_no_pass_is_made_where_every_memory_matters_anyway(monkeypatch, beta):
    monkeypatch.setattr(Features, "products", lambda *_: pytest.fail("a pass was made"))
    assert sifted(states(banks()["apart"]), Features(Patterns(banks()["apart"])), reach(1.0, beta, M, 1e-8)) is None


def test_the_pass_is_given_up_once_it_is_certain_that_most_matter(monkeypatch):
    scored = []
    products = Features.products
    monkeypatch.setattr(module, "COARSE_ROWS", 128)
    monkeypatch.setattr(module, "GROUPS", 300)

    def spied(self: Features, rows: slice, *rest: Tensor) -> Tensor:
        scored.append(rows)
        return products(self, rows, *rest)

    monkeypatch.setattr(Features, "products", spied)
    assert sifted(states(banks()["alike"]), Features(Patterns(banks()["alike"])), reach=1.0) is None
    assert scored[-1].stop <= M // module.SAMPLE + 128


@pytest.mark.parametrize(("rows", "group"), [(1, 4), (4, 4), (10, 4), (3, 64)])
def test_maxima_are_those_of_each_group(rows, group):
    S, out = randn(rows, 5), torch.empty(-(-rows // group), 5)
    maxima(S, group, out)
    assert torch.equal(out, torch.stack([S[start : start + group].amax(0) for start in range(0, rows, group)]))


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
def test_the_reach_ends_where_the_support_ends(alpha):
    t = reach(alpha, 10.0, 2, 1e-8)
    inside, outside = (
        entmax(torch.tensor([0.0, -10 * t * share], dtype=torch.float64), alpha) for share in (0.99, 1.01)
    )
    assert inside[1] > 0
    assert outside[1] == 0


def test_the_reach_of_softmax_is_where_so_many_weigh_the_leak():
    t = reach(1.0, 20.0, 1000, 1e-6)
    assert 1000 * math.exp(-20 * t) == pytest.approx(1e-6)


@pytest.mark.parametrize("count", [1, 2048, 100_000, 10**9])
def test_the_maxima_of_a_block_of_states_fit_the_budget(count):
    states, groups = states_at_once(count, 64 << 20), count / module.group_size(count)
    assert states == 1 or states * groups * module.BYTES <= 64 << 20


def test_the_processor_decides_the_type():
    assert coarse_type(torch.device("cpu")) in {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("stored", ["uint8", "float16", "float32", "float64", "learned", "centred", "tiny"])
def test_products_are_the_cosines_whatever_is_stored(stored):
    X = (40 * randn(70, 9)).clamp(-99, 99)
    X[5] = 0
    kinds = {"uint8": (X + 100).byte(), "float16": X.half(), "float64": X.double(), "tiny": X * 1e-30}
    phi = {"learned": FeatureMap(randn(4, 9, seed=1), randn(4, seed=2)), "centred": FeatureMap(centred=True)}
    memory = Features(Patterns(kinds.get(stored, X), 1 / 255), phi.get(stored, FeatureMap()))
    T = unit(randn(6, memory.dimension, seed=3)).T.contiguous()
    expected = memory[slice(0, 70)] @ T
    for out in (None, torch.empty(100, 6)):
        assert torch.allclose(memory.products(slice(0, 70), T, out), expected, atol=1e-6)
    assert torch.allclose(memory.exact(slice(3, 9)) @ T.double(), expected[3:9].double(), atol=1e-6)


@pytest.mark.grid(5)
@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.3, 5.0, 100.0])
@pytest.mark.parametrize("budget", [1, 1 << 26])
@pytest.mark.parametrize("name", list(banks()))
def test_the_support_reaches_no_farther_than_the_maxima_allow(name, alpha, beta, budget):
    Xi = banks()[name]
    Y = states(Xi)
    S = Y @ unit(Xi.double()).T
    found = sifted(Y, Features(Patterns(Xi)), None)
    t = found.reach(alpha, beta, budget)
    lowest = S.masked_fill(entmax(beta * S, alpha) == 0, torch.inf).amin(1)
    assert (S.amax(1) - lowest <= t).all()
    assert (t <= reach(alpha, beta, M, 1e-8)).all()
    if name == "apart" and beta == 0.3 and alpha > 1.2:
        assert (t < reach(alpha, beta, M, 1e-8) / 2).all()


@pytest.mark.parametrize("alpha", [1.5, 2.5, 3.0, 4.0])
def test_the_support_of_few_scores_near_its_edge_is_within_reach(alpha):
    """For α > 2 the sum of the weights has an infinite slope where a memory enters the support."""
    draws = torch.Generator().manual_seed(0)
    S = torch.cat([torch.full((3000, 1), 0.9), 0.4 + 0.5 * torch.rand(3000, 15, generator=draws)], 1)
    found = Sieve(S.T.contiguous(), 1, torch.zeros(3000))
    lowest = S.double().masked_fill(entmax(S.double(), alpha) == 0, torch.inf).amin(1)
    assert (0.9 - lowest <= found.reach(alpha, 1.0, 1 << 26) + 1e-6).all()


@pytest.mark.parametrize(
    ("count", "stored", "states", "kind"),
    [
        (10**6, torch.float32, 1000, torch.bfloat16),
        (10**6, torch.float32, 1, torch.float32),
        (10**6, torch.uint8, 1, torch.bfloat16),
        (10, torch.uint8, 1000, torch.float32),
    ],
)
def test_few_memories_and_few_states_are_scored_in_float32_at_once(monkeypatch, count, stored, states, kind):
    monkeypatch.setattr(module, "coarse_type", lambda device: torch.bfloat16)
    memory = Features(Patterns(torch.ones(1, 2, dtype=stored).expand(count, 2)))
    assert suited_type(memory, states) == kind
