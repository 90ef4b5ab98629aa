"""Retrieve: clean patterns for noisy, masked or partial queries."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hopmem.bank import MemoryBank, as_rows
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.hopfield import Dynamics
from hopmem.verbs.search import Alone, Holder, on_cpu
from hopmem.verbs.work import Watch, pair_block, stage

RETRIEVING = "retrieving"  # the stage that counts queries
GIVEN = "as given"  # where a β comes from that the caller chose


@dataclass(frozen=True, eq=False)
class Answer:
    """What B queries brought back."""

    patterns: Tensor  # [B, d], or [B, n] of values: the readout; known entries of partial queries as they were
    match: list[str | None]  # [B] name of the memory of the largest weight; None where it was rejected
    index: Tensor  # [B] its row in the bank
    confidence: Tensor  # [B] its weight
    margin: Tensor  # [B] its weight minus the second largest
    support: Tensor  # [B] memories that share the answer: non-zero weights, at α = 1 those above 0.01
    state: list[str]  # [B] single, metastable (a few share it) or global (all do)
    energy: Tensor  # [B] of the state that the weights were computed from
    steps: Tensor  # [B] updates made
    converged: Tensor  # [B] whether the last update moved the state by less than the tolerance
    top_index: Tensor  # [B, k] the memories of the k largest weights
    top_weight: Tensor  # [B, k] their weights
    alpha: float
    beta: float
    beta_source: str  # where β comes from, in words


def retrieve(
    bank: MemoryBank,
    Q: Any,
    *,
    alpha: float | None = None,
    beta: float | Literal["auto"] = "auto",
    steps: int = 1,
    tolerance: float = 1e-5,
    snap: bool = False,
    top: int = 1,
    min_confidence: float = 0.0,
    mask: Any = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
    company: Holder | None = None,
) -> Answer:
    """Retrieve a stored pattern for each query (Stage II of U-Hop, in feature space).

    A query with unknown entries is compared on its known entries alone, exactly, and keeps them; the rest is filled in.

    Args:
        bank: where to look.
        Q: array or tensor [B, d] or [B, *shape]; NaN marks an unknown entry. Queries of the bank's own integer type are
            in its stored units, all others in the units of the patterns (images from 0 to 1).
        alpha: 1 softmax, 2 sparsemax, any α ≥ 1; None takes the bank's.
        beta: inverse temperature ≥ 0, or auto: what the bank's separation asks for.
        steps: at most this many updates.
        tolerance: a query has converged when its state moves by less.
        snap: return the stored pattern of the largest weight instead of the weighted mean.
        top: how many memories to name for each query.
        min_confidence: answers whose largest weight is under this are rejected.
        mask: array or tensor of the shape of Q, or of one query: true where an entry is unknown.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.
        company: who searches, where not this process alone.

    Returns:
        The answers, in the order of the queries.
    """
    alpha = bank.alpha if alpha is None else alpha
    _check(alpha, beta, steps, tolerance, top)
    where = resolve(device)
    X, known = _queries(bank, Q, mask)
    if beta == "auto":
        bank = bank.tuned(where, pair_block(bank.dimension, budget), stage(watch, "measuring"))
    source = bank.tuning.source if beta == "auto" and bank.tuning else GIVEN
    beta = bank.tuning.beta if beta == "auto" and bank.tuning else float(beta)
    holder = Alone(bank, where, budget) if company is None else company
    dynamics = Dynamics(alpha, beta, steps, tolerance, min(top, len(bank)), budget, holder.spread, holder.longest)
    found = on_cpu(holder.search(X, known, dynamics, stage(watch, RETRIEVING)))
    index, confidence = found.index[:, 0], found.weight[:, 0]
    patterns = bank.readout()[index] if snap else found.patterns
    if known is not None and not snap and bank.values is None:
        clamped = known & ~known.all(1, keepdim=True)  # a query that knows all its entries is noisy, not partial
        patterns = torch.where(clamped, X, patterns)
    sure = (confidence >= min_confidence).tolist()
    return Answer(
        patterns=patterns,
        match=[bank.names[row] if kept else None for row, kept in zip(index.tolist(), sure, strict=True)],
        index=index,
        confidence=confidence,
        margin=found.margin,
        support=found.support,
        state=states(found.support, len(bank)),
        energy=found.energy,
        steps=found.steps,
        converged=found.converged,
        top_index=found.index,
        top_weight=found.weight,
        alpha=alpha,
        beta=beta,
        beta_source=source,
    )


def _check(alpha: float, beta: float | str, steps: int, tolerance: float, top: int) -> None:
    """Options in their ranges.

    Raises:
        UsageError: one is not.
    """
    if not 1 <= alpha < math.inf:
        raise UsageError(f"alpha: expected a number from 1 (softmax) upward, found {alpha}")
    if isinstance(beta, str) and beta != "auto":
        raise UsageError(f"beta: expected a number or auto, found {beta!r}")
    if not isinstance(beta, str) and not 0 <= beta <= 1e30:
        raise UsageError(f"beta: expected a number from 0 to 1e30, found {beta}")
    if steps < 1 or top < 1 or not tolerance >= 0:
        raise UsageError(f"expected steps ≥ 1, top ≥ 1, tolerance ≥ 0, found {steps}, {top}, {tolerance}")


def _queries(bank: MemoryBank, Q: Any, mask: Any) -> tuple[Tensor, Tensor | None]:
    """Queries as rows in the units of the patterns, and which of their entries are known.

    Returns:
        X [B, d] float32, unknown entries 0, and bool [B, d], or None where all are known.

    Raises:
        InvalidDataError: queries of another dimension, too large for float32, or of which nothing is known.
    """
    rows = as_rows(Q, "queries", partial=True)
    rows = rows[None] if tuple(rows.shape) == bank.shape else rows
    if rows.ndim < 2 or len(rows) == 0 or rows[0].numel() != bank.dimension:
        expected = f"queries [B, {bank.dimension}] like the bank's patterns"
        raise InvalidDataError("queries", expected, f"shape {list(rows.shape)}")
    if tuple(rows.shape[1:]) != bank.shape and 1 not in {rows.ndim - 1, len(bank.shape)}:
        raise InvalidDataError("queries", f"shape [B, *{list(bank.shape)}] like the bank's", list(rows.shape))
    scale = bank.scale if rows.dtype == bank.patterns.dtype and not rows.is_floating_point() else 1.0
    X = rows.reshape(len(rows), -1).float() * scale  # [B, d]
    if mask is None and bool(X.isfinite().all()):
        return X, None
    unknown = X.isnan()
    if mask is not None:
        hidden = as_rows(mask, "mask").bool()
        if hidden.numel() not in {X.numel(), bank.dimension}:
            raise InvalidDataError("mask", f"shape {list(rows.shape)} or that of one query", f"{list(hidden.shape)}")
        unknown = unknown | hidden.reshape(-1, bank.dimension)
    X = X.masked_fill(unknown, 0)
    if not bool(X.isfinite().all()):
        row = int((~X.isfinite()).any(1).nonzero()[0, 0])
        raise InvalidDataError(f"queries, row {row}", "numbers that float32 can hold", "larger ones")
    if bool(unknown.all(1).any()):
        row = int(unknown.all(1).nonzero()[0, 0])
        raise InvalidDataError(f"queries, row {row}", "at least one known entry", "none")
    return X, ~unknown if bool(unknown.any()) else None


def states(support: Tensor, M: int) -> list[str]:
    """How many memories share each answer, in a word; at α = 1 a support of 0 means that none stands out.

    Args:
        support: how many do, int64 [B].
        M: memories.

    Returns:
        single, metastable or global, for each.
    """
    return ["single" if size == 1 else "global" if size in {0, M} else "metastable" for size in support.tolist()]
