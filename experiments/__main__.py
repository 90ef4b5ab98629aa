"""Run experiments by name."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.setting import BadDataError, MissingDataError, Setting, data_folder
from hopmem.errors import HopmemError

PAPERS = (
    "landscapes", "basins", "metastable", "codes", "assignment", "losses", "memory_size", "noise_level",
)  # fmt: skip
LEARNING = ("mil", "images")  # the papers' tables of networks, with options of their own
OWN = ("objectives", "temperature")  # hopmem's own tables, in docs/science.md
NAMES = (*PAPERS, *LEARNING, *OWN)
GROUPS = {"all": PAPERS, "learning": LEARNING}


def main(arguments: list[str] | None = None) -> int:
    """Run one experiment, or all of the papers' figures and tables of retrieval (all) or of networks (learning).

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    choices = [*NAMES, *GROUPS]
    parser.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
    parser.add_argument("--data", type=Path, default=data_folder(), help="a folder with the data; default: HOPMEM_DATA")
    parser.add_argument("--out", type=Path, default=Path("results"), help="where CSV and PNG go; default: results")
    parser.add_argument("--seeds", type=_from(1), help="repetitions; default: as many as the paper has")
    parser.add_argument("--quick", action="store_true", help="in seconds, on little data")
    named = set(sys.argv[1:] if arguments is None else arguments)
    asked_for = [name for name in LEARNING if {name, "learning"} & named]  # what others need takes long to import
    modules = [import_module(f"experiments.{name}") for name in asked_for]
    options = {field.name: field for module in modules for field in fields(module.Options)}
    for name, field in options.items():
        kind = _from(field.metadata.get("least", 1)) if isinstance(field.default, int) else str
        count = "+" if isinstance(field.default, tuple) else None
        parser.add_argument(f"--{name}", type=kind, nargs=count, help=f"{field.metadata['help']} (learning)")
    asked = parser.parse_args(arguments)
    setting = Setting(asked.out, asked.data, asked.seeds, asked.quick)
    for name in [each for group in asked.names for each in GROUPS.get(group, (group,))]:
        began = time.perf_counter()
        try:
            module = import_module(f"experiments.{name}")
            module.run(setting, *_options(module, asked))
        except (MissingDataError, BadDataError, FileNotFoundError) as error:
            said = f"expected {error.filename}, found no such file" if isinstance(error, FileNotFoundError) else error
            print(f"{name}: {said}", file=sys.stderr)
            return 4 if isinstance(error, BadDataError) else 3
        except HopmemError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
        print(f"{name}: {time.perf_counter() - began:.0f} s, in {setting.out}", file=sys.stderr)
    return 0


def _options(module: ModuleType, asked: argparse.Namespace) -> list[Any]:
    """What was asked of an experiment that has options of its own.

    Returns:
        Its options, or nothing.
    """
    if not hasattr(module, "Options"):
        return []
    found = {field.name: getattr(asked, field.name) for field in fields(module.Options)}
    given = {name: value for name, value in found.items() if value is not None}
    return [replace(module.QUICK if asked.quick else module.Options(), **given)]


def _from(least: int) -> Callable[[str], int]:
    """A whole number that is not too small.

    Returns:
        What reads it.
    """

    def whole(text: str) -> int:
        if int(text) < least:
            raise ValueError
        return int(text)

    whole.__name__ = f"whole number from {least} upward"
    return whole


if __name__ == "__main__":
    sys.exit(main())
