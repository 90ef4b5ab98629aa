"""Learn the map of a bank for the noise that its queries suffer, and keep it only where it helps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hopmem.bank import VALIDATED, Learning, MemoryBank, Tuning, Validated, as_rows
from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.denoise.candidates import recalled, remembered
from hopmem.model.denoise.learning import Contender, Denoised, learn_denoise
from hopmem.model.denoise.refine import Refinement, Refining
from hopmem.model.denoise.validation import Source
from hopmem.model.kernel import Features
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.model.rows import Patterns
from hopmem.model.separation import Halt, Keep, State
from hopmem.verbs.mapped import mapped, measured, summary
from hopmem.verbs.work import Watch, loss_stage, stage

FEW_WITNESSES = 50  # patterns, below which a map may be better and yet not be told from chance
MIXED = ("mixed",)
MEASURING_T = 2.0  # t of the average loss, which nothing here depends on


@dataclass(frozen=True)
class Stopped:
    """What came of learning, whether it came to its end or was stopped."""

    bank: MemoryBank  # with the map that is kept
    kept: Literal["learned", "raw"]
    objective: str
    learning: Learning  # how it went
    finished: bool  # False where it was stopped before its end
    state: State  # from which it then goes on
    warnings: list[str]


def learn_for_noise(
    bank: MemoryBank,
    memory: Patterns,
    noise: Sequence[str],
    pairs: tuple[Any, Any] | None,
    how: tuple[int | None, float | None, int | None],
    seed: int,
    *,
    dimension: int | None,
    force: bool,
    budget: int,
    watch: Watch | None,
    halt: Halt,
    keep: Keep,
    state: State | None,
) -> Stopped:
    """Learn for noise: the bank gets the learned map, or the best raw one.

    Args:
        bank: the bank.
        memory: its different patterns.
        noise: by name, in equal parts.
        pairs: corrupted and clean rows instead.
        how: steps, learning rate and batch size of the refinement; None for the usual.
        seed: of every draw.
        dimension: D; None lets validation choose.
        force: keep what is learned even where the raw map is better.
        budget: bytes of working memory.
        watch: told what is being done.
        halt: asked between two steps whether to stop.
        keep: told between two steps how to find out where it stands.
        state: of an interrupted run.

    Returns:
        What came of it.
    """
    source = _noise_source(bank, memory, noise) if pairs is None else _pair_source(bank, memory, *pairs)
    usual = Refining(seed=seed)
    steps, rate, batch = (value if asked is None else asked for asked, value in zip(how, _usual(usual), strict=True))
    found = learn_denoise(
        source,
        Refining(int(steps), float(rate), int(batch), seed),
        dimension=dimension,
        budget=budget,
        known=recalled(state or {}),
        state=Refinement.restored(state) if state and "numbers" in state else None,
        trying=stage(watch, "trying maps"),
        refining=loss_stage(watch, "refining"),
        halt=halt,
        keep=keep,
    )
    kept = found.learned if found.better or force else found.raw
    learning = _learning(bank, found, kept, source, int(batch), memory.device, budget, watch)
    result = mapped(bank, kept.phi, memory.device)
    delta = 1 - learning.separation["learned" if kept is found.learned else "raw"]["max_cosine"]
    tuning = Tuning(kept.score.beta, delta, VALIDATED)
    objective = "denoise" if kept is found.learned else "raw"
    result = replace(result, objective=objective, seed=seed, tuning=tuning, learning=learning)
    side: Literal["learned", "raw"] = "learned" if kept is found.learned else "raw"
    tensors = remembered(found.tried) | ({} if found.refinement is None else found.refinement.tensors())
    return Stopped(result, side, "denoise", learning, found.finished, tensors, _warnings(found, force))


def _usual(usual: Refining) -> tuple[int, float, int]:
    return usual.steps, usual.learning_rate, usual.batch_size


def _learning(
    bank: MemoryBank,
    found: Denoised,
    kept: Contender,
    source: Source,
    batch_size: int,
    device: torch.device,
    budget: int,
    watch: Watch | None,
) -> Learning:
    """What the bank remembers of the learning.

    Returns:
        The record.
    """
    rows = bank.rows(device)
    raw = measured(Features(rows, found.raw.phi), MEASURING_T, budget, watch, "measuring raw")
    after = measured(Features(rows, found.learned.phi), MEASURING_T, budget, watch, "measuring learned")
    state = found.refinement
    return Learning(
        steps=0 if state is None else state.step,
        temperature=None,
        batch_size=batch_size,
        feature_dimension=kept.phi.dimension(bank.dimension),
        curve=() if state is None else tuple(state.curve),
        loss=found.loss,
        separation={"raw": summary(raw), "learned": summary(after)},
        noise=tuple(source.names),
        patterns=len(bank),
        method=kept.method,
        validation=tuple(Validated(row.noise, row.method, row.accuracy, row.error) for row in found.table),
    )


def _warnings(found: Denoised, force: bool) -> list[str]:
    if found.better:
        return []
    right = [f"{100 * each.score.rank[0]:.2f} %" for each in (found.learned, found.raw)]
    fact = f"{found.learned.method} {right[0]}, {found.raw.method} {right[1]} on copies of {found.witnesses} patterns"
    fact += "; with so few, more pairs or patterns would tell" if found.witnesses < FEW_WITNESSES else ""
    if force:
        return [f"the learned map is kept, but does not beat the best raw map beyond the sampling error: {fact}"]
    return [f"no learned map beats the best raw map beyond the sampling error, so that is kept: {fact}"]


def _noise_source(bank: MemoryBank, memory: Patterns, names: Sequence[str]) -> Source:
    """Noise models over the patterns.

    Returns:
        The source.

    Raises:
        UsageError: none, or one that is named twice.
    """
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        raise UsageError(f"noise: expected at least one kind, each once, found {twice[0] if twice else 'none'}")
    noises = tuple(parse_noise(name, images=bank.layout is not None) for name in names)
    return Source(memory, canvas_of(memory, bank.shape, bank.layout), noises)


def _pair_source(bank: MemoryBank, memory: Patterns, noisy: Any, clean: Any) -> Source:
    """Pairs that the user has; clean halves that are not stored count as memories while the map is learned.

    Returns:
        The source.

    Raises:
        InvalidDataError: rows without a partner, or fewer than two pairs.
    """
    X, C = _pair_rows(bank, noisy, "noisy", partial=True), _pair_rows(bank, clean, "clean", partial=False)
    if len(X) != len(C) or len(X) < 2:
        raise InvalidDataError("pairs", "as many clean rows as noisy ones, at least two", f"{len(C)} and {len(X)}")
    if not bank.patterns.is_floating_point():  # 7/255 and 7 · (1/255) are one pixel
        whole = (C / bank.scale).round()
        C = torch.where((C / bank.scale - whole).abs() < 1e-3, whole * bank.scale, C)
    elif bank.patterns.dtype in {torch.float16, torch.bfloat16}:  # what is stored was rounded: so are its clean halves
        C = (C / bank.scale).to(bank.patterns.dtype).float() * bank.scale
    known = torch.cat([memory[slice(0, len(memory))].cpu(), C])
    stored, row = torch.unique(known, dim=0, return_inverse=True)
    extended = Patterns(stored, 1.0, memory.device)
    canvas = canvas_of(memory, bank.shape, bank.layout)
    return Source(extended, canvas, noisy=X, row_of=row[len(memory) :])


def _pair_rows(bank: MemoryBank, rows: Any, what: str, *, partial: bool) -> Tensor:
    """One side of the pairs as rows in the units of the patterns.

    Returns:
        float32 [n, d].

    Raises:
        InvalidDataError: another shape than the bank's.
    """
    found = as_rows(rows, what, partial=partial)
    if found[0].numel() != bank.dimension:
        raise InvalidDataError(what, f"rows of {bank.dimension} entries, as in the bank", list(found.shape))
    same = found.dtype == bank.patterns.dtype and not found.is_floating_point()
    return found.reshape(len(found), -1).float() * (bank.scale if same else 1.0)
