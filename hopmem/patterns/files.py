"""Which reader reads a source."""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hopmem.errors import HopmemError, InvalidDataError, MissingInputError, UnreadableError, UsageError
from hopmem.model.rows import LARGEST, small_blocks
from hopmem.pages import require_names
from hopmem.patterns.arrays import load_array
from hopmem.patterns.images import find_images, load_images
from hopmem.patterns.source import IMAGE_SUFFIXES, Loaded, Reading, Skipped, safe_name, spoken
from hopmem.patterns.tables import load_table
from hopmem.scratch import empty, joined

KINDS = {
    ".npy": "npy",
    ".npz": "npz",
    ".csv": "csv",
    ".tsv": "tsv",
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".idx": "idx",
}
SUFFIXES = {
    "npy": ".npy",
    "npz": ".npz",
    "csv": ".csv",
    "tsv": ".tsv",
    "safetensors": ".safetensors",
    "pt": ".pt",
    "idx": ".idx",
    "image": ".png",
}
MAGIC = {
    b"\x93NUMPY": "npy",
    b"\x89PNG": "image",
    b"\xff\xd8\xff": "image",
    b"GIF8": "image",
    b"BM": "image",
    b"RIFF": "image",
    b"II*\0": "image",
    b"MM\0*": "image",
    b"P5": "image",
    b"\x1f\x8b": "idx",
    b"\0\0\x08": "idx",
    b"PK": "npz",
}
BEGINNING = 1 << 10  # bytes of standard input that tell its kind
EXPECTED = "an array (.npy .npz .safetensors .pt .idx -ubyte), a table (.csv .tsv), an image or a folder of images"


def kind_of(path: Path) -> str | None:
    """The kind of file that a name stands for.

    Returns:
        npy, npz, csv, tsv, safetensors, pt, idx or image; None where the suffix says nothing, as for a folder.
    """
    name = path.name.lower()
    bare, suffix = name.removesuffix(".gz"), path.suffix.lower()
    if bare.endswith(("-ubyte", ".idx")) or (suffix in {"", ".gz"} and "-idx" in bare):
        return "idx"
    return "image" if suffix in IMAGE_SUFFIXES else KINDS.get(suffix)


def load(sources: Sequence[str], reading: Reading, first: int = 0) -> Loaded:
    """Read one or more sources as rows of one shape.

    Args:
        sources: paths; `-` is standard input.
        reading: how.
        first: the number of the first row, where rows are numbered.

    Returns:
        All rows, one source after another; unusable rows are left out and recorded where that was asked for.

    Raises:
        InvalidDataError: the sources differ in shape.
        UsageError: a source without a name.
    """
    if "" in sources:
        raise UsageError("expected the name of a file or a folder, found an empty one")
    several = sum(Path(source).is_dir() for source in sources) > 1
    parts: list[Loaded] = []
    for group in _groups(sources):
        part = _load_group(group, reading, prefix=several)
        before = sum(len(each.stored) + len(each.skipped) for each in parts)
        parts.append(_checked(replace(part, first=first + before), spoken(group[0]), reading))
    for group, part in zip(_groups(sources), parts, strict=True):
        if part.shape != parts[0].shape:
            raise InvalidDataError(
                spoken(group[0]), f"rows of shape {list(parts[0].shape)} as in {spoken(sources[0])}", list(part.shape)
            )
    require_names(sum(len(part.stored) for part in parts))
    return parts[0] if len(parts) == 1 else _joined(parts)


def _groups(sources: Sequence[str]) -> list[list[str]]:
    """Runs of single images, which are read together, and every other source alone.

    Returns:
        The groups, in order.
    """
    groups: list[list[str]] = []
    for source in sources:
        single = source != "-" and kind_of(Path(source)) == "image" and not Path(source).is_dir()
        if single and groups and groups[-1][0] != "-" and kind_of(Path(groups[-1][0])) == "image":
            groups[-1].append(source)
        else:
            groups.append([source])
    return groups


def _load_group(group: list[str], reading: Reading, *, prefix: bool) -> Loaded:
    """Read one source, or a run of single images.

    Returns:
        Its rows.

    Raises:
        InvalidDataError: a folder without an image.
        MissingInputError: nothing there.
        UnreadableError: a kind that is not known.
    """
    if group == ["-"]:
        return _load_stdin(reading)
    path = Path(group[0])
    if path.is_dir():
        files, others = find_images(path)
        if not files:
            raise InvalidDataError(
                path, "at least one image in the folder", f"{others} files of other kinds" if others else "no file"
            )
        above = path.resolve().name + "/" if prefix else ""
        names = [above + file.relative_to(path).as_posix() for file in files]
        loaded = load_images(files, names, "folder", reading)
        note = (f"{path}: {others} files that are no images were passed over",) if others else ()
        return replace(loaded, notes=(*loaded.notes, *note))
    kind = kind_of(path)
    if kind == "image":
        files = [Path(source) for source in group]
        return load_images(
            files, [safe_name(file) for file in files], "image" if len(files) == 1 else "folder", reading
        )
    if not path.exists():
        raise MissingInputError(path, EXPECTED)
    if not path.is_file():
        raise UnreadableError(path, "a file (- is standard input)", "a pipe or a device")
    if kind is None:
        raise UnreadableError(
            path, EXPECTED, f"the suffix {path.suffix!r}" if path.suffix else "a name without a suffix"
        )
    return _load_file(path, kind, reading)


