"""Optimize: learn the feature map of a bank."""

import math
from dataclasses import replace
from typing import Literal

import torch

from hopmem.bank import Learning, MemoryBank, tune
from hopmem.devices import DEFAULT_BUDGET, resolve
from hopmem.errors import InvalidDataError, UsageError
from hopmem.model.kernel import Features, Patterns, blocks
from hopmem.model.separation import Separation, separation
from hopmem.model.uhop import Training, learn_average
from hopmem.verbs.work import Watch, pair_block, stage

Objective = Literal["average"]


def optimize(
    bank: MemoryBank,
    *,
    objective: Objective = "average",
    feature_dim: int | None = None,
    steps: int = 100,
    temperature: float = 2.0,
    learning_rate: float | None = None,
    batch_size: int = 1024,
    seed: int = 0,
    time_limit: float | None = None,
    device: str = "cpu",
    budget: int = DEFAULT_BUDGET,
    watch: Watch | None = None,
) -> MemoryBank:
    """Learn the feature map that sets the patterns of a bank apart (Stage I of U-Hop).

    Args:
        bank: with at least two different patterns; a map that it has is replaced.
        objective: average, the separation loss of Definition 4.
        feature_dim: D; None takes as many as the patterns span.
        steps: at most this many steps of gradient descent.
        temperature: t of the average loss, an inverse width.
        learning_rate: of the first step; None finds one.
        batch_size: patterns in a step.
        seed: draws the batches.
        time_limit: seconds after which no further step is begun.
        device: where to compute.
        budget: bytes of working memory for a block.
        watch: told what is being done, and how far it is.

    Returns:
        A new bank with the map, its features, the loss curve and the separation before and after.

    Raises:
        InvalidDataError: fewer than two different patterns, or a map that float32 can't hold.
        UsageError: an option out of its range.
    """
    _check(objective, feature_dim, steps, temperature, learning_rate, batch_size)
    where = resolve(device)
    training = Training(feature_dim, steps, temperature, learning_rate, batch_size, seed, budget, time_limit)
    learned = learn_average(_distinct(bank, where), training, stage(watch, "learning"))
    W, b = learned.phi.W, learned.phi.b
    if W is None or b is None or not bool(W.isfinite().all() and b.isfinite().all()):
        raise InvalidDataError("patterns", "entries whose covariance float32 can hold", "a map that is not finite")
    block = pair_block(max(bank.dimension, len(W)), budget)
    phi = learned.phi.to(torch.device("cpu"))
    mapped = replace(bank, phi=phi, features=_features(bank, Features(bank.rows(where), learned.phi)), seed=seed)
    raw = separation(bank.raw_memory(where), t=temperature, block=block, progress=stage(watch, "measuring raw"))
    after = separation(mapped.memory(where), t=temperature, block=block, progress=stage(watch, "measuring learned"))
    return replace(
        mapped,
        objective=objective,
        tuning=tune(after.delta, len(bank)),
        learning=Learning(
            steps=learned.steps,
            temperature=temperature,
            batch_size=batch_size,
            feature_dimension=len(W),
            curve=tuple(learned.curve),
            loss={"first": raw.loss, "last": after.loss},
            separation={"raw": _summary(raw), "learned": _summary(after)},
        ),
    )


def _check(
    objective: str,
    feature_dim: int | None,
    steps: int,
    temperature: float,
    learning_rate: float | None,
    batch_size: int,
) -> None:
    """Options in their ranges.

    Raises:
        UsageError: one is not.
    """
    if objective != "average":
        raise UsageError(f"objective: expected average, found {objective!r}")
    for name, value, least in (("feature_dim", feature_dim, 1), ("steps", steps, 0), ("batch_size", batch_size, 2)):
        if value is not None and value < least:
            raise UsageError(f"{name}: expected at least {least}, found {value}")
    for name, number in (("temperature", temperature), ("learning_rate", learning_rate)):
        if number is not None and not (number > 0 and math.isfinite(number)):
            raise UsageError(f"{name}: expected a positive number, found {number}")


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
    return replace(bank.rows(device), stored=bank.patterns[distinct])


def _features(bank: MemoryBank, memory: Features) -> torch.Tensor:
    """Z of all patterns.

    Returns:
        Unit features [M, D] on the CPU.
    """
    Z = torch.empty(len(bank), memory.dimension)
    for rows in blocks(len(bank), 4096):
        Z[rows] = memory[rows].cpu()
    return Z


def _summary(measured: Separation) -> dict[str, float]:
    return {
        "max_cosine": measured.max_cosine,
        "min_angle_degrees": measured.min_angle_degrees,
        "mean_cosine": measured.mean_cosine,
    }
