"""What other memories make of a query: the scores of classical and modern associative memories on raw patterns.

A memory is a score s_μ(x) and the weights p = entmax(β s): softmax(β⟨ξ, x⟩) is the modern Hopfield network (Ramsauer et
al., 2020), 2-entmax of it the sparse one (Hu et al., 2023), p ∝ ⟨ξ, x⟩¹⁰ a dense associative memory (Krotov and
Hopfield, 2016), −½‖x − ξ‖² and −‖x − ξ‖₁ the similarities of universal Hopfield networks (Millidge et al., 2022).
Where a query has unknown entries, both sides are compared on the known ones alone. Scores are float64: squares of what
float32 holds leave float32, and differences of distances cancel in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.entmax import weights
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks, unit
from hopmem.model.scan import combine, known_scores, memory_rows, query_blocks, scores
from hopmem.model.weighing import VISIBLE

Score = Callable[[Tensor, Tensor | None, Features, int], Tensor]
LOWEST = -1e30
FLAT = 1e-12  # a variance below this share of the mean square is rounding


@dataclass(frozen=True)
class Baseline:
    """One memory to compare with."""

    scores: Score
    alpha: float = 1.0
    beta: float | None = None  # None: sought where it errs least
    snap: bool = False  # answers with the stored pattern of the largest score
    learned: bool = False  # scores features of a map that Stage I learned


@dataclass(frozen=True)
class Found:
    """What b queries brought back."""

    index: Tensor  # [b] the memory of the largest weight
    readout: Tensor  # [b, d]
    support: Tensor  # [b] int64: memories that share the answer, as in `hopfield.Retrieval`


def dot(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """⟨ξ_μ, x⟩ over the known entries.

    Args:
        X: queries [b, d], zero where they are not known.
        known: which entries are known, bool [b, d]; None: all.
        memory: whose patterns are Ξ.
        budget: bytes of working memory for the blocks.

    Returns:
        Scores [b, M], float64.
    """
    X = X.double()
    return _by_blocks(X, memory, budget, lambda Xi: X @ Xi.T)


def tenth_power(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """The logarithm of ⟨ξ_μ, x⟩¹⁰, whose softmax at β = 1 is a dense associative memory of the tenth order.

    Returns:
        Scores [b, M], float64; arguments as `dot`.
    """
    return 10 * dot(X, known, memory, budget).abs().clamp_min(torch.finfo(torch.float64).tiny).log()


def cosine(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """⟨z_μ, Φ(x)⟩/‖Φ(x)‖, the score of a hopmem bank: the cosine where Φ is the identity.

    Returns:
        Scores [b, M], float64; arguments as `dot`.
    """
    if known is None:
        return scores(unit(memory.phi(X)), memory, budget).double()
    if memory.phi.is_identity:
        return known_scores(X, known, memory, budget).double()
    centre = memory.phi.centre()
    S = torch.empty(len(X), len(memory), dtype=torch.float64, device=X.device)
    for row, mask in enumerate(known):  # a learned map mixes the entries: features for each set of known ones
        columns = mask.nonzero()[:, 0]
        seen = memory.restricted(columns, centre)
        S[row] = scores(unit(seen.phi(X[row : row + 1, columns])), seen, budget)[0]
    return S


def centred_cosine(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """The cosine of x and ξ_μ after each has lost its own mean, over the known entries.

    Returns:
        Scores [b, M], float64; 0 where a side is flat; other arguments as `dot`.
    """
    X, mask = X.double(), None if known is None else known.double()
    count = X.shape[1] if mask is None else mask.sum(1, keepdim=True)  # [b, 1]
    middle = X.sum(1, keepdim=True) / count
    Y = X - middle if mask is None else (X - middle) * mask
    Y = torch.where(Y.square().sum(1, keepdim=True) > FLAT * X.square().sum(1, keepdim=True), unit(Y), 0)

    def score(Xi: Tensor) -> Tensor:
        before = _over_known(Xi.square(), mask)
        Xi = Xi - Xi.mean(1, keepdim=True)  # changes nothing but what cancels below
        total = _over_known(Xi.square(), mask)
        variance = total - _over_known(Xi, mask).square() / count
        flat = variance <= FLAT * before
        return torch.where(flat, 0, Y @ Xi.T / torch.where(flat, 1, variance).sqrt())

    return _by_blocks(X, memory, budget, score)


def euclidean(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """−½‖x − ξ_μ‖² over the known entries.

    Returns:
        Scores [b, M], float64; arguments as `dot`.
    """
    X, mask = X.double(), None if known is None else known.double()
    squares = X.square().sum(1, keepdim=True)
    return _by_blocks(
        X, memory, budget, lambda Xi: (X @ Xi.T - (squares + _over_known(Xi.square(), mask)) / 2).clamp_max(0)
    )


def manhattan(X: Tensor, known: Tensor | None, memory: Features, budget: int) -> Tensor:
    """−‖x − ξ_μ‖₁ over the known entries.

    Returns:
        Scores [b, M], float64; arguments as `dot`.
    """
    X, hidden = X.double(), None if known is None else (~known).double()

    def score(Xi: Tensor) -> Tensor:
        distance = torch.cdist(X, Xi, p=1.0)
        # An unknown entry is a zero in X, and has added |ξ|.
        return -distance if hidden is None else (hidden @ Xi.abs().T - distance).clamp_max(0)

    return _by_blocks(X, memory, budget, score)


BASELINES: dict[str, Baseline] = {
    "modern": Baseline(dot),
    "sparse": Baseline(dot, alpha=2.0),
    "dam10": Baseline(tenth_power, beta=1.0),
    "cosine": Baseline(cosine),
    "centred": Baseline(centred_cosine),
    "euclidean": Baseline(euclidean),
    "manhattan": Baseline(manhattan),
    "uhop": Baseline(cosine, learned=True),
    "nearest": Baseline(euclidean, beta=1.0, snap=True),
}


def recall(baseline: Baseline, beta: float, X: Tensor, memory: Features, budget: int) -> Found:
    """Answer queries.

    Args:
        baseline: the memory.
        beta: its inverse temperature.
        X: queries [B, d]; NaN where an entry is not known.
        memory: patterns, with the features of a baseline that has learned some.
        budget: bytes of working memory for a block.

    Returns:
        The answers, in the order of the queries.
    """
    parts = [answer(baseline, beta, S, memory, budget) for _, S in scored(baseline, X, memory, budget)]
    return Found(*(torch.cat([getattr(part, name) for part in parts]) for name in Found.__dataclass_fields__))


def scored(baseline: Baseline, X: Tensor, memory: Features, budget: int) -> Iterator[tuple[slice, Tensor]]:
    """Score queries, block by block.

    Yields:
        Rows of X, and their scores [b, M].
    """
    unknown = X.isnan()
    partial = bool(unknown.any())
    X = X.masked_fill(unknown, 0)
    for rows in query_blocks(len(X), len(memory), budget):
        known = ~unknown[rows] if partial else None
        yield rows, everywhere(memory, _scores, baseline, X[rows], known, memory, budget).T


def _scores(
    part: Division, baseline: Baseline, X: Tensor, known: Tensor | None, memory: Features, budget: int
) -> Tensor:
    """Scores of the memories that are held here, sent to the first process.

    Returns:
        [M, b], a transposed view where nobody else holds any.
    """
    return part.others.to_first(baseline.scores(X, known, memory, budget).T)


def answer(baseline: Baseline, beta: float, S: Tensor, memory: Features, budget: int) -> Found:
    """Weights and readout from scores.

    Returns:
        The answers of a block.
    """
    index = S.argmax(1)
    if baseline.snap:
        return Found(index, memory.patterns[index.cpu()], torch.ones_like(index))
    # Below their maximum scores are small, and float32 holds them; LOWEST is as good as −∞.
    P = weights((beta * (S - S.amax(1, keepdim=True))).clamp_min(LOWEST).float(), baseline.alpha)
    visible = (VISIBLE if baseline.alpha == 1 else 0) < P
    return Found(index, combine(P, memory.patterns, memory.patterns.dimension, budget), visible.sum(1))


def squared_error(readout: Tensor, clean: Tensor, span: tuple[float, float] | None) -> Tensor:
    """The error of the papers: the sum over the entries of the squared differences.

    Args:
        readout: what came back [b, d].
        clean: what should have [b, d].
        span: what entries are clamped to first; None: nothing.

    Returns:
        The error of each query [b], float64.
    """
    readout = readout if span is None else readout.clamp(*span)
    return (readout.double() - clean.double()).square().sum(1)


def _by_blocks(X: Tensor, memory: Features, budget: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Score against the patterns, read block by block.

    Returns:
        Scores [b, M], float64.
    """
    S = X.new_empty(len(X), len(memory), dtype=torch.float64)
    patterns = memory.patterns
    for rows in blocks(len(patterns), memory_rows(2 * patterns.dimension, budget)):
        S[:, rows] = score(patterns[rows].double())
    return S


def _over_known(Xi: Tensor, mask: Tensor | None) -> Tensor:
    """Sum rows over the entries that each query knows.

    Returns:
        [b, m], or [m] where all queries know all entries.
    """
    return Xi.sum(1) if mask is None else mask @ Xi.T
