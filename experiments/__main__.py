"""Run experiments by name."""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path

from experiments.setting import MissingDataError, Setting, data_folder

PAPERS = (
    "landscapes", "basins", "metastable", "codes", "assignment", "losses", "memory_size", "noise_level",
)  # fmt: skip
NAMES = (*PAPERS, "objectives", "temperature")  # the last two are hopmem's own tables, in docs/science.md


def main(arguments: list[str] | None = None) -> int:
    """Run one experiment, or all of the papers' figures and tables.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help=", ".join([*NAMES, "all"]))
    parser.add_argument("--data", type=Path, default=data_folder(), help="a folder with the data; default: HOPMEM_DATA")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where CSV and PNG go; default: results")
    parser.add_argument("--seeds", type=int, help="repetitions; default: as many as the paper has")
    parser.add_argument("--quick", action="store_true", help="in seconds, on little data")
    asked = parser.parse_args(arguments)
    setting = Setting(asked.out, asked.data, asked.seeds, asked.quick)
    for name in PAPERS if "all" in asked.names else asked.names:
        began = time.perf_counter()
        try:
            import_module(f"experiments.{name}").run(setting)
        except MissingDataError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 3
        print(f"{name}: {time.perf_counter() - began:.0f} s, in {setting.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
