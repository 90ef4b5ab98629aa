"""One bank over several processes: the first one asks, all work on what they hold, and the first one answers.

Memories are split where the bank is larger than what a process may hold: each has some of the rows, and weighs them as
`model/meeting.py` says. Else queries are: each process has the whole bank, and answers some of the queries.

A question is a function of a module and its arguments. The first process sends both, all call it, and meet in it by the
reductions of `divided.Others`. What the first process decides, it decides alone.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.divided import Divided, as_tensor
from hopmem.model.gram import Progress
from hopmem.model.hopfield import Dynamics, Retrieval
from hopmem.model.meeting import Shard
from hopmem.verbs.search import on_cpu, one_after_another, search

if TYPE_CHECKING:  # who is alone loads nothing of it
    from hopmem.cluster import Cluster

ResultT = TypeVar("ResultT")
PATTERNS, FEATURES, VALUES = "patterns", "features", "values"  # the rows of the bank
REMEMBERED, LARGEST = 16, 16 << 20  # tensors that were sent and need not be sent again, and bytes of them, at most


_Place = tuple[int, tuple[torch.Size, torch.dtype, bool] | None]  # the number of a tensor, and what comes, if it does


@dataclass(frozen=True)
class _Sent:
    """The tensors that were sent last: what is asked again and again goes over the wire once."""

    tensors: OrderedDict[int, tuple[Tensor, int]] = field(default_factory=OrderedDict)  # with their version, by number

    def place(self, X: Tensor) -> _Place:
        """Where the others find a tensor of the first process.

        Args:
            X: any.

        Returns:
            Its number, and what it is where it has to be sent.
        """
        for number, (known, version) in self.tensors.items():
            if known is X and version == X._version:
                return number, None
        number = max(self.tensors, default=-1) + 1
        self.tensors[number] = X, X._version
        return number, (X.shape, X.dtype, X.device.type != "cpu")

    def received(self, place: _Place, cluster: "Cluster") -> Tensor:
        """A tensor of the first process.

        Args:
            place: where it is.
            cluster: all processes.

        Returns:
            The tensor; with the first process itself.
        """
        number, form = place
        if form is not None:
            shape, dtype, on_device = form
            if cluster.rank:
                device = cluster.device if on_device else torch.device("cpu")
                self.tensors[number] = torch.empty(shape, dtype=dtype, device=device), 0
            X = self.tensors[number][0].detach().clone(memory_format=torch.contiguous_format)
            if X.nbytes:
                sent = cluster.same(X.view(-1).view(torch.uint8)).view(dtype).view(shape)
                if cluster.rank:
                    self.tensors[number] = sent, 0
        self.tensors.move_to_end(number)
        return self.tensors[number][0]

    def forget(self) -> None:
        """Let go of those that were not asked for lately."""
        total = sum(X.nbytes for X, _ in self.tensors.values())
        while len(self.tensors) > REMEMBERED or total > LARGEST:
            total -= self.tensors.popitem(last=False)[1][0].nbytes


@dataclass(frozen=True)
class Company:
    """What one process holds of a bank, among all processes."""

    cluster: "Cluster"
    bank: MemoryBank  # the rows that are held here
    shard: Shard | None  # which rows of how many; None: all, and queries are split
    budget: int  # bytes of working memory
    spread: float  # the largest length of what is read out over the smallest, and
    longest: float  # the largest length, with all processes
    held: dict[str, tuple[Tensor, Shard]] = field(default_factory=dict)  # rows that are divided, by name
    sent: _Sent = field(default_factory=_Sent)
    names: Iterator[int] = field(default_factory=count)  # of rows that are kept
    forgotten: list[str] = field(default_factory=list)  # names that all can let go of
    mine: list[Tensor] = field(default_factory=list)  # of a question, what is not sent

    @classmethod
    def by_queries(cls, cluster: "Cluster", bank: MemoryBank, budget: int) -> "Company":
        """Divide queries.

        Args:
            cluster: all processes.
            bank: the whole bank.
            budget: bytes of working memory.

        Returns:
            What this process holds.
        """
        readout = bank.readout(cluster.device)
        return cls(cluster, bank, None, budget, readout.spread, readout.longest)

    @classmethod
    def by_memories(cls, cluster: "Cluster", part: MemoryBank, rows: Sequence[slice], budget: int) -> "Company":
        """Divide a bank.

        Args:
            cluster: all processes.
            part: the rows that this one holds.
            rows: which rows each process holds.
            budget: bytes of working memory.

        Returns:
            What this process holds.
        """
        M, most = rows[-1].stop, max(each.stop - each.start for each in rows)
        if part.phi.b is not None:
            own = part.rows()
            total = own.mean() * len(own) if len(own) else torch.zeros(part.dimension, dtype=torch.float64)
            part = part.near(cluster.total(total.to(cluster.device)).to(total.device) / M)
        shard, tensors = (
            Shard(cluster, rows[cluster.rank].start, M, most),
            (part.patterns, part.features, part.values),
        )
        named = zip((PATTERNS, FEATURES, VALUES), tensors, strict=True)
        held = {name: (tensor, shard) for name, tensor in named if tensor is not None}
        return cls(cluster, part, shard, budget, *_lengths(cluster, part), held)

    def whole(self, bank: MemoryBank) -> MemoryBank:
        """The bank as the first process sees it: its rows lie with all.

        Args:
            bank: the bank that was divided, or its outline.

        Returns:
            The same bank, of which no row is read here that another process holds; all of it where queries are divided.
        """
        if self.shard is None:
            return self.bank
        tensors = {PATTERNS: bank.patterns, FEATURES: bank.features, VALUES: bank.values}
        rows: dict[str, Any] = {
            name: None if X is None else as_tensor(Divided(self, name, X.shape, X.dtype)) for name, X in tensors.items()
        }
        return replace(bank, **rows)

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
        device = self.cluster.device
        X, known = X.to(device), None if known is None else known.to(device)
        # Where memories are split, the others get the states that are made of the queries.
        return self._ask(_answer, X if self.shard is None else _Mine(X), known, dynamics, progress=progress)

    def on_parts(self, rows: Divided, function: Callable[..., ResultT], *args: Any, progress: Any = None) -> ResultT:
        """Ask all processes about the rows that each holds; the first one does.

        Args:
            rows: whose division `function` is told.
            function: of a module; called as `function(shard, *args)`.
            *args: what can be pickled; rows that are divided become those that a process holds.
            progress: told how far it is, as `shard.progress`.

        Returns:
            What it returns here.
        """
        found: ResultT = self._ask(_on_part, rows.name, function, args, progress=progress)
        return found

    def kept(self, rows: Divided, function: Callable[..., Tensor], *args: Any, picked: bool) -> Divided:
        """Have all processes make rows, which stay where they are.

        Args:
            rows: whose division `function` is told.
            function: of a module; called as `function(shard, *args)`, it gives rows [m, ...].
            *args: as of `on_parts`.
            picked: whether the new rows are some of the old ones; else each is made of one.

        Returns:
            The new rows.
        """
        name = f"rows {next(self.names)}"
        return Divided(self, name, *self._ask(_keep, name, rows.name, function, args, picked))

    def forget(self, name: str) -> None:
        """Let go of rows that are no part of the bank, when all are next asked."""
        if name not in {PATTERNS, FEATURES, VALUES}:
            self.forgotten.append(name)

    def serve(self) -> None:
        """Take part in what the first process asks, until it asks no more."""
        while (asked := self.cluster.tell(None)) is not None:
            packed, places, forgotten = asked
            self._take_part(packed, places, forgotten, None)

    def part(self) -> None:
        """Ask no more."""
        self.cluster.tell(None)

    def _ask(self, function: Callable[..., ResultT], *args: Any, progress: Any = None) -> ResultT:
        """Ask all processes.

        Args:
            function: of this module; called as `function(company, *args, progress)`.
            *args: what can be pickled.
            progress: of the first process.

        Returns:
            What it returns here.
        """
        packed = io.BytesIO()
        packer = _Packer(packed)
        packer.dump((function, args))
        self.mine[:] = packer.mine
        places = [self.sent.place(X) for X in packer.tensors]
        forgotten = list(self.forgotten)
        del self.forgotten[: len(forgotten)]
        self.cluster.tell((packed.getvalue(), places, forgotten))
        found: ResultT = self._take_part(packed.getvalue(), places, forgotten, progress)
        return found

    def _take_part(self, packed: bytes, places: list[_Place], forgotten: list[str], progress: Any) -> Any:
        """What all processes do with a question.

        Returns:
            What its function returns here.
        """
        for name in forgotten:
            self.held.pop(name, None)
        tensors = [self.sent.received(place, self.cluster) for place in places]
        self.sent.forget()
        function, args = _Unpacker(io.BytesIO(packed), self, tensors).load()
        return function(self, *args, progress)


def _answer(
    company: Company, X: Tensor, known: Tensor | None, dynamics: Dynamics, progress: Progress | None
) -> Retrieval:
    """Answer queries that all processes have.

    Returns:
        The answers, with the first process.
    """
    cluster, device = company.cluster, company.cluster.device
    memory, readout = company.bank.memory(device, company.budget), company.bank.readout(device)
    if company.shard is not None:
        return search(X, known, memory, readout, dynamics, progress, company.shard)
    B, P = len(X), cluster.size
    mine = slice(B * cluster.rank // P, B * (cluster.rank + 1) // P)
    found = None
    if mine.start < mine.stop:
        some = None if known is None else known[mine]
        found = search(X[mine], some, memory, readout, dynamics, progress)
    parts = cluster.each(None if found is None else on_cpu(found))
    return one_after_another([part for part in parts if part is not None])


def _on_part(
    company: Company, name: str, function: Callable[..., ResultT], args: tuple[Any, ...], progress: Progress | None
) -> ResultT:
    """Run a function on the rows that are held here.

    Returns:
        What it returns.
    """
    return function(replace(company.held[name][1], progress=progress), *args)


def _keep(
    company: Company,
    name: str,
    of: str,
    function: Callable[..., Tensor],
    args: tuple[Any, ...],
    picked: bool,
    _progress: Progress | None,
) -> tuple[torch.Size, torch.dtype]:
    """Make rows, and keep them under a name.

    Returns:
        The shape of those of all, and their type.
    """
    shard, cluster = company.held[of][1], company.cluster
    rows = function(shard, *args)
    if picked:
        counts = cluster.each(len(rows))
        shard = Shard(cluster, sum(counts[: cluster.rank]), sum(counts), max(counts))
    company.held[name] = rows, shard
    return torch.Size([shard.memories, *rows.shape[1:]]), rows.dtype


@dataclass(frozen=True)
class _Mine:
    """A tensor of the first process that the others need the shape of alone."""

    X: Tensor


class _Packer(pickle.Pickler):
    """A question as bytes, but for its tensors, which follow, and the rows that each process has its own of."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []
        self.mine: list[Tensor] = []

    def persistent_id(self, item: Any) -> Any:
        """What stands for an object.

        Returns:
            The name of rows, the place of a tensor, its shape and type where it is not sent, an empty tuple for a GPU;
            None of what stands for itself.
        """
        if isinstance(item, _Mine):
            self.mine.append(item.X)
            return item.X.shape, item.X.dtype
        if isinstance(item, Divided):
            return item.name
        if isinstance(item, Tensor):
            self.tensors.append(item)
            return len(self.tensors) - 1
        return () if isinstance(item, torch.device) and item.type != "cpu" else None


class _Unpacker(pickle.Unpickler):
    """A question as a process answers it."""

    def __init__(self, file: io.BytesIO, company: Company, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.company, self.tensors = company, tensors

    def persistent_load(self, key: Any) -> Any:
        """What that stands for with this process.

        Returns:
            The object.
        """
        if isinstance(key, str):
            return self.company.held[key][0]
        if isinstance(key, tuple) and key:
            shape, dtype = key
            own, device = self.company.mine, self.company.cluster.device
            return own.pop(0) if own else torch.zeros(shape, dtype=dtype, device=device)
        return self.tensors[key] if isinstance(key, int) else self.company.cluster.device


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
