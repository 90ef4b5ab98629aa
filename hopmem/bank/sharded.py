"""Tensors and metadata ↔ several files and their index, the old ones in force until all of the new are written."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from math import gcd
from pathlib import Path

import torch
from torch import Tensor

from hopmem import header, shards
from hopmem.bank import file
from hopmem.bank.adjoin import Part, adjoined
from hopmem.bank.tensors import PAGE, TYPES
from hopmem.divided import cut
from hopmem.errors import BankError, UnreadableError, UsageError
from hopmem.header import Header
from hopmem.pages import watch
from hopmem.shards import Index

ROWS = ("patterns", "features", "values")  # tensors with a row for each pattern
DTYPES = {text: dtype for dtype, text in TYPES.items()}
PADDING = "padding"  # so that each of those begins at a page


def write(
    path: Path, tensors: Mapping[str, Tensor | None], metadata: dict[str, str], shard_size: int | None, *, force: bool
) -> None:
    """Write a bank in as many files as it takes: one where it fits one.

    Args:
        path: of the bank.
        tensors: by name; None is left out.
        metadata: what the header says beside them.
        shard_size: bytes that a file has at most, if a row and what the first has beside rows do not take more; None
            writes one file.
        force: whether a bank that stands there may be replaced.

    Raises:
        UsageError: more files than have a name.
    """
    shards.refuse_overwrite(path, force=force)
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    rows = {name: kept.pop(name) for name in ROWS if name in kept}
    more = sum(tensor.nbytes for tensor in kept.values()) + len(json.dumps(metadata)) + PAGE
    starts = _starts(rows, more, shard_size)
    if len(starts) <= 2:
        file.write(path, tensors, metadata, force=force)
        shards.clear(path, None)
        return
    assert shard_size is not None
    if len(starts) - 1 > shards.MOST:
        least = f"--shard-size: expected one that makes at most {shards.MOST:,} files of the bank"
        raise UsageError(f"{least}, found {shard_size} bytes, which make {len(starts) - 1:,}")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = shards.names(path, len(starts) - 1)
    paged = all(end * (tensor.nbytes // len(tensor)) % PAGE == 0 for tensor in rows.values() for end in starts[1:-1])
    written: list[Path] = []
    try:
        for number, (start, end) in enumerate(pairwise(starts)):
            some = {f"{name}.{number + 1:05}": cut(tensor, start, end) for name, tensor in rows.items()}
            own = {"bank": path.name, "rows": f"{start} {end}"} | ({} if number else metadata)
            written.append(files[number])
            rest = {} if number else kept
            whole = _aligned(some, rest) if paged else some | rest
            file.write(files[number], whole, own, force=False, form=shards.SHARD, as_they_come=paged)
        digests = tuple(map(header.digest, files))
        total = sum(tensor.nbytes for tensor in [*rows.values(), *kept.values()])
        index = Index(shards.index_path(path), tuple(files), tuple(starts), digests, shard_size, total)
        places = {name: file for number, file in enumerate(files) for name in index.header(number).tensors}
        shards.write(path, index, places, force=force)
    except BaseException:
        if _is_in_force(path, written):  # the index was renamed before the interruption
            raise
        for each in written:
            with suppress(OSError):
                each.unlink(missing_ok=True)
        raise
    shards.clear(path, index)


def _is_in_force(path: Path, files: Sequence[Path]) -> bool:
    """Whether the index of a bank names some files.

    Returns:
        True where it names all of them.
    """
    with suppress(BankError, UnreadableError):
        return list(shards.read(shards.index_path(path)).files) == list(files)
    return False


def read(path: str | Path, *, whole: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Open a bank, of one file or several; its tensors stay memory-mapped.

    Args:
        path: of the bank, or of its index.
        whole: compare large tensors with their checksums, too.

    Returns:
        Its tensors and its metadata.

    Raises:
        UnreadableError: a file that may not be read.
    """
    if shards.find(path) is None:
        return file.read(path, whole=whole)

    def look() -> tuple[dict[str, Tensor], dict[str, str]]:
        index = shards.read(shards.index_path(path))
        tensors, metadata = head(index)
        return tensors | _rows_of(index, slice(0, index.starts[-1]), whole=whole), metadata

    try:
        return shards.steadily(path, look)
    except OSError as error:
        raise UnreadableError(path, "a bank", error) from error


def outline(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A bank without its rows: of tensors with a row for each pattern, shape and type alone.

    Args:
        path: of the bank, or of its index.

    Returns:
        Its tensors, those with rows on the device `meta`, and its metadata.
    """
    index = shards.find(path)
    tensors, metadata = file.read(path) if index is None else head(index)
    if index is None:
        return {name: X.to("meta") if name in ROWS else X for name, X in tensors.items()}, metadata
    entries = index.header(0).tensors
    for name in ROWS:
        if (entry := entries.get(f"{name}.00001")) is not None:
            shape = (index.starts[-1], *entry.shape[1:])
            tensors[name] = torch.empty(shape, dtype=DTYPES[entry.dtype], device="meta")
    return tensors, metadata


def rows(path: str | Path, some: slice) -> dict[str, Tensor]:
    """Some rows of a bank, which alone are mapped: of several files those that hold none of them are not opened.

    Every byte of the files of a bank of several is compared with its checksum.

    Args:
        path: of the bank, or of its index.
        some: a range of all rows.

    Returns:
        patterns [m, d], and features and values where there are any; nothing of no rows.

    Raises:
        UnreadableError: a file that may not be read.
    """

    def look() -> dict[str, Tensor]:
        index = shards.find(path)
        if index is not None:
            return _rows_of(index, some, whole=True)
        found = header.read(path)
        named = {name: name for name in ROWS if name in found.tensors}
        parts = _parts(Path(path), found, named, some, found.tensors[named["patterns"]].shape[0])
        return {name: adjoined([part]) for name, part in parts.items() if part.nbytes}

    try:
        found = shards.steadily(path, look)
    except OSError as error:
        raise UnreadableError(path, "a bank", error) from error
    for each in found.values():
        watch(each)
    return found


def head(index: Index) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What the first file has of a bank beside rows.

    Args:
        index: of the bank.

    Returns:
        Tensors by their names in a bank, and its metadata.
    """
    index.header(0)  # before it is read: it is the file that is meant
    tensors, metadata = file.read(index.files[0], shards.SHARD)
    plain = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] not in {*ROWS, PADDING}}
    for name, tensor in plain.items():
        file.check_finite(index.files[0], name, tensor)
    return plain, metadata


