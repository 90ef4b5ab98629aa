"""Banks of several files: the same bank, whole or not at all, and nothing that changed goes unseen."""

import gc
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hopmem import header, shards
from hopmem.bank import MemoryBank, sharded
from tests.conftest import Hopmem
from tests.refusal import raises_refusal

M, D = 1000, 64


def bank(shard_size: int | None = 70_000, rows: int = M, dimension: int = D) -> MemoryBank:
    draw = torch.Generator().manual_seed(0)
    found = MemoryBank.from_patterns(torch.randn(rows, dimension, generator=draw), [f"n{row}" for row in range(rows)])
    return replace(found, shard_size=shard_size).tuned()


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    bank().save(tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def test_files_are_called_as_on_the_hugging_face_hub_and_the_index_says_what_is_in_which(stored: Path):
    found = names(stored.parent)
    assert found == [f"bank-{n:05}-of-00005.safetensors" for n in range(1, 6)] + ["bank.safetensors.index.json"]
    plain = json.loads((stored.parent / "bank.safetensors.index.json").read_text())
    held = {}
    for name in found[:-1]:
        with safe_open(stored.parent / name, framework="np") as opened:
            held |= dict.fromkeys(opened.keys(), name)
    assert plain["weight_map"] == held
    assert {name for name in held if "." in name and not name.startswith("padding")} == {"names.offsets"} | {
        f"patterns.{n:05}" for n in range(1, 6)
    }
    assert plain["metadata"]["total_size"] > M * D * 4


@pytest.mark.parametrize("size", [40_000, 70_000, 200_000])
@pytest.mark.parametrize("width", [0, 7, 16])
def test_no_file_is_larger_than_was_asked_for(tmp_path: Path, size: int, width: int):
    values = torch.ones(M, width) if width else None
    made = MemoryBank.from_patterns(bank().patterns, values=values)
    replace(made, shard_size=size).save(tmp_path / "bank")
    sizes = {each.name: each.stat().st_size for each in tmp_path.iterdir()}
    assert len(sizes) > 2
    assert max(sizes.values()) <= size, sizes


@pytest.mark.parametrize("name", ["bank.safetensors", "bank.safetensors.index.json"])
def test_a_bank_of_several_files_is_the_bank_of_one(stored: Path, name: str):
    found, whole = MemoryBank.load(stored.with_name(name)), bank()
    assert torch.equal(found.patterns, whole.patterns)
    assert (found.names, found.tuning, found.shape) == (whole.names, whole.tuning, whole.shape)


def test_its_files_are_mapped_and_not_copied_and_let_go_of_in_the_end(stored: Path):
    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc to look at")

    def mapped() -> int:
        return sum(str(stored.parent) in line for line in Path("/proc/self/maps").read_text().splitlines())

    found = MemoryBank.load(stored)
    rows = found.patterns[100:200]
    assert mapped() >= 5
    del found
    gc.collect()
    assert torch.equal(rows, bank().patterns[100:200])  # a view holds them
    del rows
    gc.collect()
    assert mapped() == 0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 300),
    dimension=st.integers(1, 40),
    size=st.integers(1000, 30_000),
    kind=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float64]),
    paired=st.booleans(),
)
def test_rows_of_any_width_and_number_come_back_from_files_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dimension: int, size: int, kind: torch.dtype, paired: bool
):
    folder = tmp_path_factory.mktemp("bank")
    X = (torch.arange(rows * dimension).reshape(rows, dimension) % 251).to(kind)
    V = torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3) if paired else None
    made = replace(MemoryBank.from_patterns(X, values=V), shard_size=size)
    made.save(folder / "bank")
    found = MemoryBank.load(folder / "bank")
    assert torch.equal(found.patterns, X)
    assert found.patterns.dtype == kind
    assert found.values is None if V is None else torch.equal(found.values, V)
    assert found.names == made.names
    index = shards.find(folder / "bank")
    if index is not None:
        draw = random.Random(rows)
        start, stop = sorted(draw.randrange(rows + 1) for _ in range(2))
        part = sharded.rows(folder / "bank", slice(start, stop))
        assert not part if start == stop else torch.equal(part["patterns"], X[start:stop])


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 7, 2000])
def test_rows_are_divided_among_processes_at_the_ends_of_files_where_there_are_enough(stored: Path, parts: int):
    index = shards.find(stored)
    assert index is not None
    rows = index.divided(parts)
    assert [each.start for each in rows] == [0, *(each.stop for each in rows[:-1])]
    assert rows[-1].stop == M
    if parts <= 5:
        assert {each.start for each in rows} <= set(index.starts)
        assert all(each.start < each.stop for each in rows)


