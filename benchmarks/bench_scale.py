"""What do several processes cost beside one, and what do the constants of the cost model come to?

    python benchmarks/bench_scale.py [--memories M] [--entries D] [--queries B] [--runs N] [--json FILE]

Processes that are up answer the same queries in turn: two of one thread beside one of two threads (the same processors:
what is above 1 is what dividing costs), beside one of one thread (strong scaling), and beside one of one thread with
half the memories (weak scaling). Then whole commands, with all that starts and ends them. What is sent is counted by
the processes, and by the kernel at the loopback interface, where others may be heard, too. `--json` keeps it all for
cost_model.py. In a network of its own nobody else is heard:

    unshare -rn sh -c 'ip link set lo up; python benchmarks/bench_scale.py --json benchmarks/scale.json'
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import numpy as np
import torch
from ratios import Ratio, paired, ratio
from run import processor
from torch.nn.functional import normalize

import hopmem

ALPHAS, BETA = (1.0, 1.5), 100.0
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
BAR = 1.15  # what two processes of one thread may take over one of two
FEW = 16  # queries that pass over a bank as one block
LARGE = 8 << 20  # bytes that are sent to see how fast
TIMES = 50  # messages that are timed together


class Group:
    """Processes that hold a bank and answer its queries when they are asked."""

    def __init__(self, bank: Path, queries: Path, processes: int, threads: int) -> None:
        """Start them."""
        launch = [*TORCHRUN, f"--nproc-per-node={processes}"] if processes > 1 else []
        words = [sys.executable, *launch, __file__, "--serve", str(bank), str(queries)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, env=environment, text=True)

    def hear(self) -> dict:
        """What they say."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process that holds a bank has ended")
        return json.loads(line)

    def ask(self, **question: float) -> dict:
        """Let them answer, and say what it took."""
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def __enter__(self) -> "Group":
        """Have them."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let them go."""
        self.process.stdin.close()
        self.process.wait()


def serve(path: str, queries: str) -> None:
    """Answer what comes on standard input, as one of a group or alone."""
    from hopmem.model import meeting

    bank, X = hopmem.MemoryBank.load(path), np.load(queries)
    counts = counted(meeting._TermsOfAll)

    def answer(company: object) -> None:
        print("{}", flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            counts.update(sums=0, root=0)
            X_asked, sent, heard = X[: int(asked.pop("count", len(X)))], given(company), loopback()
            asked["steps"] = int(asked.get("steps", 1))
            started = time.perf_counter()
            hopmem.retrieve(bank, X_asked, beta=BETA, company=company, **asked)
            took = time.perf_counter() - started
            states = len(X_asked) * asked["steps"]
            said = {"seconds": took, "sums": counts["sums"] / states, "roots": counts["root"] / states}
            print(json.dumps(said | {"given": given(company) - sent, "wire": loopback() - heard}), flush=True)

    if "RANK" not in os.environ:
        answer(None)
        return
    from hopmem.bank.sharded import divided
    from hopmem.cluster import joined
    from hopmem.devices import DEFAULT_BUDGET
    from hopmem.verbs.company import Company

    with joined(torch.device("cpu")) as cluster:
        outline, rows = hopmem.MemoryBank.outline(path), divided(path, len(bank), cluster.size)
        company = Company.by_memories(cluster, outline.part(path, rows[cluster.rank]), rows, DEFAULT_BUDGET)
        if cluster.rank:
            company.serve()
        else:
            answer(company)
            company.part()


def counted(terms: type) -> dict[str, int]:
    """For how many states sums are made for a threshold, and one is sought."""
    counts = {"sums": 0, "root": 0}

    def spy(name: str) -> None:
        of_all = getattr(terms, name)

        def spied(these: object, *rest: object, **options: object) -> object:
            counts[name] += len(these.below)
            return of_all(these, *rest, **options)

        setattr(terms, name, spied)

    for name in counts:
        spy(name)
    return counts


def given(company: object) -> int:
    """Bytes that this process has handed over."""
    return 0 if company is None else company.cluster.sent


def loopback() -> int:
    """Bytes that went through the loopback interface, by the kernel's count."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    return 0


def exchange() -> None:
    """As one of two: the time that a small and a large sum take."""
    from hopmem.cluster import joined

    with joined(torch.device("cpu")) as cluster:
        took = {}
        for name, X in (("small", torch.zeros(8)), ("large", torch.zeros(LARGE, dtype=torch.uint8))):
            each = []
            for _ in range(5):
                started = time.perf_counter()
                for _ in range(TIMES if name == "small" else 1):
                    cluster.total(X)
                each.append((time.perf_counter() - started) / (TIMES if name == "small" else 1))
            took[name] = statistics.median(each)
        if cluster.rank == 0:
            print(json.dumps(took))


def make(folder: Path, M: int, d: int, B: int) -> tuple[Path, Path, Path]:
    """A bank of unit patterns, one of every second of them, and noisy queries of these."""
    draws = torch.Generator().manual_seed(0)
    Z = normalize(torch.randn(M, d, generator=draws), dim=1)
    asked = 2 * torch.randint(M // 2, (B,), generator=draws)
    Y = normalize(Z[asked] + torch.randn(B, d, generator=draws) / d**0.5, dim=1)
    whole, half, queries = folder / "whole.safetensors", folder / "half.safetensors", folder / "queries.npy"
    hopmem.MemoryBank.from_patterns(Z).save(whole)
    hopmem.MemoryBank.from_patterns(Z[::2]).save(half)
    np.save(queries, Y.numpy())
    return whole, half, queries


def searches(groups: dict[str, Group], runs: int) -> Iterator[Ratio]:
    """Searches of processes that are up."""
    two, peers = groups["two"], {
        "1 process of 2 threads": (groups["threads"], BAR),
        "1 process of 1 thread": (groups["one"], None),
        "1 process of 1 thread, half the memories": (groups["half"], None),
    }  # fmt: skip
    for alpha in ALPHAS:
        for peer, (group, bar) in peers.items():
            times = paired(lambda a=alpha: two.ask(alpha=a), lambda a=alpha, g=group: g.ask(alpha=a), runs)
            yield ratio(f"2 processes of 1 thread, α = {alpha:g}", peer, times, bar)


def commands(bank: Path, queries: Path, runs: int) -> Iterator[Ratio]:
    """Whole commands."""
    for alpha in ALPHAS:
        words = ["-m", "hopmem", "retrieve", str(bank), str(queries), "-q", "--alpha", str(alpha), "--beta", str(BETA)]
        times = paired(
            lambda w=words: call(1, *TORCHRUN, "--nproc-per-node=2", *w, "--split", "memories"),
            lambda w=words: call(2, *w),
            runs,
        )
        yield ratio(f"the whole command, α = {alpha:g}", "1 process of 2 threads", times)


def call(threads: int, *words: str) -> str:
    """Run Python to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *words]
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout


