"""The header of a bank, read and checked without its tensors, and without torch.

A safetensors file is eight bytes with the length of the header, the header in JSON, and the tensors one behind the
other. A bank's header also keeps a SHA-256 of each tensor and of all else that the header says.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hopmem.errors import BankError, HopmemError

LONGEST = 4 << 20  # bytes of a header; the format allows more, and nothing that hopmem writes has them
MOST_VALUES = 200_000  # that a text in JSON may hold: each takes some hundred bytes when it is read
CHECKSUMS = "checksums"  # where a bank keeps them, in JSON by the name of the tensor,
WRITER = "hopmem"  # the version that wrote it, which those that kept no checksums did not say
ITSELF = ""  # and here of all else that its header says
MOST_AXES, LARGEST = 8, 1 << 48  # of a tensor, and its size: more is multiplied for a long time
CHEAP = 16 << 20  # bytes of a tensor up to which its checksum is looked at whenever the bank is opened
AT_ONCE = 1 << 20  # bytes that are read at a time
ATTEMPTS = 100  # to look at a bank that others are replacing
BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

Found = TypeVar("Found")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    end: int


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says."""

    metadata: dict[str, str]
    tensors: dict[str, Entry]

    @property
    def checksums(self) -> dict[str, str] | None:
        """SHA-256 by the name of the tensor; None where the file keeps none.

        Raises:
            ValueError: something else stands in their place.
        """
        if CHECKSUMS not in self.metadata and WRITER not in self.metadata:
            return None
        kept = parsed(self.metadata.get(CHECKSUMS, "null").encode())
        if not isinstance(kept, dict):
            raise ValueError("no checksums")
        if set(kept) != {ITSELF, *self.tensors}:
            apart = sorted(set(kept) ^ {ITSELF, *self.tensors})
            raise ValueError(f"checksums and tensors that do not belong together: {', '.join(apart)}")
        return kept


def metadata(path: str | Path) -> dict[str, str]:
    """What the header of a safetensors file says beside the tensors.

    Args:
        path: the file.

    Returns:
        Names and texts; nothing where the file is not whole, which who opens it will say better.
    """

    def look() -> dict[str, str]:
        header = read(path)
        check(path, header)
        return header.metadata

    if not Path(path).is_file():  # a pipe would be waited for
        return {}
    try:
        return steadily(path, look)
    except (OSError, BankError):
        return {}


def steadily(path: str | Path, look: Callable[[], Found], *beside: Path) -> Found:
    """Look at a file that may be replaced meanwhile, again and again until it was one file all the time.

    Args:
        path: the file.
        look: opens it, perhaps more than once.
        *beside: files that may come and go with it.

    Returns:
        What was seen.

    Raises:
        BankError: it never stands still.
        HopmemError: what was seen of one file is no bank.
        OSError: of a file that stands still.
    """
    paths = (Path(path), *beside)
    for attempt in range(ATTEMPTS):
        before = [_identity(each) for each in paths]
        try:
            found = look()
        except (HopmemError, OSError):
            if attempt == ATTEMPTS - 1 or [_identity(each) for each in paths] == before:
                raise
            continue
        if [_identity(each) for each in paths] == before:
            return found
    raise BankError(path, "a bank that stands still", f"another one at each of {ATTEMPTS} looks")


