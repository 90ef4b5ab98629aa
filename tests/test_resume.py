"""`hopmem retrieve --resume`: what was answered when a run ended before its time is not answered again."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hopmem.errors import Terminated
from hopmem.patterns import Reading
from hopmem.pipeline import Machine, Outcome
from hopmem.pipeline.retrieve import retrieve
from hopmem.results import RetrieveResult
from tests.conftest import Array, Hopmem, write_queries
from tests.refusal import raises_refusal

COUNT, BUDGET = 1000, 1 << 16  # blocks of 341 queries of six entries: three of them
LITTLE = ["--memory-limit", "56M"]  # blocks of 10,922 such queries


@pytest.fixture(scope="module")
def queries(vectors: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_queries(tmp_path_factory.mktemp("queries") / "queries.npy", vectors, COUNT)


class Run:
    """Retrieve, perhaps until something comes over it, and count what was answered."""

    def __init__(self, bank: Path, queries: Path) -> None:
        self.bank, self.queries = bank, queries
        self.answered: list[int] = []

    def __call__(
        self, output: Path | None, stop_at: int = COUNT, end: type[BaseException] = KeyboardInterrupt, **options: Any
    ) -> Outcome[RetrieveResult]:
        self.answered.clear()

        def watch(label: str, done: int, total: int, note: str = "") -> None:
            if label == "retrieving":
                if done > stop_at:
                    raise end
                self.answered.append(done)

        machine = Machine("cpu", budget=BUDGET, watch=watch)
        place, asked = None if output is None else str(output), {"beta": "auto", "top": 2} | options
        return retrieve(str(self.bank), [str(self.queries)], place, Reading(), machine, **asked)


@pytest.fixture
def run(bank: Path, queries: Path) -> Run:
    return Run(bank, queries)


def content(path: Path) -> dict[str, bytes]:
    files = [each for each in sorted(path.rglob("*")) if each.is_file()] if path.is_dir() else [path]
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


@pytest.mark.parametrize("suffix", ["npy", "csv", "safetensors"])
@pytest.mark.parametrize("answered", [341, 682])
def test_a_run_that_goes_on_ends_as_one_that_was_never_interrupted(suffix: str, answered: int, run: Run, tmp_path):
    whole, parts = tmp_path / f"whole.{suffix}", tmp_path / f"parts.{suffix}"
    expected = run(whole, min_confidence=0.9).result
    stopped = run(parts, stop_at=answered, min_confidence=0.9)
    assert stopped.interrupted == 130
    assert stopped.warnings[-1] == f"interrupted: {answered} of 1000 queries are answered; --resume goes on from there"
    assert asdict(stopped.result)["results"] == asdict(expected)["results"][:answered]
    assert not parts.exists()
    found = run(parts, resume=True, min_confidence=0.9)
    assert min(run.answered) > answered
    assert asdict(found.result) == asdict(expected)
    assert content(parts) == content(whole)
    assert found.interrupted == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([whole.name, parts.name])


def test_what_was_told_is_not_told_again(run: Run, tmp_path: Path):
    told: list[str] = []
    run(tmp_path / "out.npy", stop_at=682, emit=lambda matches: told.extend(match.query for match in matches))
    assert len(told) == 682
    run(tmp_path / "out.npy", resume=True, emit=lambda matches: told.extend(match.query for match in matches))
    assert told == [str(row) for row in range(COUNT)]


def test_a_run_may_be_interrupted_again_and_go_on_with_other_blocks(run: Run, bank: Path, tmp_path: Path):
    run(tmp_path / "whole.npy")
    run(tmp_path / "parts.npy", stop_at=341)
    run(tmp_path / "parts.npy", stop_at=682, resume=True)
    machine = Machine("cpu", budget=BUDGET // 4)
    options: dict[str, Any] = {"beta": "auto", "top": 2, "resume": True}
    retrieve(str(bank), [str(run.queries)], str(tmp_path / "parts.npy"), Reading(), machine, **options)
    np.testing.assert_allclose(np.load(tmp_path / "parts.npy"), np.load(tmp_path / "whole.npy"), atol=1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / "parts.npy")[:682], np.load(tmp_path / "whole.npy")[:682])


@pytest.fixture
def pictures(tmp_path: Path, pixels: Array, image_bank: Path) -> Run:
    (tmp_path / "noisy").mkdir()
    for number in range(56):
        Image.fromarray(255 - (255 - pixels[number % 6]) // 2).save(tmp_path / "noisy" / f"{number:03}.png")
    return Run(image_bank, tmp_path / "noisy")  # 144 entries: four blocks of 14 pictures


def test_pictures_that_stand_are_not_written_again(pictures: Run, tmp_path: Path):
    out = tmp_path / "out"
    pictures(tmp_path / "whole")
    assert pictures(out, stop_at=28).interrupted == 130
    standing = {each.name: each.stat().st_mtime_ns for each in out.glob("[!.]*")}
    assert len(standing) == 28
    (out / "030.png").write_bytes(b"of a block that was not finished")
    (out / "003.png").unlink()  # by somebody
    del standing["003.png"]
    pictures(out, resume=True)
    assert {name: (out / name).stat().st_mtime_ns for name in standing} == standing
    assert content(out) == content(tmp_path / "whole")


def test_a_folder_that_is_here_needs_no_name(pictures: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    pictures(Path(), stop_at=28)
    pictures(Path(), resume=True)
    assert min(pictures.answered) > 28
    assert len(list(Path().iterdir())) == 56


def test_without_resume_the_work_begins_anew_and_asks_for_what_stands(pictures: Run, tmp_path: Path):
    pictures(tmp_path / "out", stop_at=28)
    with raises_refusal(2, "000.png", "--force"):
        pictures(tmp_path / "out")
    pictures(tmp_path / "out", stop_at=42, resume=True)  # the refusal has cost nothing
    assert min(pictures.answered) > 28
    pictures(tmp_path / "out", force=True)
    assert min(pictures.answered) <= 14
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("other", [{"steps": 2}, {"top": 1}, {"snap": True}, {"beta": 3.0}])
def test_another_run_is_not_gone_on_with(other: dict[str, Any], run: Run, tmp_path: Path):
    run(tmp_path / "out.npy", stop_at=341)
    with raises_refusal(2, "--resume", "the interrupted run", "out.npy.checkpoint"):
        run(tmp_path / "out.npy", resume=True, **other)
    run(tmp_path / "out.npy", resume=True)
    assert min(run.answered) > 341


def test_other_queries_and_another_bank_are_another_run(run: Run, learned: Path, queries: Path, tmp_path: Path):
    run(tmp_path / "out.npy", stop_at=341)
    with raises_refusal(2, "--resume"):
        Run(learned, queries)(tmp_path / "out.npy", resume=True)
    rows = np.load(queries)
    rows[-1, -1] += 1
    np.save(tmp_path / "others.npy", rows)
    with raises_refusal(2, "--resume"):
        Run(run.bank, tmp_path / "others.npy")(tmp_path / "out.npy", resume=True)


def test_a_damaged_block_is_answered_again(run: Run, tmp_path: Path):
    run(tmp_path / "whole.npy")
    run(tmp_path / "out.npy", stop_at=682)
    block = tmp_path / "out.npy.checkpoint" / "341-682.safetensors"
    raw = bytearray(block.read_bytes())
    raw[-5] ^= 1
    block.write_bytes(raw)
    run(tmp_path / "out.npy", resume=True)
    assert 341 < min(run.answered) <= 682
    assert content(tmp_path / "out.npy") == content(tmp_path / "whole.npy")


def test_a_folder_of_somebody_else_is_left_alone(run: Run, tmp_path: Path):
    folder = tmp_path / "out.npy.checkpoint"
    folder.mkdir()
    (folder / "thesis.txt").write_text("ten years")
    with raises_refusal(3, str(folder)):
        run(tmp_path / "out.npy")
    assert (folder / "thesis.txt").read_text() == "ten years"


def test_an_error_leaves_nothing_before_the_first_block_and_what_was_answered_after(run: Run, tmp_path: Path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out.npy", stop_at=0, end=ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out.npy", stop_at=341, end=ZeroDivisionError)
    run(tmp_path / "out.npy", resume=True)
    assert min(run.answered) > 341


def test_where_nothing_is_written_what_is_there_is_told(run: Run):
    found = run(None, stop_at=341, end=Terminated)
    assert found.interrupted == 143
    assert len(found.result.results) == 341
    assert found.warnings[-1] == "interrupted: 341 of 1000 queries are answered"
    with pytest.raises(KeyboardInterrupt):
        run(None, stop_at=0)


@pytest.mark.parametrize("output", [[], ["-o", "-"]])
def test_resume_asks_for_an_output(output: list[str], bank: Path, queries: Path, hopmem: Hopmem):
    assert "expected -o OUT" in hopmem("retrieve", bank, queries, "--resume", *output, code=2).stderr


def test_resume_of_a_run_that_never_began_is_a_run(bank: Path, queries: Path, hopmem: Hopmem, tmp_path: Path):
    for number in range(2):
        hopmem("retrieve", bank, queries, "--resume", "-o", tmp_path / f"{number}.npy", *(LITTLE if number else []))
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), np.load(tmp_path / "1.npy"), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_costs_no_more_than_a_block(number: signal.Signals, tmp_path: Path, hopmem: Hopmem):
    many = np.random.default_rng(5).standard_normal((150_000, 64), dtype=np.float32)
    np.save(tmp_path / "many.npy", many)
    np.save(tmp_path / "few.npy", many[:100])
    hopmem("store", tmp_path / "few.npy", "-o", tmp_path / "bank")
    asked = ["retrieve", tmp_path / "bank", tmp_path / "many.npy", "--json", "--memory-limit", "230M"]  # seven blocks
    command = [sys.executable, "-m", "hopmem", *asked, "-o"]
    whole = subprocess.run([*command, tmp_path / "whole.npy"], capture_output=True, check=True)
    process = subprocess.Popen(
        [*command, tmp_path / "out.npy"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A job in the background would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 # before any thread
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out.npy.checkpoint/*-*"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert b"Traceback" not in stderr
    if number != signal.SIGKILL:
        assert 1 < len(json.loads(stdout)["results"]) < 150_000
    found = subprocess.run([*command, tmp_path / "out.npy", "--resume"], capture_output=True, check=True)
    assert content(tmp_path / "out.npy") == content(tmp_path / "whole.npy")
    assert json.loads(found.stdout)["results"] == json.loads(whole.stdout)["results"]
    assert len(list(tmp_path.iterdir())) == 5
