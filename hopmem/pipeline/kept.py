"""Answers that outlive the run that found them: each block in a file of its own, until all of them are there."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hopmem.atomic import replacing
from hopmem.bank import MemoryBank, file
from hopmem.errors import BankError, UnreadableError, UsageError
from hopmem.lock import writing
from hopmem.model.rows import blocks, small_blocks
from hopmem.patterns import Loaded, Target
from hopmem.pipeline.company import identity
from hopmem.verbs import Answer, states

FORMAT = "hopmem.answers/1"
SUFFIX = ".checkpoint"  # of the folder beside the answers, or its name among pictures
RUN = "run"  # the file that knows whose answers these are
BLOCK = re.compile(r"(\d+)-(\d+)\.safetensors")
OURS = re.compile(rf"{RUN}|{BLOCK.pattern}|\.hopmem-.*")  # all that such a folder may hold
NUMBERS = ("patterns", "margin", "support", "energy", "steps", "converged", "top_index", "top_weight")


@dataclass
class Kept:
    """The blocks of queries that were answered, from the first query on, in a folder; without one none is kept."""

    folder: Path | None = None
    before: tuple[slice, ...] = ()  # answered by the run that was interrupted
    count: int = 0  # queries answered, by that run and this one

    def blocks(self, count: int, size: int) -> Iterator[slice]:
        """Cut the queries: where that run did, and beyond in slices of at most `size`.

        Yields:
            The slices, in order.
        """
        yield from self.before
        start = self.before[-1].stop if self.before else 0
        yield from (slice(start + rows.start, start + rows.stop) for rows in blocks(count - start, size))

    def answer(self, rows: slice, bank: MemoryBank) -> Answer | None:
        """What the interrupted run answered.

        Returns:
            The answers to a block; None where it did not come to it.
        """
        if rows not in self.before or self.folder is None:
            return None
        self.count = rows.stop
        tensors, kept = file.read(_block(self.folder, rows), FORMAT, whole=True)
        same: dict[str, Any] = {name: tensors[name].clone() for name in NUMBERS} | json.loads(kept["run"])
        same |= {"index": same["top_index"][:, 0], "confidence": same["top_weight"][:, 0]}
        same["state"] = states(same["support"], len(bank))
        matched = zip(same["index"].tolist(), tensors["matched"].tolist(), strict=True)
        return Answer(match=[bank.names[row] if sure else None for row, sure in matched], **same)

    def keep(self, rows: slice, answer: Answer) -> None:
        """Keep the answers to a block."""
        if self.folder is None:
            return
        matched = torch.tensor([match is not None for match in answer.match])
        tensors = {name: getattr(answer, name) for name in NUMBERS} | {"matched": matched}
        same = {name: getattr(answer, name) for name in ("alpha", "beta", "beta_source")}
        file.write(_block(self.folder, rows), tensors, {"run": json.dumps(same)}, force=True, form=FORMAT)
        self.count = rows.stop


def interrupted(target: Target, run: str, *, asked: bool) -> tuple[slice, ...] | None:
    """The blocks that an interrupted run answered, one behind the other.

    Args:
        target: where its answers go.
        run: `run_of` the bank, the queries and the options.
        asked: whether the user wants to go on with it.

    Returns:
        The blocks; None where no run was interrupted.

    Raises:
        UsageError: the interrupted run was another.
    """
    folder = _beside(target)
    if not (folder / RUN).is_file():
        return None
    if (folder / RUN).read_text(encoding="ascii", errors="replace") != run:
        if not asked:
            return None
        expected = "expected the bank, queries and options of the interrupted run"
        raise UsageError(f"--resume: {expected}, found others (without it the work begins anew): {folder}")
    found = (BLOCK.fullmatch(path.name) for path in folder.iterdir())
    ends = dict(sorted((int(match[1]), int(match[2])) for match in found if match))
    answered = list[slice]()
    start = 0
    while start in ends and _is_whole(_block(folder, slice(start, ends[start]))):
        answered.append(slice(start, ends[start]))
        start = ends[start]
    return tuple(answered)


@contextmanager
def keeping(target: Target | None, run: str | None, before: tuple[slice, ...] | None) -> Iterator[Kept]:
    """Keep answers until all of them are there, and for a later run where it does not come to that.

    Args:
        target: where the answers go; they are kept in a folder beside a file, or within a folder.
        run: `run_of` the bank, the queries and the options; None keeps nothing.
        before: what the `interrupted` run answered.

    Yields:
        What was answered.
    """
    if target is None or run is None:
        yield Kept()
        return
    folder = _beside(target)
    with writing(folder):
        if before is None:
            _forget(folder)
            with replacing(folder / RUN, force=True) as temporary:
                temporary.write_text(run, encoding="ascii")
        kept = Kept(folder, before or ())
        try:
            yield kept
        except BaseException as error:
            full = isinstance(error, UnreadableError)  # what was kept would be in the way of everything else
            if before is None and (full or not kept.count) and not isinstance(error, KeyboardInterrupt):
                _forget(folder)
            raise
        _forget(folder)


def run_of(bank_path: str, read: Loaded, options: Mapping[str, Any]) -> str:
    """What tells a run from another: its bank, its queries and its options.

    Args:
        bank_path: the bank.
        read: the queries.
        options: of `verbs.retrieve`.

    Returns:
        A digest.
    """
    digest = hashlib.blake2b(json.dumps(options, sort_keys=True).encode(), digest_size=16)
    digest.update(identity(bank_path).encode())
    digest.update(json.dumps([list(read.stored.shape), str(read.stored.dtype)]).encode())
    for name in read.row_names:
        digest.update(json.dumps(name).encode())
    for rows in [read.stored] if read.known is None else [read.stored, read.known]:
        for part in small_blocks(*rows.shape):
            digest.update(rows[part].contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_whole(path: Path) -> bool:
    try:
        file.read(path, FORMAT, whole=True)
    except BankError:  # by the loss of power
        return False
    return True


def _beside(target: Target) -> Path:
    """Beside a file, and hidden within a folder: more than that may not be writable, and `.` has no name.

    Returns:
        A folder.
    """
    path = Path(target.path)
    return path / SUFFIX if target.kind == "folder" else path.with_name(path.name + SUFFIX)


def _block(folder: Path, rows: slice) -> Path:
    return folder / f"{rows.start}-{rows.stop}.safetensors"


def _forget(folder: Path) -> None:
    """Take away the answers that are kept in a folder.

    Raises:
        UnreadableError: it is somebody else's.
    """
    if not folder.exists():
        return
    entries = list(folder.iterdir()) if folder.is_dir() else [folder]
    if any(not OURS.fullmatch(entry.name) for entry in entries):
        raise UnreadableError(folder, "a name for the answers on their way", "something else")
    for entry in sorted(entries, key=lambda entry: entry.name != RUN):
        entry.unlink()
    folder.rmdir()
