"""Retrieval error and accuracy against the level of noise, with 100 memories.

    python -m experiments noise_level --data FOLDER [--seeds 10]

Every method runs at its own best β, found on corruptions of its own at that level. hopmem's map is learned anew for
every level, and for fewer seeds than the rest, since learning is what takes long; rows that were not run are not in the
CSV.
"""

from collections.abc import Iterator

from torch import Tensor

from experiments.curves import BASELINES, DENOISE, UHOP, Point, measure, record
from experiments.setting import Setting, bank_of

COUNT = 100  # memories
NOISES = (
    *(f"mask:{tenths / 10}" for tenths in range(1, 10)),
    *(f"gaussian:{level}" for level in (0.1, 0.3, 0.5, 1, 2, 3)),
)
SAMPLES = 200  # queries for each bank and noise
SEEDS = 10
LEARNED_SEEDS = {"mnist": 3, "cifar10": 1}  # of denoise: 4 s a bank of MNIST, 20 s one of CIFAR-10


def measured(data: str, images: Tensor, setting: Setting) -> Iterator[Point]:
    """Every seed, under every noise."""
    noises, count, samples = (NOISES[::7], 10, 20) if setting.quick else (NOISES, COUNT, SAMPLES)
    for seed in setting.repeat(SEEDS):
        learned = not setting.quick and seed < LEARNED_SEEDS[data]
        methods = (*BASELINES, UHOP, *([DENOISE] if learned else []))
        yield from measure(data, bank_of(images, count, seed), noises, methods, samples)


def run(setting: Setting) -> None:
    """Write a row for each query set and method, and draw the means."""
    record(setting, "noise_level", measured, "level", "level")
