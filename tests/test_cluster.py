"""`torchrun -m hopmem`: several processes answer, learn and measure as one does, whatever they divide."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopmem import header
from hopmem.bank import MemoryBank
from hopmem.verbs import optimize
from tests.conftest import Hopmem, InChild

dist = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(not dist.is_available() or sys.platform == "win32", reason="needs torchrun and gloo")
SAME = 1e-5


Run = Callable[..., tuple[int, str, list[str]]]


def words(
    processes: int, *command: object, restarts: int = 0, program: tuple[str, ...] = ("-m", "hopmem")
) -> list[str]:
    """What python is told to run."""
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", *program, *map(str, command)]


def torchrun(
    processes: int, *command: object, restarts: int = 0, program: tuple[str, ...] = ("-m", "hopmem"), **options: Any
) -> "subprocess.Popen[bytes]":
    """Processes that begin from nothing."""
    asked = [sys.executable, *words(processes, *command, restarts=restarts, program=program)]
    return subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)


def of_hopmem(lines: str) -> list[str]:
    return [line for line in lines.splitlines() if line.startswith("hopmem: ")]


@pytest.fixture(scope="module")
def run(in_child: InChild, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The exit code of torchrun, what came on stdout, and what hopmem said on stderr; its processes are forked."""
    out, err = (tmp_path_factory.mktemp("said") / name for name in ("out", "err"))

    def run(processes: int, *command: object, **how: Any) -> tuple[int, str, list[str]]:
        code, _ = in_child(*words(processes, *command, **how), out=str(out), err=str(err))
        return code, out.read_text(), of_hopmem(err.read_text())

    return run


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("cluster"), np.random.default_rng(0)
    rows = draw.standard_normal((500, 16), dtype=np.float32)
    rows[400] = rows[3]
    queries = rows[:60] + 0.3 * draw.standard_normal((60, 16), dtype=np.float32)
    queries[::4, :5] = np.nan
    np.save(folder / "q.npy", queries)
    MemoryBank.from_patterns(rows).tuned().save(folder / "bank")
    MemoryBank.from_patterns(rows[:2]).tuned().save(folder / "two")
    MemoryBank.from_patterns(rows[:9]).tuned().save(folder / "few")
    optimize(MemoryBank.from_patterns(rows), objective="average", steps=3).save(folder / "learned")
    return folder


CASES = [
    (1, "memories", "bank", ["--alpha", "1.5", "--beta", "6", "--steps", "3", "--top", "4"]),
    (2, "memories", "bank", ["--alpha", "1", "--beta", "8", "--steps", "2"]),
    (3, "memories", "bank", ["--alpha", "2", "--beta", "20", "--snap"]),
    (3, "memories", "two", ["--alpha", "1.3", "--beta", "4"]),
    (2, "queries", "bank", ["--alpha", "1.5", "--beta", "6", "--top", "2"]),
]


@pytest.mark.parametrize(("processes", "split", "bank", "options"), CASES, ids=str)
def test_several_processes_answer_as_one(
    processes: int, split: str, bank: str, options: list[str], shelf: Path, tmp_path: Path, hopmem: Hopmem, run: Run
):
    asked = ["retrieve", shelf / bank, shelf / "q.npy", "--json", *options]
    alone = json.loads(hopmem(*asked, "-o", tmp_path / "alone.npy").stdout)
    code, out, said = run(processes, *asked, "-o", tmp_path / "all.npy", "--split", split)
    assert (code, said) == (0, [])
    together = json.loads(out)
    for one, other in zip(alone.pop("results"), together.pop("results"), strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, float):
                assert other[key] == pytest.approx(value, abs=SAME), key
            elif key != "top":
                assert other[key] == value, key
    assert {**alone, "seconds": 0} == {**together, "seconds": 0}
    expected = np.load(tmp_path / "alone.npy")
    assert np.linalg.norm(np.load(tmp_path / "all.npy") - expected, axis=1).max() < SAME * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("retrieve {shelf}/nothing {shelf}/q.npy", "expected a bank"),
        ("retrieve {shelf}/bank {shelf}/q.npy --alpha 0.5", "expected a number from 1"),
        ("retrieve {shelf}/bank {shelf}/nothing.npy", "found nothing there"),
    ],
    ids=["bank", "usage", "queries"],
)
def test_a_mistake_is_said_once_and_ends_all(command: str, expected: str, shelf: Path, run: Run):
    began = time.monotonic()
    code, out, said = run(2, *command.format(shelf=shelf).split())
    assert code != 0
    assert out == ""
    assert len(said) == 1
    assert expected in said[0]
    assert time.monotonic() - began < 60  # and not when a time-out is over


