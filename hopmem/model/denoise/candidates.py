"""The closed-form maps that are tried: every covariance at every ridge, at its best dimension and metric."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.denoise.fisher import (
    MOST_DIRECTIONS,
    WIDE,
    Frame,
    Recipe,
    Scatter,
    discriminants,
    frame_of,
    lift_of,
    whitening,
)
from hopmem.model.denoise.search import FIT, Search, draws
from hopmem.model.denoise.validation import BETA_QUERIES, Source, Verdict, least_error, verdict
from hopmem.model.gram import Progress
from hopmem.model.rows import Patterns, blocks, small_blocks
from hopmem.model.separation import State

COVARIANCES = (
    *((0.0, ridge) for ridge in (1e-3, 1e-2, 0.1, 0.3, 1.0)),  # (weight of the memories beside the noise, ridge)
    *((0.03, ridge) for ridge in (1e-3, 1e-2, 0.1)),
    *((None, ridge) for ridge in (1e-3, 1e-2, 0.1, 1.0)),
)
DIMENSIONS = (8, 16, 32, 64, 128, 256, 512)  # discriminants that are kept; the whole space is tried besides
PAIRS_PER_DIMENSION = 4  # corrupted copies from which the noise is measured, at least,
MOST_PER_DIMENSION = 16  # and at most: with many memories what is left of the error of N decides,
PAIRS_PER_MEMORY = 4  # and they take long anyway
FEWEST_PAIRS = 4096
SAMPLE_ROWS = 2048  # rows made at a time
MEMORY_ROWS = 1 << 16  # memories whose covariance is taken
DIRECTION_ROWS = 4096  # memories whose discriminants are taken


View = tuple[int | None, bool, Tensor]  # D (None: the whole space), whether Euclidean, and the scores [v, m]


@dataclass(frozen=True)
class Candidate:
    """A closed-form map in the frame, fitted to the part that is learned from."""

    recipe: Recipe
    verdict: Verdict
    beta: float  # of least error
    error: Tensor  # [b] of some queries at that β


@dataclass(frozen=True)
class Moments:
    """Noise and memories, measured."""

    frame: Frame
    fit: Scatter  # of what is learned from
    held: Scatter  # of what is validated on; nothing where that is the same


@dataclass(frozen=True)
class Fitted:
    """A recipe in a frame."""

    rows: Tensor  # [n, r] memories
    leading: Tensor  # [r, k] columns: discriminants, at most as many as are ever computed
    T: Tensor  # [r, D] columns: those that the recipe keeps, or the whole whitened space


def measure(search: Search) -> Moments:
    """Measure noise and memories.

    Args:
        search: what is learned from, and what is validated on.

    Returns:
        The frame and the second moments in it.
    """
    source, seed = search.source, search.seed
    generator = torch.Generator(source.memory.device).manual_seed(draws(seed, FIT))
    sample = _spread(search.fit, min(WIDE // 2, PAIRS_PER_DIMENSION * len(search.fit)))
    X, _ = source.corrupted(sample, generator)
    frame = frame_of(source.memory, (X - source.clean(sample)).nan_to_num(0), draws(seed, FIT))
    rank = _rank(search, frame)
    affordable = min(MOST_PER_DIMENSION * rank, PAIRS_PER_MEMORY * len(source))
    wanted = max(FEWEST_PAIRS, PAIRS_PER_DIMENSION * rank, affordable)
    share = len(search.held) / len(source) if search.apart else 0.0
    fit = _scatter(search, frame, search.fit, round(wanted * (1 - share)), generator)
    held = _scatter(search, frame, search.held, round(wanted * share), generator)
    return Moments(frame, fit, held)


def remembered(tried: Sequence[Candidate]) -> State:
    """The first candidates as tensors.

    Args:
        tried: of `try_all`, in its order.

    Returns:
        What `recalled` takes; nothing of none.
    """
    if not tried:
        return {}
    kept = [-1 if each.recipe.dimension is None else each.recipe.dimension for each in tried]
    numbers = [(D, each.recipe.euclidean, each.verdict.margin, each.beta) for D, each in zip(kept, tried, strict=True)]
    return {
        "tried.numbers": torch.tensor(numbers, dtype=torch.float64),
        "tried.right": torch.stack([each.verdict.right for each in tried]),
        "tried.error": torch.stack([each.error for each in tried]),
    }


def recalled(state: State) -> list[Candidate]:
    """What `remembered` gave.

    Returns:
        The first candidates of `try_all`.
    """
    if "tried.numbers" not in state:
        return []
    found, rows = [], zip(state["tried.numbers"].tolist(), state["tried.right"], state["tried.error"], strict=True)
    for place, ((D, euclidean, margin, beta), right, error) in enumerate(rows):
        weight, ridge = COVARIANCES[place // 2]
        recipe = Recipe(weight, ridge, place % 2 == 1, None if D < 0 else int(D), bool(euclidean))
        found.append(Candidate(recipe, Verdict(right, margin), beta, error))
    return found


def try_all(
    search: Search,
    moments: Moments,
    dimension: int | None,
    known: Sequence[Candidate] = (),
    progress: Progress | None = None,
) -> Iterator[Candidate]:
    """Try every covariance at every ridge, centred or not, each at its best dimension and metric.

    Args:
        search: the queries and their rivals.
        moments: of which those of what is learned from are used.
        dimension: D of feature space; None lets the validation choose.
        known: the first of them, where an interrupted run has tried them.
        progress: told how many have been tried.

    Yields:
        The best candidate of each that is not known.
    """
    frame, bright = moments.frame, _bright(moments.frame)
    X, learned = frame(search.trial.X), _learned_rows(search, search.fit)
    rows, where = torch.unique(torch.cat([learned, search.rival_rows]), return_inverse=True)
    of_learned, of_rivals = torch.split(where, [len(learned), len(search.rivals)])  # most rivals are learned from, too
    both = torch.cat([X, _framed(search, frame, rows)])
    for number, (weight, ridge) in enumerate(COVARIANCES):
        if 2 * number + 1 < len(known):
            continue
        plain = whitening(moments.fit, weight, ridge)
        whitened, V = plain(both), None
        for place, white in enumerate((plain, plain.centred(bright)), 2 * number):
            queries, memories = torch.split(white.drop(whitened), [len(X), len(rows)])
            V = _directions(search, memories[of_learned], dimension, None if V is None else white.drop(V.T).T)
            if place < len(known):
                continue
            rivals = memories[of_rivals]
            recipe = Recipe(weight, ridge, centred=white.dropped is not None)
            yield _best_view(search, recipe, _views(V, queries, rivals, dimension))
            if progress:
                progress(place + 1, 2 * len(COVARIANCES))


def fitted(search: Search, moments: Moments, recipe: Recipe) -> Fitted:
    """Fit a recipe to all that is known: what was held out to choose it, too.

    Args:
        search: the memories.
        moments: of both parts.
        recipe: the recipe.

    Returns:
        Its directions.
    """
    frame = moments.frame
    items = torch.cat([search.held, search.fit]) if search.apart else search.fit
    rows = _framed(search, frame, _learned_rows(search, items))
    white = whitening(moments.fit + moments.held, recipe.memory_weight, recipe.ridge)
    white = white.centred(_bright(frame)) if recipe.centred else white
    leading = white.columns(_directions(search, white(rows), recipe.dimension))
    if recipe.dimension is not None:
        return Fitted(rows, leading, leading)
    return Fitted(rows, leading, white.columns(torch.eye(len(white.L), device=leading.device)))


def _framed(search: Search, frame: Frame, rows: Tensor) -> Tensor:
    """Memories in the frame, of which they are read some at a time.

    Returns:
        [n, r].
    """
    memory = search.source.memory
    framed = torch.empty(len(rows), _rank(search, frame), device=memory.device)
    for part in small_blocks(len(rows), memory.dimension):
        framed[part] = frame(memory[rows[part]])
    return framed


def _rank(search: Search, frame: Frame) -> int:
    return search.source.memory.dimension if frame.basis is None else frame.basis.shape[1]


def _learned_rows(search: Search, items: Tensor) -> Tensor:
    """Memories whose discriminants are taken.

    Returns:
        int64 [n], rising.
    """
    rows: Tensor = torch.unique(search.source.rows(_spread(items, min(DIRECTION_ROWS, len(items)))))
    return rows


def _spread(items: Tensor, count: int) -> Tensor:
    """So many items, evenly spread: a bank may be in order.

    Returns:
        int64 [count]; each item as often as any other, or once at most.
    """
    if count >= len(items):
        return items[torch.arange(count) % len(items)]
    return items[torch.linspace(0, len(items) - 1, count, dtype=torch.float64).long()]


def _directions(search: Search, memories: Tensor, dimension: int | None, near: Tensor | None = None) -> Tensor:
    generator = torch.Generator(memories.device).manual_seed(draws(search.seed, FIT))
    return discriminants(memories, dimension or MOST_DIRECTIONS, generator, near)


def _scatter(search: Search, frame: Frame, items: Tensor, pairs: int, generator: torch.Generator) -> Scatter:
    """Second moments of noise and memories over some items.

    Returns:
        The sums; all zero where no pairs are wanted.
    """
    source, chosen = search.source, _spread(items, pairs)
    rows = torch.unique(source.rows(items))
    rows = _spread(rows, min(MEMORY_ROWS, len(rows)) if pairs else 0)
    noise, memory, drawn = everywhere(source.memory, _sums, source, frame, chosen, rows, generator.get_state())
    generator.set_state(drawn)
    return Scatter(noise, pairs, memory, len(rows))


def _sums(
    part: Division, source: Source, frame: Frame, chosen: Tensor, rows: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments of noise over some items, and of some memories. All draw alike, and sum up what they hold.

    Returns:
        Both [r, r], and the state of the draws after them.
    """
    memory, device = source.memory, source.memory.device
    generator = torch.Generator(device)
    generator.set_state(state)
    moments = Scatter.empty(memory.dimension if frame.basis is None else frame.basis.shape[1], device)
    for some in blocks(len(chosen), SAMPLE_ROWS):
        C, own = _held(part, memory, source.rows(chosen[some]))
        clean = C.clone() if source.noisy is None else source.noisy[chosen[some]].to(C)
        X, _ = source.noised(clean, generator)
        moments = moments.add_noise((frame(X) - frame(C))[own])
    for some in blocks(len(rows), SAMPLE_ROWS):
        C, own = _held(part, memory, rows[some])
        moments = moments.add_memory(frame(C[own]))
    return part.others.total(moments.noise), part.others.total(moments.memory), generator.get_state()


