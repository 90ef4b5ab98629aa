"""The search for a map under given noise: what is learned from, what is validated on, and against which rivals."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hopmem.divided import Division, everywhere
from hopmem.model.denoise.fisher import WIDE
from hopmem.model.denoise.validation import BETA_QUERIES, Score, Source, Trial, judge, least_error
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, blocks, unit
from hopmem.model.scan import scores
from hopmem.pages import require

HELD_OUT = 5  # one item in so many is kept for validation,
WITNESSES = 250  # or so many, up to half of all: fewer can't tell a map that is right always from one that errs in 50
FEWEST_TO_SPLIT = 20  # items below which none can be spared, and only the corruptions are held out
MOST_HELD_OUT = 1000
QUERIES = 1000  # of the trial in which candidates are chosen,
MOST_QUERIES = 2500  # or, up to so many, one for each `MEMORIES_PER_QUERY` memories: many memories tell maps apart that
MEMORIES_PER_QUERY = 4  # lie close together; and at least so many for each noise:
QUERIES_PER_NOISE = 200
RAW_QUERIES = 5  # times as many for the raw maps, which are fitted to nothing and often lie close together
CONFIRMING = 2  # times as many for the trial that confirms
COMPARISONS = 50_000_000  # of a query with a memory in one of those; beyond 10,000 memories the queries get fewer
PARTIAL_QUERIES = 100  # of a trial with unknown entries, each of which makes features of its own
RIVALS = 4096  # memories against which candidates are compared,
RIVAL_ENTRIES = 1 << 26  # and entries of those
BYTES_OF_MATRIX, COPIES = 52, 1.3  # of the moments of noise and memories and what is made of them; of all of it
OPTIMIZER = 76 << 20  # bytes that torch takes when the first of its optimisers is made, in modules that this brings in
SPLIT, CHOOSE, CONFIRM, FIT, RIVAL, RAW = range(6)  # each purpose has draws of its own


@dataclass(frozen=True)
class Search:
    """What all candidates share."""

    source: Source
    seed: int
    budget: int
    fit: Tensor  # items that are learned from, int64
    held: Tensor  # items that are validated on
    fresh: Tensor  # items that are confirmed on: the same, corrupted afresh; of given pairs, others
    trial: Trial  # in which candidates are chosen
    rival_rows: Tensor  # [m] int64: memories that candidates are compared against, those of the trial first
    rivals: Tensor  # [m, d]: they themselves
    place: Tensor  # [v] int64: the right memory of each query among the rivals
    energy: float  # mean squared distance of memories from their mean

    @property
    def apart(self) -> bool:
        """Whether what is validated on is kept from what is learned from, and may be learned from in the end."""
        return self.source.noisy is None and len(self.held) + len(self.fit) == len(self.source)

    def confirmation(self) -> Trial:
        """Fresh copies of what is validated on, or pairs that were kept for this.

        Returns:
            A trial that no choice has seen.
        """
        return self.source.trial(self.fresh, self._queries(CONFIRMING), draws(self.seed, CONFIRM))

    def raw_trial(self) -> Trial:
        """Copies of all items, for maps that are fitted to none.

        Returns:
            The trial in which the best raw map is chosen.
        """
        every = torch.cat([self.held, self.fit]) if self.apart else self.fit
        return self.source.trial(every, self._queries(RAW_QUERIES), draws(self.seed, RAW))

    def _queries(self, times: int) -> int:
        """How many queries a trial against all memories has: some times those of the choice, or what can be afforded.

        Returns:
            A number, at least a hundred.
        """
        wanted = len(self.trial.X) * (1 if bool(self.trial.X.isnan().any()) else times)
        return min(wanted, max(PARTIAL_QUERIES, COMPARISONS // len(self.source.memory)))


def draws(seed: int, purpose: int) -> int:
    """The seed of one purpose.

    Args:
        seed: that the user gave.
        purpose: which.

    Returns:
        A number that no other purpose shares, nor any other seed below 2⁶⁰.
    """
    return (seed * 8 + purpose) % 2**63  # what a generator takes


def require_room(source: Source) -> None:
    """Refuse to learn for noise what a memory limit leaves no room for.

    Args:
        source: memories, and what corrupts them.

    Raises:
        DeviceError: the limit is too low.
    """
    M, d = len(source.memory), source.memory.dimension
    r, v, m = min(d, WIDE), _count(source), min(M, max(_count(source), min(RIVALS, RIVAL_ENTRIES // d)))
    span = 4 * WIDE * d if d > WIDE else 0  # an orthonormal basis, what it is made of, and copies
    rows = 2 * v * d + m * d + span + 4 * (v + min(M, 2 * RIVALS)) * r + (min(M, RIVALS) + m) * r
    needed = COPIES * (4 * (rows + 2 * v * m) + BYTES_OF_MATRIX * r * r) + OPTIMIZER
    require(int(needed), f"to learn for noise from {M} patterns of {d} entries")


def _count(source: Source) -> int:
    """Queries of the trial in which candidates are chosen.

    Returns:
        Their number.
    """
    usual = max(QUERIES, min(MOST_QUERIES, len(source) // MEMORIES_PER_QUERY))
    return max(usual, QUERIES_PER_NOISE * len(source.noises))


def begin(source: Source, seed: int, budget: int) -> Search:
    """Set aside what is validated on, and draw the trial and the rivals.

    Args:
        source: memories, and what corrupts them.
        seed: of all draws.
        budget: bytes of working memory for a block.

    Returns:
        The search.
    """
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(draws(seed, SPLIT)))
    fit, held, fresh = _split(source, order)
    trial = source.trial(held, _count(source), draws(seed, CHOOSE))
    if bool(trial.X.isnan().any()):
        trial = source.trial(held, PARTIAL_QUERIES, draws(seed, CHOOSE))
    rows, place = _rival_rows(source.memory, trial.truth, draws(seed, RIVAL))
    rivals = source.memory[rows]
    energy = float((rivals - rivals.mean(0)).square().sum(1).mean())
    place = place.to(rivals.device)
    return Search(source, seed, budget, fit.sort().values, held, fresh, trial, rows, rivals, place, energy)


def _split(source: Source, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Part the items; copies can be corrupted afresh, so that two trials may share items, but a given pair can't.

    Returns:
        What is learned from, validated on, and confirmed on.
    """
    part = min(MOST_HELD_OUT, max(len(order) // HELD_OUT, min(WITNESSES, len(order) // 2)))
    if source.noisy is not None:
        part = max(1, min(MOST_HELD_OUT, len(order) // HELD_OUT))
        return order[2 * part :] if len(order) > 2 else order[:1], order[:part], order[part : 2 * part]
    if len(order) < FEWEST_TO_SPLIT:
        return order, order, order
    return order[part:], order[:part], order[:part]


def _rival_rows(memory: Patterns, truth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The memories of a trial, and others as far as there is room.

    Returns:
        Rows [m], and where among them each of `truth` is [v].
    """
    own, place = torch.unique(truth, return_inverse=True)
    most = max(len(own), min(RIVALS, RIVAL_ENTRIES // memory.dimension))
    others = torch.randperm(len(memory), generator=torch.Generator().manual_seed(seed))
    others = others[~torch.isin(others, own)][: most - len(own)]
    return torch.cat([own, others.sort().values]), place


def judged(search: Search, phi: FeatureMap, trial: Trial) -> Score:
    """Judge a map against all memories.

    Args:
        search: the search.
        phi: the map.
        trial: the queries.

    Returns:
        Its score at the β of least error in the trial in which candidates are chosen.
    """
    S, place = _rival_scores(search, phi)
    beta, _ = least_error(S, place, search.rivals, search.energy)
    return judge(phi, trial, search.trial, search.source.memory, beta, search.energy, search.budget)


def glanced(search: Search, phi: FeatureMap, trial: Trial) -> Score:
    """Judge a map by its scores of all queries, and by the answers to a few of them.

    Args:
        search: the search.
        phi: the map.
        trial: the queries.

    Returns:
        Its score; the error is NaN where it was not looked at.
    """
    if bool(trial.X.isnan().any()):
        return judged(search, phi, trial)
    Z, right = Features(search.source.memory, phi).held(search.budget), []
    for rows in blocks(len(trial.X), max(1, search.budget // (16 * len(Z)))):
        Y = unit(phi(trial.X[rows]))
        right.append(everywhere(Z, _are_right, Y, Z, trial.truth[rows], search.budget))
    few = judged(search, phi, trial.some(BETA_QUERIES))
    error = torch.full((len(trial.X),), math.nan, dtype=torch.float64)
    error[:: -(-len(trial.X) // BETA_QUERIES)] = few.error
    return Score(few.beta, torch.cat(right).double(), error)


def _are_right(part: Division, Y: Tensor, Z: Features, truth: Tensor, budget: int) -> Tensor:
    """Whether the right memory has the largest score of all; a tie is no answer.

    Returns:
        bool [b].
    """
    S = scores(Y, Z, budget)
    held = part.own(truth, len(Z)).nonzero()[:, 0]
    own, place = S.new_full((len(S),), -math.inf), (held.to(S.device), (truth[held] - part.start).to(S.device))
    own[place[0]] = S[place]
    S[place] = -math.inf
    best = S.amax(1) if len(Z) else torch.full_like(own, -math.inf)
    own, best = part.others.largest(torch.stack([own, best]))
    right: Tensor = own > best
    return right.cpu()


def _rival_scores(search: Search, phi: FeatureMap) -> tuple[Tensor, Tensor]:
    """Scores of some queries against the rivals; what is unknown of a query is taken to be the rivals' mean.

    Returns:
        S [b, m] and the right rival of each row.
    """
    part = slice(None, None, -(-len(search.place) // BETA_QUERIES))
    X = search.trial.X[part]
    X = torch.where(X.isnan(), search.rivals.mean(0), X)
    return unit(phi(X)) @ unit(phi(search.rivals)).T, search.place[part]


def surprise(search: Search, phi: FeatureMap, beta: float) -> float:
    """−log p of the right memory, mean over some queries of the trial.

    Args:
        search: the search.
        phi: the map.
        beta: inverse temperature.

    Returns:
        The loss in nats.
    """
    S, place = _rival_scores(search, phi)
    return float(cross_entropy(beta * S.double(), place))
