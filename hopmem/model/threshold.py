"""The threshold of α-entmax, for every α ≥ 1, from two sums over the scores.

With the Tsallis exponential exp_α(u) = [1 + (α−1)u]₊^{1/(α−1)}, which is exp(u) at α = 1, the α-entmax of a row s
whose largest entry is 0 (Peters, Niculae, Martins, 2019, arXiv 1905.05702) is

    p_i = e^{−c} exp_α(s_i e^{(α−1)c})   with c = −ln max_i p_i, the root of   ln Σ_i exp_α(s_i e^{(α−1)c}) = c.

The left side falls from at least 0 at c = 0 to at most c at c = ln M, so the root is unique and bracketed. At α = 1 it
does not depend on c: one step solves softmax. Written in the logarithm of the largest weight the equation is well
conditioned from one-hot rows to rows of a million equal entries, where the usual threshold τ cancels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Agree = Callable[[Tensor], Tensor]  # what one process has found ↦ what all go on with
Sums = Callable[[Tensor], tuple[Tensor, Tensor]]  # c [..., 1] ↦ Σ exp_α(u) and its derivative [..., 1]


def across(G: Tensor) -> Tensor:
    """The sum of each row, as a column.

    Returns:
        [..., 1].
    """
    return G.sum(-1, keepdim=True)


def tsallis_exp(u: Tensor, alpha: float) -> Tensor:
    """exp_α(u), zero where 1 + (α−1)u ≤ 0; through log1p, so that α → 1 loses nothing.

    Returns:
        Values of the shape of `u`.
    """
    if alpha == 1:
        # Below the normal numbers arithmetic is a hundred times slower, and a weight of 1e-38 is nobody's.
        lowest = math.log(torch.finfo(u.dtype).tiny) + 1
        return u.clamp_min(lowest).exp().masked_fill_(u < lowest, 0)
    base = ((alpha - 1) * u).clamp_min_(-1)
    if alpha in {1.5, 2.0}:  # the usual ones, without a logarithm
        return base.add_(1) if alpha == 2 else base.add_(1).square_()
    return torch.exp(torch.log1p(base) / (alpha - 1))


def stretch(c: Tensor, alpha: float) -> Tensor:
    """e^{(α−1)c}, kept finite for any α.

    Returns:
        The factor of each row [..., 1].
    """
    return ((alpha - 1) * c).clamp_max(math.log(torch.finfo(c.dtype).max) - 1).exp()


def reach_of_support(c: Tensor, alpha: float) -> Tensor:
    """How far below the largest score the support ends: where 1 + (α−1) s e^{(α−1)c} = 0.

    Args:
        c: minus the logarithm of the largest weight [..., 1].
        alpha: α > 1.

    Returns:
        −s > 0 [..., 1].
    """
    return 1 / ((alpha - 1) * stretch(c, alpha))


def log_peak(
    sums: Sums,
    c: Tensor,
    M: int,
    tolerance: float = 512 * 2.0**-52,
    steep: float = 1.0,
    max_iterations: int = 200,
    agree: Agree = lambda c: c,
) -> Tensor:
    """C = −ln of the largest weight, by Newton's method inside a bracket that halves when Newton is slow.

    All that is asked of the scores is two sums, and sums of parts add up: the parts may be blocks that are never held
    together, or lie on different machines.

    Args:
        sums: of the scores at some c, as `partial_sums` gives them.
        c: where to begin, in [0, ln M], of the shape [..., 1].
        M: scores in a row.
        tolerance: of the sum of the weights, all of which rise and fall together, and so of c; not less than the sums
            are exact to.
        steep: the slope of g up to which the tolerance is that of c alone, where what the scores are rounded by makes
            an error of the sum. Only up to α = 2: beyond, a slope may be that of an edge, and tells nothing.
        max_iterations: a bound that is never met: bisection alone ends within 64.
        agree: where several processes sum up: with logarithms that differ in the last bit, one might go on alone.

    Returns:
        c [..., 1], in [0, ln M].
    """
    low, high, last = torch.zeros_like(c), torch.full_like(c, math.log(M)), torch.full_like(c, math.inf)
    tolerance = max(tolerance, 512 * torch.finfo(c.dtype).eps)
    for _ in range(max_iterations):
        total, rate = sums(c)
        gap, slope = total.log() - c, rate / total - 1  # g(c) = ln Σ exp_α(s e^{(α−1)c}) − c, and g′(c) ≤ −1
        low, high = torch.where(gap >= 0, c, low), torch.where(gap <= 0, c, high)
        newton = c - gap / slope
        # For α > 2 an entry at the edge of the support has an infinite slope, and Newton would creep.
        trusted = (newton >= low) & (newton <= high) & (gap.abs() <= last / 2)
        done = gap.abs() <= tolerance * slope.abs().clamp_max(steep)
        following = agree(torch.where(done, c, torch.where(trusted, newton, (low + high) / 2)))
        if torch.equal(following, c):
            break
        c, last = following, gap.abs()
    return c


def partial_sums(s: Tensor, c: Tensor, alpha: float, add: Callable[[Tensor], Tensor] = across) -> tuple[Tensor, Tensor]:
    """Σ exp_α(u) and its derivative by c, with u = s e^{(α−1)c}.

    With the base x = [1 + (α−1)u]₊ the sum is Σ x^{1/(α−1)}, and its derivative that sum less Σ x^{1/(α−1) − 1}.

    Args:
        s: some of the scores, less the largest of all [..., m].
        c: minus the logarithm of the largest weight [..., 1].
        alpha: α ≥ 1.
        add: adds up the terms, where the scores of a row do not lie in a row.

    Returns:
        Both [..., 1].
    """
    if alpha == 1:
        total = add(tsallis_exp(s, 1))
        return total, torch.zeros_like(total)
    u = s * ((alpha - 1) * stretch(c, alpha)).clamp_max(torch.finfo(s.dtype).max).to(s)
    if alpha == 2:
        total = add(u.add_(1).clamp_min_(0))
        return total, total - add(u.sign_())
    if alpha == 1.5:
        below = add(u.add_(1).clamp_min_(0))
        total = add(u.square_())
        return total, total - below
    logarithm = u.clamp_min_(-1).log1p()  # of the base, which near 1 has lost its digits
    G = logarithm.div_(alpha - 1).exp_()
    total = add(G)
    return total, total - add(G.div_(u.add_(1).clamp_min_(torch.finfo(u.dtype).tiny)))
