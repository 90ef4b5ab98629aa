"""Tests of the verbs on arrays."""

import torch
from torch import Tensor

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
