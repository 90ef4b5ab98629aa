"""Closed-form feature maps: look where the memories differ and the noise does not.

Rows of W that whiten the noise make it a ball, W Wᵀ-whitened with (N + w C + ρ I)^{−1/2}, where N is the second moment
of (corrupted − clean) and C the covariance of the memories; N alone is the best linear map for Gaussian noise, C alone
is the whitening that separates best. In the whitened space the directions along which the memories vary most are those
of largest signal-to-noise ratio, Fisher's discriminants (Fisher, 1936; the generalised eigenvectors of C and N): the
first D of them are kept.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.model.kernel import FeatureMap, Patterns

WIDE = 4096  # entries of a pattern up to which d×d matrices are formed; beyond, the work is done in a span of that size
MOST_DIRECTIONS = 512  # discriminants that are computed
DIRECTION_ROWS = 4096  # memories from which they are computed
POWER_STEPS = 1  # of the subspace iteration that finds them,
SPARE = 32  # with so many directions to spare
LIFT = 100.0  # squared lift in units of the largest squared norm: cosines rank as distances do to a few per cent of it
JITTER = 1e-6  # of the largest entry of the diagonal: keeps Cholesky's pivots positive
BRIGHT = 1e3  # how much louder than all other noise a vector's own mean counts, where it is taken off


@dataclass(frozen=True)
class Frame:
    """Coordinates in which matrices are formed: an orthonormal basis of what memories and noise span, around a mean."""

    mean: Tensor  # [d]
    basis: Tensor | None = None  # [d, r]; None: the patterns' own entries

    def __call__(self, X: Tensor) -> Tensor:
        """Rows in the frame; what is unknown of them is taken to be the mean.

        Args:
            X: rows of patterns [n, d].

        Returns:
            Coordinates [n, r].
        """
        centred = (X - self.mean).nan_to_num(0)
        return centred if self.basis is None else centred @ self.basis

    def back(self, directions: Tensor) -> Tensor:
        """Directions of the frame as directions of pattern space.

        Args:
            directions: columns [r, D].

        Returns:
            Rows [D, d].
        """
        return (directions if self.basis is None else self.basis @ directions).T.contiguous()


@dataclass(frozen=True)
class Scatter:
    """Second moments in a frame, as sums so that parts can be added."""

    noise: Tensor  # [r, r] float64: Σ (corrupted − clean)(corrupted − clean)ᵀ
    pairs: int  # how many were summed
    memory: Tensor  # [r, r] float64: Σ ξ ξᵀ of memories less the mean
    memories: int  # how many were summed

    @classmethod
    def empty(cls, r: int, device: torch.device) -> "Scatter":
        """Nothing summed yet.

        Returns:
            Zeros.
        """
        noise, memory = torch.zeros(2, r, r, dtype=torch.float64, device=device)
        return cls(noise, 0, memory, 0)

    def add_noise(self, difference: Tensor) -> "Scatter":
        """Take in corrupted − clean [n, r].

        Returns:
            The sums with it.
        """
        return replace(self, noise=self.noise + difference.T @ difference, pairs=self.pairs + len(difference))

    def add_memory(self, rows: Tensor) -> "Scatter":
        """Take in memories [n, r].

        Returns:
            The sums with them.
        """
        return replace(self, memory=self.memory + rows.T @ rows, memories=self.memories + len(rows))

    def __add__(self, other: "Scatter") -> "Scatter":
        """Both together.

        Returns:
            The sums.
        """
        return Scatter(
            self.noise + other.noise,
            self.pairs + other.pairs,
            self.memory + other.memory,
            self.memories + other.memories,
        )


@dataclass(frozen=True)
class Recipe:
    """A closed-form map, whatever the data."""

    memory_weight: float | None = 0.0  # w of N + w C; None is C alone
    ridge: float = 1e-2  # ρ in units of the mean eigenvalue
    centred: bool = False  # whether each vector's own mean counts as noise
    dimension: int | None = None  # discriminants kept; None keeps whole feature space
    euclidean: bool = False  # metric of feature space: distance, or the angle

    @property
    def family(self) -> str:
        """Which covariance is whitened, at which ridge, for a table."""
        plain = {None: "memory", 0.0: "noise"}
        covariance = plain.get(self.memory_weight) or f"noise + {self.memory_weight:g} memory"
        return f"{covariance} whitening{', centred' if self.centred else ''}, ridge {self.ridge:g}"

    @property
    def name(self) -> str:
        """All of it in a line."""
        kept = "" if self.dimension is None else f", {self.dimension} discriminants"
        return f"{self.family}{kept}{', Euclidean' if self.euclidean else ''}"


def whitener(scatter: Scatter, recipe: Recipe, bright: Tensor) -> Tensor:
    """The Cholesky factor of what a recipe whitens; its inverse is a square root of the inverse, up to a rotation.

    Args:
        scatter: second moments [r, r].
        recipe: which of them, and the ridge.
        bright: the direction of a vector's own mean [r], where it is in the frame.

    Returns:
        L with L Lᵀ = N + w C + ρ I [r, r], float32.
    """
    N, C = scatter.noise / max(1, scatter.pairs), scatter.memory / max(1, scatter.memories)
    K = C.clone() if recipe.memory_weight is None else N + recipe.memory_weight * C
    unit = float(K.diagonal().mean()) or 1.0
    K.diagonal().add_(recipe.ridge * unit + JITTER * float(K.diagonal().max()))
    if recipe.centred:
        b = bright.double()
        K += BRIGHT * unit * len(K) * torch.outer(b, b)
    L: Tensor = torch.linalg.cholesky(K)
    return L.float()


def discriminants(L: Tensor, rows: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The directions of largest signal-to-noise ratio, best first.

    Args:
        L: factor of the covariance that is whitened [r, r].
        rows: memories in the frame [n, r].
        most: how many directions to find at most.
        generator: starts the subspace iteration, where one is needed.

    Returns:
        Columns T [r, k] such that rows @ T are features in which the noise is white, k ≤ min(most, n, r).
    """
    F = torch.linalg.solve_triangular(L, rows.T, upper=False).T  # [n, r] whitened memories
    F = F - F.mean(0)
    V = _leading(F, max(1, min(most, len(F), F.shape[1])), generator)
    T: Tensor = torch.linalg.solve_triangular(L.T, V, upper=True)
    return T


