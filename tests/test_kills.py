"""Killed at any moment, a command leaves the old file or the new one, whole, and the next one clears up.

A process that has loaded everything forks a child for each command, so that a kill falls into the work and not into
the loading of torch.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hopmem.bank import MemoryBank, file

KILLS = 40  # of each command: 200 in all
ZYGOTE = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import hopmem.pipeline, hopmem.pipeline.optimize, hopmem.pipeline.inspect
from hopmem.cli import app
for line in sys.stdin:
    job = json.loads(line)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        code = 1
        try:
            app(job["arguments"], standalone_mode=True)
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    if job["after"] is not None:
        time.sleep(job["after"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)
"""
Run = Callable[..., tuple[int, float]]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with subprocess.Popen(
        [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def one(*arguments: object, after: float | None = None) -> tuple[int, float]:
            assert process.stdin is not None and process.stdout is not None
            print(
                json.dumps({"arguments": [str(each) for each in arguments], "after": after}),
                file=process.stdin,
                flush=True,
            )
            code, seconds = json.loads(process.stdout.readline())
            return code, seconds

        yield one
        assert process.stdin is not None
        process.stdin.close()


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
