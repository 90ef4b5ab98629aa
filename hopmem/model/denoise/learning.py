"""Learn a feature map for the noise that queries suffer, by validated retrieval.

Closed-form maps are tried first, and the best of them is refined by gradient. What is tried is fitted to one part of
the memories and judged on corrupted copies of another; what is chosen is judged again on fresh copies, beside the best
raw map, and is worth keeping only if it beats that beyond the sampling error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.denoise.candidates import Candidate, Moments, fitted, measure, remembered, try_all
from hopmem.model.denoise.fisher import feature_map, lift_of
from hopmem.model.denoise.refine import Refinement, Refining, Start, refine
from hopmem.model.denoise.search import Search, begin, glanced, judged, require_room, surprise
from hopmem.model.denoise.validation import BETA_QUERIES, Score, Source, Trial, verdict
from hopmem.model.gram import Progress
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import Patterns
from hopmem.model.separation import Halt, Keep, LossProgress, State, never, nowhere

BEYOND_CHANCE = 2.0  # standard errors, and with few memories more: an error of few values is itself uncertain
FEW = 4.0  # memories with which it is twice as many
WORTH = 0.01  # the share of the error by which a map that is right as often has to lower it
FRESH = ", fresh copies"  # in the names of methods that were judged once more


@dataclass(frozen=True)
class Tried:
    """One row of the validation table."""

    noise: str
    method: str
    accuracy: float
    error: float


@dataclass(frozen=True)
class Contender:
    """A map that may be kept."""

    method: str
    phi: FeatureMap
    score: Score  # in the trial that confirms


@dataclass(frozen=True)
class Denoised:
    """What learning found."""

    learned: Contender
    raw: Contender  # the best raw map
    better: bool  # whether `learned` beats `raw` beyond the sampling error
    witnesses: int  # memories whose copies confirmed that, or did not
    table: list[Tried]
    loss: dict[str, float]  # −log p of the right memory in validation: first (the best raw map) and last (learned)
    refinement: Refinement | None  # where it stands, if it was begun
    finished: bool
    tried: tuple[Candidate, ...]  # all of them, in order


def learn_denoise(
    source: Source,
    how: Refining,
    *,
    dimension: int | None = None,
    budget: int = 256 << 20,
    known: Sequence[Candidate] = (),
    state: Refinement | None = None,
    trying: Progress | None = None,
    refining: LossProgress | None = None,
    halt: Halt = never,
    keep: Keep = nowhere,
) -> Denoised:
    """Learn the map that retrieves best under given noise.

    Args:
        source: memories, at least two, and what corrupts them.
        how: how the refinement runs; its seed is that of all draws.
        dimension: D, features to keep; None lets validation choose.
        budget: bytes of working memory for a block.
        known: the first candidates, where an interrupted run has tried them.
        state: a refinement to go on with.
        trying: told how many candidates have been tried.
        refining: told the steps and the loss of the refinement.
        halt: asked between two steps whether to stop with what is best so far.
        keep: told between two steps how to find out where it stands: what was tried as of `remembered`, and what was
            refined as of `Refinement.tensors`.

    Returns:
        The best learned map, the best raw map, and how all of them did.
    """
    require_room(source)
    search = begin(source, how.seed, budget)
    raw, table = _best_raw(search)
    moments, tried, halted = measure(search), list(known), False
    for candidate in try_all(search, moments, dimension, known, trying):
        tried.append(candidate)
        if halted := halt():
            break
        keep(lambda: remembered(tried) | ({} if state is None else state.tensors()))
    table += [row for candidate in tried for row in _candidate_rows(search, candidate)]
    best = max(tried, key=lambda candidate: candidate.verdict.rank)
    if halted:  # what is to be refined is not settled: what was refined before stays as it is
        contenders, _, _ = _refined(search, moments, best, replace(how, steps=0), None, None, halt, nowhere)
        return _chosen(search, contenders, raw, table, state, tuple(tried), finished=False)

    def keep_both(refined: Callable[[], State]) -> None:
        keep(lambda: remembered(tried) | refined())

    contenders, state, ended = _refined(search, moments, best, how, state, refining, halt, keep_both)
    return _chosen(search, contenders, raw, table, state, tuple(tried), ended)


def _best_raw(search: Search) -> tuple[tuple[str, FeatureMap], list[Tried]]:
    """Try the maps that are not learned.

    Returns:
        The best of them, by name, and how all of them did.
    """
    trial = search.raw_trial()
    raws = {name: (phi, glanced(search, phi, trial)) for name, phi in raw_maps(search.source.memory).items()}
    best = max(raws, key=lambda name: raws[name][1].rank)
    table = [row for name, (_, score) in raws.items() for row in _rows(search.source, trial, name, score)]
    return (best, raws[best][0]), table


def raw_maps(memory: Patterns) -> dict[str, FeatureMap]:
    """The maps that are not learned.

    Args:
        memory: all memories.

    Returns:
        The cosine, the cosine of centred vectors, and the Euclidean distance, by name.
    """
    mean = memory.mean()
    farthest = everywhere(memory, _farthest, memory, mean.float())
    lift = mean.new_tensor([lift_of(farthest)])
    return {
        "cosine": FeatureMap(),
        "centred cosine": FeatureMap(centred=True),
        "euclidean": FeatureMap(b=torch.cat([-mean, lift])),
    }


def _farthest(part: Division, memory: Patterns, mean: Tensor) -> Tensor:
    """The largest squared distance from the mean.

    Returns:
        A scalar.
    """
    largest = 0.0
    for rows in memory.in_blocks():
        largest = max(largest, float((memory[rows] - mean).square().sum(1).max()))
    return part.others.largest(torch.tensor(largest))


def _refined(
    search: Search,
    moments: Moments,
    best: Candidate,
    how: Refining,
    state: Refinement | None,
    progress: LossProgress | None,
    halt: Halt,
    keep: Keep,
) -> tuple[dict[str, FeatureMap], Refinement, bool]:
    """Fit the best recipe to all memories, and refine it by gradient.

    Returns:
        The maps by name, where the refinement stands, and whether it ended by itself.
    """
    source, recipe, frame = search.source, best.recipe, moments.frame
    fit = fitted(search, moments, recipe)
    lift = lift_of((fit.rows @ fit.T).square().sum(1)) if recipe.euclidean else 0.0
    maps = {recipe.name: feature_map(frame, fit.T, lift)}
    F = fit.rows @ fit.leading  # refinement begins with few features, even where all were best
    scale = float(F.norm(dim=1).mean()) or 1.0
    lift = lift_of(F.square().sum(1)) / scale if recipe.euclidean else 0.0
    start = Start(frame.back(fit.leading) / scale, frame.mean, lift)
    score, D = _scorer(search, start), F.shape[1]
    if state is None:
        unrefined = score(torch.eye(D, device=F.device), torch.zeros(D, device=F.device))
        state = Refinement.start(D, best.beta, unrefined, F.device)
    ended = len(search.fit) < 2 or refine(start, source, search.fit, state, how, score, progress, halt, keep)
    if state.improved:
        maps[f"{recipe.name}, refined"] = start.map(*(each.to(F.device) for each in state.best))
    return maps, state, ended


def _scorer(search: Search, start: Start) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """The validation of a refinement.

    Returns:
        A function of A and the offset: accuracy, then margin, in the trial in which candidates are chosen.
    """
    queries, rivals = start.features(search.trial.X), start.features(search.rivals)

    def score(A: Tensor, offset: Tensor) -> tuple[float, float]:
        S = start.states(queries, A, offset) @ start.states(rivals, A, offset).T
        return verdict(S, search.place).rank

    return score


def _chosen(
    search: Search,
    maps: dict[str, FeatureMap],
    raw: tuple[str, FeatureMap],
    table: list[Tried],
    state: Refinement | None,
    tried: tuple[Candidate, ...],
    finished: bool,
) -> Denoised:
    """Judge on fresh copies what was chosen, and whether it beats the best raw map.

    Returns:
        All of it.
    """
    source, trial = search.source, search.confirmation()
    scores = {name: judged(search, phi, search.trial) for name, phi in maps.items()}
    table = [row for row in table if row.method not in maps]  # those that are judged against all memories now
    table += [row for name, score in scores.items() for row in _rows(source, search.trial, name, score)]
    method = max(maps, key=lambda name: scores[name].rank)
    plain, learned = (Contender(name, phi, judged(search, phi, trial)) for name, phi in (raw, (method, maps[method])))
    fresh = ((each.method + FRESH, each.score) for each in (plain, learned))
    table += [row for name, score in fresh for row in _rows(source, trial, name, score)]
    loss = {
        "first": surprise(search, plain.phi, plain.score.beta),
        "last": surprise(search, learned.phi, learned.score.beta),
    }
    better = beats(learned.score, plain.score, trial.truth)
    return Denoised(learned, plain, better, len(torch.unique(trial.truth)), table, loss, state, finished, tried)


def beats(score: Score, rival: Score, truth: Tensor) -> bool:
    """Whether one map is right more often than another beyond the sampling error, or as often with less error.

    Args:
        score: of the one in a trial.
        rival: of the other in the same trial.
        truth: the memory of each query [v]; copies of one memory are no independent witnesses.

    Returns:
        Whether the one is better.
    """
    beyond = BEYOND_CHANCE * (1 + FEW / len(torch.unique(truth)))
    gain, chance = _mean_and_error(score.right - rival.right, truth)
    if gain > beyond * chance:
        return True
    saved, chance = _mean_and_error(rival.error - score.error, truth)
    worth = WORTH * float(rival.error.mean())
    return gain >= 0 and saved > max(beyond * chance, worth)


def _mean_and_error(values: Tensor, group: Tensor) -> tuple[float, float]:
    """The mean of values that come in groups, and its standard error.

    Returns:
        Both.
    """
    _, which, count = torch.unique(group, return_inverse=True, return_counts=True)
    means = torch.zeros(len(count), dtype=values.dtype).index_add_(0, which, values) / count
    mean = float(means.mean())
    errors = [float(each.std() / math.sqrt(len(each))) for each in (means, values) if len(each) > 1]
    return mean, max(errors, default=math.inf)  # a few memories may agree by chance, beyond what their copies say


def _rows(source: Source, trial: Trial, method: str, score: Score) -> list[Tried]:
    """A score for each noise.

    Returns:
        Rows of the table.
    """
    found = []
    for number, name in enumerate(source.names):
        part = trial.noise == number
        if bool(part.any()):
            found.append(Tried(name, method, float(score.right[part].mean()), float(score.error[part].nanmean())))
    return found


def _candidate_rows(search: Search, candidate: Candidate) -> list[Tried]:
    """A candidate for each noise; its error is that of some of the queries.

    Returns:
        Rows of the table.
    """
    found, step = [], -(-len(search.place) // BETA_QUERIES)
    for number, name in enumerate(search.source.names):
        part = search.trial.noise == number
        right, error = candidate.verdict.right[part].double(), candidate.error[part[::step]]
        if len(right) and len(error):
            found.append(Tried(name, candidate.recipe.name, float(right.mean()), float(error.mean())))
    return found
