"""Store: files → patterns → bank."""

import math
import time
import timeit
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hopmem import shards
from hopmem.atomic import refuse_itself
from hopmem.bank import MEASURED, SAME, VALIDATED, MemoryBank
from hopmem.bank.tensors import checksum
from hopmem.devices import memory_errors, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.lock import writing
from hopmem.model.rows import small_blocks
from hopmem.model.separation import nearest_delta
from hopmem.pages import require_names, room
from hopmem.patterns import Loaded, Reading, load, spoken
from hopmem.pipeline.inspect import is_cheap, remember
from hopmem.pipeline.outcome import RUNTIME, Machine, Outcome
from hopmem.results import StoreEstimate, StoreResult
from hopmem.scratch import empty, joined
from hopmem.verbs.trial import part
from hopmem.verbs.work import pair_block, stage

DTYPES = {name: getattr(torch, name) for name in ("uint8", "float16", "bfloat16", "float32", "float64")}
SAMPLED = 2000  # patterns that a dry run measures
WORTH_LEARNING = 0.9  # a map whose separation falls below this share should be learned again


def store(
    sources: Sequence[str],
    output: str,
    reading: Reading,
    machine: Machine,
    *,
    values: str | None = None,
    dtype: str | None = None,
    append: bool = False,
    force: bool = False,
    dry_run: bool = False,
    shard_size: int | None = None,
) -> Outcome[StoreResult]:
    """Store patterns from files in a bank.

    Args:
        sources: files and folders; `-` is standard input.
        output: the bank.
        reading: how sources are read.
        machine: what the work runs on.
        values: a source with a row for each pattern, returned instead of the pattern.
        dtype: the type to store in; None keeps the source's.
        append: add to the bank that stands there.
        force: replace it.
        dry_run: count, but write nothing.
        shard_size: bytes of a file, beyond which the bank is written in several; None keeps what it had.

    Returns:
        What was (or would be) stored.

    Raises:
        UsageError: values whose rows could lose their patterns.
    """
    path, began = shards.base(output), time.monotonic()
    if values is not None and reading.on_bad == "skip":
        raise UsageError("--values: expected --on-bad error, since a row that is skipped would lose its partner")
    refuse_itself(output, [*sources, *([] if values is None else [values])])
    if not append and not dry_run:
        shards.refuse_overwrite(path, force=force)
    with memory_errors(), nullcontext() if dry_run else writing(path):
        old = MemoryBank.load(path) if append and shards.exists(path) else None
        device = resolve(machine.device)
        loaded = load(sources, reading if old is None else fitting(reading, old), first=0 if old is None else len(old))
        paired = None if values is None else load([values], replace(reading, key=None, id_column=None))
        new = _bank_of(_cast(loaded, dtype), paired, reading)
        bank = new if old is None else _appended(old, new, spoken(sources[0]))
        bank = bank if shard_size is None else bank.noting(shard_size=shard_size)
        validated = bank.tuning is not None and bank.tuning.source == VALIDATED
        bank = bank if validated else bank.noting(tuning=None)  # what noise asks for, new patterns do not change
        named = old is not None or loaded.names is not None
        warnings = [*loaded.notes, *(_name_warnings(bank) if named else []), *_zero_warnings(bank)]
        if not dry_run:
            block = pair_block(max(bank.dimension, bank.feature_dimension), machine.budget)
            bank = bank.noting(seed=bank.seed if machine.seed is None else machine.seed).tuned(
                device, block, stage(machine.watch, "measuring")
            )
            warnings += [] if old is None else _append_warnings(old.tuned(device, block), bank, device, block)
            bank.save(path, beside=remember(bank, machine), force=force or append)
        result = StoreResult(
            bank=str(path) if output.endswith(shards.SUFFIX) else output,
            patterns=len(bank),
            dimension=bank.dimension,
            shape=list(bank.shape),
            dtype=str(bank.patterns.dtype).removeprefix("torch."),
            duplicates=[[bank.names[row] for row in group] for group in bank.duplicates],
            bytes=shards.size(path) if not dry_run else _bytes(bank),
            estimate=_estimated(bank, machine, device, time.monotonic() - began) if dry_run else None,
        )
    return Outcome(result, str(device), warnings, list(loaded.skipped))


