"""torch.distributed: which processes there are, how what they have meets, and who speaks for all.

A group is what torchrun has started. Whoever was started alone never comes here. The engine is gloo for processors and
NCCL for GPUs; torchrun finds the others, and starts all again when one is lost.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from hopmem.errors import HopmemError, UsageError

ResultT = TypeVar("ResultT")
PATIENCE = 600.0  # seconds that a process is waited for


class LostError(HopmemError):
    """Another process is gone, or does not answer."""

    def __init__(self, patience: float) -> None:
        super().__init__(f"expected an answer of all processes within {patience:g} s, found that one is gone or hangs")


class Cluster:
    """All processes of a run, of which this is one. All call the same methods in the same order."""

    def __init__(self, device: torch.device, patience: float) -> None:
        """Meet the others.

        Args:
            device: what this process works on.
            patience: seconds that a process is waited for.
        """
        self._patience, self.sent = patience, 0  # bytes of the tensors that this process has given
        self._speaks = False
        found = self._wait(lambda: next(rendezvous("env://", timeout=timedelta(seconds=patience))))
        self._store, self.rank, self.size = found
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._wait(
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                timeout=timedelta(seconds=patience),
                store=self._store,
                rank=self.rank,
                world_size=self.size,
            )
        )

    def total(self, X: Tensor) -> Tensor:
        """Add up.

        Returns:
            The sum of the tensors of all processes, the same for all to the bit.
        """
        return self._reduced(X, dist.ReduceOp.SUM)

    def largest(self, X: Tensor) -> Tensor:
        """Compare.

        Returns:
            The largest of each entry.
        """
        return self._reduced(X, dist.ReduceOp.MAX)

    def side_by_side(self, X: Tensor) -> Tensor:
        """Put columns side by side.

        Args:
            X: [b, k], of one shape for all.

        Returns:
            [b, P·k] in the order of the processes.
        """
        X = X.contiguous()
        parts = [torch.empty_like(X) for _ in range(self.size)]
        self.sent += X.nbytes
        self._wait(lambda: dist.all_gather(parts, X))
        return torch.cat(parts, 1)

    def same(self, X: Tensor) -> Tensor:
        """Give all what the first process has.

        Args:
            X: of one shape and type for all.

        Returns:
            Its tensor.
        """
        X = X.clone(memory_format=torch.contiguous_format)
        self.sent += X.nbytes if self.rank == 0 else 0
        self._wait(lambda: dist.broadcast(X, 0))
        return X

    def tell(self, what: Any) -> Any:
        """Give all a small thing that the first process has.

        Returns:
            It.
        """
        found = [what]
        self._wait(lambda: dist.broadcast_object_list(found, 0))
        return found[0]

    def each(self, what: Any) -> list[Any]:
        """Give all the small thing that each process has.

        Returns:
            Those of all, in their order.
        """
        found: list[Any] = [None] * self.size
        self._wait(lambda: dist.all_gather_object(found, what))
        return found

    def _reduced(self, X: Tensor, how: Any) -> Tensor:
        X = X.clone(memory_format=torch.contiguous_format)
        self.sent += X.nbytes
        self._wait(lambda: dist.all_reduce(X, how))
        return X

    def _wait(self, work: Callable[[], ResultT]) -> ResultT:
        """Do what needs all processes.

        Returns:
            What the work returns.

        Raises:
            LostError: one of them is gone, or hangs.
            RuntimeError: no memory.
        """
        try:
            return work()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error):
                raise
            raise LostError(self._patience) from error

    def first_to_speak(self) -> bool:
        """Whether no other process has said yet what went wrong.

        Returns:
            True for one of them.
        """
        try:
            self._speaks = self._speaks or self._store.add("hopmem/said", 1) == 1
        except RuntimeError:  # the store has gone with the process that held it
            self._speaks = self.rank == 0
        return self._speaks


_joined: Cluster | None = None


@contextmanager
def joined(device: torch.device) -> Iterator[Cluster]:
    """Meet the other processes that torchrun has started, and part again.

    Args:
        device: what this process works on.

    Yields:
        All of them.
    """
    global _joined  # noqa: PLW0603 # a process joins once, and says so when it fails
    cluster = _joined = Cluster(device, _patience())
    if cluster.rank:  # what has to be tidied up, the first process tidies up
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield cluster
    _joined = None  # not after an error: who speaks of it is yet to be found out
    dist.destroy_process_group()


def met() -> Cluster | None:
    """The processes that this one has met.

    Returns:
        None before it has.
    """
    return _joined


def _patience() -> float:
    """How long processes wait for one another.

    Returns:
        Seconds.

    Raises:
        UsageError: HOPMEM_PATIENCE is no such number.
    """
    text = os.environ.get("HOPMEM_PATIENCE", str(PATIENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(f"HOPMEM_PATIENCE: expected seconds, found {text[:40]!r}")
    return seconds
