"""The Gram matrix Z Zᵀ of the memories' unit features, block by block: each pair of memories is looked at once.

8-bit patterns are multiplied as the integers they are, where the processor has instructions for it. With v = u − 128,
which a signed byte holds, ⟨u, u′⟩ = ⟨v, v′⟩ + 128 (Σv + Σv′) + 128² d: exact, in a quarter of the bytes that float32
takes, and several times as fast.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from hopmem.divided import Division
from hopmem.model.kernel import Features, processor_has
from hopmem.model.rows import Rows, blocks
from hopmem.pages import rest

Progress = Callable[[int, int], None]  # called with (done, total)

TALL = 1024  # rows of a block, where they fit
LEAST_TALL = 256  # rows of a block in any case: lower ones make rows signed more often than they save products
EXACT = 1 << 10  # entries of 8 bits whose product torch hands on exactly: it passes through float32's 24 bits
IN_32 = 1 << 6  # times as many add up in 32 bits, at 128² each
ONES = 16  # columns of a product that is quick
WORTH_IT = 64  # entries of a pattern from which integers are quicker


class UnitRows(Protocol):
    """Z, or anything that hands out its rows in blocks: a tensor [M, D] is one."""

    def __len__(self) -> int:
        """The number of memories M."""

    def __getitem__(self, rows: Rows) -> Tensor:
        """The unit features of some memories [m, D]."""


def gram_blocks(Z: UnitRows, size: int, progress: Progress | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """The blocks of Z Zᵀ on and above the diagonal.

    Args:
        Z: unit features of M memories.
        size: rows of a block that fit the memory when they are read whole.
        progress: told how many of the pairs are done.

    Yields:
        Both ranges of rows and the block [m, n], free to be changed.
    """
    M, done = len(Z), 0
    for first, second, C in _ways(Z, size):
        pairs = C.numel() * (1 if second == first else 2)
        yield first, second, C
        rest()
        done += pairs
        if progress:
            progress(done, M * M)


def shared_blocks(part: Division, Z: UnitRows, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The blocks of Z Zᵀ that fall to this process: together, all have each pair of memories once.

    Blocks of rows are passed round. A process looks at the pairs of its own memories, and at those of its own with the
    memories of the half of the processes that come after it; two that lie opposite part theirs.

    Args:
        part: which memories are held here.
        Z: their unit features.
        size: rows of a block.

    Yields:
        Both ranges of rows, among those of all and the second not before the first, and the block, free to be changed.
    """
    others, M, done = part.others, len(Z), 0

    def told(C: Tensor, times: int) -> None:
        nonlocal done
        done += C.numel() * times
        if part.progress:
            part.progress(min(part.memories**2, done * others.size), part.memories**2)

    for first, second, C in gram_blocks(Z, size, None):
        yield _among(first, part.start), _among(second, part.start), C
        told(C, 1 if first == second else 2)
    form = Z[slice(0, 0)]
    starts = others.side_by_side(torch.tensor([[part.start, M]])).view(-1, 2).tolist() if others.size > 1 else []
    for rank, (start, count) in enumerate(starts):
        own, most = _fall_to(others.rank, rank, others.size, M, count)
        for second in blocks(count, size):
            right = Z[second] if rank == others.rank else form.new_empty(second.stop - second.start, form.shape[1])
            right = others.same(right, rank)
            if second.start < most:
                right, there = right[: most - second.start], slice(second.start, min(second.stop, most))
                for rows in blocks(own.stop - own.start, size):
                    mine = _among(rows, own.start)
                    C, pair = Z[mine] @ right.T, (_among(mine, part.start), _among(there, start))
                    yield (*pair, C) if part.start < start else (*pair[::-1], C.T)
                    told(C, 2)


def _among(rows: slice, start: int) -> slice:
    return slice(start + rows.start, start + rows.stop)


