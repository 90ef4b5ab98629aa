"""Hostile sources, names and places: each meets a documented exit code and one line, at once, and nothing is lost."""

import csv
import gzip
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import Result

from hopmem.cli.session import all_sources
from hopmem.patterns import Reading, load
from tests.conftest import Array, Ask, Hopmem
from tests.refusal import raises_refusal

MEBI = 1 << 20
SECONDS = 5.0  # until something that should answer at once is said to wait
ZEROS = np.zeros((1024, 2048), np.uint8)  # 2 MiB, which compress to next to nothing


@pytest.fixture
def at_once() -> Iterator[None]:
    """Fail instead of waiting for ever."""

    def ring(number: int, frame: object) -> None:
        pytest.fail("this waits")  # no OSError, which would be refused as one

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    """A named pipe that nobody writes to."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes here")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def device(name: str) -> str:
    if not Path(name).exists():
        pytest.skip(f"there is no {name} here")
    return name


def line(result: Result) -> str:
    """The one line of a refusal."""
    (only,) = result.stderr.splitlines()
    return str(only)


def below(folder: Path) -> list[str]:
    return sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*"))


def feed(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))


def answers(hopmem: Hopmem, folder: Path, bank: object, queries: object, *options: object) -> tuple[Array, Array]:
    """Store, retrieve, and read what came back."""
    np.save(folder / "bank.npy", bank)
    np.save(folder / "queries.npy", queries)
    hopmem("store", folder / "bank.npy", "-o", folder / "bank.safetensors", "--force")
    out = folder / "answers.npy"
    hopmem("retrieve", folder / "bank.safetensors", folder / "queries.npy", *options, "-o", out, "--force")
    return np.load(out), np.load(folder / "bank.npy")


# Answers keep to a type that holds them.


def test_answers_to_queries_of_half_precision_stay_finite(hopmem: Hopmem, tmp_path: Path):
    draw = np.random.default_rng(0)
    bank = (1e6 * draw.random((8, 6))).astype(np.float32)
    found, _ = answers(hopmem, tmp_path, bank, draw.random((3, 6)).astype(np.float16))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.max() > np.finfo(np.float16).max


@pytest.mark.parametrize("asked", ["?", "i1", "u1", "f2"])
@pytest.mark.parametrize("kept", ["i2", "i8", "u1", "u2"])
def test_stored_whole_numbers_come_back_whatever_the_type_of_the_queries(hopmem, tmp_path, kept, asked):
    draw, limits = np.random.default_rng(0), np.iinfo(kept)
    bank = draw.integers(max(limits.min, -1000), min(limits.max, 1000), (8, 6)).astype(kept)
    found, stored = answers(hopmem, tmp_path, bank, draw.integers(0, 2, (3, 6)).astype(asked), "--snap")
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in stored.tolist()}


@pytest.mark.parametrize("asked", ["i1", "i8", "f4"])
def test_the_largest_whole_number_does_not_change_its_sign(hopmem: Hopmem, tmp_path: Path, asked: str):
    bank = np.r_[np.full((1, 6), 2**63 - 1), 5 * np.eye(6, dtype=np.int64)]
    found, _ = answers(hopmem, tmp_path, bank, np.ones((1, 6), asked), "--snap")
    np.testing.assert_allclose(found.astype(float), np.full((1, 6), 2.0**63), rtol=1e-6)


def test_answers_to_true_and_false_in_a_table_can_be_read_back(hopmem: Hopmem, ask: Ask, tmp_path: Path):
    rows = np.eye(5, dtype=bool)
    np.save(tmp_path / "x.npy", rows)
    hopmem("store", tmp_path / "x.npy", "-o", tmp_path / "bank")
    hopmem("retrieve", tmp_path / "bank", tmp_path / "x.npy", "--snap", "-o", tmp_path / "out.csv")
    assert load([str(tmp_path / "out.csv")], Reading()).stored.tolist() == rows.tolist()
    assert ask("store", tmp_path / "out.csv", "-o", tmp_path / "again")["patterns"] == 5


# What is read is not written over.


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    "command", ["retrieve {bank} {x} -o {out}", "store {x} -o {out}", "store {y} --values {x} -o {out}"]
)
def test_what_is_read_is_not_written_over(command, link, hopmem: Hopmem, tmp_path: Path, bank: Path, array: Path):
    names = {name: tmp_path / file for name, file in (("bank", "bank"), ("x", "x.npy"), ("y", "y.npy"))}
    for path, source in zip(names.values(), (bank, array, array), strict=True):
        path.write_bytes(source.read_bytes())
    target = names["bank" if command.startswith("retrieve") else "x"]
    (tmp_path / "link").symlink_to(target)
    before = {path: path.read_bytes() for path in names.values()}
    arguments = command.format(**names, out=tmp_path / "link" if link else target).split()
    assert str(target) in line(hopmem(*arguments, "--force", code=2))
    assert {path: path.read_bytes() for path in names.values()} == before


# Pipes and devices are refused, and never waited for.


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "tsv", "pt", "safetensors", "idx", "idx.gz", "png", "txt", ""])
def test_a_pipe_is_refused_and_never_waited_for(at_once, tmp_path: Path, suffix: str):
    with raises_refusal(3, "a pipe"):
        load([str(pipe(tmp_path / (f"x.{suffix}" if suffix else "x")))], Reading())


def test_a_pipe_among_images_is_refused_or_skipped(at_once, hopmem: Hopmem, ask: Ask, tmp_path: Path):
    fifo, out = pipe(tmp_path / "in" / "b.png"), tmp_path / "bank"
    for name in ("a.png", "c.png"):
        Image.new("L", (4, 4)).save(tmp_path / "in" / name)
    assert str(fifo) in line(hopmem("store", tmp_path / "in", "-o", out, code=3))
    assert ask("store", tmp_path / "in", "-o", out, "--on-bad", "skip", code=7)["patterns"] == 2
    told = ask("retrieve", out, tmp_path / "in", "-o", tmp_path / "out", "--on-bad", "skip", code=7)
    assert [skip["name"] for skip in told["skipped"]] == ["b.png"]
    assert below(tmp_path / "out") == ["a.png", "c.png"]


@pytest.mark.parametrize(
    "command",
    [
        "inspect {pipe}", "retrieve {pipe} {x}", "optimize {pipe} -o {new}", "evaluate {pipe}", "store {x} -o {pipe}",
        "store {x} -o {pipe} --force", "store {x} -o {pipe} --append", "retrieve {bank} {x} -o {pipe} --force",
        "retrieve {bank} {x} --mask {pipe}.npy", "store {x} --values {pipe}.npy -o {new}",
    ],
)  # fmt: skip
def test_a_pipe_is_no_bank_no_mask_and_no_output(command, at_once, hopmem: Hopmem, tmp_path: Path, bank, array):
    pipe(tmp_path / "fifo")
    pipe(tmp_path / "fifo.npy")
    arguments = command.format(pipe=tmp_path / "fifo", x=array, bank=bank, new=tmp_path / "new")
    assert "pipe" in line(hopmem(*arguments.split(), code=3))
    assert below(tmp_path) == ["fifo", "fifo.npy"]


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "tsv", "pt", "safetensors", "idx", "idx.gz", "png"])
@pytest.mark.parametrize("name", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_source(at_once, tmp_path: Path, name: str, suffix: str):
    (tmp_path / f"z.{suffix}").symlink_to(device(name))
    with raises_refusal(3, "device"):
        load([str(tmp_path / f"z.{suffix}")], Reading())


def test_a_list_may_come_from_a_pipe(at_once, hopmem: Hopmem, ask: Ask, tmp_path: Path, array: Path):
    fifo = pipe(tmp_path / "list")
    writer = threading.Thread(target=fifo.write_text, args=(f"{array}\n{array}\n",), daemon=True)
    writer.start()
    assert ask("store", "-T", fifo, "-o", tmp_path / "bank")["patterns"] == 24
    writer.join()


# What unpacks to more than is allowed is refused before it does.


def npz(path: Path, array: Array) -> None:
    np.savez_compressed(path, x=array)


def idx_gz(path: Path, array: Array) -> None:
    shape = b"".join(length.to_bytes(4, "big") for length in array.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()))


def packed_pt(path: Path, array: Array) -> None:
    """As torch writes it, but compressed."""
    held = io.BytesIO()
    torch.save(torch.from_numpy(array), held)
    with zipfile.ZipFile(held) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def picture(path: Path, array: Array) -> None:
    Image.fromarray(array).save(path)


BOMBS = {"x.npz": npz, "x.idx.gz": idx_gz, "x.pt": packed_pt, "x.png": picture, "x.gif": picture}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_meets_the_limit_before_it_is_unpacked(tmp_path: Path, name: str):
    BOMBS[name](tmp_path / name, ZEROS)
    assert (tmp_path / name).stat().st_size < MEBI
    with raises_refusal(4, "--unpack-limit", name, f"{MEBI:,}"):
        load([str(tmp_path / name)], Reading(unpack_limit=MEBI))
    assert load([str(tmp_path / name)], Reading(unpack_limit=16 * MEBI)).stored.count_nonzero() == 0


@pytest.mark.parametrize("command", ["store {x} -o {new}", "retrieve {bank} {x}", "store {x} -o {new} --dry-run"])
def test_the_limit_is_an_option_or_a_variable(command, hopmem: Hopmem, tmp_path: Path, image_bank: Path):
    picture(tmp_path / "x.png", ZEROS)
    arguments = [*command.format(x=tmp_path / "x.png", new=tmp_path / "new", bank=image_bank).split(), "--size", "8x6"]
    told = [
        hopmem(*arguments, "--unpack-limit", "1M", code=4),
        hopmem(*arguments, env={"HOPMEM_UNPACK_LIMIT": "1M"}, code=4),
    ]
    assert all("--unpack-limit" in line(each) and "x.png" in line(each) for each in told)
    assert below(tmp_path) == ["x.png"]
    hopmem(*arguments, "--unpack-limit", "16M", env={"HOPMEM_UNPACK_LIMIT": "1M"})


@pytest.mark.parametrize("option", ["--mask", "--values"])
def test_masks_and_values_meet_the_limit_too(hopmem: Hopmem, tmp_path: Path, bank: Path, array: Path, option: str):
    npz(tmp_path / "x.npz", ZEROS)
    command = ["retrieve", bank, array] if option == "--mask" else ["store", array, "-o", tmp_path / "new"]
    assert "--unpack-limit" in line(hopmem(*command, option, tmp_path / "x.npz", "--unpack-limit", "1M", code=4))


@pytest.mark.parametrize("option", ["--noise-from", "--clean-from"])
def test_learning_from_examples_meets_the_limit_too(hopmem, tmp_path: Path, bank: Path, array: Path, option: str):
    npz(tmp_path / "x.npz", ZEROS)
    pairs = {"--noise-from": array, "--clean-from": array} | {option: tmp_path / "x.npz"}
    command = ["optimize", bank, "-o", tmp_path / "new", "--unpack-limit", "1M"]
    assert "--unpack-limit" in line(hopmem(*command, *(word for pair in pairs.items() for word in pair), code=4))


def test_a_bomb_among_images_is_skipped_on_demand(ask: Ask, tmp_path: Path):
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in" / "a.png", np.zeros((4, 4), np.uint8))
    picture(tmp_path / "in" / "b.png", ZEROS)
    options = ["--on-bad", "skip", "--unpack-limit", "1M", "--size", "4x4"]
    told = ask("store", tmp_path / "in", "-o", tmp_path / "bank", *options, code=7)
    assert [skip["name"] for skip in told["skipped"]] == ["b.png"]


@pytest.mark.parametrize("text", ["none", "-1", "1X", ""])
def test_a_limit_that_is_no_size_is_a_mistake_in_use(hopmem: Hopmem, array: Path, tmp_path: Path, text: str):
    command = ["store", array, "-o", tmp_path / "bank", f"--unpack-limit={text}"]
    assert "--unpack-limit" in line(hopmem(*command, code=2))


def test_a_member_that_holds_more_than_it_says_is_refused(tmp_path: Path):
    npz(tmp_path / "x.npz", ZEROS)
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    entry = raw.rindex(b"PK\x01\x02")  # of the list of members, whose sizes are believed
    raw[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(raw)
    with raises_refusal(3, "x.npz"):
        load([str(tmp_path / "x.npz")], Reading(unpack_limit=MEBI))


def test_no_more_is_unpacked_than_an_idx_says(tmp_path: Path):
    raw = gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 10, 0, 0, 0, 6]) + bytes(16 * MEBI))
    (tmp_path / "x.idx.gz").write_bytes(raw[:-1000])  # whoever read on would find the end torn off
    with raises_refusal(3, "60 bytes", "more"):
        load([str(tmp_path / "x.idx.gz")], Reading())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "<f8"])
@pytest.mark.parametrize("kind", ["npz", "idx.gz"])
def test_much_that_is_unpacked_is_mapped_and_read_alike(monkeypatch, tmp_path: Path, kind, dtype, order):
    rows = np.asarray(np.random.default_rng(0).integers(0, 200, (40, 3, 5)).astype(dtype), order=order)
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        npz(path, rows)
    else:
        code = {"u1": 0x08, ">i4": 0x0C, "<f8": 0x0E}[dtype]
        header = bytes([0, 0, code, 3, 0, 0, 0, 40, 0, 0, 0, 3, 0, 0, 0, 5])
        path.write_bytes(gzip.compress(header + rows.astype(np.dtype(dtype).newbyteorder(">")).tobytes("C")))
    whole = load([str(path)], Reading())
    monkeypatch.setattr("hopmem.patterns.unpack.IN_MEMORY", 100)
    monkeypatch.setattr("hopmem.patterns.unpack.AT_ONCE", 70)
    mapped = load([str(path)], Reading())
    assert whole.stored.tolist() == mapped.stored.tolist() == rows.reshape(40, -1).tolist()
    assert mapped.stored.dtype == whole.stored.dtype


@pytest.mark.parametrize("kind", ["npz", "idx.gz"])
def test_much_that_is_cut_short_is_unreadable(monkeypatch, tmp_path: Path, kind: str):
    monkeypatch.setattr("hopmem.patterns.unpack.IN_MEMORY", 100)
    noise, path = np.random.default_rng(0).integers(0, 256, (40, 15), np.uint8), tmp_path / f"x.{kind}"
    BOMBS[path.name](path, noise)
    raw = path.read_bytes()
    for length in range(1, len(raw), len(raw) // 30):
        path.write_bytes(raw[:length])
        with raises_refusal(3, path.name):
            load([str(path)], Reading())


# Standard input.


def test_a_closed_standard_input_is_unreadable(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with raises_refusal(3, "standard input", "closed"):
        load(["-"], Reading())
    with raises_refusal(3, "standard input", "closed"):
        all_sources(None, ["-"])


@pytest.mark.slow
@pytest.mark.parametrize("source", ["-", "-T -"])
def test_a_process_without_standard_input_says_so(tmp_path: Path, source: str):
    command = f"exec {sys.executable} -m hopmem store {source} -o {tmp_path / 'bank'} <&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "tsv", "safetensors", "pt", "idx", "image"])
def test_a_mistake_on_standard_input_names_no_file(monkeypatch, kind: str):
    feed(monkeypatch, b"\xff\x00garbage")
    with pytest.raises(Exception, match=r"^standard input") as caught:
        load(["-"], Reading(format=kind))
    assert "/" not in str(caught.value).split("found")[0]


@pytest.mark.parametrize(
    ("kind", "rows"), [("csv", b"1,2\n3,4\n5,inf\n"), ("csv", b"1,2\n3,4\n5\n"), ("npy", [[1.0, 2], [np.nan, 3]])]
)
def test_an_unusable_row_of_standard_input_names_no_file(monkeypatch, kind, rows):
    held = io.BytesIO(rows if isinstance(rows, bytes) else b"")
    if kind == "npy":
        np.save(held, rows)
    feed(monkeypatch, held.getvalue())
    with pytest.raises(Exception, match=r"^standard input, (line 3|row 1)"):
        load(["-"], Reading(format=kind))
    feed(monkeypatch, held.getvalue())
    (skip,) = load(["-"], Reading(format=kind, on_bad="skip")).skipped
    assert skip.reason.startswith("standard input, ")


def test_a_doubt_about_standard_input_names_no_file(monkeypatch):
    feed(monkeypatch, b"1,2,x3\n4,5,6\n")
    (note,) = load(["-"], Reading(format="csv")).notes
    assert note.startswith("standard input, line 1")


@pytest.mark.parametrize("rows", [b"1,2\n", b"1,2,3,4,5,6\n,,,,,\n"])
def test_queries_of_standard_input_that_do_not_fit_are_called_so(hopmem: Hopmem, bank: Path, rows: bytes):
    told = line(hopmem("retrieve", bank, "-", "--format", "csv", "-o", "-", stdin=rows, code=4))
    assert told.startswith("hopmem: standard input")


def test_patterns_of_standard_input_that_do_not_fit_are_called_so(hopmem, tmp_path: Path, bank: Path, array: Path):
    (tmp_path / "bank").write_bytes(bank.read_bytes())
    others = [["-", "-o", tmp_path / "bank", "--append"], ["-", array, "-o", tmp_path / "new"]]
    for command in others:
        told = line(hopmem("store", *command, "--format", "csv", stdin=b"1,2\n", code=4))
        assert "standard input" in told


# Lists of sources.


@pytest.mark.parametrize("by", ["a file", "standard input"])
@pytest.mark.parametrize(
    "text", ["{x}\n{x}\n", "\ufeff{x}\n{x}\n", "{x}\r\n{x}\r\n", "{x}\r{x}\r", "\n\n{x}\n\n{x}"], ids=repr
)
def test_a_list_is_read_whatever_its_line_ends_and_byte_order_mark(ask: Ask, tmp_path: Path, array: Path, text, by):
    raw = text.format(x=array).encode()
    (tmp_path / "list").write_bytes(raw)
    given = {"stdin": raw} if by == "standard input" else {}
    source = "-" if given else tmp_path / "list"
    assert ask("store", "-T", source, "-o", tmp_path / "bank", **given)["patterns"] == 24


@pytest.mark.parametrize("by", ["a file", "standard input"])
@pytest.mark.parametrize("name", [b"a\xe2\x80\xa8b.npy", b"a\x0cb.npy", b"a\x85b.npy", b"\xff\xfe.npy", b" a .npy"])
def test_a_list_may_hold_any_name_of_one_line(ask: Ask, tmp_path: Path, array: Path, name: bytes, by: str):
    path = os.fsencode(tmp_path) + b"/" + name
    try:
        Path(os.fsdecode(path)).write_bytes(array.read_bytes())
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    (tmp_path / "list").write_bytes(path + b"\n")
    given = {"stdin": path + b"\n"} if by == "standard input" else {}
    assert ask("store", "-T", "-" if given else tmp_path / "list", "-o", tmp_path / "bank", **given)["patterns"] == 12


@pytest.mark.parametrize("command", ["store", "retrieve", "--values", "--mask"])
def test_a_source_without_a_name_is_a_mistake_in_use(command, hopmem: Hopmem, bank: Path, array: Path, tmp_path: Path):
    commands: dict[str, list[object]] = {
        "store": ["store", "", "-o", tmp_path / "new"],
        "retrieve": ["retrieve", bank, ""],
        "--values": ["store", array, "--values", "", "-o", tmp_path / "new"],
        "--mask": ["retrieve", bank, array, "--mask", ""],
    }
    assert "empty" in line(hopmem(*commands[command], code=2))
    assert below(tmp_path) == []


# Names of answers.


def queries_named(path: Path, names: list[str]) -> Path:
    """Queries to the bank of images, in a table with a column of names."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["id", *(f"x{column}" for column in range(144))])
        writer.writerows([name, *np.linspace(0, 1, 144).round(3)] for name in names)
    return path


