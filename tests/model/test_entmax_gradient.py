"""The derivative of α-entmax against differences, the `entmax` package, and what it must obey whoever asks for it."""

import pytest
import torch
from entmax import entmax15, entmax_bisect, sparsemax
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, vmap
from torch.testing import assert_close

from hopmem.model.entmax import entmax, weights
from tests.model import randn
from tests.refusal import raises_refusal

ALPHAS = [1.0, 1.0001, 1.3, 1.5, 2.0, 2.5, 4.0]
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)


def leaf(S: Tensor) -> Tensor:
    return S.double().requires_grad_()


def gradient(S: Tensor, alpha: float, G: Tensor) -> Tensor:
    S = S.clone().requires_grad_()
    entmax(S, alpha).backward(G)
    assert S.grad is not None
    return S.grad


@every_alpha
def test_values_are_those_of_the_solver(alpha):
    S = 3 * randn(4, 30)
    assert_close(entmax(S, alpha), weights(S, alpha), atol=1e-7, rtol=1e-6)


@every_alpha
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_derivative_by_the_scores_agrees_with_differences(alpha, scale):
    assert gradcheck(lambda S: entmax(S, alpha), (leaf(scale * randn(3, 8)),))


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
def test_so_does_the_derivative_of_the_derivative(alpha):
    assert gradgradcheck(lambda S: entmax(S, alpha), (leaf(randn(2, 6)),))


@pytest.mark.parametrize("alpha", [1.001, 1.05, 1.3, 1.5, 2.0, 3.0])
def test_the_derivative_by_alpha_agrees_with_differences(alpha):
    assert gradcheck(entmax, (leaf(randn(3, 8)), leaf(torch.tensor(alpha))))


def test_each_head_has_an_alpha_of_its_own_to_learn():
    alpha = leaf(torch.tensor([1.2, 1.5, 2.0]))[:, None, None]
    S = leaf(randn(2, 3, 4, 7))
    assert gradcheck(entmax, (S, alpha.detach().requires_grad_()))
    P = entmax(S, alpha)
    for head, value in enumerate((1.2, 1.5, 2.0)):
        assert_close(P[:, head], entmax(S[:, head], value))


def test_the_derivative_by_alpha_at_one_is_the_limit_from_above():
    S = 2 * randn(4, 9).double()
    found = [leaf(torch.tensor(alpha)) for alpha in (1.0, 1 + 1e-7)]
    for alpha in found:
        (entmax(S, alpha) * S).sum().backward()
    # of p ∝ e^s, by the expansion of [1 + εz]^{1/ε} at ε = 0: dp = −½ p (ln² p − Σ p ln² p)
    P = S.softmax(-1)
    square = P.log().square()
    expected = (-P * (square - (P * square).sum(-1, keepdim=True)) / 2 * S).sum()
    for alpha in found:
        assert_close(alpha.grad, expected, atol=0, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "package"), [(1.5, entmax15), (2.0, sparsemax), (1.3, entmax_bisect)])
def test_agrees_with_the_package(alpha, package):
    S, G = 2 * randn(16, 100), randn(16, 100, seed=1)
    theirs = S.clone().requires_grad_()
    (package(theirs, 1.3, dim=-1) if alpha == 1.3 else package(theirs, dim=-1)).backward(G)
    assert_close(gradient(S, alpha, G), theirs.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 3.0])
def test_outside_the_support_the_gradient_is_zero(alpha):
    S = 5 * randn(8, 50)
    outside = entmax(S, alpha) == 0
    assert outside.any()
    assert (gradient(S, alpha, randn(8, 50, seed=1))[outside] == 0).all()


@every_alpha
def test_a_shift_of_the_scores_has_no_gradient(alpha):
    G = gradient(2 * randn(5, 20).double(), alpha, randn(5, 20, seed=1).double())
    assert_close(G.sum(-1), torch.zeros(5).double(), atol=1e-9, rtol=0)


@every_alpha
def test_scores_of_minus_infinity_are_not_there(alpha):
    S = randn(3, 6).requires_grad_()
    padded = torch.cat([S, torch.full((3, 2), -torch.inf)], 1)
    P = entmax(padded, alpha)
    assert_close(P[:, :6], entmax(S, alpha), atol=1e-6, rtol=1e-5)
    assert (P[:, 6:] == 0).all()
    P.square().sum().backward()
    assert S.grad is not None
    assert S.grad.isfinite().all()


