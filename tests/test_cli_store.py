"""`hopmem store`: what stands in the bank afterwards, read by safetensors alone."""

import gzip
import json
import shutil
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from tests import reference
from tests.conftest import IMAGE_NAMES, VECTOR_NAMES, Array, Ask, Hopmem


def opened(bank: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(bank, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 # no dictionary


def names(bank: Path) -> tuple[str, ...]:
    tensors, _ = opened(bank)
    raw, ends = bytes(tensors["names"].tolist()), tensors["names.offsets"].tolist()
    return tuple(raw[start:end].decode() for start, end in pairwise(ends))


def write(path: Path, array: Array) -> None:
    """An array as the suffix says, without hopmem."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, other=array[:1], wanted=array)
    elif path.suffix == ".safetensors":
        save_file({"other": array[:1], "wanted": array}, path)
    elif path.suffix == ".pt":
        torch.save({"other": torch.zeros(1), "wanted": torch.from_numpy(array)}, path)
    elif path.suffix in {".csv", ".tsv"}:
        np.savetxt(path, array, delimiter={".csv": ",", ".tsv": "\t"}[path.suffix], fmt="%.9g")
    else:
        code = {"uint8": 8, "float32": 13}[array.dtype.name]
        raw = struct.pack(f">4B{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        raw += array.astype(array.dtype.newbyteorder(">")).tobytes()
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.csv", "a.tsv", "a.safetensors", "a.pt", "a.idx", "a.idx.gz"])
def test_an_array_of_every_kind_is_stored_as_it_is(name, hopmem: Hopmem, tmp_path: Path, vectors: Array):
    write(tmp_path / name, vectors)
    key = ["--key", "wanted"] if name in {"a.npz", "a.safetensors", "a.pt"} else []
    hopmem("store", tmp_path / name, *key, "-o", tmp_path / "bank.safetensors")
    tensors, metadata = opened(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(tensors["patterns"], vectors)
    assert metadata["format"] == "hopmem.bank/1"
    assert names(tmp_path / "bank.safetensors") == tuple(map(str, range(12)))


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "images.npy"])
def test_eight_bit_images_stay_eight_bit(name, ask: Ask, tmp_path: Path, pixels: Array):
    write(tmp_path / name, pixels[..., 0])
    said = ask("store", tmp_path / name, "-o", tmp_path / "bank.safetensors")
    tensors, metadata = opened(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(tensors["patterns"], pixels[..., 0].reshape(6, 48))
    assert said["shape"] == [6, 8]
    assert said["dtype"] == "uint8"
    assert float(metadata["scale"]) == 1 / 255
    assert said["bytes"] == (tmp_path / "bank.safetensors").stat().st_size < 6 * 48 + 5000


def test_a_folder_is_stored_recursively_sorted_by_relative_path(ask: Ask, tmp_path: Path, folder: Path, pixels: Array):
    said = ask("store", folder, "-o", tmp_path / "bank.safetensors")
    tensors, metadata = opened(tmp_path / "bank.safetensors")
    np.testing.assert_array_equal(tensors["patterns"], pixels.reshape(6, -1))
    assert names(tmp_path / "bank.safetensors") == IMAGE_NAMES
    assert said["shape"] == [6, 8, 3]
    assert metadata["mode"] == "RGB"


def test_a_list_file_and_single_images_are_read_in_order(hopmem: Hopmem, tmp_path: Path, folder: Path, pixels: Array):
    (tmp_path / "list.txt").write_text(f"{folder / 'e.png'}\n\n{folder / 'b.bmp'}\n")
    hopmem("store", folder / "a.png", "-T", tmp_path / "list.txt", "-o", tmp_path / "bank.safetensors")
    assert names(tmp_path / "bank.safetensors") == ("a.png", "e.png", "b.bmp")
    np.testing.assert_array_equal(
        opened(tmp_path / "bank.safetensors")[0]["patterns"], pixels[[0, 4, 1]].reshape(3, -1)
    )


def test_a_list_comes_from_stdin_too(hopmem: Hopmem, tmp_path: Path, folder: Path):
    hopmem("store", "-T", "-", "-o", tmp_path / "bank.safetensors", stdin=f"{folder / 'e.png'}\n{folder / 'b.bmp'}\n")
    assert names(tmp_path / "bank.safetensors") == ("e.png", "b.bmp")


@pytest.mark.parametrize(
    ("name", "options"), [("a.npy", []), ("a.csv", ["--format", "csv"]), ("a.idx.gz", []), ("a.tsv", ["--format=tsv"])]
)
def test_stdin_is_a_source(name, options, hopmem: Hopmem, tmp_path: Path, vectors: Array):
    write(tmp_path / name, vectors)
    hopmem("store", "-", *options, "-o", tmp_path / "bank.safetensors", stdin=(tmp_path / name).read_bytes())
    np.testing.assert_array_equal(opened(tmp_path / "bank.safetensors")[0]["patterns"], vectors)


def test_an_image_on_stdin_is_one_pattern(ask: Ask, tmp_path: Path, folder: Path):
    said = ask("store", "-", "-o", tmp_path / "bank.safetensors", stdin=(folder / "a.png").read_bytes())
    assert (said["patterns"], said["shape"]) == (1, [6, 8, 3])


def test_the_id_column_names_the_patterns(bank: Path, vectors: Array):
    assert names(bank) == VECTOR_NAMES
    np.testing.assert_array_equal(opened(bank)[0]["patterns"], vectors)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "float64"])
def test_dtype_is_the_type_of_the_stored_patterns(dtype, ask: Ask, tmp_path: Path, folder: Path, pixels: Array):
    said = ask("store", folder, "--dtype", dtype, "-o", tmp_path / "bank.safetensors")
    tensors, metadata = opened(tmp_path / "bank.safetensors")
    assert tensors["patterns"].dtype == getattr(torch, dtype)
    assert said["dtype"] == dtype
    stored = tensors["patterns"].double().numpy() * float(metadata["scale"])
    precision = {"float16": 2**-11, "bfloat16": 2**-8}.get(dtype, 2**-23)
    np.testing.assert_allclose(stored, pixels.reshape(6, -1) / 255, atol=precision)


def test_a_dry_run_counts_and_writes_nothing(ask: Ask, tmp_path: Path, folder: Path):
    dry = ask("store", folder, "--dry-run", "-o", tmp_path / "bank.safetensors")
    assert list(tmp_path.iterdir()) == []
    wet = ask("store", folder, "-o", tmp_path / "bank.safetensors")
    same = ("bank", "patterns", "dimension", "shape", "dtype", "duplicates")
    assert [dry[key] for key in same] == [wet[key] for key in same]
    assert 0 < dry["bytes"] <= wet["bytes"] < dry["bytes"] + 5000  # the header is not counted
    assert "estimate" not in wet


@pytest.mark.parametrize("count", [1, 2, 60])
def test_a_dry_run_estimates_time_and_memory(ask: Ask, hopmem: Hopmem, tmp_path: Path, monkeypatch, count: int):
    monkeypatch.setattr("hopmem.pipeline.store.SAMPLED", 40)  # of 60; as many as usual take seconds
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((count, 50), dtype=np.float32))
    estimate = ask("store", tmp_path / "x.npy", "--dry-run", "-o", tmp_path / "bank")["estimate"]
    assert 0 < estimate["seconds"] < 60
    assert 250 << 20 < estimate["bytes"] < 1 << 30
    less = ask("store", tmp_path / "x.npy", "--dry-run", "-o", tmp_path / "bank", "--memory-limit", "60M")["estimate"]
    assert less["bytes"] <= estimate["bytes"]
    shown = hopmem("store", tmp_path / "x.npy", "--dry-run", "-o", tmp_path / "bank").stdout
    assert "nothing is written" in shown
    assert "time, about" in shown


def test_a_dry_run_of_append_leaves_the_bank_as_it_was(ask: Ask, tmp_path: Path, bank: Path, array: Path):
    copy = Path(shutil.copy(bank, tmp_path / "bank.safetensors"))
    said = ask("store", array, "--append", "--dry-run", "-o", copy)
    assert said["patterns"] == 24
    assert copy.read_bytes() == bank.read_bytes()


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ("--size 4x3", [3, 4, 3]),
        ("--mode L", [6, 8]),
        ("--size 16x12 --mode L", [12, 16]),
        ("--mode RGB", [6, 8, 3]),
    ],
)
def test_size_and_mode_are_those_of_the_stored_images(options, shape, ask: Ask, tmp_path: Path, folder: Path):
    assert ask("store", folder, *options.split(), "-o", tmp_path / "bank.safetensors")["shape"] == shape


def test_size_brings_images_of_different_sizes_together(ask: Ask, tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "in")
    Image.new("L", (20, 20), 50).save(tmp_path / "in" / "z.png")
    said = ask("store", tmp_path / "in", "--size", "8x6", "-o", tmp_path / "bank.safetensors")
    assert (said["patterns"], said["shape"]) == (7, [6, 8, 3])


def bad_images(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    (tmp_path / "in" / "d.png").write_bytes((folder / "a.png").read_bytes()[:-40])
    Image.new("RGB", (20, 20)).save(tmp_path / "in" / "odd.png")
    return tmp_path / "in"


def bad_rows(tmp_path: Path, vectors: Array) -> Path:
    spoilt = vectors.copy()
    spoilt[3, 1], spoilt[7, 0] = np.nan, np.inf
    np.save(tmp_path / "rows.npy", spoilt)
    return tmp_path / "rows.npy"


def test_bad_images_are_skipped_listed_and_told_by_the_exit_code(hopmem: Hopmem, tmp_path: Path, folder: Path):
    call = ["store", bad_images(folder, tmp_path), "-o", tmp_path / "bank.safetensors", "--on-bad", "skip"]
    result = hopmem(*call, "--json", code=7)
    said = json.loads(result.stdout)
    assert said["patterns"] == 6
    assert {skip["name"] for skip in said["skipped"]} == {"c.png", "d.png", "odd.png"}
    assert all(skip["reason"] for skip in said["skipped"])
    assert result.stderr.count("skipped: ") == 3
    assert names(tmp_path / "bank.safetensors") == IMAGE_NAMES


def test_bad_rows_are_skipped_and_the_others_keep_their_numbers(ask: Ask, tmp_path: Path, vectors: Array):
    said = ask("store", bad_rows(tmp_path, vectors), "-o", tmp_path / "b.safetensors", "--on-bad", "skip", code=7)
    assert [skip["name"] for skip in said["skipped"]] == ["3", "7"]
    assert names(tmp_path / "b.safetensors") == tuple(str(row) for row in range(12) if row not in {3, 7})
    np.testing.assert_array_equal(opened(tmp_path / "b.safetensors")[0]["patterns"], np.delete(vectors, [3, 7], 0))


def test_bad_lines_of_a_table_are_skipped(ask: Ask, tmp_path: Path):
    (tmp_path / "t.csv").write_text("1,2\n3,cat\n5,6\n7\n")
    said = ask("store", tmp_path / "t.csv", "-o", tmp_path / "b.safetensors", "--on-bad", "skip", code=7)
    assert [skip["name"] for skip in said["skipped"]] == ["line 2", "line 4"]
    np.testing.assert_array_equal(opened(tmp_path / "b.safetensors")[0]["patterns"], [[1, 2], [5, 6]])


def test_duplicates_are_named(hopmem: Hopmem, ask: Ask, tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "in")
    Image.open(folder / "a.png").save(tmp_path / "in" / "again.bmp")
    call = ["store", tmp_path / "in", "-o", tmp_path / "bank.safetensors", "--force"]
    assert ask(*call)["duplicates"] == [["a.png", "again.bmp"]]
    assert "a.png = again.bmp" in hopmem(*call).stdout


def appended(hopmem: Hopmem, tmp_path: Path, to: Path, rows: Array, **how: Any) -> tuple[Path, Any]:
    bank = Path(shutil.copy(to, tmp_path / "bank.safetensors"))
    np.save(tmp_path / "more.npy", rows)
    return bank, hopmem("store", tmp_path / "more.npy", "--append", "-o", bank, **how)


def test_append_keeps_ids_rows_and_map_and_extends_the_features(hopmem: Hopmem, tmp_path: Path, learned: Path):
    rows = np.random.default_rng(5).standard_normal((3, 6)).astype(np.float32)
    bank, _ = appended(hopmem, tmp_path, learned, rows)
    (before, _), (after, metadata) = opened(learned), opened(bank)
    assert names(bank) == (*VECTOR_NAMES, "12", "13", "14")
    for kept in ("feature_map.weight", "feature_map.bias"):
        assert torch.equal(after[kept], before[kept])
    assert torch.equal(after["patterns"][:12], before["patterns"])
    assert torch.equal(after["features"][:12], before["features"])
    expected = reference.features(rows, after["feature_map.weight"], after["feature_map.bias"])
    np.testing.assert_allclose(after["features"][12:], expected, atol=1e-5)
    assert metadata["objective"] == "average"


@pytest.mark.parametrize("kind", ["raw", "learned"])
def test_append_says_how_much_the_separation_falls(
    kind, hopmem: Hopmem, tmp_path: Path, bank: Path, learned: Path, vectors: Array
):
    _, result = appended(hopmem, tmp_path, learned if kind == "learned" else bank, vectors[:1] + np.float32(0.01))
    assert "lower the separation by 9" in result.stderr  # 90 % or more: the newcomer lies beside the first
    assert "%" in result.stderr
    assert ("optimize again" in result.stderr) == (kind == "learned")


def test_append_that_lowers_no_separation_says_nothing(hopmem: Hopmem, tmp_path: Path):
    np.save(tmp_path / "axes.npy", np.eye(6, dtype=np.float32)[:4])
    hopmem("store", tmp_path / "axes.npy", "-o", tmp_path / "axes.safetensors")
    _, result = appended(hopmem, tmp_path, tmp_path / "axes.safetensors", np.eye(6, dtype=np.float32)[4:])
    assert result.stderr == ""


def test_append_to_a_bank_that_is_not_there_makes_it(ask: Ask, tmp_path: Path, array: Path):
    assert ask("store", array, "--append", "-o", tmp_path / "bank.safetensors")["patterns"] == 12
    assert names(tmp_path / "bank.safetensors") == tuple(map(str, range(12)))


def test_append_of_another_shape_leaves_the_bank_as_it_was(hopmem: Hopmem, tmp_path: Path, bank: Path):
    copy, result = appended(hopmem, tmp_path, bank, np.ones((2, 7), np.float32), code=4)
    assert "[6]" in result.stderr
    assert "[7]" in result.stderr
    assert copy.read_bytes() == bank.read_bytes()


def test_append_reads_images_as_the_bank_holds_them(ask: Ask, tmp_path: Path, folder: Path):
    bank = tmp_path / "bank.safetensors"
    ask("store", folder, "--size", "4x3", "--mode", "L", "-o", bank)
    said = ask("store", folder / "a.png", "--append", "-o", bank)
    assert (said["patterns"], said["shape"], said["duplicates"]) == (7, [3, 4], [["a.png", "a.png"]])
    assert any("names" in warning for warning in said["warnings"])


def test_values_are_returned_instead_of_the_patterns(hopmem: Hopmem, tmp_path: Path, array: Path):
    values = np.arange(24, dtype=np.float32).reshape(12, 2)
    np.save(tmp_path / "values.npy", values)
    bank = tmp_path / "bank.safetensors"
    hopmem("store", array, "--values", tmp_path / "values.npy", "-o", bank)
    np.testing.assert_array_equal(opened(bank)[0]["values"], values)
    hopmem("retrieve", bank, array, "--snap", "-o", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), values)


def test_transparent_pixels_of_patterns_are_warned_of(ask: Ask, tmp_path: Path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    said = ask("store", tmp_path / "clear.png", "-o", tmp_path / "bank.safetensors")
    assert "transparent" in said["warnings"][0]


def test_the_seed_is_remembered(ask: Ask, tmp_path: Path, array: Path):
    ask("store", array, "--seed", 5, "-o", tmp_path / "bank.safetensors")
    assert opened(tmp_path / "bank.safetensors")[1]["seed"] == "5"
