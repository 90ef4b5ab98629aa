"""A line of a benchmark: what hopmem takes over what a peer takes, measured in turn in one process."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """What was measured of one case."""

    case: str
    peer: str
    ratio: float  # median
    low: float
    high: float
    bar: float | None = None  # what it shall not exceed
    amount: float | None = None  # of hopmem: the median
    unit: str = "s"
    error: float | None = None  # of the answers, relative to float64

    @property
    def line(self) -> str:
        """For a person who waits."""
        bar = "" if self.bar is None else f" (bar {self.bar:g})"
        error = "" if self.error is None else f"  error {self.error:.0e}"
        spread = f"[{self.low:.2f}, {self.high:.2f}]"
        return f"{self.case:52} / {self.peer:34} {self.ratio:6.2f} {spread}{bar}  {self.amount:.3g} {self.unit}{error}"

    def plain(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


def paired(ours: Work, peer: Work, runs: int, between: Work | None = None) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn after a first time that does not count.

    Args:
        ours: what is measured.
        peer: what it is measured against.
        runs: how often.
        between: what is done before each, unmeasured.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for work, taken in zip((ours, peer), times, strict=True):
            if between:
                between()
            start = time.perf_counter()
            work()
            if run:
                taken.append(time.perf_counter() - start)
    return times


def ratio(
    case: str,
    peer: str,
    times: tuple[list[float], list[float]],
    bar: float | None = None,
    error: float | None = None,
    unit: str = "s",
) -> Ratio:
    """The line of a case, printed as soon as it is known."""
    ratios = sorted(ours / theirs for ours, theirs in zip(*times, strict=True))
    amount = statistics.median(times[0])
    found = Ratio(case, peer, statistics.median(ratios), ratios[0], ratios[-1], bar, amount, unit, error)
    print(found.line, flush=True)
    return found
