"""What is fuzzed: a reader for each kind of file, and files of that kind to begin with."""

import gzip
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import hopmem
from hopmem.bank import MemoryBank
from hopmem.errors import HopmemError
from hopmem.header import CHECKSUMS, ITSELF, of_metadata
from hopmem.patterns import Reading, load

FINDINGS = Path(__file__).with_name("findings")  # files that once broke a promise, by the name of their target
LARGEST = 1 << 16  # bytes of a file that is made
UNPACKED = 1 << 26  # bytes that it may unpack to: the readers are fuzzed, not the memory of the machine


@dataclass(frozen=True)
class Target:
    """A reader, and what its files look like."""

    suffix: str
    seeds: Callable[[], list[bytes]]
    wrap: Callable[[bytes], bytes] = bytes  # what stands around the bytes that are changed
    read: Callable[[Path], None] | None = None


def attempt(name: str, data: bytes) -> bool:
    """Read a file of these bytes.

    Returns:
        Whether it could be read; it was refused as the contract has it otherwise.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file{target.suffix}")
        path.write_bytes(target.wrap(data))
        try:
            (target.read or _read_patterns)(path)
        except HopmemError as error:
            line = str(error)
            assert error.exit_code in {3, 4, 6}, line
            assert line.isprintable() and len(line) < 1000, line
            return False
    return True


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A file with a few of its bytes changed, cut, repeated or put in.

    Returns:
        Other bytes, as a rule.
    """
    raw = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        place, length = draw.randrange(len(raw) + 1), draw.choice((1, 1, 2, 4, 8, 100))
        kind = draw.randrange(6)
        if kind == 0:
            raw[place : place + length] = draw.randbytes(length)
        elif kind == 1:
            del raw[place : place + length]
        elif kind == 2:
            raw[place:place] = raw[place : place + length]
        elif kind == 3 and raw:
            raw[min(place, len(raw) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 4:
            raw[place : place + length] = draw.choice((b"\0", b"\xff", b"9", b"-", b'"', b"{")) * length
        else:
            del raw[place:]
    return bytes(raw[:LARGEST])


def _read_patterns(path: Path) -> None:
    """Read patterns, and queries, and look at what came."""
    patterns = Reading(unpack_limit=UNPACKED)
    for reading in (patterns, replace(patterns, partial=True, on_bad="skip")):
        found = load([str(path)], reading)
        assert len(found.stored) == len(found.row_names) > 0
        assert found.stored.shape[1] == torch.Size(found.shape).numel() > 0
        assert bool(found.stored.float().isfinite().all())


def _read_bank(path: Path) -> None:
    """Open a bank, verify it and ask it."""
    bank = MemoryBank.load(path)
    hopmem.bank.file.verify(path)
    answer = hopmem.retrieve(bank, bank.rows()[:2], beta=1.0)
    assert bool(answer.confidence.isfinite().all())


def _read_index(path: Path) -> None:
    """Open a bank of several files by an index that lies beside them."""
    for name, data in _several().items():
        if not name.endswith(".json"):
            path.with_name(name).write_bytes(data)
    assert len(MemoryBank.load(path)) == len(_ROWS)


_ROWS = np.arange(1200, dtype=np.float32).reshape(300, 4)


@cache
def _several() -> dict[str, bytes]:
    """A small bank of several files.

    Returns:
        Them, and their index, by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        replace(MemoryBank.from_patterns(_ROWS), shard_size=12_000).save(Path(folder, "file.safetensors"))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _bank(**changes: object) -> bytes:
    """A small bank.

    Returns:
        Its bytes.
    """
    draw = np.random.default_rng(0)
    bank = MemoryBank.from_patterns(draw.normal(size=(3, 4)).astype(np.float32), ["a", "b", "c"])
    if changes.get("learned"):
        bank = hopmem.optimize(bank, objective="average", steps=1)
    if changes.get("images"):
        bank = MemoryBank.from_patterns(draw.integers(0, 256, (3, 2, 2), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        bank.save(Path(folder, "bank"))
        return Path(folder, "bank").read_bytes()


def _with_true_checksums(data: bytes) -> bytes:
    """A bank whose checksums belong to it, so that what stands behind them is reached.

    Returns:
        The bytes, or others in which the checksums are put right.
    """
    import hashlib

    length = int.from_bytes(data[:8], "little")
    try:
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        kept = {
            name: hashlib.sha256(body[entry["data_offsets"][0] : entry["data_offsets"][1]]).hexdigest()
            for name, entry in header.items()
            if name != "__metadata__"
        }
        texts = header["__metadata__"]
        texts[CHECKSUMS] = json.dumps(kept | {ITSELF: of_metadata(texts)})
        text = json.dumps(header).encode()
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError):
        return data
    return struct.pack("<Q", len(text)) + text + body


def _npy(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(member: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("patterns.npy", member)
    return file.getvalue()


def _arrays() -> list[bytes]:
    wide, deep = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    return [_npy(wide), _npy(deep), _npy(wide.astype(">f8")), _npy(np.asfortranarray(wide.astype(np.float16)))]


def _safetensors() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        save_file({"patterns": torch.arange(12.0).reshape(3, 4)}, path)
        return [path.read_bytes()]


def _pt() -> list[bytes]:
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"patterns": torch.arange(12.0).reshape(3, 4)}, file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    return found


def _idx() -> list[bytes]:
    head = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4)
    return [head + bytes(range(24)), bytes([0, 0, 0x0D, 2]) + struct.pack(">2I", 1, 2) + struct.pack(">2f", 1, 2)]


def _tables() -> list[bytes]:
    return [b"1,2,3\n4,5,6\n", b'"a b",x\n"7",1\n.5,-1e3\n', b"\xef\xbb\xbf1e5,-2\r\n3,4\r\n"]


def _pictures() -> list[bytes]:
    pixels, found = np.arange(48, dtype=np.uint8).reshape(4, 4, 3), []
    for form, mode in [
        ("PNG", "RGB"), ("PNG", "LA"), ("PNG", "P"), ("GIF", "P"), ("BMP", "RGB"), ("JPEG", "RGB"), ("TIFF", "I;16"),
        ("WEBP", "RGBA"), ("PPM", "L"),
    ]:  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(pixels).convert("L" if mode == "I;16" else mode).convert(mode).save(file, form)
        found.append(file.getvalue())
    return found


TARGETS = {
    "bank": Target("", lambda: [_bank(), _bank(learned=True), _bank(images=True)], read=_read_bank),
    "bank-behind-checksums": Target(
        "", lambda: [_bank(), _bank(learned=True), _bank(images=True)], _with_true_checksums, _read_bank
    ),
    "index": Target(".safetensors.index.json", lambda: [_several()["file.safetensors.index.json"]], read=_read_index),
    "npy": Target(".npy", _arrays),
    "npz": Target(".npz", lambda: [_npz(array) for array in _arrays()]),
    "npz-member": Target(".npz", _arrays, _npz),
    "csv": Target(".csv", _tables),
    "tsv": Target(".tsv", lambda: [table.replace(b",", b"\t") for table in _tables()]),
    "safetensors": Target(".safetensors", _safetensors),
    "pt": Target(".pt", _pt),
    "idx": Target(".idx", _idx),
    "idx-gz": Target("-idx3-ubyte.gz", lambda: [gzip.compress(raw) for raw in _idx()]),
    "idx-in-gz": Target("-idx3-ubyte.gz", _idx, gzip.compress),
    "image": Target(".png", _pictures),
}
