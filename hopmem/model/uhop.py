"""Stage I of U-Hop (Algorithm 1): learn the feature map that sets the memories apart.

The average separation loss (Definition 4) is minimised over W by gradient descent on unit features. It starts from
ridge whitening, W = (C + ρI)^{−1/2} with C the covariance of the memories, which one eigendecomposition gives: where
M ≤ D + 1 and the memories are independent it is the optimum, the simplex. The descent runs in whitened coordinates,
W = A W₀, where the problem is round, with a step length found by Armijo's rule on each batch (Vaswani et al., 2019,
arXiv 1905.09997), so that no rate has to be tuned and no step raises the loss of its batch.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.model.kernel import FeatureMap, Patterns, blocks, unit
from hopmem.model.separation import Progress, average_loss

RIDGES = (0.0, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)  # ρ, in units of the largest eigenvalue of C
RANK_CUT = 1e-12  # an eigenvalue below this share of the largest is a zero that was rounded
SUFFICIENT = 0.1  # Armijo: the share of the promised decrease that a step must bring
PATIENCE = 3  # looks at the ruler without a better loss, after which the batches differ by more than the descent brings
BYTES_PER_PAIR = 24  # of a batch: the cosines, and what their gradient keeps
RULER = 2048  # memories on which candidates are compared


@dataclass(frozen=True)
class Training:
    """How Stage I runs."""

    feature_dim: int | None = None  # D; None: as many as the memories span, at most d
    steps: int = 100  # at most this many steps of gradient descent
    temperature: float = 2.0  # t of the average loss, an inverse width
    learning_rate: float | None = None  # γ of the first step; None: a tenth of the distance to W = 0
    batch_size: int = 1024  # memories in a step, all of whose pairs count
    seed: int = 0  # draws the batches
    budget: int = 256 << 20  # bytes for the pairs of a batch
    time_limit: float | None = None  # seconds from the start after which no step is begun


@dataclass(frozen=True)
class Learned:
    """What Stage I found."""

    phi: FeatureMap  # rows of W of length one
    curve: list[float]  # the loss of each batch before its step, and of the last, which no step improved, if any
    steps: int  # steps taken


@dataclass(frozen=True)
class Whitened:
    """The memories in the coordinates of their own covariance."""

    mean: Tensor  # [d]
    eigenvalues: Tensor  # [r] of C, largest first, float64
    directions: Tensor  # [r, d] unit eigenvectors, float32

    def map(self, ridge: float) -> Tensor:
        """W₀ = (C + ρI)^{−1/2} on the span of the memories.

        Args:
            ridge: ρ in units of the largest eigenvalue.

        Returns:
            W₀ [r, d].
        """
        scale = (self.eigenvalues + ridge * self.eigenvalues[0]).rsqrt()
        return scale.to(self.directions)[:, None] * self.directions


def learn_average(patterns: Patterns, training: Training, progress: Progress | None = None) -> Learned:
    """Minimise the average separation loss over the feature map (U-Hop, Algorithm 1, Stage I).

    Args:
        patterns: M ≥ 2 memories, no two equal.
        training: how the descent runs.
        progress: told how many steps are done.

    Returns:
        The map of lowest loss that was met, and the way there.
    """
    deadline = math.inf if training.time_limit is None else time.monotonic() + training.time_limit
    whitened = whiten(patterns)
    rank = len(whitened.eigenvalues)
    D = training.feature_dim or rank
    generator = torch.Generator().manual_seed(training.seed)
    draw = torch.randperm(len(patterns), generator=generator)[:RULER].sort().values
    ruler = patterns[draw] - whitened.mean  # [R, d]
    t = training.temperature

    def loss_of(W: Tensor) -> float:
        # In float64: near the optimum, candidates differ by less than float32 can tell.
        return float(average_loss(unit(ruler @ W.T).double(), t))

    W0 = min((whitened.map(ridge) for ridge in RIDGES), key=lambda W: loss_of(W[:D]))
    A = torch.eye(D, rank, device=W0.device)
    size = min(training.batch_size, math.isqrt(training.budget // BYTES_PER_PAIR))
    batches = _batches(patterns, whitened.mean, W0, max(2, size), generator)
    best = _Ruler(lambda A: loss_of(A @ W0), A)
    curve, steps = _descend(A, batches, training, best, deadline, progress)
    W = even_rows(best.best @ W0)
    phi = FeatureMap(W, -(W.double() @ whitened.mean.double())).near(whitened.mean)
    return Learned(phi, curve, steps)


def whiten(patterns: Patterns) -> Whitened:
    """Eigendecompose the covariance of the memories, through the smaller of Ξᵀ Ξ [d, d] and Ξ Ξᵀ [M, M].

    Args:
        patterns: M memories of d entries.

    Returns:
        Mean, eigenvalues and directions, as many as the memories span and at least one.
    """
    M, d = len(patterns), patterns.dimension
    mean = patterns.mean()
    if d < M:
        C = torch.zeros(d, d, dtype=torch.float64, device=patterns.device)
        for rows in blocks(M, 4096):
            centred = patterns[rows].double() - mean
            C += centred.T @ centred / M
        eigenvalues, directions = torch.linalg.eigh(C)
        directions = directions.T
    else:
        centred = patterns[slice(0, M)].double() - mean  # [M, d]
        eigenvalues, U = torch.linalg.eigh(centred @ centred.T / M)
        directions = unit(U.T @ centred)
    order = eigenvalues.argsort(descending=True)
    rank = int((eigenvalues > RANK_CUT * eigenvalues.max()).sum())
    order = order[: max(1, min(rank, d, M - 1))]
    return Whitened(
        mean.float(), eigenvalues[order].clamp_min(torch.finfo(torch.float32).tiny), directions[order].float()
    )


def even_rows(W: Tensor) -> Tensor:
    """Rotate feature space until all rows of W are equally long, then scale them to length one.

    K depends on WᵀW alone, so an orthogonal Q changes nothing, and one with all ‖(QW)_i‖ equal exists (Schur–Horn);
    with it, Algorithm 1's normalisation of the rows is a scalar. Each of D − 1 plane rotations settles one row.

    Args:
        W: a map [D, d], not zero.

    Returns:
        QW/s with rows of length one [D, d].
    """
    W = W.clone()
    squares = W.double().square().sum(1)
    target = float(squares.mean())
    open_rows = torch.ones_like(squares, dtype=torch.bool)
    for _ in range(len(W) - 1):
        short = int(squares.masked_fill(~open_rows, math.inf).argmin())
        long = int(squares.masked_fill(~open_rows, -math.inf).argmax())
        open_rows[short] = False
        if squares[long] - target <= 1e-12 * target or short == long:
            break
        a, b, inner = float(squares[short]), float(squares[long]), float(W[short].double() @ W[long].double())
        # tan θ of the rotation after which the short row has the target length
        tangent = (math.sqrt(inner * inner - (b - target) * (a - target)) - inner) / (b - target)
        cosine = 1 / math.hypot(1, tangent)
        sine = tangent * cosine
        W[short], W[long] = cosine * W[short] + sine * W[long], cosine * W[long] - sine * W[short]
        squares[long], squares[short] = a + b - target, target
    return W / math.sqrt(target)


def _batches(patterns: Patterns, mean: Tensor, W0: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random batches of memories in whitened coordinates; all memories, always, where they fit one batch.

    Yields:
        Batches [n, r], without end.
    """
    M = len(patterns)
    if size >= M:
        everything = (patterns[slice(0, M)] - mean) @ W0.T
        while True:
            yield everything
    while True:
        draw = torch.randperm(M, generator=generator)[:size].sort().values
        yield (patterns[draw] - mean) @ W0.T


