"""Names and sizes on the command line ↔ devices, threads and bytes.

Sizes are read without torch, which is imported where a device is asked for.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from hopmem.errors import DeviceError, UsageError
from hopmem.pages import OWN

if TYPE_CHECKING:
    import torch

ResultT = TypeVar("ResultT")

DEFAULT_BUDGET = 256 << 20  # bytes of working memory where no limit is given
SMALLEST = 1 << 20  # below which a smaller block is no help
SHARE_OF_LIMIT = 4  # a block takes this part of the memory limit: its temporaries and the patterns need the rest


def resolve(name: str) -> "torch.device":
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that is there.

    Args:
        name: what the user asked for; `auto` takes CUDA where there is any, else the CPU.

    Returns:
        The device.

    Raises:
        DeviceError: no such device on this machine.
        UsageError: no such kind of device at all.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device: expected auto, cpu, cuda, cuda:N or mps, found {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"  # mps lacks float64, which the bounds and α > 1 need
    kind, _, number = name.partition(":")
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(kind, 1)
    if int(number or 0) >= count:
        raise DeviceError(f"--device {name[:40]}: expected a device that torch can use, found {count} of type {kind}")
    if kind == "cuda":  # what rounds products to fewer digits than float32 has
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return torch.device(name)


def set_threads(count: int | None) -> None:
    """Let torch use `count` threads; None leaves its own choice.

    Where torch is not loaded yet, it will look into the environment: it is not loaded for this alone.
    """
    if count is None:
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    else:
        os.environ["OMP_NUM_THREADS"] = str(count)


def budget(memory_limit: str | None) -> int:
    """Bytes of working memory for a block under a memory limit.

    Args:
        memory_limit: as on the command line, or None.

    Returns:
        Bytes.
    """
    return DEFAULT_BUDGET if memory_limit is None else max(SMALLEST, (size(memory_limit) - OWN) // SHARE_OF_LIMIT)


def size(text: str, option: str = "--memory-limit", least: int = 1 << 20) -> int:
    """Read a size such as 512M, 2G, 1.5GiB or 1000000.

    Args:
        text: a number with an optional unit K, M, G or T (powers of 1024).
        option: that it was given to.
        least: bytes, which a smaller size stands for.

    Returns:
        Bytes.

    Raises:
        UsageError: not such a size.

    >>> size("2G")
    2147483648
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"{option}: expected a size such as 512M or 2G, found {text!r}")
    return max(least, int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")))


class Room:
    """Bytes of working memory, halved whenever they turn out to be more than there are."""

    def __init__(self, budget: int) -> None:
        """Begin with what was asked for.

        Args:
            budget: bytes of a block.
        """
        self.budget = budget

    def fit(self, work: Callable[..., ResultT]) -> ResultT:
        """Do some work in as much memory as there is; what was found out holds for the next.

        Args:
            work: called with the `budget`; it may be called again with less.

        Returns:
            What the work returns.
        """
        while True:
            try:
                return work(budget=self.budget)
            except Exception as error:
                if not _exhausted(error) or self.budget <= SMALLEST:
                    raise
                self.budget //= 2


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn running out of memory, on the host or the device, into an error that says what to do.

    Yields:
        Nothing.

    Raises:
        DeviceError: memory ran out inside the block.
        Exception: whatever else went wrong there.
    """
    try:
        yield
    except Exception as error:
        if not _exhausted(error):
            raise
        advice = "a smaller --memory-limit makes smaller blocks"
        raise DeviceError(f"out of memory: expected the job to fit, found that it did not; {advice}") from error


def _exhausted(error: Exception) -> bool:
    import torch

    # The CPU's allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
