"""The β that the separation of a bank asks for."""

from dataclasses import dataclass

from torch import Tensor

from hopmem.model.bounds import beta_for_error

TUNED_ERROR = 1e-3  # the error in feature space that β auto keeps at half the radius
SAME = 1e-6  # patterns whose Δ is under this are one to float32,
EQUAL = 1e-13  # and to float64
VALIDATED = "validation on corrupted copies"  # a β that was chosen for least error
SMALLEST = "smallest Δ"  # of all patterns: the usual source of β


@dataclass(frozen=True)
class Tuning:
    """The β that the separation of the bank asks for."""

    beta: float
    delta: float  # the Δ that it follows from
    source: str  # which Δ that is, in words


def tune(delta: Tensor, M: int, *, sampled: bool = False, same: float = SAME) -> Tuning:
    """β of the sharp bound for an error of 1e-3 at half the radius (see `model.bounds`).

    Where patterns repeat, Δ_min says nothing of the rest, and the 1 % quantile of Δ takes its place.

    Args:
        delta: Δ of the memories, or of a sample of them.
        M: number of memories.
        sampled: whether it is a sample.
        same: Δ of patterns that are one, as precisely as Δ was measured.

    Returns:
        β, the Δ it follows from, and which that is.
    """
    apart = delta[delta > same]
    if M < 2 or not len(apart):
        return Tuning(1.0, 0.0, "no two different patterns")
    chosen, source = float(delta.min()), SMALLEST
    if chosen <= same:
        chosen, source = (
            float(delta.quantile(0.01, interpolation="lower")),
            "1 % quantile of Δ, since patterns repeat (or are zero)",
        )
    if chosen <= same:
        chosen, source = float(apart.min()), "smallest Δ of the patterns that do not repeat"
    of_sample = f", from {len(delta)} of {M} patterns" if sampled else ""
    return Tuning(beta_for_error(chosen, M, TUNED_ERROR), chosen, source + of_sample)
