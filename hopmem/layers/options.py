"""What layers take beside their sizes, what they answer, and what is said of numbers that fit none."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from hopmem.errors import UsageError

Rate = float | Sequence[float] | Tensor  # a number for all heads, or one for each
Output = tuple[Tensor, Tensor | None]  # answers, and weights where they were asked for


class Options(TypedDict, total=False):
    """The keywords of `Hopfield`, where they are told."""

    kdim: int | None
    vdim: int | None
    feature_dim: int | None
    alpha: Rate
    beta: Rate | None
    steps: int
    dropout: float
    bias: bool
    learn_alpha: bool
    learn_beta: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


def expect(fits: bool, name: str, expected: str, found: object) -> None:
    """Refuse what fits no layer.

    Raises:
        UsageError: it does not fit.
    """
    if not fits:
        raise UsageError(f"{name}: expected {expected}, found {found}")


def for_each_head(name: str, rate: Rate, num_heads: int, least: float) -> list[float]:
    """A number for each head.

    Args:
        name: of the number.
        rate: as it was given.
        num_heads: H.
        least: the smallest number that it may be.

    Returns:
        H numbers.

    Raises:
        UsageError: another count, or a number that is too small or none.
    """
    try:
        found = torch.as_tensor(rate, dtype=torch.float64, device="cpu").detach().flatten().tolist()
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"{name}: expected a number, or one for each head, found {rate!r}") from None
    rates = found * num_heads if len(found) == 1 else found
    expect(len(rates) == num_heads, name, f"a number, or one for each of {num_heads} heads", f"{len(rates)} of them")
    expect(all(least <= each < float("inf") for each in rates), name, f"numbers from {least:g} upward", rate)
    return rates