def test_what_stands_is_not_overwritten(shelf: Path, tmp_path: Path, run: Run):
    (tmp_path / "keep.npy").write_bytes(b"thesis")
    code, _, said = run(2, "retrieve", shelf / "bank", shelf / "q.npy", "-o", tmp_path / "keep.npy")
    assert code != 0
    assert len(said) == 1
    assert "exists already" in said[0]
    assert (tmp_path / "keep.npy").read_bytes() == b"thesis"


@pytest.mark.parametrize(("rank", "expected"), [("0", True), ("1", True)])
def test_a_process_that_fails_before_it_met_the_others_says_so(rank: str, expected: bool, shelf: Path):
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "1", "RANK": rank, "WORLD_SIZE": "2", "HOPMEM_PATIENCE": "abc"}
    environment |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "LOCAL_RANK": rank}
    command = [sys.executable, "-m", "hopmem", "retrieve", shelf / "bank", shelf / "q.npy"]
    began = time.monotonic()
    found = subprocess.run(command, env=environment, capture_output=True, check=False, text=True)
    assert found.returncode == 2
    assert ("HOPMEM_PATIENCE: expected seconds" in found.stderr) == expected
    assert len(found.stderr.splitlines()) == 1
    assert time.monotonic() - began > (3 if rank == "1" else 0)  # torchrun ends it then, if all failed


def test_inputs_that_are_skipped_are_no_failure_that_torchrun_would_answer_with_another_run(
    shelf: Path, tmp_path, run: Run
):
    queries = np.load(shelf / "q.npy")
    queries[1] = np.inf
    np.save(tmp_path / "q.npy", queries)
    asked = ["retrieve", shelf / "bank", tmp_path / "q.npy", "-o", tmp_path / "a.npy", "--on-bad", "skip", "--json"]
    code, out, _ = run(2, *asked)
    assert code == 0
    assert [each["name"] for each in json.loads(out)["skipped"]] == ["1"]
    process = torchrun(2, *asked, "-q", "--force")  # the one here that begins as a user's does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0
    assert of_hopmem(err.decode()) == ["hopmem: 1 inputs were skipped"]


