"""No byte of a bank changes unseen, and no header makes a reader do what it should not."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hopmem import header
from hopmem.bank import MemoryBank, file
from hopmem.header import Header
from tests.conftest import Ask, Hopmem
from tests.refusal import raises_refusal


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    MemoryBank.from_patterns(rng.normal(size=(20, 6)).astype(np.float32), [f"n{row}" for row in range(20)]).save(
        tmp_path / "bank"
    )
    return tmp_path / "bank"


def of(path: Path, plain: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with a header of one's own."""
    text = plain if isinstance(plain, bytes) else json.dumps(plain).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("seed", range(3))
def test_no_bit_flips_unseen(bank: Path, seed: int):
    raw, draw = bank.read_bytes(), random.Random(seed)
    for _ in range(150):
        at, bit = draw.randrange(len(raw)), 1 << draw.randrange(8)
        flipped = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        bank.write_bytes(flipped)
        try:
            MemoryBank.load(bank)
        except Exception as error:
            assert getattr(error, "exit_code", None) == 6, (at, bit, error)
        else:  # in the white space behind the header
            start = 8 + int.from_bytes(raw[:8], "little")
            assert json.loads(flipped[8:start]) == json.loads(raw[8:start])
            assert flipped[start:] == raw[start:]


def test_a_large_tensor_is_looked_at_when_that_is_asked_for(bank: Path, monkeypatch: pytest.MonkeyPatch, ask: Ask):
    monkeypatch.setattr(header, "CHEAP", 100)
    raw = bytearray(bank.read_bytes())
    begin = header.read(bank).tensors["patterns"].begin
    assert ask("inspect", bank, "--verify")["verified"] is True
    raw[begin + 3] ^= 1
    bank.write_bytes(raw)
    MemoryBank.load(bank)
    with raises_refusal(6, "tensor patterns", "checksum"):
        file.verify(bank)


def test_the_command_ends_in_6_where_a_byte_differs(bank: Path, hopmem: Hopmem):
    raw = bytearray(bank.read_bytes())
    raw[-1] ^= 1
    bank.write_bytes(raw)
    for more in ([], ["--verify"]):
        assert "checksum" in hopmem("inspect", bank, *more, code=6).stderr


def parts(bank: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(bank, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118 # no dictionary


def test_a_bank_of_an_older_version_that_kept_no_checksums_is_read(bank: Path, hopmem: Hopmem):
    tensors, metadata = parts(bank)
    save_file(tensors, bank, {key: text for key, text in metadata.items() if key not in {"checksums", "hopmem"}})
    assert len(MemoryBank.load(bank)) == 20
    assert "keeps no checksums" in hopmem("inspect", bank, "--verify").stderr


def test_a_bank_of_a_later_version_says_which_it_needs(bank: Path):
    tensors, metadata = parts(bank)
    save_file(tensors, bank, metadata | {"format": "hopmem.bank/2", "hopmem": "7.1.0"})
    with raises_refusal(6, "hopmem.bank/2", "needs hopmem 7.1.0"):
        MemoryBank.load(bank)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["patterns", "feature_map.weight"])
def test_what_is_not_finite_is_refused(bank: Path, name: str, value: float):
    tensors, metadata = parts(bank)
    tensors["feature_map.weight"], tensors["features"] = torch.eye(6), torch.ones(20, 6)
    tensors[name][1, 2] = value
    save_file(tensors, bank, {key: text for key, text in metadata.items() if key not in {"checksums", "hopmem"}})
    with raises_refusal(6, "finite", name):
        MemoryBank.load(bank)


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("plain", "data"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"),
        ({"a": entry(0, 4), "b": entry(5, 6)}, b"123456"),
        ({"a": entry(0, 9)}, b"123456"),
        ({"a": entry(0, 4)}, b"123456"),
        ({"a": entry(0, 6, [7])}, b"123456"),
        ({"a": entry(0, 6, [-1, -6])}, b"123456"),
        ({"a": entry(0, 6, [2**70])}, b"123456"),
        ({"a": entry(-3, 3)}, b"123456"),
        ({"a": entry(0, 6, [10**300] * 4000)}, b"123456"),
        ({"a": entry(0, 0, [0, 2**63])}, b""),
        ({"a": entry(0, 6, dtype="F8_E4M3")}, b"123456"),
        ({"a": entry(0, 6, dtype="Q7")}, b"123456"),
        ({"a": entry(0, 6) | {"shape": "x"}}, b"123456"),
        ({"a": [0, 6]}, b"123456"),
        ({"__metadata__": {"format": 7}}, b""),
        ({"__metadata__": []}, b""),
        ([], b""),
        (
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
        ),
        (b"[" * 100_000, b""),
        (b'{"a": 1' + b"0" * 10_000 + b"}", b""),
        (b"\xff\xfe{}", b""),
    ],
)
def test_a_header_that_lies_is_no_header(tmp_path: Path, plain: object, data: bytes):
    path = of(tmp_path / "lie", plain, data)
    assert header.metadata(path) == {}
    with raises_refusal(6, "lie", "safetensors"):
        MemoryBank.load(path)


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 2**63, 2**64 - 1])
def test_a_header_of_an_impossible_length_is_refused_before_it_is_read(tmp_path: Path, length: int):
    path = of(tmp_path / "lie", {}, b"x" * 50, length)
    with raises_refusal(6, "lie"):
        MemoryBank.load(path)


