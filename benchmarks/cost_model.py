"""What a search over several processes costs: a model, from constants that bench_scale.py has measured.

    python benchmarks/cost_model.py [--constants FILE] [--write]

It prints the tables of docs/scale.md; `--write` puts them there. It is arithmetic alone and loads nothing of hopmem.
"""

import argparse
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CONSTANTS, PAGE = HERE / "scale.json", HERE.parent / "docs" / "scale.md"
GIB = 1 << 30
FLOAT = 4  # bytes of an entry of a bank
BUDGET, SHARE_OF_LIMIT, OWN = 256 << 20, 4, 48 << 20  # bytes of working memory without a limit, or with one its part
RAM = 64 * GIB  # of a host, assumed
RUNTIME = 0.35 * GIB  # what a process takes with torch, before any bank
ETHERNET, HOP, DISK = 1.25e9, 50e-6, 1e9  # assumed: bytes a second (10 Gbit/s), seconds a message, bytes a second
SUMS = 5  # sums that a threshold takes, about
PREDICTED = (10**9, 768, 1024)  # memories, entries and queries


@dataclass(frozen=True)
class Traffic:
    """Bytes that each process hands over to collectives, for one block of states and all its steps."""

    reduced: float  # to all-reduce
    gathered: float  # to all-gather
    told: float  # that the first process tells all

    def __add__(self, other: "Traffic") -> "Traffic":
        """Both."""
        return Traffic(self.reduced + other.reduced, self.gathered + other.gathered, self.told + other.told)

    @property
    def given(self) -> float:
        """Bytes that the first process hands over; the others tell nothing."""
        return self.reduced + self.gathered + self.told

    def all(self, P: int) -> float:
        """Bytes that gloo sends for all P processes together.

        A ring reduces with 2(P − 1)/P times the bytes of each process, and gathers with P − 1 times; a tree tells with
        P − 1 times the bytes of the first.
        """
        return 2 * (P - 1) * self.reduced + P * (P - 1) * self.gathered + (P - 1) * self.told

    def each(self, P: int) -> float:
        """Bytes that the busiest process sends."""
        rounds = math.ceil(math.log2(P)) if P > 1 else 0
        return 2 * (P - 1) / P * self.reduced + (P - 1) * self.gathered + rounds * self.told


def traffic(
    b: int, D: int, n: int, k: int, alpha: float, steps: int = 1, sums: float = 0, roots: float = 1, known: int = 0
) -> Traffic:
    """What b queries of which none converges early take, whatever the number of memories (`hopmem/model/meeting.py`).

    Args:
        b: queries.
        D: features.
        n: entries of an answer.
        k: best memories that are asked for.
        alpha: α ≥ 1.
        steps: updates.
        sums: over all memories for the threshold of α > 1, of a state in each step.
        roots: how often that is sought in each step: twice where float32 tells too little.
        known: entries of a partial query, whose mask is told; 0 for whole queries.
    """
    told = Traffic(0, 0, 8 * b * D + b * known)  # the states, once
    best = Traffic(0, 16 * b * max(2, k), 0)  # numbers and scores
    seen = (
        Traffic(0, 0, 0) if known else Traffic(12 * b, 0, b)
    )  # bounds of the best scores; which seem to have converged
    sure = Traffic(
        8 * b * D if alpha == 1 else 0, 0, b
    )  # a mixture is so short that it seems so: it is moved, to be sure
    if alpha == 1:
        weighed = Traffic(16 * b, 0, 0)  # one over the largest weight, and the support
        mixed = Traffic(8 * b * (D * (steps - 1) + n), 0, 0)
    else:
        weighed = Traffic(16 * b * (1 + sums), 0, 8 * b * (sums - roots) + 16 * b)  # beginning, sums; steps and end
        beside = 3  # Σ G, Σ G s and the support, with what is mixed
        mixed = Traffic(8 * b * (n + beside if steps == 1 else steps * (D + beside) + n), 0, 0)
    for step in range(steps):
        told += best + seen + weighed + (sure if step else Traffic(0, 0, 0))
    return told + mixed


def messages(alpha: float, P: int, sums: float) -> float:
    """How many messages follow one another in one step of a block of states."""
    tree, ring = math.ceil(math.log2(P)) if P > 1 else 0, P - 1
    if alpha == 1:  # states, converged; bounds, weights, support, mixed; best
        return 2 * tree + 4 * 2 * ring + ring
    return (2 + sums) * tree + (3 + sums) * 2 * ring + ring  # each sum is followed by what the first process decides


