"""Long work that can be stopped, by Ctrl-C or SIGTERM, and gone on with: a file remembers where it stood."""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopmem.bank import MemoryBank, file
from hopmem.divided import Division, everywhere
from hopmem.errors import HopmemError, MissingInputError, UsageError
from hopmem.model.rows import small_blocks
from hopmem.model.separation import Keep, State
from hopmem.verbs.optimize import Task

FORMAT = "hopmem.checkpoint/1"
SUFFIX = ".checkpoint"
EVERY, SHARE = 10.0, 20.0  # seconds between two of them, at least, and times as long as one takes


@dataclass(frozen=True)
class Checkpoint:
    """A run, and where it stands."""

    path: Path
    task: Task
    seed: int
    data: str  # a digest of what is learned from
    state: State | None = None  # None at the beginning

    def is_there(self) -> bool:
        """Whether this very run was interrupted: the same patterns, options and seed.

        Returns:
            False of another one, or of none.
        """
        try:
            _, metadata = file.read(self.path, FORMAT)
            same = json.loads(metadata["task"]) == _plain(self.task) and metadata["data"] == self.data
            return same and metadata["seed"] == str(self.seed)
        except (HopmemError, KeyError, ValueError):
            return False

    def resumed(self, given: Collection[str], asked_seed: int | None) -> "Checkpoint":
        """The interrupted run whose checkpoint lies there.

        Args:
            given: the options of the task that were asked for; the others are those of that run.
            asked_seed: the seed that was asked for, if any.

        Returns:
            That run.

        Raises:
            MissingInputError: no checkpoint.
            UsageError: other patterns, or another option than that run had.
        """
        if not self.path.exists():
            raise MissingInputError(self.path, "the checkpoint of an interrupted optimize, for --resume")
        tensors, metadata = file.read(self.path, FORMAT)
        kept = json.loads(metadata["task"])
        if metadata["data"] != self.data:
            raise UsageError(f"{self.path}: expected the patterns (and pairs) of the interrupted run, found others")
        for name, asked in _plain(self.task).items():
            if name in given and name != "force" and asked != kept[name]:
                raise UsageError(f"--resume: expected {name} {kept[name]} as in the interrupted run, found {asked}")
        seed = int(metadata["seed"])
        if asked_seed not in {None, seed}:
            raise UsageError(f"--resume: expected seed {seed} as in the interrupted run, found {asked_seed}")
        task = Task(**kept | {"noise": tuple(kept["noise"]), "force": self.task.force or kept["force"]})
        state = {name: tensor.clone() for name, tensor in tensors.items() if name != "begun"}
        return replace(self, task=task, seed=seed, state=state or None)

    def keeping(self) -> Keep:
        """Write down now and then where the run stands, for one that takes its place when it is killed.

        Returns:
            What is told so between two steps.
        """
        due = time.monotonic() + EVERY

        def keep(state: Callable[[], State]) -> None:
            nonlocal due
            began = time.monotonic()
            if began >= due:
                self.left(state(), finished=False)
                due = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - began))

        return keep

    def left(self, state: State, *, finished: bool) -> None:
        """Remember where the run stands; nothing is left of a finished one.

        Args:
            state: where it stands.
            finished: whether it has come to its end.
        """
        if finished:
            self.path.unlink(missing_ok=True)
            return
        metadata = {"task": json.dumps(_plain(self.task)), "seed": str(self.seed), "data": self.data}
        apart = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}  # no memory in common
        file.write(self.path, apart | {"begun": torch.ones(1)}, metadata, force=True, form=FORMAT)


def checkpoint_of(
    bank: Path, memory: MemoryBank, task: Task, pairs: tuple[Tensor, Tensor] | None, seed: int
) -> Checkpoint:
    """The checkpoint of a run that begins.

    Args:
        bank: where the bank will be written; the checkpoint lies beside it.
        memory: the bank.
        task: what is to be learned.
        pairs: what it is learned from, beside the patterns.
        seed: of its draws.

    Returns:
        The checkpoint, not yet written.
    """
    digest = hashlib.blake2b(digest_size=16)
    for rows in (memory.patterns, *(pairs or ())):
        digest.update(str(list(rows.shape)).encode())
        digest.update(json.dumps(everywhere(rows, _digest, rows).tolist()).encode())
    return Checkpoint(bank.with_name(bank.name + SUFFIX), task, seed, digest.hexdigest())


def _digest(part: Division, rows: Tensor) -> Tensor:
    """What tells rows from others: the sum of a digest of each and its number, whoever holds them.

    Returns:
        Four numbers, int64.
    """
    total, start = 0, part.start
    for some in small_blocks(len(rows), rows.shape[1:].numel()):
        for raw in rows[some].contiguous().view(len(rows[some]), -1).view(torch.uint8).numpy():
            total += int.from_bytes(hashlib.blake2b(raw, digest_size=16, salt=start.to_bytes(8, "big")).digest(), "big")
            start += 1
    words = [total % (1 << 128) >> 32 * place & 0xFFFFFFFF for place in range(4)]
    return part.others.total(torch.tensor(words))


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Let the first Ctrl-C or SIGTERM ask long work to stop, and only the second break it off.

    Yields:
        The exit code of work that was asked to stop; 0 while it was not.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # signals are the main thread's
        return

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.signal(each, ask) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: 128 + asked[0] if asked else 0
    finally:
        restore()


def _plain(task: Task) -> dict[str, Any]:
    """A task as JSON holds it; pairs are known by their digest.

    Returns:
        Its options by name.
    """
    kept = {field.name for field in fields(Task)} - {"pairs"}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(task).items() if name in kept
    }
