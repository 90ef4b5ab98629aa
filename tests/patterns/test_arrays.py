"""Array files: the numbers that were written are the numbers that are read, and nothing is ever unpickled."""

import gzip
import io
import json
import math
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from hopmem.errors import HopmemError
from hopmem.model.rows import LARGEST
from hopmem.patterns import Form, Reading, load
from tests.patterns import save
from tests.refusal import raises_refusal

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "f2", "f4", "f8"]
IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def numbers(dtype: str, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    """The smallest, the largest and other numbers of a type."""
    kind = np.dtype(dtype)
    draw = np.random.default_rng(0)
    if kind.kind == "b":
        return draw.integers(0, 2, shape).astype(kind)
    if kind.kind == "f":
        array = draw.normal(size=shape).astype(kind)
        widest = min(float(np.finfo(kind).max), 0.9 * LARGEST)
        array.flat[:3] = widest, np.finfo(kind).tiny, -0.0
        return array
    limits = np.iinfo(kind)
    array = draw.integers(limits.min, limits.max, shape, dtype=kind.newbyteorder("="), endpoint=True).astype(kind)
    array.flat[:2] = limits.min, limits.max
    return array


def written(path: Path, array: np.ndarray) -> str:
    np.save(path, array, allow_pickle=True)
    return str(path)


def idx(array: np.ndarray, code: int) -> bytes:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(IDX[code]).tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_npy_of_any_type_order_and_endianness_is_read_without_loss(tmp_path, dtype, endian, order):
    array = np.asarray(numbers(endian + dtype if dtype != "?" else dtype), order=order)
    loaded = load([written(tmp_path / "x.npy", array)], Reading())
    assert loaded.stored.numpy().tolist() == array.tolist()
    assert loaded.shape == (4,)
    assert loaded.form.kind == "npy"


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "f2", "f4", "f8"])
def test_the_type_of_an_npy_is_kept(tmp_path, dtype):
    array = numbers(dtype)
    loaded = load([written(tmp_path / "x.npy", array)], Reading())
    assert loaded.stored.dtype == torch.from_numpy(array).dtype


def test_a_wide_unsigned_type_becomes_one_that_holds_its_numbers(tmp_path):
    array = np.array([[0, 1], [2**63, 2**64 - 2**12]], np.uint64)
    assert load([written(tmp_path / "x.npy", array)], Reading()).stored.tolist() == array.astype(float).tolist()
    assert load([written(tmp_path / "y.npy", numbers("u4"))], Reading()).stored.dtype == torch.int64


def test_an_npy_is_memory_mapped(tmp_path):
    path = written(tmp_path / "x.npy", np.arange(4096, dtype=np.float32).reshape(-1, 4))
    stored = load([path], Reading()).stored
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the mapped files of a process are listed on Linux only")
    spans = [line.split()[0].split("-") for line in maps.read_text().splitlines() if line.endswith(path)]
    assert any(int(start, 16) <= stored.data_ptr() < int(end, 16) for start, end in spans)


def test_reading_never_writes_to_the_file(tmp_path):
    path = tmp_path / "x.npy"
    written(path, np.array([[1.0, np.nan], [2.0, 3.0]]))
    before = path.read_bytes()
    load([str(path)], Reading(partial=True))
    assert path.read_bytes() == before


def test_the_only_array_of_an_npz_needs_no_key(tmp_path):
    np.savez(tmp_path / "x.npz", digits=numbers("f4"))
    loaded = load([str(tmp_path / "x.npz")], Reading())
    assert np.array_equal(loaded.stored.numpy(), numbers("f4"))
    assert loaded.form.key == "digits"


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pt"])
def test_a_key_chooses_among_arrays_and_its_lack_names_them(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    arrays = {"one": torch.ones(2, 3), "two": torch.full((2, 3), 2.0)}
    if kind == "npz":
        np.savez_compressed(path, **{name: array.numpy() for name, array in arrays.items()})
    else:
        save_file(arrays, path) if kind == "safetensors" else torch.save(arrays, path)
    assert torch.equal(load([str(path)], Reading(key="two")).stored, arrays["two"])
    with raises_refusal(4, "one, two", "--key"):
        load([str(path)], Reading())
    with raises_refusal(4, "'three'", "one, two"):
        load([str(path)], Reading(key="three"))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_torch_file_of_any_type_is_read_without_loss(tmp_path, kind, dtype):
    tensor = (torch.arange(12).reshape(3, 4) * 7 % 5).to(dtype)
    path = tmp_path / f"x.{kind}"
    save_file({"x": tensor}, path) if kind == "safetensors" else torch.save(tensor, path)
    stored = load([str(path)], Reading()).stored
    assert stored.dtype == dtype
    assert torch.equal(stored, tensor)


def test_a_parameter_in_a_pt_is_read_as_numbers(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2, 3))}, tmp_path / "x.pt")
    stored = load([str(tmp_path / "x.pt")], Reading()).stored
    assert not stored.requires_grad
    assert stored.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": {"b": torch.ones(2)}}, 3, torch.ones(2, 2).to_sparse()])
