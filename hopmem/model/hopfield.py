"""Stage II: energy, update and retrieval of the kernelized modern Hopfield network (U-Hop, Theorem 1)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hopmem.divided import everywhere, is_divided
from hopmem.model.association import associate
from hopmem.model.gram import Progress
from hopmem.model.held import whole
from hopmem.model.kernel import Features
from hopmem.model.meeting import Part, Shard
from hopmem.model.rows import blocks, unit
from hopmem.model.scan import RowBlocks, known_scores, query_blocks, scores
from hopmem.model.sieve import states_at_once
from hopmem.model.weighing import Association, Weighing

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
    X: Tensor,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
    progress: Progress | None = None,
    shard: Shard | None = None,
) -> Retrieval:
    """Retrieve from whole queries: y₀ = Φ(x)/‖Φ(x)‖, updates until each query has converged, one readout.

    Args:
        X: queries [B, d], finite.
        memory: unit features of M memories.
        readout: M rows to read out: Ξ itself, or stored values.
        width: entries of a readout row.
        dynamics: how the states move.
        progress: told how many queries are done.
        shard: where other processes hold more memories than those of `memory` and `readout`.

    Returns:
        The answers, in the order of the queries.
    """
    if shard is None and is_divided(memory):
        return everywhere(memory, _retrieve, X, memory, readout, width, dynamics, progress=progress)
    parts, most = [], len(memory) if shard is None else shard.most
    fitting = max(1, dynamics.budget // (BYTES_OF_ENTRY * max(memory.dimension, width)))
    for rows in blocks(len(X), min(states_at_once(most, dynamics.budget // 4), fitting)):
        Y = unit(memory.phi(X[rows].double()))  # what float32 rounds off here, β would make an error of
        parts.append(settle(_shared(Y, shard), memory, readout, width, dynamics, shard))
        if progress:
            progress(rows.stop, len(X))
    return _join(parts)


def settle(
    Y: Tensor,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
    shard: Shard | None = None,
) -> Retrieval:
    """Update a block of states until each has converged or the steps are up, and read out once.

    Args:
        Y: states in feature space [b, D], float64; overwritten.
        memory: unit features of M memories.
        readout: M rows to read out; the memories themselves give the states that come next.
        width: entries of a readout row.
        dynamics: how the states move.
        shard: where other processes hold more memories, and the same states.

    Returns:
        The answers of the block.
    """
    if shard is None and is_divided(memory):
        return everywhere(memory, _settle, Y, memory, readout, width, dynamics)
    how = _how(dynamics)
    first: tuple[RowBlocks, int] = (readout, width) if dynamics.steps == 1 else (memory, memory.dimension)
    waiting, parts, order = torch.arange(len(Y), device=Y.device), list[Retrieval](), list[Tensor]()
    for step in range(1, dynamics.steps + 1):
        left = list[Tensor]()
        for some, p in _associations(Y[waiting], memory, how, *first, shard):
            states = waiting[some]
            still = _stays(Y[states], p, memory, dynamics.tolerance, shard)
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
    shard: Shard | None = None,
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
        shard: where other processes hold more memories.

    Returns:
        The answers, in the order of the queries; the readout is not clamped here.
    """
    if shard is None and is_divided(memory):
        return everywhere(memory, _complete, X, known, memory, readout, width, dynamics, progress=progress)
    if memory.phi.is_identity:

        def answer(rows: slice) -> Retrieval:
            Y = _shared(unit(torch.where(known[rows], X[rows].double(), 0)), shard)
            S = known_scores(Y, known[rows], memory, dynamics.budget)
            return _read(Y, S, memory, readout, width, dynamics, shard)

        return _by_blocks(len(X), memory, answer, dynamics, progress, shard)

    # A learned map mixes the entries, so each set of known entries makes features of its own.
    masks, group = torch.unique(known, dim=0, return_inverse=True)
    centre = memory.phi.centre()
    parts, order = [], []
    for number, mask in enumerate(masks):
        members, columns = (group == number).nonzero()[:, 0], mask.nonzero()[:, 0]
        parts.append(_complete_alike(X[members][:, columns], columns, centre, memory, readout, width, dynamics, shard))
        order.append(members)
        if progress:
            progress(sum(map(len, order)), len(X))
    return _take(_join(parts), torch.cat(order).argsort())