def test_checksums_that_are_no_checksums_are_refused(bank: Path):
    tensors, metadata = parts(bank)
    for kept in ("[]", "not JSON", "{}", "[" * 5000, json.dumps(json.loads(metadata["checksums"]) | {"more": "00"})):
        save_file(tensors, bank, metadata | {"checksums": kept})
        with raises_refusal(6, "checksum"):
            MemoryBank.load(bank)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("scale", text) for text in ("NaN", "Infinity", "-1")),
        *(("alpha", text) for text in ("NaN", "0.5")),
        ("seed", "1e999"),
        ("tuning", "[" * 5000),
        ("resized", "[" * 5000),
    ],
)
def test_a_number_out_of_its_range_is_refused(bank: Path, key: str, text: str):
    tensors, metadata = parts(bank)
    old = {name: kept for name, kept in metadata.items() if name not in {"checksums", "hopmem"}}
    save_file(tensors, bank, old | {key: text})
    with raises_refusal(6, "bank"):
        MemoryBank.load(bank)


def test_a_file_that_is_replaced_between_two_looks_is_looked_at_again(bank: Path):
    looks = []

    def look() -> Header:
        looks.append(1)
        if len(looks) < 4:
            other = bank.with_name("other")
            MemoryBank.from_patterns(np.eye(2 + len(looks))).save(other)
            other.replace(bank)
        return header.read(bank)

    assert header.steadily(bank, look).tensors["patterns"].shape == (5, 5)
    assert len(looks) == 4


OPTIMIZE = ("--objective", "average", "--steps", "1000000", "-q")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_best_map_and_says_so_in_the_exit_code(tmp_path: Path, number: signal.Signals, code: int):
    bank = tmp_path / "bank"
    MemoryBank.from_patterns(np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)).save(bank)
    command = [sys.executable, "-m", "hopmem", "optimize", str(bank), *OPTIMIZE]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(10)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert MemoryBank.load(bank).phi.W is not None
    assert {each.name for each in tmp_path.iterdir()} == {"bank", "bank.checkpoint"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, {130, -signal.SIGINT}), (signal.SIGTERM, {143, -signal.SIGTERM})]
)
def test_a_signal_at_any_time_ends_without_a_traceback(  # a shell says 130 and 143 of both
    bank: Path, number: signal.Signals, code: set[int]
):
    draw = random.Random(int(number))
    for _ in range(8):
        command = [sys.executable, "-m", "hopmem", "inspect", str(bank), "--beta", "7"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(draw.uniform(0.3, 2.0))
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode in {0, *code}, said
        assert "Traceback" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [("inspect", "BANK", "--json"), ("inspect", "BANK"), ("--version",)])
def test_a_full_standard_output_is_an_error(bank: Path, arguments: tuple[str, ...]):
    command = [sys.executable, "-m", "hopmem", *(str(bank) if each == "BANK" else each for each in arguments)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "No space left" in done.stderr


def test_a_closed_standard_output_is_an_error(bank: Path):
    command = f"{sys.executable} -m hopmem inspect {bank} --json >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert "standard output" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="there are no such limits")
@pytest.mark.parametrize("limit", [10, 50_000])
def test_a_limit_on_the_size_of_files_leaves_the_old_bank_and_nothing_else(bank: Path, tmp_path: Path, limit: int):
    before = bank.read_bytes()
    np.save(tmp_path / "more.npy", np.random.default_rng(1).normal(size=(1200, 6)))
    done = subprocess.run(
        [sys.executable, "-m", "hopmem", "store", str(tmp_path / "more.npy"), "-o", str(bank), "--force", "-q"],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode in {3, 5}, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "standard output" not in done.stderr
    assert bank.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bank", "more.npy"]