class _Ruler:
    """The best A by a sample that does not change, and how many looks ago it was found."""

    def __init__(self, loss_of: Callable[[Tensor], float], A: Tensor) -> None:
        self.loss_of = loss_of
        self.best, self.best_loss, self.idle = A, loss_of(A), 0

    def look(self, A: Tensor) -> None:
        """Keep A if it is better than the best so far."""
        self.idle += 1
        if (loss := self.loss_of(A)) < self.best_loss:
            self.best, self.best_loss, self.idle = A, loss, 0


def _descend(
    A: Tensor,
    batches: Iterator[Tensor],
    training: Training,
    ruler: _Ruler,
    deadline: float,
    progress: Progress | None,
) -> tuple[list[float], int]:
    """Gradient descent on A with Armijo steps; the ruler keeps the best A.

    Returns:
        The loss before each step, and the steps taken.
    """
    t, rate, curve, steps = training.temperature, training.learning_rate, [], 0
    look_every = max(1, training.steps // 10)
    while steps < training.steps and ruler.idle < PATIENCE and time.monotonic() < deadline:
        batch = next(batches)
        A = A.detach().requires_grad_(True)
        loss = average_loss(unit(batch @ A.T), t)
        (gradient,) = torch.autograd.grad(loss, A)
        curve.append(float(loss.detach()))
        A = A.detach()
        rate = 0.1 * float(A.norm() / gradient.norm().clamp_min(1e-30)) if rate is None else rate
        A, moved = _armijo(A, gradient, curve[-1], batch, t, rate)
        if moved == 0:
            break  # no step along the gradient helps: a minimum to float32
        rate, steps = 2 * moved, steps + 1
        if steps % look_every == 0:
            ruler.look(A)
        if progress:
            progress(steps, training.steps)
    ruler.look(A)
    return curve, steps


def _armijo(A: Tensor, gradient: Tensor, loss: float, batch: Tensor, t: float, rate: float) -> tuple[Tensor, float]:
    """Halve the rate until the step brings at least a tenth of the decrease that the gradient promises.

    Returns:
        The new A and the rate that was used; the old A and 0 where no rate helps.
    """
    promise = SUFFICIENT * float(gradient.square().sum())
    for _ in range(20):
        following = A - rate * gradient
        if float(average_loss(unit(batch @ following.T), t)) < loss - rate * promise:
            return following, rate
        rate /= 2
    return A, 0.0
