"""Stage II: energy, update and retrieval of the kernelized modern Hopfield network (U-Hop, Theorem 1)."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hopmem.model.association import associate
from hopmem.model.entmax import conjugate, weights
from hopmem.model.gram import Progress
from hopmem.model.kernel import Features, blocks, unit
from hopmem.model.scan import RowBlocks, combine, known_scores, query_blocks, scores, top_scores
from hopmem.model.sieve import states_at_once
from hopmem.model.weighing import LOUD, VISIBLE, Association, Weighing

BYTES_OF_ENTRY = 32  # of a state, or of its answer: float64, and copies


@dataclass(frozen=True)
class Dynamics:
    """How the states move."""

    alpha: float = 1.0  # α ≥ 1
    beta: float = 1.0  # inverse temperature β ≥ 0
    steps: int = 1  # at most this many updates, at least 1
    tolerance: float = 1e-5  # a query has converged when its state moves by less
    top: int = 1  # how many memories to name for each query
    budget: int = 256 << 20  # bytes of working memory
    spread: float = 1.0  # largest over smallest norm of the rows that are read out
    longest: float = 1.0  # the largest norm of these rows


@dataclass(frozen=True)
class Retrieval:
    """What B queries brought back."""

    patterns: Tensor  # [B, n] readout p Ξ (or p V) of the last weights
    index: Tensor  # [B, k] memories by weight, largest first
    weight: Tensor  # [B, k] their weights
    margin: Tensor  # [B] largest weight minus the second largest
    support: Tensor  # [B] int64: non-zero weights (α > 1), or weights above 0.01 (softmax)
    energy: Tensor  # [B] E of the state that the last weights were computed from
    steps: Tensor  # [B] int64: updates made
    converged: Tensor  # [B] bool: the last update moved the state by less than the tolerance


def energy(Y: Tensor, nearest: Tensor, free: Tensor, beta: float) -> Tensor:
    """E(y) = ½‖y‖² − Ψ*_α(β Z y)/β, which no update raises (it is a step of CCCP).

    Ψ*_α(β Z y) = β max Z y + Ψ*_α(β (Z y − max Z y)), so that a single memory has an energy at β = 0, too.

    Args:
        Y: states [b, D].
        nearest: their largest scores [b].
        free: Ψ*_α(β Z y) [b].
        beta: β; at 0 the energy is −∞ but for a single memory.

    Returns:
        The energy of each state [b].
    """
    rest = (free - beta * nearest) / beta
    return Y.square().sum(1) / 2 - nearest - rest.nan_to_num(nan=0.0, posinf=torch.inf)


def retrieve(
    X: Tensor, memory: Features, readout: RowBlocks, width: int, dynamics: Dynamics, progress: Progress | None = None
) -> Retrieval:
    """Retrieve from whole queries: y₀ = Φ(x)/‖Φ(x)‖, updates until each query has converged, one readout.

    Args:
        X: queries [B, d], finite.
        memory: unit features of M memories.
        readout: M rows to read out: Ξ itself, or stored values.
        width: entries of a readout row.
        dynamics: how the states move.
        progress: told how many queries are done.

    Returns:
        The answers, in the order of the queries.
    """
    parts = []
    fitting = max(1, dynamics.budget // (BYTES_OF_ENTRY * max(memory.dimension, width)))
    for rows in blocks(len(X), min(states_at_once(len(memory), dynamics.budget // 4), fitting)):
        Y = unit(memory.phi(X[rows].double()))  # what float32 rounds off here, β would make an error of
        parts.append(settle(Y, memory, readout, width, dynamics))
        if progress:
            progress(rows.stop, len(X))
    return _join(parts)


def settle(Y: Tensor, memory: Features, readout: RowBlocks, width: int, dynamics: Dynamics) -> Retrieval:
    """Update a block of states until each has converged or the steps are up, and read out once.

    Args:
        Y: states in feature space [b, D], float64; overwritten.
        memory: unit features of M memories.
        readout: M rows to read out; the memories themselves give the states that come next.
        width: entries of a readout row.
        dynamics: how the states move.

    Returns:
        The answers of the block.
    """
    how = Weighing(
        dynamics.alpha, dynamics.beta, dynamics.top, dynamics.budget // 4, dynamics.spread, max(1.0, dynamics.longest)
    )
    first: tuple[RowBlocks, int] = (readout, width) if dynamics.steps == 1 else (memory, memory.dimension)
    waiting, parts, order = torch.arange(len(Y), device=Y.device), list[Retrieval](), list[Tensor]()
    for step in range(1, dynamics.steps + 1):
        left = list[Tensor]()
        for some, p in associate(Y[waiting], memory, how, *first):
            states = waiting[some]
            still = _stays(Y[states], p, memory, dynamics.tolerance)
            ready = (still | (step == dynamics.steps)).nonzero()[:, 0]
            if len(ready):
                parts.append(_answer(Y[states], p, ready, still, step, readout, width, dynamics))
                order.append(states[ready])
            if len(ready) < len(states):
                moving = (~still).nonzero()[:, 0]
                Y[states[moving]] = p.mix(memory, memory.dimension, moving)
                left.append(states[moving])
        if not left:
            break
        waiting = torch.cat(left).sort().values
    return parts[0] if len(parts) == 1 else _take(_join(parts), torch.cat(order).argsort())


def complete(
    X: Tensor,
    known: Tensor,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
    progress: Progress | None = None,
) -> Retrieval:
    """Retrieve from partial queries: compared on their known entries alone, which stay clamped.

    Both sides pass through the map that sees only the known entries (`FeatureMap.restricted`) and are normalised there,
    as if the bank held only them. Since what is compared never moves, the first update is the fixed point.

    Args:
        X: queries [B, d]; unknown entries hold anything finite.
        known: which entries are known, bool [B, d], at least one a query.
        memory: unit features of M memories.
        readout: M rows to read out.
        width: entries of a readout row.
        dynamics: how the weights follow from the scores.
        progress: told how many queries are done.

    Returns:
        The answers, in the order of the queries; the readout is not clamped here.
    """
    if memory.phi.is_identity:

        def answer(rows: slice) -> Retrieval:
            Y = unit(torch.where(known[rows], X[rows].double(), 0))
            return _read(Y, known_scores(Y, known[rows], memory, dynamics.budget), readout, width, dynamics)

        return _by_blocks(len(X), len(memory), answer, dynamics, progress)

    # A learned map mixes the entries, so each set of known entries makes features of its own.
    masks, group = torch.unique(known, dim=0, return_inverse=True)
    centre = memory.phi.centre()
    parts, order = [], []
    for number, mask in enumerate(masks):
        members, columns = (group == number).nonzero()[:, 0], mask.nonzero()[:, 0]
        parts.append(_complete_alike(X[members][:, columns], columns, centre, memory, readout, width, dynamics))
        order.append(members)
        if progress:
            progress(sum(map(len, order)), len(X))
    return _take(_join(parts), torch.cat(order).argsort())


def _complete_alike(
    X: Tensor,
    columns: Tensor,
    centre: Tensor | None,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
) -> Retrieval:
    """Retrieve from queries [b, k] that know the same k entries, `columns`.

    Returns:
        Their answers.
    """
    seen = memory.restricted(columns, centre).held(dynamics.budget)
    Y = unit(seen.phi(X.double()))

    def answer(rows: slice) -> Retrieval:
        return _read(Y[rows], scores(Y[rows], seen, dynamics.budget), readout, width, dynamics)

    return _by_blocks(len(X), len(memory), answer, dynamics, None)


def _stays(Y: Tensor, p: Association, memory: Features, tolerance: float) -> Tensor:
    """Which states an update moves by no more than the tolerance.

    ‖y′ − y‖ ≥ (‖y‖² − ⟨y′, y⟩)/‖y‖, and no ⟨y′, y⟩ is above the largest score: most states need not be updated to be
    told apart.

    Returns:
        bool [b].
    """
    length = Y.norm(dim=1)
    stays: Tensor = length.square() - p.nearest <= tolerance * length
    close = stays.nonzero()[:, 0]
    if len(close):
        stays[close] = (p.mix(memory, memory.dimension, close) - Y[close]).norm(dim=1) <= tolerance
    return stays


def _answer(
    Y: Tensor,
    p: Association,
    ready: Tensor,
    still: Tensor,
    step: int,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
) -> Retrieval:
    """The readout of the states that are ready, and what their weights say of the answer.

    Returns:
        The answers.
    """
    weight = p.weight[ready].float()
    runner_up = weight[:, 1] if weight.shape[1] > 1 else torch.zeros_like(weight[:, 0])
    E = energy(Y[ready], p.nearest[ready], p.conjugate[ready], dynamics.beta)
    return Retrieval(
        patterns=p.mix(readout, width, ready).float(),
        index=p.index[ready, : dynamics.top],
        weight=weight[:, : dynamics.top],
        margin=weight[:, 0] - runner_up,
        support=p.support[ready],
        energy=E.float(),
        steps=torch.full_like(ready, step),
        converged=still[ready],
    )


def _read(Y: Tensor, S: Tensor, readout: RowBlocks, width: int, dynamics: Dynamics) -> Retrieval:
    """Answer from the scores of clamped states.

    Returns:
        The answers of the block, after one update each.
    """
    P = weights(dynamics.beta * S, dynamics.alpha)
    E = energy(Y, S.amax(1).double(), conjugate(dynamics.beta * S, P, dynamics.alpha).double(), dynamics.beta)
    once = torch.ones(len(S), dtype=torch.int64, device=S.device)
    return _summary(S, P, E, once, once.bool(), readout, width, dynamics)


def _summary(
    S: Tensor,
    P: Tensor,
    E: Tensor,
    steps: Tensor,
    converged: Tensor,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
) -> Retrieval:
    """The readout of the last weights, and what they say of the answer.

    Returns:
        The answers of the block.
    """
    M = S.shape[1]
    index = top_scores(S, min(max(2, dynamics.top), M))  # [b, k]
    weight = P.gather(1, index).float()
    runner_up = weight[:, 1] if M > 1 else torch.zeros_like(weight[:, 0])
    visible = (VISIBLE if dynamics.alpha == 1 else 0) < P
    return Retrieval(
        patterns=combine(P if dynamics.spread > LOUD else P.float(), readout, width, dynamics.budget).float(),
        index=index[:, : dynamics.top],
        weight=weight[:, : dynamics.top],
        margin=weight[:, 0] - runner_up,
        support=visible.sum(1),
        energy=E.float(),
        steps=steps,
        converged=converged,
    )


def _by_blocks(
    count: int, memories: int, answer: Callable[[slice], Retrieval], dynamics: Dynamics, progress: Progress | None
) -> Retrieval:
    """Answer queries block by block within the budget.

    Returns:
        The answers of all blocks, in order.
    """
    parts = []
    for rows in query_blocks(count, memories, dynamics.budget):
        parts.append(answer(rows))
        if progress:
            progress(rows.stop, count)
    return _join(parts)


def _join(parts: list[Retrieval]) -> Retrieval:
    """Answers one after another.

    Returns:
        All of `parts` in one.
    """
    if len(parts) == 1:
        return parts[0]
    return Retrieval(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(Retrieval)))


def _take(answers: Retrieval, order: Tensor) -> Retrieval:
    """Answers in another order.

    Returns:
        The rows `order` of `answers`.
    """
    return Retrieval(*(getattr(answers, each.name)[order] for each in fields(Retrieval)))
