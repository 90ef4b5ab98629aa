"""Does a gradient step of optimize cost more with more memories, and how much memory does the whole take?

    python benchmarks/optimize_scale.py [--dimension 128] [--sizes 1000,10000,100000,1000000]

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
from itertools import pairwise

OBJECTIVES = ("denoise", "average", "spherical")


def one(objective: str, M: int, d: int, steps: int) -> None:
    """Learn once and print the median seconds of a step, the seconds in all and the peak in bytes."""
    import torch

    from hopmem.bank import MemoryBank
    from hopmem.verbs.optimize import Task, learn

    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(M, d, generator=generator)
    bank = MemoryBank(patterns, tuple(map(str, range(M))), (d,))
    ticks: list[float] = []

    def watch(label: str, done: int, total: int, note: str = "") -> None:
        if label in {"learning", "refining"}:
            ticks.append(time.perf_counter())

    began = time.perf_counter()
    learn(bank, Task(objective, ("occlude:0.5",) if objective == "denoise" else ("mixed",), steps=steps), watch=watch)
    gaps = [after - before for before, after in pairwise(ticks)] or [0.0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(statistics.median(gaps), time.perf_counter() - began, peak)


def main() -> None:
    """Run every objective at every size, each in a process of its own."""
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
            command = [sys.executable, __file__, "--one", objective, str(M)]
            command += ["--dimension", str(asked.dimension), "--steps", str(asked.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            step, seconds, peak = map(float, done.stdout.split())
            smallest = smallest or step
            held = M * asked.dimension * 4
            figures = f"{1e3 * step:9.1f} {step / smallest:5.2f} {seconds:8.1f} {peak / 1e6:8.0f} {held / 1e6:12.0f}"
            print(f"{objective:9s} {M:8,d} {figures}", flush=True)


if __name__ == "__main__":
    main()
