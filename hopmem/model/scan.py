"""The blocked pass over the memories that every query makes: scores in, weighted rows out.

A block of queries is scored against all memories at once, so the widest array is [b, M] with b chosen by the budget;
the memories themselves are read block by block and never held whole.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from hopmem.divided import Division, everywhere
from hopmem.model.kernel import Features
from hopmem.model.rows import Rows, blocks, unit

FEW = 16  # up to which repeated maxima are quicker than a sort
NEGLIGIBLE = 1e-20  # a weight that is lost beside the others, even a billion times
IN_A_ROW, IN_FLOAT32 = 64, 8192  # rows that float32 adds up: in a product with a vector, and in products of matrices
ARRAYS_PER_SCORE = 10  # float64 arrays of the size of the scores that entmax and its statistics hold at their peak


class RowBlocks(Protocol):
    """Rows that are read in blocks: patterns, values or features; a tensor is one."""

    def __len__(self) -> int:
        """The number of rows M."""

    def __getitem__(self, rows: Rows) -> Tensor:
        """Some rows [m, n]."""


class Mixed:
    """Σ_μ g_μ r_μ of b states, added up block by block.

    What rounds off one sum is random, but for rows that are alike: there it always points to the same side. A product
    of matrices adds up short runs (3e-6 off at most, as measured with MKL); blocks of them, added up one after another,
    would lose 1e-5, and one of a vector, which torch adds up row after row, 1e-3. So float32 adds up a few, of a single
    state or a single entry few rows at a time, and float64 the sums.
    """

    def __init__(self, like: Tensor, width: int, kind: torch.dtype = torch.float32) -> None:
        """Nothing yet.

        Args:
            like: something of b states [b, ...], on the device to compute on.
            width: entries n of a row.
            kind: the type to multiply in.
        """
        self._few = like.new_zeros(len(like), width, dtype=kind)
        self._sum: Tensor | None = None  # of all that was added before
        self._rows = 0  # in `_few`

    def add(self, P: Tensor, rows: Tensor) -> None:
        """Add what some rows mix to.

        Args:
            P: weights [b, m].
            rows: [m, n].
        """
        P, rows = P.to(self._few), rows.to(self._few)
        if len(P) == 1 or rows.shape[1] == 1:
            whole = len(rows) // IN_A_ROW * IN_A_ROW
            few = P[:, :whole].reshape(len(P), -1, IN_A_ROW).transpose(0, 1)  # [m/64, b, 64]
            sums = torch.bmm(few, rows[:whole].reshape(-1, IN_A_ROW, rows.shape[1]))
            self._carried().add_(sums.sum(0, dtype=torch.float64)).add_(P[:, whole:] @ rows[whole:])
            return
        for some in blocks(len(rows), IN_FLOAT32):
            self._few.addmm_(P[:, some], rows[some])
            self._rows += some.stop - some.start
            if self._rows >= IN_FLOAT32:
                self._carried()

    def add_few(self, state: Tensor, row: Tensor, weight: Tensor, rows: Tensor) -> None:
        """Add what single weights mix to, in the type of the rows.

        Args:
            state: whose they are [k]; quickest where those of a state follow each other.
            row: what they weigh [k], of the type of `state`.
            weight: [k].
            rows: [m, n].
        """
        begins = state.diff(prepend=state[:1]) != 0
        begins[::IN_A_ROW] = True
        first = begins.nonzero()[:, 0]
        sums = embedding_bag(row, rows, first.to(row), mode="sum", per_sample_weights=weight.to(rows))
        self._carried().index_add_(0, state[first], sums.double())

    def fade(self, factor: Tensor) -> None:
        """Multiply what was added so far.

        Args:
            factor: [b].
        """
        self._few.mul_(factor[:, None])
        if self._sum is not None:
            self._sum.mul_(factor[:, None])

    def _carried(self) -> Tensor:
        """Pass on to float64 what float32 has added up.

        Returns:
            The sum [b, n], of which no part is left elsewhere.
        """
        if self._sum is None:
            self._sum = torch.zeros_like(self._few, dtype=torch.float64)
        if self._rows:
            self._sum += self._few
            self._few.zero_()
            self._rows = 0
        return self._sum

    @property
    def total(self) -> Tensor:
        """The sum [b, n], float64; of float64 products it may be changed by what is added later."""
        return self._few.double() if self._sum is None else self._sum + self._few


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
    mixed = Mixed(P, width, P.dtype)
    for rows in blocks(len(rows_of), memory_rows(width, budget)):
        mixed.add(P[:, rows], rows_of[rows])
    return part.others.total(mixed.total.to(P))


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
