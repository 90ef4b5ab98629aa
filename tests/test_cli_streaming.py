"""`hopmem retrieve` with more queries than fit the memory limit: they go through in blocks, and nothing shows it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopmem import devices, verbs
from hopmem.devices import DEFAULT_BUDGET
from hopmem.patterns import Reading
from hopmem.pipeline import Machine
from hopmem.pipeline.retrieve import retrieve
from tests.conftest import Array, Ask, Hopmem, write_queries

COUNT = 1_200
LITTLE = ["--memory-limit", "56M"]


@pytest.fixture(scope="module")
def queries(vectors: Array, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_queries(tmp_path_factory.mktemp("queries") / "queries.npy", vectors, COUNT)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks under the smallest limit be of 682 queries of six entries: the usual 10,922 take seconds."""
    monkeypatch.setattr(devices, "SMALLEST", 1 << 17)
    monkeypatch.setattr(devices, "SHARE_OF_LIMIT", 1 << 10)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("suffix", ["npy", "csv", "npz"])
def test_blocks_change_nothing(suffix, bank: Path, queries: Path, tmp_path: Path, ask: Ask, hopmem: Hopmem):
    options = ["--top", 3, "--min-confidence", 0.6]
    whole, parts = tmp_path / f"whole.{suffix}", tmp_path / f"parts.{suffix}"
    at_once = ask("retrieve", bank, queries, "-o", whole, *options)
    result = hopmem("retrieve", bank, queries, "-o", parts, "--ndjson", *options, *LITTLE)
    for one, line in zip(at_once["results"], result.stdout.splitlines(), strict=True):
        other = json.loads(line)
        for key, value in one.items():
            assert other[key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key
    assert all(warning in result.stderr for warning in at_once["warnings"])
    if suffix == "npy":
        np.testing.assert_allclose(np.load(parts), np.load(whole), atol=1e-5)
    else:
        assert parts.stat().st_size == pytest.approx(whole.stat().st_size, rel=0.01)


@pytest.mark.usefixtures("small_blocks")
def test_every_answer_is_a_line_in_order(bank: Path, queries: Path, hopmem: Hopmem, ask: Ask):
    lines = hopmem("retrieve", bank, queries, "--ndjson", *LITTLE).stdout.splitlines()
    assert [json.loads(line)["query"] for line in lines] == [str(row) for row in range(COUNT)]
    assert json.loads(lines[-1])["match"] == ask("retrieve", bank, queries)["results"][-1]["match"]


def answered(bank: Path, queries: Path, budget: int, **options: Any) -> tuple[list[Any], Any]:
    """Retrieve, and note what happens in which order."""
    events: list[Any] = []
    machine = Machine("cpu", budget=budget, watch=lambda *told: events.append(told))
    outcome = retrieve(
        str(bank),
        [str(queries)],
        None,
        Reading(),
        machine,
        emit=lambda m: events.append(len(m)),
        most=0,
        beta="auto",
        **options,
    )
    return events, outcome


def test_answers_are_told_as_they_come_and_how_fast(bank: Path, queries: Path):
    events, outcome = answered(bank, queries, 1 << 16)
    told = [event for event in events if isinstance(event, int)]
    assert len(told) > 3
    assert sum(told) == COUNT
    assert outcome.result.results == []
    assert outcome.result.more == COUNT
    done = [event for event in events if not isinstance(event, int) and event[0] == "retrieving"]
    assert [event[1] for event in done] == sorted(event[1] for event in done)
    assert {event[2] for event in done} == {COUNT}
    assert all(event[3].endswith("queries/s") for event in done)
    first = events.index(told[0])
    assert any(event in events[first:] for event in done)  # the first were told before the last were answered


def test_when_memory_runs_out_the_blocks_are_halved_and_stay_so(bank: Path, queries: Path, monkeypatch):
    real, asked = verbs.retrieve, []

    def scarce(*args: Any, budget: int, **options: Any) -> verbs.Answer:
        asked.append(budget)
        if budget > DEFAULT_BUDGET // 4:
            raise MemoryError
        return real(*args, budget=budget, **options)

    whole = answered(bank, queries, DEFAULT_BUDGET)[0]
    monkeypatch.setattr(verbs, "retrieve", scarce)
    assert [each for each in answered(bank, queries, DEFAULT_BUDGET)[0] if isinstance(each, int)] == [
        each for each in whole if isinstance(each, int)
    ]
    assert asked == [DEFAULT_BUDGET, DEFAULT_BUDGET // 2, DEFAULT_BUDGET // 4]


def test_memory_that_never_suffices_ends_in_its_exit_code(bank: Path, queries: Path, monkeypatch, hopmem: Hopmem):
    def never(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(verbs, "retrieve", never)
    assert "--memory-limit" in hopmem("retrieve", bank, queries, code=5).stderr


@pytest.mark.usefixtures("small_blocks")
def test_what_was_half_written_is_not_left_behind(
    bank: Path, queries: Path, tmp_path: Path, monkeypatch, hopmem: Hopmem
):
    real, calls = verbs.retrieve, []

    def breaks(*args: Any, **options: Any) -> verbs.Answer:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return real(*args, **options)

    monkeypatch.setattr(verbs, "retrieve", breaks)
    hopmem("retrieve", bank, queries, "-o", tmp_path / "out.npy", *LITTLE, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy.checkpoint"]  # the answers that were whole


@pytest.mark.usefixtures("small_blocks")
def test_a_dry_run_estimates_and_writes_nothing(bank: Path, queries: Path, tmp_path: Path, ask: Ask, hopmem: Hopmem):
    said = ask("retrieve", bank, queries, "-o", tmp_path / "out.npy", "--dry-run")
    assert said["results"] == []
    assert said["estimate"]["queries"] == COUNT
    assert 0 < said["estimate"]["seconds"] < 600
    assert said["estimate"]["bytes"] > DEFAULT_BUDGET
    assert list(tmp_path.iterdir()) == []
    less = ask("retrieve", bank, queries, "--dry-run", *LITTLE)["estimate"]["bytes"]
    assert less < said["estimate"]["bytes"]
    shown = hopmem("retrieve", bank, queries, "--dry-run").stdout
    assert "1,200" in shown
    assert "memory" in shown
    assert "estimate" not in ask("retrieve", bank, queries)