def test_who_asks_for_some_rows_opens_their_files_alone(stored: Path):
    index = shards.find(stored)
    assert index is not None
    rows = slice(index.starts[1], index.starts[2])
    for file in (each for number, each in enumerate(index.files) if number != 1):
        file.unlink()
    assert torch.equal(sharded.rows(stored, rows)["patterns"], bank().patterns[rows])


def test_commands_do_with_it_what_they_do_with_one_file(tmp_path: Path, hopmem: Hopmem):
    draw = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", draw.standard_normal((M, D), dtype=np.float32))
    np.save(tmp_path / "more.npy", draw.standard_normal((50, D), dtype=np.float32))
    found = {}
    for name, more in {"one": [], "several": ["--shard-size", "68K"]}.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / "bank.safetensors"
        hopmem("store", tmp_path / "x.npy", "-o", path, *more)
        hopmem("store", tmp_path / "more.npy", "-o", path, "--append")
        hopmem("optimize", path, "--objective", "average", "--steps", "3")
        hopmem("retrieve", path, tmp_path / "more.npy", "-o", tmp_path / f"{name}.npy")
        plain = json.loads(hopmem("inspect", path, "--verify", "--json").stdout)
        found[name] = {**plain, "seconds": 0}, (tmp_path / f"{name}.npy").read_bytes()
    assert found["one"] == found["several"]
    assert names(tmp_path / "one") == ["bank.safetensors"]
    index = shards.find(tmp_path / "several" / "bank.safetensors")
    assert index is not None
    assert sorted(map(str, [index.path, *index.files])) == sorted(map(str, (tmp_path / "several").iterdir()))


def test_what_store_says_of_its_size_is_what_lies_there(tmp_path: Path, hopmem: Hopmem):
    np.save(tmp_path / "x.npy", np.ones((M, D), dtype=np.float32))
    said = json.loads(hopmem("store", tmp_path / "x.npy", "-o", tmp_path / "b", "--shard-size", "68K", "--json").stdout)
    assert said["bytes"] == sum(each.stat().st_size for each in tmp_path.glob("b*"))


def test_a_file_has_a_row_at_least(tmp_path: Path):
    bank(1, rows=5).save(tmp_path / "bank")
    assert len(names(tmp_path)) == 6
    assert torch.equal(MemoryBank.load(tmp_path / "bank").patterns, bank(rows=5).patterns)


def test_a_bank_that_fits_one_file_is_one(tmp_path: Path, hopmem: Hopmem):
    np.save(tmp_path / "x.npy", np.ones((10, D), dtype=np.float32))
    hopmem("store", tmp_path / "x.npy", "-o", tmp_path / "bank", "--shard-size", "5G")
    assert names(tmp_path) == ["bank", "x.npy"]


@pytest.mark.parametrize("size", ["0", "many", "-1"])
def test_a_size_that_is_none_is_refused(tmp_path: Path, hopmem: Hopmem, size: str):
    np.save(tmp_path / "x.npy", np.ones((10, D), dtype=np.float32))
    said = hopmem("store", tmp_path / "x.npy", "-o", tmp_path / "bank", f"--shard-size={size}", code=2).stderr
    assert "--shard-size: expected a size" in said


def test_what_stands_is_not_replaced_unless_that_is_asked_for(stored: Path, hopmem: Hopmem):
    np.save(stored.with_name("x.npy"), np.ones((10, D), dtype=np.float32))
    before = {each.name: each.read_bytes() for each in stored.parent.iterdir()}
    for name in (stored, stored.with_name(stored.name + ".index.json")):
        for more in ([], ["--shard-size", "1K"]):
            assert "exists already" in hopmem("store", stored.with_name("x.npy"), "-o", name, *more, code=2).stderr
    assert {each.name: each.read_bytes() for each in stored.parent.iterdir()} == before


def test_a_new_version_takes_the_place_of_the_old_in_one_file_or_several(stored: Path):
    for shard_size in (70_000, 30_000, None, 70_000):
        made = replace(bank(rows=M - 1), shard_size=shard_size)
        made.save(stored)
        assert len(MemoryBank.load(stored)) == M - 1
        index = shards.find(stored)
        wanted = [stored.name] if index is None else [index.path.name, *(file.name for file in index.files)]
        assert names(stored.parent) == sorted(wanted)