@pytest.mark.parametrize(
    "names",
    [
        [""],
        ["a/"],
        ["a\0b"],
        ["a", "a.png/b"],
        ["x" * 4000],
        ["."],
        ["..."],
        [".."],
        ["../.."],
        ["/"],
        ["a", "a"],
        ["a", "/a"],
    ],
    ids=lambda names: repr(names)[:20],
)
def test_no_answer_is_written_under_a_name_that_no_file_can_have(hopmem, tmp_path: Path, image_bank: Path, names):
    queries = queries_named(tmp_path / "q.csv", ["good", *names])
    result = hopmem("retrieve", image_bank, queries, "--id-column", "id", "-o", f"{tmp_path}/out/", code=4)
    assert len(line(result)) < 500
    assert below(tmp_path) == ["q.csv"]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "~/x", "C:\\x", "x" * 250, "a\nb", "\x1b[2J"])
def test_every_other_name_is_written_below_the_output(hopmem: Hopmem, tmp_path: Path, image_bank: Path, name: str):
    folder = tmp_path / "deep" / "down"
    folder.mkdir(parents=True)
    queries = queries_named(tmp_path / "q.csv", [name])
    hopmem("retrieve", image_bank, queries, "--id-column", "id", "-o", f"{folder}/out/")
    (written,) = (each for each in tmp_path.rglob("*") if each.is_file() and each != queries)
    assert folder / "out" in written.parents
    with Image.open(written) as image:
        assert image.size == (8, 6)


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\nb", 'a"b', "a,b"])
def test_a_name_with_a_line_end_survives_a_table(hopmem: Hopmem, tmp_path: Path, image_bank: Path, name: str):
    queries = queries_named(tmp_path / "q.csv", ["first", name, "last"])
    hopmem("retrieve", image_bank, queries, "--id-column", "id", "-o", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file, strict=True)] == ["id", "first", name, "last"]
    assert load([str(tmp_path / "out.csv")], Reading(id_column="id")).names == ("first", name, "last")


