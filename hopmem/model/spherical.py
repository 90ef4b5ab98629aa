"""U-Hop+ (arXiv 2410.23126): the feature map whose features, on the sphere, have the smallest largest cosine.

Where the M memories are independent, a map reaches any arrangement of M points: the best spherical code is looked for
among free points (`codes`), and W and b are what carries the memories there. Elsewhere L_τ, the smooth maximum of the
cosines, is minimised over the map itself (`descent`).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hopmem.model.codes.search import Stage, best_code
from hopmem.model.descent import RULER, descend, near_mean
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns
from hopmem.model.separation import Halt, Keep, LossProgress, State, never, nowhere, separation
from hopmem.model.uhop import Learned, Training
from hopmem.model.whitening import Whitened, require_room, whiten

REFINEMENTS = 3  # of the solution for W: each leaves the share of its error that the rounding of W₀ has of W₀
REACHED = 1e-4  # a largest cosine this near the code's says that float32 holds the map


def learn_spherical(
    patterns: Patterns,
    training: Training,
    restarts: int = 16,
    progress: LossProgress | None = None,
    halt: Halt = never,
    state: State | None = None,
    keep: Keep = nowhere,
) -> Learned:
    """Minimise the largest cosine between the features of two memories.

    A step costs what its pairs cost, however many memories there are; a look over the pairs costs n² for at most
    LOOKED_OVER memories, and fewer where their features outgrow the budget.

    Args:
        patterns: M ≥ 2 memories, no two equal.
        training: how the descent runs; D beyond what the memories span is of no use, and not taken.
        restarts: how widely a code is searched.
        progress: told the steps (of a code, the stages) done, of how many, the largest cosine, and the separation.
        halt: asked before each step whether to stop there.
        state: of an interrupted run with the same arguments; it ends as if it had not been interrupted.
        keep: told between two steps (of a code, after a stage) how to find out where it stands.

    Returns:
        The map of smallest largest cosine that was met; the curve is that cosine at each look (of a code, stage).
    """
    require_room(patterns, RULER)
    whitened = whiten(patterns)
    rank = len(whitened.eigenvalues)
    if len(patterns) > rank + 1:
        return descend(patterns, whitened, training, progress, halt, state, keep)
    coded, reached = _coded(patterns, whitened, training, restarts, progress, halt, state, keep)
    if not coded.finished or reached:
        return coded

    def keep_both(descent: Callable[[], State]) -> None:
        keep(lambda: coded.state | descent())

    learned = descend(patterns, whitened, training, progress, halt, state, keep_both)
    phi = min(coded.phi, learned.phi, key=lambda phi: separation(Features(patterns, phi)).max_cosine)
    left = coded.state | learned.state
    return Learned(phi, coded.curve + learned.curve, coded.steps + learned.steps, learned.finished, left)


def _coded(
    patterns: Patterns,
    whitened: Whitened,
    training: Training,
    restarts: int,
    progress: LossProgress | None,
    halt: Halt,
    state: State | None,
    keep: Keep,
) -> tuple[Learned, bool]:
    """Carry independent memories to the best spherical code.

    Returns:
        What was learned, and whether float32 holds the map.
    """
    rank = len(whitened.eigenvalues)
    start = None if state is None else Stage(state["points"], int(state["number"]), int(state.get("idle", 0)))
    before = [] if state is None else state["code_curve"].tolist()
    code = best_code(
        len(patterns),
        min(training.feature_dim or rank, rank),
        restarts=restarts,
        seed=training.seed,
        steps=training.steps,
        budget=training.budget,
        device=patterns.device,
        progress=progress,
        halt=halt,
        start=start,
        keep=lambda stage, curve: keep(lambda: _left(stage, before + curve)),
    )
    curve = before + code.curve if code.stages > len(before) else before  # a code that is written down comes anew
    warm = near_mean(whitened.map(0.0)[: code.points.shape[1]], None, whitened)
    phi, found = carried(patterns, whitened, code.points), separation(code.points).max_cosine
    cosines = [separation(Features(patterns, each)).max_cosine for each in (phi, warm)]
    reached, left = min(cosines) <= found + REACHED, _left(code.stage, curve)
    return Learned(phi if cosines[0] <= cosines[1] else warm, curve, code.stages, code.finished, left), reached


def _left(stage: Stage, curve: list[float]) -> State:
    """Where the search for a code stands.

    Returns:
        Tensors by name.
    """
    return {
        "points": stage.points,
        "number": torch.tensor(float(stage.number), dtype=torch.float64),
        "idle": torch.tensor(float(stage.idle), dtype=torch.float64),
        "code_curve": torch.tensor(curve, dtype=torch.float64),
    }


def carried(patterns: Patterns, whitened: Whitened, Z: Tensor) -> FeatureMap:
    """The map Φ(ξ_μ) = z_μ of least W, for independent memories: in white coordinates, W = Zᵀ F/M.

    Args:
        patterns: M memories that span M − 1 dimensions around their mean.
        whitened: their covariance.
        Z: where they go [M, D], float64.

    Returns:
        Φ, to what float32 holds.
    """
    M, W0 = len(patterns), whitened.map(0.0).double()
    F = torch.cat([(patterns[rows].double() - whitened.mean) @ W0.T for rows in patterns.in_blocks()])  # [M, r]
    A, offset = Z.new_zeros(Z.shape[1], len(W0)), Z.mean(0)  # the mean of centred memories goes to that of Z
    for _ in range(REFINEMENTS):
        rest = Z - F @ A.T - offset
        A, offset = A + (rest - rest.mean(0)).T @ F / M, offset + rest.mean(0)
    return near_mean((A @ W0).float(), offset, whitened)