def _retrieve(
    shard: Shard, X: Tensor, memory: Features, readout: RowBlocks, width: int, dynamics: Dynamics
) -> Retrieval:
    return retrieve(X, memory, readout, width, dynamics, shard.progress, shard)


def _settle(shard: Shard, Y: Tensor, memory: Features, readout: RowBlocks, width: int, dynamics: Dynamics) -> Retrieval:
    return settle(Y.clone(), memory, readout, width, dynamics, shard)


def _complete(
    shard: Shard, X: Tensor, known: Tensor, memory: Features, readout: RowBlocks, width: int, dynamics: Dynamics
) -> Retrieval:
    return complete(X, known, memory, readout, width, dynamics, shard.progress, shard)


def _complete_alike(
    X: Tensor,
    columns: Tensor,
    centre: Tensor | None,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
    shard: Shard | None,
) -> Retrieval:
    """Retrieve from queries [b, k] that know the same k entries, `columns`.

    Returns:
        Their answers.
    """
    seen = memory.restricted(columns, centre).held(dynamics.budget)
    Y = _shared(unit(seen.phi(X.double())), shard)

    def answer(rows: slice) -> Retrieval:
        return _read(Y[rows], scores(Y[rows], seen, dynamics.budget), seen, readout, width, dynamics, shard)

    return _by_blocks(len(X), memory, answer, dynamics, None, shard)


def _shared(Y: Tensor, shard: Shard | None) -> Tensor:
    """States, or what is decided of them, the same for all processes to the bit, whatever processor each has.

    Returns:
        Those of the first process.
    """
    return Y if shard is None else shard.others.same(Y)


def _associations(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, shard: Shard | None
) -> Iterator[Part]:
    """Weigh the memories, and those that other processes hold.

    Yields:
        Some of the states and their association, until all are through.
    """
    if shard is None:
        yield from associate(Y, memory, how, first, width)
    else:
        parts = associate(Y, memory, replace(how, at_once=True), first, width, shard)
        yield torch.arange(len(Y), device=Y.device), shard.meet(Y, parts, memory, how, first, width)


def _stays(Y: Tensor, p: Association, memory: Features, tolerance: float, shard: Shard | None) -> Tensor:
    """Which states an update moves by no more than the tolerance.

    ‖y′ − y‖ ≥ (‖y‖² − ⟨y′, y⟩)/‖y‖, and no ⟨y′, y⟩ is above the largest score: most states need not be updated to be
    told apart. Of several processes, which may add up in another order, the first one tells.

    Returns:
        bool [b].
    """
    length = Y.norm(dim=1)
    stays = _shared(length.square() - p.nearest <= tolerance * length, shard)
    close = stays.nonzero()[:, 0]
    if len(close):
        moved = (p.mix(memory, memory.dimension, close) - Y[close]).norm(dim=1)
        stays[close] = _shared(moved <= tolerance, shard)
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


def _read(
    Y: Tensor,
    S: Tensor,
    memory: Features,
    readout: RowBlocks,
    width: int,
    dynamics: Dynamics,
    shard: Shard | None,
) -> Retrieval:
    """Answer from the scores of clamped states.

    Returns:
        The answers of the block, after one update each.
    """
    every, how = torch.arange(len(Y), device=Y.device), _how(dynamics)
    parts = [(every, whole(S, how))] if len(memory) else []
    p = parts[0][1] if shard is None else shard.meet(Y, parts, None, how, readout, width)
    return _answer(Y, p, every, every >= 0, 1, readout, width, dynamics)


def _how(dynamics: Dynamics) -> Weighing:
    """What the dynamics ask of a weighing.

    Returns:
        How to weigh.
    """
    share, longest = dynamics.budget // 4, max(1.0, dynamics.longest)
    return Weighing(dynamics.alpha, dynamics.beta, dynamics.top, share, dynamics.spread, longest)


def _by_blocks(
    count: int,
    memory: Features,
    answer: Callable[[slice], Retrieval],
    dynamics: Dynamics,
    progress: Progress | None,
    shard: Shard | None,
) -> Retrieval:
    """Answer queries block by block within the budget.

    Returns:
        The answers of all blocks, in order.
    """
    parts, most = [], len(memory) if shard is None else shard.most
    for rows in query_blocks(count, most, dynamics.budget):
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
