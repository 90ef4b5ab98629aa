"""Hosts: network namespaces of one machine, each with an address, a name, processes and mounts of its own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from hopmem.bank import MemoryBank
from tests.conftest import Hopmem

dist = pytest.importorskip("torch.distributed")
TOOLS = ("ip", "unshare", "nsenter", "mount")
PORT, PATIENCE = 29400, 8  # where the hosts meet; seconds that a host is waited for
COUNT = 60_000  # queries, in a dozen blocks


@dataclass(frozen=True)
class Running:
    """torchrun on a host, and what is said there."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def ends(self) -> tuple[int, str]:
        code = self.process.wait(timeout=240)
        return code, self.log.read_text()


def do(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True)


def refusal() -> str | None:
    """Why hosts can't be made here."""
    if sys.platform != "linux" or not dist.is_available():
        return "hosts are namespaces of Linux"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"hosts are made with {', '.join(lacking)}"
    found = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "wire", "type", "bridge"],
        capture_output=True,
        check=False,
        text=True,
    )
    return f"hosts are not permitted: {found.stderr.strip()}" if found.returncode else None


pytestmark = [pytest.mark.slow, pytest.mark.skipif(refusal() is not None, reason=str(refusal()))]


@contextmanager
def namespaces(*kinds: str) -> Iterator[int]:
    """A process that sleeps in namespaces of its own; with it ends all that is in them."""
    kept = [f"--{kind}" for kind in kinds]
    process = subprocess.Popen(["unshare", *kept, "--fork", "--kill-child", "sleep", "infinity"])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        until(lambda: bool(children.read_text()))
        yield int(children.read_text())
    finally:
        process.kill()
        process.wait()


class Host:
    """One of several machines on a wire."""

    def __init__(self, number: int, wire: int, logs: Path, stack: ExitStack) -> None:
        self.number, self.address = number, f"10.77.0.{number}"
        self.wire, self.logs, self.stack = wire, logs, stack
        self.start()

    def start(self) -> None:
        self.life, self.running = self.stack.enter_context(ExitStack()), list["subprocess.Popen[bytes]"]()
        self.life.callback(lambda running: [each.wait() for each in running], self.running)  # which ends with the host
        self.process = self.life.enter_context(namespaces("net", "uts", "mount", "pid"))
        self.switch("add", f"host{self.number}", "type", "veth", "peer", "name", "eth0", "netns", self.process)
        self.switch("set", f"host{self.number}", "master", "wire", "up")
        self.inside("hostname", f"host{self.number}")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.inside("ip", "link", "set", device, "up")

    def switch(self, *words: object) -> None:
        do("nsenter", "--net", f"--target={self.wire}", "ip", "link", *words)

    def enter(self, *words: object) -> list[str]:
        kinds = ["--net", "--uts", "--mount", "--pid"]
        return ["nsenter", *kinds, f"--target={self.process}", *map(str, words)]

    def inside(self, *words: object) -> None:
        do(*self.enter(*words))

    def cut(self) -> None:
        """Pull the plug of its wire: nobody is told."""
        self.switch("set", f"host{self.number}", "down")

    def kill(self) -> None:
        """Cut the power."""
        self.cut()
        os.kill(self.process, signal.SIGKILL)
        self.switch("delete", f"host{self.number}")
        self.life.close()

    def torchrun(self, nodes: str, *command: object, restarts: int = 3) -> Running:
        launch = [
            "-m",
            "torch.distributed.run",
            f"--nnodes={nodes}",
            "--nproc-per-node=1",
            f"--max-restarts={restarts}",
        ]
        launch += ["--rdzv-backend=c10d", f"--rdzv-endpoint=10.77.0.1:{PORT}", f"--local-addr={self.address}"]
        quick = "last_call_timeout=4,keep_alive_interval=1,read_timeout=10"
        launch.append(f"--rdzv-conf=is_host={int(self.number == 1)},{quick}")
        words = self.enter(sys.executable, *launch, "-m", "hopmem", *command)
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "HOPMEM_PATIENCE": str(PATIENCE)}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or a host that is started again finds none
        log = self.logs / f"{self.number}-{len(list(self.logs.iterdir()))}"
        with log.open("wb") as said:
            process = subprocess.Popen(words, stdout=said, stderr=said, env=environment)
        self.running.append(process)
        return Running(process, log)


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    logs = tmp_path_factory.mktemp("said")
    with ExitStack() as stack:
        wire = stack.enter_context(namespaces("net"))
        do("nsenter", "--net", f"--target={wire}", "ip", "link", "add", "wire", "up", "type", "bridge")
        yield [Host(number, wire, logs, stack) for number in (1, 2, 3)]