def test_a_pt_without_a_dense_tensor_is_invalid(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with raises_refusal(4, "x.pt"):
        load([str(tmp_path / "x.pt")], Reading())


def test_a_pt_whose_keys_are_numbers_is_read(tmp_path):
    torch.save({0: torch.ones(2, 3), 1: torch.zeros(2, 3)}, tmp_path / "x.pt")
    assert load([str(tmp_path / "x.pt")], Reading(key="1")).stored.tolist() == [[0.0] * 3] * 2


def test_an_npy_of_objects_is_refused_and_not_executed(tmp_path):
    path = written(tmp_path / "x.npy", np.array([Bomb(tmp_path / "harm")], dtype=object))
    with raises_refusal(4, "pickle"):
        load([path], Reading())
    assert not (tmp_path / "harm").exists()


def test_an_npz_of_objects_is_refused_and_not_executed(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([Bomb(tmp_path / "harm")], dtype=object))
    with raises_refusal(4, "pickle"):
        load([str(tmp_path / "x.npz")], Reading())
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pt_of_objects_is_refused_and_not_executed(tmp_path, zipped):
    torch.save({"a": Bomb(tmp_path / "harm")}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with raises_refusal(4, "pickle"):
        load([str(tmp_path / "x.pt")], Reading())
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors", "idx", "csv", "png"])
def test_a_bare_pickle_under_any_name_is_refused_and_not_executed(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    with raises_refusal(4 if suffix in {"npy", "npz", "pt"} else 3):
        load([str(path)], Reading())
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "pt", "safetensors", "idx", "idx.gz"])
@pytest.mark.parametrize(
    "content", [b"", b"\x93NUM", b"this is no array at all\n" * 9, b"PK\x03\x04 cut", b"\x1f\x8b?"]
)
def test_garbage_is_unreadable(tmp_path, suffix, content):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    with raises_refusal(3, path.name):
        load([str(path)], Reading())


def whole_file(kind: str, folder: Path) -> Path:
    path = folder / f"whole.{kind}"
    array = torch.arange(60, dtype=torch.float32).reshape(12, 5)
    save(str(path), kind.split(".")[0], array, Form(kind), [], None, scale=1.0, force=True)
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors", "idx", "idx.gz"])
def test_a_file_cut_short_anywhere_is_unreadable(tmp_path, kind):
    raw = whole_file(kind, tmp_path).read_bytes()
    for length in {*range(1, len(raw), max(1, len(raw) // 40)), len(raw) - 1}:
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(raw[:length])
        with raises_refusal(3, "cut"):
            load([str(path)], Reading())


@pytest.mark.parametrize("kind", ["npz", "pt", "safetensors", "idx.gz", "npy"])
def test_a_damaged_file_is_either_read_or_refused_in_one_line(tmp_path, kind):
    raw = whole_file(kind, tmp_path).read_bytes()
    draw = np.random.default_rng(0)
    path = tmp_path / f"damaged.{kind}"
    for _ in range(150):
        damaged = bytearray(raw)
        for place in draw.integers(0, len(raw), 3):
            damaged[place] ^= int(draw.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load([str(path)], Reading())
        except Exception as error:
            assert getattr(error, "exit_code", 1) in {3, 4}, repr(error)


@pytest.mark.parametrize(("content", "suffix"), [("npy", "npz"), ("npz", "npy"), ("pt", "npz"), ("npz", "pt")])
def test_a_file_under_the_wrong_suffix_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"wrong.{suffix}"
    path.write_bytes(whole_file(content, tmp_path).read_bytes())
    try:
        load([str(path)], Reading())
    except Exception as error:
        assert getattr(error, "exit_code", 1) in {3, 4}, repr(error)


def test_a_folder_with_the_suffix_of_an_array_is_no_array(tmp_path):
    (tmp_path / "x.npy").mkdir()
    with raises_refusal(4, "image"):
        load([str(tmp_path / "x.npy")], Reading())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), ()])
def test_an_array_without_rows_or_entries_is_invalid(tmp_path, shape):
    with raises_refusal(4, "N ≥ 1"):
        load([written(tmp_path / "x.npy", np.zeros(shape))], Reading())


@pytest.mark.parametrize("dtype", ["c8", "c16", ">c8", "g", "G", "S3", "U3", "M8[s]", "V4", "f4,i4"])
def test_only_real_numbers_are_valid(tmp_path, dtype):
    path = written(tmp_path / "x.npy", np.zeros((2, 2), dtype))
    if dtype == "g":
        assert load([path], Reading()).stored.tolist() == [[0.0, 0.0]] * 2
    else:
        with raises_refusal(4, "x.npy"):
            load([path], Reading())


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_complex_tensor_is_invalid(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    tensor = torch.zeros(2, 2, dtype=torch.complex64)
    save_file({"x": tensor}, path) if kind == "safetensors" else torch.save(tensor, path)
    with raises_refusal(4, "real", "complex64"):
        load([str(path)], Reading())


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (4, 3), (2, 3, 5)])
@pytest.mark.parametrize("code", IDX)
def test_an_idx_of_any_type_is_read_without_loss(tmp_path, code, shape, gz):
    array = numbers(IDX[code], shape)
    path = tmp_path / f"train-images-idx{len(shape)}-ubyte{gz}"
    path.write_bytes(gzip.compress(idx(array, code)) if gz else idx(array, code))
    loaded = load([str(path)], Reading())
    assert loaded.stored.reshape(shape).tolist() == array.tolist()
    assert loaded.shape == (shape[1:] or (1,))
    assert loaded.form.kind == "idx"


def test_gzip_is_told_by_its_bytes_not_by_its_name(tmp_path):
    path = tmp_path / "labels-idx1-ubyte"
    path.write_bytes(gzip.compress(idx(np.arange(5), 0x08)))
    assert load([str(path)], Reading()).stored.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "raw", [idx(np.zeros((2, 3)), 0x0E) + b"\0", idx(np.zeros((2, 3)), 0x08)[:-1], b"\0\0\x07\x01"]
)
def test_an_idx_of_another_length_than_it_says_is_unreadable(tmp_path, raw):
    (tmp_path / "x.idx").write_bytes(raw)
    with raises_refusal(3, "x.idx"):
        load([str(tmp_path / "x.idx")], Reading())


