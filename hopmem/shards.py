"""A bank in several files: which there are, and which rows each of them holds. Read without torch.

The form is that of the Hugging Face Hub: `bank-00001-of-00008.safetensors` and so on beside an index in JSON,
`bank.safetensors.index.json`, whose `weight_map` names the file of each tensor. Tensors with a row for each pattern are
cut: `patterns.00002` are the rows of the second file. All else is in the first. The index keeps a digest of each
header, which has a checksum of each tensor: no file can take the place of another.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from hopmem import atomic, header
from hopmem.errors import BankError, MissingInputError, UnreadableError, UsageError

FoundT = TypeVar("FoundT")
SUFFIX = ".index.json"  # of the index, behind the name of the bank
FILE = ".safetensors"
INDEX, SHARD = "hopmem.index/1", "hopmem.shard/1"
NUMBERED = re.compile(r"(\.[0-9]+)?-[0-9]{5}-of-[0-9]{5}\.safetensors")  # behind the bare name of the bank
MOST = 10_000  # files of a bank: an index is read whole


@dataclass(frozen=True)
class Index:
    """The files of a bank, in the order of their rows."""

    path: Path  # of the index
    files: tuple[Path, ...]
    starts: tuple[int, ...]  # the first row of each file, and at last the number of all rows
    digests: tuple[str, ...]  # SHA-256 of the header of each file
    shard_size: int  # bytes that a file was asked to have at most
    total_size: int  # bytes of all tensors

    @property
    def digest(self) -> str:
        """What tells the bank from any other."""
        return " ".join(self.digests)

    def header(self, number: int) -> header.Header:
        """The header of a file, which is that of the index.

        Args:
            number: of the file, from 0.

        Returns:
            The header; the tensors are not yet compared with its checksums.

        Raises:
            BankError: no such file, or another.
        """
        path = self.files[number]
        if not path.is_file():
            raise BankError(self.path, f"the file {path.name} beside it", "none")
        found = header.read(path)
        if header.digest(path) != self.digests[number]:
            raise BankError(path, f"the file that {self.path.name} was written with", "another: its checksum differs")
        if found.metadata.get("format") != SHARD:
            raise BankError(path, SHARD, found.metadata.get("format", "a file of another kind"))
        return found

    def holding(self, rows: slice) -> list[tuple[int, slice]]:
        """The files that hold some rows.

        Args:
            rows: a range of all rows.

        Returns:
            The number of each file, and which of its own rows are meant; none where there are no rows.
        """
        found = []
        for number, (start, end) in enumerate(pairwise(self.starts)):
            first, last = max(rows.start, start), min(rows.stop, end)
            if first < last:
                found.append((number, slice(first - start, last - start)))
        return found

    def divided(self, parts: int) -> list[slice]:
        """Cut the rows into parts of nearly one size: at the ends of files, where there are as many files as parts.

        Args:
            parts: at least one.

        Returns:
            A range of rows for each.
        """
        M, files = self.starts[-1], len(self.files)
        places = [M * part // parts for part in range(parts + 1)]
        if files >= parts:
            near = [min(self.starts, key=lambda start, place=place: abs(start - place)) for place in places]  # type: ignore[misc]
            places = (
                near if len(set(near)) == len(near) else [self.starts[files * n // parts] for n in range(parts + 1)]
            )
        return [slice(start, end) for start, end in pairwise(places)]


def base(path: str | Path) -> Path:
    """The name of a bank, which its index has, too.

    Args:
        path: of a bank, or of its index.

    Returns:
        The name without what an index has behind it.
    """
    path = Path(path)
    return path.with_name(path.name.removesuffix(SUFFIX)) if path.name.endswith(SUFFIX) else path


def index_path(path: str | Path) -> Path:
    """Where the index of a bank is.

    Args:
        path: of a bank, or of its index.

    Returns:
        Its path, whether it is there or not.
    """
    path = base(path)
    return path.with_name(path.name + SUFFIX)


def find(path: str | Path) -> Index | None:
    """The index of a bank, if it is one of several files.

    Args:
        path: of a bank, or of its index.

    Returns:
        None where a bank in one file has that name, or nothing is there.

    Raises:
        MissingInputError: an index that is not there was named.
    """
    named, where = Path(path).name.endswith(SUFFIX), index_path(path)
    if named and not where.exists():
        raise MissingInputError(where, "the index of a bank (made by hopmem store --shard-size)")
    return None if not named and (Path(path).exists() or not where.is_file()) else read(where)


def metadata(path: str | Path) -> dict[str, str]:
    """What the header of a bank says beside the tensors, in one file or in several.

    Args:
        path: of a bank, or of its index.

    Returns:
        Names and texts; nothing where the bank is not whole, which who opens it will say better.
    """

    def look() -> dict[str, str]:
        index = find(path)
        if index is None:
            return header.metadata(path)
        found = [index.header(number) for number in range(len(index.files))]
        for file, each in zip(index.files, found, strict=True):
            header.check(file, each)
        return found[0].metadata

    try:
        return steadily(path, look)
    except (OSError, BankError, MissingInputError, UnreadableError):
        return {}


def steadily(path: str | Path, look: Callable[[], FoundT]) -> FoundT:
    """Look at a bank that may be replaced meanwhile, in one file or several, until it was one bank all the time.

    Args:
        path: of a bank, or of its index.
        look: opens it.

    Returns:
        What was seen.
    """
    return header.steadily(base(path), look, index_path(path))


def read(path: Path) -> Index:
    """Read an index.

    Args:
        path: of it.

    Returns:
        The index; its files are not yet looked at.

    Raises:
        BankError: no index of a bank, or one that contradicts itself.
        UnreadableError: a folder, or a file that may not be read.
    """
    if not path.is_file():
        raise UnreadableError(path, "the index of a bank", "a folder, a pipe or a device")
    try:
        with path.open("rb") as file:
            text = file.read(header.LONGEST + 1)
    except OSError as error:
        raise UnreadableError(path, "the index of a bank", error.strerror) from error
    try:
        plain = header.parsed(text[: header.LONGEST])
        return _checked(path, plain["metadata"], plain["weight_map"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BankError(path, f"a {INDEX}", f"{type(error).__name__}: {error}") from error


def _checked(path: Path, said: Mapping[str, Any], places: Mapping[str, str]) -> Index:
    """An index whose parts fit one another.

    Returns:
        It.

    Raises:
        ValueError: they do not.
    """
    if said["format"] != INDEX:
        raise ValueError(f"the format {said['format']!r}")
    files, starts, digests = said["files"], said["rows"], said["headers"]
    size, total = said["shard_size"], said["total_size"]
    if not (0 < len(files) <= MOST and len(starts) == len(files) + 1 and len(digests) == len(files)):
        raise ValueError(f"{len(files)} files, {len(starts)} rows and {len(digests)} headers")
    if not all(type(number) is int and 0 <= number <= header.LARGEST for number in [*starts, size, total]):
        raise ValueError("rows that are no numbers")
    if starts[0] != 0 or any(first >= last for first, last in pairwise(starts)):
        raise ValueError("rows that do not ascend from 0")
    if not all(isinstance(name, str) and name == Path(name).name and name not in {"", ".", ".."} for name in files):
        raise ValueError("files that are not beside it")
    if len(set(files)) != len(files) or set(places.values()) != set(files):
        raise ValueError("a weight_map of other files")
    if not all(isinstance(each, str) for each in digests):
        raise ValueError("headers that are no text")
    return Index(path, tuple(path.with_name(name) for name in files), tuple(starts), tuple(digests), size, total)


def write(path: Path, index: Index, tensors: Mapping[str, Path], *, force: bool) -> None:
    """Write an index: from then on the bank is what it says.

    Args:
        path: of the bank.
        index: of files that are written.
        tensors: the file of each.
        force: whether an index that stands there may be replaced.

    Raises:
        UsageError: an index that nobody would read.
    """
    said = {
        "format": INDEX,
        "total_size": index.total_size,
        "shard_size": index.shard_size,
        "files": [file.name for file in index.files],
        "rows": list(index.starts),
        "headers": list(index.digests),
    }
    plain = {"metadata": said, "weight_map": {name: file.name for name, file in sorted(tensors.items())}}
    text = json.dumps(plain, indent=1) + "\n"
    if len(text.encode()) > header.LONGEST:
        raise UsageError(f"--shard-size: expected an index of at most {header.LONGEST} bytes, found {len(text)}")
    with atomic.replacing(index_path(path), force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def names(path: Path, count: int) -> list[Path]:
    """What the files of a bank will be called: other than those that stand there, which stay until all are written.

    Args:
        path: of the bank.
        count: of the files.

    Returns:
        A path for each.
    """
    stem, taken = _stem(path), {file.name for file in _standing(path)}
    for version in ["", *(f".{number}" for number in range(2, len(taken) + 3))]:
        found = [path.with_name(f"{stem}{version}-{n:05}-of-{count:05}{FILE}") for n in range(1, count + 1)]
        if not any(name.startswith(f"{stem}{version}-") for name in taken):
            break
    return found


def clear(path: Path, kept: Index | None) -> None:
    """Take away what an earlier version of a bank, or a run that was killed, has left.

    Args:
        path: of the bank.
        kept: the index in force; None where the bank is one file.
    """
    wanted = set() if kept is None else {file.name for file in kept.files}
    if kept is None:
        with suppress(BankError, UnreadableError):  # none, or that of something else
            read(index_path(path))
            index_path(path).unlink()
    else:
        path.unlink(missing_ok=True)
    for file in _standing(path):
        said = header.metadata(file)
        if file.name not in wanted and said.get("format") == SHARD and said.get("bank") == path.name:
            file.unlink(missing_ok=True)


def refuse_overwrite(path: str | Path, *, force: bool) -> None:
    """Check early what writing will check, of a bank in one file and in several.

    Args:
        path: of the bank.
        force: whether what stands there may be replaced.
    """
    atomic.refuse_overwrite(base(path), force=force)
    atomic.refuse_overwrite(index_path(path), force=force)


def exists(path: str | Path) -> bool:
    """Whether something stands where a bank is looked for.

    Returns:
        True of one file, or of an index.
    """
    return base(path).exists() or index_path(path).exists()


def size(path: str | Path) -> int:
    """What a bank takes on the disk.

    Args:
        path: of a bank, or of its index.

    Returns:
        Bytes.
    """
    return sum(Path(file).stat().st_size for file in files(path))


def files(path: str | Path) -> list[str]:
    """What a bank is made of on the disk.

    Args:
        path: of a bank, or of its index.

    Returns:
        One file, or an index and others.
    """
    index = find(path)
    return [str(base(path))] if index is None else [str(index.path), *map(str, index.files)]


def _stem(path: Path) -> str:
    return path.name.removesuffix(FILE)


def _standing(path: Path) -> list[Path]:
    """Files beside a bank that are called as its own are.

    Returns:
        Their paths.
    """
    stem = _stem(path)
    if not path.parent.is_dir():
        return []
    return [
        file
        for file in path.parent.iterdir()
        if file.name.startswith(stem) and NUMBERED.fullmatch(file.name[len(stem) :])
    ]
