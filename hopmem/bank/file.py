"""Tensors and metadata ↔ one safetensors file, whole or not at all."""

import json
from array import array
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hopmem.atomic import replacing
from hopmem.bank.tensors import save_file
from hopmem.divided import is_divided
from hopmem.errors import BankError, MissingInputError, UnreadableError
from hopmem.header import CHEAP, CHECKSUMS, ITSELF, WRITER, check, of_metadata, steadily
from hopmem.header import read as read_header
from hopmem.model.rows import blocks
from hopmem.pages import watch
from hopmem.shards import SHARD

FORMAT = "hopmem.bank/1"
AT_ONCE = 1 << 22  # numbers that are looked at together


def write(
    path: Path,
    tensors: Mapping[str, Tensor | None],
    metadata: dict[str, str],
    *,
    force: bool,
    form: str = FORMAT,
    as_they_come: bool = False,
) -> None:
    """Write a bank, or a file of another form.

    Args:
        path: the file.
        tensors: by name; None is left out.
        metadata: what the header says beside them.
        force: whether a file that stands there may be replaced.
        form: name and version of what is written.
        as_they_come: keep the order of the tensors, and begin the first at a page.

    Raises:
        UnreadableError: it can't be written there.
    """
    with replacing(path, force=force) as temporary:
        kept = {name: _ready(tensor) for name, tensor in tensors.items() if tensor is not None}
        said = {"format": form, WRITER: version("hopmem")} | metadata
        save_file(kept, temporary, partial(_with_checksums, said), as_they_come=as_they_come)


def _ready(tensor: Tensor) -> Tensor:
    """A tensor as it is written; rows that are divided come as they are.

    Returns:
        Contiguous, on the CPU.
    """
    return tensor if is_divided(tensor) else tensor.detach().cpu().contiguous()


def read(path: str | Path, form: str = FORMAT, *, whole: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Open a bank, or a file of another form; its tensors stay memory-mapped.

    Args:
        path: the file.
        form: name and version of what is read.
        whole: compare large tensors with their checksums, too.

    Returns:
        Its tensors and its metadata.

    Raises:
        BankError: no bank, a damaged one, or one of a newer version.
        MissingInputError: nothing there.
        UnreadableError: a folder, or a file that may not be read.
    """
    if not Path(path).exists():
        raise MissingInputError(path, "a bank (made by hopmem store)")
    if not Path(path).is_file():
        raise UnreadableError(path, "a bank", "a folder" if Path(path).is_dir() else "a pipe or a device")
    try:
        return steadily(path, partial(_read, path, form, whole=whole))
    except OSError as error:
        raise UnreadableError(path, "a bank", error) from error


def verify(path: str | Path) -> bool:
    """Read every byte of a bank, and compare it with what was written.

    Args:
        path: the bank.

    Returns:
        Whether it keeps the checksums to compare with; that every number is finite is looked at either way.
    """
    return CHECKSUMS in read(path, whole=True)[1]


def _read(path: str | Path, form: str, *, whole: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that stays where it is.

    Returns:
        Its tensors and its metadata.

    Raises:
        BankError: no bank, a damaged one, or one of a newer version.
    """
    found = read_header(path)
    _check_format(path, found.metadata, form)
    check(path, found, whole=whole)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 # no dictionary
    except (SafetensorError, RuntimeError) as error:  # the latter where another file takes the name meanwhile
        raise BankError(path, "a safetensors file", error) from error
    for name, tensor in tensors.items():
        watch(tensor)
        if form == FORMAT and (whole or tensor.nbytes <= CHEAP):
            check_finite(path, name, tensor)
    return tensors, found.metadata


def check_finite(path: str | Path, name: str, tensor: Tensor) -> None:
    """Look for what no arithmetic bears.

    Args:
        path: of the bank.
        name: of the tensor.
        tensor: any.

    Raises:
        BankError: NaN or infinities.
    """
    flat = tensor.reshape(-1)
    parts = (flat[some] for some in blocks(len(flat), AT_ONCE))
    if tensor.is_floating_point() and not all(bool(part.isfinite().all()) for part in parts):
        raise BankError(path, f"finite numbers in tensor {name}", "NaN or infinities")


def names_to(names: Sequence[str]) -> dict[str, Tensor]:
    """Names as tensors: the header of the format holds at most 100 MB.

    Args:
        names: text, with the lone surrogates that stand for other bytes in file names.

    Returns:
        Their UTF-8 bytes, and where each begins.
    """
    text, ends = bytearray(), array("q", [0])
    for name in names:
        text += name.encode("utf-8", "surrogateescape")
        ends.append(len(text))
    raw = torch.frombuffer(text or bytearray(1), dtype=torch.uint8)[: ends[-1]]
    return {"names": raw, "names.offsets": torch.frombuffer(ends, dtype=torch.int64)}


def _with_checksums(metadata: dict[str, str], checksums: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the checksums of all that is written, those of the tensors and that of the metadata.

    Returns:
        The metadata.
    """
    kept = {**checksums, ITSELF: of_metadata(metadata)}
    return metadata | {CHECKSUMS: json.dumps(dict(sorted(kept.items())))}


def _check_format(path: str | Path, metadata: Mapping[str, str], form: str) -> None:
    """Refuse what is no bank, and a bank that a later version wrote.

    Raises:
        BankError: it is.
    """
    kind, found = form.rpartition("/")[0], metadata.get("format")
    if found == SHARD and form == FORMAT:
        raise BankError(path, "a bank", f"one file of several: the bank is {metadata.get('bank')}")
    if found is None or not found.startswith(f"{kind}/"):
        raise BankError(path, f"a {kind.replace('.', ' ')}", "a safetensors file of another kind")
    if found != form:
        raise BankError(path, form, f"{found}, which needs hopmem {metadata.get(WRITER, 'of another version')}")