@pytest.mark.parametrize(
    ("shape", "wanted", "layout"),
    [
        ((6, 8, 9), None, "HW"),
        ((6, 8, 9, 3), None, "HWC"),
        ((6, 3, 8, 9), None, "CHW"),
        ((6, 3, 8, 3), None, "HWC"),
        ((6, 3, 8, 3), "CHW", "CHW"),
        ((6, 8, 9), "flat", None),
        ((6, 8, 9, 7), None, None),
        ((6, 72), None, None),
        ((6, 2, 2, 2, 2), None, None),
    ],
)
def test_the_axes_of_an_array_say_whether_it_holds_images(tmp_path, shape, wanted, layout):
    array = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    loaded = load([written(tmp_path / "x.npy", array)], Reading(layout=wanted))
    assert loaded.layout == layout
    assert loaded.shape == shape[1:]
    assert np.array_equal(loaded.stored.numpy(), array.reshape(len(array), -1))


@pytest.mark.parametrize(
    ("dtype", "shape", "scale"),
    [("u1", (2, 4, 4), 1 / 255), ("u2", (2, 4, 4), 1 / 65535), ("f4", (2, 4, 4), 1), ("u1", (2, 16), 1)],
)
def test_8_and_16_bit_images_run_from_0_to_1_and_other_numbers_are_kept(tmp_path, dtype, shape, scale):
    loaded = load([written(tmp_path / "x.npy", np.zeros(shape, dtype))], Reading())
    assert loaded.scale == pytest.approx(scale, rel=1e-15)


