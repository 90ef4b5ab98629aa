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

from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import Patterns

WIDE = 4096  # entries of a pattern up to which d×d matrices are formed; beyond, the work is done in a span of that size
MOST_DIRECTIONS = 512  # discriminants that are computed
DIRECTION_ROWS = 4096  # memories from which they are computed
POWER_STEPS = 1  # of the subspace iteration that finds them,
SPARE = 32  # with so many directions to spare
LIFT = 100.0  # squared lift in units of the largest squared norm: cosines rank as distances do to a few per cent of it
JITTER = 1e-6  # of the largest entry of the diagonal: keeps Cholesky's pivots positive


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
        exact = difference.double()  # in float32 the sums would tell how rows are divided
        return replace(self, noise=self.noise + exact.T @ exact, pairs=self.pairs + len(difference))

    def add_memory(self, rows: Tensor) -> "Scatter":
        """Take in memories [n, r].

        Returns:
            The sums with them.
        """
        exact = rows.double()
        return replace(self, memory=self.memory + exact.T @ exact, memories=self.memories + len(rows))

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


@dataclass(frozen=True)
class Whitening:
    """Coordinates in which what a recipe whitens is a ball, less one direction that is not to count."""

    L: Tensor  # [r, r] lower: L Lᵀ = N + w C + ρ I, float32; L⁻¹ is a square root of the inverse, up to a rotation
    dropped: Tensor | None = None  # unit [r], in these coordinates

    def __call__(self, rows: Tensor) -> Tensor:
        """Whiten rows.

        Args:
            rows: in the frame [n, r].

        Returns:
            [n, r].
        """
        columns: Tensor = torch.linalg.solve_triangular(self.L, rows.T, upper=False)
        return self.drop(columns.T)

    def drop(self, rows: Tensor) -> Tensor:
        """Take off what does not count.

        Args:
            rows: whitened [n, r].

        Returns:
            [n, r].
        """
        return rows if self.dropped is None else rows - torch.outer(rows @ self.dropped, self.dropped)

    def columns(self, V: Tensor) -> Tensor:
        """Directions of these coordinates as directions of the frame.

        Args:
            V: columns [r, D].

        Returns:
            T [r, D] such that rows @ T = whitened rows @ V.
        """
        T: Tensor = torch.linalg.solve_triangular(self.L.T, self.drop(V.T).T, upper=True)
        return T

    def centred(self, bright: Tensor) -> "Whitening":
        """Count a vector's own mean as noise of any strength.

        (K + c b bᵀ)⁻¹ is, as c grows, K⁻¹ less its projection on K⁻¹b (Sherman and Morrison, 1950): whitened, one
        direction goes.

        Args:
            bright: b, the direction of a vector's own mean [r].

        Returns:
            The whitening without it.
        """
        whitened = self(bright[None])[0]
        return replace(self, dropped=whitened / whitened.norm().clamp_min(torch.finfo(torch.float32).tiny))


def whitening(scatter: Scatter, memory_weight: float | None, ridge: float) -> Whitening:
    """Whiten N + w C + ρ I.

    Args:
        scatter: second moments [r, r].
        memory_weight: w; None is C alone.
        ridge: ρ in units of the mean eigenvalue.

    Returns:
        The whitening.
    """
    K = scatter.memory / max(1, scatter.memories)
    if memory_weight is not None:
        K.mul_(memory_weight).add_(scatter.noise, alpha=1 / max(1, scatter.pairs))
    unit = float(K.diagonal().mean()) or 1.0
    K.diagonal().add_(ridge * unit + JITTER * float(K.diagonal().max()))
    return Whitening(torch.linalg.cholesky(K).float())


def discriminants(F: Tensor, most: int, generator: torch.Generator, near: Tensor | None = None) -> Tensor:
    """The directions of largest signal-to-noise ratio, best first.

    Args:
        F: whitened memories [n, r].
        most: how many directions to find at most.
        generator: starts the subspace iteration, where one is needed.
        near: columns [r, k] whose span is that of the directions already, all but a direction or two.

    Returns:
        Orthonormal columns V [r, k], k ≤ min(most, n, r).
    """
    F = F - F.mean(0)
    if near is not None:
        return _ordered(F, torch.linalg.qr(near).Q)
    return _leading(F, max(1, min(most, *F.shape)), generator)


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


def lift_of(squared: Tensor) -> float:
    """The lift at which cosines rank as distances do.

    Cosine to a lifted memory v, for any query x, is (⟨x, v⟩ + R²)/√(‖v‖² + R²) up to a factor of x alone, and to first
    order in ‖v‖²/R² that is R + (⟨x, v⟩ − ½‖v‖²)/R: what remains is a share ‖v‖²/R² of it.

    Args:
        squared: ‖v‖² of memories, before the lift [n].

    Returns:
        R.
    """
    return math.sqrt(LIFT * float(squared.max())) or 1.0


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
        Q = F.T @ start
        for _ in range(POWER_STEPS):  # LU keeps the columns apart as QR does, for a fifth of the time
            Q = F.T @ (F @ _lower(Q))
        V = _ordered(F, torch.linalg.qr(Q).Q)[:, :k]
    return V


def _ordered(F: Tensor, Q: Tensor) -> Tensor:
    """The singular directions of F [n, r] within a span, of Q's orthonormal columns (Rayleigh and Ritz).

    Returns:
        Columns of the shape of Q, those along which F is longest first.
    """
    G = F @ Q
    V: Tensor = Q @ torch.linalg.eigh(G.T @ G).eigenvectors.flip(1)
    return V


def _lower(Y: Tensor) -> Tensor:
    """A well-conditioned basis of what the columns of Y [r, k] span.

    Returns:
        The rows of the unit lower factor of Y, in Y's order.
    """
    P, L, _ = torch.linalg.lu(Y)
    basis: Tensor = L[P.argmax(1)]  # P L, without the product
    return basis
