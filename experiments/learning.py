"""What the learning experiments share: the memories that they compare, Stage I between steps, and a paired test.

Every memory learns its own β for each head, so each is judged at the temperature that suits it, and what a map does to
the temperature is not taken for what it does to the memories. `unit` is the map before Stage I, an isometry: it
compares unit features. What U-Hop adds is the difference to that, and what unit length adds its difference to no map.
"""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from inspect import signature
from multiprocessing import get_context
from statistics import fmean, variance
from typing import Literal, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import Tensor, nn

from hopmem.layers import Hopfield, separation_loss
from hopmem.layers.options import Options

Task = TypeVar("Task")
Row = TypeVar("Row")
RATE = 1e-3  # of Adam, in Stage I
STEPS = 1  # of Stage I before each step of the task
BETA_RATE = 1e-2  # of the optimizer, for ln β: it has hundreds of steps to find its temperature
INPUTS = signature(Hopfield(1).forward)


@dataclass(frozen=True)
class Memory:
    """A way to associate inside a network."""

    name: str
    alpha: float
    mapped: bool = False  # compares unit features
    learned: bool = False  # of a map that Stage I learns, and else of an isometry

    def options(self, dimension: int) -> Options:
        """What a layer is to be.

        Args:
            dimension: entries that a head works on.

        Returns:
            Options of `Hopfield`.
        """
        return {"alpha": self.alpha, "feature_dim": dimension if self.mapped else None, "learn_beta": True}


KINDS = {"dense": 1.0, "sparse": 2.0}  # softmax and sparsemax
MEMORIES = tuple(
    Memory(f"{kind}{also}", alpha, mapped=bool(also), learned="U-Hop" in also)
    for kind, alpha in KINDS.items()
    for also in ("", ", unit", ", U-Hop")
)
COLOURS = {"": "#0072B2", ", unit": "#E69F00", ", U-Hop": "black"}  # of Okabe and Ito
MARKS = {"": "o", ", unit": "s", ", U-Hop": "^"}


def parts(name: str) -> tuple[str, str]:
    """The kind of a memory and what it adds to it.

    Returns:
        Such as ("dense", ", U-Hop").
    """
    kind, comma, also = name.partition(",")
    return kind, comma + also


class StageOne:
    """The inner loop of U-Hop: the maps of a network take steps of their own before each step of the task."""

    def __init__(self, network: nn.Module, objective: Literal["average", "spherical"]) -> None:
        """Begin.

        Args:
            network: whose layers are learned; the task's optimizer should leave their maps alone.
            objective: the loss.
        """
        self.network, self.objective = network, objective
        self.layers = [
            layer for layer in network.modules() if isinstance(layer, Hopfield) and layer.feature_map is not None
        ]
        self.optimizer = torch.optim.Adam([W for layer in self.layers for W in layer.feature_map_parameters()], RATE)

    def step(self, *inputs: Tensor) -> None:
        """Set the keys apart that the layers see in a batch.

        Args:
            inputs: as the network takes them.
        """
        seen: list[tuple[Hopfield, Tensor, Tensor | None]] = []

        def note(layer: Hopfield, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            asked = INPUTS.bind(*given, **named).arguments
            keys = asked["query"] if asked.get("key") is None else asked["key"]
            seen.append((layer, keys.detach(), asked.get("key_padding_mask")))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        with torch.no_grad(), torch.random.fork_rng():  # the task's dropout is that of the other memories
            self.network(*inputs)
        for hook in hooks:
            hook.remove()
        assert len(seen) == len(self.layers), "a layer that was not called has no keys"
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            for layer, keys, padding in seen:
                separation_loss(layer, keys, self.objective, key_padding_mask=padding).backward()
            self.optimizer.step()


def task_optimizer(network: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW of all but the maps, which Stage I alone learns; β is not decayed, as 1 is no better than another."""
    rest, betas = [], []
    for name, parameter in network.named_parameters():
        if name.endswith("learned_log_beta"):
            betas.append(parameter)
        elif not name.endswith("feature_map"):
            rest.append(parameter)
    groups = [{"params": rest}, {"params": betas, "lr": BETA_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, rate, weight_decay=decay, fused=True)


def mean_beta(network: nn.Module) -> float:
    """β, mean over heads and layers."""
    layers = [layer for layer in network.modules() if isinstance(layer, Hopfield)]
    return fmean(float(beta) for layer in layers for beta in layer.beta.detach().flatten())


def keys_at_once(P: Tensor) -> float:
    """How many keys a query mixes: e to the entropy of its weights, mean over queries and heads.

    Args:
        P: weights [..., S].
    """
    return float((-torch.special.xlogy(P, P).sum(-1)).exp().mean())


def paired(differences: Sequence[float], shared: float = 0.0) -> tuple[float, float]:
    """A two-sided paired t-test of runs that may share training data.

    Overlapping training sets make runs alike; the variance is corrected for that as Nadeau and Bengio (2003) do.

    Args:
        differences: of two methods, a number for each run.
        shared: what was tested on over what was trained on; 0 where runs are independent.

    Returns:
        The mean difference, and p; nan where all differences are the same, or there is one.
    """
    n, mean = len(differences), fmean(differences)
    scale = math.sqrt((1 / n + shared) * variance(differences)) if n > 1 else 0.0
    if scale <= 1e-12 * abs(mean):
        return mean, 1.0 if n > 1 and mean == 0 else math.nan
    return mean, float(2 * stats.t.sf(abs(mean) / scale, n - 1))


def shared_out(work: Callable[[Task], Row], tasks: Sequence[Task], workers: int | None, what: str) -> Iterator[Row]:
    """Do tasks in processes of one thread each.

    Args:
        work: a function of a module, which takes a task.
        tasks: what to do.
        workers: processes; None takes as many as there are cores, and 1 works here.
        what: for the progress bar.

    Yields:
        Results, as they come.
    """
    torch.set_num_threads(1)  # the networks are small, and threads that wait for one another cost more than they bring
    console = Console(stderr=True)
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if workers == 1:
        yield from track(map(work, tasks), what, len(tasks), console=console)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), partial(torch.set_num_threads, 1)) as pool:
        coming = as_completed([pool.submit(work, task) for task in tasks])
        yield from track((each.result() for each in coming), what, len(tasks), console=console)
