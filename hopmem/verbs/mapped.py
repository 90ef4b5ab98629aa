"""What every learned map is put through: its features, and what they have gained in separation."""

from dataclasses import replace

import torch
from torch import Tensor

from hopmem.bank import MEASURED, MemoryBank
from hopmem.divided import Division, made
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.separation import Separation, sampled_separation, separation
from hopmem.pages import give_back
from hopmem.scratch import empty
from hopmem.verbs.work import Watch, pair_block, stage


def mapped(bank: MemoryBank, phi: FeatureMap, device: torch.device) -> MemoryBank:
    """A bank with another map.

    Args:
        bank: the bank.
        phi: the map; where it has a matrix, the features of all patterns are kept with it.
        device: where to compute them.

    Returns:
        The bank, with nothing known of the map but itself.
    """
    features = None
    if phi.W is not None:
        memory = Features(bank.rows(device), phi)
        give_back()
        features = made(memory, _features, memory)
    return replace(bank, phi=phi.to(torch.device("cpu")), features=features, tuning=None, learning=None)


def _features(_part: Division, memory: Features) -> Tensor:
    """The unit features of the patterns that are held here.

    Returns:
        float32 [M, D] on the CPU.
    """
    features = empty(len(memory), memory.dimension)
    for rows in memory.patterns.in_blocks():
        features[rows] = memory[rows].cpu()
    return features


def measured(memory: Features, t: float, budget: int, watch: Watch | None, label: str) -> Separation:
    """The separation of a bank, from all pairs or, beyond `MEASURED` patterns, from as many pairs with a sample.

    Args:
        memory: unit features.
        t: inverse width of the average loss.
        budget: bytes of working memory.
        watch: told how far it is.
        label: what to call it.

    Returns:
        The separation.
    """
    give_back()
    block = pair_block(max(memory.patterns.dimension, memory.dimension), budget)
    if len(memory) <= MEASURED:
        return separation(memory, t=t, block=block, progress=stage(watch, label))
    draw = torch.randperm(len(memory), generator=torch.Generator().manual_seed(0))
    sample = draw[: MEASURED * MEASURED // len(memory) // 2].sort().values
    return sampled_separation(memory, sample, t=t, block=block, progress=stage(watch, label))


def summary(found: Separation) -> dict[str, float]:
    """What a report says of a separation.

    Returns:
        Angles and cosines by name.
    """
    return {
        "max_cosine": found.max_cosine,
        "min_angle_degrees": found.min_angle_degrees,
        "mean_cosine": found.mean_cosine,
    }
