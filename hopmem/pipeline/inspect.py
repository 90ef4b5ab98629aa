"""Inspect: bank → statistics."""

from typing import Any

from hopmem import verbs
from hopmem.bank import MemoryBank
from hopmem.devices import memory_errors, resolve
from hopmem.pipeline.outcome import Machine, Outcome


def inspect(bank_path: str, machine: Machine, **options: Any) -> Outcome[verbs.Inspection]:
    """Measure a bank.

    Args:
        bank_path: the bank.
        machine: what the work runs on.
        **options: of `verbs.inspect`.

    Returns:
        The statistics.
    """
    bank = MemoryBank.load(bank_path)
    device = str(resolve(machine.device))
    with memory_errors():
        result = verbs.inspect(
            bank, seed=machine.seed, device=device, budget=machine.budget, watch=machine.watch, **options
        )
    return Outcome(result, device)
