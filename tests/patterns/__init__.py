"""Tests of the readers and writers: what goes in comes out."""

import torch

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores
