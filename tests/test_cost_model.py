"""What several processes send: the formula of the cost model is what they count, and what the kernel counts."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hopmem.bank import MemoryBank
from hopmem.devices import budget, size
from hopmem.model import meeting
from hopmem.model.hopfield import Dynamics, Retrieval, complete, retrieve
from hopmem.model.meeting import Shard
from hopmem.model.sieve import states_at_once
from tests.model.test_meeting import B, bank, d, draw, of_rows, together

FOLDER = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> Any:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # where its dataclasses look for their module
    spec.loader.exec_module(found)
    return found


model = script("cost_model")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """For how many states the first process has made a sum for a threshold, and sought one."""
    counts = {"sums": 0, "root": 0}

    def spy(name: str) -> None:
        of_all = getattr(meeting._TermsOfAll, name)

        def spied(terms: Any, *rest: Any, **options: Any) -> Any:
            counts[name] += len(terms.below) if terms.shard.start == 0 else 0
            return of_all(terms, *rest, **options)

        monkeypatch.setattr(meeting._TermsOfAll, name, spied)

    for name in counts:
        spy(name)
    return counts


@pytest.mark.parametrize("M", [300, 9000])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_what_is_sent_is_what_the_formula_says_for_any_number_of_memories(
    alpha: float, steps: int, M: int, counted: dict[str, int]
):
    memory = bank(M, learned=True)
    dynamics = Dynamics(alpha, 3.0, steps, tolerance=0.0, top=4)

    def work(rows: slice, shard: Shard) -> Retrieval:
        part = of_rows(memory, rows)
        return retrieve(draw(B, d, seed=2), part, part.patterns, d, dynamics, shard=shard)

    (found, _), met = together([M // 3, M], work)
    assert found.steps.tolist() == [steps] * B  # or less would be sent
    D, sums, roots = memory.dimension, counted["sums"] / B / steps, counted["root"] / B / steps
    assert met.sent == pytest.approx(model.traffic(B, D, d, 4, alpha, steps, sums, roots).given, rel=1e-12)


@pytest.mark.parametrize("M", [300, 9000])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_what_is_sent_for_partial_queries_is_what_the_formula_says(alpha: float, M: int, counted: dict[str, int]):
    memory, known = bank(M, learned=False), torch.arange(d).expand(B, d) % 3 > 0

    def work(rows: slice, shard: Shard) -> Retrieval:
        part = of_rows(memory, rows)
        return complete(draw(B, d, seed=2), known, part, part.patterns, d, Dynamics(alpha, 3.0), shard=shard)

    _, met = together([M // 3, M], work)
    masks = B * d  # which `Company` has told before
    sums, roots = counted["sums"] / B, counted["root"] / B
    assert met.sent + masks == model.traffic(B, d, d, 1, alpha, 1, sums, roots, known=d).given


def alone_in_a_network(*command: object) -> int:
    """Bytes that processes send over the loopback interface, where nobody else does."""
    script = 'ip link set lo up && "$@" && cat /proc/net/dev'
    words = ["unshare", "--map-root-user", "--net", "sh", "-c", script, "sh", *map(str, command)]
    shown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[9])


def has_networks() -> bool:
    """Whether this system lets anybody have a network."""
    try:
        return alone_in_a_network("true") == 0
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not has_networks(), reason="needs a network namespace")
@pytest.mark.parametrize("P", [2, 3])
def test_the_kernel_counts_what_the_formula_says(P: int, tmp_path: Path):
    M, width, queries = 400, 256, 2000
    MemoryBank.from_patterns(draw(M, width)).save(tmp_path / "bank")
    np.save(tmp_path / "q.npy", draw(queries, width, seed=1).numpy())
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={P}", "--rdzv-backend=c10d"]
    asked = ["retrieve", tmp_path / "bank", tmp_path / "q.npy", "-q", "--alpha", 1, "--beta", 9, "--split", "memories"]
    sent = alone_in_a_network(*launch, "--rdzv-endpoint=localhost:0", "-m", "hopmem", *asked)
    assert sent == pytest.approx(model.traffic(queries, width, width, 1, 1.0).all(P), rel=0.03)


def test_the_page_shows_the_tables_that_the_model_computes():
    shown = subprocess.run(
        [sys.executable, FOLDER / "cost_model.py"], capture_output=True, text=True, check=True
    ).stdout
    page = (FOLDER.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    tables = re.findall(r"^<!-- \w+ -->\n(.*?)\n<!-- end -->", page, re.MULTILINE | re.DOTALL)
    assert len(tables) == len(model.TABLES)
    assert "".join(f"{table}\n\n" for table in tables) == shown


@pytest.mark.parametrize("limit", [None, "1G", "24G"])
@pytest.mark.parametrize("M", [1000, 5000, 1_000_000, 15_625_000])
def test_the_model_knows_how_many_queries_go_through_a_bank_together(M: int, limit: str | None):
    case = model.Case(M, 768, 5000, hosts=1, processes=1, threads=1, limit=None if limit is None else size(limit))
    assert case.budget == budget(limit)
    assert case.at_once == states_at_once(M, budget(limit) // 4)


def test_the_model_foretells_less_time_and_as_much_traffic_with_more_hosts():
    of = model.Constants(
        start=1, launch=1, name=0, read=1e-9, digest=1e-9, entry=1e-10, product=1e-11, hop=1e-5, byte=1e-9
    )
    few, many = (model.Case(10**8, 256, 64, hosts, 1, 2, limit=1 << 36) for hosts in (2, 16))
    assert many.computing(of) == pytest.approx(few.computing(of) / 8)
    assert many.reading(of) == pytest.approx(few.reading(of) / 8)
    assert few.part == 8 * many.part
    assert many.sending(of) > few.sending(of)
    assert many.traffic == few.traffic == model.Case(10**6, 256, 64, 2, 1, 2).traffic
