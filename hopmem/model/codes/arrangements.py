"""Arrangements of M points on the sphere in R^D: those that are known to be best, and those that a search starts from.

No arrangement of M ≤ D + 1 points beats the simplex, none of D + 1 < M ≤ 2D points beats a largest cosine of zero
(Rankin, 1955), and none in the plane beats the regular polygon. Elsewhere a search starts from random points, from
symmetric points, and from the kissing arrangements that are sections of the roots of E8 (Conway, Sloane, Sphere
Packings, Lattices and Groups, 1999, chapters 1 and 6).
"""

import itertools
import math

import torch
from torch import Tensor

from hopmem.model.rows import unit

SECTIONS = 64  # random sections of the roots that are tried for the one with the most roots
PLACES = 256  # random places among which an empty one is looked for


def exact(M: int, D: int) -> Tensor | None:
    """The best arrangement, where theory knows it.

    Args:
        M: points.
        D: dimension of the space.

    Returns:
        Unit rows [M, D], float64, or None where a search is needed.

    >>> exact(3, 2) @ exact(3, 2).T
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]], dtype=torch.float64)
    """
    if D == 1:
        return torch.tensor([1.0, -1.0], dtype=torch.float64).repeat((M + 1) // 2)[:M, None]
    if M <= 2 * D:
        return _simplices(M, D)
    if D == 2:
        angles = torch.arange(M, dtype=torch.float64) * (2 * math.pi / M)
        return torch.stack([angles.cos(), angles.sin()], 1)
    return None


def simplex(M: int) -> Tensor:
    """M points with all cosines −1/(M−1); one point where M = 1.

    Args:
        M: points.

    Returns:
        Unit rows [M, max(1, M−1)], float64.
    """
    if M == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    k = torch.arange(1, M, dtype=torch.float64)
    H = torch.ones(M, M - 1, dtype=torch.float64).triu()  # column k of Helmert's matrix: k ones, −k, zeros
    H.diagonal(-1).copy_(-k)
    return unit(H / (k * (k + 1)).sqrt())


def random(M: int, D: int, generator: torch.Generator) -> Tensor:
    """Points from the uniform distribution.

    Returns:
        Unit rows [M, D], float64.
    """
    return unit(_randn(M, D, generator))


def kissing(M: int, D: int, generator: torch.Generator) -> Tensor:
    """Some of the roots of E8 in the section of D dimensions that holds the most, and random points where they end.

    Args:
        M: points.
        D: dimension of the space, at most 8.
        generator: draws the sections and the points.

    Returns:
        Unit rows [M, D], float64.
    """
    roots = unit(_roots())
    span = torch.eye(8, dtype=torch.float64)
    for dimension in range(7, D - 1, -1):
        draws = (torch.randperm(len(roots), generator=generator)[:dimension] for _ in range(SECTIONS))
        sections = [(_inside(roots, basis), basis) for basis in (_basis(roots[draw]) for draw in draws)]
        inside, span = max(sections, key=lambda section: int(section[0].sum()))
        roots = roots[inside]
    points = unit(roots @ span)
    points = points[torch.randperm(len(points), generator=generator)[:M]]
    return torch.cat([points, random(M - len(points), D, generator)])


def changed(Z: Tensor, generator: torch.Generator) -> Tensor:
    """An arrangement with one point elsewhere, where there is room: a descent from it may reach a better one.

    Args:
        Z: unit rows [M, D].
        generator: draws the point and the place.

    Returns:
        Unit rows [M, D].
    """
    M, D = Z.shape
    moved = _randint(0, M, generator)
    places = random(PLACES, D, generator).to(Z.device)
    crowd = (places @ torch.cat([Z[:moved], Z[moved + 1 :]]).T).amax(1)
    Z = Z.clone()
    Z[moved] = places[crowd.argsort()[_randint(0, PLACES // 8, generator)]]
    return Z


def _simplices(M: int, D: int) -> Tensor:
    """The simplex for M ≤ D + 1, else M − D simplices at right angles to each other.

    Returns:
        Unit rows [M, D], float64.
    """
    count = max(1, M - D)
    sizes = [M // count + (i < M % count) for i in range(count)]
    points = torch.zeros(M, D, dtype=torch.float64)
    row, column = 0, 0
    for size in sizes:
        part = simplex(size)
        points[row : row + size, column : column + part.shape[1]] = part
        row, column = row + size, column + part.shape[1]
    return points


def _roots() -> Tensor:
    """The 240 shortest vectors of the lattice E8.

    Returns:
        Rows [240, 8], float64.
    """
    rows = []
    for i, j in itertools.combinations(range(8), 2):
        for a, b in itertools.product((2, -2), repeat=2):
            rows.append([a if k == i else b if k == j else 0 for k in range(8)])
    rows += [list(signs) for signs in itertools.product((1, -1), repeat=8) if math.prod(signs) == 1]
    return torch.tensor(rows, dtype=torch.float64)


def _basis(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span of some rows, completed by others where they are dependent.

    Returns:
        Columns [D, k].
    """
    basis: Tensor = torch.linalg.qr(rows.T).Q
    return basis


def _inside(rows: Tensor, basis: Tensor) -> Tensor:
    """Which unit rows lie in a span.

    Returns:
        bool [n].
    """
    length: Tensor = (rows @ basis).norm(dim=1)
    return length > 1 - 1e-9


def _randn(M: int, D: int, generator: torch.Generator) -> Tensor:
    """Normal numbers.

    Returns:
        float64 [M, D].
    """
    return torch.randn(M, D, dtype=torch.float64, generator=generator)


def _randint(low: int, high: int, generator: torch.Generator) -> int:
    """A number from low to high − 1.

    Returns:
        The number.
    """
    return int(torch.randint(low, high, (), generator=generator))
