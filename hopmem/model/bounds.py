"""What a bank can promise: Lemma 1 and its sharp form, Theorem 2, and the spherical-code bounds.

The sharp form of Lemma 1. Let r = ‖y − z_μ‖ and p = softmax(β Z y). Since
⟨z_ν − z_μ, y⟩ ≤ −½ δ_μν² + δ_μν r, each weight obeys p_ν ≤ p_ν/p_μ ≤ e^{−β δ_μν (δ_μν/2 − r)}, and the readout errs by

    ‖p Z − z_μ‖ = ‖Σ_ν p_ν (z_ν − z_μ)‖ ≤ Σ_ν δ_μν e^{−β δ_μν (δ_μν/2 − r)}.
"""

import math

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.gram import Progress, UnitRows, shared_blocks
from hopmem.model.rows import blocks

FEW = 16  # memories that are looked at together, in float64
NEARLY = 0.9  # of the error: float32 sums above this are looked at again
UNRESOLVED = 1e-3  # distances that float32 cosines can't tell from zero
FARTHEST = 2.0  # the largest distance between two unit features
# (M, D) ↦ the least largest cosine of M points on the sphere in R^D: of the sharp codes (Levenshtein, 1979; Cohn and
# Kumar, 2007, arXiv math/0607446, table 1), of 10 points in R⁴ (Bachoc and Vallentin, 2009, arXiv 0804.0526) and of 24
# (de Laat, Leijenhorst and de Muinck Keizer, 2024, arXiv 2404.18794), and of 8 and 9 in R³ (Schütte and van der
# Waerden, 1951), 11 (Danzer, 1986) and 12 (Fejes Tóth, 1943), ...
BEST_COSINE = {
    (12, 3): 1 / math.sqrt(5),
    (10, 4): 1 / 6,
    (24, 4): 1 / 2,
    (120, 4): (1 + math.sqrt(5)) / 4,
    (16, 5): 1 / 5,
    (27, 6): 1 / 4,
    (56, 7): 1 / 3,
    (240, 8): 1 / 2,
    (112, 21): 1 / 9,
    (162, 21): 1 / 7,
    (100, 22): 1 / 11,
    (275, 22): 1 / 6,
    (891, 22): 1 / 4,
    (552, 23): 1 / 5,
    (4600, 23): 1 / 3,
    (196_560, 24): 1 / 2,
    (8, 3): (2 * math.sqrt(2) - 1) / 7,
    (9, 3): 1 / 3,
    (11, 3): 1 / math.sqrt(5),
}
# ... and the best angles in R³ that no short formula gives, in degrees, to the digits of Sloane's tables: of 7 points
# (Schütte and van der Waerden, 1951), 10 (Danzer, 1986), 13 and 14 (Musin and Tarasov, 2012, 2015) and 24 (Robinson).
BEST_ANGLE = {7: 77.8695421, 10: 66.1468220, 13: 57.1367031, 14: 55.6705700, 24: 43.6907671}


def lemma1_error(delta_min: float, radius: float, M: int, beta: float) -> float:
    """Lemma 1 as published (U-Hop): 2(M−1) e^{−β(Δ_min − 2R_Φ)}; void on unit features, where Δ_min ≤ 2R_Φ.

    Returns:
        The bound; inf where it leaves float64.
    """
    exponent = -beta * (delta_min - 2 * radius)
    return 2 * (M - 1) * math.exp(exponent) if exponent < 700 else math.inf


def beta_for_error(delta: float, M: int, error: float) -> float:
    """β = max(2 ln((M−1) δ/ε), 2/3) / Δ with δ² = 2Δ: the sharp bound at r = R_Φ/2 then is at most ε.

    At r = δ/4 a memory at the distance δ adds δ e^{−βΔ/2}; from β = 2/(3Δ) on, one that lies further adds less.

    Args:
        delta: Δ_min > 0.
        M: number of memories, M ≥ 2.
        error: the wanted ε > 0, in feature space.

    Returns:
        A sufficient β.

    >>> round(beta_for_error(delta=2.0, M=2, error=1e-3), 3)
    7.601
    """
    return max(2 * math.log((M - 1) * math.sqrt(2 * delta) / error), 2 / 3) / delta


