"""A disk that is full, in truth: the old file stays, nothing lies about, and one line says why."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hopmem.bank import file
from tests.conftest import Hopmem

SIZE = 400_000  # bytes of the disk

pytestmark = pytest.mark.slow


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a disk of its own can't be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize(
    "command",
    [
        "store {many} -o {bank} --force",
        "store {many} -o {bank} --append",
        "optimize {bank} --objective average --steps 3",
        "optimize {bank} --noise gaussian:0.5 --steps 3",
        "retrieve {bank} {many} -o {disk}/answers.npy",
        "retrieve {bank} {many} -o {disk}/answers.csv",
        "retrieve {bank} {many} -o {disk}/answers.npy --memory-limit 60M",
    ],
)
def test_what_does_not_fit_leaves_everything_as_it_was(command: str, disk: Path, tmp_path: Path, hopmem: Hopmem):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "few.npy", draw.normal(size=(100, 64)).astype(np.float32))
    np.save(tmp_path / "many.npy", draw.normal(size=(9000, 64)).astype(np.float32))
    hopmem("store", tmp_path / "few.npy", "-o", disk / "bank")
    if command.startswith("optimize"):
        (disk / "other").write_bytes(bytes(SIZE - (disk / "bank").stat().st_size - 30_000))
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    places = {"many": tmp_path / "many.npy", "bank": disk / "bank", "disk": disk}
    result = hopmem(*(word.format(**places) for word in command.split()), code=3)
    assert len(result.stderr.splitlines()) == 1
    assert "expected room to write" in result.stderr
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before
    file.verify(disk / "bank")
