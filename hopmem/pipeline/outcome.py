"""What every verb hands to the report: a result, and what has to be said beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from hopmem.devices import DEFAULT_BUDGET

if TYPE_CHECKING:
    from torch import Tensor

    from hopmem.cluster import Cluster
    from hopmem.patterns import Skipped
    from hopmem.verbs.work import Watch

ResultT = TypeVar("ResultT")
SHOWN = 192, 288  # pixels that a picture is high and wide, at most
RUNTIME = 250 << 20  # bytes that Python and torch take before anything is read


@dataclass(frozen=True)
class Machine:
    """What the work runs on, and who watches it."""

    device: str = "auto"
    seed: int | None = None  # None: what the bank remembers
    budget: int = DEFAULT_BUDGET  # bytes of working memory for a block
    watch: "Watch | None" = None
    cluster: "Cluster | None" = None  # the processes that torchrun has started, of which this is one

    @property
    def serves(self) -> bool:
        """Whether this process takes part in what another one asks."""
        return self.cluster is not None and self.cluster.rank > 0

    @property
    def again(self) -> bool:
        """Whether this run had begun to write when torchrun started it again."""
        return self.cluster is not None and self.cluster.again

    def begin(self) -> None:
        """Remember that nothing stood in the way of what this run writes."""
        if self.cluster is not None:
            self.cluster.begin()


@dataclass(frozen=True)
class Picture:
    """One query beside its answer, for a contact sheet: uint8, and no larger than they are drawn (`SHOWN`)."""

    query: "Tensor"  # [H, W] or [H, W, C]
    known: "Tensor | None"  # bool [H, W] or [H, W, C]
    answer: "Tensor"  # as the query
    stored: "Tensor"  # the pattern of the largest weight
    name: str
    match: str | None
    confidence: float


@dataclass(frozen=True)
class Outcome(Generic[ResultT]):
    """A result, and what has to be said beside it."""

    result: ResultT
    device: str
    warnings: list[str] = field(default_factory=list)
    skipped: "list[Skipped]" = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    curve: Sequence[float] = ()  # what learning lowered, step by step
    cosines: Sequence[tuple[int, float]] = ()  # steps and the largest cosine then, where that was asked for
    interrupted: int = 0  # the exit code of work that a signal ended, and of which the best so far was taken
