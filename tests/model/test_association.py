"""Every way of weighing the memories is the literal α-entmax over all of them; no way holds all weights."""

import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hopmem.model import association, broad, sieve, tangent
from hopmem.model.entmax import conjugate, entmax, stretch
from hopmem.model.exponents import Exponents, about, root
from hopmem.model.held import held, rescored
from hopmem.model.hopfield import Dynamics, retrieve
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores, fused, peaks
from hopmem.model.rows import Patterns, unit
from hopmem.model.weighing import Association, Weighing
from tests.model import randn

M, d, B = 2600, 24, 12  # with GROUPS as below, more than one memory in a group
BETA = 150.0  # sharp enough that few memories matter
WAYS = {"held": association, "picked": association} | dict.fromkeys(("dense", "corrected", "summed", "streamed"), broad)


@pytest.fixture(autouse=True, params=[300, 4096], ids=["grouped", "small"])
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memories in groups of sixteen, as in a large bank, or each alone."""
    monkeypatch.setattr(sieve, "GROUPS", request.param)


def apart() -> Tensor:
    return randn(M, d)


def banks() -> dict[str, Tensor]:
    return {
        "apart": apart(),
        "nearly equal": randn(1, d) + 1e-4 * randn(M, d, seed=1),
        "one pattern": randn(1, d).repeat(M, 1),
        "repeated": randn(M // 8, d).repeat(8, 1),
        "tied": (randn(M, 12) > 0).float(),
        "norms": randn(M, d) * 10.0 ** (10 * torch.rand(M, 1, generator=torch.Generator().manual_seed(3)) - 5),
        "bytes": (randn(M, d).sigmoid() * 255).byte(),
        "halves": randn(M, d).half(),
    }


def queries(Xi: Tensor) -> Tensor:
    X = Xi[::199][:B].float()
    return X + 0.3 * X.norm(dim=1, keepdim=True) * unit(randn(len(X), X.shape[1], seed=2))


def spread(Xi: Tensor) -> float:
    norms = Xi[(Xi != 0).any(1)].double().norm(dim=1)
    return float(norms.max() / norms.min())


def literal(Xi: Tensor, X: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    S = unit(X.double()) @ unit(Xi.double()).T
    return S, entmax(beta * S, alpha)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    seen: set[str] = set()

    def spied(module: ModuleType, name: str):
        way = getattr(module, name)
        return lambda *parts, **options: seen.add(name) or way(*parts, **options)

    for name, module in WAYS.items():
        monkeypatch.setattr(module, name, spied(module, name))
    return seen


def ask(Xi: Tensor, X: Tensor, alpha: float, beta: float, **options):
    memory = Features(Patterns(Xi))
    return retrieve(X, memory, memory.patterns, Xi.shape[1], Dynamics(alpha, beta, spread=spread(Xi), **options))


@pytest.mark.grid(5)
@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 3.0])
@pytest.mark.parametrize("beta", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("name", list(banks()))
def test_answers_are_those_of_float64_over_all_memories(monkeypatch, name, alpha, beta, coarse):
    monkeypatch.setattr(sieve, "coarse_type", lambda device: coarse)
    monkeypatch.setattr(sieve, "FEW_STATES", 0)
    Xi = banks()[name]
    X = queries(Xi)
    found, (_, P) = ask(Xi, X, alpha, beta, top=3), literal(Xi, X, alpha, beta)
    expected = P @ Xi.double()
    assert float(((found.patterns - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.allclose(found.weight.double(), P.topk(3, dim=1).values, atol=1e-5)
    if name not in {"one pattern", "repeated", "tied"}:  # where ties decide, the last digit does
        assert torch.equal(found.support, ((0.01 if alpha == 1 else 0) < P).sum(1))


@pytest.mark.grid(7)
@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("beta", [0.2, 3.0, 40.0])
@pytest.mark.parametrize("way", ["corrected", "kept", "anew"])
@pytest.mark.parametrize("name", list(banks()))
def test_passes_that_hold_no_weights_find_the_same_threshold(monkeypatch, ways, name, way, alpha, beta):
    for share in ("SHARE_OF_PICKS", "SHARE_OF_FEW"):
        monkeypatch.setattr(association, share, math.inf)
    monkeypatch.setattr(broad, "MOST_READINGS", 0)
    monkeypatch.setattr(broad, "FEWEST_KEPT", 1 if way == "kept" else 10**9)
    monkeypatch.setattr(sieve, "coarse_type", lambda device: torch.bfloat16)
    monkeypatch.setattr(sieve, "FEW_STATES", 0)
    monkeypatch.setattr(tangent, "SAMPLE", 100 if way == "corrected" else math.inf)
    Xi = banks()[name]
    X = queries(Xi)
    found, (_, P) = ask(Xi, X, alpha, beta, top=3), literal(Xi, X, alpha, beta)
    assert "dense" not in ways
    assert way == "corrected" or "corrected" not in ways
    expected = P @ Xi.double()
    assert float(((found.patterns - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5
    assert torch.allclose(found.weight.double(), P.topk(3, dim=1).values, atol=1e-5)
    if name not in {"one pattern", "repeated", "tied"}:
        assert torch.equal(found.support, (P > 0).sum(1))
    passes = ask(Xi, X, alpha, beta, steps=4).patterns
    monkeypatch.setattr(broad, "MOST_READINGS", 10**9)
    held = ask(Xi, X, alpha, beta, steps=4).patterns
    assert float(((passes - held).norm(dim=1) / held.norm(dim=1)).max()) <= 1e-5


@pytest.mark.parametrize("alpha", [7.0, 12.0])
def test_equal_patterns_give_their_pattern_whatever_alpha_is(alpha):
    found = ask(randn(1, d).repeat(5000, 1), randn(3, d, seed=1), alpha, 1.0, budget=1 << 16)
    assert found.weight.isfinite().all() and (found.support > 0).all()  # α makes large what scores are rounded by
    # 5,000 equal terms, added up in float32 in blocks of 16, are all rounded in the same direction.
    assert torch.allclose(found.patterns.float(), randn(1, d).expand(3, -1), atol=1e-4)


@pytest.mark.parametrize("alpha", [4.0, 6.0])
@pytest.mark.parametrize("beta", [1e-20, 1e-3, 1.0])
@pytest.mark.parametrize("budget", [1 << 16, 1 << 28])
def test_a_weight_that_is_a_high_root_of_its_base_is_exact(alpha, beta, budget):
    found, (_, P) = (
        ask(apart(), queries(apart()), alpha, beta, budget=budget),
        literal(apart(), queries(apart()), alpha, beta),
    )
    expected = P @ apart().double()
    assert float(((found.patterns - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5


@pytest.mark.parametrize(
    ("alpha", "beta", "way", "budget"),
    [
        (1.0, 300.0, "held", 1 << 28),
        (1.5, 300.0, "held", 1 << 28),
        (1.0, 1.0, "streamed", 1 << 28),
        (1.2, 0.5, "dense", 1 << 28),
        (1.6, 0.1, "summed", 1 << 16),
    ],
)
def test_what_is_seen_decides_the_way(ways, alpha, beta, way, budget):
    ask(apart(), queries(apart()), alpha, beta, budget=budget)
    assert ways == {way}


@pytest.mark.parametrize("budget", [1 << 16, 1 << 28])
def test_a_threshold_is_corrected_in_large_banks(monkeypatch, ways, budget):
    monkeypatch.setattr(tangent, "SAMPLE", 100)
    ask(apart(), queries(apart()), 1.2, 0.5, budget=budget)
    assert ways == {"corrected"}


def test_states_of_one_block_may_go_different_ways(ways):
    Xi = torch.cat([apart(), randn(1, d) + 1e-3 * randn(M, d, seed=4)])
    X = torch.cat([queries(Xi), Xi[-1:]])
    found, (_, P) = ask(Xi, X, 1.0, 200.0), literal(Xi, X, 1.0, 200.0)
    assert ways == {"held", "streamed"}
    assert torch.allclose(found.patterns.double(), P @ Xi.double(), atol=1e-5)


def all_ways(alpha: float) -> Iterator[Association]:
    """What is held, and what every weight was computed for, of the same states."""
    Xi, how = apart(), Weighing(alpha, BETA, 3, 1 << 24)
    Y, memory = unit(queries(Xi).double()), Features(Patterns(Xi))
    found = sieve.sieve(Y, memory, sieve.reach(alpha, BETA, M, 1e-8), torch.float32, 1 << 24)
    floor = found.floor(sieve.reach(alpha, BETA, M, 1e-8), 3)
    yield held(*rescored(Y, memory, found.group, found.top >= floor, floor, how), how)
    yield broad.streamed(Y, memory, how, memory, d) if alpha == 1 else broad.dense(Y, memory, how)
    if alpha > 1:
        yield broad.summed(Y, memory, how, memory, d)
        states, association = broad.picked(Y, memory, how, Y.new_zeros(len(Y)), memory, d)
        assert states.tolist() == list(range(len(Y)))
        yield association


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_all_ways_weigh_and_mix_alike(alpha):
    few, *others = all_ways(alpha)
    for other in others:
        assert torch.equal(few.index[:, :3], other.index[:, :3])
        assert torch.equal(few.support, other.support)
        for name in ("conjugate", "nearest"):
            assert torch.allclose(getattr(few, name), getattr(other, name), atol=1e-5)
        for rows, width in ((Patterns(apart()), d), (Patterns(randn(M, 5, seed=5)), 5)):
            mixed = [each.mix(rows, width, torch.tensor([4, 0, 7])) for each in (few, other)]
            assert torch.allclose(*mixed, atol=1e-5)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.25, 0.3), (1.5, 0.3), (2.0, 0.05)])
@pytest.mark.parametrize("b", [1, 2])
def test_a_mixture_of_very_many_rows_loses_no_digits(alpha, beta, b):
    Xi = torch.rand(300_000, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    X = Xi[100 : 100 + b] + 0.05 * randn(b, 8, seed=4)
    expected = literal(Xi, X, alpha, beta)[1] @ Xi.double()
    found = ask(Xi, X, alpha, beta).patterns
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 5e-6


@pytest.mark.grid(5)
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.25, 2.0), (1.5, 10.0), (2.0, 2.0)])
@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize(("M", "budget"), [(8200, 1 << 22), (1_000_000, 1 << 28)])
@pytest.mark.parametrize("width", [1, 3])
def test_copies_of_a_few_rows_are_mixed_as_well(width, M, budget, b, alpha, beta):
    """What rounds off the sum of alike rows always points to the same side."""
    few = 5 + 0.1 * randn(11, width)
    Xi = few[torch.randint(11, (M,), generator=torch.Generator().manual_seed(1)).clamp_min(4) - 4]
    X = few[:b] + 0.1 * randn(b, width, seed=4)
    expected = literal(Xi, X, alpha, beta)[1] @ Xi.double()
    found = ask(Xi, X, alpha, beta, budget=budget).patterns
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 5e-6


@pytest.mark.parametrize("longer", [10.0, 100.0, 9000.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 30.0), (1.0, 100.0), (1.25, 1.0), (1.5, 3.0), (2.0, 1.0)])
def test_long_values_of_the_smallest_weights_are_mixed_as_well(alpha, beta, longer):
    """What rounding moves of a small weight, it moves as many times more of the answer."""
    Z, direction = unit(randn(3000, 32)), unit(randn(1, 32, seed=2))
    X = direction + 0.003 * randn(200, 32, seed=3)
    (P,) = entmax(beta * direction.double() @ Z.double().T, alpha)
    for share in (1e-2, 1e-3, 1e-4):
        values = Z.clone()
        values[(P > 0) & (share * P.max() > P)] = longer * unit(randn(1, 32, seed=4))
        rows = Patterns(values)
        dynamics = Dynamics(alpha, beta, spread=rows.spread, longest=rows.longest)
        found = retrieve(X, Features(Patterns(Z)), rows, 32, dynamics).patterns
        expected = literal(Z, X, alpha, beta)[1] @ values.double()
        assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 1e-5


@pytest.mark.parametrize("beta", [1.0, 8.0, 20.0, 30.0])
@pytest.mark.parametrize("M", [300, 5000])
def test_the_value_of_a_memory_opposite_may_be_longer_than_all_others_weigh(M, beta):
    for seed in (1301, 2384):
        x = randn(1, 64, seed=seed)
        Xi, values = x + 0.01 * randn(M, 64, seed=seed + 1), unit(randn(M, 4, seed=seed + 2))
        Xi[M // 2], values[M // 2] = -3 * x[0] * (1 + 1e-3 * randn(64, seed=3)), values[M // 2] * 1e32
        rows = Patterns(values)
        dynamics = Dynamics(1.0, beta, spread=rows.spread, longest=rows.longest)
        found = retrieve(1.3 * x.expand(3, -1), Features(Patterns(Xi)), rows, 4, dynamics).patterns
        expected = literal(Xi, x, 1.0, beta)[1] @ values.double()
        assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) <= 5e-6


def test_the_conjugate_is_that_of_all_scores():
    S, P = literal(apart(), queries(apart()), 1.0, BETA)
    for each in all_ways(1.0):
        assert torch.allclose(each.conjugate, conjugate(BETA * S, P, 1.0), atol=1e-5)


@pytest.mark.parametrize("rows", [64, 192, 100_000])
def test_parts_of_a_fused_pass_may_be_of_any_size(rows):
    memory, T = Features(Patterns(apart())), unit(queries(apart())).T.contiguous()
    few, many = (fused(Scores(T, memory, size), Weighing(1.0, 20.0, 1, 1), memory.patterns, d) for size in (rows, 1024))
    for one, other in zip(few, many, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("rows", [64, 192, 100_000])
def test_the_threshold_does_not_depend_on_the_parts_of_a_pass(rows, alpha):
    Xi, X = apart(), queries(apart())
    T, memory = unit(X.double()).T.contiguous(), Features(Patterns(Xi))
    scores = Scores(T, memory, rows)
    peak, top = peaks(scores)
    (anew, _), (kept, same) = (Exponents.of_all(scores, BETA, keep=keep) for keep in (False, True))
    _, P = literal(Xi, X, alpha, BETA)
    assert torch.allclose(top.amax(0).double(), peak, atol=1e-6)
    assert torch.equal(top, same)
    for exponents in (anew, kept):
        c = root(exponents, alpha, about(exponents, alpha, 1 << 24), len(memory))
        sums = exponents.mixture(alpha, stretch(c, alpha), memory.patterns, d, torch.zeros_like(c))
        assert torch.allclose(1 / sums.total, P.amax(1), rtol=1e-6)
        assert torch.equal(sums.support, (P > 0).sum(1))
        assert torch.allclose(sums.mixed / sums.total[:, None], P @ Xi.double(), atol=1e-5)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_memories_that_rounding_may_have_moved_across_the_threshold_are_named(alpha):
    T, memory = unit(queries(apart()).double()).T.contiguous(), Features(Patterns(apart()))
    exponents, _ = Exponents.of_all(Scores(T, memory, 64), BETA, keep=True)
    c = root(exponents, alpha, about(exponents, alpha, 1 << 24), len(memory))
    assert exponents.kept is not None
    end = -1 / ((alpha - 1) * stretch(c, alpha))
    slack = (exponents.kept - end).abs().quantile(0.1, dim=1, keepdim=True)
    sums = exponents.mixture(alpha, stretch(c, alpha), memory.patterns, d, slack)
    near = (exponents.kept - end).abs() <= slack
    assert 0 < int(near.sum()) < near.numel()
    assert set(map(tuple, sums.edge.T.tolist())) == set(map(tuple, near.nonzero().tolist()))
    assert torch.equal(sums.support, ((exponents.kept > end) & ~near).sum(1))


@pytest.mark.parametrize("budget", [1 << 12, 1 << 20, 1 << 26])
def test_a_block_of_a_pass_fits_the_budget_or_is_one_group(budget):
    memory = Features(Patterns(randn(9000, 16)))
    scores = Scores.within(randn(16, 300).double(), memory, 16, budget)
    assert scores.rows % sieve.group_size(9000) == 0
    assert scores.rows == sieve.group_size(9000) or scores.rows * 300 * 8 <= budget


@pytest.mark.parametrize(("alpha", "way"), [(1.0, "streamed"), (1.2, "summed")])
def test_passes_find_the_best_memory_among_those_that_float32_hardly_tells_apart(ways, alpha, way):
    Xi = 1 + 5e-3 * randn(300, 3072)  # all cosines within 3e-5 of 1
    assert ask(Xi, Xi[:10], alpha, 1.0, budget=1 << 15).index[:, 0].tolist() == list(range(10))
    assert ways == {way}


class Widest(TorchDispatchMode):
    """The most entries that a tensor has had."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each.untyped_storage().nbytes() // each.element_size() >= each.numel():
                self.entries = max(self.entries, each.numel())
        return out