def delta_for_exact(alpha: float, beta: float) -> float:
    """Theorem 2: the separation 1/(β(α−1)) from which on a memory is an exact one-hot fixed point.

    Returns:
        Δ; inf at α = 1 or β = 0, where no weight vanishes.
    """
    return 1 / (beta * (alpha - 1)) if alpha > 1 and beta * (alpha - 1) > 0 else math.inf


def exact(delta: Tensor, alpha: float, beta: float) -> Tensor:
    """Theorem 2: which memories have Δ_μ ≥ 1/(β(α−1)) and are exact one-hot fixed points.

    Args:
        delta: Δ [M].
        alpha: α; at 1 no weight vanishes, and none is exact.
        beta: β.

    Returns:
        bool [M].
    """
    return delta >= delta_for_exact(alpha, beta)


def exact_fraction(delta: Tensor, alpha: float, beta: float) -> float:
    """The share of memories that are exact fixed points.

    Returns:
        A share in [0, 1].
    """
    return float(exact(delta, alpha, beta).double().mean())


def spherical_code_bounds(M: int, D: int) -> tuple[float, float]:
    """Lower and upper bound on the best Δ_min of M points on the sphere in R^D (U-Hop+, Proposition 3.1).

    Returns:
        (lower, upper); nan where the proposition says nothing (M < 2 or D < 2).

    >>> [round(bound, 4) for bound in spherical_code_bounds(M=12, D=3)]
    [0.0556, 1.1547]
    """
    if M < 2 or D < 2:
        return math.nan, math.nan
    root = math.log(math.pi) / 2 - math.log(M) + math.lgamma((D + 1) / 2)
    lower = 0.5 * math.exp((root - math.lgamma(D / 2 + 1)) * 2 / (D - 1))
    upper = 2 * math.exp((math.log(2) + root - math.lgamma(D / 2)) / (D - 1))
    return lower, upper


def best_separation(M: int, D: int) -> float | None:
    """The largest Δ_min that M points on the sphere in R^D can have, where it is proved.

    The simplex up to M = D + 1 and right angles up to 2D (Rankin, 1955), the regular polygon, and the single codes of
    `BEST_COSINE` and `BEST_ANGLE`.

    Returns:
        Δ, or None where it is none of these.

    >>> best_separation(M=3, D=5), best_separation(M=8, D=4), best_separation(M=25, D=4)
    (1.5, 1.0, None)
    """
    if M < 2:
        return None
    if D == 1:
        return 2.0 if M == 2 else 0.0
    if M <= D + 1:
        return 1 + 1 / (M - 1)
    if D == 2:
        return 1 - math.cos(2 * math.pi / M)
    if M <= 2 * D:
        return 1.0
    if D == 3 and M in BEST_ANGLE:
        return 1 - math.cos(math.radians(BEST_ANGLE[M]))
    cosine = BEST_COSINE.get((M, D))
    return None if cosine is None else 1 - cosine


def sharp_error(
    Z: UnitRows, delta: Tensor, beta: float, r: float, block: int = 1024, progress: Progress | None = None
) -> float:
    """The sharp bound at distance r from the worst placed memory: max_μ Σ_ν δ_μν e^{−β δ_μν (δ_μν/2 − r)}.

    A float32 pass over all pairs finds the rows that can be the worst; those are computed anew in float64.

    Args:
        Z: unit features of M memories.
        delta: their Δ [M].
        beta: inverse temperature.
        r: distance of the query from its memory in feature space.
        block: rows of a block; memory is O(block² + block·D + M).
        progress: told how many of the pairs are done.

    Returns:
        The bound on the error in feature space; inf where it leaves float64.
    """
    sums = _row_sums(Z, beta, r, block, progress)
    few = min(FEW, len(Z))
    largest = {*sums.topk(few).indices.tolist(), *delta.topk(few, largest=False).indices.tolist()}
    rows = torch.tensor(sorted(largest))
    parts = (rows[part] for part in blocks(len(rows), FEW))
    return max(float(_error(_distances(Z, part, block), beta, _double(r)).max()) for part in parts)