# Places that can't be written to.


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y.npy", "/proc/self/fd/x/y"])
@pytest.mark.parametrize("command", ["store {x} -o", "retrieve {bank} {x} -o", "optimize {bank} -o"])
def test_where_no_file_can_be_made_nothing_is_waited_for(at_once, hopmem: Hopmem, bank, array, command, place):
    device("/proc/self/fd")
    arguments = [*command.format(bank=bank, x=array).split(), place + (".npy" if "retrieve" in command else "")]
    assert "/proc/" in line(hopmem(*arguments, code=3))


# Nothing but the one line.


def declared(path: Path, width: int, height: int) -> Path:
    """A small file that says it is a large image."""
    Image.new("L", (1, 1)).save(path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"IHDR") + 4
    raw[at : at + 8] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    raw[at + 13 : at + 17] = zlib.crc32(raw[at - 4 : at + 13]).to_bytes(4, "big")
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("side", "code"), [(10_000, 3), (12_000, 3), (20_000, 4), (2**31 - 1, 4)])
def test_an_image_that_says_it_is_large_is_refused_in_one_line(hopmem: Hopmem, tmp_path: Path, side: int, code: int):
    path = declared(tmp_path / "x.png", side, side)
    assert "x.png" in line(hopmem("store", path, "-o", tmp_path / "bank", code=code))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_damaged_exif_says_nothing_of_its_own(hopmem: Hopmem, tmp_path: Path, kind: str):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text of some length"
    path = tmp_path / f"x.{kind}"
    Image.new("RGB", (16, 12), "red").save(path, exif=exif)
    raw = path.read_bytes()
    at = raw.rindex(b"\x01\x12" if b"\x01\x12\x00\x03" in raw else b"\x12\x01")
    for place in range(at - 8, at + 28, 3):
        damaged = raw[:place] + b"\xff\xff" + raw[place + 2 :]
        path.write_bytes(damaged)
        command = ["store", path, "-o", tmp_path / "bank", "--dry-run", "--json"]
        try:
            result = hopmem(*command)
        except AssertionError:
            result = hopmem(*command, code=3)
        assert len(result.stderr.splitlines()) == (result.exit_code != 0), result.stderr


def test_rows_left_out_of_an_array_are_named_with_their_file(tmp_path: Path):
    np.save(tmp_path / "x.npy", [[1.0, 2.0], [np.nan, 3.0], [4.0, np.inf]])
    skipped = load([str(tmp_path / "x.npy")], Reading(on_bad="skip")).skipped
    assert [skip.reason for skip in skipped] == [
        f"{tmp_path / 'x.npy'}, row 1: NaN",
        f"{tmp_path / 'x.npy'}, row 2: an infinity, or more than 1e+32",
    ]
