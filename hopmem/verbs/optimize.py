"""Optimize: learn the feature map of a bank."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from hopmem.bank import SAME, Learning, MemoryBank, tune
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import Patterns
from hopmem.model.separation import Halt, Keep, Separation, State, never, nowhere
from hopmem.model.spherical import learn_spherical
from hopmem.model.uhop import BATCH, Learned, Training, learn_average
from hopmem.scratch import gathered
from hopmem.verbs.denoise import MIXED, Stopped, learn_for_noise
from hopmem.verbs.mapped import mapped, measured, summary
from hopmem.verbs.work import Watch, loss_stage, pair_block

Objective = Literal["denoise", "average", "spherical"]
MEASURING_T = 2.0  # t of the average loss, where none was asked for
LONGEST = 1e17  # of the lengths of patterns that are learned from; the largest is no less than one over it
EQUAL = 1e-5  # of a loss or a cosine: what is closer is as good


@dataclass(frozen=True)
class Task:
    """What is asked of Stage I."""

    objective: Objective = "denoise"
    noise: tuple[str, ...] = MIXED  # of denoise
    pairs: tuple[Any, Any] | None = None  # of denoise, instead of noise: corrupted and clean rows
    feature_dim: int | None = None  # D
    steps: int | None = None
    temperature: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    restarts: int = 16  # of spherical
    force: bool = False  # keep what is learned even where the raw map is better


def optimize(
    bank: MemoryBank,
    *,
    objective: Objective = "denoise",
    noise: Sequence[str] | str = MIXED,
    pairs: tuple[Any, Any] | None = None,
    feature_dim: int | None = None,
    steps: int | None = None,
    temperature: float | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    restarts: int = 16,
    force: bool = False,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> MemoryBank:
    """Learn the feature map of a bank (Stage I of U-Hop).

    Args:
        bank: with at least two different patterns; a map that it has is replaced.
        objective: denoise, for retrieval under `noise`; average, the separation loss of U-Hop's Definition 4; or
            spherical, the smallest largest cosine of U-Hop+.
        noise: kinds of noise that queries will suffer, in equal parts, such as gaussian:0.5 or mixed.
        pairs: instead of noise, real corrupted rows and the clean rows that belong to them, [n, ...] each.
        feature_dim: D; None takes what validation chooses (denoise), or as many as the patterns span.
        steps: at most this many steps of gradient descent; None takes what suits the objective.
        temperature: of average t, an inverse width; of spherical τ at the start.
        learning_rate: of the first step; None finds one.
        batch_size: patterns in a step.
        restarts: of the search for a spherical code.
        force: keep the learned map even where it is worse than the raw one.
        seed: of every draw.
        time_limit: seconds after which the best so far is taken.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.

    Returns:
        A new bank. Where no learned map beats the raw ones it has the best raw map, unless `force` asks otherwise.

    Raises:
        UsageError: noise beside pairs.
    """
    names = (noise,) if isinstance(noise, str) else tuple(noise)
    if pairs is not None and names != MIXED:
        raise UsageError(f"expected noise or pairs, found both ({names[0] if names else 'no noise'} and pairs)")
    task = Task(objective, names, pairs, feature_dim, steps, temperature, learning_rate, batch_size, restarts, force)
    return learn(bank, task, seed, device, budget, watch, until(time_limit)).bank


def until(time_limit: float | None, halt: Halt = never) -> Halt:
    """Stop when time is up, or when somebody else says so.

    Args:
        time_limit: seconds from now; None sets no limit.
        halt: who else is asked.

    Returns:
        What long work asks between two steps.
    """
    deadline = math.inf if time_limit is None else time.monotonic() + time_limit
    return lambda: time.monotonic() >= deadline or halt()


def learn(
    bank: MemoryBank,
    task: Task,
    seed: int = 0,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
    halt: Halt = never,
    state: State | None = None,
    keep: Keep = nowhere,
) -> Stopped:
    """Learn as `optimize` does, and say how it went.

    Args:
        bank: as of `optimize`.
        task: what is asked.
        seed: of every draw.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.
        halt: asked between two steps whether to stop with the best so far.
        state: of an interrupted run, to go on from.
        keep: told between two steps how to find out where it stands.

    Returns:
        The bank, and all that a report needs.
    """
    _check(task)
    where = resolve(device)
    memory = _distinct(bank, where)
    _check_lengths(memory.longest)
    if task.objective == "denoise":
        how = (task.steps, task.learning_rate, task.batch_size)
        return learn_for_noise(
            bank,
            memory,
            task.noise,
            task.pairs,
            how,
            seed,
            dimension=task.feature_dim,
            force=task.force,
            budget=budget,
            watch=watch,
            halt=halt,
            keep=keep,
            state=state,
        )
    training = Training(
        task.feature_dim, task.steps, task.temperature, task.learning_rate, task.batch_size, seed, budget
    )
    progress = loss_stage(watch, "learning")
    if task.objective == "average":
        learned = learn_average(memory, training, progress, halt, state, keep)
    else:
        learned = learn_spherical(memory, training, task.restarts, progress, halt, state, keep)
    return _separated(bank, task, training, learned, where, watch)


def _check_lengths(longest: float) -> None:
    """Patterns whose squares float32 holds: losses and covariances are made of them.

    Raises:
        InvalidDataError: too long or too short ones.
    """
    if longest and not 1 / LONGEST <= longest <= LONGEST:
        expected = f"lengths of about 1, the largest from {1 / LONGEST:g} to {LONGEST:g}, to learn from (scale them)"
        raise InvalidDataError("patterns", expected, f"{longest:g}")


def _separated(
    bank: MemoryBank, task: Task, training: Training, learned: Learned, device: torch.device, watch: Watch | None
) -> Stopped:
    """Measure what a map for separation has brought, and keep it unless the raw patterns lie further apart.

    Returns:
        What came of it.

    Raises:
        InvalidDataError: a map that float32 can't hold.
    """
    W, b = learned.phi.W, learned.phi.b
    if W is None or b is None or not bool(W.isfinite().all() and b.isfinite().all()):
        raise InvalidDataError("patterns", "entries whose covariance float32 can hold", "a map that is not finite")
    found = replace(mapped(bank, learned.phi, device), objective=task.objective, seed=training.seed)
    t = task.temperature if task.objective == "average" and task.temperature else MEASURING_T
    raw = measured(bank.raw_memory(device), t, training.budget, watch, "measuring raw")
    after = measured(found.memory(device), t, training.budget, watch, "measuring learned")
    spherical = task.objective == "spherical"
    first, last = (raw.max_cosine, after.max_cosine) if spherical else (raw.loss, after.loss)
    learning = Learning(
        steps=learned.steps,
        temperature=None if spherical else t,
        batch_size=training.batch_size if spherical else training.batch_size or BATCH,
        feature_dimension=len(W),
        curve=tuple(learned.curve),
        loss={"first": first, "last": last},
        separation={"raw": summary(raw), "learned": summary(after)},
        patterns=len(bank),
    )
    found = _tuned(replace(found, learning=learning), after, device, training.budget)
    warnings = []
    if worse := last > first + EQUAL * max(1.0, abs(first)):
        what = "largest cosine" if spherical else "loss"
        fact = f"{what} {last:.4g} against {first:.4g}; a larger --feature-dim may help"
        warnings = [f"the map separates less well than the raw patterns do: {fact}"]
    keep = task.force or not worse or task.feature_dim is not None  # who asks for few dimensions gets them
    plain = replace(bank, phi=FeatureMap(), features=None, objective="raw", learning=None)
    kept = found if keep else _tuned(plain, raw, device, training.budget)
    return Stopped(
        kept, "learned" if keep else "raw", task.objective, learning, learned.finished, learned.state, warnings
    )


def _tuned(bank: MemoryBank, found: Separation, device: torch.device, budget: int) -> MemoryBank:
    """β by the separation that was measured; where every pattern has a copy, by another look.

    Returns:
        The bank.
    """
    if bool((found.delta > SAME).any()):
        return replace(bank, tuning=tune(found.delta, len(bank)))
    return replace(bank, tuning=None).tuned(device, pair_block(bank.feature_dimension, budget))


def _check(task: Task) -> None:
    """Options in their ranges.

    Raises:
        UsageError: one is not.
    """
    if task.objective not in get_args(Objective):
        raise UsageError(f"objective: expected denoise, average or spherical, found {task.objective!r}")
    whole = (("feature_dim", 1), ("steps", 0), ("batch_size", 2), ("restarts", 1))
    for name, least in whole:
        if (value := getattr(task, name)) is not None and value < least:
            raise UsageError(f"{name}: expected at least {least}, found {value}")
    for name in ("temperature", "learning_rate"):
        if (number := getattr(task, name)) is not None and not (number > 0 and math.isfinite(number)):
            raise UsageError(f"{name}: expected a positive number, found {number}")
    if task.objective == "denoise" and task.temperature is not None:
        raise UsageError("temperature: expected with the objective average or spherical, found denoise, which has none")
    if task.objective != "denoise" and (task.pairs is not None or task.noise != MIXED):
        raise UsageError(f"noise: expected with the objective denoise, found {task.objective}")


def _distinct(bank: MemoryBank, device: torch.device) -> Patterns:
    """The patterns of a bank, each once: copies can't be set apart.

    Returns:
        The patterns to learn from.

    Raises:
        InvalidDataError: fewer than two.
    """
    distinct = bank.distinct
    if len(distinct) < 2:
        raise InvalidDataError("patterns", "at least two different patterns to set apart", len(distinct))
    if len(distinct) == len(bank):
        return bank.rows(device)
    return replace(bank.rows(device), stored=gathered(bank.patterns, distinct))
