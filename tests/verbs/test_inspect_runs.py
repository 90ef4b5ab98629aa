"""Inspect: what is found by running the bank, and what is said of single patterns."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import hopmem
from hopmem.bank import MemoryBank
from hopmem.model import bounds
from hopmem.model.hopfield import Dynamics, settle
from hopmem.model.kernel import Features
from hopmem.model.rows import Patterns, unit
from hopmem.model.spectrum import effective_rank, singular_values
from hopmem.model.stored import stored
from tests import reference
from tests.verbs import randn

TAMMES = Path(os.environ.get("HOPMEM_DATA", "")) / "tammes3d.csv"


def bank_of(M: int, d: int, *, learned: bool) -> MemoryBank:
    bank = MemoryBank.from_patterns(randn(M, d), [f"n{row}" for row in range(M)])
    return hopmem.optimize(bank, objective="average", steps=3, feature_dim=d - 1) if learned else bank


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize(("M", "d"), [(2, 3), (13, 6), (60, 5)])
def test_the_worst_patterns_are_named_with_what_lies_closest(M, d, learned):
    bank = bank_of(M, d, learned=learned)
    Z = reference.features(bank.patterns, bank.phi.W, bank.phi.b)
    side = hopmem.inspect(bank).separation["learned" if learned else "raw"]
    cosines = Z @ Z.T - 3 * np.eye(M)
    delta = 1 - cosines.max(1)
    order = np.sort(delta)[: min(M, 10)]
    assert [each.delta for each in side.worst] == pytest.approx(order.tolist(), abs=1e-5)
    for each in side.worst:
        row = bank.names.index(each.name)
        assert each.delta == pytest.approx(delta[row], abs=1e-5)
        assert cosines[row, bank.names.index(each.nearest)] == pytest.approx(cosines[row].max(), abs=1e-5)


@pytest.mark.parametrize(("M", "d"), [(1, 1), (3, 3), (5, 40), (70, 6)])
def test_the_effective_rank_is_that_of_a_singular_value_decomposition(M, d):
    Xi = randn(M, d)
    sigma = np.linalg.svd(unit(Xi.double()).numpy(), compute_uv=False)
    share = sigma / sigma.sum()
    found = singular_values(Features(Patterns(Xi)), 1 << 26)
    assert np.allclose(found.numpy(), sigma, atol=1e-6)
    assert effective_rank(found) == pytest.approx(math.exp(-(share * np.log(share)).sum()), abs=1e-5)


def test_the_effective_rank_of_a_simplex_is_full_and_of_copies_one():
    assert effective_rank(singular_values(Features(Patterns(torch.eye(7))), 1 << 26)) == pytest.approx(7)
    assert effective_rank(singular_values(Features(Patterns(torch.ones(7, 4))), 1 << 26)) == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.zeros(3)) == 0


@pytest.mark.parametrize(
    ("M", "D", "cosine"),
    [
        (2, 1, -1),
        (4, 3, -1 / 3),
        (6, 3, 0),
        (9, 5, 0),
        (7, 2, math.cos(2 * math.pi / 7)),
        (12, 3, 5**-0.5),
        (24, 4, 0.5),
        (9, 3, 1 / 3),
        (120, 4, math.cos(math.radians(36))),
    ],
)
def test_the_best_separation_is_that_of_the_known_optima(M, D, cosine):
    assert bounds.best_separation(M, D) == pytest.approx(1 - cosine)


@pytest.mark.parametrize(("M", "D"), [(16, 5), (27, 6), (112, 21), (162, 21), (100, 22), (275, 22)])
def test_a_sharp_code_meets_the_bound_of_levenshtein(M, D):
    s = bounds.BEST_COSINE[M, D]
    assert D * (1 - s) * (2 + (D + 1) * s) / (1 - D * s * s) == pytest.approx(M)


@pytest.mark.parametrize(("M", "D"), [(12, 3), (56, 7), (552, 23)])
def test_a_code_of_equiangular_lines_meets_their_relative_bound(M, D):
    s = bounds.BEST_COSINE[M, D]
    assert 2 * D * (1 - s * s) / (1 - D * s * s) == pytest.approx(M)


@pytest.mark.skipif(not TAMMES.is_file(), reason="HOPMEM_DATA names no folder with tammes3d.csv")
def test_the_optima_in_three_dimensions_are_those_of_the_tables():
    lines = [line for line in TAMMES.read_text().splitlines() if line[0].isdigit()]
    angles = {int(M): float(angle) for M, angle in (line.split(",")[:2] for line in lines)}
    proved = [M for M in angles if bounds.best_separation(M, 3) is not None]
    assert set(proved) == {*range(4, 15), 24}
    for M in proved:
        assert math.degrees(math.acos(1 - bounds.best_separation(M, 3))) == pytest.approx(angles[M], abs=1e-6)


def test_a_spectrum_that_fits_no_memory_is_not_computed():
    Z = Features(Patterns(randn(310, 300)))
    assert singular_values(Z, 3 * 8 * 300**2) is not None
    assert singular_values(Z, 3 * 8 * 300**2 - 1) is None


def test_bounds_are_told_of_the_raw_patterns_beside_the_learned_map():
    raw = MemoryBank.from_patterns(randn(12, 6))
    learned = hopmem.optimize(raw, objective="average", steps=20)
    found = hopmem.inspect(learned, beta=30.0, alpha=1.5)
    assert found.raw_bounds == hopmem.inspect(raw, beta=30.0, alpha=1.5).bounds
    assert found.bounds != found.raw_bounds
    assert hopmem.inspect(raw).raw_bounds is None


@pytest.mark.parametrize(("alpha", "needed"), [(1.0, None), (1.5, 1 / 15), (2.0, 1 / 30)])
def test_the_separation_that_theorem_2_asks_for_is_told(alpha, needed):
    found = hopmem.inspect(MemoryBank.from_patterns(randn(12, 6)), beta=30.0, alpha=alpha)
    assert found.bounds.delta_for_exact == (None if needed is None else pytest.approx(needed))
    for each in found.separation["raw"].worst:
        assert each.exact == (needed is not None and each.delta >= needed)


@pytest.mark.parametrize(("M", "D"), [(1, 3), (15, 3), (25, 4), (50, 10)])
def test_where_theory_knows_no_optimum_none_is_given(M, D):
    assert bounds.best_separation(M, D) is None


def test_the_share_that_is_reached_is_one_at_the_optimum_and_never_more():
    simplex = MemoryBank.from_patterns(torch.eye(5) - 0.2)
    assert hopmem.inspect(simplex).bounds.reached == pytest.approx(1, abs=1e-5)
    for M, d in ((2, 2), (7, 2), (12, 3), (40, 4)):
        assert hopmem.inspect(MemoryBank.from_patterns(randn(M, d))).bounds.reached <= 1 + 1e-6


def test_patterns_are_stored_at_a_large_beta_and_not_at_a_small_one():
    bank = bank_of(12, 8, learned=False)
    sharp, soft = (hopmem.inspect(bank, beta=beta).stored for beta in (500.0, 0.1))
    assert (sharp.tested, sharp.fraction, sharp.lost) == (12, 1.0, [])
    assert (soft.tested, soft.fraction) == (12, 0.0)
    assert soft.lost == list(bank.names[:10])


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("beta", [2.0, 6.0, 30.0])
def test_what_is_stored_stays_where_it_is_when_it_is_run_by_hand(alpha, beta):
    memory = Features(Patterns(randn(9, 5)))
    Z = memory[slice(0, 9)].double()
    radius = float(min((Z[a] - Z[b]).norm() for a in range(9) for b in range(a))) / 2
    held = stored(memory, torch.arange(9), radius, Dynamics(alpha, beta, steps=100), torch.Generator().manual_seed(0))
    for row in range(9):
        y = Z[row].numpy()
        for _ in range(200):
            y = reference.entmax(beta * (Z.numpy() @ y), alpha) @ Z.numpy()
        if np.linalg.norm(y - Z[row].numpy()) > radius + 1e-3:
            assert not held[row]  # its own centre leaves
    settled = settle(Z.clone(), memory, memory, 5, Dynamics(alpha, beta, steps=100)).patterns.double()
    stays = (settled - Z).norm(dim=1) <= radius
    assert bool((stays | ~held).all())


def test_the_self_test_suffers_the_noise_that_the_map_was_learned_for():
    bank = MemoryBank.from_patterns(torch.rand(40, 30, generator=torch.Generator().manual_seed(0)))
    learned = hopmem.optimize(bank, noise=["mask:0.9", "gaussian:0.1"], force=True)
    test = hopmem.inspect(learned).self_test
    assert test.noise == ["mask:0.9", "gaussian:0.1"]
    assert test.queries == 40
    assert test.accuracy < 1
    plain = hopmem.inspect(bank).self_test
    assert (plain.noise, plain.queries, plain.accuracy) == ([], 40, 1.0)


def test_a_bank_that_nothing_was_appended_to_says_nothing_of_it():
    assert hopmem.inspect(bank_of(6, 5, learned=True)).appended is None
    assert hopmem.inspect(bank_of(6, 5, learned=False)).appended is None


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("error", [1e-3, 0.1])
def test_no_query_inside_the_guaranteed_radius_is_answered_worse(alpha, error):
    bank = bank_of(15, 6, learned=True)
    beta = 400.0
    found = hopmem.inspect(bank, error=error, beta=beta).bounds
    assert 0 < found.guaranteed_radius < 2
    memory = bank.memory()
    Z, draws = memory[slice(0, 15)].double(), torch.Generator().manual_seed(1)
    for share in (0.5, 0.99, 1.0):
        for _ in range(20):
            away = unit(torch.randn(Z.shape, generator=draws, dtype=torch.float64))
            Y = Z + share * found.guaranteed_radius * away
            answer = settle(Y, memory, memory, memory.dimension, Dynamics(alpha, beta)).patterns.double()
            assert float((answer - Z).norm(dim=1).max()) <= error + 1e-6


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 50.0), (1.5, 6.0), (2.0, 3.0), (2.0, 1e6)])
def test_theorem_2_is_said_of_each_of_the_worst_patterns(alpha, beta):
    found = hopmem.inspect(bank_of(10, 4, learned=False), alpha=alpha, beta=beta)
    wanted = [alpha > 1 and each.delta >= 1 / (beta * (alpha - 1)) for each in found.separation["raw"].worst]
    assert [each.exact for each in found.separation["raw"].worst] == wanted
    assert found.bounds.exact_fraction == pytest.approx(sum(wanted) / 10)


def test_a_copy_of_a_pattern_takes_nothing_from_what_is_stored():
    Xi = randn(30, 16)
    once, twice = (hopmem.inspect(MemoryBank.from_patterns(X), beta=40.0) for X in (Xi, torch.cat([Xi, Xi[:1]])))
    assert once.stored.fraction == twice.stored.fraction == 1.0
    assert twice.bounds.beta_for_error is None
    assert hopmem.inspect(MemoryBank.from_patterns(Xi[:1].expand(3, -1))).stored is None


def test_points_on_a_line_reach_the_optimum_there_is():
    line = torch.tensor([[1.0], [-1.0], [2.0]])
    assert hopmem.inspect(MemoryBank.from_patterns(line[:2])).bounds.reached == pytest.approx(1)
    assert hopmem.inspect(MemoryBank.from_patterns(line)).bounds.reached == 1.0
