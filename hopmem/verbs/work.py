"""How large a block of work may be, and who is told how far it is."""

from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from hopmem.model.gram import Progress
from hopmem.model.separation import LossProgress


class Watch(Protocol):
    """Who watches long work."""

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Hear what is being done, how far it is, and how well it goes."""


@dataclass
class Course:
    """A watch that remembers how the largest cosine fell, and hands on what it hears."""

    watch: Watch | None = None
    steps: list[int] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Hear and hand on."""
        if self.watch is not None:
            self.watch(label, done, total, note)

    def learned(self, done: int, delta: float) -> None:
        """Remember the separation after a step."""
        self.steps.append(done)
        self.cosines.append(1 - delta)


def stage(watch: Watch | None, label: str) -> Progress | None:
    """Name a stage of the work.

    Returns:
        What its progress is reported to.
    """
    return None if watch is None else partial(watch, label)


def pair_block(dimension: int, budget: int) -> int:
    """Rows of a block of the Gram matrix such that three blocks of rows and four of products fit the budget.

    Larger blocks leave the cache of the processor, and the arithmetic on the products then costs more than they do.

    Args:
        dimension: entries of a row.
        budget: bytes.

    Returns:
        Rows, between 16 and 1024.
    """
    size = 1024
    while size > 16 and 4 * (3 * size * dimension + 4 * size * size) > budget:
        size //= 2
    return size


def loss_stage(watch: Watch | None, label: str) -> LossProgress | None:
    """Name a stage of the work that lowers a loss.

    Returns:
        What its progress, its loss and the separation are reported to.
    """
    if watch is None:
        return None

    def told(done: int, total: int, loss: float, delta: float) -> None:
        watch(label, done, total, f"loss {loss:.4g}, separation {delta:.3g}")
        if isinstance(watch, Course):
            watch.learned(done, delta)

    return told