def test_files_of_others_are_left_alone(stored: Path):
    for name in ("bank-00001-of-00002.safetensors", "bank-notes.txt", "bank.2-00001-of-00009.safetensors"):
        stored.with_name(name).write_bytes(b"mine")
    bank(30_000).save(stored)
    bank(None).save(stored)
    assert names(stored.parent) == [
        "bank-00001-of-00002.safetensors",
        "bank-notes.txt",
        "bank.2-00001-of-00009.safetensors",
        "bank.safetensors",
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("what", ["flip", "cut", "gone", "other"])
def test_one_altered_file_is_refused(stored: Path, number: int, what: str, hopmem: Hopmem):
    index = shards.find(stored)
    assert index is not None
    file = index.files[number]
    raw = bytearray(file.read_bytes())
    raw[header.read(file).tensors[f"patterns.{number + 1:05}"].begin + 5] ^= 4
    {
        "flip": lambda: file.write_bytes(raw),
        "cut": lambda: file.write_bytes(raw[:-9]),
        "gone": file.unlink,
        "other": lambda: file.write_bytes(index.files[number - 1].read_bytes()),
    }[what]()
    found = hopmem("inspect", stored, "--seed", "5", code=6).stderr
    assert file.name in found
    assert len(found.splitlines()) == 1


def test_a_large_file_that_was_altered_is_seen_when_that_is_asked_for(stored: Path, monkeypatch, hopmem: Hopmem):
    monkeypatch.setattr(header, "CHEAP", 100)
    index = shards.find(stored)
    assert index is not None
    raw = bytearray(index.files[2].read_bytes())
    raw[header.read(index.files[2]).tensors["patterns.00003"].begin + 5] ^= 4
    index.files[2].write_bytes(raw)
    MemoryBank.load(stored)
    with raises_refusal(6, "tensor patterns.00003", "checksum"):
        sharded.verify(stored)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "hopmem.index/2"},
        {"rows": [0, 1000]},
        {"rows": [0, 5, 4, 6, 7, 1000]},
        {"rows": [0, 200, 400, 600, 800, 1000.5]},
        {"rows": [0, 100, 200, 300, 400, 500]},
        {"files": ["../x"] * 5},
        {"files": []},
        {"headers": ["0"] * 5},
        {"shard_size": "much"},
    ],
)
def test_an_index_that_contradicts_itself_or_its_files_is_refused(stored: Path, change: dict, hopmem: Hopmem):
    path = stored.with_name(stored.name + ".index.json")
    plain = json.loads(path.read_text())
    plain["metadata"] |= change
    path.write_text(json.dumps(plain))
    assert len(hopmem("inspect", stored, "--seed", "5", code=6).stderr.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"metadata": 3, "weight_map": {}}', "\xff", "[" * 5000])
def test_what_is_no_index_is_refused(stored: Path, text: str, hopmem: Hopmem):
    stored.with_name(stored.name + ".index.json").write_text(text, encoding="latin-1")
    said = hopmem("retrieve", stored, stored, code=6).stderr
    assert "index.json: expected a hopmem.index/1" in said
    assert len(said.splitlines()) == 1


def test_one_file_of_several_is_no_bank_and_says_which_is(stored: Path, hopmem: Hopmem):
    said = hopmem("inspect", stored.with_name("bank-00002-of-00005.safetensors"), code=6).stderr
    assert "one file of several: the bank is bank.safetensors" in said


def test_an_index_that_is_not_there_is_missing(tmp_path: Path, hopmem: Hopmem):
    assert "found nothing there" in hopmem("inspect", tmp_path / "bank.index.json", code=3).stderr


def test_answers_do_not_go_where_a_file_of_the_bank_is(stored: Path, hopmem: Hopmem):
    np.save(stored.with_name("q.npy"), np.ones((3, D), dtype=np.float32))
    for name in ("bank-00002-of-00005.safetensors", "bank.safetensors.index.json"):
        asked = ["retrieve", stored, stored.with_name("q.npy"), "-o", stored.with_name(name), "--force"]
        assert "another file than what is read" in hopmem(*asked, code=2).stderr


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_bank_or_the_new(tmp_path: Path):
    draw, path = random.Random(0), tmp_path / "bank.safetensors"
    bank().save(path)
    code = (
        "import sys, torch; from hopmem.bank import MemoryBank; from dataclasses import replace;"
        f"b = replace(MemoryBank.from_patterns(torch.ones({M + 1}, {D})), shard_size=9000);"
        "print('begins', flush=True); b.save(sys.argv[1]); print('ends', flush=True)"
    )
    seen = set()
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begins\n"
            time.sleep(draw.uniform(0, 0.6))
            os.kill(process.pid, signal.SIGKILL)
        seen.add(len(MemoryBank.load(path)))
        if len(seen) == 2:
            bank().save(path)
            seen.discard(M + 1)
    bank().save(path)
    assert len(MemoryBank.load(path)) == M
    index = shards.find(path)
    assert index is not None
    left = [each for each in names(tmp_path) if not each.startswith(".hopmem-")]
    assert left == sorted([index.path.name, *(file.name for file in index.files)])


