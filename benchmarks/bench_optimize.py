"""Does a gradient step of optimize cost more with more memories, and how much memory does the whole take?

    python benchmarks/bench_optimize.py [--dimension 128] [--sizes 1000,10000,100000,1000000]

Each line is a process of its own: random patterns, one objective, one size. `step` is the median time between two
steps, in units of that of the smallest size; `peak` is the most memory that the process ever held, and `patterns` what
the patterns alone take.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ratios import Ratio, ratio

OBJECTIVES = ("denoise", "average", "spherical")
LEARNING = {"learning", "refining"}  # what the stages are called in which steps are taken


@dataclass(frozen=True)
class Course:
    """What learning took."""

    steps: list[float]  # seconds of each
    seconds: float
    peak: float  # megabytes

    @property
    def step(self) -> float:
        """The median."""
        return statistics.median(self.steps)

    @property
    def thirds(self) -> list[float]:
        """The median of each third, so that a step that looks over all pairs is no step by itself."""
        return [statistics.median(self.steps[start::3] or self.steps) for start in range(3)]


def one(objective: str, M: int, d: int, steps: int) -> None:
    """Learn once and print the seconds in all, the peak in megabytes, and the seconds of each step."""
    import torch

    from hopmem.bank import MemoryBank
    from hopmem.verbs.optimize import Task, learn

    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(M, d, generator=generator)
    bank = MemoryBank(patterns, tuple(map(str, range(M))), (d,))
    ticks: list[float] = []

    def watch(label: str, done: int, total: int, note: str = "") -> None:
        if label in LEARNING:
            ticks.append(time.perf_counter())

    began = time.perf_counter()
    learn(bank, Task(objective, ("occlude:0.5",) if objective == "denoise" else ("mixed",), steps=steps), watch=watch)
    gaps = [after - before for before, after in pairwise(ticks)] or [0.0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(time.perf_counter() - began, peak, *gaps)


def course(objective: str, M: int, d: int, steps: int) -> Course:
    """Learn in a process of its own."""
    command = [sys.executable, __file__, "--one", objective, str(M), "--dimension", str(d), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak, *gaps = map(float, done.stdout.split())
    return Course(gaps, seconds, peak)


def measure(*, quick: bool = False) -> Iterator[Ratio]:
    """A step of a large bank over one of a small bank, for each objective."""
    small, large = (1000, 2000) if quick else (2000, 50_000)
    for objective in OBJECTIVES:
        few, many = (course(objective, M, 128, 8 if quick else 24).thirds for M in (small, large))
        yield ratio(f"a step of optimize, {objective}, M = {large:,}, d = 128", f"M = {small:,}", (many, few))


def main() -> None:
    """Print the curve of every objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--one", nargs=2, metavar=("OBJECTIVE", "M"), help="one measurement, in this process")
    asked = parser.parse_args()
    if asked.one:
        one(asked.one[0], int(asked.one[1]), asked.dimension, asked.steps)
        return
    print("objective        M   ms/step  step  seconds  peak MB  patterns MB")
    for objective in asked.objectives.split(","):
        smallest = None
        for M in map(int, asked.sizes.split(",")):
            found = course(objective, M, asked.dimension, asked.steps)
            smallest = smallest or found.step
            held = M * asked.dimension * 4 / 1e6
            figures = f"{1e3 * found.step:9.1f} {found.step / smallest:5.2f} {found.seconds:8.1f}"
            print(f"{objective:9s} {M:8,d} {figures} {found.peak:8.0f} {held:12.0f}", flush=True)


if __name__ == "__main__":
    main()
