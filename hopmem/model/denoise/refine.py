"""Gradient refinement of a feature map: the likelihood of the right memory under fresh corruptions.

The loss is −log p_μ of a corrupted copy of ξ_μ among the memories of its batch, minimised by Adam (Kingma & Ba, 2015)
over W = A W₀, an offset and β, from A = I: in the features of W₀ the noise is nearly white and the problem round. A
step costs what its batch costs, however many memories there are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from hopmem.model.denoise.validation import Source
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import unit
from hopmem.model.scan import NEGLIGIBLE
from hopmem.model.separation import Halt, Keep, LossProgress, State, largest, never, nowhere

LOOK_EVERY = 20  # steps between two looks at the validation
PATIENCE = 3  # looks without a better map, after which refinement ends
BETA_RATE = 30.0  # how much faster log β may move than W does
SEED_STRIDE = 1_000_003  # seeds of successive steps lie one apart, and those of successive seeds this far,
FIRST_STEP = 64  # away from the seeds of other purposes


@dataclass(frozen=True)
class Refining:
    """How refinement runs."""

    steps: int = 200  # at most this many
    learning_rate: float = 1e-3  # of Adam, in units of the features of the start; falls to zero over the steps
    batch_size: int = 512  # draws of a step: a memory that is drawn again counts once, with one corrupted copy
    seed: int = 0  # draws batches and corruptions


@dataclass
class Refinement:
    """Where refinement stands: all that it needs to go on as if it had never stopped."""

    parameters: list[Tensor]  # A [D, D], offset [D], log β []
    moments: list[Tensor]  # of Adam: first and second of each parameter
    best: list[Tensor]  # A and offset that validated best
    best_score: tuple[float, float]  # what they scored
    step: int = 0
    idle: int = 0  # looks since the best
    curve: list[float] = field(default_factory=list)  # the loss of each batch

    def tensors(self) -> State:
        """All of it as tensors.

        Returns:
            What `restored` takes.
        """
        numbers = torch.tensor([self.step, self.idle, *self.best_score], dtype=torch.float64)
        lists = {"parameter": self.parameters, "moment": self.moments, "best": self.best}
        named = {f"{name}.{place}": each for name, many in lists.items() for place, each in enumerate(many)}
        return named | {"numbers": numbers, "curve": torch.tensor(self.curve, dtype=torch.float64)}

    @classmethod
    def restored(cls, state: State) -> "Refinement":
        """What `tensors` gave.

        Returns:
            The refinement, as it was.
        """
        step, idle, accuracy, margin = state["numbers"].tolist()
        parameters, moments, best = (
            [state[f"{name}.{place}"] for place in range(count)]
            for name, count in (("parameter", 3), ("moment", 6), ("best", 2))
        )
        return cls(parameters, moments, best, (accuracy, margin), int(step), int(idle), state["curve"].tolist())

    @property
    def improved(self) -> bool:
        """Whether a step led to a better map than the start."""
        A, offset = self.best
        return bool(offset.any()) or not bool(torch.equal(A, torch.eye(len(A), device=A.device)))

    @classmethod
    def start(cls, D: int, beta: float, score: tuple[float, float], device: torch.device) -> "Refinement":
        """Before the first step.

        Returns:
            A = I, no offset.
        """
        parameters = [torch.eye(D, device=device), torch.zeros(D, device=device), torch.tensor(beta).log().to(device)]
        zeros = [torch.zeros_like(each) for each in parameters for _ in range(2)]
        return cls(parameters, zeros, [each.clone() for each in parameters[:2]], score)


@dataclass(frozen=True)
class Start:
    """The map that refinement starts from, with features of mean length one."""

    W: Tensor  # [D, d]
    mean: Tensor  # [d]; what is unknown of a query is taken to be it
    lift: float  # R of the Euclidean metric, in units of these features; 0 is the angle

    def features(self, X: Tensor) -> Tensor:
        """W₀ (x − mean).

        Returns:
            [n, D].
        """
        return (X - self.mean).nan_to_num(0) @ self.W.T

    def states(self, F: Tensor, A: Tensor, offset: Tensor) -> Tensor:
        """Unit features of the refined map.

        Args:
            F: features of the start [n, D].
            A: the refinement [D, D].
            offset: [D].

        Returns:
            [n, D], or [n, D + 1] with the lift.
        """
        refined = F @ A.T + offset
        return unit(pad(refined, (0, 1), value=self.lift) if self.lift else refined)

    def map(self, A: Tensor, offset: Tensor) -> FeatureMap:
        """The refined map on patterns.

        Returns:
            Φ(u) = A W₀ (u − mean) + offset, with the lift below.
        """
        W = A @ self.W
        b = offset.double() - W.double() @ self.mean.double()
        if self.lift:
            W, b = torch.cat([W, W.new_zeros(1, W.shape[1])]), torch.cat([b, b.new_tensor([self.lift])])
        return FeatureMap(W, b).near(self.mean)


def refine(
    start: Start,
    source: Source,
    items: Tensor,
    state: Refinement,
    how: Refining,
    score: Callable[[Tensor, Tensor], tuple[float, float]],
    progress: LossProgress | None = None,
    halt: Halt = never,
    keep: Keep = nowhere,
) -> bool:
    """Take steps until the validation no longer improves; `state` is moved along.

    Args:
        start: the map to start from.
        source: corrupted copies.
        items: what may be learned from, int64; at least two.
        state: where to go on.
        how: how refinement runs.
        score: of A and offset on the validation, larger is better.
        progress: told the steps done, the loss, and the separation of the memories of the batch.
        halt: asked before each step whether to stop there.
        keep: told before each step how to find out where it stands.

    Returns:
        Whether it ended by itself; False where `halt` stopped it.
    """
    device = source.memory.device
    parameters = [each.detach().to(device, copy=True).requires_grad_(True) for each in state.parameters]
    adam = _adam(parameters, state, how)
    while state.step < how.steps and state.idle < PATIENCE:
        if halt():
            return False
        keep(state.tensors)
        for group, rate in zip(adam.param_groups, (1.0, BETA_RATE), strict=True):
            group["lr"] = how.learning_rate * rate * (1 - state.step / how.steps)
        loss, Z = _batch_loss(start, source, items, parameters, how, state.step)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        state.step += 1
        state.curve.append(float(loss.detach()))
        _remember(state, parameters, adam)
        if state.step % LOOK_EVERY == 0 or state.step == how.steps:
            _look(state, score)
        if progress:
            progress(state.step, how.steps, state.curve[-1], 1 - largest(Z) if len(Z) > 1 else 0.0)
    return True


def _batch_loss(
    start: Start, source: Source, items: Tensor, parameters: list[Tensor], how: Refining, step: int
) -> tuple[Tensor, Tensor]:
    """−log p_μ of a batch; its draws follow from the seed and the number of the step alone.

    Returns:
        A scalar, and the unit features of the memories [n, D].
    """
    device = source.memory.device
    seed = (how.seed * SEED_STRIDE + FIRST_STEP + 2 * step) % (2**63 - 1)
    draw = torch.Generator().manual_seed(seed)
    batch = torch.unique(items[torch.randint(len(items), (how.batch_size,), generator=draw)])
    noise = torch.Generator(device).manual_seed(seed + 1)
    A, offset, log_beta = parameters
    F = start.features(source.corrupted(batch, noise)[0])
    rows, which = torch.unique(source.rows(batch), return_inverse=True)  # given pairs may share a clean half
    Z = start.states(start.features(source.memory[rows]), A, offset)
    S = log_beta.exp() * start.states(F, A, offset) @ Z.T  # [n, n]
    if S.requires_grad:
        S.register_hook(_normal)  # type: ignore[no-untyped-call]
    return cross_entropy(S, which.to(device)), Z.detach()


def _normal(slope: Tensor) -> Tensor:
    """Drop what no sum feels, but whose products are denormal and would slow the way back fourfold.

    Returns:
        The gradient without it.
    """
    return slope.masked_fill(slope.abs() < NEGLIGIBLE, 0)


def _adam(parameters: list[Tensor], state: Refinement, how: Refining) -> torch.optim.Adam:
    """Adam as it was when the state was left.

    Returns:
        The optimiser.
    """
    adam = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}], how.learning_rate, (0.9, 0.99))
    for number, parameter in enumerate(parameters):
        first, second = state.moments[2 * number : 2 * number + 2]
        adam.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": first.to(parameter.device, copy=True),
            "exp_avg_sq": second.to(parameter.device, copy=True),
        }
    return adam


def _remember(state: Refinement, parameters: list[Tensor], adam: torch.optim.Adam) -> None:
    state.parameters = [each.detach() for each in parameters]
    state.moments = [adam.state[each][name] for each in parameters for name in ("exp_avg", "exp_avg_sq")]


def _look(state: Refinement, score: Callable[[Tensor, Tensor], tuple[float, float]]) -> None:
    """Validate, and keep what is best."""
    A, offset = state.parameters[:2]
    state.idle += 1
    if (found := score(A, offset)) > state.best_score:
        state.best, state.best_score, state.idle = [A.clone(), offset.clone()], found, 0
