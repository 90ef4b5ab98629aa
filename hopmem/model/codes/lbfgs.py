"""L-BFGS on the sphere for many arrangements at once, each with its own step, history and end.

The directions come from the compact form of the inverse Hessian (Byrd, Nocedal, Schnabel, 1994, eq. 2.6), so that an
iteration costs one evaluation and a handful of small batched products, however many arrangements there are. A trial
that does not bring Armijo's share of the promised decrease is shortened and tried again in the next iteration, while
the other arrangements move on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 12  # pairs (s, y) that are remembered
SUFFICIENT = 1e-4  # Armijo: the share of the promised decrease that a step must bring
SHORTER = 0.35  # a step that brings too little is shortened by this factor
CURVATURE = 1e-10  # ⟨s, y⟩ / (‖s‖ ‖y‖) below which a pair says nothing
LONGEST = 0.3  # no row moves farther than this in one step
SHORTEST = 1e-13  # no arrangement goes on when all its rows would move less than this

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # Z [R, M, D] ↦ values [R], tangent gradients [R, M, D]


@dataclass(frozen=True)
class Descent:
    """Where a descent ended."""

    Z: Tensor  # [R, M, D], none with a larger loss than before
    steps: int  # evaluations after the first
    settled: bool  # False where an arrangement came to the end of its reach
    halted: bool  # True where `halt` said stop


def minimise(
    loss: Loss,
    Z: Tensor,
    steps: int,
    *,
    first: float,
    least: float = 0.0,
    reach: float = math.inf,
    halt: Callable[[], bool] = lambda: False,
) -> Descent:
    """Lower the loss of each arrangement.

    Args:
        loss: the value and the gradient of each arrangement.
        Z: arrangements [R, M, D] of unit rows.
        steps: at most this many evaluations after the first.
        first: how far the row that is pulled most moves in the first step.
        least: an arrangement ends when its next step promises a smaller decrease than this.
        reach: an arrangement ends before one of its rows is farther than this from where it began.
        halt: asked before each step.

    Returns:
        The arrangements, and how the descent ended.
    """
    start, moving = Z, torch.ones(len(Z), dtype=torch.bool, device=Z.device)
    value, g = loss(Z)
    memory = _Memory(g.flatten(1))
    d, longest = -g, _longest_row(g)
    step = torch.full_like(value, min(first, reach / 2)) / longest
    promise = -step * (d * g).sum((1, 2))
    settled = True
    for done in range(steps):
        moving &= (promise > least) & (step * longest > SHORTEST)  # false, too, where there is no gradient
        if not bool(moving.any()):
            return Descent(Z, done, settled, halted=False)
        if halt():
            return Descent(Z, done, settled, halted=True)
        trial = Z + step[:, None, None] * d
        trial /= trial.norm(dim=-1, keepdim=True)
        near = _longest_row(trial - start) <= reach
        settled = settled and bool((near | ~moving).all())
        moving &= near
        trial_value, trial_g = loss(trial)
        taken = moving & (trial_value <= value - SUFFICIENT * promise)
        memory.add((trial - Z).flatten(1), (trial_g - g).flatten(1), taken)
        Z, value, g = _choose(taken, trial, Z), torch.where(taken, trial_value, value), _choose(taken, trial_g, g)
        following, scale = memory.direction(g.flatten(1), step)
        d = _choose(taken, following.view_as(Z), d)
        longest = _longest_row(d)
        step = torch.where(taken, scale, step * SHORTER).minimum(min(LONGEST, reach / 2) / longest)
        promise = -step * (d * g).sum((1, 2))
    return Descent(Z, steps, settled, halted=False)


def _longest_row(X: Tensor) -> Tensor:
    """The length of the longest row of each arrangement.

    Returns:
        Lengths [R].
    """
    return X.square().sum(-1).amax(-1).sqrt()


def _choose(taken: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new arrangement where it is taken.

    Returns:
        Arrangements [R, M, D].
    """
    return torch.where(taken[:, None, None], new, old)


class _Memory:
    """The last pairs of each arrangement, in rings, and their inner products."""

    def __init__(self, g: Tensor) -> None:
        R, n = g.shape
        self.pairs = g.new_zeros(R, 2 * HISTORY, n)  # rows of S, then rows of Y
        self.SY, self.YY = (g.new_zeros(R, HISTORY, HISTORY) for _ in range(2))
        self.count = torch.zeros(R, dtype=torch.int64, device=g.device)  # pairs that were added
        self.slots = torch.arange(HISTORY, device=g.device)

    def add(self, s: Tensor, y: Tensor, taken: Tensor) -> None:
        """Remember s and y [R, n] of the arrangements that took their step, where they say something."""
        curved = (s * y).sum(1) > CURVATURE * s.norm(dim=1) * y.norm(dim=1)
        (rows,) = (taken & curved).nonzero(as_tuple=True)
        slot = self.count[rows] % HISTORY
        self.pairs[rows, slot], self.pairs[rows, HISTORY + slot] = s[rows], y[rows]
        products = self.pairs @ torch.stack([s, y], 2)  # [R, 2m, 2]
        S_y, Y_s, Y_y = products[rows, :HISTORY, 1], products[rows, HISTORY:, 0], products[rows, HISTORY:, 1]
        self.SY[rows, :, slot], self.SY[rows, slot] = S_y, Y_s
        self.YY[rows, :, slot], self.YY[rows, slot] = Y_y, Y_y
        self.count[rows] += 1

    def direction(self, g: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """−H g, with the steps of those that remember nothing yet.

        Args:
            g: gradients [R, n].
            step: the last steps [R].

        Returns:
            Directions [R, n] in which each loss falls, and the steps to try [R].
        """
        m, known = HISTORY, self.count > 0
        order = (self.count[:, None] + self.slots) % m  # oldest first
        grid = (torch.arange(len(g), device=g.device)[:, None, None], order[:, :, None], order[:, None, :])
        SY, YY = self.SY[grid], self.YY[grid]
        curvature = SY.diagonal(dim1=1, dim2=2)  # ⟨s, y⟩, zero where a slot is empty
        gamma = torch.where(known, curvature[:, -1] / YY[:, -1, -1], 1)[:, None, None]
        A = SY.triu() + torch.diag_embed((curvature <= 0).to(g))
        flat = torch.cat([order, m + order], 1)[..., None]
        on_pairs = (self.pairs @ g[..., None]).gather(1, flat)  # [R, 2m, 1]
        u = torch.linalg.solve_triangular(A, on_pairs[:, :m], upper=True)
        w = torch.linalg.solve_triangular(
            A.mT, curvature[..., None] * u + gamma * (YY @ u - on_pairs[:, m:]), upper=False
        )
        weights = torch.zeros_like(flat, dtype=g.dtype).scatter(1, flat, torch.cat([w, -gamma * u], 1))
        d = -(gamma[..., 0] * g + (weights.mT @ self.pairs)[:, 0])
        falls = (d * g).sum(1) < 0
        d = torch.where(falls[:, None], d, -gamma[..., 0] * g)
        return d, torch.where(known, 1, step)