@pytest.mark.parametrize("beta", [1.0, 300.0])
@pytest.mark.parametrize("budget", [4 << 20, 64 << 20])
def test_no_array_grows_with_the_bank_beyond_the_budget(beta, budget):
    Xi = randn(60_000, 8)
    X = Xi[:300] + 0.1 * randn(300, 8, seed=6)
    memory = Features(Patterns(Xi))
    with Widest() as seen:
        retrieve(X, memory, memory.patterns, 8, Dynamics(1.0, beta, budget=budget))
    assert seen.entries <= max(budget // 4, Xi.numel())
    assert seen.entries < len(Xi) * len(X)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("beta", [1.0, 60.0])
def test_answers_do_not_depend_on_budget_or_company(alpha, beta):
    Xi = apart()
    X = queries(Xi)
    whole = ask(Xi, X, alpha, beta)
    for budget in (1 << 15, 1 << 18, 1 << 30):
        assert torch.allclose(ask(Xi, X, alpha, beta, budget=budget).patterns, whole.patterns, atol=1e-5)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(7))
    assert torch.allclose(ask(Xi, X[order], alpha, beta).patterns, whole.patterns[order], atol=1e-5)
    for row in range(3):
        assert torch.allclose(ask(Xi, X[row : row + 1], alpha, beta).patterns[0], whole.patterns[row], atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("beta", [1.0, 80.0])
def test_of_equal_scores_the_lowest_memory_comes_first(alpha, beta):
    Xi = torch.cat([apart()[:1300], apart()[:1300]])
    found = ask(Xi, apart()[:5], alpha, beta, top=2)
    assert found.index.tolist() == [[row, row + 1300] for row in range(5)]
