"""Fuzz the readers of hopmem: `python -m tests.fuzz [--seconds 60] [--seed 1] [--folder DIR] [TARGET ...]`.

What breaks a promise is written to the folder and ends the run with an error. Its file then belongs into
`tests/fuzz/findings/TARGET/`, from where it is tested for ever.
"""

import argparse
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.stderr.write("atheris is not there (it is made for Linux): nothing was fuzzed\n")
    sys.exit(0)

with atheris.instrument_imports(include=["hopmem"]):
    from tests.fuzz.targets import FINDINGS, LARGEST, TARGETS, attempt


def main() -> None:
    """Fuzz until the time is over or something is found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], default=[])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="repeats a run; 0 draws one")
    parser.add_argument("--folder", type=Path, default=Path("results/fuzz"))
    asked = parser.parse_args()
    names = asked.targets or list(TARGETS)
    asked.folder.mkdir(parents=True, exist_ok=True)

    def one(data: bytes) -> None:
        """The first byte names the target."""
        if data:
            attempt(names[data[0] % len(names)], data[1:])

    with tempfile.TemporaryDirectory() as corpus:
        for place, name in enumerate(names):
            found = sorted((FINDINGS / name).glob("*"))
            for number, seed in enumerate([*TARGETS[name].seeds(), *(path.read_bytes() for path in found)]):
                Path(corpus, f"{name}-{number}").write_bytes(bytes([place]) + seed)
        limits = [f"-max_total_time={asked.seconds}", "-timeout=20", "-rss_limit_mb=4096", f"-max_len={LARGEST}"]
        limits.append(f"-seed={asked.seed}")
        atheris.Setup([sys.argv[0], corpus, *limits, f"-artifact_prefix={asked.folder}/", "-print_final_stats=1"], one)
        atheris.Fuzz()


main()
