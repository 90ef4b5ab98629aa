"""Portrait: what the pictures of a bank are drawn from."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.model.hopfield import Dynamics, settle
from hopmem.model.kernel import Features
from hopmem.model.rows import blocks
from hopmem.model.spectrum import singular_values
from hopmem.verbs.work import Watch, pair_block, stage

BINS = 200  # of the cosines from −1 to 1
PRODUCTS = 4e11  # of entries up to which every pattern is measured; beyond, as many as that allows,
FEWEST = 300  # but so many at least
CODE = 300  # patterns whose cosines are drawn one by one
PAIRS = 6  # closest pairs that are drawn as images
FINEST, COARSEST = 81, 31  # points of the plane, on a side
PLANE_PRODUCTS = 2e10  # of entries that one step of all points of the plane may take
MARGIN = 0.35  # of the plane around what is marked on it, as a share of its extent
RUN = 30  # steps after which a point of the plane is given up
STATES, BYTES_OF_STATE = 1024, 64  # of the plane that run together, at most; bytes for each entry of one


@dataclass(frozen=True, eq=False)
class Side:
    """One map of a bank: raw or learned."""

    name: str
    cosines: Tensor  # [BINS] how many pairs of the patterns that were measured with all others have such a cosine
    delta: Tensor  # [m] Δ of the patterns that were measured, float64
    nearest: Tensor  # [m] the closest pattern of each, int64
    cosine: Tensor  # [m] and the cosine to it
    code: Tensor  # [k, k] cosines of the first patterns
    spectrum: Tensor | None  # singular values, the largest first; None where they are too many


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane of feature space: its energy, and where its points come to rest."""

    x: Tensor  # [n] coordinates
    y: Tensor  # [n]
    energy: Tensor  # [n, n] E, rows along y
    basin: Tensor  # [n, n] int64: the memory that a point came to rest at, −1 where it did at none
    marks: Tensor  # [k, 2] where memories lie on it
    marked: list[int]  # which those are
    whole: bool  # whether feature space is this plane


@dataclass(frozen=True, eq=False)
class PicturedPair:
    """Two patterns that lie close."""

    a: int
    b: int
    cosine: float


@dataclass(frozen=True, eq=False)
class Portrait:
    """What the pictures of a bank are drawn from."""

    bank: MemoryBank
    chosen: Tensor  # int64 [m]: the patterns that were measured, all but in a large bank
    sides: list[Side]  # raw, and learned where there is a map; the last is in force
    pairs: list[PicturedPair]
    plane: Plane | None  # None of fewer than two patterns
    points: Tensor | None  # [M, 3] where feature space has three dimensions
    alpha: float
    beta: float

    def image(self, row: int) -> Tensor | None:
        """A pattern as an image.

        Args:
            row: of the bank.

        Returns:
            [H, W] or [H, W, C], or None where the patterns are no images.
        """
        if self.bank.layout is None:
            return None
        pixels = self.bank.rows()[slice(row, row + 1)][0].reshape(self.bank.shape)
        return pixels.permute(1, 2, 0) if self.bank.layout == "CHW" else pixels


