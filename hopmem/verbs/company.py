"""One bank over several processes: the first one asks, all search in what they hold, and the first one answers.

Memories are split where the bank is larger than what a process may hold: each has some of the rows, and weighs them as
`model/meeting.py` says. Else queries are: each process has the whole bank, and answers some of the queries.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.model.gram import Progress
from hopmem.model.hopfield import Dynamics, Retrieval
from hopmem.model.meeting import Shard
from hopmem.verbs.search import on_cpu, one_after_another, search

if TYPE_CHECKING:  # who is alone loads nothing of it
    from hopmem.cluster import Cluster


@dataclass(frozen=True)
class Company:
    """What one process holds of a bank, among all processes."""

    cluster: "Cluster"
    bank: MemoryBank  # the rows that are held here
    shard: Shard | None  # which rows of how many; None: all, and queries are split
    budget: int  # bytes of working memory
    spread: float  # the largest length of what is read out over the smallest, and
    longest: float  # the largest length, with all processes

    @classmethod
    def of(cls, cluster: "Cluster", bank: MemoryBank, by_memories: bool, budget: int) -> "Company":
        """Divide a bank.

        Args:
            cluster: all processes.
            bank: the whole bank, mapped: only what is held here is read.
            by_memories: whether memories are split, or queries.
            budget: bytes of working memory.

        Returns:
            What this process holds.
        """
        if not by_memories:
            readout = bank.readout(cluster.device)
            return cls(cluster, bank, None, budget, readout.spread, readout.longest)
        M, P = len(bank), cluster.size
        starts = [M * rank // P for rank in range(P + 1)]
        rows = slice(starts[cluster.rank], starts[cluster.rank + 1])
        most = max(end - start for start, end in pairwise(starts))
        part = bank.piece(rows, lambda X: cluster.total(X.to(cluster.device)).to(X.device))
        return cls(cluster, part, Shard(cluster, rows.start, M, most), budget, *_lengths(cluster, part))

    def search(self, X: Tensor, known: Tensor | None, dynamics: Dynamics, progress: Progress | None) -> Retrieval:
        """Ask all processes; the first one does.

        Args:
            X: queries [B, d].
            known: which entries are known [B, d], if not all are.
            dynamics: how states move.
            progress: told how many queries are done.

        Returns:
            The answers.
        """
        self.cluster.tell((tuple(X.shape), known is not None, dynamics))
        return self._answer(X, known, dynamics, progress)

    def serve(self) -> None:
        """Take part in what the first process asks, until it asks no more."""
        while (asked := self.cluster.tell(None)) is not None:
            shape, partial, dynamics = asked
            known = torch.zeros(shape, dtype=torch.bool) if partial else None
            self._answer(torch.zeros(shape), known, dynamics, None)

    def part(self) -> None:
        """Ask no more."""
        self.cluster.tell(None)

    def _answer(self, X: Tensor, known: Tensor | None, dynamics: Dynamics, progress: Progress | None) -> Retrieval:
        """What all processes do with a question.

        Returns:
            The answers, with the first process.
        """
        device = self.cluster.device
        X = X.to(device)
        known = None if known is None else self.cluster.same(known.to(device).byte()).bool()
        memory, readout = self.bank.memory(device, self.budget), self.bank.readout(device)
        if self.shard is not None:  # states are made of the queries of the first process, and sent
            return search(X, known, memory, readout, dynamics, progress, self.shard)
        X, B, P = self.cluster.same(X), len(X), self.cluster.size
        mine = slice(B * self.cluster.rank // P, B * (self.cluster.rank + 1) // P)
        found = None
        if mine.start < mine.stop:
            some = None if known is None else known[mine]
            found = search(X[mine], some, memory, readout, dynamics, progress)
        parts = self.cluster.each(None if found is None else on_cpu(found))
        return one_after_another([part for part in parts if part is not None])


def _lengths(cluster: "Cluster", part: MemoryBank) -> tuple[float, float]:
    """How long the rows are that all processes read out.

    Returns:
        The largest length over the smallest, and the largest.
    """
    readout = part.readout(cluster.device)
    longest, spread = (readout.longest, readout.spread) if len(part) else (0.0, 1.0)
    ends = torch.tensor([longest, spread / longest if longest > 0 else 0.0], dtype=torch.float64)  # over the smallest
    longest, over_smallest = cluster.largest(ends.to(cluster.device)).tolist()
    return max(1.0, longest * over_smallest), longest
