"""The blocked pass over the memories that every query makes: scores in, weighted rows out.

A block of queries is scored against all memories at once, so the widest array is [b, M] with b chosen by the budget;
the memories themselves are read block by block and never held whole.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.kernel import Features
from hopmem.model.rows import Rows, blocks, unit

FEW = 16  # up to which repeated maxima are quicker than a sort
NEGLIGIBLE = 1e-20  # a weight that is lost beside the others, even a billion times
ADDED_AT_ONCE = 1024  # rows that float32 adds up one after another
ARRAYS_PER_SCORE = 10  # float64 arrays of the size of the scores that entmax and its statistics hold at their peak


class RowBlocks(Protocol):
    """Rows that are read in blocks: patterns, values or features; a tensor is one."""

    def __len__(self) -> int:
        """The number of rows M."""

    def __getitem__(self, rows: Rows) -> Tensor:
        """Some rows [m, n]."""


def mix_in(mixed: Tensor, P: Tensor, rows: Tensor) -> None:
    """Add what some rows mix to.

    With a single state the product is a vector's, to which torch adds row after row: over a million rows float32 would
    lose 1e-3 of it. So it is summed up in parts.

    Args:
        mixed: what other rows mix to [b, n]; added to.
        P: weights [b, m].
        rows: [m, n].
    """
    if len(P) > 1:
        mixed.addmm_(P, rows)
        return
    for some in blocks(len(rows), ADDED_AT_ONCE):
        mixed.add_(P[:, some] @ rows[some])


def query_blocks(count: int, memories: int, budget: int) -> Iterator[slice]:
    """Cut queries into blocks whose scores against all memories fit the budget.

    Returns:
        Slices over `count` queries, at least one query each.
    """
    return blocks(count, max(1, min(4096, budget // (memories * 8 * ARRAYS_PER_SCORE))))


def memory_rows(dimension: int, budget: int) -> int:
    """How many memories to read at a time.

    Returns:
        Rows of `dimension` float32 entries, with their temporaries, that fit the budget.
    """
    least = max(1, min(16, (5 << 20) // (dimension * 4)))  # fewer would be slow, and more of wide rows too many bytes
    return max(least, min(8192, budget // (dimension * 4 * 4)))


def scores(Y: Tensor, memory: Features, budget: int) -> Tensor:
    """⟨z_μ, y⟩ for each state and memory.

    Args:
        Y: states [b, D], float32 or float64.
        memory: unit features of M memories.
        budget: bytes of working memory for the blocks.

    Returns:
        Scores [b, M], as precise as the states.
    """
    S = Y.new_empty(len(Y), len(memory))
    for rows in blocks(len(memory), memory_rows(memory.dimension, budget)):
        S[:, rows] = Y @ _features(memory, rows, Y.dtype).T  # [b, m]
    return S


def known_scores(X: Tensor, known: Tensor, memory: Features, budget: int) -> Tensor:
    """Cosine of query and memory over the entries that the query knows, each side normalised over those entries alone.

    With Φ the identity ⟨x, z⟩ over the known entries is a product of the zero-filled query with Z, and ‖z‖² over them a
    product of the mask with Z∘Z, so that every query may know other entries.

    Args:
        X: queries [b, d], float32 or float64; what is not known is not looked at.
        known: which entries are known, bool [b, d].
        memory: features under the identity map.
        budget: bytes of working memory for the blocks.

    Returns:
        Scores [b, M], as precise as the queries; 0 where a memory is zero on all the known entries.
    """
    Y, mask = unit(torch.where(known, X, 0)), known.double()
    S = X.new_empty(len(X), len(memory))
    for rows in blocks(len(memory), memory_rows(memory.dimension, budget)):
        Z = _features(memory, rows, X.dtype)
        norm = (mask @ Z.double().square().T).sqrt()  # [b, m]; float32 would lose what is known beside what is not
        S[:, rows] = torch.where(norm > 0, (Y @ Z.T) / norm.clamp_min(torch.finfo(torch.float64).tiny), 0)
    return S


def _features(memory: Features, rows: slice, dtype: torch.dtype) -> Tensor:
    return memory.exact(rows) if dtype == torch.float64 else memory[rows]


def combine(P: Tensor, rows_of: RowBlocks, width: int, budget: int) -> Tensor:
    """Σ_μ p_μ r_μ: the weighted sum of rows.

    Args:
        P: weights [b, M], float32; float64 where those that float32 can't hold matter, too.
        rows_of: M rows of `width` entries.
        width: entries of a row.
        budget: bytes of working memory for the blocks.

    Returns:
        The sums [b, width].
    """
    # Smaller weights change no float32 sum, but their products are denormal and slow it thirtyfold.
    P = P.masked_fill(P < NEGLIGIBLE, 0) if P.dtype == torch.float32 else P
    return everywhere(rows_of, _combine, P, rows_of, width, budget)


def _combine(part: Division, P: Tensor, rows_of: RowBlocks, width: int, budget: int) -> Tensor:
    """The weighted sum of rows, each where it is held.

    Returns:
        [b, width].
    """
    P = P[:, part.start : part.start + len(rows_of)]
    total = P.new_zeros(len(P), width)
    for rows in blocks(len(rows_of), memory_rows(width, budget)):
        total += P[:, rows] @ rows_of[rows].to(P)
    return part.others.total(total)


def top_scores(S: Tensor, k: int) -> Tensor:
    """The memories of the k largest scores, largest first; of equal scores the lowest index.

    `torch.topk` promises no order among ties; `argmax`, which takes the first, does.

    Args:
        S: scores [b, M]; changed while it works, and restored.
        k: how many, at most M.

    Returns:
        Indices [b, k], int64.
    """
    if k > FEW:
        return S.sort(dim=1, descending=True, stable=True).indices[:, :k]
    found, kept = [], []
    for _ in range(k):
        index = S.argmax(1, keepdim=True)
        found.append(index)
        kept.append(S.gather(1, index))
        S.scatter_(1, index, -torch.inf)
    indices = torch.cat(found, 1)
    S.scatter_(1, indices, torch.cat(kept, 1))
    return indices
