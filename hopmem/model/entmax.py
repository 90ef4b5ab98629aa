"""α-entmax over the rows of a tensor, for every α ≥ 1: its values, its conjugate Ψ*_α, and its derivative.

The derivative is closed (Peters, Niculae, Martins, 2019, arXiv 1905.05702): with q_i = p_i^{2−α} on the support and 0
outside, dp_i = q_i (ds_i − Σ_j q_j ds_j / Σ_j q_j). That by α (Correia, Niculae, Martins, 2019, arXiv 1909.00015) is
written here with φ₂(x) = (e^x − 1 − x)/x², which loses nothing as α → 1:

    dp_i/dα = h_i − q_i Σ_j h_j / Σ_j q_j   with h_i = −p_i ln² p_i φ₂(−(α−1) ln p_i)
"""

import math
from typing import Any

import torch
from torch import Tensor

from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.threshold import log_peak, partial_sums, stretch, tsallis_exp

TENTHS = 1  # arguments up to which φ₂ is summed as a series: beyond, the differences lose less than two digits
TERMS = 9  # of that series: the next is below 1e-17


def weights(S: Tensor, alpha: float) -> Tensor:
    """α-entmax over the last axis, as numbers: whoever needs a gradient takes `entmax`.

    Args:
        S: finite scores [..., M].
        alpha: α ≥ 1; 1 is softmax, 2 sparsemax.

    Returns:
        Weights [..., M] of the type of `S`; each row is non-negative and sums to one.

    >>> weights(torch.tensor([1.0, 0.5, -1.0]), alpha=2.0)
    tensor([0.7500, 0.2500, 0.0000])
    """
    if S.shape[-1] == 1:
        return torch.where(S.isnan(), S, 1)
    # Where the exponent 1/(α−1) is not 1, float32 would lose digits near the edge of the support.
    s = S.to(torch.promote_types(S.dtype, torch.float32) if alpha == 1 else torch.float64)
    s = s - s.amax(-1, keepdim=True)
    c = log_peak(lambda c: partial_sums(s, c, alpha), torch.zeros_like(s[..., :1]), s.shape[-1])
    P = tsallis_exp(s * stretch(c, alpha), alpha)
    return (P / P.sum(-1, keepdim=True)).to(S.dtype)


def conjugate(S: Tensor, P: Tensor, alpha: float) -> Tensor:
    """Ψ*_α(s) = max_p ⟨p, s⟩ + H_α(p), with H_α the Tsallis entropy; the logarithm of the sum of e^s at α = 1.

    Its gradient is the α-entmax.

    Args:
        S: scores [..., M].
        P: their α-entmax [..., M], the maximiser.
        alpha: α ≥ 1.

    Returns:
        The value of each row [...].

    >>> S = torch.tensor([0.0, 0.0])
    >>> conjugate(S, weights(S, 1.0), 1.0)
    tensor(0.6931)
    """
    log_P = P.clamp_min(torch.finfo(P.dtype).tiny).log()
    surprise = -log_P if alpha == 1 else -torch.expm1((alpha - 1) * log_P) / (alpha * (alpha - 1))
    largest = S.amax(-1)
    # Where a weight is zero its score may lie so low that the product is not: the weight decides.
    inner = torch.where(P > 0, P * (S - largest[..., None]), 0).sum(-1)
    return largest + inner + (P * surprise).sum(-1)


def entmax(S: Tensor, alpha: float | Tensor) -> Tensor:
    """α-entmax over the last axis, differentiable by the scores and by α.

    Args:
        S: scores [..., M]; −∞ is a score that gets no weight.
        alpha: α ≥ 1; a tensor broadcasts against [..., 1], one for each head, say.

    Returns:
        Weights [..., M] of the type of `S`, float32 under autocast. Each row is non-negative and sums to one, but a row
        of −∞ alone, which is zero.

    Raises:
        InvalidDataError: scores that are no floats, or no row.
        UsageError: α < 1, of a number; of a tensor it is not looked at, as that would wait for a device.

    >>> S = torch.tensor([1.0, 0.5, -1.0], requires_grad=True)
    >>> P = entmax(S, 2.0)
    >>> P[0].backward()
    >>> S.grad[:2]
    tensor([ 0.5000, -0.5000])
    """
    if S.dim() == 0 or not S.is_floating_point():
        raise InvalidDataError("scores", "rows of floating-point numbers", f"{S.dtype} of shape {list(S.shape)}")
    if not isinstance(alpha, Tensor) and not (isinstance(alpha, int | float) and alpha >= 1):
        raise UsageError(f"alpha: expected a number from 1 upward, found {alpha!r}")
    if S.shape[-1] == 0:
        return S
    S = S.float() if S.device.type != "meta" and torch.is_autocast_enabled(S.device.type) else S
    blocked = S.amax(-1, keepdim=True) == -math.inf
    s = S.masked_fill(blocked, 0)
    softmax = not isinstance(alpha, Tensor) and alpha == 1
    P: Tensor = s.softmax(-1) if softmax else _Entmax.apply(s, alpha)  # type: ignore[no-untyped-call]
    return P.masked_fill(blocked, 0)


