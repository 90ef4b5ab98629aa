"""Tensors → a safetensors file and their checksums, block by block: they may be larger than memory."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from hopmem.divided import is_divided
from hopmem.model.rows import blocks, small_blocks

ALIGNED = 8  # bytes of which the header's length is a multiple
PAGE = 4096  # bytes at whose multiples the system maps files
PART = 1 << 20  # bytes that are hashed and written at a time
UNKNOWN = "0" * 64  # a checksum that is not known yet
TYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.uint32: "U32",
    torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip # in the order in which the format's own library lays them out


def save_file(
    tensors: Mapping[str, Tensor],
    path: Path,
    describe: Callable[[Mapping[str, str]], Mapping[str, str]],
    *,
    as_they_come: bool = False,
) -> None:
    """Write a safetensors file: equal tensors, equal bytes.

    Tensors are hashed as they are written. Their checksums are as long before they are known, and so is the header.

    Args:
        tensors: by name, each contiguous on the CPU.
        path: the file.
        describe: what the header says beside them, given the checksum of each.
        as_they_come: keep their order, and begin the first at a page; else they are ordered as by the format's library.

    Raises:
        ValueError: what the header says is longer or shorter without the checksums.
    """
    order = list(TYPES)
    laid_out = list(tensors.items())
    if not as_they_come:
        laid_out.sort(key=lambda item: (order.index(item[1].dtype), item[0]))
    aligned = PAGE if as_they_come else ALIGNED
    with path.open("wb") as file:
        before = _header(laid_out, describe(dict.fromkeys(tensors, UNKNOWN)), aligned)
        file.write(before)
        checksums = {name: _written(tensor, file) for name, tensor in laid_out}
        header = _header(laid_out, describe(checksums), aligned)
        if len(header) != len(before):
            raise ValueError(f"a header as long without checksums, {len(before)} bytes, found {len(header)}")
        file.seek(0)
        file.write(header)


def _header(laid_out: Sequence[tuple[str, Tensor]], metadata: Mapping[str, str], aligned: int) -> bytes:
    """What stands before the tensors.

    Returns:
        The length of the header and the header, which ends at a multiple of `aligned` bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    begin = 0
    for name, tensor in laid_out:
        end = begin + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % aligned)
    return len(text).to_bytes(8, "little") + text


def _written(tensor: Tensor, file: BinaryIO) -> str:
    """Write a tensor, and hash each part of it: by a second thread where torch may use several.

    Returns:
        Its checksum.
    """
    digest = hashlib.sha256()
    if torch.get_num_threads() == 1:
        for part in _bytes(tensor):
            digest.update(part)
            file.write(part)
        return digest.hexdigest()
    with ThreadPoolExecutor(1) as second:
        for part in _bytes(tensor):
            hashed = second.submit(digest.update, part)
            file.write(part)
            hashed.result()
    return digest.hexdigest()


def checksum(tensor: Tensor) -> str:
    """SHA-256 of what is written of a tensor.

    Args:
        tensor: contiguous on the CPU.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for part in _bytes(tensor):
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor as it stands in the file.

    Yields:
        Its bytes, some at a time.
    """
    if is_divided(tensor):
        for rows in small_blocks(*tensor.shape):
            yield tensor[rows].contiguous().view(-1).view(torch.uint8).numpy().data
        return
    raw = tensor.view(-1).view(torch.uint8)
    for some in blocks(len(raw), PART):
        yield raw[some].numpy().data
