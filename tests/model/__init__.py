"""Tests of the equations; `randn` and `units` draw what most of them work on."""

import torch
from torch import Tensor

from hopmem.model.rows import unit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def units(*shape: int, seed: int = 0) -> Tensor:
    return unit(randn(*shape, seed=seed))