@torch.library.custom_op("hopmem::entmax_weights", mutates_args=())
def _weights(S: Tensor, alpha: Tensor) -> Tensor:
    """`weights` with an α for each row: one operator to a compiler, which can't look into the search for a threshold.

    Args:
        S: scores [..., M].
        alpha: float64, broadcasts against [..., 1].

    Returns:
        Weights [..., M].
    """
    if alpha.numel() == 1:
        return weights(S, float(alpha))
    each, P = alpha.expand(*S.shape[:-1], 1)[..., 0], torch.empty_like(S)
    for value in torch.unique(each).tolist():
        P[each == value] = weights(S[each == value], value)
    return P


@_weights.register_fake
def _(S: Tensor, alpha: Tensor) -> Tensor:
    return torch.empty_like(S)


class _Entmax(torch.autograd.Function):
    """`weights` and its closed-form derivative: no graph goes through the search for the threshold."""

    @staticmethod
    def forward(S: Tensor, alpha: float | Tensor) -> Tensor:
        P: Tensor = _weights(S, torch.as_tensor(alpha, dtype=torch.float64, device=S.device).detach())
        return P

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float | Tensor], output: Tensor) -> None:
        alpha = inputs[1]
        ctx.learned = isinstance(alpha, Tensor)
        ctx.save_for_backward(output, alpha if ctx.learned else None)
        ctx.alpha = None if ctx.learned else alpha

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor | None]:
        P, alpha = ctx.saved_tensors
        by_scores = _derived(P, alpha if ctx.learned else ctx.alpha, G)  # the Jacobian is symmetric
        if not ctx.learned or not ctx.needs_input_grad[1]:
            return by_scores, None
        by_alpha = (G * _by_alpha(P, alpha)).sum(-1, keepdim=True)
        return by_scores, by_alpha.sum_to_size(alpha.shape).to(alpha.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], S: Tensor, alpha: float | Tensor) -> tuple[Tensor, int]:
        S = S.expand(info.batch_size, *S.shape) if in_dims[0] is None else S.movedim(in_dims[0], 0)
        if isinstance(alpha, Tensor) and in_dims[1] is not None:
            alpha = alpha.movedim(in_dims[1], 0)
            alpha = alpha.reshape(len(alpha), *[1] * (S.dim() - alpha.dim()), *alpha.shape[1:])
        return _Entmax.apply(S, alpha), 0  # type: ignore[no-untyped-call]


def _derived(P: Tensor, alpha: float | Tensor, D: Tensor) -> Tensor:
    """The Jacobian by the scores times a direction: q (d − Σ q d/Σ q).

    Returns:
        [..., M] of the type of `P`.
    """
    # For α > 2 the slopes may reach 1e16 at the edge of the support; half precision can't even count it.
    mild = not isinstance(alpha, Tensor) and alpha <= 2
    exact = torch.promote_types(P.dtype, torch.float32) if mild else torch.float64
    slope, d = _slope(P.to(exact), alpha), D.to(exact)
    return (slope * (d - (slope * d).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))).to(P.dtype)


def _by_alpha(P: Tensor, alpha: Tensor) -> Tensor:
    """dp/dα.

    Returns:
        [..., M] float64.
    """
    slope, bend = _slope(P.double(), alpha.double()), _bend(P.double(), alpha.double())
    return bend - slope * (bend.sum(-1, keepdim=True) / slope.sum(-1, keepdim=True))


def _slope(P: Tensor, alpha: float | Tensor) -> Tensor:
    """The slopes q = p^{2−α} on the support, 0 outside.

    Returns:
        [..., M].
    """
    inside = P > 0
    if not isinstance(alpha, Tensor) and alpha == 2:
        return inside.to(P.dtype)
    return torch.where(inside, torch.where(inside, P, 1) ** (2 - alpha), 0)


def _bend(P: Tensor, alpha: Tensor) -> Tensor:
    """H = −p ln² p φ₂(−(α−1) ln p): how a weight changes with α while the threshold stays.

    Returns:
        [..., M].
    """
    log_P = torch.where(P > 0, P, 1).log()
    x = (1 - alpha) * log_P
    far = torch.where(10 * x > TENTHS, x, 1)  # whole numbers: of a fraction a compiler makes a symbol, and fails
    near, term = torch.zeros_like(x), torch.full_like(x, 0.5)
    for k in range(TERMS):
        near, term = near + term, term * (10 * x).clamp_max(TENTHS) / (10 * (k + 3))
    phi = torch.where(10 * x > TENTHS, (torch.expm1(far) - far) / far.square(), near)
    return -P * log_P.square() * phi
