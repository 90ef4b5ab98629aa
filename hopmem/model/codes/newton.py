"""Newton's method for L_τ on the sphere, for a few small arrangements: where τ is small, L-BFGS creeps.

With P_μν the share of a pair in the sum, each pair once, and g the gradient, the Hessian of L_τ along the sphere has

    H_μμ = Σ_ν P_μν (z_ν z_νᵀ/τ − ⟨z_μ, z_ν⟩ I)     H_μν = P_μν (I + z_ν z_μᵀ/τ)     and − g gᵀ/τ throughout.

It is damped by λI (Levenberg, Marquardt), with λ raised until the matrix is positive and the step helps.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hopmem.model.codes.smoothmax import ITSELF, over_all_pairs

LARGEST = 1200  # rows of a Hessian
GENTLE, HARSH = 1e-6, 10.0  # damping, as a share of the mean curvature: where it begins, and where a step is given up
EASIER, HARDER = 0.2, 6.0  # factors of the damping after a step that helped, and after one that did not
SETTLED = 1e-8  # an arrangement has settled when its step promises less than this share of τ
FARTHEST = 0.05  # no point moves farther in a step


def settled(Z: Tensor, tau: float, steps: int, budget: int, halt: Callable[[], bool]) -> Tensor | None:
    """Lower L_τ until it falls no more.

    Args:
        Z: arrangements [R, M, D] of unit rows.
        tau: τ > 0.
        steps: at most this many.
        budget: bytes for a block of pairs.
        halt: asked before each step.

    Returns:
        Arrangements [R, M, D], or None where `halt` said stop.
    """
    value, g = over_all_pairs(Z, tau, budget)
    damping, moving = torch.full_like(value, GENTLE), torch.ones_like(value, dtype=torch.bool)
    for _ in range(steps):
        if halt():
            return None
        move, positive = _step(Z, g, tau, damping)
        trial = Z + move
        trial /= trial.norm(dim=-1, keepdim=True)
        trial_value, trial_g = over_all_pairs(trial, tau, budget)
        moving &= ~positive | (-(move * g).sum((1, 2)) > SETTLED * tau)
        taken = moving & positive & (trial_value < value)
        moving &= damping < HARSH
        here = taken[:, None, None]
        Z, g, value = torch.where(here, trial, Z), torch.where(here, trial_g, g), torch.where(taken, trial_value, value)
        damping = damping * torch.where(taken, EASIER, HARDER)
        if not bool(moving.any()):
            break
    return Z


def _step(Z: Tensor, g: Tensor, tau: float, damping: Tensor) -> tuple[Tensor, Tensor]:
    """−(H + λI)⁻¹ g, shortened where a point would move too far.

    Returns:
        Steps [R, M, D], and whether each damped Hessian was positive [R].
    """
    R, M, D = Z.shape
    B = _tangents(Z)  # [R, M, D, D−1]
    H = _hessian(Z, g, B, tau)
    scale = H.diagonal(dim1=1, dim2=2).mean(1).abs()
    H.diagonal(dim1=1, dim2=2).add_((damping * scale)[:, None])
    L, failed = torch.linalg.cholesky_ex(H)
    downhill = -(g[:, :, None] @ B).reshape(R, -1, 1)
    positive = failed == 0
    L = torch.where(positive[:, None, None], L, torch.eye(M * (D - 1), dtype=Z.dtype, device=Z.device))
    move = (B @ torch.cholesky_solve(downhill, L).view(R, M, D - 1, 1))[..., 0]
    longest = move.norm(dim=-1).amax(1)
    return move * (FARTHEST / longest.clamp_min(FARTHEST))[:, None, None], positive


def _hessian(Z: Tensor, g: Tensor, B: Tensor, tau: float) -> Tensor:
    """H of each arrangement, in the coordinates of the tangents.

    Returns:
        Matrices [R, M(D−1), M(D−1)].
    """
    R, M, D = Z.shape
    C = Z @ Z.mT
    C.diagonal(dim1=1, dim2=2).fill_(ITSELF)
    P = ((C - C.amax((1, 2), keepdim=True)) / tau).clamp_min_(-200).exp_()
    P *= 2 / P.sum((1, 2), keepdim=True)  # [R, M, M], each pair twice
    across = torch.einsum("rmdk,rnd->rmnk", B, Z)  # ⟨tangent k at μ, z_ν⟩ [R, M, M, D−1]
    H = torch.einsum("rmn,rmnk,rnml->rmknl", P / tau, across, across)
    H += P[:, :, None, :, None] * torch.einsum("rmdk,rndl->rmknl", B, B)
    own = torch.einsum("rmn,rmnk,rmnl->rmkl", P / tau, across, across)
    radial = (P * C).sum(2)
    own -= radial[..., None, None] * torch.eye(D - 1, dtype=Z.dtype, device=Z.device)
    H.diagonal(dim1=1, dim2=3).add_(own.permute(0, 2, 3, 1))
    slope = (g[:, :, None] @ B).reshape(R, -1)
    return H.reshape(R, M * (D - 1), -1) - slope[:, :, None] * slope[:, None, :] / tau


def _tangents(Z: Tensor) -> Tensor:
    """An orthonormal basis of the tangent space at each point: the columns but one of a Householder reflection.

    Returns:
        Bases [R, M, D, D−1].
    """
    v = Z.clone()
    v[..., 0] += torch.where(Z[..., 0] < 0, -1.0, 1.0)
    v /= v.norm(dim=-1, keepdim=True)
    return (torch.eye(Z.shape[-1], dtype=Z.dtype, device=Z.device) - 2 * v[..., None] * v[..., None, :])[..., 1:]