def alike(found: Any, expected: Any, where: str = "") -> None:
    """Numbers to 1e-4, and all else to the letter."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds"}:
            alike(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            alike(found[place], value, f"{where}/{place}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4), where
    else:
        assert found == expected, where


LEARNED = [
    (2, "bank", ["--objective", "average", "--steps", "4"]),  # near the optimum, rounding decides how many steps
    (3, "bank", ["--objective", "spherical", "--steps", "20"]),
    (2, "few", ["--objective", "spherical", "--restarts", "2"]),
    pytest.param(3, "bank", ["--noise", "gaussian:0.5", "--steps", "20"], marks=pytest.mark.slow),
    (1, "few", ["--noise", "mask:0.3", "--steps", "5", "--force"]),
]


@pytest.mark.parametrize(("processes", "bank", "options"), LEARNED, ids=str)
def test_several_processes_learn_what_one_does(
    processes: int, bank: str, options: list[str], shelf: Path, tmp_path: Path, hopmem: Hopmem, run: Run
):
    asked = ["optimize", shelf / bank, "--json", *options]
    alone = json.loads(hopmem(*asked, "-o", tmp_path / "alone").stdout)
    code, out, said = run(processes, *asked, "-o", tmp_path / "together")
    assert (code, said) == (0, [])
    alike(json.loads(out), alone)
    for both in (["inspect"], ["inspect", "--seed", "4"]):  # what the bank remembers, and what is measured anew
        one, other = (json.loads(hopmem(*both, tmp_path / name, "--json").stdout) for name in ("alone", "together"))
        for found in (one, other) if bank == "few" else ():  # of a simplex all pairs are equally close
            del found["closest_pairs"], found["separation"]["learned"]["worst"]
        alike(other, one)


@pytest.mark.parametrize(
    ("processes", "command"),
    [
        (2, ["inspect", "bank", "--seed", "4"]),
        (3, ["inspect", "two", "--seed", "4"]),
        (3, ["inspect", "learned", "--seed", "4", "--alpha", "1.5"]),
        (2, ["inspect", "bank"]),  # of which the header knows all
        pytest.param(
            2,
            ["evaluate", "learned", "--samples", "60", "--noise", "gaussian:0.5", "--sizes", "50,500"],
            marks=pytest.mark.slow,
        ),
        (3, ["evaluate", "two", "--samples", "5", "--noise", "mask:0.3"]),
    ],
    ids=str,
)
def test_several_processes_measure_what_one_does(
    processes: int, command: list[str], shelf: Path, hopmem: Hopmem, run: Run
):
    verb, bank, *options = command
    asked = [verb, shelf / bank, *options, "--json"]
    code, out, said = run(processes, *asked)
    assert (code, said) == (0, [])
    alike(json.loads(out), json.loads(hopmem(*asked).stdout))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["average", "denoise"])
def test_learning_that_was_interrupted_goes_on_when_torchrun_starts_it_again(
    objective: str, shelf: Path, tmp_path: Path, run: Run
):
    asked = ["optimize", shelf / "bank", "--json", "--objective", objective, "--steps", "20"]
    assert run(2, *asked, "-o", tmp_path / "undisturbed")[0] == 0
    code, out, _ = run(2, *asked, "-o", tmp_path / "stopped", "--time-limit", "0")
    assert code == 0
    assert "the time limit is reached" in json.loads(out)["warnings"][-1]
    assert (tmp_path / "stopped.checkpoint").exists()
    code, _, said = run(2, *asked, "-o", tmp_path / "stopped")
    assert (code, said) == (0, [])
    assert not (tmp_path / "stopped.checkpoint").exists()
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "undisturbed").read_bytes()


OPENED = """
import os, sys
from pathlib import Path
own = open(Path({log!r}, os.environ["RANK"]), "a")
sys.addaudithook(lambda event, args: print(args[0], file=own, flush=True) if event == "open" else None)
from hopmem.cli import app
app()
"""


@pytest.fixture
def several(shelf: Path, tmp_path: Path) -> Path:
    """The bank in five files."""
    replace(MemoryBank.load(shelf / "bank"), shard_size=14_000).save(tmp_path / "several.safetensors")
    assert len(list(tmp_path.glob("several-*"))) == 5
    return tmp_path / "several.safetensors"


@pytest.mark.parametrize("processes", [2, 3])
def test_of_a_bank_of_several_files_each_process_opens_its_own_alone(
    processes: int, several: Path, shelf: Path, tmp_path: Path, hopmem: Hopmem, run: Run
):
    (tmp_path / "program.py").write_text(OPENED.format(log=str(tmp_path)))
    asked = [shelf / "q.npy", "--json", "--beta", "6", "--alpha", "1.5", "--top", "3"]
    alone = json.loads(hopmem("retrieve", shelf / "bank", *asked).stdout)
    program = (str(tmp_path / "program.py"),)
    code, out, said = run(processes, "retrieve", several, *asked, "--split", "memories", program=program)
    assert (code, said) == (0, [])
    alike(json.loads(out), alone)
    opened = [
        {line.rpartition("/")[2] for line in (tmp_path / str(rank)).read_text().splitlines() if "/several-" in line}
        for rank in range(processes)
    ]
    files = [f"several-{number:05}-of-00005.safetensors" for number in range(1, 6)]
    assert sorted(name for own in opened for name in own) == files  # each by one process
    assert all(opened)


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("command", ["retrieve", "inspect"])
def test_an_altered_file_is_refused_before_any_work(command: str, number: int, several: Path, shelf: Path, run: Run):
    altered = several.with_name(f"several-{number:05}-of-00005.safetensors")
    raw = bytearray(altered.read_bytes())
    raw[header.read(altered).tensors[f"patterns.{number:05}"].begin + 3] ^= 1
    altered.write_bytes(raw)
    asked = {"retrieve": [shelf / "q.npy", "-o", several.with_name("out.npy")], "inspect": ["--seed", "7"]}[command]
    code, _, said = run(2, command, several, *asked)
    assert code != 0
    assert len(said) == 1
    assert f"{altered.name}: expected tensor patterns.{number:05}" in said[0]
    assert not several.with_name("out.npy").exists()


def test_a_map_is_learned_for_a_bank_of_several_files_and_written_into_several(
    several: Path, shelf: Path, tmp_path: Path, hopmem: Hopmem, run: Run
):
    how = ["--objective", "average", "--steps", "5", "--json"]
    alone = json.loads(hopmem("optimize", shelf / "bank", *how, "-o", tmp_path / "one").stdout)
    code, out, said = run(2, "optimize", several, *how, "-o", tmp_path / "learned.safetensors")
    assert (code, said) == (0, [])
    alike(json.loads(out), alone)
    assert len(list(tmp_path.glob("learned-*"))) > 5
    one, found = MemoryBank.load(tmp_path / "one"), MemoryBank.load(tmp_path / "learned.safetensors")
    assert one.features is not None
    assert found.features is not None
    assert found.names == one.names
    assert bool((found.features @ found.features.T - one.features @ one.features.T).abs().max() < 1e-4)


@pytest.mark.slow
def test_learning_that_torchrun_was_told_to_stop_takes_the_best_so_far_and_goes_on_from_there(tmp_path: Path, run: Run):
    rows = np.random.default_rng(1).standard_normal((5000, 64), dtype=np.float32)
    MemoryBank.from_patterns(rows).tuned().save(tmp_path / "bank")
    asked = ["optimize", tmp_path / "bank", "-q", "--objective", "spherical", "--steps", "300"]
    assert run(2, *asked, "-o", tmp_path / "undisturbed")[0] == 0
    often = tmp_path / "often.py"
    often.write_text(
        "from hopmem.__main__ import main\nfrom hopmem.pipeline import checkpoint\ncheckpoint.EVERY = 0.1\nmain()\n"
    )
    process = torchrun(2, *asked, "-o", tmp_path / "stopped", program=(str(often),))
    while not (tmp_path / "stopped.checkpoint").exists():
        assert process.poll() is None, "it ended before it was told to"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert (tmp_path / "stopped.checkpoint").exists(), err.decode()
    assert len(MemoryBank.load(tmp_path / "stopped")) == len(rows)
    assert run(2, *asked, "-o", tmp_path / "stopped")[0] == 0
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "undisturbed").read_bytes()


def test_what_only_one_process_can_do_is_done_once(shelf: Path, tmp_path: Path, run: Run):
    code, _, said = run(2, "store", shelf / "q.npy", "-o", tmp_path / "stored", "--on-bad", "skip", "--quiet")
    assert (code, said) == (0, ["hopmem: 15 inputs were skipped"])
    assert len(MemoryBank.load(tmp_path / "stored")) == 45
    code, out, said = run(2, "optimize", "--help")
    assert (code, said) == (0, [])
    assert "Learn the feature map" in out


def test_who_is_alone_loads_nothing_of_it(shelf: Path):
    code = (
        "import sys; from hopmem.cli import app; app(standalone_mode=False); assert 'hopmem.cluster' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, "retrieve", shelf / "bank", shelf / "q.npy", "-q"], check=True)


LATE = """
import os, time, torch
from hopmem.cluster import Cluster
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if attempt and rank == {late}:
    time.sleep(3)