@every_alpha
def test_a_row_that_is_wholly_masked_is_zero_and_has_no_gradient(alpha):
    S = randn(3, 5)
    S[1] = -torch.inf
    S.requires_grad_()
    P = entmax(S, alpha)
    assert (P[1] == 0).all()
    assert_close(P[[0, 2]].sum(1), torch.ones(2))
    (P * randn(3, 5, seed=1)).sum().backward()
    assert S.grad is not None
    assert S.grad.isfinite().all()
    assert (S.grad[1] == 0).all()


@every_alpha
def test_rows_without_scores_stay_without(alpha):
    assert entmax(torch.empty(3, 0), alpha).shape == (3, 0)


@every_alpha
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_vmap_maps_over_any_axis(alpha, axis):
    S = randn(3, 4, 5)
    mapped = vmap(lambda s: entmax(s, alpha), in_dims=axis, out_dims=axis)(S)
    expected = torch.stack([entmax(s, alpha) for s in S.unbind(axis)], axis)
    assert_close(mapped, expected, atol=1e-6, rtol=1e-5)


def test_vmap_maps_over_alpha_alone_and_over_both():
    S, alpha = randn(3, 5).double(), torch.tensor([1.2, 1.5, 2.0]).double()
    alone = vmap(lambda a: entmax(S, a))(alpha)
    both = vmap(entmax)(S, alpha)
    for number, value in enumerate(alpha.tolist()):
        assert_close(alone[number], entmax(S, value))
        assert_close(both[number], entmax(S[number], value))


@every_alpha
def test_gradients_for_each_sample_and_jacobians_come_by_vmap(alpha):
    S = randn(4, 6).double()
    each = vmap(grad(lambda s: entmax(s, alpha).square().sum()))(S)
    assert_close(each, gradient(S, alpha, 2 * entmax(S, alpha)))
    J = jacrev(lambda s: entmax(s, alpha))(S[0])
    assert_close(J, J.T, msg="the Jacobian is symmetric")
    assert (torch.linalg.eigvalsh(J) > -1e-9).all()  # it is the Hessian of a convex function


@every_alpha
def test_under_autocast_scores_of_half_precision_get_weights_of_single(alpha):
    S = randn(4, 7).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        P = entmax(S, alpha)
    assert P.dtype == torch.float32
    assert_close(P, entmax(S.float(), alpha))
    P.square().sum().backward()
    assert S.grad is not None
    assert S.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_in_half_precision_the_gradient_is_rounded_and_no_more(alpha, dtype):
    S, G = (2 * randn(64, 16)).to(dtype), randn(64, 16, seed=1).to(dtype)
    P = entmax(S, alpha).double()  # rounded: what the gradient is worked out from
    slope = torch.where(P > 0, P ** (2 - alpha), 0)
    expected = slope * (G - (slope * G).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))
    assert_close(gradient(S, alpha, G).double(), expected, atol=1e-6, rtol=float(torch.finfo(dtype).eps))


def test_an_alpha_of_one_is_softmax_as_a_tensor_and_in_half_precision_too():
    S = torch.tensor([[0.0, -9.0, -9.2]]).half()
    assert_close(entmax(S, torch.tensor(1.0)), S.softmax(-1))


def test_what_has_no_weights_is_refused():
    with raises_refusal(4, "scores", "floating-point", "int64"):
        entmax(torch.tensor([1, 2, 3]), 1.5)
    with raises_refusal(4, "scores", "rows"):
        entmax(torch.tensor(1.0), 1.5)
    for alpha in (0.5, float("nan")):
        with raises_refusal(2, "alpha", "from 1 upward"):
            entmax(torch.zeros(3), alpha)
    assert entmax(torch.tensor([[float("nan")]]), 1.5).isnan().all()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler itself does it
@pytest.mark.no_cover  # a compiler that is watched takes twice as long
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
def test_compiles_without_a_break(alpha):
    S = randn(4, 7).requires_grad_()
    compiled = torch.compile(lambda s: (2 * entmax(s, alpha)).square().sum(), fullgraph=True, backend="aot_eager")
    compiled(S).backward()
    found, S.grad = S.grad, None
    (2 * entmax(S, alpha)).square().sum().backward()
    assert_close(found, S.grad)
