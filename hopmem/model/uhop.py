"""Stage I of U-Hop (Algorithm 1): learn the feature map that sets the memories apart.

The average separation loss (Definition 4) is minimised over W by gradient descent on unit features. It starts from
ridge whitening, which where M ≤ D + 1 and the memories are independent is the optimum, the simplex. The descent runs in
whitened coordinates, W = A W₀, where the problem is round, with a step length found by Armijo's rule on each batch
(Vaswani et al., 2019, arXiv 1905.09997), so that no rate has to be tuned and no step raises the loss of its batch.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import Patterns, unit
from hopmem.model.separation import Halt, Keep, LossProgress, State, largest, log_total, never, nowhere, separation
from hopmem.model.whitening import RIDGES, require_room, whiten

STEPS, TEMPERATURE, BATCH = 100, 2.0, 1024  # where the training names none
SUFFICIENT = 0.1  # Armijo: the share of the promised decrease that a step must bring
PATIENCE = 3  # looks at the ruler without a better loss, after which the batches differ by more than the descent brings
BYTES_PER_PAIR = 24  # of a batch: the cosines, and what their gradient keeps
RULER, BLOCK = 2048, 512  # memories on which candidates are compared, and whose pairs are looked at together
SEED_STRIDE = 1_000_003  # seeds of successive draws lie one apart, and those of successive seeds this far


@dataclass(frozen=True)
class Training:
    """How Stage I runs. None is each objective's own default."""

    feature_dim: int | None = None  # D; None: as many as the memories span, at most d
    steps: int | None = None  # at most this many steps of gradient descent
    temperature: float | None = None  # average: t, an inverse width; spherical: the first τ
    learning_rate: float | None = None  # average: γ of the first step, None: a tenth of the distance to W = 0
    batch_size: int | None = None  # average: memories in a step, all of whose pairs count; spherical: pairs in a step
    seed: int = 0  # draws the batches
    budget: int = 256 << 20  # bytes for the pairs of a batch


@dataclass(frozen=True)
class Learned:
    """What Stage I found."""

    phi: FeatureMap  # average: rows of W of length one
    curve: list[
        float
    ]  # average: the loss of each batch before its step, and of the last, which no step improved, if any
    steps: int  # steps taken, those before an interruption included
    finished: bool  # False where `halt` stopped it
    state: State  # from which an interrupted descent goes on


