"""The descent of L_τ over the feature map, Φ(ξ) = A W₀ (ξ − mean) + offset, while τ falls.

Adam (Kingma & Ba, 2015) starts from ridge whitening W₀, where the problem is round. The largest cosine is set by a few
pairs among millions: now and then all pairs are looked over, those that weigh are kept (`pairs`), and the steps between
go by them alone. Of all A that a look has met, the one of smallest largest cosine is the result.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.kernel import FeatureMap
from hopmem.model.pairs import BLOCK, Listed, Pairs, all_of, sample, smooth_maximum, without
from hopmem.model.rows import Patterns, blocks, unit
from hopmem.model.separation import Halt, Keep, LossProgress, State, largest, never, nowhere, separation
from hopmem.model.uhop import SEED_STRIDE, Learned, Training, drawn
from hopmem.model.whitening import RIDGES, Whitened

STEPS, MOST_STEPS, MANY = 100, 1000, 10_000  # so many memories take STEPS; fewer take more, as steps are cheaper
TEMPERATURE, NEAR = 0.03, 0.2  # the first τ, and at most this share of 1 − cos of the nearest memory, at the median
COOLED, COLDER = 1 / 3, 1.5  # the last as a share of it after STEPS; after n times as many, smaller by n^−1.5
RATE = 0.05  # of Adam: how far a step moves a row of A of length one; it falls to FINAL_RATE of it
FINAL_RATE = 0.02
MOMENTS = (0.9, 0.99)  # how much of the gradient's first and second moment Adam remembers
PAIRS = 10_000  # pairs that a step goes by
LOOK_EVERY = 10  # steps between two looks over the pairs
PATIENCE = 0.3  # share of the steps without a smaller largest cosine after which the descent ends
LOOKED_OVER = 20_000  # memories, at most, all of whose pairs are looked over
RULER = 4096  # memories on which ridges are compared
BYTES_OF_PAIR, SMALLEST = 48, 128  # that a look holds for each pair of a block; rows of a block, at least
NAMES = ("A", "offset", "A_first", "offset_first", "A_second", "offset_second", "best_A", "best_offset")  # of tensors
NUMBERS = ("best_cosine", "step", "best_step", "over")


def descend(
    patterns: Patterns,
    whitened: Whitened,
    training: Training,
    progress: LossProgress | None = None,
    halt: Halt = never,
    state: State | None = None,
    keep: Keep = nowhere,
) -> Learned:
    """Minimise L_τ over A and an offset.

    A step costs what its pairs cost, however many memories there are; a look over the pairs costs n² for at most
    LOOKED_OVER memories, fewer where their features outgrow the budget.

    Args:
        patterns: M ≥ 2 memories.
        whitened: their covariance.
        training: how the descent runs; D beyond what the memories span is of no use, and not taken.
        progress: told the steps done, the largest cosine at the last look, and the separation.
        halt: asked before each step whether to stop there.
        state: of an interrupted descent with the same arguments; other names in it are left alone.
        keep: told before each step how to find out where it stands.

    Returns:
        The map of smallest largest cosine at a look; the curve is that cosine at each look.
    """
    ground = _ground(patterns, whitened, training)
    begun = state is not None and "A" in state
    descent = _Descent.resumed(state, ground) if state is not None and begun else _Descent.start(ground)
    finished = descent.run(progress, halt, keep)
    A, offset = descent.best
    phi = near_mean(A @ ground.W0, offset.double(), whitened)
    return Learned(phi, descent.curve, descent.step, finished, descent.state())


def near_mean(W: Tensor, offset: Tensor | None, whitened: Whitened) -> FeatureMap:
    """Φ(u) = W (u − mean) + offset.

    Returns:
        The map, computed near the mean.
    """
    b = -(W.double() @ whitened.mean.double())
    return FeatureMap(W, b if offset is None else b + offset).near(whitened.mean)


@dataclass(frozen=True)
class _Ground:
    """What a descent goes over."""

    patterns: Patterns
    whitened: Whitened
    W0: Tensor  # [r, d], of which the descent begins with the first D rows
    hot: float  # the first τ
    training: Training

    @property
    def D(self) -> int:
        """Dimension of the features."""
        return min(self.training.feature_dim or len(self.W0), len(self.W0))

    @property
    def steps(self) -> int:
        """At most this many."""
        usual = max(STEPS, min(MOST_STEPS, STEPS * MANY // len(self.patterns)))
        return usual if self.training.steps is None else self.training.steps

    @property
    def looked_over(self) -> int:
        """Memories that a look takes in: their features take half the budget at most."""
        return max(2, min(len(self.patterns), LOOKED_OVER, self.training.budget // (8 * self.D)))

    @property
    def pairs(self) -> int:
        """Pairs that a step goes by: three matrices hold the rows of their ends."""
        return max(1, min(self.training.batch_size or PAIRS, self.training.budget // (24 * len(self.W0))))

    @property
    def block(self) -> int:
        """Rows of a block of a look."""
        size = BLOCK
        while size > SMALLEST and BYTES_OF_PAIR * size * size > self.training.budget:
            size //= 2
        return size

    def coordinates(self, rows: Tensor) -> Tensor:
        """W₀ (ξ − mean) of some memories.

        Returns:
            [n, r].
        """
        return (self.patterns[rows] - self.whitened.mean) @ self.W0.T

    def features(self, rows: Tensor, A: Tensor, offset: Tensor) -> Tensor:
        """Unit features of some memories, whose numbers rise.

        Returns:
            [n, D].
        """
        return everywhere(self.patterns, _features, self.patterns, rows, self.whitened.mean, A @ self.W0, offset)

    def listed(self, pairs: Pairs) -> Listed:
        """Read the memories that pairs name.

        Returns:
            The pairs, ready for steps.
        """
        rows, ends = torch.unique(pairs.index, return_inverse=True)
        return Listed.of(self.coordinates(rows.cpu()), ends, pairs.log_share)

    def generator(self, step: int) -> torch.Generator:
        """What the draws of a step come from.

        Returns:
            A generator that follows from seed and step alone.
        """
        return torch.Generator(self.patterns.device).manual_seed((self.training.seed * SEED_STRIDE + step) % 2**63)


def _features(part: Division, patterns: Patterns, rows: Tensor, mean: Tensor, W: Tensor, offset: Tensor) -> Tensor:
    """unit(W (ξ − mean) + offset) of the memories that are held here, sent to the first process.

    Returns:
        [n, D].
    """
    own = rows[part.own(rows, len(patterns))] - part.start
    Z = W.new_empty(len(own), len(W))
    for some in blocks(len(own), 4096):
        Z[some] = unit((patterns[own[some]] - mean) @ W.T + offset)
    return part.others.to_first(Z)


def _ground(patterns: Patterns, whitened: Whitened, training: Training) -> _Ground:
    """Ridge whitening with the ridge of smallest largest cosine, scaled to features of mean length one.

    Returns:
        W₀ and the first τ.
    """
    X = patterns[drawn(len(patterns), RULER, training.seed, 0)] - whitened.mean
    D = training.feature_dim
    W0 = min((whitened.map(ridge) for ridge in RIDGES), key=lambda W: largest(unit(X @ W[:D].T)))
    near = float(separation(unit(X @ W0[:D].T), closest=0).delta.median())
    hot = training.temperature or min(TEMPERATURE, NEAR * max(near, 1e-6))
    return _Ground(patterns, whitened, W0 / (X @ W0.T).norm(dim=1).mean(), hot, training)


@dataclass
class _Descent:
    """Adam over A and the offset, and the best of them by the largest cosine."""

    ground: _Ground
    tensors: list[Tensor]  # of NAMES: where it is, the moments of the gradient, and the best
    pairs: Pairs  # that the steps go by
    best_cosine: float = math.inf
    step: int = 0
    best_step: int = 0
    over: bool = False
    curve: list[float] = field(default_factory=list)  # the largest cosine at each look

    @classmethod
    def start(cls, ground: _Ground) -> "_Descent":
        """Before the first step.

        Returns:
            A = I, no offset.
        """
        A = torch.eye(ground.D, len(ground.W0), device=ground.W0.device)
        offset = A.new_zeros(ground.D)
        zeros = [torch.zeros_like(each) for _ in range(2) for each in (A, offset)]
        none = Pairs(torch.empty(2, 0, dtype=torch.int64, device=A.device), A.new_empty(0))
        return cls(ground, [A, offset, *zeros, A.clone(), offset.clone()], none)

    @classmethod
    def resumed(cls, state: State, ground: _Ground) -> "_Descent":
        """Go on from a state.

        Returns:
            The descent as it was left.
        """
        device = ground.W0.device
        tensors = [state[name].to(device, copy=True) for name in NAMES]
        pairs = Pairs(state["pairs"].to(device), state["log_share"].to(device))
        best, step, best_step, over = (float(state[name]) for name in NUMBERS)
        return cls(ground, tensors, pairs, best, int(step), int(best_step), bool(over), state["curve"].tolist())

    def state(self) -> State:
        """What `resumed` goes on from.

        Returns:
            Tensors by name.
        """
        numbers = {name: torch.tensor(float(getattr(self, name)), dtype=torch.float64) for name in NUMBERS}
        curve = torch.tensor(self.curve, dtype=torch.float64)
        pairs = {"pairs": self.pairs.index, "log_share": self.pairs.log_share, "curve": curve}
        return dict(zip(NAMES, self.tensors, strict=True)) | numbers | pairs

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """A and offset of the smallest largest cosine at a look; of the start before the first."""
        return self.tensors[6], self.tensors[7]

    @property
    def tau(self) -> float:
        """τ of the next step."""
        steps = max(1, self.ground.steps)
        share = COOLED * math.pow(min(1.0, STEPS / steps), COLDER)
        return self.ground.hot * math.pow(share, self.step / steps)

    def run(self, progress: LossProgress | None, halt: Halt, keep: Keep) -> bool:
        """Take steps until the largest cosine no longer falls.

        Returns:
            Whether it ended by itself; False where `halt` stopped it.
        """
        listed = self.ground.listed(self.pairs)
        while not self.over:
            if halt():
                return False
            keep(self.state)
            if self.step % LOOK_EVERY == 0 or self.step >= self.ground.steps:
                if self._look(listed):
                    break
                listed = self.ground.listed(self.pairs)
            self._adam(smooth_maximum(listed, self.tau, *self.tensors[:2])[1:])
            if progress:
                progress(self.step, self.ground.steps, self.curve[-1], 1 - self.curve[-1])
        return True

    def _look(self, listed: Listed) -> bool:
        """Look over the pairs: whether the largest cosine fell, and which pairs are to be gone by.

        Returns:
            Whether the descent is over.
        """
        ground, M, (A, offset) = self.ground, len(self.ground.patterns), self.tensors[:2]
        n, seed = ground.looked_over, ground.training.seed
        rows = drawn(M, n, seed, 1 + self.step)
        Z = ground.features(rows, A, offset)
        pairs, top = sample(Z, ground.pairs, self.tau, ground.generator(self.step), ground.block)
        if n < M:
            known = _hardest(self.pairs, listed, ground.pairs // 2, A, offset)
            more = math.log(M) + math.log(M - 1) - math.log(n) - math.log(n - 1)
            pairs = Pairs(rows.to(pairs.index.device)[pairs.index], pairs.log_share + more)
            pairs = all_of(known, without(pairs, known, M))
            top = largest(ground.features(drawn(M, n, seed, 0), A, offset))
        self.pairs, fell = pairs, top < self.best_cosine
        self.curve.append(top)
        if fell:
            self.tensors[6:] = [A.clone(), offset.clone()]
            self.best_cosine, self.best_step = top, self.step
        idle = self.step - self.best_step
        self.over = self.step >= ground.steps or idle >= max(3 * LOOK_EVERY, PATIENCE * ground.steps)
        return self.over

    def _adam(self, gradients: tuple[Tensor, Tensor]) -> None:
        """One step, in place."""
        ground, (beta1, beta2) = self.ground, MOMENTS
        done = self.step / ground.steps
        rate = (ground.training.learning_rate or RATE) / math.sqrt(len(ground.W0)) * (1 - (1 - FINAL_RATE) * done)
        self.step += 1
        for place, g in enumerate(gradients):
            x, first, second = self.tensors[place], self.tensors[2 + place], self.tensors[4 + place]
            first.lerp_(g, 1 - beta1)
            second.lerp_(g.square(), 1 - beta2)
            spread = (second / (1 - beta2**self.step)).sqrt().add_(torch.finfo(g.dtype).tiny)
            x -= rate / (1 - beta1**self.step) * first / spread


def _hardest(pairs: Pairs, listed: Listed, most: int, A: Tensor, offset: Tensor) -> Pairs:
    """The pairs of a list with the largest cosines now, which from now on stand for themselves alone.

    Returns:
        At most `most` pairs.
    """
    order = listed.cosines(unit(listed.F @ A.T + offset)).argsort(descending=True, stable=True)[:most]
    return Pairs(pairs.index[:, order], torch.zeros_like(pairs.log_share[order]))
