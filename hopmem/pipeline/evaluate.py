"""Evaluate: bank → how it fares, and whether that is good enough."""

from typing import Any

from hopmem import verbs
from hopmem.devices import memory_errors, resolve
from hopmem.errors import QualityGateError
from hopmem.pipeline.company import divided
from hopmem.pipeline.outcome import Machine, Outcome
from hopmem.results import Evaluation
from hopmem.verbs.trial import BANK

MOST_NAMED = 5  # failures in the one line


def evaluate(bank_path: str, machine: Machine, **options: Any) -> Outcome[Evaluation]:
    """Measure how a bank and other memories fare with corrupted patterns.

    Args:
        bank_path: the bank.
        machine: what the work runs on.
        **options: of `verbs.evaluate`.

    Returns:
        How they fare.
    """
    device = str(resolve(machine.device))
    with divided(bank_path, machine) as bank, memory_errors():
        result = verbs.evaluate(
            bank, seed=machine.seed, device=device, budget=machine.budget, watch=machine.watch, **options
        )
    paired = "the bank holds pairs; it is evaluated on its patterns, and its values are left out"
    return Outcome(result, device, [] if bank.values is None else [paired])


def check(result: Evaluation, least: float) -> None:
    """Hold the bank to an accuracy, under every noise and with every number of patterns.

    Args:
        result: how it fared.
        least: the accuracy.

    Raises:
        QualityGateError: it falls short.
    """
    short = [row for row in result.rows if row.method == BANK and row.accuracy < least]
    if not short:
        return
    said = [
        f"{row.accuracy:.2%} under {row.noise} with {row.size} patterns ({least - row.accuracy:.2%} short)"
        for row in sorted(short, key=lambda row: row.accuracy)
    ]
    rest = [f"and {len(said) - MOST_NAMED} more"] if len(said) > MOST_NAMED else []
    found = "; ".join([*said[:MOST_NAMED], *rest])
    raise QualityGateError(f"--fail-under: expected an accuracy of at least {least:.2%}, found {found}")
