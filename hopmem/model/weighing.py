"""What is asked of a weighing of the memories, and what it answers: p = α-entmax(β Z y) of some states."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hopmem.model.scan import RowBlocks

VISIBLE = 0.01  # a softmax weight counts toward a metastable state above this (U-Hop+, after Martins et al., 2023)
SHARP = 256.0  # β beyond which memories enter in float64: β times what float32 rounds off is an error of p
LOUD = 1e10  # spread of lengths from which a weight that float32 can't hold may be most of what is mixed
STEEP = 1e4  # and the spread of lengths from which a small weight may be most of what is mixed

Mix = Callable[[RowBlocks, int, Tensor], Tensor]  # (rows, their width n, which of the states [c]) ↦ p · rows [c, n]


@dataclass(frozen=True)
class Association:
    """p of b states."""

    index: Tensor  # [b, k] the memories of the largest weights, in order; what is left out weighs nothing
    weight: Tensor  # [b, k] float64
    support: Tensor  # [b] int64: weights that are not zero; at α = 1 those above VISIBLE
    conjugate: Tensor  # [b] Ψ*_α(β Z y), float64
    nearest: Tensor  # [b] the largest score
    mix: Mix


@dataclass(frozen=True)
class Weighing:
    """How states are weighed."""

    alpha: float
    beta: float
    top: int  # largest weights to name, at least
    budget: int  # bytes of working memory
    spread: float = 1.0  # largest over smallest norm of what is mixed: by as much does a lost weight weigh more
    longest: float = 1.0  # the largest norm of what is mixed

    @property
    def loud(self) -> bool:
        """Whether weights that float32 can't hold may matter."""
        return self.spread > LOUD

    @property
    def sharp(self) -> bool:
        """Whether float32 rounds scores off by more than answers bear."""
        return self.beta > SHARP or self.spread > STEEP
