"""Random arrangements with a random symmetry, which the best codes often have.

The symmetry is a rotation of small order, or a group that up to three random words generate in the reflections of a
random finite Coxeter group whose diagram is a path: among them are the dihedral groups, the rotations of all regular
polytopes, and many of their subgroups. Short orbits, of points that an element leaves where they are, fill what long
ones leave over.
"""

import math

import torch
from torch import Tensor

from hopmem.model.rows import unit

LABELS = (2.0, 3.0, 3.0, 3.0, 4.0, 5.0, 6.0, 7.0)  # m of neighbours in the diagram, whose mirrors meet at π/m
LARGEST_ORDER = 7  # of a rotation
TRIES = 30  # at what a random draw may miss
LONGEST = 32  # letters of a word
LARGEST = 1 << 22  # entries of the matrices of a group


def symmetric(M: int, D: int, generator: torch.Generator) -> Tensor:
    """Random orbits of a random finite group; points that no orbit fills lie anywhere.

    Args:
        M: points.
        D: dimension of the space, at least 2.
        generator: draws the group and the points.

    Returns:
        Unit rows [M, D], float64.
    """
    G = _rotations(D, generator) if _one_in(2, generator) else _group(M, D, generator)
    short = _one_in(4, generator)  # where all orbits may be short, many are
    points = torch.empty(0, D, dtype=torch.float64)
    for _ in range(TRIES + M // len(G)):
        if len(points) == M or len(G) == 1:
            break
        orbit = _orbit(G, M - len(points), short, generator)
        both = torch.cat([points, orbit])
        if bool(_first(both, 1e-3)[len(points) :].all()):
            points = both
    return torch.cat([points, unit(torch.randn(M - len(points), D, dtype=torch.float64, generator=generator))])


def _rotations(D: int, generator: torch.Generator) -> Tensor:
    """The powers of a rotation that turns a plane by one part in k, and others by some such parts.

    Returns:
        Orthogonal matrices [k, D, D], float64.
    """
    k = int(torch.randint(2, LARGEST_ORDER + 1, (), generator=generator))
    parts = torch.randint(k, (D // 2,), generator=generator)
    parts[0] = 1
    rotation = torch.eye(D, dtype=torch.float64)
    for plane, part in enumerate(parts.tolist()):
        c, s = math.cos(2 * math.pi * part / k), math.sin(2 * math.pi * part / k)
        both = slice(2 * plane, 2 * plane + 2)
        rotation[both, both] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return _closure([rotation], k)


def _group(M: int, D: int, generator: torch.Generator) -> Tensor:
    """A random finite group of at most M elements; the fewer words generate it, the smaller it is.

    Returns:
        Orthogonal matrices [n, D, D], float64.
    """
    roots = _simple_roots(D, generator)
    words = []
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        length = int(torch.randint(2, min(2 * D, LONGEST) + 1, (), generator=generator))
        word = torch.eye(D, dtype=torch.float64)
        for letter in torch.randint(D, (length,), generator=generator).tolist():
            word -= 2 * torch.outer(word @ roots[letter], roots[letter])  # the reflection along a root
        words.append(word)
    limit = max(2, min(M, LARGEST // D**2))
    groups = [_closure(words[:count], limit) for count in range(len(words), 0, -1)]
    return next((G for G in groups if len(G) > 1), groups[0])


def _simple_roots(D: int, generator: torch.Generator) -> Tensor:
    """The roots whose reflections generate a finite Coxeter group.

    Neighbours in the path stand at the angle π − π/m, others at right angles. There are such roots, and the group is
    finite, where their Gram matrix is positive.

    Returns:
        Unit rows [D, D], float64.
    """
    labels = torch.tensor(LABELS, dtype=torch.float64)
    for _ in range(TRIES):
        cosines = -(math.pi / labels[torch.randint(len(LABELS), (D - 1,), generator=generator)]).cos()
        gram = torch.eye(D, dtype=torch.float64) + torch.diag(cosines, 1) + torch.diag(cosines, -1)
        roots: Tensor
        roots, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed) and float(roots.diagonal().min()) > 1e-6:
            return roots
    return torch.eye(D, dtype=torch.float64)


def _closure(generators: list[Tensor], limit: int) -> Tensor:
    """The group that some orthogonal maps generate.

    Returns:
        Its elements [n, D, D], the identity first; the identity alone where they are more than `limit`.
    """
    identity = torch.eye(len(generators[0]), dtype=torch.float64)[None]
    G = new = identity
    while len(new):
        products = torch.cat([new @ generator for generator in generators])
        new = products[_first(torch.cat([G, products]).flatten(1))[len(G) :]]
        G = torch.cat([G, new])
        if len(G) > limit:
            return identity
    return G


def _orbit(G: Tensor, room: int, short: bool, generator: torch.Generator) -> Tensor:
    """The orbit of a random point, or, where there is little room, of one that an element leaves where it is.

    Returns:
        Unit rows [n, D]; none where there is no room.
    """
    point = unit(torch.randn(1, G.shape[1], dtype=torch.float64, generator=generator))
    if len(G) > room or (short and _one_in(3, generator)):
        element = G[int(torch.randint(len(G), (), generator=generator))]
        values, vectors = torch.linalg.eigh(element + element.T)
        still = vectors[:, values > 2 - 1e-6]
        point = point @ still @ still.T
    orbit = (point @ G)[:, 0]
    if float(point.norm()) < 1e-3:
        return orbit[:0]  # the element leaves nothing where it is
    apart = _first(orbit)
    return unit(orbit[apart]) if int(apart.sum()) <= room else orbit[:0]


def _one_in(count: int, generator: torch.Generator) -> bool:
    """True once in so many times.

    Returns:
        Whether this is one.
    """
    return int(torch.randint(count, (), generator=generator)) == 0


def _first(rows: Tensor, apart: float = 1e-6) -> Tensor:
    """Which rows lie apart from all before them.

    Returns:
        bool [n].
    """
    near = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") < apart
    return ~near.tril(-1).any(1)
