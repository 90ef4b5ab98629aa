"""torch.distributed: which processes there are, how what they have meets, and who speaks for all.

A group is what torchrun has started. Whoever was started alone never comes here. The engine is gloo for processors and
NCCL for GPUs; torchrun finds the others, and starts all again when one is lost.
"""

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from hopmem.errors import HopmemError, UsageError

ResultT = TypeVar("ResultT")
PATIENCE = 600.0  # seconds that a process is waited for
OFTEN = 8  # times in which the first process says that it lives, while it is waited for
POLLED = 0.05  # seconds between two looks for who has arrived
GRACE = 3.0  # seconds in which the store answers who speaks
LONG = timedelta(days=365)  # for what takes as long as it takes
BEGUN, DONE, SAID = "hopmem/begun", "hopmem/done", "hopmem/said"  # what is remembered of a run, and of an attempt


class LostError(HopmemError):
    """Another process is gone, or does not answer."""

    def __init__(self, patience: float) -> None:
        found = f"found that one is gone, or has hung for {patience:g} s"
        super().__init__(f"expected an answer of all processes, {found}")


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
        self._run, self.rank, self.size = found
        self.again = bool(self._wait(lambda: self._run.check([BEGUN])))  # torchrun has started this run again
        self.done = bool(self._wait(lambda: self._run.check([DONE])))  # and it had come to its end
        self.device = device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._store = self._wait(self._fresh)
        self._wait(
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                timeout=timedelta(seconds=patience),
                store=self._store,
                rank=self.rank,
                world_size=self.size,
            )
        )
        self._calls = self._wait(lambda: dist.new_group(backend="gloo", timeout=timedelta(seconds=patience)))
        self._turn, self._parted = threading.Lock(), threading.Event()
        if self.rank == 0:
            threading.Thread(target=self._live, daemon=True).start()

    def _fresh(self) -> Store:
        """A corner of the store where no earlier attempt has been.

        torchrun keeps one store for all attempts of a run. There, an attempt would find addresses of processes that are
        gone. Of those that arrive, the first one knows who is new: who waits for a word that nobody has said before.

        Returns:
            The corner, the same for all.

        Raises:
            LostError: a process does not come.
        """
        mine = uuid.uuid4().hex
        if self.rank > 0:
            self._run.set(f"hopmem/arrived/{self.rank}", mine)
            corner = PrefixStore(self._run.get(mine).decode(), self._run)
            corner.set(f"here/{self.rank}", "")
            return corner
        corner, coming = PrefixStore(mine, self._run), set(range(1, self.size))
        deadline = time.monotonic() + self._patience
        while coming:
            if time.monotonic() > deadline:
                raise LostError(self._patience)
            for rank in coming:
                if self._run.check([f"hopmem/arrived/{rank}"]):  # which may be that of an earlier attempt
                    self._run.set(self._run.get(f"hopmem/arrived/{rank}").decode(), mine)
            time.sleep(POLLED)
            coming = {rank for rank in coming if not corner.check([f"here/{rank}"])}
        return corner

    def begin(self) -> None:
        """Remember that nothing stood in the way of what this run writes: a later attempt finds its own there."""
        self._wait(lambda: self._run.set(BEGUN, ""))

    def end(self) -> None:
        """Remember that all is done: a process that is lost at its very end costs an attempt that does nothing."""
        self._wait(lambda: self._run.set(DONE, ""))

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

    def same(self, X: Tensor, rank: int = 0) -> Tensor:
        """Give all what one process has.

        Args:
            X: of one shape and type for all.
            rank: of the process.

        Returns:
            Its tensor.
        """
        X = X.clone(memory_format=torch.contiguous_format)
        self.sent += X.nbytes if self.rank == rank else 0
        self._wait(lambda: dist.broadcast(X, rank))
        return X

    def to_first(self, X: Tensor) -> Tensor:
        """Send rows to the first process.

        Args:
            X: [m, ...], of one width and type for all; m may differ.

        Returns:
            With the first process the rows of all, one process after another; with the others their own.
        """
        counts = self.each(len(X))
        if self.rank == 0:
            found = torch.empty(sum(counts), *X.shape[1:], dtype=X.dtype, device=X.device)
            rows = torch.split(found, counts)
            rows[0].copy_(X)
            for rank, part in enumerate(rows):
                if rank and part.nbytes:
                    self._wait(partial(dist.recv, _as_bytes(part), rank))
            return found
        if X.nbytes:
            self.sent += X.nbytes
            self._wait(lambda: dist.send(_as_bytes(X.clone(memory_format=torch.contiguous_format)), 0))
        return X

    def tell(self, what: Any) -> Any:
        """Give all a small thing that the first process has; who waits for it waits as long as that one lives.

        Returns:
            It.
        """
        if self.rank == 0:
            with self._my_turn():
                self._wait(lambda: self._call(1))
        else:
            while not self._wait(lambda: self._call(0)):
                pass
        found = [what]
        self._wait(lambda: dist.broadcast_object_list(found, 0))
        return found[0]

    def _call(self, something: int, patience: timedelta | None = None) -> bool:
        """Hear from the first process whether it has something to tell.

        They call in a group of their own: no call comes between what else they send.

        Returns:
            What it says: True, or that it lives.
        """
        said, how = torch.tensor([something], dtype=torch.uint8), dist.BroadcastOptions()
        how.rootRank, how.rootTensor = 0, 0
        how.timeout = patience or timedelta(seconds=self._patience)
        self._calls.broadcast([said], how).wait()
        return bool(said)

    def _live(self) -> None:
        """Say now and then that this process lives: it may read, write, or wait for who reads what it prints.

        Whoever is at work does not listen, and hears it afterwards.
        """
        with suppress(RuntimeError):  # one has gone: the work that needs it finds out
            while not self._parted.wait(self._patience / OFTEN):
                with self._turn:
                    if not self._parted.is_set():
                        self._call(0, LONG)

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Call when no other thread does.

        Yields:
            Nothing.

        Raises:
            LostError: who is called by another thread does not hear.
        """
        if not self._turn.acquire(timeout=self._patience):
            raise LostError(self._patience)
        try:
            yield
        finally:
            self._turn.release()

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
        if not self._speaks:
            said: list[int] = []  # nothing where the store has gone with its host; or it may never answer
            asking = threading.Thread(target=self._ask_who_spoke, args=(said,), daemon=True)
            asking.start()
            asking.join(GRACE)
            self._speaks = said[0] == 1 if said else self.rank == 0
        return self._speaks

    def _ask_who_spoke(self, said: list[int]) -> None:
        with suppress(RuntimeError):
            said.append(self._store.add(SAID, 1))

    def part(self) -> None:
        """Say no more that this process lives, and leave the others."""
        self._parted.set()
        dist.destroy_process_group()


def _as_bytes(X: Tensor) -> Tensor:
    """A tensor whose type the engine need not know.

    Returns:
        The same memory, uint8.
    """
    return X.view(-1).view(torch.uint8)


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
    cluster.part()


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