def until(found: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, hopmem: Hopmem) -> Path:
    folder, draw = tmp_path_factory.mktemp("hosts"), np.random.default_rng(1)
    np.save(folder / "x.npy", draw.standard_normal((2000, 64), dtype=np.float32))
    np.save(folder / "q.npy", draw.standard_normal((COUNT, 64), dtype=np.float32))
    hopmem("store", folder / "x.npy", "-o", folder / "bank")
    hopmem(*asked(folder, folder / "alone.npy"))
    return folder


def asked(shelf: Path, output: Path) -> list[object]:
    return ["retrieve", shelf / "bank", shelf / "q.npy", "-o", output, "-q", "--memory-limit", "80M"]


def blocks(output: Path) -> int:
    """How many blocks of queries were answered."""
    return len(list(output.parent.glob(f"{output.name}.checkpoint/*-*")))


def same(output: Path, shelf: Path) -> bool:
    """Whether the answers are those of one process alone, and lie alone."""
    expected = np.load(shelf / "alone.npy")
    close = np.abs(np.load(output) - expected).max() < 1e-5 * np.abs(expected).max()
    return bool(close) and [each.name for each in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("split", ["memories", "queries"])
def test_hosts_answer_as_one_process(split: str, hosts: list[Host], shelf: Path, tmp_path: Path):
    command = [*asked(shelf, tmp_path / "out.npy"), "--split", split]
    for running in [host.torchrun("3", *command, restarts=0) for host in hosts]:
        code, said = running.ends()
        assert code == 0, said
        assert "hopmem: " not in said
    assert same(tmp_path / "out.npy", shelf)


def test_a_host_that_is_lost_and_started_again_costs_time_and_nothing_else(
    hosts: list[Host], shelf: Path, tmp_path: Path
):
    out = tmp_path / "out.npy"
    command = [*asked(shelf, out), "--split", "memories"]
    first, _, third = (host.torchrun("3", *command) for host in hosts)
    until(lambda: blocks(out) > 2)
    hosts[1].kill()
    hosts[1].start()
    second = hosts[1].torchrun("3", *command)
    for running in (first, second, third):
        code, said = running.ends()
        assert code == 0, said
    assert same(out, shelf)


@pytest.mark.parametrize("how", ["kill", "cut"])
def test_two_hosts_go_on_without_the_third(how: str, hosts: list[Host], shelf: Path, tmp_path: Path):
    out = tmp_path / "out.npy"
    running = [host.torchrun("2:3", *asked(shelf, out), "--split", "memories") for host in hosts]
    until(lambda: blocks(out) > 2)
    getattr(hosts[2], how)()
    for each in running[:2]:
        code, said = each.ends()
        assert code == 0, said
    assert same(out, shelf)


def test_all_hosts_may_be_lost_and_the_next_run_goes_on(hosts: list[Host], shelf: Path, tmp_path: Path):
    out = tmp_path / "out.npy"
    command = [*asked(shelf, out), "--split", "memories"]
    for host in hosts:
        host.torchrun("3", *command)
    until(lambda: blocks(out) > 2)
    for host in hosts:
        host.kill()
    first = next(out.parent.glob(f"{out.name}.checkpoint/0-*"))
    written = first.stat().st_mtime_ns
    for host in hosts:
        host.start()
    again = [host.torchrun("3", *command, restarts=0) for host in hosts]
    count = blocks(out)
    until(lambda: blocks(out) > count or out.exists())
    assert out.exists() or first.stat().st_mtime_ns == written  # what was answered is not answered again
    for running in again:
        code, said = running.ends()
        assert code == 0, said
    for each in out.parent.glob(".hopmem-*"):
        each.unlink()  # what a host was writing: whether it lives, nobody else can tell
    assert same(out, shelf)


@pytest.mark.parametrize("change", ["another bank", "other bytes"])
def test_hosts_whose_banks_differ_are_refused_before_any_work(
    change: str, hosts: list[Host], shelf: Path, tmp_path: Path
):
    other = tmp_path / "other"
    MemoryBank.from_patterns(np.load(shelf / "x.npy")[:1000]).tuned().save(other)
    if change == "other bytes":
        raw = bytearray((shelf / "bank").read_bytes())
        raw[-5] ^= 1  # a header says nothing of it
        other.write_bytes(raw)
    hosts[2].inside("mount", "--bind", other, shelf / "bank")
    (tmp_path / "answers").mkdir()
    running = [host.torchrun("3", *asked(shelf, tmp_path / "answers" / "out.npy"), restarts=0) for host in hosts]
    codes, said = zip(*(each.ends() for each in running), strict=True)
    lines = [line for text in said for line in text.splitlines() if line.startswith("hopmem: ")]
    assert 0 not in codes
    assert len(lines) == 1
    assert "exitcode  : 6" in "".join(said)
    assert ("another one with process 2 on host3" if change == "another bank" else "expected") in lines[0]
    assert list((tmp_path / "answers").iterdir()) == []