def fitting(reading: Reading, bank: MemoryBank) -> Reading:
    """Read images as the bank holds them.

    Returns:
        The reading with the bank's mode and, where it resized its images, their size.
    """
    return replace(reading, mode=reading.mode or bank.mode, size=reading.size or bank.resized)


def _cast(loaded: Loaded, dtype: str | None) -> Loaded:
    """Rows in another type; floats from 0 to 1 become 8 bits as images do.

    Returns:
        The rows.

    Raises:
        InvalidDataError: values that the type can't hold.
    """
    if dtype is None or DTYPES[dtype] == loaded.stored.dtype:
        return loaded
    to_pixels = dtype == "uint8"
    stored = empty(*loaded.stored.shape, dtype=DTYPES[dtype])
    for rows in small_blocks(*stored.shape):
        values = loaded.stored[rows].double() * loaded.scale
        low, high = float(values.min()), float(values.max())
        if to_pixels and not 0 <= low <= high <= 1:
            raise InvalidDataError("--dtype uint8", "values from 0 to 1", f"{low:g} to {high:g}")
        stored[rows] = (values * 255).round().to(torch.uint8) if to_pixels else values.to(DTYPES[dtype])
        if not bool(stored[rows].isfinite().all()):
            raise InvalidDataError(f"--dtype {dtype}", "values that it can hold", f"{low:g} to {high:g}")
    return replace(loaded, stored=stored, scale=1 / 255 if to_pixels else 1.0)


def _bank_of(loaded: Loaded, values: Loaded | None, reading: Reading) -> MemoryBank:
    """A raw bank of what was read.

    Returns:
        The bank, not yet tuned.

    Raises:
        InvalidDataError: not a value for each pattern.
    """
    M = len(loaded.stored)
    if values is not None and len(values.stored) != M:
        raise InvalidDataError("--values", f"{M} rows, one for each pattern", len(values.stored))
    return MemoryBank(
        patterns=loaded.stored,
        names=loaded.row_names,
        shape=loaded.shape,
        scale=loaded.scale,
        layout=loaded.layout,
        resized=reading.size,
        values=None if values is None else values.stored,
        values_shape=None if values is None else values.shape,
        values_scale=1.0 if values is None else values.scale,
        values_layout=None if values is None else values.layout,
    )


def _appended(old: MemoryBank, new: MemoryBank, source: str) -> MemoryBank:
    """The old bank with new patterns behind its own: rows keep their numbers, the map is kept and applied.

    Returns:
        The bank of both.

    Raises:
        InvalidDataError: patterns or values of another shape or type.
    """
    if new.shape != old.shape:
        raise InvalidDataError(source, f"patterns of shape {list(old.shape)} as in the bank", list(new.shape))
    patterns = _like(new.patterns, new.scale, old.patterns, old.scale, source)
    values = None
    if (old.values is None) != (new.values is None) or old.values_shape != new.values_shape:
        had = (
            f"values of shape {list(old.values_shape)}, as in the bank" if old.values_shape else "none, as in the bank"
        )
        raise InvalidDataError("--values", had, list(new.values_shape) if new.values_shape else "none")
    if old.values is not None and new.values is not None:
        values = joined([old.values, _like(new.values, new.values_scale, old.values, old.values_scale, "--values")])
    features = None
    if old.features is not None:
        more = replace(old, patterns=patterns, features=None).memory()
        features = joined([old.features, more.whole()])
    require_names(len(old) + len(new))
    return replace(
        old,
        patterns=joined([old.patterns, patterns]),
        names=(*old.names, *new.names),
        values=values,
        features=features,
    )


