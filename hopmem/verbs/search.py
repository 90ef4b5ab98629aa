"""Searches: queries and what is held of a bank in, answers out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.model.gram import Progress
from hopmem.model.hopfield import Dynamics, Retrieval, complete
from hopmem.model.hopfield import retrieve as settle
from hopmem.model.kernel import Features
from hopmem.model.meeting import Shard
from hopmem.model.rows import Patterns


class Holder(Protocol):
    """Who holds a bank, and searches in it: a process alone, or a company of several."""

    @property
    def spread(self) -> float:
        """The largest length of what is read out, over the smallest."""

    @property
    def longest(self) -> float:
        """The largest length of what is read out."""

    def search(self, X: Tensor, known: Tensor | None, dynamics: Dynamics, progress: Progress | None) -> Retrieval:
        """Answer queries [B, d], of which some entries may be unknown."""


@dataclass(frozen=True)
class Alone:
    """One process with the whole bank."""

    bank: MemoryBank
    device: torch.device
    budget: int  # bytes of working memory

    @property
    def spread(self) -> float:
        """The largest length of what is read out, over the smallest."""
        return self.bank.readout(self.device).spread

    @property
    def longest(self) -> float:
        """The largest length of what is read out."""
        return self.bank.readout(self.device).longest

    def search(self, X: Tensor, known: Tensor | None, dynamics: Dynamics, progress: Progress | None) -> Retrieval:
        """Answer queries.

        Args:
            X: queries [B, d].
            known: which entries are known [B, d], if not all are.
            dynamics: how states move.
            progress: told how many queries are done.

        Returns:
            The answers, on the device.
        """
        memory, known = self.bank.memory(self.device, self.budget), None if known is None else known.to(self.device)
        return search(X.to(self.device), known, memory, self.bank.readout(self.device), dynamics, progress)


def search(
    X: Tensor,
    known: Tensor | None,
    memory: Features,
    readout: Patterns,
    dynamics: Dynamics,
    progress: Progress | None,
    shard: Shard | None = None,
) -> Retrieval:
    """Whole queries and partial ones, each their own way.

    Args:
        X: queries [B, d].
        known: which entries are known [B, d], if not all are.
        memory: unit features of M memories.
        readout: M rows to read out.
        dynamics: how states move.
        progress: told how many queries are done.
        shard: where other processes hold more memories.

    Returns:
        The answers, in the order of the queries.
    """
    width = readout.dimension
    if known is None:
        return settle(X, memory, readout, width, dynamics, progress, shard)
    whole = known.all(1)
    if bool(whole.all()):
        return settle(X, memory, readout, width, dynamics, progress, shard)
    if not bool(whole.any()):
        return complete(X, known, memory, readout, width, dynamics, progress, shard)
    parts = [(whole, settle(X[whole], memory, readout, width, dynamics, _onward(progress, 0, len(X)), shard))]
    onward = _onward(progress, int(whole.sum()), len(X))
    parts.append((~whole, complete(X[~whole], known[~whole], memory, readout, width, dynamics, onward, shard)))
    order = torch.cat([rows.nonzero()[:, 0] for rows, _ in parts]).argsort()
    return one_after_another([part for _, part in parts], order)


def on_cpu(answers: Retrieval) -> Retrieval:
    """Answers in memory.

    Args:
        answers: on any device.

    Returns:
        The same on the CPU.
    """
    return Retrieval(*(getattr(answers, name).cpu() for name in Retrieval.__dataclass_fields__))


def one_after_another(parts: Sequence[Retrieval], order: Tensor | slice = slice(None)) -> Retrieval:
    """Answers of several searches.

    Args:
        parts: at least one.
        order: which of all come, and where.

    Returns:
        All in one.
    """
    names = Retrieval.__dataclass_fields__
    return Retrieval(*(torch.cat([getattr(part, name) for part in parts])[order] for name in names))


def _onward(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Count on where another part of the work has stopped.

    Returns:
        What the part reports to.
    """
    return None if progress is None else lambda done, _: progress(before + done, total)
