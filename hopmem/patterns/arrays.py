"""Arrays on disk: .npy, .npz, .safetensors, .pt and idx/ubyte, read without ever unpickling, and written."""

import gzip
import lzma
import math
import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import safe_open as open_safetensors
from safetensors.torch import save_file
from torch import Tensor

from hopmem.errors import InvalidDataError, UnreadableError, printable
from hopmem.pages import require, scarce, watch
from hopmem.patterns.source import Form, Loaded, Reading, guess_layout, pixel_scale
from hopmem.patterns.unpack import Stream, allow, unpacked

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC, NPY_MAGIC, ZIP_MAGIC, PICKLE_MAGIC = b"\x1f\x8b", b"\x93NUMPY", b"PK", b"\x80"
COMPUTED = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
})  # fmt: skip
WIDER = {torch.uint32: torch.int64, torch.uint64: torch.float64}  # types that torch does not compute with
MOST_AXES = 32  # of an array: NumPy's own limit was this for long
PICKLED = "one that needs pickle, which could run code"
# What the readers raise at a damaged file.
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    RuntimeError,
    SyntaxError,
    OverflowError,
    AssertionError,
    RecursionError,
    MemoryError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
    struct.error,
)


def load_array(path: Path, kind: str, reading: Reading) -> Loaded:
    """Read an array file as rows.

    Args:
        path: the file.
        kind: npy, npz, safetensors, pt or idx.
        reading: the key, and the layout where the shape leaves a doubt.

    Returns:
        Its rows, memory-mapped where the format allows it.

    Raises:
        InvalidDataError: no array of numbers with at least one row of at least one entry.
    """
    array, key = _READERS[kind](path, reading)
    array = array.to(WIDER.get(array.dtype, array.dtype))
    if array.ndim == 0 or array.numel() == 0:
        raise InvalidDataError(path, "an array [N, ...] with N ≥ 1 rows", f"shape {list(array.shape)}")
    if array.dtype not in COMPUTED:
        raise InvalidDataError(
            path, "real numbers of at least 8 bits, 16 if real", str(array.dtype).removeprefix("torch.")
        )
    watch(array)
    shape = tuple(array.shape[1:]) or (1,)
    layout = guess_layout(shape, reading.layout)
    return Loaded(
        stored=array.reshape(len(array), -1),
        shape=shape,
        form=Form(kind, key=key),
        scale=pixel_scale(array.dtype, layout),
        layout=layout,
    )


def save_array(path: Path, kind: str, array: Tensor, key: str | None) -> None:
    """Write an array [N, ...] as `kind`."""
    key, array = key or "patterns", array.contiguous()
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, _numpy(array), allow_pickle=False)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez_compressed(file, **{key: _numpy(array)})  # type: ignore[arg-type]  # the stub forgets **kwds
    elif kind == "safetensors":
        save_file({key: array}, path)
    elif kind == "pt":
        torch.save(array if key == "patterns" else {key: array}, path)
    else:
        _save_idx(path, _numpy(array))


@contextmanager
def growing_npy(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Callable[[slice, Tensor], None]]:
    """Write a .npy in parts, of which no more than one is in memory.

    Args:
        path: the file.
        shape: of the whole array.
        dtype: of its entries.

    Yields:
        What writes the next rows: they come in order.
    """
    descr = np.lib.format.dtype_to_descr(_numpy(torch.empty(0, dtype=dtype)).dtype)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        yield lambda _, array: _numpy(array.contiguous()).tofile(file)