def _fall_to(rank: int, other: int, size: int, own: int, count: int) -> tuple[slice, int]:
    """Which pairs with the memories of another process are looked at here.

    Args:
        rank: this process.
        other: the other one.
        size: how many there are.
        own: memories of this one.
        count: memories of the other.

    Returns:
        Which of its own, and the first how many of the other.
    """
    ahead = (other - rank) % size
    if 0 < 2 * ahead < size:
        return slice(0, own), count
    if 2 * ahead == size:  # opposite: one takes the first half of the other's, which takes the rest
        return (slice(0, own), count // 2) if rank < other else (slice(own // 2, own), count)
    return slice(0, 0), 0


def _ways(Z: UnitRows, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The quickest way to the blocks.

    Returns:
        Both ranges of rows and the block, one after another.
    """
    if isinstance(Z, Features):  # whether they are plain takes a pass over them, and is asked last
        if _are_integers(Z) and Z.plain:
            return _by_integers(Z, size)
        if size < min(len(Z), TALL) and Z.plain:
            return _by_columns(Z, size)
    return _by_rows(Z, size)


def _by_rows(Z: UnitRows, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks from whole rows.

    Yields:
        Both ranges of rows and the block.
    """
    for first in blocks(len(Z), size):
        left = Z[first]
        for second in blocks(len(Z), size):
            if second.start >= first.start:
                yield first, second, left @ (left if second == first else Z[second]).T


def _by_columns(Z: Features, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of more rows, in part: where few whole rows fit the budget, each would be read many times.

    Yields:
        Both ranges of rows and the block.
    """
    tall = min(TALL, max(size, math.isqrt(size * Z.dimension)))
    for first, second in _upper(len(Z), tall):
        C = torch.zeros(first.stop - first.start, second.stop - second.start, device=Z.device)
        for columns in blocks(Z.dimension, max(1, size * Z.dimension // tall)):
            left = Z.part(first, columns)
            C.addmm_(left, (left if first == second else Z.part(second, columns)).T)
        yield first, second, C


def _are_integers(Z: Features) -> bool:
    """Whether features, if they are plain, are best multiplied as the 8-bit patterns they come from.

    Returns:
        False where the processor has no instructions for it: torch would then be slow.
    """
    on_cpu = Z.device.type == "cpu" and processor_has("vnni")
    return on_cpu and Z.stored is None and Z.patterns.stored.dtype == torch.uint8 and Z.dimension >= WORTH_IT


def _by_integers(Z: Features, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks of the products of 8-bit patterns, exact up to the division by their lengths.

    Yields:
        Both ranges of rows and the block.
    """
    M, U = len(Z), Z.patterns.stored
    tall = min(max(size, LEAST_TALL), TALL, max(LEAST_TALL, -(-M // 4)))
    parts = _even(Z.dimension, EXACT)
    sums = torch.cat([_row_sums(U[rows], parts) for rows in blocks(M, tall)]) * 128
    scale = Z.inverse_lengths.double()
    for first, second in _upper(M, tall):
        G = sums[first, None] + sums[second] + 128**2 * Z.dimension
        for some in blocks(len(parts), IN_32):
            total = torch.zeros(G.shape, dtype=torch.int32)
            for columns in parts[some]:
                left = _signed(U[first, columns])
                total.add_(torch._int_mm(left, (left if first == second else _signed(U[second, columns])).T))
            G += total
        yield first, second, G.mul_(scale[first, None]).mul_(scale[second]).float()


def _signed(U: Tensor) -> Tensor:
    """8-bit entries less 128.

    Returns:
        int8.
    """
    return U.bitwise_xor(128).view(torch.int8)


def _row_sums(U: Tensor, parts: list[slice]) -> Tensor:
    """Σv of 8-bit rows, as a product, which is ten times as fast as a sum.

    Returns:
        float64 [m].
    """
    ones, sums = torch.ones(EXACT, ONES, dtype=torch.int8), torch.zeros(len(U), dtype=torch.float64)
    for columns in parts:
        V = _signed(U[:, columns])
        sums += torch._int_mm(V, ones[: V.shape[1]])[:, 0]
    return sums


def _even(count: int, most: int) -> list[slice]:
    """Cut `count` entries into parts of at most `most`, of which none is much smaller than another.

    Returns:
        Slices.
    """
    parts = -(-count // most)
    return [slice(part * count // parts, (part + 1) * count // parts) for part in range(parts)]


def _upper(M: int, tall: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of ranges of rows, each pair once.

    Yields:
        Two ranges, the second not before the first.
    """
    for first, second in product(blocks(M, tall), repeat=2):
        if second.start >= first.start:
            yield first, second
