"""How far apart the memories lie: Δ, angles, the closest pairs, and the loss that Stage I minimises."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from hopmem.divided import Division, Others, everywhere
from hopmem.model.gram import Progress, UnitRows, gram_blocks, shared_blocks
from hopmem.model.rows import blocks, small_blocks
from hopmem.scratch import empty

LossProgress = Callable[[int, int, float, float], None]  # called with (done, total, loss, Δ_min of what was looked at)
Halt = Callable[[], bool]  # asked between two steps of long work whether to stop there
State = dict[str, Tensor]  # what interrupted work goes on from: tensors by name, numbers as float64 tensors [] or [n]

Keep = Callable[[Callable[[], State]], None]  # told between two steps of long work how to find out where it stands


def never() -> bool:
    """The answer of who never stops long work.

    Returns:
        False.
    """
    return False


def nowhere(_state: Callable[[], State]) -> None:
    """Keep nothing of long work until it ends."""


@dataclass(frozen=True)
class Separation:
    """The separation of M unit features, from one pass over their pairs."""

    delta: Tensor  # [M] Δ_μ, float64
    mean_cosine: float  # over the pairs μ ≠ ν; nan where M = 1
    loss: float  # Definition 4 at the inverse width that was asked for; nan where none was
    pairs: Tensor  # [k, 2] the closest pairs, int64, closest first
    cosines: Tensor  # [k] of those pairs, float64

    def exactly(self, Z: UnitRows, wanted: int) -> "Separation":
        """Look at the closest pairs anew in float64, by ‖z_μ − z_ν‖: near 1 the product has lost the angle.

        Args:
            Z: the unit features.
            wanted: how many pairs to keep.

        Returns:
            The same with these pairs, closest first; of equal ones the first rows first.
        """
        if not len(self.pairs):
            return replace(self, cosines=self.cosines.double())
        A, B = (Z[side.contiguous()].double().cpu() for side in self.pairs.unbind(1))
        norms = A.norm(dim=1) * B.norm(dim=1)
        A, B = (side / side.norm(dim=1, keepdim=True).clamp_min(1e-300) for side in (A, B))
        cosines = torch.where(norms > 0, 1 - (A - B).square().sum(1) / 2, 0)
        order = cosines.sort(descending=True, stable=True).indices[:wanted]
        return replace(self, pairs=self.pairs[order], cosines=cosines[order])

    @property
    def max_cosine(self) -> float:
        """Cosine of the closest pair; nan where M = 1."""
        return float(self.cosines[0]) if len(self.cosines) else math.nan

    @property
    def min_angle_degrees(self) -> float:
        """Angle of the closest pair in degrees; nan where M = 1."""
        return math.nan if len(self.delta) < 2 else math.degrees(math.acos(max(-1.0, min(1.0, self.max_cosine))))

    @property
    def radius(self) -> float:
        """R_Φ = ½ min δ_μν, with δ² = 2 Δ on unit features; nan where M = 1."""
        return math.nan if len(self.delta) < 2 else math.sqrt(max(0.0, 2 * (1 - self.max_cosine))) / 2


def average_loss(Z: Tensor, t: float) -> Tensor:
    """L = log mean_{μ≠ν} exp(−t ‖z_μ − z_ν‖²) (U-Hop, Definition 4), differentiable.

    Args:
        Z: unit features [M, D], M ≥ 2.
        t: inverse width t > 0.

    Returns:
        The loss, a scalar; at best −2tM/(M−1), the simplex.

    >>> average_loss(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), t=2.0)
    tensor(-8.)
    """
    M = len(Z)
    exponent = 2 * t * (Z @ Z.T - 1)  # [M, M]; −t ‖z_μ − z_ν‖² on unit rows
    exponent = exponent.masked_fill(torch.eye(M, dtype=torch.bool, device=Z.device), -math.inf)
    return exponent.flatten().logsumexp(0) - math.log(M * (M - 1))


def largest(Z: UnitRows, block: int = 1024) -> float:
    """The largest cosine between two rows.

    Args:
        Z: unit features of at least two memories.
        block: rows of a block of the Gram matrix.

    Returns:
        The cosine.
    """
    top = -math.inf
    for first, second, C in gram_blocks(Z, block, None):
        if first == second:
            C.fill_diagonal_(-math.inf)
        top = max(top, float(C.max()))
    return top


def separation(
    Z: UnitRows, *, t: float | None = None, closest: int = 1, block: int = 1024, progress: Progress | None = None
) -> Separation:
    """Measure every pair of memories once, in blocks of the Gram matrix.

    Args:
        Z: unit features of M memories (zero rows are allowed: they lie at right angles to all).
        t: inverse width of the average loss; None leaves it out.
        closest: how many of the closest pairs to name.
        block: rows of a block; memory is O(block² + block·D), whatever M.
        progress: told how many of the pairs are done.

    Returns:
        Δ for each memory and the statistics of all pairs.
    """
    return everywhere(Z, _over_pairs, Z, t, closest, block, progress=progress).exactly(Z, closest)


def _over_pairs(part: Division, Z: UnitRows, t: float | None, closest: int, block: int) -> Separation:
    """One pass over the pairs.

    Returns:
        The separation, with some more of the closest pairs than are wanted, as float32 has them.
    """
    M, others = part.memories, part.others
    nearest = torch.full((M,), -math.inf, dtype=torch.float64)
    norm = torch.zeros(M, dtype=torch.float64)
    total, log_kernel_sum = 0.0, -math.inf
    top = _ClosestPairs(closest)
    for first, second, cosines in shared_blocks(part, Z, block):
        if first == second:
            norm[first] = cosines.diagonal().double().cpu()
            cosines.fill_diagonal_(-math.inf)
        nearest[first] = torch.maximum(nearest[first], cosines.amax(1).double().cpu())
        nearest[second] = torch.maximum(nearest[second], cosines.amax(0).double().cpu())
        twice = 1 if first == second else 2  # an off-diagonal block stands for its transpose too
        if t is not None:
            log_kernel_sum = _log_add(log_kernel_sum, math.log(twice) + _log_kernel_sum(cosines, t))
        total += twice * float(cosines.clamp_min_(-2).sum()) + 2 * len(cosines) * (twice == 1)
        top.add(cosines, first.start, second.start, symmetric=twice == 1)
    pairs, cosines = top.of_all(others)
    total, log_kernel_sum = float(others.total(_number(total))), log_total(others, log_kernel_sum)
    count = M * (M - 1)
    return Separation(
        delta=others.total(norm) - others.largest(nearest),
        mean_cosine=total / count if count else math.nan,
        loss=log_kernel_sum - math.log(count) if t is not None and count else math.nan,
        pairs=pairs,
        cosines=cosines,
    )


def log_total(others: Others, x: float) -> float:
    """Ln Σ e^x over all processes.

    Args:
        others: all of them.
        x: of this one; may be −∞.

    Returns:
        The logarithm of the sum.
    """
    largest = float(others.largest(_number(x)))
    if largest == -math.inf:
        return largest
    return largest + math.log(float(others.total(_number(math.exp(x - largest)))))


def _number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def nearest_delta(Z: UnitRows, sample: Tensor | None, block: int = 1024, progress: Progress | None = None) -> Tensor:
    """Δ of some memories against all, or of all.

    Args:
        Z: unit features of M memories.
        sample: int64 [m], the memories to measure; None measures all, each pair once.
        block: rows of a block.
        progress: told how much is done.

    Returns:
        Δ_μ, float64 [m] or [M]; infinite where M = 1.
    """
    if sample is None:
        return separation(Z, closest=0, block=block, progress=progress).delta
    parts = []
    for part in blocks(len(sample), block):
        left = Z[sample[part]]
        nearest = everywhere(Z, _largest_cosine, Z, left, sample[part], block)
        parts.append(left.square().sum(1).double().cpu() - nearest)
        if progress:
            progress(part.stop, len(sample))
    return torch.cat(parts)


def _largest_cosine(part: Division, Z: UnitRows, left: Tensor, chosen: Tensor, block: int) -> Tensor:
    """The largest cosine of each of a few memories with another.

    Returns:
        float64 [m].
    """
    nearest = torch.full((len(left),), -math.inf, dtype=torch.float64)
    for rows in blocks(len(Z), block):
        cosines = left @ Z[rows].T  # [m, n]
        itself = chosen.to(left.device)[:, None] == _numbers(part, rows, left.device)
        nearest = torch.maximum(nearest, cosines.masked_fill(itself, -math.inf).amax(1).double().cpu())
    return part.others.largest(nearest)


def _numbers(part: Division, rows: slice, device: torch.device) -> Tensor:
    """The numbers of some rows that are held here, among those of all.

    Returns:
        int64 [n].
    """
    return torch.arange(part.start + rows.start, part.start + rows.stop, device=device)


def nearest(Z: UnitRows, chosen: Tensor, block: int = 1024) -> Tensor:
    """Which memory lies closest to each of a few.

    Args:
        Z: unit features of M ≥ 2 memories.
        chosen: int64 [m].
        block: rows that are read at a time.

    Returns:
        Memories, int64 [m]; of equal ones the first.
    """
    return everywhere(Z, _nearest, Z, Z[chosen].double(), chosen, block)


def _nearest(part: Division, Z: UnitRows, left: Tensor, chosen: Tensor, block: int) -> Tensor:
    """Which memory lies closest to each of a few.

    Returns:
        int64 [m].
    """
    best = torch.full((len(left),), -math.inf, dtype=torch.float64, device=left.device)
    found = torch.zeros(len(left), dtype=torch.int64, device=left.device)
    for rows in blocks(len(Z), block):
        number = _numbers(part, rows, left.device)
        cosines = left @ Z[rows].double().T
        cosines.masked_fill_(chosen.to(left.device)[:, None] == number, -math.inf)
        top, place = cosines.max(1)
        found = torch.where(top > best, number[place], found)
        best = torch.maximum(best, top)
    beaten = best < part.others.largest(best)
    return -part.others.largest(-found.masked_fill(beaten, part.memories)).cpu()


def sampled_separation(
    Z: UnitRows, sample: Tensor, *, t: float, block: int = 1024, progress: Progress | None = None
) -> Separation:
    """Estimate the separation of very many memories from some of them against all.

    Args:
        Z: unit features of M memories.
        sample: int64 [m], at least two of them.
        t: inverse width of the average loss.
        block: rows of a block.
        progress: told how much of the sample is done.

    Returns:
        Δ of the sample, its largest cosine (at most that of all), the mean cosine of all pairs (exact: it follows from
        the sum of all features) and the loss among the sample.
    """
    delta = nearest_delta(Z, sample, block, progress)
    M, (total, squares) = len(Z), everywhere(Z, _sums, Z)
    mean = (float(total.square().sum()) - float(squares)) / (M * (M - 1))
    drawn = empty(len(sample), len(total))
    for part in small_blocks(*drawn.shape):
        drawn[part] = Z[sample[part]]
    among = separation(drawn.to(total.device), t=t, block=block)
    nearest = 1 - delta.min().reshape(1)
    return Separation(delta, mean, among.loss, torch.empty(1, 2, dtype=torch.int64), nearest)


def _sums(part: Division, Z: UnitRows) -> tuple[Tensor, Tensor]:
    """Σ z_μ and Σ ‖z_μ‖².

    Returns:
        float64 [D] and [].
    """
    total = Z[slice(0, 0)].double().sum(0)
    squares = total.new_zeros(())
    for rows in small_blocks(len(Z), len(total)):
        features = Z[rows].double()
        total += features.sum(0)
        squares += features.flatten() @ features.flatten()
    return part.others.total(total), part.others.total(squares)


def _log_kernel_sum(cosines: Tensor, t: float) -> float:
    """Ln Σ e^{−2t(1 − cos)} of a block, relative to its largest term: at large t all of them leave float32.

    Returns:
        The logarithm; −inf for a block of the diagonal alone.
    """
    largest = float(cosines.max())
    if largest == -math.inf:
        return -math.inf
    return 2 * t * (largest - 1) + math.log(float((2 * t * (cosines - largest)).exp_().sum()))


def _log_add(a: float, b: float) -> float:
    """ln(e^a + e^b).

    Returns:
        The logarithm of the sum.
    """
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class _ClosestPairs:
    """The k pairs of largest cosine seen so far, and some more: near 1, float32 can't tell which are the closest."""

    SPARE = 64  # further candidates that are measured exactly in the end

    def __init__(self, k: int) -> None:
        self.wanted = k
        self.k = k + self.SPARE if k else 0
        self.cosines = torch.empty(0)
        self.pairs = torch.empty(0, 2, dtype=torch.int64)

    def add(self, cosines: Tensor, row: int, column: int, *, symmetric: bool) -> None:
        """Take in a block [m, n] whose corner is pair (row, column)."""
        if not self.k or (len(self.cosines) == self.k and cosines.max() <= self.cosines[-1]):
            return
        if symmetric:
            cosines = cosines.triu(1) + torch.full_like(cosines, -2).tril()
        values, places = cosines.flatten().topk(min(self.k, cosines.numel()))
        pairs = torch.stack([places // cosines.shape[1] + row, places % cosines.shape[1] + column], 1).cpu()
        keep = values.cpu() > -1.5
        values, pairs = torch.cat([self.cosines, values.cpu()[keep]]), torch.cat([self.pairs, pairs[keep]])
        order = values.sort(descending=True, stable=True).indices[: self.k]
        self.cosines, self.pairs = values[order], pairs[order]

    def of_all(self, others: Others) -> tuple[Tensor, Tensor]:
        """Those that all processes have seen.

        Returns:
            Pairs [k, 2], in their order, and cosines [k].
        """
        if others.size > 1 and self.k:
            missing = self.k - len(self.cosines)
            values = others.side_by_side(pad(self.cosines, (0, missing), value=-math.inf)[None])[0]
            sides = others.side_by_side(pad(self.pairs.T, (0, missing)))
            order = values.sort(descending=True, stable=True).indices[: min(self.k, int(values.isfinite().sum()))]
            self.cosines, self.pairs = values[order], sides.T[order]
        order = _ordered(self.pairs)
        return self.pairs[order], self.cosines[order]


def _ordered(pairs: Tensor) -> Tensor:
    """The order of pairs by their first row, then by their second.

    Returns:
        int64 [k].
    """
    second = pairs[:, 1].argsort(stable=True)
    return second[pairs[second, 0].argsort(stable=True)]