def _like(rows: Tensor, scale: float, kept: Tensor, kept_scale: float, source: str) -> Tensor:
    """New rows in the type and the units of the bank's.

    Returns:
        The rows.

    Raises:
        InvalidDataError: whole numbers can't hold them.
    """
    if rows.dtype == kept.dtype:
        return rows
    if not kept.is_floating_point():
        raise InvalidDataError(source, f"{kept.dtype} as in the bank".removeprefix("torch."), rows.dtype)
    like = empty(*rows.shape, dtype=kept.dtype)
    for some in small_blocks(*rows.shape):
        like[some] = (rows[some].double() * (scale / kept_scale)).to(kept.dtype)
    return like


def _name_warnings(bank: MemoryBank) -> list[str]:
    repeated = [name for name, count in Counter(bank.names).items() if count > 1]
    return [f"{len(repeated)} names stand for more than one pattern, {repeated[0]!r} first"] if repeated else []


def _zero_warnings(bank: MemoryBank) -> list[str]:
    count = int((bank.memory().patterns.lengths == 0).sum())
    fact = "zero everywhere (to float32), and a raw bank can't tell them: it compares directions"
    return [f"{count} of {len(bank)} patterns are {fact}"] if count else []


def _append_warnings(old: MemoryBank, bank: MemoryBank, device: torch.device, block: int) -> list[str]:
    """Say what the new patterns did to the separation, and whether to optimize again.

    Returns:
        At most one warning.
    """
    delta = nearest_delta(bank.memory(device), torch.arange(len(old), len(bank)), block)
    before, after = old.tuning.delta if old.tuning else 0.0, float(delta.min())
    if not after < before:
        return []
    repeated = int((delta <= SAME).sum())
    repeats = f"; {repeated} of them repeat stored ones" if repeated else ""
    change = f"Δ from {before:.4g} to {after:.4g}"
    fall = f"the new patterns lower the separation by {1 - max(after, 0) / before:.1%} ({change}){repeats}"
    if bank.phi.W is None:
        return [fall]
    advice = "run hopmem optimize again" if after < WORTH_LEARNING * before else "no need to optimize again yet"
    return [f"{fall}; the map was learned without them: {advice}"]


def _estimated(bank: MemoryBank, machine: Machine, device: torch.device, reading: float) -> StoreEstimate:
    """What storing would take, by what reading took.

    Returns:
        The estimate.
    """
    M, block = len(bank), pair_block(max(bank.dimension, bank.feature_dimension), machine.budget)
    validated = bank.tuning if bank.tuning is not None and bank.tuning.source == VALIDATED else None

    def measure(some: MemoryBank) -> None:
        some = replace(some, tuning=validated).tuned(device, block)
        if is_cheap(bank):
            remember(some, machine)

    m = min(M, SAMPLED)
    samples = [part(bank, torch.arange(n), device, machine.budget, None) for n in ((m + 1) // 2, m)]
    half, whole = (_seconds(partial(measure, some)) for some in samples)
    pairs = max(0.0, whole - half) / 0.75  # of m² pairs; the rest is work on each pattern
    measuring = max(whole - pairs, 0.0) * M / m + pairs * (max(m, min(M, MEASURED)) / m) ** 2
    writing_out = 2 * _seconds(partial(checksum, samples[1].patterns)) * _bytes(bank) / samples[1].patterns.nbytes
    blocks = 4 * block * (3 * bank.dimension + 4 * block)
    held = min(_bytes(bank), room() or math.inf)
    return StoreEstimate(reading + measuring + writing_out, RUNTIME + blocks + int(held))


def _seconds(work: Callable[[], object]) -> float:
    """What work takes, the quickest of three times: who else works on the machine may slow one.

    Returns:
        Seconds.
    """
    return min(timeit.repeat(work, repeat=3, number=1))


def _bytes(bank: MemoryBank) -> int:
    """What a bank would take, but for the few hundred bytes of its header.

    Returns:
        Bytes.
    """
    tensors = (bank.patterns, bank.features, bank.values, bank.phi.W, bank.phi.b)
    names = sum(len(name.encode("utf-8", "surrogateescape")) + 8 for name in bank.names)
    return names + sum(tensor.nbytes for tensor in tensors if tensor is not None)
