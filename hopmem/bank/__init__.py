"""MemoryBank ↔ safetensors."""

from hopmem.bank.file import FORMAT
from hopmem.bank.learning import Learning, Validated
from hopmem.bank.memory import MEASURED, MemoryBank
from hopmem.bank.rows import as_rows
from hopmem.bank.tuning import SAME, SMALLEST, VALIDATED, Tuning, tune

__all__ = [
    "FORMAT",
    "MEASURED",
    "SAME",
    "SMALLEST",
    "VALIDATED",
    "Learning",
    "MemoryBank",
    "Tuning",
    "Validated",
    "as_rows",
    "tune",
]
