"""L_τ against its definition, its derivatives against automatic and numerical ones, and what descends on it."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.codes.lbfgs import minimise
from hopmem.model.codes.newton import _hessian, _tangents, settled
from hopmem.model.codes.smoothmax import largest_cosine, neighbours, over_all_pairs
from tests.model import units

BUDGET = 1 << 28


def arrangements(R: int, M: int, D: int) -> Tensor:
    return normal(torch.stack([units(M, D, seed=seed).double() for seed in range(R)]))


def normal(Z: Tensor) -> Tensor:
    return Z / Z.norm(dim=-1, keepdim=True)


def literal(Z: Tensor, tau: float) -> Tensor:
    pairs = [[(z[m] @ z[n]) / tau for m in range(len(z)) for n in range(len(z)) if m != n] for z in Z]
    return torch.stack([tau * torch.stack(row).logsumexp(0) for row in pairs])


@pytest.mark.parametrize("tau", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("budget", [1, 2000, BUDGET])
def test_value_and_gradient_are_those_of_the_definition(tau, budget):
    Z = arrangements(3, 7, 4).requires_grad_(True)
    expected = literal(Z, tau)
    (gradient,) = torch.autograd.grad(expected.sum(), Z)
    Z = Z.detach()
    tangent = gradient - (gradient * Z).sum(-1, keepdim=True) * Z
    value, g = over_all_pairs(Z, tau, budget)
    assert_close(value, expected.detach(), atol=1e-12, rtol=0)
    assert_close(g, tangent, atol=1e-9, rtol=1e-9)


def test_it_lies_above_the_largest_cosine_by_no_more_than_the_number_of_pairs_allows():
    Z = arrangements(4, 30, 3)
    top = largest_cosine(Z, BUDGET)
    for tau in (1.0, 0.1, 1e-3, 1e-8):
        above = over_all_pairs(Z, tau, BUDGET)[0] - top
        assert float(above.min()) >= 0
        assert float(above.max()) <= tau * math.log(30 * 29) + 1e-12


def test_near_neighbours_say_the_same_until_a_point_has_moved_too_far():
    Z = arrangements(2, 400, 3)
    Z = minimise(lambda X: over_all_pairs(X, 0.02, BUDGET), Z, 60, first=0.02).Z
    near = neighbours(Z, 1e-4, BUDGET)
    assert near is not None
    shake = normal(torch.randn(Z.shape, dtype=Z.dtype, generator=torch.Generator().manual_seed(0)))
    for moved in (Z, normal(Z + 0.9 * near.reach * shake)):
        for listed, all_pairs in zip(near(moved, 1e-4), over_all_pairs(moved, 1e-4, BUDGET), strict=True):
            assert_close(listed, all_pairs, atol=1e-9, rtol=0)


def test_no_lists_are_made_where_they_would_name_most_points():
    assert neighbours(arrangements(2, 20, 3), 0.1, BUDGET) is None
    assert neighbours(arrangements(1, 500, 3), 1e-4, budget=1000) is None


@pytest.mark.parametrize(("M", "D"), [(5, 2), (6, 4), (9, 3)])
def test_the_hessian_is_the_second_derivative_along_the_sphere(M, D):
    Z, tau, step = arrangements(2, M, D), 0.3, 1e-4
    B = _tangents(Z)
    assert_close(B.mT @ B, torch.eye(D - 1, dtype=Z.dtype).expand(2, M, D - 1, D - 1), atol=1e-12, rtol=0)
    assert_close(Z[:, :, None] @ B, torch.zeros(2, M, 1, D - 1, dtype=Z.dtype), atol=1e-12, rtol=0)
    value, g = over_all_pairs(Z, tau, BUDGET)
    x = torch.randn(2, M * (D - 1), dtype=Z.dtype, generator=torch.Generator().manual_seed(1))
    move = step * (B @ x.view(2, M, D - 1, 1))[..., 0]
    there, back = (over_all_pairs(normal(Z + sign * move), tau, BUDGET)[0] for sign in (1, -1))
    expected = torch.einsum("ri,rij,rj->r", x, _hessian(Z, g, B, tau), x)
    assert_close((there + back - 2 * value) / step**2, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["L-BFGS", "Newton"])
def test_no_descent_raises_the_loss_of_any_arrangement(method):
    Z = arrangements(5, 12, 3)
    for tau in (0.3, 0.03, 1e-3):
        before, _ = over_all_pairs(Z, tau, BUDGET)
        if method == "Newton":
            Z = settled(Z, tau, 20, BUDGET, lambda: False)
        else:
            Z = minimise(lambda X, tau=tau: over_all_pairs(X, tau, BUDGET), Z, 40, first=0.05).Z
        assert_close(Z.norm(dim=-1), torch.ones(5, 12, dtype=Z.dtype), atol=1e-12, rtol=0)
        assert bool((over_all_pairs(Z, tau, BUDGET)[0] <= before).all())


def test_both_descents_meet():
    Z = arrangements(3, 6, 3)
    rough = minimise(lambda X: over_all_pairs(X, 0.05, BUDGET), Z, 60, first=0.05).Z
    ends = [
        minimise(lambda X: over_all_pairs(X, 0.05, BUDGET), rough, 300, first=0.01).Z,
        settled(rough, 0.05, 50, BUDGET, lambda: False),
    ]
    values = [over_all_pairs(end, 0.05, BUDGET)[0] for end in ends]
    assert_close(*values, atol=1e-10, rtol=0)
    assert float(over_all_pairs(ends[1], 0.05, BUDGET)[1].abs().max()) < 1e-5


def test_a_descent_ends_within_its_reach_and_when_it_is_told_to():
    Z = arrangements(3, 12, 3)
    end = minimise(lambda X: over_all_pairs(X, 0.1, BUDGET), Z, 100, first=0.05, reach=0.1)
    assert float((end.Z - Z).norm(dim=-1).max()) <= 0.1
    assert not end.settled
    end = minimise(lambda X: over_all_pairs(X, 0.1, BUDGET), Z, 100, first=0.05, halt=lambda: True)
    assert end.halted
    assert torch.equal(end.Z, Z)
    assert settled(Z, 0.1, 10, BUDGET, lambda: True) is None


def test_each_arrangement_goes_its_own_way():
    Z = arrangements(4, 10, 3)
    together = minimise(lambda X: over_all_pairs(X, 0.1, BUDGET), Z, 30, first=0.05).Z
    alone = torch.cat([minimise(lambda X: over_all_pairs(X, 0.1, BUDGET), z[None], 30, first=0.05).Z for z in Z])
    assert_close(together, alone, atol=1e-6, rtol=0)
