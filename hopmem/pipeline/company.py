"""A bank file and the processes that torchrun has started → a company that holds the bank."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hopmem import shards
from hopmem.bank import MemoryBank
from hopmem.bank.file import verify
from hopmem.devices import memory_errors
from hopmem.errors import BankError
from hopmem.header import CHECKSUMS, metadata
from hopmem.pages import room
from hopmem.pipeline.outcome import Machine
from hopmem.verbs.company import Company

if TYPE_CHECKING:  # who is alone loads nothing of it
    from hopmem.cluster import Cluster

Split = Literal["auto", "memories", "queries"]


@contextmanager
def company(bank_path: str, bank: MemoryBank, machine: Machine, split: Split) -> Iterator[Company | None]:
    """Divide a bank among the processes of this run, of which this is the first one.

    Args:
        bank_path: the bank, which all processes read.
        bank: as this one has opened it.
        machine: which processes there are.
        split: whether memories are divided or queries; auto goes by the size of the bank.

    Yields:
        Who searches in it; None where this process is alone.

    Raises:
        KeyboardInterrupt: the work was interrupted: the others may wait for what will not come, and end.
    """
    if machine.cluster is None:
        yield None
        return
    machine.cluster.tell(split)
    machine.cluster.begin()
    held = _divided(bank_path, bank, machine.cluster, machine.budget, split)
    try:
        yield held
    except KeyboardInterrupt:
        machine.cluster.first_to_speak()  # and no other
        raise
    held.part()


@contextmanager
def divided(bank_path: str, machine: Machine) -> Iterator[MemoryBank]:
    """Open a bank, whose rows lie with all processes of this run, of which this is the first one.

    Args:
        bank_path: the bank, which all processes read.
        machine: which processes there are.

    Yields:
        The bank; of a process alone, as it is.
    """
    bank = MemoryBank.load(bank_path)
    with company(bank_path, bank, machine, "memories") as held:
        yield bank if held is None else held.whole(bank)


def serve(bank_path: str, machine: Machine) -> None:
    """Take part in what the first process does with a bank, whenever it opens it, until it ends.

    Args:
        bank_path: the bank.
        machine: which processes there are.
    """
    if machine.cluster is not None:
        with memory_errors():
            while (split := machine.cluster.tell(None)) is not None:
                bank = MemoryBank.load(bank_path)
                _divided(bank_path, bank, machine.cluster, machine.budget, split).serve()


def _divided(bank_path: str, bank: MemoryBank, cluster: "Cluster", budget: int, split: Split) -> Company:
    """Divide a bank, once it is certain that all have the same.

    Returns:
        What this process holds.

    Raises:
        BankError: processes have opened banks that differ.
    """
    by_memories = cluster.tell(_by_memories(bank_path, cluster, split))  # before all else: the first one may be late
    if os.environ.get("GROUP_WORLD_SIZE") != "1" and os.environ.get("LOCAL_RANK") == "0":  # each host reads its own
        verify(bank_path)
    found = cluster.each((socket.gethostname(), identity(bank_path)))
    for rank, (host, digest) in enumerate(found):
        if digest != found[0][1]:
            expected = f"the bank of process 0 on {found[0][0]}"
            raise BankError(bank_path, expected, f"another one with process {rank} on {host}")
    return Company.of(cluster, bank, by_memories, budget)


def identity(bank_path: str) -> str:
    """What tells a bank from another: its checksums, or all its bytes where an older version has kept none.

    Args:
        bank_path: the bank.

    Returns:
        A text.
    """
    index = shards.find(bank_path)
    if index is not None:
        return index.digest
    known = metadata(bank_path).get(CHECKSUMS)
    if known is None:
        with Path(bank_path).open("rb") as bank:
            known = hashlib.file_digest(bank, "sha256").hexdigest()
    return known


def _by_memories(bank_path: str, cluster: "Cluster", split: Split) -> bool:
    """Whether each process holds some of the rows: where the bank does not fit each of them.

    Returns:
        Else all hold the whole bank.
    """
    if split != "auto":
        return split == "memories"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", cluster.size))
    limit = room()
    fits = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // here if limit is None else limit
    return shards.size(bank_path) > fits