def timed(threads: int, *words: str) -> float:
    """Seconds of the quicker of two runs."""
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        call(threads, *words)
        taken.append(time.perf_counter() - started)
    return min(taken)


def constants(groups: dict[str, Group], bank: Path, M: int, d: int) -> dict[str, float]:
    """What the cost model is made of."""
    one = groups["one"]
    few, many = (statistics.median(one.ask(alpha=1.5, count=b)["seconds"] for _ in range(3)) for b in (FEW, 8 * FEW))
    product = (many - few) / (7 * FEW * M * d)
    start = timed(1, "-c", "import torch, hopmem.verbs")
    launch = timed(1, *TORCHRUN, "--nproc-per-node=2", "--no-python", "true")
    took = json.loads(call(1, *TORCHRUN, "--nproc-per-node=2", __file__, "--exchange"))
    return {
        "start": start,
        "launch": launch,
        "name": opened(bank) / M,
        "read": read(bank),
        "digest": digest(),
        "entry": max(0.0, few / (M * d) - FEW * product),
        "product": product,
        "hop": took["small"] / 2,  # of two processes each sums up one half, and sends it
        "byte": took["large"] / LARGE,
    }


def opened(bank: Path) -> float:
    """Seconds to open a bank."""
    started = time.perf_counter()
    hopmem.MemoryBank.load(bank)
    return time.perf_counter() - started


def digest() -> float:
    """Seconds to compare a byte with its checksum."""
    data = bytes(1 << 26)
    return min(timeit.repeat(lambda: hashlib.sha256(data), number=1, repeat=3)) / len(data)


def read(bank: Path) -> float:
    """Seconds to read a byte of a file that the system has forgotten."""
    with bank.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        while file.read(1 << 22):
            pass
        return (time.perf_counter() - started) / file.tell()


def traffic(groups: dict[str, Group], M: int, d: int, B: int) -> Iterator[dict[str, float]]:
    """Bytes of one search."""
    for held, memories in ((groups["two"], M), (groups["two-half"], M // 2)):
        for alpha, steps in ((1.0, 1), (1.5, 1), (2.0, 1)):
            found = held.ask(alpha=alpha, steps=steps)
            plain = {"memories": memories, "entries": d, "queries": B, "alpha": alpha, "steps": steps}
            yield plain | {name: found[name] for name in ("sums", "roots", "given", "wire")}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=128)
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=4, help="of each search; whole commands run half as often")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep what was measured")
    asked = parser.parse_args()
    M, d, B = asked.memories, asked.entries, asked.queries
    found: list[Ratio] = []
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        whole, half, queries = make(Path(place), M, d, B)
        groups = {
            name: stack.enter_context(Group(bank, queries, processes, threads))
            for name, bank, processes, threads in (
                ("two", whole, 2, 1), ("threads", whole, 1, 2), ("one", whole, 1, 1), ("half", half, 1, 1),
                ("two-half", half, 2, 1),
            )
        }  # fmt: skip
        for group in groups.values():  # they start together
            group.hear()
        found += searches(groups, asked.runs)
        found += commands(whole, queries, max(1, asked.runs // 2))
        machine = {"processor": processor(), "torch": torch.__version__, "date": date.today().isoformat()}
        kept = {
            "machine": machine | {"processors": os.cpu_count()},
            "size": {"memories": M, "entries": d, "queries": B, "beta": BETA},
            "constants": constants(groups, whole, M, d),
            "traffic": list(traffic(groups, M, d, B)),
            "ratios": [each.plain() for each in found],
        }
    print(json.dumps(kept["constants"] | {"traffic": kept["traffic"]}, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    elif sys.argv[1:2] == ["--exchange"]:
        exchange()
    else:
        main()