def _load_file(path: Path, kind: str, reading: Reading) -> Loaded:
    return load_table(path, kind, reading) if kind in {"csv", "tsv"} else load_array(path, kind, reading)


def _load_stdin(reading: Reading) -> Loaded:
    """Read standard input through a temporary file, since every reader wants to seek.

    Returns:
        Its rows.

    Raises:
        HopmemError: what came can't be used.
        InvalidDataError: nothing came.
        UnreadableError: it is closed.
        UsageError: the kind is neither given nor plain from the first bytes.
    """
    if sys.stdin is None:
        raise UnreadableError("standard input", "data", "a closed one")
    start = sys.stdin.buffer.read(BEGINNING)
    if not start:
        raise InvalidDataError("standard input", "data", "nothing")
    kind = reading.format or next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
    if kind is None:
        raise UsageError(
            "standard input: expected --format KIND (csv, npy, ...), found data that does not tell its kind"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"stdin{SUFFIXES[kind]}")
        with path.open("wb") as file:
            file.write(start)
            shutil.copyfileobj(sys.stdin.buffer, file)

        def of_stdin(text: str) -> str:
            return text.replace(str(path), spoken("-"))

        try:
            if kind == "image":
                return load_images([path], ["stdin.png"], "image", reading)
            loaded = _load_file(path, kind, reading)
        except HopmemError as error:
            error.args = (of_stdin(str(error)),)
            raise
        skipped = tuple(replace(skip, reason=of_stdin(skip.reason)) for skip in loaded.skipped)
        return replace(loaded, notes=tuple(map(of_stdin, loaded.notes)), skipped=skipped)


def _checked(loaded: Loaded, source: str, reading: Reading) -> Loaded:
    """Find NaN and infinities: unknown entries in queries, else mistakes.

    Returns:
        The rows that can be used, with what is unknown set to 0 and marked.

    Raises:
        InvalidDataError: an unusable row, and rows are not to be skipped (or none is left).
    """
    if not loaded.stored.is_floating_point():
        return loaded
    stored, known = loaded.stored, loaded.known
    bad: dict[int, str] = {}
    narrow = stored.dtype == torch.float16
    for rows in small_blocks(*stored.shape):
        block = stored[rows]
        unknown, infinite = block.isnan(), block.isinf() if narrow else block.abs() > LARGEST
        if bool(unknown.any()) and reading.partial:
            if known is None:
                known, stored = empty(*stored.shape, dtype=torch.bool).fill_(True), joined([stored])
            known[rows] &= ~unknown
            stored[rows] = block.masked_fill(unknown, 0)
            unknown = torch.zeros_like(unknown)
        for row in (unknown | infinite).any(1).nonzero()[:, 0].tolist():
            bad[rows.start + row] = f"an infinity, or more than {LARGEST:g}" if bool(infinite[row].any()) else "NaN"
    loaded = replace(loaded, stored=stored, known=known)
    if not bad:
        return loaded
    first = min(bad)
    if reading.on_bad == "error" or len(bad) == len(stored):
        raise InvalidDataError(
            f"{source}, row {loaded.row_names[first]}",
            "finite numbers" + (" (or --on-bad skip)" if reading.on_bad == "error" else " in one row at least"),
            bad[first],
        )
    good = torch.tensor([row for row in range(len(stored)) if row not in bad])
    names = loaded.row_names
    return loaded.take(
        good, [Skipped(names[row], f"{source}, row {names[row]}: {found}") for row, found in bad.items()]
    )


def _joined(parts: list[Loaded]) -> Loaded:
    """Rows of several sources one after another; types that differ meet in float32.

    Returns:
        All rows; numbered rows keep counting.
    """
    first = parts[0]
    alike = all(part.stored.dtype == first.stored.dtype and part.scale == first.scale for part in parts)
    rows = [part.stored if alike else _as_float(part) for part in parts]
    names = tuple(name for part in parts for name in part.row_names)
    known = None
    if any(part.known is not None for part in parts):
        known = joined(
            [torch.ones(1, 1).bool().expand(part.stored.shape) if part.known is None else part.known for part in parts]
        )
    images = tuple(image for part in parts for image in part.form.images)
    kind = "folder" if first.form.kind == "image" else first.form.kind
    return Loaded(
        stored=joined(rows),
        shape=first.shape,
        form=replace(first.form, kind=kind, images=images if len(images) == len(names) else ()),
        scale=first.scale if alike else 1.0,
        layout=first.layout,
        names=names if any(part.names or part.numbers for part in parts) else None,
        first=first.first,
        known=known,
        skipped=tuple(skip for part in parts for skip in part.skipped),
        notes=tuple(note for part in parts for note in part.notes),
    )


def _as_float(loaded: Loaded) -> Tensor:
    """Rows in the units of their patterns.

    Returns:
        float32 [N, d].
    """
    rows = empty(*loaded.stored.shape)
    for some in small_blocks(*rows.shape):
        rows[some] = loaded.stored[some].float() * loaded.scale
    return rows