def _rows_of(index: Index, some: slice, *, whole: bool) -> dict[str, Tensor]:
    """Some rows of a bank of several files.

    Returns:
        By name; nothing of no rows.

    Raises:
        BankError: files that do not belong together.
    """
    opened, holding = [], index.holding(some)
    headers = [index.header(number) for number, _ in holding]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # a digest keeps one busy
        jobs = zip([index.files[number] for number, _ in holding], headers, strict=True)
        list(threads.map(lambda job: header.check(*job, whole=whole), jobs))
    for (number, own), found in zip(holding, headers, strict=True):
        path = index.files[number]
        named = {name: f"{name}.{number + 1:05}" for name in ROWS if f"{name}.{number + 1:05}" in found.tensors}
        opened.append(_parts(path, found, named, own, index.starts[number + 1] - index.starts[number]))
    tensors: dict[str, Tensor] = {}
    for name in opened[0] if opened else ():
        parts = [each[name] for each in opened if name in each]
        if len(parts) < len(opened) or len({(part.dtype, part.shape[1]) for part in parts}) > 1:
            raise BankError(index.path, f"{name} of one type and width in all files", "others")
        tensors[name], start = adjoined(parts), 0
        for part in parts:  # as the system has mapped them
            own_rows = tensors[name][start : start + part.shape[0]]
            watch(own_rows)
            if whole or own_rows.nbytes <= header.CHEAP:
                file.check_finite(part.path, name, own_rows)
            start += part.shape[0]
    return tensors


def _parts(path: Path, found: Header, named: Mapping[str, str], some: slice, count: int) -> dict[str, Part]:
    """Where some rows of one file lie.

    Returns:
        By the name of the tensor in a bank.

    Raises:
        BankError: a tensor that has not as many rows as it should.
    """
    parts = {}
    for name, own in named.items():
        entry = found.tensors[own]
        if len(entry.shape) != 2 or entry.shape[0] != count:
            raise BankError(path, f"tensor {own} with a row for each of {count} patterns", list(entry.shape))
        dtype, width = DTYPES[entry.dtype], entry.shape[1]
        begin = entry.begin + some.start * width * dtype.itemsize
        parts[name] = Part(path, begin, (some.stop - some.start, width), dtype)
    return parts


def divided(path: str | Path, count: int, parts: int) -> list[slice]:
    """Cut the rows of a bank into parts of nearly one size, at the ends of files where there are enough of them.

    Args:
        path: of the bank, or of its index.
        count: M.
        parts: at least one; some are empty where there are more than rows.

    Returns:
        A range of rows for each.
    """
    index = shards.find(path)
    if index is not None:
        return index.divided(parts)
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def verify(path: str | Path) -> bool:
    """Read every byte of a bank, of one file or several, and compare it with what was written.

    Args:
        path: of the bank, or of its index.

    Returns:
        Whether it keeps the checksums to compare with; that every number is finite is looked at either way.
    """
    return header.CHECKSUMS in read(path, whole=True)[1]


def _starts(rows: Mapping[str, Tensor], more: int, shard_size: int | None) -> list[int]:
    """Where each file begins: rows that end at a page where a file has room for so many.

    Args:
        rows: the tensors with a row for each pattern.
        more: bytes of all that the first file has beside rows.
        shard_size: bytes of a file.

    Returns:
        The first row of each file, and the number of all.
    """
    M, widths = len(next(iter(rows.values()))), [tensor.nbytes // len(tensor) for tensor in rows.values()]
    if shard_size is None or sum(widths) * M + more <= shard_size:
        return [0, M]
    whole_pages, room = max(PAGE // gcd(PAGE, width) for width in widths), shard_size - PAGE  # for the header
    usual = max(1, room // sum(widths))
    if usual < whole_pages:  # too few to end at a page: they will be copied when the bank is opened
        whole_pages = 1
    first = max(room - more, 0) // sum(widths) // whole_pages * whole_pages or whole_pages
    return [0, *range(first, M, usual // whole_pages * whole_pages), M] if first < M else [0, M]


def _aligned(rows: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in the order in which they lie in a file: those of rows first, each at a page.

    Returns:
        By name, with others that fill the room between.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in rows.items():
        found[name] = tensor
        if lacking := -tensor.nbytes % PAGE:
            found[f"{PADDING}.{name}"] = torch.zeros(lacking, dtype=torch.uint8)
    return found | dict(rest)
