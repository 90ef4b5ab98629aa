"""A bank file and the processes that torchrun has started → a company that holds the bank."""

import hashlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from hopmem import shards
from hopmem.bank import MemoryBank, sharded
from hopmem.bank.sharded import verify
from hopmem.devices import memory_errors
from hopmem.errors import BankError
from hopmem.header import CHECKSUMS, metadata
from hopmem.pages import room
from hopmem.pipeline.outcome import Machine
from hopmem.verbs.company import Company

if TYPE_CHECKING:  # who is alone loads nothing of it
    from hopmem.cluster import Cluster

Split = Literal["auto", "memories", "queries"]


class Opened(NamedTuple):
    """A bank, as far as the first process reads it by itself."""

    bank: MemoryBank
    digest: str | None  # its `identity`, where others will open the same


def opened(bank_path: str, machine: Machine) -> Opened:
    """Open a bank, as far as this process reads it by itself.

    Args:
        bank_path: the bank.
        machine: which processes there are.

    Returns:
        The bank; of several processes, which will divide it, its outline.
    """
    if machine.cluster is None:
        return Opened(MemoryBank.load(bank_path), None)

    def look() -> Opened:
        return Opened(MemoryBank.outline(bank_path), identity(bank_path))

    return shards.steadily(bank_path, look)


@contextmanager
def company(
    bank_path: str, found: Opened, machine: Machine, split: Split
) -> Iterator[tuple[MemoryBank, Company | None]]:
    """Divide a bank among the processes of this run, of which this is the first one.

    Args:
        bank_path: the bank, which all processes read.
        found: as this one has `opened` it.
        machine: which processes there are.
        split: whether memories are divided or queries; auto goes by the size of the bank.

    Yields:
        The bank as this process sees it, and who searches in it; None where this process is alone.

    Raises:
        KeyboardInterrupt: the work was interrupted: the others may wait for what will not come, and end.
    """
    if machine.cluster is None:
        yield found.bank, None
        return
    machine.cluster.tell(split)
    held = _divided(bank_path, found, machine.cluster, machine.budget, split)
    try:
        yield held.whole(found.bank), held
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
    with company(bank_path, opened(bank_path, machine), machine, "memories") as (bank, _):
        yield bank


def serve(bank_path: str, machine: Machine, *, to_the_end: bool = False) -> None:
    """Take part in what the first process does with a bank, whenever it opens it, until it ends.

    Args:
        bank_path: the bank.
        machine: which processes there are.
        to_the_end: whether the first process, when it is asked to stop, still needs the others to do so.
    """
    if machine.cluster is not None:
        if to_the_end:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun tells all; who is lost is noticed anyway
        with memory_errors():
            while (split := machine.cluster.tell(None)) is not None:
                _divided(bank_path, None, machine.cluster, machine.budget, split).serve()


def _divided(bank_path: str, opened: Opened | None, cluster: "Cluster", budget: int, split: Split) -> Company:
    """Divide a bank, once it is certain that all have the same.

    Args:
        bank_path: the bank.
        opened: its outline, with the first process.
        cluster: all processes.
        budget: bytes of working memory.
        split: what is divided.

    Returns:
        What this process holds.

    Raises:
        BankError: processes have opened banks that differ.
    """
    by_memories = cluster.tell(_by_memories(bank_path, cluster, split))  # before all else: the first one may be late
    several = shards.find(bank_path) is not None
    if (
        os.environ.get("GROUP_WORLD_SIZE") != "1"
        and os.environ.get("LOCAL_RANK") == "0"
        and not (several and by_memories)
    ):
        verify(bank_path)  # each host reads its own; of several files, each process those that it holds
    found = cluster.each((socket.gethostname(), identity(bank_path) if opened is None else opened.digest))
    for rank, (host, digest) in enumerate(found):
        if digest != found[0][1]:
            expected = f"the bank of process 0 on {found[0][0]}"
            raise BankError(bank_path, expected, f"another one with process {rank} on {host}")
    if by_memories:
        outline: MemoryBank = cluster.tell(None if opened is None else replace(opened.bank, names=()))
        rows: list[slice] = cluster.tell(sharded.divided(bank_path, len(outline), cluster.size))
        bank = outline.part(bank_path, rows[cluster.rank])
    else:
        bank = MemoryBank.load(bank_path)
    if set(cluster.each(identity(bank_path))) != {found[0][1]}:  # it may have been replaced while it was opened
        raise BankError(bank_path, "one bank for all processes", "another one that has taken its place")
    if by_memories:
        return Company.by_memories(cluster, bank, rows, budget)
    return Company.by_queries(cluster, bank, budget)


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
    index = shards.find(bank_path)
    return (Path(bank_path).stat().st_size if index is None else index.total_size) > fits
