"""How well a map retrieves under corruption: corrupted copies of memories, drawn apart from all learning."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hopmem.model.hopfield import Dynamics, Retrieval, complete, retrieve
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.noise import Canvas, Noise, parse_noise
from hopmem.model.rows import Patterns, small_blocks
from hopmem.model.scan import NEGLIGIBLE as NEGLIGIBLE_WEIGHT

BETA_QUERIES = 128  # queries on which β is chosen
COARSE = range(-4, 6)  # powers of two, around the β that the gaps ask for, where it is looked for first
FINE = range(-2, 4)  # and around what was found
MANY = 20_000  # memories beyond which one pass over them has to do
NEGLIGIBLE = 1e-5  # an error below this share of the patterns' own spread is none
PAIRS = "the pairs given"  # the noise of pairs that the user has


@dataclass(frozen=True)
class Trial:
    """Queries whose answers are known."""

    X: Tensor  # [v, d] corrupted copies, NaN where an entry is unknown
    clean: Tensor  # [v, d]
    truth: Tensor  # [v] int64: the memories that they are copies of
    noise: Tensor  # [v] int64: which of the source's noises

    def some(self, most: int) -> "Trial":
        """At most so many of the queries, evenly spread.

        Returns:
            A part of the trial.
        """
        part = slice(None, None, -(-len(self.X) // most))
        return Trial(self.X[part], self.clean[part], self.truth[part], self.noise[part])


@dataclass(frozen=True)
class Source:
    """Where pairs of a corrupted and a clean pattern come from: noise models, or pairs that the user has."""

    memory: Patterns  # [M, d], no two equal
    canvas: Canvas
    noises: tuple[Noise, ...] = ()
    noisy: Tensor | None = None  # [n, d] the corrupted halves of given pairs, NaN where unknown
    row_of: Tensor | None = None  # [n] int64: the memory that is the clean half of each

    def __reduce__(self) -> tuple[Any, ...]:
        """What others make the same of: noises go by their names.

        Returns:
            Their maker, and what it takes.
        """
        names = tuple(noise.name for noise in self.noises)
        return _source, (self.memory, self.canvas, names, self.noisy, self.row_of)

    def __len__(self) -> int:
        """Count what corrupted copies can be made of.

        Returns:
            The memories, or the given pairs.
        """
        return len(self.memory) if self.noisy is None else len(self.noisy)

    @property
    def names(self) -> list[str]:
        """The noises by name."""
        return [PAIRS] if self.noisy is not None else [noise.name for noise in self.noises]

    def rows(self, items: Tensor) -> Tensor:
        """The memories that items are copies of.

        Returns:
            int64, as `items`.
        """
        return items if self.row_of is None else self.row_of[items]

    def clean(self, items: Tensor) -> Tensor:
        """The memories that items are copies of.

        Returns:
            Rows [n, d].
        """
        return self.memory[self.rows(items)]

    def corrupted(self, items: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt copies of some items, by all noises in equal parts.

        Args:
            items: int64 [n].
            generator: the draws, on the device of the memory.

        Returns:
            Rows [n, d], NaN where an entry is unknown, and the number of the noise of each [n].
        """
        X = self.clean(items) if self.noisy is None else self.noisy[items].to(self.memory.device, torch.float32)
        return self.noised(X, generator)

    def noised(self, X: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Corrupt rows, by all noises in equal parts; what is drawn does not depend on them.

        Args:
            X: rows [n, d], clean, or the corrupted halves of given pairs; overwritten.
            generator: as of `corrupted`.

        Returns:
            As `corrupted`.
        """
        count, device = max(1, len(self.noises)), X.device
        which = torch.arange(len(X), device=device) % count
        which = which[torch.randperm(len(X), generator=generator, device=device)]
        for number, noise in enumerate(self.noises):
            X[which == number] = noise(X[which == number], self.canvas, generator)
        return X, which

    def trial(self, items: Tensor, count: int, seed: int) -> Trial:
        """Corrupted copies to be retrieved, as evenly over the items as can be.

        Args:
            items: what may be copied, int64.
            count: how many copies.
            seed: of the draws.

        Returns:
            The trial.
        """
        generator = torch.Generator(self.memory.device).manual_seed(seed)
        count = count if self.noisy is None else min(count, len(items))  # a given pair has nothing new to say
        drawn = items[torch.arange(count) % len(items)]
        drawn = drawn[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]  # any part is then fair
        X, which = self.corrupted(drawn, generator)
        return Trial(X, self.clean(drawn), self.rows(drawn), which.cpu())


def _source(
    memory: Patterns, canvas: Canvas, names: tuple[str, ...], noisy: Tensor | None, row_of: Tensor | None
) -> Source:
    noises = tuple(parse_noise(name, images=canvas.layout is not None) for name in names)
    return Source(memory, canvas, noises, noisy, row_of)


@dataclass(frozen=True)
class Score:
    """What a map does in a trial."""

    beta: float  # of least error
    right: Tensor  # [v] float64: 1 where the largest weight is on the right memory
    error: Tensor  # [v] float64: the papers' error, the sum over entries of the squared difference; NaN: not measured

    @property
    def rank(self) -> tuple[float, float]:
        """Accuracy, then error: larger is better."""
        return float(self.right.mean()), -float(self.error.nanmean())


@dataclass(frozen=True)
class Verdict:
    """What scores say before any readout."""

    right: Tensor  # [v] bool
    margin: float  # mean over standard deviation of the gap to the best rival: how far from failing

    @property
    def rank(self) -> tuple[float, float]:
        """Accuracy, then margin: larger is better."""
        return float(self.right.double().mean()), self.margin


def gaps(S: Tensor, truth: Tensor) -> Tensor:
    """How far the right memory is ahead of the best other.

    Args:
        S: scores [v, m].
        truth: the right memory of each row [v].

    Returns:
        Differences of scores [v], infinite where there is no other.
    """
    own, best = S.gather(1, truth[:, None])[:, 0], torch.empty_like(S[:, 0])
    for rows in small_blocks(*S.shape):
        best[rows] = S[rows].scatter(1, truth[rows, None], -math.inf).amax(1)
    return own - best


def verdict(S: Tensor, truth: Tensor) -> Verdict:
    """Judge scores.

    Args:
        S: scores [v, m].
        truth: the right memory of each row [v].

    Returns:
        Who is right, and by how much.
    """
    gap = gaps(S, truth).double()
    margin = float(gap.mean() / gap.std(correction=0).clamp_min(1e-12)) if S.shape[1] > 1 else math.inf
    return Verdict(gap > 0, margin)  # a tie is no answer


def least_error(S: Tensor, truth: Tensor, memory: Tensor, energy: float) -> tuple[float, Tensor]:
    """The β of least error for given scores.

    Args:
        S: scores [v, m].
        truth: the right memory of each row [v].
        memory: the memories [m, d].
        energy: mean squared distance of memories from their mean: what errors are compared with.

    Returns:
        β, the smallest at which the error is as good as least, and the error of each query there [v].
    """
    usual = float(gaps(S, truth).abs().median()) if S.shape[1] > 1 else 1.0
    middle = math.log(S.shape[1] + 1) / max(usual, 1e-9)  # a usual gap then outweighs all the others together
    clean = memory[truth]

    def errors(beta: float) -> Tensor:
        P = (beta * S).softmax(1)
        readout = P.masked_fill_(P < NEGLIGIBLE_WEIGHT, 0) @ memory  # denormal products are thirty times slower
        return (readout - clean).square().sum(1).double()

    return _smallest(errors, middle, COARSE, energy)


def judge(
    phi: FeatureMap, trial: Trial, tuning: Trial, memory: Patterns, beta: float, energy: float, budget: int
) -> Score:
    """Retrieve the queries of a trial from all memories, just as `retrieve` does, at the β of least error.

    Args:
        phi: the map.
        trial: the queries.
        tuning: the queries, some of which choose β.
        memory: all memories.
        beta: where the search for β begins.
        energy: mean squared distance of memories from their mean.
        budget: bytes of working memory.

    Returns:
        The score.
    """
    features, few = Features(memory, phi).held(budget), tuning.some(BETA_QUERIES)

    def errors(beta: float) -> Tensor:
        return _errors(_answers(few, features, memory, Dynamics(beta=beta, budget=budget, longest=memory.longest)), few)

    best, _ = _smallest(errors, beta, FINE, energy) if len(memory) <= MANY else (beta, None)
    found = _answers(trial, features, memory, Dynamics(beta=best, budget=budget, longest=memory.longest))
    return Score(best, (found.index[:, 0].cpu() == trial.truth).double(), _errors(found, trial).cpu())


def _answers(trial: Trial, features: Features, memory: Patterns, dynamics: Dynamics) -> Retrieval:
    """What comes back for the queries of a trial.

    Returns:
        The answers.
    """
    unknown = trial.X.isnan()
    if not bool(unknown.any()):
        return retrieve(trial.X, features, memory, memory.dimension, dynamics)
    return complete(trial.X.nan_to_num(0), ~unknown, features, memory, memory.dimension, dynamics)


def _errors(found: Retrieval, trial: Trial) -> Tensor:
    return (found.patterns - trial.clean).square().sum(1).double()


def _smallest(errors: Callable[[float], Tensor], middle: float, powers: range, energy: float) -> tuple[float, Tensor]:
    """The smallest β whose error is least, or as good as least: a sharper one only feigns to be surer.

    The error falls with β until the readout is as sharp as it should be, and rises or stays from there on, so that a
    walk from the middle meets the least.

    Args:
        errors: of each query at some β.
        middle: the β to begin with.
        powers: of two, times which it is looked for.
        energy: mean squared distance of memories from their mean.

    Returns:
        β and the error of each query.
    """
    found = {0: errors(middle)}

    def mean(power: int) -> float:
        if power not in found:
            found[power] = errors(middle * 2.0**power)
        return float(found[power].mean())

    def good(power: int) -> bool:
        return mean(power) <= 1.01 * mean(best) + NEGLIGIBLE * energy

    best = 0
    while best + 1 in powers and mean(best + 1) < mean(best):
        best += 1
    if best == 0:
        while best - 1 in powers and mean(best - 1) < mean(best):
            best -= 1
    smallest = best
    while smallest - 1 in powers and good(smallest - 1):
        smallest -= 1
    return middle * 2.0**smallest, found[smallest]
