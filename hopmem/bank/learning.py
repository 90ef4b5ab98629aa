"""What a bank remembers of how its map was learned."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Validated:
    """How one map did under one noise, on corrupted copies that it was not fitted to."""

    noise: str
    method: str  # the map, in words
    accuracy: float  # share of queries whose largest weight was on the right memory
    error: float  # the papers' error: sum over entries of the squared difference, mean over queries


@dataclass(frozen=True)
class Learning:
    """How a feature map was learned."""

    steps: int
    temperature: float | None  # of the average loss
    batch_size: int | None
    feature_dimension: int
    curve: tuple[float, ...]  # what was lowered, step by step
    loss: dict[str, float]  # first (raw) and last, of the objective
    separation: dict[str, dict[str, float]]  # raw and learned: max_cosine, min_angle_degrees, mean_cosine
    noise: tuple[str, ...] = ()  # that it was learned for
    method: str | None = None  # the map that was kept, in words, where it was chosen
    validation: tuple[Validated, ...] = ()  # how everything that was tried did
    patterns: int = 0  # that it was learned from; 0 where nobody kept count


def learning_of(kept: Any) -> Learning:
    """A record of learning from JSON.

    Args:
        kept: as `dataclasses.asdict` gave it.

    Returns:
        The record.

    Raises:
        TypeError: something else.
    """
    if not isinstance(kept, dict):
        raise TypeError(f"learning is {type(kept).__name__}")
    rows = tuple(Validated(**row) for row in kept.get("validation", ()))
    lists = {"curve": tuple(kept["curve"]), "noise": tuple(kept.get("noise", ())), "validation": rows}
    return Learning(**kept | lists)
