"""Processes as threads, which hold a bank between them: the first one works with it, the others serve."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.verbs.company import Company

ResultT = TypeVar("ResultT")
BUDGET = 64 << 20


class Table:
    """Where threads meet."""

    def __init__(self, count: int) -> None:
        self.barrier, self.slots = threading.Barrier(count, timeout=120), list[Any]([None] * count)

    def all(self, rank: int, what: Any) -> list[Any]:
        self.slots[rank] = what
        self.barrier.wait()
        found = list(self.slots)
        self.barrier.wait()
        return found


class Thread:
    """A process of a cluster."""

    device = torch.device("cpu")

    def __init__(self, table: Table, rank: int, size: int) -> None:
        self.table, self.rank, self.size = table, rank, size
        self.sent = 0  # numbers that came from this one

    def _all(self, X: Tensor) -> list[Tensor]:
        self.sent += X.numel()
        return cast(list[Tensor], self.table.all(self.rank, X))

    def total(self, X: Tensor) -> Tensor:
        return torch.stack(self._all(X)).sum(0)

    def largest(self, X: Tensor) -> Tensor:
        return torch.stack(self._all(X)).amax(0)

    def side_by_side(self, X: Tensor) -> Tensor:
        return torch.cat(self._all(X), 1)

    def same(self, X: Tensor, rank: int = 0) -> Tensor:
        self.sent += X.numel() if self.rank == rank else 0
        return cast(Tensor, self.table.all(self.rank, X)[rank].clone())

    def to_first(self, X: Tensor) -> Tensor:
        found = self._all(X)
        return torch.cat(found) if self.rank == 0 else X

    def tell(self, what: Any) -> Any:
        return self.table.all(self.rank, what)[0]

    def each(self, what: Any) -> list[Any]:
        return self.table.all(self.rank, what)


def divided(thread: Thread, bank: MemoryBank) -> Company:
    """What one process holds of a bank."""
    M, P = len(bank), thread.size
    rows = [slice(M * rank // P, M * (rank + 1) // P) for rank in range(P)]
    own, tensors = rows[thread.rank], (bank.features, bank.values)
    features, values = (None if each is None else each[own] for each in tensors)
    part = replace(bank, patterns=bank.patterns[own], names=(), features=features, values=values)
    return Company.by_memories(thread, part, rows, BUDGET)  # type: ignore[arg-type]


def as_held(bank: MemoryBank, rank: int, size: int) -> MemoryBank:
    """A bank as one process has it: the rows of the others are wrong, so that whoever reads them is found out."""
    M = len(bank)
    foreign = torch.ones(M, dtype=torch.bool)
    foreign[M * rank // size : M * (rank + 1) // size] = False

    def spoilt(X: Tensor | None) -> Any:
        if X is None:
            return None
        wrong = torch.full_like(X, torch.nan) if X.is_floating_point() else ~X
        return torch.where(foreign[:, None], wrong, X)

    return replace(bank, patterns=spoilt(bank.patterns), features=spoilt(bank.features), values=spoilt(bank.values))


def in_company(size: int, bank: MemoryBank, work: Callable[[MemoryBank], ResultT]) -> tuple[ResultT, list[Thread]]:
    """Work with a bank of which each of some processes holds a part."""
    table, failed = Table(size), list[BaseException]()
    threads = [Thread(table, rank, size) for rank in range(size)]

    def serve(rank: int) -> None:
        try:
            divided(threads[rank], as_held(bank, rank, size)).serve()
        except BaseException as error:
            failed.append(error)
            table.barrier.abort()

    others = [threading.Thread(target=serve, args=(rank,)) for rank in range(1, size)]
    for other in others:
        other.start()
    try:
        held = as_held(bank, 0, size)
        company = divided(threads[0], held)
        found = work(company.whole(held))
        company.part()
    except threading.BrokenBarrierError:
        raise failed[0] from None
    except BaseException:
        table.barrier.abort()
        raise
    finally:
        for other in others:
            other.join()
    return found, threads
