"""Retrieval error and accuracy against the number of memories, under half masked pixels and under Gaussian noise.

    python -m experiments memory_size --data FOLDER [--seeds 10]

Every method runs at its own best β, found on corruptions of its own. What is learned is learned for fewer seeds and
sizes than what is not, so that all of it takes about half an hour on one core (an estimate from parts of it); rows
that were not run are not in the CSV.
"""

from collections.abc import Iterator

from torch import Tensor

from experiments.curves import BASELINES, DENOISE, UHOP, Point, measure, record
from experiments.setting import Setting, bank_of

NOISES = ("mask:0.5", "gaussian:0.5")
SIZES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SAMPLES = 200  # queries for each bank and noise
PUBLISHED = 500  # the largest size of the papers,
SEEDS = 10  # and their repetitions up to there;
SEEDS_BEYOND = 2  # beyond, for a bank of 10,000 CIFAR-10 images takes two minutes
LARGEST = {UHOP: 1000, DENOISE: 2000}  # memories that are learned: beyond, a single bank takes minutes
LEARNED_SEEDS = {"mnist": 3, "cifar10": 1}  # of denoise: 4 s a bank of MNIST, 20 s one of CIFAR-10
LEARNED_BEYOND = 1  # of all that is learned


def methods_of(data: str, size: int, seed: int) -> tuple[str, ...]:
    """What is run."""
    few = LEARNED_SEEDS[data] if size <= PUBLISHED else LEARNED_BEYOND
    seeds = {UHOP: SEEDS if size <= PUBLISHED else LEARNED_BEYOND, DENOISE: few}
    return (*BASELINES, *(method for method in LARGEST if size <= LARGEST[method] and seed < seeds[method]))


def measured(data: str, images: Tensor, setting: Setting) -> Iterator[Point]:
    """Every size and seed."""
    sizes, noises, samples = (SIZES[:2], NOISES[:1], 20) if setting.quick else (SIZES, NOISES, SAMPLES)
    for size in sizes:
        for seed in setting.repeat(SEEDS):
            if size > PUBLISHED and seed >= SEEDS_BEYOND:
                break
            methods = (*BASELINES, UHOP) if setting.quick else methods_of(data, size, seed)
            yield from measure(data, bank_of(images, size, seed), noises, methods, samples)


def run(setting: Setting) -> None:
    """Write a row for each query set and method, and draw the means."""
    record(setting, "memory_size", measured, "size", "memories M")