@dataclass(frozen=True)
class Constants:
    """What one thread, one disk and one network do, in seconds."""

    start: float  # until a process has loaded torch and hopmem
    launch: float  # until torchrun has started processes, and has ended after them
    name: float  # to open a bank, for each name in it
    read: float  # to read a byte of a bank from the disk
    digest: float  # of a thread, to compare a byte with its checksum
    entry: float  # of a thread, to pass over an entry of a bank, whatever the number of states
    product: float  # of a thread, to multiply it with one of a state, and all that follows
    hop: float  # for a message
    byte: float  # to send a byte


@dataclass(frozen=True)
class Case:
    """A bank and its queries on some machines."""

    memories: int
    entries: int
    queries: int
    hosts: int
    processes: int  # on each host
    threads: int  # of each process
    limit: float | None = None  # --memory-limit of a process
    alpha: float = 1.5
    steps: int = 1

    @property
    def all(self) -> int:
        """Processes."""
        return self.hosts * self.processes

    @property
    def rows(self) -> int:
        """Memories of a process, at most."""
        return -(-self.memories // self.all)

    @property
    def part(self) -> int:
        """Bytes of them."""
        return self.rows * self.entries * FLOAT

    @property
    def budget(self) -> int:
        """Bytes of working memory of a process."""
        return BUDGET if self.limit is None else int(self.limit - OWN) // SHARE_OF_LIMIT

    @property
    def at_once(self) -> int:
        """States that go through a bank together (`sieve.states_at_once`), where rows are not much wider than many."""
        group = min(32, 1 << max(0, math.ceil(math.log2(self.rows / 4096))))
        return max(1, min(1024, self.queries, self.budget // 4 // (8 * -(-self.rows // group))))

    @property
    def passes(self) -> int:
        """Blocks of states, each of which goes once through the bank in a step."""
        return -(-self.queries // self.at_once)

    @property
    def traffic(self) -> Traffic:
        """Of all queries."""
        d = self.entries
        return traffic(self.queries, d, d, 1, self.alpha, self.steps, 0 if self.alpha == 1 else SUMS)

    @property
    def memory(self) -> float:
        """Bytes of a process: its rows as they are mapped, their lengths, its blocks, its answers and itself."""
        return self.part + 8 * self.rows + self.budget + 32 * self.queries * self.entries + RUNTIME

    def computing(self, of: Constants) -> float:
        """Seconds to search."""
        entries = self.rows * self.entries * self.steps / self.threads
        return entries * (self.passes * of.entry + self.queries * of.product)

    def sending(self, of: Constants) -> float:
        """Seconds for what is sent."""
        count = messages(self.alpha, self.all, SUMS) * self.steps * self.passes
        return count * of.hop + self.traffic.each(self.all) * of.byte

    def reading(self, of: Constants) -> float:
        """Seconds to read the bank from the disk: once where it stays in memory, else for each pass."""
        once = self.part * self.processes * of.read
        return once if self.memory * self.processes <= RAM else once * self.passes * self.steps

    def opening(self, of: Constants) -> float:
        """Seconds until all processes are there, and have opened the bank; on several hosts they compare its bytes."""
        compared = self.part * of.digest / self.threads if self.hosts > 1 else 0.0
        return of.start + of.launch * (self.all > 1) + of.name * self.memories + compared


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit, worth in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= worth:
            return f"{count / worth:.3g} {unit}"
    return f"{count:.0f} B"


def seconds(time: float) -> str:
    """Seconds for a reader."""
    for unit, worth in (("h", 7200.0), ("min", 120.0), ("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if time >= worth:
            return f"{time / {'h': 3600, 'min': 60}.get(unit, worth):.3g} {unit}"
    return f"{time * 1e12:.3g} ps" if time else "0 s"


def constants(kept: dict) -> Iterator[str]:
    """What was measured of one thread and one network."""
    of, what = Constants(**kept["constants"]), kept["machine"]
    yield f"Measured on {what['processor']}, torch {what['torch']}, {what['date']}:"
    yield ""
    yield from table(
        ["what", "takes"],
        [
            ["a process until torch and hopmem are loaded", seconds(of.start)],
            ["torchrun, before its processes and after them", seconds(of.launch)],
            ["opening a bank, for each name", seconds(of.name)],
            ["reading the bank from the disk", f"{size(1 / of.read)}/s"],
            ["comparing it with its checksums (one thread)", f"{size(1 / of.digest)}/s"],
            ["passing over an entry of the bank, with any number of states (one thread)", seconds(of.entry)],
            ["one product of entries, with all that follows (one thread)", seconds(of.product)],
            ["a message over loopback", seconds(of.hop)],
            ["sending over loopback", f"{size(1 / of.byte)}/s"],
        ],
    )


def scaling(kept: dict) -> Iterator[str]:
    """What was measured of several processes, where it was."""
    if not kept["ratios"]:
        return
    size_of = kept["size"]
    yield "### Scaling"
    yield f"M = {size_of['memories']:,}, d = {size_of['entries']}, B = {size_of['queries']:,}, β = {size_of['beta']:g}."
    yield "Over one process of two threads, which has the same processors: what dividing costs, wanted at most 1.15."
    yield "Over one thread with as many memories: strong scaling; with half of them: weak scaling. Below 1, or 0.5, it"
    yield "comes to where the blocks of two processes hold more states, and so go through the bank less often. Whole"
    yield "commands include what torchrun takes to start and to end."
    yield ""
    rows = [
        [each["case"], each["peer"], f"{each['ratio']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}",
         f"{each['amount']:.2f} s"]
        for each in kept["ratios"]
    ]  # fmt: skip
    yield from table(["search", "over", "ratio", "lowest to highest", "took"], rows)
    case = Case(size_of["memories"], size_of["entries"], size_of["queries"], hosts=1, processes=2, threads=1)
    of = Constants(**kept["constants"])
    yield ""
    yield f"The model says {seconds(case.computing(of) + case.sending(of))} for two processes of one thread, α = 1.5."


def measured_traffic(kept: dict) -> Iterator[str]:
    """Bytes that were counted, beside the formula."""
    rows = []
    for each in kept["traffic"]:
        B, d, alpha = each["queries"], each["entries"], each["alpha"]
        due = traffic(B, d, d, 1, alpha, each["steps"], each["sums"], each["roots"])
        rows.append([
            f"{each['memories']:,}", f"{alpha:g}", str(each["steps"]), f"{each['sums']:.1f}",
            f"{due.given:,.0f}", f"{each['given']:,}", f"{due.all(2):,.0f}", f"{each['wire']:,}",
        ])  # fmt: skip
    head = ["M", "α", "steps", "sums", "formula: given", "counted", "formula: sent by both", "counted by the kernel"]
    yield from table(head, rows)


def predicted(kept: dict) -> Iterator[str]:
    """What the largest bank would take."""
    M, d, B = PREDICTED
    of = Constants(**kept["constants"] | {"hop": HOP, "byte": 1 / ETHERNET, "read": 1 / DISK})
    limit = 24 * GIB
    rows = []
    for hosts, threads, cap in ((1, 2, limit), (8, 2, limit), (64, 2, None), (64, 2, limit), (64, 32, limit)):
        case = Case(M, d, B, hosts, 1, threads, cap)
        total = case.computing(of) + case.sending(of)
        rows.append([
            str(hosts), str(threads), "none" if cap is None else f"{cap / GIB:.0f}G", size(case.part),
            size(case.memory), str(case.at_once), seconds(case.reading(of)), seconds(case.opening(of)),
            seconds(total), size(case.traffic.each(case.all)), seconds(case.sending(of)),
        ])  # fmt: skip
    head = ["hosts", "threads each", "`--memory-limit`", "rows of each", "memory of each", "states at once",
            "reading", "start and opening", "search", "sent by each", "of it sending"]  # fmt: skip
    yield from table(head, rows)


TABLES = {"constants": constants, "traffic": measured_traffic, "scaling": scaling, "prediction": predicted}


def main() -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--constants", type=Path, default=CONSTANTS, metavar="FILE", help="as bench_scale.py keeps them"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    asked = parser.parse_args()
    kept, page = json.loads(asked.constants.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    for name, lines in TABLES.items():
        text = "\n".join(lines(kept))
        print(f"{text}\n")
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = place.sub(lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page)
    if asked.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
