"""How long does a user wait before anything happens, beside the import of torch?"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ratios import Ratio, paired, ratio

PYTHON = sys.executable


def call(*command: str) -> None:
    """Run a command and wait for it."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(*, quick: bool = False) -> Iterator[Ratio]:
    """All cases, one by one."""
    runs = 2 if quick else 7

    def peer() -> None:
        call(PYTHON, "-c", "import torch")

    yield ratio("hopmem --help", "python -c 'import torch'", paired(lambda: hopmem("--help"), peer, runs), 0.25)
    with tempfile.TemporaryDirectory() as folder:
        source, bank = os.fspath(Path(folder, "patterns.npy")), os.fspath(Path(folder, "bank.safetensors"))
        np.save(source, np.random.default_rng(0).random((1000, 64), np.float32))
        hopmem("store", source, "-o", bank, "-q")
        times = paired(lambda: hopmem("inspect", bank), peer, runs)
    yield ratio("hopmem inspect of a stored bank", "python -c 'import torch'", times)


def hopmem(*words: str) -> None:
    """Run the tool."""
    call(PYTHON, "-m", "hopmem", *words)


if __name__ == "__main__":
    list(measure(quick="--quick" in sys.argv))
