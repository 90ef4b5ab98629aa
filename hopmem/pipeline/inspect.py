"""Inspect: bank → statistics."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from hopmem import header, shards
from hopmem.pipeline.outcome import Machine, Outcome
from hopmem.results import Inspection, Remembered

if TYPE_CHECKING:
    from hopmem.bank import MemoryBank
    from hopmem.verbs import Portrait

STATISTICS = "statistics"  # where the header of a bank keeps them
CLOSEST, ERROR = 10, 1e-3  # what is kept
CHEAP = 2.5e10  # products of entries up to which a bank is measured whenever it is written:
PASSES = 2000  # of all pairs, and of so many passes over the patterns
LONGEST = 1 << 18  # characters that a header keeps of statistics


def inspect(
    bank_path: str,
    machine: Machine,
    *,
    closest: int = CLOSEST,
    error: float = ERROR,
    alpha: float | None = None,
    beta: float | Literal["auto"] = "auto",
) -> Outcome[Inspection]:
    """Measure a bank, or tell what it remembers where that is what is asked for: torch is then not even loaded.

    Args:
        bank_path: the bank.
        machine: what the work runs on.
        closest: how many of the closest pairs to name.
        error: ε, the wanted error in feature space.
        alpha: of Theorem 2 and the self-test; None takes the bank's.
        beta: at which the bounds are evaluated; auto takes the bank's.

    Returns:
        The statistics.
    """
    kept = _remembered(bank_path)
    if (
        kept is not None
        and machine.device in {"auto", kept.device}
        and machine.seed in {None, kept.seed}
        and alpha in {None, kept.alpha}
        and beta in {"auto", kept.beta}
        and (0 <= closest <= CLOSEST and error == kept.error)
    ):
        pairs = kept.inspection.closest_pairs[:closest]
        return Outcome(replace(kept.inspection, closest_pairs=pairs), kept.device)
    from hopmem.pipeline.company import divided

    with divided(bank_path, machine) as bank:
        found = _measured(bank, machine, closest, error, alpha, beta)
    return Outcome(found.inspection, found.device)


def verified(bank_path: str, outcome: Outcome[Inspection]) -> Outcome[Inspection]:
    """Read every byte of a bank that was inspected, and compare it with what was written.

    Args:
        bank_path: the bank.
        outcome: what was found.

    Returns:
        The same, and that the bank is whole.
    """
    from hopmem.bank import sharded

    has_checksums = sharded.verify(bank_path)
    lacking = "it keeps no checksums, since an older hopmem wrote it: that its bytes are those can't be told"
    notes = [] if has_checksums else [lacking]
    return replace(
        outcome, result=replace(outcome.result, verified=has_checksums), warnings=[*outcome.warnings, *notes]
    )


@contextmanager
def portrait(bank_path: str, machine: Machine, alpha: float, beta: float) -> "Iterator[Portrait]":
    """What the pictures of a bank are drawn from.

    Args:
        bank_path: the bank.
        machine: what the work runs on.
        alpha: of the energy and its basins.
        beta: the same.

    Yields:
        The portrait, whose bank can be read meanwhile.
    """
    from hopmem import verbs
    from hopmem.devices import memory_errors, resolve
    from hopmem.pipeline.company import divided

    device = str(resolve(machine.device))
    with divided(bank_path, machine) as bank:
        with memory_errors():
            found = verbs.portrait(
                bank, alpha=alpha, beta=beta, device=device, budget=machine.budget, watch=machine.watch
            )
        yield found


def remember(bank: "MemoryBank", machine: Machine) -> dict[str, str]:
    """The statistics of a bank that is about to be written.

    Args:
        bank: the bank, whole.
        machine: what the work runs on.

    Returns:
        What its header shall keep; nothing of a bank so large that measuring it would take longer than writing it.
    """
    if not is_cheap(bank):
        return {}
    text = _measured(bank, replace(machine, seed=None), CLOSEST, ERROR, None, "auto").text()
    return {STATISTICS: text} if len(text) <= LONGEST else {}  # of a bank with names of thousands of copies


def is_cheap(bank: "MemoryBank") -> bool:
    """Whether a bank is measured whenever it is written.

    Args:
        bank: of M patterns.

    Returns:
        False where that would take longer than writing it.
    """
    return (len(bank) + PASSES) * len(bank) * max(bank.dimension, bank.feature_dimension) <= CHEAP


def _remembered(path: str) -> Remembered | None:
    try:
        return Remembered.of(header.parsed(shards.metadata(path)[STATISTICS].encode()))
    except (KeyError, ValueError):
        return None


def _measured(
    bank: "MemoryBank",
    machine: Machine,
    closest: int,
    error: float,
    alpha: float | None,
    beta: float | Literal["auto"],
) -> Remembered:
    """Measure a bank.

    Returns:
        The statistics, and what was asked for.
    """
    from hopmem import verbs
    from hopmem.devices import memory_errors, resolve

    device = str(resolve(machine.device))
    with memory_errors():
        found = verbs.inspect(
            bank,
            closest=closest,
            error=error,
            alpha=alpha,
            beta=beta,
            seed=machine.seed,
            device=device,
            budget=machine.budget,
            watch=machine.watch,
        )
    seed = bank.seed if machine.seed is None else machine.seed
    tuned = bank.tuning.beta if bank.tuning is not None else math.nan
    return Remembered(
        found, error, bank.alpha if alpha is None else alpha, tuned if beta == "auto" else beta, seed, device
    )