def learn_average(
    patterns: Patterns,
    training: Training,
    progress: LossProgress | None = None,
    halt: Halt = never,
    state: State | None = None,
    keep: Keep = nowhere,
) -> Learned:
    """Minimise the average separation loss over the feature map (U-Hop, Algorithm 1, Stage I).

    A step reads one batch and costs what the batch costs, however many memories there are.

    Args:
        patterns: M ≥ 2 memories, no two equal.
        training: how the descent runs.
        progress: told how many steps are done, the loss of the last batch, and the separation of a batch now and then.
        halt: asked before each step whether to stop there.
        state: of an interrupted descent with the same patterns and training; it ends as if it had not been interrupted.
        keep: told before each step how to find out where it stands.

    Returns:
        The map of lowest loss that was met, and the way there.
    """
    require_room(patterns, RULER)
    whitened = whiten(patterns)
    rank = len(whitened.eigenvalues)
    D, t = training.feature_dim or rank, training.temperature or TEMPERATURE
    ruler = patterns[drawn(len(patterns), RULER, training.seed, 0)] - whitened.mean  # [R, d]

    def loss_of(W: Tensor) -> float:
        # In float64: near the optimum, candidates differ by less than float32 can tell.
        return separation(unit(ruler @ W.T).double(), t=t, closest=0, block=BLOCK).loss

    W0 = min((whitened.map(ridge) for ridge in RIDGES), key=lambda W: loss_of(W[:D]))
    A = torch.eye(D, rank, device=W0.device)
    descent = _Descent(A, A, loss_of(W0[:D])) if state is None else _Descent.resumed(state, A.device)
    size = max(2, min(training.batch_size or BATCH, math.isqrt(training.budget // BYTES_PER_PAIR)))

    batches = _Batches(patterns, whitened.mean, W0, size, training.seed)
    finished = descent.run(batches, lambda A: loss_of(A @ W0), training, progress, halt, keep)
    left = descent.state()
    descent.look(lambda A: loss_of(A @ W0))
    W = even_rows(descent.best @ W0)
    phi = FeatureMap(W, -(W.double() @ whitened.mean.double())).near(whitened.mean)
    return Learned(phi, descent.curve, descent.steps, finished, left)


def drawn(count: int, size: int, seed: int, step: int) -> Tensor:
    """A random choice without repetition, which follows from its seed and step alone and costs what it holds.

    Args:
        count: from 0 to count − 1.
        size: how many; all where they are not more.
        seed: of the whole descent.
        step: of this choice.

    Returns:
        Sorted, int64 [min(count, size)].
    """
    if size >= count:
        return torch.arange(count)
    return torch.tensor(sorted(random.Random(seed * SEED_STRIDE + step).sample(range(count), size)))


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


@dataclass
class _Descent:
    """Gradient descent on A with Armijo steps, and the best A by a sample that does not change, the ruler."""

    A: Tensor  # [D, r]
    best: Tensor  # [D, r]
    best_loss: float  # on the ruler
    rate: float = math.nan  # of the next step, once it is known
    steps: int = 0
    idle: int = 0  # looks at the ruler since the best
    stuck: bool = False  # no step along the gradient helps: a minimum to float32
    curve: list[float] = field(default_factory=list)  # the loss before each step

    @classmethod
    def resumed(cls, state: State, device: torch.device) -> "_Descent":
        """Go on from a state.

        Returns:
            The descent as it was left.
        """
        best_loss, rate = float(state["best_loss"]), float(state["rate"])
        steps, idle, stuck = (int(state[name]) for name in ("steps", "idle", "stuck"))
        A, best = state["A"].to(device), state["best"].to(device)
        return cls(A, best, best_loss, rate, steps, idle, bool(stuck), state["curve"].tolist())

    def state(self) -> State:
        """What `resumed` goes on from.

        Returns:
            Tensors by name.
        """
        names = ("best_loss", "rate", "steps", "idle", "stuck")
        numbers = {name: torch.tensor(float(getattr(self, name)), dtype=torch.float64) for name in names}
        return {"A": self.A, "best": self.best, "curve": torch.tensor(self.curve, dtype=torch.float64), **numbers}

    def look(self, loss_of: Callable[[Tensor], float]) -> None:
        """Keep A if it is better than the best so far."""
        self.idle += 1
        if (loss := loss_of(self.A)) < self.best_loss:
            self.best, self.best_loss, self.idle = self.A, loss, 0

    def run(
        self,
        batches: "_Batches",
        loss_of: Callable[[Tensor], float],
        training: Training,
        progress: LossProgress | None,
        halt: Halt,
        keep: Keep,
    ) -> bool:
        """Take steps until they bring nothing more.

        Returns:
            Whether it ended by itself; False where `halt` stopped it.
        """
        total, t = STEPS if training.steps is None else training.steps, training.temperature or TEMPERATURE
        self.rate = training.learning_rate or math.nan if self.steps == 0 else self.rate
        look_every, delta = max(1, total // 10), math.nan
        while self.steps < total and self.idle < PATIENCE and not self.stuck:
            if halt():
                return False
            keep(self.state)
            self._step(batches, t)
            if not self.stuck and self.steps % look_every == 0:
                self.look(loss_of)
            if not self.stuck and progress:
                if self.steps % look_every == 0 or math.isnan(delta):
                    delta = 1 - batches.largest_cosine(self.steps, self.A)
                progress(self.steps, total, self.curve[-1], delta)
        return True

    def _step(self, batches: "_Batches", t: float) -> None:
        """One step on a batch."""
        loss, self.A, moved = batches.step(self.steps, self.A, self.rate, t)
        self.curve.append(loss)
        self.stuck = moved == 0
        self.rate, self.steps = 2 * moved, self.steps + (not self.stuck)


@dataclass(frozen=True)
class _Batches:
    """The memories that the steps go by: the same whoever holds them."""

    patterns: Patterns
    mean: Tensor  # [d]
    W0: Tensor  # [r, d]
    size: int  # memories in a step, at most
    seed: int

    def rows(self, step: int) -> Tensor:
        """Which memories a step goes by.

        Returns:
            Sorted, int64 [n].
        """
        return drawn(len(self.patterns), self.size, self.seed, 1 + step)

    def step(self, step: int, A: Tensor, rate: float, t: float) -> tuple[float, Tensor, float]:
        """A step on a batch.

        Args:
            step: its number.
            A: where it begins [D, r].
            rate: to begin with; NaN where none is known.
            t: inverse width.

        Returns:
            The loss before it, the new A and the rate that was used; the old A and 0 where no rate helps.
        """
        return everywhere(self.patterns, _step, self.patterns, self.rows(step), self.mean, self.W0, A, rate, t)

    def largest_cosine(self, step: int, A: Tensor) -> float:
        """The largest cosine between two memories of a batch.

        Args:
            step: whose batch it is.
            A: [D, r].

        Returns:
            The cosine.
        """
        args = self.patterns, self.rows(step), self.mean, self.W0, A
        return largest(everywhere(self.patterns, _features, *args))


@dataclass(frozen=True)
class _Batch:
    """A batch, of whose memories each process holds some."""

    part: Division
    F: Tensor  # [m, r] those that are held here, in whitened coordinates
    own: Tensor  # int64 [m]: which of the batch they are
    count: int  # n

    @classmethod
    def of(cls, part: Division, patterns: Patterns, rows: Tensor, mean: Tensor, W0: Tensor) -> "_Batch":
        """Read what is held here.

        Returns:
            The batch.
        """
        own = part.own(rows, len(patterns)).nonzero()[:, 0]
        return cls(part, (patterns[rows[own] - part.start] - mean) @ W0.T, own, len(rows))

    def features(self, A: Tensor) -> tuple[Tensor, Tensor]:
        """Unit features of the memories.

        Returns:
            Those that are held here [m, D], and all [n, D].
        """
        mine = unit(self.F @ A.T)
        if len(self.own) == self.count:
            return mine, self.part.others.total(mine.detach())
        Z = mine.new_zeros(self.count, len(A))
        Z[self.own] = mine.detach()
        return mine, self.part.others.total(Z)

    def loss(self, A: Tensor, t: float) -> float:
        """L of Definition 4.

        Returns:
            The loss, the same with all to the bit.
        """
        mine, Z = self.features(A)
        log_sum = self._weights(mine, Z, t)[1]
        return log_sum - math.log(self.count * (self.count - 1))

    def gradient(self, A: Tensor, t: float) -> tuple[float, Tensor]:
        """L and ∂L/∂A: both ends of a pair pull alike, so each process follows its own ends, and counts them twice.

        Returns:
            Both, the same with all to the bit.
        """
        A = A.detach().requires_grad_(True)
        mine, Z = self.features(A)
        weights, log_sum, largest = self._weights(mine.detach(), Z, t)
        pull = (weights @ Z).mul_(4 * t * math.exp(largest - log_sum))  # ∂L/∂z_μ, both ends, is 4t Σ_ν p_μν z_ν
        del weights, Z  # which the way back does not need
        (gradient,) = torch.autograd.grad(mine, A, pull)
        total = self.part.others.total(gradient.double()).to(A)
        return log_sum - math.log(self.count * (self.count - 1)), total

    def _weights(self, mine: Tensor, Z: Tensor, t: float) -> tuple[Tensor, float, float]:
        """The pairs of own memories with all, but of none with itself, by x = −t ‖z_μ − z_ν‖².

        Returns:
            e^(x − m) [m, n], the logarithm of the sum of e^x over the pairs of all processes, and m, the
            largest x here.
        """
        X = (mine @ Z.T).sub_(1).mul_(2 * t)
        X[torch.arange(len(X)), self.own] = -math.inf
        largest = max(float(X.max()), -1e300) if X.numel() else -1e300  # of nothing, no weight
        X.sub_(largest).exp_()
        total = float(X.sum(dtype=torch.float64))
        log_sum = log_total(self.part.others, largest + math.log(total) if total > 0 else -math.inf)
        return X, log_sum, largest


def _features(part: Division, patterns: Patterns, rows: Tensor, mean: Tensor, W0: Tensor, A: Tensor) -> Tensor:
    """Unit features of some memories.

    Returns:
        [n, D].
    """
    return _Batch.of(part, patterns, rows, mean, W0).features(A)[1]


def _step(
    part: Division, patterns: Patterns, rows: Tensor, mean: Tensor, W0: Tensor, A: Tensor, rate: float, t: float
) -> tuple[float, Tensor, float]:
    """A step on a batch, which all take together; whether it is long enough, the first process decides.

    Returns:
        As `_Batches.step`.
    """
    batch = _Batch.of(part, patterns, rows, mean, W0)
    loss, gradient = batch.gradient(A, t)
    if math.isnan(rate):
        rate = 0.1 * float(A.norm() / gradient.norm().clamp_min(1e-30))
    promise = SUFFICIENT * float(gradient.square().sum())
    for _ in range(20):  # Armijo: until the step brings at least a tenth of the decrease that the gradient promises
        following = A - rate * gradient
        brings = torch.tensor(batch.loss(following, t) < loss - rate * promise)
        if bool(part.others.same(brings.byte())):
            return loss, following, rate
        rate /= 2
    return loss, A, 0.0