@pytest.mark.parametrize("shard_size", [None, 70_000])
@pytest.mark.parametrize("parts", [1, 2, 3, 7, 1300])
def test_parts_of_a_bank_make_the_whole_and_its_outline_has_no_rows(tmp_path: Path, shard_size: int | None, parts: int):
    path = tmp_path / "bank"
    bank(shard_size).save(path)
    outline = MemoryBank.outline(path)
    assert outline.patterns.device.type == "meta"
    assert (len(outline), outline.dimension, outline.names) == (M, D, bank().names)
    found = [outline.part(path, rows) for rows in sharded.divided(path, M, parts)]
    assert len(found) == parts
    assert torch.equal(torch.cat([each.patterns for each in found]), bank().patterns)
    assert all(each.names == () for each in found)


def test_rows_of_another_bank_than_the_outline_are_refused(tmp_path: Path):
    bank().save(tmp_path / "bank")
    bank(dimension=D - 1).save(tmp_path / "other")
    with raises_refusal(6, "patterns of one bank", "another"):
        MemoryBank.outline(tmp_path / "bank").part(tmp_path / "other", slice(0, 5))


def test_an_interruption_after_the_index_was_renamed_keeps_the_new_bank(stored: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_folder: Path) -> None:
        if shards.read(shards.index_path(stored)).starts[-1] == M - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("hopmem.atomic._sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bank(rows=M - 1).save(stored)
    assert len(MemoryBank.load(stored)) == M - 1
    monkeypatch.undo()
    bank().save(stored)
    assert len(names(stored.parent)) == 6  # what was left behind has gone


def test_an_interruption_before_that_keeps_the_old_one_and_nothing_else(stored: Path, monkeypatch: pytest.MonkeyPatch):
    before = {each.name: each.read_bytes() for each in stored.parent.iterdir()}

    def interrupt(*_args: object, **_how: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hopmem.shards.write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bank(rows=M - 1).save(stored)
    assert {each.name: each.read_bytes() for each in stored.parent.iterdir()} == before


def test_an_index_that_nobody_would_read_is_not_written(stored: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(header, "LONGEST", 1 << 12)
    with raises_refusal(2, "--shard-size", "an index of at most"):
        bank(9_000).save(stored)
    monkeypatch.undo()
    assert len(MemoryBank.load(stored)) == M


def test_the_index_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"a": "b"}}')
    bank(None).save(tmp_path / "model.safetensors")
    assert names(tmp_path) == ["model.safetensors", "model.safetensors.index.json"]
    assert len(MemoryBank.load(tmp_path / "model.safetensors")) == M


def test_answers_do_not_take_the_name_by_which_the_bank_is_found(stored: Path, hopmem: Hopmem):
    np.save(stored.with_name("q.npy"), np.ones((3, D), dtype=np.float32))
    for name in (stored, stored.with_name(stored.name + ".index.json")):
        said = hopmem("retrieve", name, stored.with_name("q.npy"), "-o", stored, code=2).stderr
        assert "another name than that of the bank" in said


def test_many_names_do_not_keep_the_files_from_being_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = MemoryBank.from_patterns(torch.ones(2000, D), [f"{row:040}" for row in range(2000)])
    replace(made, shard_size=80_000).save(tmp_path / "bank")
    copied = []
    monkeypatch.setattr("hopmem.bank.adjoin.joined", copied.append)
    assert len(MemoryBank.load(tmp_path / "bank").patterns) == 2000
    assert copied == []


def test_a_bank_that_is_replaced_again_and_again_is_whole_for_who_opens_it(stored: Path):
    code = (
        "import sys, torch; from hopmem.bank import MemoryBank; from dataclasses import replace\n"
        f"for row in range(30): replace(MemoryBank.from_patterns(torch.full((300, {D}), row + 1.0)),"
        " shard_size=None if row % 3 == 0 else 20_000).save(sys.argv[1])"
    )
    seen = set()
    with subprocess.Popen([sys.executable, "-c", code, stored]) as process:
        while process.poll() is None:
            patterns = MemoryBank.load(stored).patterns
            assert len(patterns) in {300, M}
            if len(patterns) == 300:
                assert bool((patterns == patterns[0, 0]).all())
                seen.add(float(patterns[0, 0]))
    assert process.returncode == 0
    assert len(seen) > 3


def test_a_bank_can_be_sent_to_another_process(stored: Path):
    found = pickle.loads(pickle.dumps(MemoryBank.load(stored)))
    assert found.names == bank().names
    assert torch.equal(found.patterns, bank().patterns)