all = Cluster(torch.device("cpu"), 60.0)
if not attempt:
    os._exit(1)
assert all.total(torch.ones(1)) == 2
assert all.total(torch.tensor([float(all.first_to_speak())])) == 1
os._exit(0)  # as hopmem leaves
"""


@pytest.mark.parametrize("late", [0, 1])
def test_an_attempt_does_not_meet_what_the_one_before_has_left_behind(late: int, tmp_path: Path, run: Run):
    (tmp_path / "late.py").write_text(LATE.format(late=late))
    code, _, _ = run(2, restarts=1, program=(str(tmp_path / "late.py"),))
    assert code == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [("q.npy -o -", "-o -"), ("q.npy --ndjson", "--ndjson"), ("- -o out.npy", "queries on stdin")],
    ids=["answers", "lines", "queries"],
)
def test_what_can_not_be_done_twice_is_refused_where_it_may_have_to(
    words: str, found: str, shelf: Path, hopmem: Hopmem
):
    restarts = {"TORCHELASTIC_MAX_RESTARTS": "3"}
    result = hopmem("retrieve", shelf / "bank", *words.split(), code=2, env=restarts)
    assert f"found {found}" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, hopmem: Hopmem, run: Run) -> Path:
    """Queries for a dozen blocks, and what one run answers that nothing disturbs."""
    folder, draw = tmp_path_factory.mktemp("long"), np.random.default_rng(1)
    np.save(folder / "x.npy", draw.standard_normal((2000, 64), dtype=np.float32))
    np.save(folder / "q.npy", draw.standard_normal((60_000, 64), dtype=np.float32))
    hopmem("store", folder / "x.npy", "-o", folder / "bank")
    assert run(2, *asked(folder, folder / "whole.npy"))[0] == 0
    return folder


def asked(long: Path, output: Path) -> list[object]:
    parts = ["--split", "memories", "--memory-limit", "80M"]
    return ["retrieve", long / "bank", long / "q.npy", "-q", "-o", output, *parts]


def workers(process: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, check=False, text=True)
    by_rank = {}
    for each in map(int, found.stdout.split()):
        with suppress(OSError):  # it has just ended
            environment = Path(f"/proc/{each}/environ").read_bytes().split(b"\0")
            by_rank |= {int(entry[5:]): each for entry in environment if entry.startswith(b"RANK=")}
    return by_rank


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked for there")
@pytest.mark.parametrize(
    ("moment", "blow", "victim"),
    [
        ("start", "SIGKILL", 0),
        ("middle", "SIGKILL", 0),
        ("middle", "SIGKILL", 1),
        ("end", "SIGKILL", 1),
        ("middle", "SIGSTOP", 1),
    ],
)
def test_a_process_that_is_killed_or_hangs_costs_a_restart_and_nothing_else(
    moment: str, blow: str, victim: int, long: Path, tmp_path: Path
):
    output = tmp_path / "out.npy"
    come = {
        "start": lambda: victim in workers(process.pid),
        "middle": lambda: len(list(tmp_path.glob("out.npy.checkpoint/*-*"))) >= 3,
        "end": output.exists,
    }
    patience = os.environ | ({"HOPMEM_PATIENCE": "5"} if blow == "SIGSTOP" else {})
    process = torchrun(2, *asked(long, output), restarts=3, env=patience)
    deadline = time.monotonic() + 120
    while not come[moment]():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    with suppress(KeyError, ProcessLookupError):  # at the end it may be gone
        os.kill(workers(process.pid)[victim], getattr(signal, blow))
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    assert out == b""
    assert output.read_bytes() == (long / "whole.npy").read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["out.npy"]


@pytest.mark.slow
def test_a_first_process_that_reads_or_prints_for_longer_than_it_is_waited_for_is_not_lost(long: Path):
    patience, command = 5, ["retrieve", long / "bank", "-", "--ndjson", "--split", "memories", "--memory-limit", "80M"]
    environment = os.environ | {"HOPMEM_PATIENCE": str(patience)}
    with torchrun(2, *command, stdin=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        time.sleep(4 * patience)  # the processes have met by then, and wait
        process.stdin.write((long / "q.npy").read_bytes())
        process.stdin.close()
        assert process.stdout.readline()
        time.sleep(3 * patience)  # answers do not fit into the pipe
        count, said = 1 + sum(1 for _ in process.stdout), process.stderr.read().decode()
    assert process.returncode == 0, said
    assert count == 60_000


@pytest.fixture(scope="module")
def learned(long: Path, run: Run) -> Path:
    """What is learned when nothing disturbs it, in long enough a time to be killed in."""
    assert run(2, *learning(long, long / "undisturbed"))[0] == 0
    return long / "undisturbed"


def learning(long: Path, output: Path) -> list[object]:
    return ["optimize", long / "bank", "--objective", "spherical", "--steps", "1500", "-q", "-o", output]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are looked for there")
@pytest.mark.parametrize("victim", [0, 1])
def test_learning_that_is_killed_goes_on_from_where_it_was_last_known_to_stand(
    victim: int, long: Path, learned: Path, tmp_path: Path
):
    process = torchrun(2, *learning(long, tmp_path / "out"), restarts=3)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.checkpoint").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    assert (tmp_path / "out").read_bytes() == learned.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("split", ["memories", "queries"])
def test_queries_of_another_type_of_which_one_is_partial_are_answered_as_alone(
    split: str, tmp_path: Path, hopmem: Hopmem, run: Run
):
    draw = np.random.default_rng(3)
    rows = draw.integers(0, 256, (60, 12), dtype=np.uint8)
    MemoryBank.from_patterns(rows).tuned().save(tmp_path / "bank")
    queries = (rows[:20] + draw.standard_normal((20, 12))).astype(np.float32)
    queries[-1, 3] = np.nan
    np.save(tmp_path / "q.npy", queries)
    asked = ["retrieve", tmp_path / "bank", tmp_path / "q.npy", "-q", "--beta", "9"]
    hopmem(*asked, "-o", tmp_path / "alone.npy")
    code, _, said = run(3, *asked, "-o", tmp_path / "all.npy", "--split", split)
    assert (code, said) == (0, [])
    alone, together = np.load(tmp_path / "alone.npy"), np.load(tmp_path / "all.npy")
    assert together.dtype == alone.dtype
    assert np.abs(together - alone).max() <= SAME * 255


def test_a_bank_that_stands_is_not_overwritten_by_a_restart(shelf: Path, tmp_path: Path, run: Run):
    (tmp_path / "keep").write_bytes(b"thesis")
    asked = ["optimize", shelf / "few", "--objective", "average", "--steps", "2", "-o", tmp_path / "keep"]
    code, _, said = run(2, *asked, restarts=1)
    assert code != 0
    assert set(said) == {f"hopmem: {tmp_path / 'keep'}: exists already; --force overwrites it"}
    assert (tmp_path / "keep").read_bytes() == b"thesis"
