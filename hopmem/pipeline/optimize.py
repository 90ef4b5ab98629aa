"""Optimize: bank → feature map → bank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hopmem import verbs
from hopmem.atomic import refuse_overwrite
from hopmem.bank import MemoryBank
from hopmem.devices import memory_errors, resolve
from hopmem.pipeline.outcome import Machine, Outcome


@dataclass(frozen=True)
class OptimizeResult:
    """What was learned."""

    objective: str
    feature_dimension: int
    steps: int
    loss: dict[str, float]  # first (the raw patterns) and last
    separation: dict[str, dict[str, float]]  # raw and learned
    validation: list[dict[str, Any]]  # of objectives that are chosen by validation
    kept: Literal["learned", "raw"]


def optimize(
    bank_path: str, output: str | None, machine: Machine, *, force: bool = False, **options: Any
) -> Outcome[OptimizeResult]:
    """Learn the feature map of a bank and rewrite the bank with it.

    Args:
        bank_path: the bank.
        output: where the bank with the map goes; None replaces the bank.
        machine: what the work runs on.
        force: whether `output` may be replaced, and a map be kept that is worse than none.
        **options: of `verbs.optimize`.

    Returns:
        What was learned.
    """
    if output is not None:
        refuse_overwrite(Path(output), force=force)
    bank = MemoryBank.load(bank_path)
    device = str(resolve(machine.device))
    with memory_errors():
        learned = verbs.optimize(
            bank,
            seed=bank.seed if machine.seed is None else machine.seed,
            device=device,
            budget=machine.budget,
            watch=machine.watch,
            **options,
        )
    how = learned.learning
    assert how is not None  # verbs.optimize always says how
    worse, warnings = how.loss["last"] > how.loss["first"], []
    if worse:
        fact = f"loss {how.loss['last']:.4g} against {how.loss['first']:.4g}; a larger --feature-dim may help"
        warnings = [f"the map separates less well than the raw patterns do: {fact}"]
    keep = force or not worse or options.get("feature_dim") is not None  # who asks for few dimensions gets them
    if keep or output is not None:
        (learned if keep else bank).save(output or bank_path, force=force or output is None)
    result = OptimizeResult(
        learned.objective,
        learned.feature_dimension,
        how.steps,
        how.loss,
        how.separation,
        validation=[],
        kept="learned" if keep else "raw",
    )
    return Outcome(result, device, warnings)