def test_a_vector_is_rows_of_one_entry(tmp_path):
    loaded = load([written(tmp_path / "x.npy", np.arange(5.0))], Reading())
    assert loaded.stored.tolist() == [[0.0], [1.0], [2.0], [3.0], [4.0]]
    assert loaded.shape == (1,)


@pytest.mark.parametrize("axes", [("HWC", (2, 0, 1), "CHW"), ("CHW", (1, 2, 0), "HWC")])
def test_colour_images_turn_into_the_other_layout_and_back(tmp_path, axes):
    layout, order, other = axes
    shape = (4, 5, 3) if layout == "HWC" else (3, 4, 5)
    array = np.random.default_rng(0).normal(size=(2, *shape))
    loaded = load([written(tmp_path / "x.npy", array)], Reading())
    turned = loaded.in_layout(other)
    expected = np.transpose(array, (0, *(axis + 1 for axis in order)))
    assert np.array_equal(turned.stored.reshape(2, *turned.shape).numpy(), expected)
    assert torch.equal(turned.in_layout(layout).stored, loaded.stored)


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors", "idx", "idx.gz"])
def test_what_is_saved_is_what_is_loaded(tmp_path, kind, dtype):
    if kind.startswith("idx") and dtype in {"?", "i8", "u2", "f2"}:
        pytest.skip("idx has no such type")
    array, path = torch.from_numpy(numbers(dtype, (3, 2, 4))), tmp_path / f"x.{kind}"
    key = None if kind in {"npy", "idx", "idx.gz"} else "my key"
    save(str(path), kind.split(".")[0], array, Form("npy", key=key), [], None, scale=1.0, force=False)
    loaded = load([str(path)], Reading())
    assert loaded.form.key == key
    assert loaded.stored.dtype == array.dtype
    assert torch.equal(loaded.stored.reshape(3, 2, 4), array)


def test_a_bfloat16_answer_is_saved_without_loss_where_the_format_lacks_the_type(tmp_path):
    array = torch.tensor([[0.1, 1e30], [-3.0, 7.0]], dtype=torch.bfloat16)
    for kind in ("npy", "npz", "safetensors", "pt", "csv"):
        save(str(tmp_path / f"x.{kind}"), kind, array, Form(kind), ["0", "1"], None, scale=1.0, force=False)
        assert torch.equal(load([str(tmp_path / f"x.{kind}")], Reading()).stored.bfloat16(), array)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=4),
    st.sampled_from(["npy", "npz", "pt", "safetensors", "idx"]),
    st.integers(0, 2**32 - 1),
)
def test_rows_of_any_shape_survive_any_array_format(tmp_path_factory, shape, kind, seed):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    array = torch.from_numpy(np.random.default_rng(seed).normal(size=shape))
    save(str(path), kind, array, Form(kind), [], None, scale=1.0, force=True)
    loaded = load([str(path)], Reading())
    assert loaded.shape == tuple(shape[1:])
    assert torch.equal(loaded.stored, array.reshape(shape[0], -1))


def test_a_saved_npy_is_what_numpy_would_save(tmp_path):
    array = torch.arange(6.0).reshape(2, 3)
    save(str(tmp_path / "x.npy"), "npy", array, Form("npy"), [], None, scale=1.0, force=False)
    expected = io.BytesIO()
    np.save(expected, array.numpy())
    assert (tmp_path / "x.npy").read_bytes() == expected.getvalue()


