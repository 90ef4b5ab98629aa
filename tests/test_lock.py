"""One writer at a time, none lost, and whoever waits in vain is told for whom."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hopmem.bank import MemoryBank
from hopmem.lock import PATIENCE, writing
from tests.refusal import raises_refusal

HOLD = """
import sys, time
from pathlib import Path
from hopmem.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "0.2")


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    MemoryBank.from_patterns(np.eye(3, dtype=np.float32)).save(tmp_path / "bank")
    return tmp_path / "bank"


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock of a bank."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), "x"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("impatient")
def test_a_second_writer_is_told_who_holds_the_bank(bank: Path):
    with held_elsewhere(bank) as process:
        with raises_refusal(3, str(bank), f"process {process.pid}", "0.2 s"):
            MemoryBank.from_patterns(np.eye(2)).save(bank)
        assert len(MemoryBank.load(bank)) == 3  # readers ask nobody


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_holds_nobody_up(bank: Path, end: signal.Signals):
    with held_elsewhere(bank) as process:
        process.send_signal(end)
        process.wait()
    MemoryBank.from_patterns(np.eye(2)).save(bank)
    assert list(bank.parent.iterdir()) == [bank]


def test_a_process_may_take_its_lock_again_and_leaves_no_file(bank: Path):
    with writing(bank):
        with writing(bank):
            assert len(list(bank.parent.iterdir())) == 2
        MemoryBank.from_patterns(np.eye(2)).save(bank)
        assert len(list(bank.parent.iterdir())) == 2
    assert list(bank.parent.iterdir()) == [bank]


def test_a_link_and_its_bank_share_a_lock(bank: Path, impatient: None):
    (bank.parent / "link").symlink_to(bank)
    with held_elsewhere(bank.parent / "link") as process, raises_refusal(3, str(process.pid)), writing(bank):
        pass


@pytest.mark.parametrize("asked", ["soon", "-1", "inf", "nan", ""])
def test_a_patience_that_is_no_number_of_seconds_is_refused(bank: Path, monkeypatch: pytest.MonkeyPatch, asked: str):
    monkeypatch.setenv(PATIENCE, asked)
    with raises_refusal(2, PATIENCE), writing(bank):
        pass


def test_where_there_is_no_folder_there_is_a_lock_all_the_same(tmp_path: Path, impatient: None):
    bank = tmp_path / "new" / "bank"
    with held_elsewhere(bank) as process, raises_refusal(3, str(process.pid)), writing(bank):
        pass


def test_another_user_may_open_the_lock_too(bank: Path):
    before = os.umask(0o077)
    try:
        with writing(bank):
            (lock,) = (each for each in bank.parent.iterdir() if each != bank)
            assert lock.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_folder_that_was_made_for_nothing_is_taken_away(tmp_path: Path):
    with writing(tmp_path / "new" / "er" / "bank"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    with raises_refusal(3, "can be written to"), writing(tmp_path / "bank"):
        pass


@pytest.mark.slow
def test_eight_processes_that_append_at_once_lose_nothing(tmp_path: Path):
    rng, sources = np.random.default_rng(0), []
    for number in range(9):
        sources.append(tmp_path / f"x{number}.npy")
        np.save(sources[-1], rng.normal(size=(number + 2, 5)).astype(np.float32))
    bank = tmp_path / "bank.safetensors"
    command = [sys.executable, "-m", "hopmem", "store", "--append", "--json", "-o", str(bank)]
    subprocess.run([*command, str(sources[0])], check=True, capture_output=True)
    running = [subprocess.Popen([*command, str(source)], stdout=subprocess.PIPE) for source in sources[1:]]
    counts = [json.loads(process.communicate(timeout=300)[0])["patterns"] for process in running]
    assert [process.returncode for process in running] == [0] * 8
    assert max(counts) == len(MemoryBank.load(bank)) == sum(range(2, 11))
    assert len(set(counts)) == 8
    kept = {row.tobytes() for row in MemoryBank.load(bank).patterns.numpy()}
    assert kept == {row.tobytes() for source in sources for row in np.load(source)}
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


@pytest.mark.slow
def test_readers_see_a_whole_bank_while_it_is_replaced(bank: Path):
    writer = (
        "import sys, numpy as np; from hopmem.bank import MemoryBank\n"
        "for n in range(3, 10**6): MemoryBank.from_patterns(np.eye(2 + n % 7)).save(sys.argv[1])"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(bank)])
    try:
        end, seen = time.monotonic() + 10, set()
        while time.monotonic() < end:
            found = MemoryBank.load(bank)
            assert found.patterns.sum() == len(found)
            seen.add(len(found))
        assert process.poll() is None
        assert len(seen) > 3
    finally:
        process.kill()
        process.wait()
