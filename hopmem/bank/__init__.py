"""MemoryBank ↔ safetensors."""

from hopmem.bank.file import FORMAT
from hopmem.bank.memory import Learning, MemoryBank
from hopmem.bank.rows import as_rows
from hopmem.bank.tuning import SAME, SMALLEST, Tuning, tune

__all__ = ["FORMAT", "SAME", "SMALLEST", "Learning", "MemoryBank", "Tuning", "as_rows", "tune"]
