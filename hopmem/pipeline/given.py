"""Answers as the queries were: their kind of file, their units, their type and their layout."""

import math
from pathlib import Path

import torch
from torch import Tensor

from hopmem.bank import MemoryBank
from hopmem.divided import Division, everywhere
from hopmem.errors import UsageError
from hopmem.model.rows import small_blocks
from hopmem.patterns import Form, Layout, Loaded, Target, kind_of
from hopmem.pipeline.asked import query_scale

PICTURES = frozenset({"image", "folder"})


def target_of(output: str, read: Loaded, bank: MemoryBank, *, force: bool) -> Target:
    """Where answers go, in the units, the type and the layout of the queries, or of the values.

    Args:
        output: the file or the folder; `-` is standard output.
        read: the queries.
        bank: what they are put to.
        force: whether files may be replaced.

    Returns:
        The target.
    """
    kind = _output_kind(output, read, bank)
    if bank.values is not None:
        dtype, scale, shape, layout = bank.values.dtype, bank.values_scale, bank.values_shape or (), bank.values_layout
    elif kind in PICTURES:
        dtype, scale, shape, layout = bank.patterns.dtype, bank.scale, bank.shape, bank.layout
    else:
        scale, shape, layout = query_scale(read, bank), read.shape, read.layout
        dtype = _type_of(read.stored.dtype, scale, bank)
    if kind in PICTURES:  # pixels keep their full precision until they are written, in the depth of each file
        dtype, scale = torch.float32, 1.0
    return Target(output, kind, (len(read.stored), *shape), dtype, read.form, read.row_names, layout, scale, force)


def _type_of(asked: torch.dtype, scale: float, bank: MemoryBank) -> torch.dtype:
    """The type of the queries, or a wider one where that can't hold the patterns.

    Returns:
        The type that answers are written in.
    """
    stored = bank.patterns
    if stored.is_floating_point() and not asked.is_floating_point:
        asked = torch.float32  # a mean of real patterns is no whole number
    if asked == stored.dtype or stored.is_meta:  # of an outline, nobody knows yet
        return asked
    high, low = everywhere(stored, _ends, stored).mul(bank.scale / scale).mul(torch.tensor([1, -1])).tolist()
    least, most = _limits(asked)
    if least <= low and high <= most:
        return asked
    wider = (torch.float32, torch.float64) if asked.is_floating_point else (torch.int32, torch.int64)
    low, high = min(low, least), max(high, most)  # answers keep the entries that are known
    own = (stored.dtype,) if stored.is_floating_point() == asked.is_floating_point else ()
    fits = (dtype for dtype in (*own, *wider) if _limits(dtype)[0] <= low and high <= _limits(dtype)[1])
    return next(fits, torch.float64)


def _ends(part: Division, rows: Tensor) -> Tensor:
    """The largest entry, and the negative of the smallest.

    Returns:
        float64 [2].
    """
    found = torch.full((2,), -torch.inf, dtype=torch.float64)
    for some in small_blocks(*rows.shape):
        block = rows[some]
        low, high = (block.int() if block.dtype == torch.uint16 else block).aminmax()  # torch looks for none in these
        found = torch.maximum(found, torch.stack([high.double(), -low.double()]))
    return part.others.largest(found)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest number of a type.

    Returns:
        They.
    """
    if dtype == torch.bool:
        return 0, 1
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return limits.min, limits.max


def as_asked(patterns: Tensor, target: Target, bank: MemoryBank) -> Tensor:
    """Answers in the units and the layout of where they go.

    Args:
        patterns: what came back [n, ...].
        target: where it goes.
        bank: which was asked.

    Returns:
        Rows [n, ...].
    """
    if bank.values is None:
        patterns = _turned(patterns, bank.shape, bank.layout, target.layout)
    array = patterns if target.kind in PICTURES else _in_units(patterns, target.scale, target.dtype)
    return array.reshape(len(array), *target.shape[1:])


def _output_kind(output: str, loaded: Loaded, bank: MemoryBank) -> str:
    """The kind of file that answers go to: that of the queries unless the name says otherwise.

    Returns:
        A kind of `patterns.save`.

    Raises:
        UsageError: a name that does not suit the answers.
    """
    layout = bank.layout if bank.values is None else bank.values_layout
    pictured = loaded.form.kind in PICTURES
    if output == "-":
        kind = "npy" if loaded.form.kind == "folder" else loaded.form.kind
    elif Path(output).is_dir() or output.endswith("/"):
        kind = "folder"
    else:
        kind = kind_of(Path(output)) or ("folder" if pictured else loaded.form.kind)
    if kind in PICTURES and layout is None:
        raise UsageError(
            f"-o {output}: expected a name ending in .npy, .csv or the like, since the answers are no images"
        )
    if kind == "image" and len(loaded.stored) > 1:
        raise UsageError(
            f"-o {output}: expected a folder or an array file for {len(loaded.stored)} answers, found one image"
        )
    return kind


def _turned(patterns: Tensor, shape: tuple[int, ...], layout: Layout | None, wanted: Layout | None) -> Tensor:
    """Rows of colour images with their axes in another order.

    Returns:
        Rows in the layout `wanted`.
    """
    return Loaded(patterns, shape, Form("npy"), layout=layout).in_layout(wanted).stored


def _in_units(patterns: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Answers in stored units; whole numbers are rounded and kept in their range.

    Returns:
        Rows of type `dtype`.
    """
    values = patterns.double() / scale
    if dtype == torch.bool:
        return values > 0.5
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        top = min(limits.max, math.nextafter(2.0**63, 0))  # the largest of 64 bits is none of float64
        values = values.round().clamp(limits.min, top)
    return values.to(dtype)
