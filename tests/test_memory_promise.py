"""--memory-limit is a promise: real processes, and their resident size as the operating system counts it."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hopmem.bank import MemoryBank
from hopmem.pages import FLOOR, MIB, STATM, limited, require, room
from hopmem.patterns import Reading, load
from hopmem.scratch import empty, gathered, joined
from tests.refusal import raises_refusal

ROWS, WIDTH = 36_000, 784  # 113 MB of float32
LIMIT = 100  # MiB
# A small process of its own: until a child runs another program, it counts the pages of its parent as its own.
MEASURING = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""

USUAL = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # each thread takes memory

linux = pytest.mark.skipif(not STATM.exists(), reason="nobody else can keep a limit")


def peak(*command: object) -> tuple[int, float, str]:
    """The exit code of a process, its largest resident size in MiB, and what it said."""
    words = [sys.executable, "-c", MEASURING, sys.executable, *map(str, command)]
    process = subprocess.run(words, env=USUAL, capture_output=True, check=False)
    return process.returncode, int(process.stdout.split()[-1]) / 1024, process.stderr.decode()


@functools.cache
def torch_alone() -> float:
    return min(peak("-c", "import torch")[1] for _ in range(2))


def run(*command: object, limit: int = LIMIT) -> None:
    """A command under a limit, which it has to keep."""
    code, size, said = peak("-m", "hopmem", *command, "--memory-limit", f"{limit}M", "-q", "--device", "cpu")
    assert code == 0, said
    assert size - torch_alone() <= limit, command


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    np.save(folder / "x.npy", draw.standard_normal((ROWS, WIDTH), dtype=np.float32))
    np.save(folder / "q.npy", draw.standard_normal((200, WIDTH), dtype=np.float32))
    assert peak("-m", "hopmem", "store", folder / "x.npy", "-o", folder / "bank", "-q")[0] == 0
    return folder


@linux
@pytest.mark.slow
def test_a_bank_larger_than_the_limit_is_stored_and_asked_as_without_one(large: Path, tmp_path: Path):
    run("store", large / "x.npy", "-o", tmp_path / "bank")
    found, usual = MemoryBank.load(tmp_path / "bank"), MemoryBank.load(large / "bank")
    assert bool((found.patterns == usual.patterns).all())
    assert found.tuning is not None
    assert usual.tuning is not None
    assert found.tuning.beta == pytest.approx(usual.tuning.beta, rel=1e-5)
    run("retrieve", tmp_path / "bank", large / "q.npy", "-o", tmp_path / "limited.npy")
    assert peak("-m", "hopmem", "retrieve", large / "bank", large / "q.npy", "-o", tmp_path / "plain.npy", "-q")[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "limited.npy"), np.load(tmp_path / "plain.npy"), atol=1e-4)


@linux
@pytest.mark.slow
def test_features_that_are_learned_may_be_larger_than_the_limit(large: Path, tmp_path: Path):
    run("optimize", large / "bank", "-o", tmp_path / "bank", "--objective", "average", "--steps", 2, limit=150)
    assert MemoryBank.load(tmp_path / "bank").feature_dimension == WIDTH


@linux
@pytest.mark.slow
def test_rows_of_a_compressed_array_and_of_a_wide_bank_keep_to_the_limit(tmp_path: Path):
    wide = np.random.default_rng(1).integers(0, 256, (1000, 120_000), dtype=np.uint8)
    np.savez_compressed(tmp_path / "wide.npz", wide)
    run("store", tmp_path / "wide.npz", "-o", tmp_path / "bank")
    np.save(tmp_path / "q.npy", wide[:32])
    run("retrieve", tmp_path / "bank", tmp_path / "q.npy", "-o", tmp_path / "a.npy")
    assert bool((np.load(tmp_path / "a.npy") == wide[:32]).all())


@linux
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoise", "spherical"])
def test_learning_that_can_not_fit_says_so_in_one_line_and_writes_nothing(objective: str, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3000, 2000), dtype=np.float32))
    assert peak("-m", "hopmem", "store", tmp_path / "x.npy", "-o", tmp_path / "bank", "-q")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = ("optimize", tmp_path / "bank", "-o", tmp_path / "new", "--objective", objective)
    code, _, said = peak("-m", "hopmem", *command, "--memory-limit", "100M", "-q")
    assert code == 5
    assert len(said.splitlines()) == 1
    assert "--memory-limit: expected at least" in said
    assert "found 100M" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@linux
@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoise", "spherical"])
@pytest.mark.parametrize("shape", [(3000, 300), (6000, 64)])
def test_learning_keeps_to_the_very_limit_that_it_asked_for(objective: str, shape: tuple[int, int], tmp_path: Path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    assert peak("-m", "hopmem", "store", tmp_path / "x.npy", "-o", tmp_path / "bank", "-q")[0] == 0
    command = ("optimize", tmp_path / "bank", "-o", tmp_path / "new", "--objective", objective)
    command += ("--steps", 5) if objective == "spherical" else ()
    code, _, said = peak("-m", "hopmem", *command, "--memory-limit", f"{FLOOR // MIB}M", "-q")
    assert code == 5
    asked = re.search(r"at least (\d+)M", said)
    assert asked is not None
    run(*command, limit=int(asked[1]))


@linux
@pytest.mark.slow
def test_pictures_keep_to_the_limit_or_are_refused_before_the_work(tmp_path: Path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3000, 300), dtype=np.float32))
    assert peak("-m", "hopmem", "store", tmp_path / "x.npy", "-o", tmp_path / "bank", "-q")[0] == 0
    command = ("inspect", tmp_path / "bank", "--plot", tmp_path / "pictures", "--report", tmp_path / "page.html")
    code, _, said = peak("-m", "hopmem", *command, "--memory-limit", "100M", "-q")
    assert code == 5
    assert re.search(r"at least (\d+)M to draw, found 100M", said)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "bank"}
    run(*command, limit=int(re.findall(r"at least (\d+)M", said)[0]))
    assert (tmp_path / "page.html").exists()


@linux
@pytest.mark.slow
def test_large_pictures_are_answered_and_drawn_within_the_limit_or_refused(tmp_path: Path):
    draw = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for number in range(40):
        Image.fromarray(draw.integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{number}.png")
    run("store", tmp_path / "in", "-o", tmp_path / "bank")
    asked = ("retrieve", tmp_path / "bank", tmp_path / "in", "-o", tmp_path / "out", "--plot", tmp_path / "sheet.png")
    code, _, said = peak("-m", "hopmem", *asked, "--memory-limit", "100M", "-q")
    assert code == 5
    run(*asked, limit=int(re.findall(r"at least (\d+)M to work on rows of 786,432 entries", said)[0]))
    assert len(list((tmp_path / "out").iterdir())) == 40


@linux
@pytest.mark.slow
def test_answers_of_many_queries_keep_to_the_limit_unless_all_are_reported_at_once(tmp_path: Path):
    many = np.random.default_rng(0).standard_normal((300_000, 16), dtype=np.float32)
    np.save(tmp_path / "q.npy", many)
    np.save(tmp_path / "x.npy", many[:1000])
    run("store", tmp_path / "x.npy", "-o", tmp_path / "bank")
    asked = ("retrieve", tmp_path / "bank", tmp_path / "q.npy")
    run(*asked, "-o", tmp_path / "a.npy", limit=140)
    assert np.load(tmp_path / "a.npy").shape == many.shape
    code, _, said = peak("-m", "hopmem", *asked, "--json", "--memory-limit", "140M")
    assert code == 5
    assert re.search(r"at least \d+M to report 300,000 answers \(--ndjson holds none", said.splitlines()[-1])


@linux
def test_names_that_a_limit_leaves_no_room_for_are_refused_before_they_are_made(tmp_path: Path):
    np.save(tmp_path / "q.npy", np.zeros((1_000_000, 1), dtype=np.float32))
    with limited(100 * MIB), raises_refusal(5, "to hold the names of 1,000,000 rows", "found 100M"):
        load([str(tmp_path / "q.npy")], Reading())


@linux
def test_a_limit_that_no_command_can_keep_is_refused():
    with raises_refusal(5, "--memory-limit", f"{FLOOR // MIB}M", "found 1M"), limited(MIB):
        pass


@linux
def test_work_that_fits_is_let_through_and_other_work_names_what_it_needs():
    require(1 << 40, "without a limit")
    with limited(100 * MIB):
        require(room() or 0, "of what is left")
        with raises_refusal(5, "at least 101M", "of one byte more", "found 100M"):
            require((room() or 0) + 1, "of one byte more")


@linux
def test_rows_that_are_kept_in_a_file_are_those_that_were_written():
    with limited(100 * MIB):
        rows = empty(2000, 300)
        rows.copy_(torch_rows := empty(2000, 300).normal_())
        order = torch_rows[:, 0].argsort()
        assert bool((gathered(rows, order) == torch_rows[order]).all())
        assert bool((joined([rows, rows])[2000:] == torch_rows).all())