def read(path: str | Path) -> Header:
    """Read a header, and check that it describes the file that it stands in.

    Args:
        path: the file.

    Returns:
        The header.

    Raises:
        BankError: no safetensors file, or one that is cut, too long or contradicts itself.
    """
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LONGEST, size - 8):
            raise BankError(path, "a safetensors file", f"{size} bytes with a header of {length}")
        text = file.read(length)
    try:
        plain = parsed(text)
        kept = plain.pop("__metadata__", {})
        _check_texts(kept)
        tensors = {name: _entry(entry, 8 + length) for name, entry in plain.items()}
        _check_places(tensors.values(), 8 + length, size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BankError(path, "a safetensors file", f"a header that does not fit it: {error}") from error
    return Header(kept, tensors)


def digest(path: str | Path) -> str:
    """What tells a header from others, and through the checksums in it the tensors.

    Args:
        path: the file.

    Returns:
        SHA-256 of its bytes, in hexadecimal digits.
    """
    with Path(path).open("rb") as file:
        start = file.read(8)
        return hashlib.sha256(start + file.read(min(LONGEST, int.from_bytes(start, "little")))).hexdigest()


def parsed(text: bytes) -> Any:
    """Read JSON that takes little more memory than its text, and whose objects have no key twice.

    Args:
        text: in UTF-8.

    Returns:
        What it says.

    Raises:
        ValueError: no JSON, too many values, or a key that stands twice.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    return json.loads(text, object_pairs_hook=_once)


def check(path: str | Path, header: Header, *, whole: bool = False) -> None:
    """Compare what the file holds with the checksums that its header keeps, where it keeps any.

    Args:
        path: the file.
        header: of it.
        whole: large tensors, too.

    Raises:
        BankError: they differ.
    """
    try:
        wanted = header.checksums
    except (ValueError, TypeError, RecursionError) as error:
        raise BankError(path, "a checksum of each tensor", error) from error
    if wanted is None:
        return
    if wanted[ITSELF] != of_metadata(header.metadata):
        raise BankError(path, "the metadata that were written", "others: their checksum differs")
    with Path(path).open("rb") as file:
        for name, entry in header.tensors.items():
            if (whole or entry.end - entry.begin <= CHEAP) and _of_bytes(file, entry) != wanted[name]:
                raise BankError(path, f"tensor {name} as it was written", "another: its checksum differs")


def of_metadata(kept: dict[str, str]) -> str:
    """The checksum of metadata, but for the checksums.

    Args:
        kept: names and texts.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    plain = json.dumps(sorted((name, text) for name, text in kept.items() if name != CHECKSUMS))
    return hashlib.sha256(plain.encode()).hexdigest()


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when another file takes the name.

    Returns:
        Numbers; None where there is none.
    """
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _of_bytes(file: BinaryIO, entry: Entry) -> str:
    """The checksum of a part of a file.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256()
    file.seek(entry.begin)
    for start in range(entry.begin, entry.end, AT_ONCE):
        digest.update(file.read(min(AT_ONCE, entry.end - start)))
    return digest.hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys differ.

    Returns:
        The object.

    Raises:
        ValueError: a key that stands twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _check_texts(kept: dict[str, Any]) -> None:
    """Metadata is text.

    Raises:
        ValueError: it is not.
    """
    if not all(isinstance(value, str) for value in kept.values()):
        raise ValueError("metadata that is no text")


def _entry(plain: dict[str, Any], start: int) -> Entry:
    """Where a tensor lies.

    Returns:
        The entry.

    Raises:
        ValueError: a size that its type and shape do not have.
    """
    begin, end = plain["data_offsets"]
    numbers = [*plain["shape"], begin, end]
    if len(numbers) > 2 + MOST_AXES or not all(type(number) is int and 0 <= number <= LARGEST for number in numbers):
        raise ValueError("sizes that are no numbers of bytes")
    if math.prod(plain["shape"]) * BYTES[plain["dtype"]] != end - begin:
        raise ValueError("a tensor of another size than its shape has")
    return Entry(plain["dtype"], tuple(plain["shape"]), start + begin, start + end)


def _check_places(tensors: Iterable[Entry], start: int, size: int) -> None:
    """Tensors fill the file, one behind the other.

    Raises:
        ValueError: they overlap, or leave a hole, or end elsewhere.
    """
    places = sorted((entry.begin, entry.end) for entry in tensors)
    ends = [start, *(end for _, end in places)]
    if any(begin != end for (begin, _), end in zip(places, ends, strict=False)):
        raise ValueError("tensors that overlap or leave a hole")
    if ends[-1] != size:
        raise ValueError(f"tensors that end at {ends[-1]} in a file of {size} bytes")
