"""All benchmarks, as one table of ratios with their spread.

    python benchmarks/run.py [--quick] [--json FILE] [--against FILE]

Every ratio is hopmem over a peer, run in turn in the same process: below one, hopmem is quicker. `--json` keeps them,
and `--against` shows those that another commit kept beside them.
"""

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path

import bench_layers
import bench_optimize
import bench_retrieve
import bench_startup
import bench_store
import torch
from ratios import Ratio

ALL = (bench_retrieve, bench_layers, bench_startup, bench_store, bench_optimize)


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(found: list[Ratio], before: dict[tuple[str, str], float]) -> Iterator[str]:
    """The lines of a Markdown table."""
    column = " before |" if before else ""
    yield f"| hopmem | over | ratio | lowest to highest | bar |{column} took |"
    yield "|---|---|---|---|---|---|" + ("---|" if before else "")
    for each in found:
        old = before.get((each.case, each.peer))
        cells = [each.case, each.peer, f"{each.ratio:.2f}", f"{each.low:.2f} to {each.high:.2f}"]
        cells.append("" if each.bar is None else f"{each.bar:g}")
        cells += [] if not before else ["" if old is None else f"{old:.2f}"]
        cells.append(f"{each.amount:.3g} {each.unit}")
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller, for a look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to keep the ratios")
    parser.add_argument("--against", type=Path, metavar="FILE", help="what another commit kept")
    asked = parser.parse_args()
    before = json.loads(asked.against.read_text())["ratios"] if asked.against else []
    found = [ratio for script in ALL for ratio in script.measure(quick=asked.quick)]
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(f"\n{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}\n")
    print("\n".join(table(found, {(each["case"], each["peer"]): each["ratio"] for each in before})))
    if asked.json:
        asked.json.write_text(json.dumps(machine | {"ratios": [each.plain() for each in found]}, indent=1))


if __name__ == "__main__":
    main()