def _numpy(array: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """A tensor as NumPy holds it; bfloat16, which it lacks, becomes float32.

    Returns:
        The array.
    """
    return np.asarray((array.float() if array.dtype == torch.bfloat16 else array).numpy())


def _tensor(path: Path, array: object) -> Tensor:
    """A NumPy array as a tensor.

    Returns:
        The tensor, sharing memory where the types allow it.

    Raises:
        InvalidDataError: the entries are no real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise InvalidDataError(
            path, "an array of real numbers", f"type {getattr(array, 'dtype', type(array).__name__)}"
        )
    kind, width = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and width > 2:
        # torch computes with no unsigned type wider than 16 bits
        array = array.astype(np.int64 if width == 4 else np.float64)
    elif width > 8 and kind == "f":
        with np.errstate(over="ignore"):  # an infinity, which is refused later by its row
            array = array.astype(np.float64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array if array.flags.c_contiguous else np.ascontiguousarray(array))


def _begins(path: Path, expected: str, *magics: bytes) -> None:
    """Check the first bytes, since NumPy and torch take whatever they do not know for a pickle.

    Raises:
        InvalidDataError: a bare pickle.
        UnreadableError: something else.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(PICKLE_MAGIC) and PICKLE_MAGIC not in magics:
        raise InvalidDataError(path, expected, PICKLED)
    if not start.startswith(magics):
        raise UnreadableError(path, expected, f"bytes {start.hex(' ')}" if start else "an empty file")


@contextmanager
def _silence() -> Iterator[None]:
    """Keep readers from warning of the versions of Python and pickle that wrote a file: it is read as safely."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _needs_pickle(error: Exception) -> bool:
    return any(word in str(error) for word in ("pickle", "Object arrays", "Python objects"))


def _read_npy(path: Path, reading: Reading) -> tuple[Tensor, str | None]:
    expected = "a NumPy .npy file"
    _begins(path, expected, NPY_MAGIC)
    try:
        # Copy-on-write, because torch warns of arrays that it could not write to.
        with np.errstate(over="raise"), _silence():
            array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (*DAMAGED, FloatingPointError) as error:
        if _needs_pickle(error):
            raise InvalidDataError(path, "an array of numbers", PICKLED) from error
        raise UnreadableError(path, expected, error) from error
    return _tensor(path, array), None


def _read_npz(path: Path, reading: Reading) -> tuple[Tensor, str | None]:
    expected = "a NumPy .npz file"
    _begins(path, expected, ZIP_MAGIC)
    try:
        with zipfile.ZipFile(path) as archive:
            key = _choose(path, [name.removesuffix(".npy") for name in archive.namelist()], reading.key)
            member = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
            allow(path, member.file_size, reading.unpack_limit)
            with archive.open(member) as stream, _silence():
                array = _npy_of(stream, member.file_size)
    except DAMAGED as error:
        if _needs_pickle(error):
            raise InvalidDataError(path, "an array of numbers", PICKLED) from error
        raise UnreadableError(path, expected, error) from error
    return _tensor(path, array), key


def _npy_of(stream: Stream, size: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """The array of a `.npy` that can't be mapped.

    Args:
        stream: its bytes.
        size: how many.

    Returns:
        The array.

    Raises:
        ValueError: no such file, one of another size than it says, or one of objects.
    """
    version = np.lib.format.read_magic(stream)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f"version {version} of the format")
    shape, fortran, dtype = header[version](stream)
    if dtype.hasobject:
        raise ValueError("Object arrays")
    if any(length < 0 for length in shape):
        raise ValueError(f"shape {list(shape)}")
    wanted = math.prod(shape) * dtype.itemsize
    raw = unpacked(stream, size)[:wanted]
    if len(raw) < wanted:
        raise ValueError(f"{len(raw)} bytes for shape {list(shape)}")
    flat = raw.view(dtype) if dtype.itemsize and wanted else np.empty(math.prod(shape), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _read_safetensors(path: Path, reading: Reading) -> tuple[Tensor, str | None]:
    try:
        with open_safetensors(path, framework="pt") as file:
            key = _choose(path, list(file.keys()), reading.key)
            tensor: Tensor = file.get_tensor(key)
            return tensor, key
    except (SafetensorError, *DAMAGED) as error:
        raise UnreadableError(path, "a safetensors file", error) from error


def _read_pt(path: Path, reading: Reading) -> tuple[Tensor, str | None]:
    expected = "a torch file"
    _begins(path, expected, ZIP_MAGIC, PICKLE_MAGIC)
    try:
        zipped, plain = zipfile.is_zipfile(path), False
        if zipped:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
            allow(path, sum(member.file_size for member in members), reading.unpack_limit)
            plain = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not plain:
            require(2 * path.stat().st_size, f"to read {printable(path.name)}, which can't be mapped,")
        with _silence():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=plain and scarce())
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "not an allowed" not in str(error) and "GLOBAL" not in str(error):
            raise UnreadableError(path, expected, error) from error
        raise InvalidDataError(path, "a tensor or a dictionary of tensors", PICKLED) from error
    except DAMAGED as error:
        raise UnreadableError(path, expected, error) from error
    if isinstance(content, dict):
        content = {str(name): each for name, each in content.items()}
        key = _choose(path, list(content), reading.key)
        content = content[key]
    else:
        key = None
    if not isinstance(content, Tensor) or not _is_plain(content):
        raise InvalidDataError(path, "a dense tensor", type(content).__name__)
    return content.detach(), key


def _is_plain(tensor: Tensor) -> bool:
    """Whether each entry of a tensor is a number in memory of its own.

    Returns:
        False for the sparse, the nested, the quantised, and for one number that says it is many.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def _read_idx(path: Path, reading: Reading) -> tuple[Tensor, str | None]:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == GZIP_MAGIC
        with gzip.open(path, "rb") if zipped else path.open("rb") as file:
            shape, dtype = _idx_header(path, file)
            size = math.prod(shape) * dtype.itemsize
            allow(path, size, reading.unpack_limit if zipped else size)
            if not size:
                raise InvalidDataError(path, "an array [N, ...] with N ≥ 1 rows", f"shape {list(shape)}")
            raw = unpacked(file, size + 1) if zipped else np.memmap(path, np.uint8, "c")[file.tell() :]
    except DAMAGED as error:
        raise UnreadableError(path, "an idx file", error) from error
    if len(raw) != size:
        found = f"{len(raw)} bytes" if len(raw) < size else "more"
        raise UnreadableError(path, f"{size} bytes for shape {list(shape)}", found)
    return _tensor(path, raw.view(dtype).reshape(shape)), None


def _idx_header(path: Path, file: Stream) -> "tuple[tuple[int, ...], np.dtype[np.generic]]":
    """Read what stands before the numbers.

    Returns:
        Shape and type.

    Raises:
        UnreadableError: no idx file.
    """
    start = file.read(4)
    axes = start[3] if len(start) == 4 else 0
    rest = file.read(4 * axes)
    if start[:2] != b"\0\0" or len(start) < 4 or start[2] not in IDX_TYPES or len(rest) < 4 * axes or axes > MOST_AXES:
        found = start.hex(" ") or "nothing"
        raise UnreadableError(path, "an idx file (two zero bytes, a type, the number of axes)", found)
    return struct.unpack(f">{axes}I", rest), np.dtype(IDX_TYPES[start[2]])


def _save_idx(path: Path, array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> None:
    code = next((code for code, name in IDX_TYPES.items() if np.dtype(name) == array.dtype.newbyteorder(">")), 0x0D)
    raw = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw += array.astype(IDX_TYPES[code]).tobytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)


def _choose(path: Path, keys: list[str], key: str | None) -> str:
    """The array that is meant.

    Returns:
        `key`, or the only key there is.

    Raises:
        InvalidDataError: no such key, or several and none named.
    """
    found = ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "") if keys else "no array"
    if key is None and len(keys) != 1:
        raise InvalidDataError(path, "one array, or --key KEY to choose", found)
    if key is not None and key not in keys:
        raise InvalidDataError(path, f"an array named {key!r}", found)
    return keys[0] if key is None else key


_READERS = {
    "npy": _read_npy,
    "npz": _read_npz,
    "safetensors": _read_safetensors,
    "pt": _read_pt,
    "idx": _read_idx,
}