def headed(header: str, body: bytes = bytes(240)) -> bytes:
    """A `.npy` that says what it likes."""
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def put_npy(path: Path, raw: bytes, method: int = zipfile.ZIP_DEFLATED) -> str:
    """A `.npy`, or the same as the only member of a `.npz`."""
    if path.suffix == ".npz":
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.npy", raw)
    else:
        path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize(
    "shape",
    [(2**63,), (10**30,), (2**32, 2**32), (10**15,), (2**62, 2**62, 0), (0, 2**63), (-1, 6), (-10, -6), (1,) * 100],
)
def test_a_shape_that_no_memory_holds_is_unreadable(tmp_path, shape, kind):
    raw = headed(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")
    with raises_refusal(3, f"x.{kind}"):
        load([put_npy(tmp_path / f"x.{kind}", raw)], Reading())


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_that_python_2_wrote_is_read_without_a_word(tmp_path, kind):
    raw = headed("{'descr': '<f4', 'fortran_order': False, 'shape': (10L, 6L)}")
    assert load([put_npy(tmp_path / f"x.{kind}", raw)], Reading()).stored.tolist() == [[0.0] * 6] * 10


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_is_read_however_it_is_packed_and_refused_where_it_is_damaged(tmp_path, method):
    held = io.BytesIO()
    np.save(held, numbers("f4", (30, 6)))
    path = tmp_path / "x.npz"
    assert load([put_npy(path, held.getvalue(), method)], Reading()).stored.tolist() == numbers("f4", (30, 6)).tolist()
    raw = path.read_bytes()
    for place in range(50, raw.index(b"PK\x01\x02"), 11):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :])
        with raises_refusal(3, "x.npz"):
            load([str(path)], Reading())


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_numbers_of_8_bits_that_are_no_whole_ones_are_invalid(tmp_path, dtype, kind):
    tensor, path = torch.zeros(3, 4, dtype=torch.uint8).view(getattr(torch, dtype)), tmp_path / f"x.{kind}"
    save_file({"x": tensor}, path) if kind == "safetensors" else torch.save(tensor, path)
    with raises_refusal(4, "real numbers", dtype):
        load([str(path)], Reading())


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize(("dtype", "top"), [(torch.uint32, 2**32 - 1), (torch.uint64, 2**53)])
def test_a_wide_unsigned_tensor_becomes_one_that_holds_its_numbers(tmp_path, dtype, top, kind):
    tensor, path = torch.tensor([[0, 1], [7, top]]).to(dtype), tmp_path / f"x.{kind}"
    save_file({"x": tensor}, path) if kind == "safetensors" else torch.save(tensor, path)
    assert load([str(path)], Reading()).stored.tolist() == [[0, 1], [7, top]]


ODD = {
    "meta": lambda whole: whole.to("meta"),
    "quantised": lambda whole: torch.quantize_per_tensor(whole, 0.1, 0, torch.quint8),
    "quantised by row": lambda whole: torch.quantize_per_channel(whole, whole[:, 0], whole[:, 0], 0, torch.qint8),
    "nested": lambda whole: torch.nested.nested_tensor([whole[0], whole[1, :3]]),
    "sparse": torch.Tensor.to_sparse,
    "sparse by row": torch.Tensor.to_sparse_csr,
    "storage": torch.Tensor.untyped_storage,
    "one number as many": lambda whole: whole[:1, :1].expand(10**7, 10**7),
    "one row as many": lambda whole: whole[:1].expand(10**9, 4),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_whose_numbers_are_not_all_there_is_invalid(tmp_path, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it will drop
        torch.save({"x": ODD[kind](torch.ones(3, 4))}, tmp_path / "x.pt")
    with raises_refusal(4, "x.pt"):
        load([str(tmp_path / "x.pt")], Reading())


def test_a_tensor_that_is_a_view_of_another_is_read(tmp_path):
    whole = torch.arange(60.0).reshape(10, 6)
    for view in (whole.T, whole[2:5], whole[:, ::2], whole[::3, 1:]):
        torch.save(view, tmp_path / "x.pt")
        assert load([str(tmp_path / "x.pt")], Reading()).stored.tolist() == view.tolist()


@pytest.mark.parametrize(
    "shape", [(), (0, 6), (6, 0), (1,) * 70, (1,) * 255, (0,) * 66, (2**32 - 1,) * 255, (2**32 - 1, 9)]
)
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_an_idx_of_too_many_axes_or_of_none_is_refused(tmp_path, shape, gz):
    raw = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"\x01"
    path = tmp_path / f"x.idx{gz}"
    path.write_bytes(gzip.compress(raw) if gz else raw)
    with pytest.raises(HopmemError, match=r"x\.idx") as caught:
        load([str(path)], Reading())
    assert caught.value.exit_code in {3, 4}


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**64 - 1], [2**62, 2**62, 0], [0, 6], [6, 0], [1] * 200])
def test_a_tensor_of_no_number_or_of_too_many_axes_is_refused(tmp_path, shape):
    size = 4 * math.prod(shape)
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    if size:
        assert load([str(tmp_path / "x.safetensors")], Reading()).stored.tolist() == [[0.0]]
        return
    with pytest.raises(HopmemError, match="safetensors") as caught:
        load([str(tmp_path / "x.safetensors")], Reading())
    assert caught.value.exit_code in {3, 4}