def guaranteed_radius(
    Z: UnitRows, delta: Tensor, beta: float, error: float, block: int = 1024, progress: Progress | None = None
) -> float:
    """The largest r at which the sharp bound stays at or under an error for every memory.

    The worst separated memories give a radius; a float32 pass over all pairs finds the rows that may ask for a smaller
    one, and those are solved in float64.

    Args:
        Z: unit features of M memories.
        delta: their Δ [M].
        beta: inverse temperature.
        error: the wanted ε, in feature space.
        block: rows of a block; memory is O(block² + block·D + M).
        progress: told how many of the pairs are done.

    Returns:
        r in [0, 2]; 0 where not even the memories themselves are read out within ε.
    """
    worst = delta.topk(min(FEW, len(Z)), largest=False).indices
    radius = float(_largest_radius(_distances(Z, worst, block), beta, error).min())
    if radius == 0:
        return radius
    sums = _row_sums(Z, beta, radius, block, progress)
    doubtful = (sums > NEARLY * error).nonzero()[:, 0]
    doubtful = doubtful[sums[doubtful].argsort(descending=True)]
    for part in blocks(len(doubtful), FEW):
        distance = _distances(Z, doubtful[part], block)
        over = _error(distance, beta, _double(radius)) > error
        if bool(over.any()):
            radius = min(radius, float(_largest_radius(distance[over], beta, error).min()))
    return radius


def _row_sums(Z: UnitRows, beta: float, r: float, block: int, progress: Progress | None) -> Tensor:
    """The sharp bound at r for each memory, to the precision of float32 cosines.

    Returns:
        Sums [M], float64.
    """
    return everywhere(Z, _add_up, Z, beta, r, block, progress=progress)


def _add_up(part: Division, Z: UnitRows, beta: float, r: float, block: int) -> Tensor:
    """The sums over all pairs.

    Returns:
        float64 [M].
    """
    sums = torch.zeros(part.memories, dtype=torch.float64)
    for first, second, cosines in shared_blocks(part, Z, block):
        squared = cosines.mul_(-2).add_(2).clamp_min_(0)
        distance = torch.threshold(squared.sqrt(), UNRESOLVED, 0)  # copies, and the memory itself, add nothing
        terms = squared.mul_(-beta / 2).add_(distance, alpha=beta * r).exp_().mul_(distance)
        sums[first] += terms.sum(1).double().cpu()
        if first != second:
            sums[second] += terms.sum(0).double().cpu()
    return part.others.total(sums)


def _distances(Z: UnitRows, chosen: Tensor, block: int) -> Tensor:
    """δ_μν of a few memories to all.

    Returns:
        Distances [m, M], float64; zero on the memory itself.
    """
    squared = everywhere(Z, _squared, Z, Z[chosen].double(), block).T.contiguous()
    squared[torch.arange(len(chosen)), chosen] = 0
    return squared.clamp_min_(0).sqrt_()


def _squared(part: Division, Z: UnitRows, left: Tensor, block: int) -> Tensor:
    """δ² of all memories to a few, as float64 products give it.

    Returns:
        [M, m].
    """
    parts = [left.new_empty(0, len(left))]
    for rows in blocks(len(Z), block):
        right = Z[rows].double()  # in float32 the distance of two copies would be the root of its rounding, 5e-4
        parts.append((left.square().sum(1)[:, None] + right.square().sum(1) - 2 * (left @ right.T)).T)
    return part.others.to_first(torch.cat(parts).cpu())


def _double(r: float) -> Tensor:
    return torch.tensor(r, dtype=torch.float64)


def _error(distance: Tensor, beta: float, r: Tensor) -> Tensor:
    """Σ_ν δ e^{−βδ(δ/2 − r)} for rows of distances [m, M] at one r, or one r for each row [m, 1].

    Returns:
        The sums [m]; inf where they leave float64.
    """
    return (distance * (-beta * distance * (distance / 2 - r)).exp()).sum(1)


def _largest_radius(distance: Tensor, beta: float, error: float) -> Tensor:
    """Bisect r for rows of distances [m, M].

    Returns:
        The largest r in [0, 2] under the error for each row [m], 0 where there is none.
    """
    low = torch.zeros(len(distance), 1, dtype=distance.dtype)
    high = torch.full_like(low, FARTHEST)
    low = torch.where((_error(distance, beta, high) <= error)[:, None], high, low)
    for _ in range(45):
        middle = (low + high) / 2
        under = (_error(distance, beta, middle) <= error)[:, None]
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return low[:, 0]