def _held(part: Division, memory: Patterns, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some memories, as far as they are held here; the others are zero.

    Returns:
        [n, d], and which are held, bool [n].
    """
    own = part.own(rows, len(memory))
    C = torch.zeros(len(rows), memory.dimension, device=memory.device)
    C[own.to(memory.device)] = memory[rows[own] - part.start]
    return C, own.to(memory.device)


def _views(V: Tensor, queries: Tensor, rivals: Tensor, dimension: int | None) -> Iterator[View]:
    """Score whitened queries against whitened rivals at every dimension and metric that is tried.

    Yields:
        The views, good until the next; of nested dimensions each adds its products to those of the last.
    """
    Q, Z = queries @ V, rivals @ V
    G, q, z, start = Q.new_zeros(len(Q), len(Z)), Q.new_zeros(len(Q), 1), Z.new_zeros(len(Z)), 0
    S = torch.empty_like(G)
    for D, metrics in _dimensions(Q.shape[1], dimension):
        own, other = Q[:, start:D], Z[:, start:D]
        G, q, z, start = G.addmm_(own, other.T), q + own.square().sum(1, True), z + other.square().sum(1), D
        for euclidean in metrics:
            yield D, euclidean, _scores(G, q, z, euclidean, S)
    if dimension is None and V.shape[1] < V.shape[0]:
        q, z = queries.square().sum(1, True), rivals.square().sum(1)
        torch.mm(queries, rivals.T, out=G)
        for euclidean in (False, True):
            yield None, euclidean, _scores(G, q, z, euclidean, S)


def _dimensions(most: int, dimension: int | None) -> list[tuple[int, tuple[bool, ...]]]:
    """The dimensions that are tried, and in which metrics: the Euclidean needs one feature for its lift.

    Returns:
        D, rising, each with whether Euclidean.
    """
    if dimension is None:
        return [(D, (False, True)) for D in sorted({min(D, most) for D in DIMENSIONS})]
    return [(most - 1, (True,)), (most, (False,))] if most > 1 else [(1, (False, True))]


def _scores(G: Tensor, q: Tensor, z: Tensor, euclidean: bool, out: Tensor) -> Tensor:
    """Cosines of features, lifted for the Euclidean metric.

    Args:
        G: products [v, m].
        q: squared norms of the features of the queries [v, 1].
        z: and of the rivals [m].
        euclidean: whether to lift.
        out: where to write [v, m]: fresh memory for every view would take longer than the scores.

    Returns:
        `out`.
    """
    lift = lift_of(z) ** 2 if euclidean else 0.0
    tiny = torch.finfo(G.dtype).tiny
    torch.add(G, lift, out=out)
    return out.mul_((q + lift).clamp_min(tiny).rsqrt()).mul_((z + lift).clamp_min(tiny).rsqrt())


def _best_view(search: Search, recipe: Recipe, views: Iterator[View]) -> Candidate:
    """The best dimension and metric of one covariance.

    Returns:
        The candidate, with its error on some queries.
    """
    best: tuple[Recipe, Verdict, Tensor] | None = None
    part = slice(None, None, -(-len(search.place) // BETA_QUERIES))
    for D, euclidean, S in views:
        found = verdict(S, search.place)
        if best is None or found.rank > best[1].rank:
            best = replace(recipe, dimension=D, euclidean=euclidean), found, S[part].clone()
    assert best is not None  # there is always a dimension
    beta, error = least_error(best[2], search.place[part], search.rivals, search.energy)
    return Candidate(best[0], best[1], beta, error)


def _bright(frame: Frame) -> Tensor:
    """The direction of a vector's own mean, in the frame.

    Returns:
        [r].
    """
    ones = torch.full_like(frame.mean, 1 / math.sqrt(len(frame.mean)))
    return ones if frame.basis is None else ones @ frame.basis
