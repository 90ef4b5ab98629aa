"""What is asked of a weighing of the memories, and what it answers: p = α-entmax(β Z y) of some states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hopmem.model.scan import RowBlocks

VISIBLE = 0.01  # a softmax weight counts toward a metastable state above this (U-Hop+, after Martins et al., 2023)
SHARP = 256.0  # β beyond which memories enter in float64: β times what float32 rounds off is an error of p
LOUD = 1e10  # spread of lengths from which a weight that float32 can't hold may be most of what is mixed
BLUR = 5e-6  # of the width of the support: as much may rounding move a score there,
ROUNDED = 2.0**-22  # which is so much of the length of a state
STEEP = 30.0  # and the spread of lengths from which a small weight may be most of what is mixed,
MILD = 8.0  # but for softmax up to this β, of which float32 is off by a small share of each weight, however small

Mix = Callable[[RowBlocks, int, Tensor], Tensor]  # (rows, their width n, which of the states [c]) ↦ p · rows [c, n]


@dataclass(frozen=True)
class Mixture:
    """What α-entmax, α > 1, sums over all memories, for b states, with G_μ = exp_α(β (s_μ − m) e^{(α−1)c})."""

    mixed: Tensor  # Σ G · rows [b, n] float64
    total: Tensor  # Σ G [b], one over the largest weight
    inner: Tensor  # Σ G β (s − m) [b]
    support: Tensor  # memories with G > 0 [b] int64, but for those at the edge,
    edge: Tensor  # [2, k] states and memories of which rounding may decide whether G > 0


class Terms(Protocol):
    """Exponents β (s_μ − m) of b states and of all memories that can have a weight: α-entmax sums over them.

    To add memories raises the threshold. So the terms of some memories serve them beside any others, too, with m the
    largest score of all.
    """

    @property
    def peak(self) -> Tensor:
        """M, from which the exponents count [b], in the type to compute in."""

    def at(self, peak: Tensor) -> "Terms":
        """The same scores, counted from another m [b], not smaller than the largest of them."""

    def of(self, states: Tensor) -> "Terms":
        """Those of some of the states [c]."""

    def exactly(self, Y: Tensor, width: int, budget: int) -> "Terms":
        """The same of states [b, D], scored in float64, with `budget` bytes where rows of `width` entries are mixed.

        They count from their own largest score.
        """

    def sums(self, c: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """What `threshold.log_peak` asks for at c [b, 1]."""

    def mixture(self, alpha: float, factor: Tensor, rows_of: RowBlocks, width: int, slack: Tensor) -> Mixture:
        """Mix rows at e^{(α−1)c} [b, 1], where rounding may have moved an exponent by `slack` [b, 1]."""


class Beside(Protocol):
    """Other processes that hold more memories."""

    @property
    def memories(self) -> int:
        """M of all."""

    def largest(self, X: Tensor) -> Tensor:
        """The largest entries of the tensors of all processes."""


@dataclass(frozen=True)
class Association:
    """p of b states."""

    index: Tensor  # [b, k] the memories of the largest weights, in order; what is left out weighs nothing
    score: Tensor  # [b, k] their scores, float64
    weight: Tensor  # [b, k] float64
    support: Tensor  # [b] int64: weights that are not zero; at α = 1 those above VISIBLE
    conjugate: Tensor  # [b] Ψ*_α(β Z y), float64
    mix: Mix
    terms: Terms | None = None  # where the support ends, which other memories may change: α > 1
    every: Tensor | None = None  # [b, n] all visible weights, where `weight` has fewer

    @property
    def nearest(self) -> Tensor:
        """The largest score [b]."""
        return self.score[:, 0]


@dataclass(frozen=True)
class Weighing:
    """How states are weighed."""

    alpha: float
    beta: float
    top: int  # largest weights to name, at least
    budget: int  # bytes of working memory
    spread: float = 1.0  # largest over smallest norm of what is mixed: by as much does a lost weight weigh more
    longest: float = 1.0  # the largest norm of what is mixed
    at_once: bool = False  # whether the associations of all states are held together, and share the budget

    @property
    def loud(self) -> bool:
        """Whether weights that float32 can't hold may matter."""
        return self.spread > LOUD

    @property
    def sharp(self) -> bool:
        """Whether float32 rounds scores off by more than answers bear."""
        mild = self.alpha == 1 and self.beta <= MILD
        return self.beta > SHARP or (self.spread > STEEP and not mild)
