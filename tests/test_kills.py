"""Killed at any moment, a command leaves the old file or the new one, whole, and the next one clears up.

The process has loaded everything when it begins, so that a kill falls into the work and not into the loading of torch.
"""

import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hopmem.bank import MemoryBank, file
from tests.conftest import InChild

KILLS = 40  # of each command: 200 in all
Run = Callable[..., tuple[int, float]]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")]


@pytest.fixture
def run(in_child: InChild) -> Run:
    """Run the command line, and kill it after so many seconds."""
    return partial(in_child, "-m", "hopmem")


@pytest.fixture
def place(tmp_path: Path, run: Run) -> Path:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "old.npy", rng.normal(size=(300, 64)).astype(np.float32))
    np.save(tmp_path / "new.npy", rng.normal(size=(500, 64)).astype(np.float32))
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (200, 8, 8), dtype=np.uint8))
    assert run("store", tmp_path / "old.npy", "-o", tmp_path / "bank")[0] == 0
    return tmp_path


COMMANDS = {
    "store": ("store", "new.npy", "-o", "bank", "--force"),
    "append": ("store", "new.npy", "-o", "bank", "--append"),
    "optimize": ("optimize", "bank", "--objective", "average", "--steps", "30"),
    "retrieve": ("retrieve", "bank", "new.npy", "-o", "answers.npy", "--force"),
    "plot": ("inspect", "bank", "--report", "page.html", "--force"),
}
WRITTEN = {"retrieve": "answers.npy", "plot": "page.html"}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_kill_leaves_the_old_file_or_the_new_one(name: str, place: Path, run: Run):
    arguments = [
        place / each if (place / each).exists() or "." in each or each == "bank" else each for each in COMMANDS[name]
    ]
    target, kept = place / WRITTEN.get(name, "bank"), place / "kept"
    before = target.read_bytes() if target.exists() else None
    if before is not None:
        shutil.copy(target, kept)
    code, seconds = run(*arguments)
    assert code == 0
    after, outcomes, draw = target.read_bytes(), set[str](), random.Random(0)
    assert after != before
    for number in range(KILLS):
        if before is None:
            target.unlink(missing_ok=True)
        else:
            shutil.copy(kept, target)
        run(*arguments, after=seconds * draw.uniform(0.8 if number % 2 else 0.0, 1.2))
        found = target.read_bytes() if target.exists() else None
        assert found in {before, after}
        outcomes.add("old" if found == before else "new")
        file.verify(place / "bank")
    assert outcomes == {"old", "new"}
    if before is not None:
        shutil.copy(kept, target)
    assert run(*arguments)[0] == 0
    assert not [each.name for each in place.iterdir() if each.name.startswith(".")]
    assert len(MemoryBank.load(place / "bank")) in {300, 500, 800}
