"""Which writer writes answers: in the kind of the queries, whole or not at all, and as they come."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from hopmem.atomic import refuse_overwrite, replacing
from hopmem.errors import InvalidDataError, UnreadableError, UsageError
from hopmem.patterns.arrays import growing_npy, save_array
from hopmem.patterns.files import SUFFIXES
from hopmem.patterns.images import save_image
from hopmem.patterns.source import Form, Layout
from hopmem.patterns.tables import save_table

LONGEST = 255  # bytes of a name that every file system takes
Write = Callable[[slice, Tensor], None]  # which of the rows, in order, and they themselves [n, ...]


@dataclass(frozen=True)
class Target:
    """Where answers go, and what they look like there."""

    path: str  # `-` is standard output
    kind: str  # as of `kind_of`, or folder
    shape: tuple[int, ...]  # [N, ...] of all answers
    dtype: torch.dtype
    form: Form  # what the queries looked like
    names: Sequence[str]  # of the queries
    layout: Layout | None  # of the rows, where they are images
    scale: float = 1.0  # what one unit is worth; an image's pixels run from 0 to 1
    force: bool = False  # whether files may be replaced
    standing: int = 0  # of the first pictures of a folder, those that are there: an interrupted run has written them

    @property
    def files(self) -> list[Path]:
        """The files that will be written: one, or one for each query of a folder; none for standard output."""
        return targets(self.path, self.kind, self.form, self.names)

    def with_standing(self, before: Sequence[slice] | None) -> "Target":
        """Go on where an interrupted run has stopped, over what it may have written.

        Args:
            before: the blocks that it has answered; None where there was no such run.

        Returns:
            The target.
        """
        return self if before is None else replace(self, force=True, standing=before[-1].stop if before else 0)

    def refuse_overwrite(self) -> None:
        """Check early that no file stands in the way."""
        for path in self.files:
            refuse_overwrite(path, force=self.force)


def _inside(target: str, name: str) -> PurePosixPath:
    """Where below a folder the answer to a query is written.

    Returns:
        A relative path without `..`.

    Raises:
        InvalidDataError: no file can have such a name.
    """
    inside = PurePosixPath(*(part for part in PurePosixPath(name).parts if part.strip("/") not in {"", ".."}))
    if not inside.stem.strip(".") or inside.name == ".png" or "\0" in name:
        raise InvalidDataError(target, "a name for each answer that a file can have", repr(name))
    if max(len(os.fsencode(part)) for part in inside.parts) > LONGEST:
        raise InvalidDataError(target, f"a name of at most {LONGEST} bytes for each answer", repr(name))
    return inside


@contextmanager
def writing(target: Target) -> Iterator[Write]:
    """Write answers block by block.

    An image of a folder stands as soon as its block is written; any other file when the last one is. A `.npy` holds no
    more than a block in memory.

    Args:
        target: where to, and in which form.

    Yields:
        What writes some of the rows.

    Raises:
        UnreadableError: standard output is closed.
    """
    if target.kind == "folder":
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            yield _pictures(target, pool)
        return
    with ExitStack() as stack:
        if target.path == "-":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = folder / f"answers{SUFFIXES[target.kind]}"
        else:
            path = stack.enter_context(replacing(Path(target.path), force=target.force))
        if target.kind == "npy":
            with growing_npy(path, target.shape, target.dtype) as write:
                yield write
        else:
            held = torch.empty(target.shape, dtype=target.dtype)
            yield held.__setitem__
            _save(path, target, held)
        if target.path == "-" and sys.stdout is None:
            raise UnreadableError("standard output", "a place for the answers", "a closed one")
        if target.path == "-":
            with path.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def save(target: Target, array: Tensor) -> None:
    """Write all answers at once.

    Args:
        target: where to, and in which form.
        array: rows [N, ...] in the units and the type that the file shall hold.
    """
    with writing(target) as write:
        write(slice(0, len(array)), array)


def targets(target: str, kind: str, form: Form, names: Sequence[str]) -> list[Path]:
    """The files that `save` will write.

    Args:
        target: where to.
        kind: as of `kind_of`, or folder.
        form: what the queries looked like.
        names: of the queries.

    Returns:
        One path, or one for each query of a folder, all below it; none for standard output.

    Raises:
        InvalidDataError: two queries would write one file, or one whose name no file can have.
    """
    if target == "-":
        return []
    if kind != "folder":
        return [Path(target)]
    names = [image.name for image in form.images] or [f"{name}.png" for name in names]
    seen: dict[PurePosixPath, str] = {}
    for name in names:
        inside = _inside(target, name)
        if inside in seen:
            raise InvalidDataError(
                target, "a file for each query", f"{name!r} and {seen[inside]!r}, which would write one"
            )
        seen[inside] = name
    for inside, name in seen.items():
        for above in set(inside.parents) & set(seen):
            raise InvalidDataError(target, "a file for each query", f"{seen[above]!r}, a folder of {name!r}")
    return [Path(target, inside) for inside in seen]


def _pictures(target: Target, pool: ThreadPoolExecutor) -> Write:
    """What writes each row as a picture of its own.

    Returns:
        The writer.
    """
    paths = target.files

    def write_one(place: int, row: Tensor) -> None:
        if place < target.standing and paths[place].exists():
            return
        with replacing(paths[place], force=target.force) as temporary:
            _save_picture(temporary, row, target, place)

    def write(rows: slice, array: Tensor) -> None:
        list(pool.map(write_one, range(rows.start, rows.stop), array))  # which raises what went wrong

    return write


def _save(path: Path, target: Target, array: Tensor) -> None:
    """Write a file that can't be written in parts."""
    if target.kind == "image":
        _save_picture(path, array[0], target, 0)
    elif target.kind in {"csv", "tsv"}:
        save_table(path, target.kind, array, target.form, list(target.names))
    else:
        save_array(path, target.kind, array, target.form.key)


def _save_picture(path: Path, row: Tensor, target: Target, place: int) -> None:
    """Write one row as an image like the query's, or as a plain one where the query was none.

    Raises:
        UsageError: the rows are no images.
    """
    if target.layout is None:
        raise UsageError(f"{path}: expected rows that are images to write an image, found shape {list(row.shape)}")
    pixels = row.float() * target.scale
    pixels = pixels.permute(1, 2, 0) if target.layout == "CHW" else pixels
    height, width = pixels.shape[:2]
    image = target.form.images[place] if target.form.images else None
    mode = image.mode if image else "L" if pixels.ndim == 2 or pixels.shape[2] == 1 else "RGB"
    save_image(path, pixels, mode, image.size if image else (width, height))