def feature_map(frame: Frame, T: Tensor, lift: float = 0.0) -> FeatureMap:
    """Directions as a feature map, scaled so that the rows of W have mean square length one.

    Args:
        frame: the frame of T.
        T: columns [r, D].
        lift: R; above zero, one more feature of that constant value: the Euclidean metric.

    Returns:
        Φ(u) = W (u − mean), with the lift below.
    """
    W = frame.back(T)
    scale = float(W.double().square().sum(1).mean().sqrt()) or 1.0
    W = W / scale
    b = -(W.double() @ frame.mean.double())
    if lift > 0:
        W = torch.cat([W, W.new_zeros(1, W.shape[1])])
        b = torch.cat([b, b.new_tensor([lift / scale])])
    return FeatureMap(W, b).near(frame.mean)


def lift_of(F: Tensor) -> float:
    """The lift at which cosines rank as distances do.

    Cosine to a lifted memory v, for any query x, is (⟨x, v⟩ + R²)/√(‖v‖² + R²) up to a factor of x alone, and to first
    order in ‖v‖²/R² that is R + (⟨x, v⟩ − ½‖v‖²)/R: what remains is a share ‖v‖²/R² of it.

    Args:
        F: features of memories, before the lift [n, D].

    Returns:
        R.
    """
    return math.sqrt(LIFT * float(F.square().sum(1).max())) or 1.0


def frame_of(patterns: Patterns, differences: Tensor, seed: int) -> Frame:
    """The frame of memories and noise: pattern space itself where it is small, else what samples of both span.

    Args:
        patterns: M memories.
        differences: some corrupted − clean [n, d].
        seed: draws the memories.

    Returns:
        A frame of at most `WIDE` dimensions.
    """
    mean = patterns.mean().float()
    if patterns.dimension <= WIDE:
        return Frame(mean)
    draw = torch.randperm(len(patterns), generator=torch.Generator().manual_seed(seed))[: WIDE - len(differences)]
    rows = torch.cat([patterns[draw.sort().values] - mean, differences])  # [≤ WIDE, d]
    return Frame(mean, torch.linalg.qr(rows.T).Q)


def _leading(F: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The k leading right singular vectors of F [n, r], by subspace iteration where that is cheaper.

    Returns:
        Columns [r, k].
    """
    n, r = F.shape
    if min(n, r) <= 2 * max(k, MOST_DIRECTIONS):  # small enough for the whole spectrum
        if r <= n:
            V: Tensor = torch.linalg.eigh(F.T @ F).eigenvectors.flip(1)[:, :k]
        else:
            V = torch.linalg.qr(F.T @ torch.linalg.eigh(F @ F.T).eigenvectors.flip(1)[:, :k]).Q
    else:
        start = torch.randn(n, k + max(SPARE, k // 8), generator=generator, device=generator.device).to(F)
        Q = torch.linalg.qr(F.T @ start).Q
        for _ in range(POWER_STEPS):
            Q = torch.linalg.qr(F.T @ (F @ Q)).Q
        V = Q @ torch.linalg.eigh((F @ Q).T @ (F @ Q)).eigenvectors.flip(1)[:, :k]
    return V
