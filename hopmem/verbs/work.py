"""How large a block of work may be, and who is told how far it is."""

from collections.abc import Callable
from functools import partial

from hopmem.model.separation import Progress

Watch = Callable[[str, int, int], None]  # called with (what is being done, done, total)


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