def portrait(
    bank: MemoryBank,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> Portrait:
    """Measure what the pictures of a bank need.

    Args:
        bank: any bank.
        alpha: of the energy and its basins; None takes the bank's.
        beta: the same.
        device: where to compute.
        budget: bytes of working memory.
        watch: told how far it is.

    Returns:
        The portrait.
    """
    where = resolve(device)
    bank = bank.tuned(where, pair_block(bank.feature_dimension, budget))
    assert bank.tuning is not None
    memories = {"raw": bank.raw_memory(where)} | ({} if bank.phi.is_identity else {"learned": bank.memory(where)})
    chosen = _chosen(bank)
    sides = [_side(name, Z, chosen, budget, watch) for name, Z in memories.items()]
    Z = bank.memory(where)
    alpha, beta = bank.alpha if alpha is None else alpha, bank.tuning.beta if beta is None else beta
    pairs = _pairs(sides[-1], chosen)
    points = Z[slice(0, len(bank))].cpu() if bank.feature_dimension == 3 else None
    plane = _plane(Z, pairs, Dynamics(alpha, beta, RUN, budget=budget)) if pairs else None
    return Portrait(bank, chosen, sides, pairs, plane, points, alpha, beta)


def _chosen(bank: MemoryBank) -> Tensor:
    """The patterns that are measured: all, or of a large bank a sample.

    Returns:
        int64, in order.
    """
    M = len(bank)
    most = max(FEWEST, int(PRODUCTS / (M * max(bank.dimension, bank.feature_dimension))))
    if most >= M:
        return torch.arange(M)
    return torch.randperm(M, generator=torch.Generator().manual_seed(bank.seed))[:most].sort().values


def _side(name: str, Z: Features, chosen: Tensor, budget: int, watch: Watch | None) -> Side:
    """Measure some patterns against all.

    Returns:
        One map's side of the portrait.
    """
    size, progress = pair_block(Z.dimension, budget), stage(watch, f"drawing {name}")
    counts, delta, near, cosine = torch.zeros(BINS), [], [], []
    for part in blocks(len(chosen), size):
        rows = chosen[part].to(Z.device)
        left = Z[rows]
        best, place = left.new_full((len(rows),), -math.inf), torch.zeros_like(rows)
        for others in blocks(len(Z), size):
            C = left @ Z[others].T  # [m, n]
            itself = rows[:, None] == torch.arange(others.start, others.stop, device=Z.device)
            counts += torch.histc(C[~itself].clamp(-1, 1).cpu(), BINS, -1, 1)
            top, column = C.masked_fill_(itself, -math.inf).max(1)
            place, best = torch.where(top > best, column + others.start, place), torch.maximum(best, top)
        delta.append((left.square().sum(1) - best).double().cpu())
        near.append(place.cpu())
        cosine.append(best.cpu())
        if progress:
            progress(part.stop, len(chosen))
    first = Z[slice(0, min(CODE, len(Z)))]
    code = (first @ first.T).cpu()
    return Side(name, counts, torch.cat(delta), torch.cat(near), torch.cat(cosine), code, singular_values(Z, budget))


def _pairs(side: Side, chosen: Tensor) -> list[PicturedPair]:
    """The closest pairs, each once.

    Returns:
        None of fewer than two patterns.
    """
    if not bool(side.delta.isfinite().all()):
        return []
    found = dict[tuple[int, int], float]()
    for place in side.cosine.argsort(stable=True, descending=True).tolist():
        a, b = sorted((int(chosen[place]), int(side.nearest[place])))
        found.setdefault((a, b), float(side.cosine[place]))
        if len(found) == PAIRS:
            break
    return [PicturedPair(a, b, cosine) for (a, b), cosine in found.items()]


def _plane(Z: Features, pairs: list[PicturedPair], dynamics: Dynamics) -> Plane | None:
    """All of a feature space of two dimensions, else the plane through the closest pair and a third memory.

    Returns:
        The plane; None where feature space has one dimension.
    """
    M, D = len(Z), Z.dimension
    if D < 2:
        return None
    if D == 2:
        marked = list(range(min(M, CODE)))
        origin, axes = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    else:
        marked = _three(pairs, M)
        origin, axes = _through(Z[torch.tensor(marked, device=Z.device)].double().cpu())
    marks = (Z[torch.tensor(marked, device=Z.device)].double().cpu() - origin) @ axes.T  # [k, 2]
    low, high = _window(marks, whole=D == 2)
    fine = math.isqrt(int(PLANE_PRODUCTS / (M * D)))
    n = max(COARSEST, min(FINEST, fine))
    x, y = (torch.linspace(float(low[axis]), float(high[axis]), n, dtype=torch.float64) for axis in (0, 1))
    grid = torch.cartesian_prod(y, x).flip(1)  # [n·n, 2], rows along y
    E, basin = _run(grid, origin, axes, Z, dynamics)
    return Plane(x, y, E.view(n, n), basin.view(n, n), marks, marked, D == 2)


def _three(pairs: list[PicturedPair], M: int) -> list[int]:
    """The closest pair and a memory of the next pair, or any other.

    Returns:
        Three different memories, or as many as there are.
    """
    rows = list(dict.fromkeys([row for pair in pairs for row in (pair.a, pair.b)]))
    return [*rows, *(row for row in range(M) if row not in rows)][: min(3, M)]


def _through(points: Tensor) -> tuple[Tensor, Tensor]:
    """A plane through two or three points.

    Returns:
        Its origin, their mean [D], and two axes of length one [2, D].
    """
    origin = points.mean(0)
    _, _, axes = torch.linalg.svd(points - origin, full_matrices=False)
    return origin, axes[:2]


def _window(marks: Tensor, *, whole: bool) -> tuple[Tensor, Tensor]:
    """What of the plane is drawn: a square around the marks, or around the circle.

    Returns:
        The lower left and the upper right corner [2].
    """
    if whole:
        return torch.full((2,), -1.4), torch.full((2,), 1.4)
    middle = (marks.amin(0) + marks.amax(0)) / 2
    half = max(1e-3, float((marks.amax(0) - marks.amin(0)).max()) / 2) * (1 + 2 * MARGIN)
    return middle - half, middle + half


def _run(grid: Tensor, origin: Tensor, axes: Tensor, Z: Features, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """The energy of states on a plane, and the memories they come to rest at.

    Returns:
        E [N], and int64 [N], −1 where no single memory holds the state that came of it.
    """
    energy, basin = [], []
    once = Dynamics(dynamics.alpha, dynamics.beta, budget=dynamics.budget)
    for part in blocks(len(grid), max(1, min(STATES, dynamics.budget // (BYTES_OF_STATE * Z.dimension)))):
        states = (origin + grid[part] @ axes).to(Z.device)
        energy.append(settle(states.clone(), Z, Z, Z.dimension, once).energy.cpu())
        rest = settle(states.clone(), Z, Z, Z.dimension, dynamics)
        basin.append(torch.where(rest.converged & (rest.weight[:, 0] > 0.5), rest.index[:, 0], -1).cpu())
    return torch.cat(energy), torch.cat(basin)
