"""How fast is retrieval beside torch SDPA, faiss and entmax, on the same data in the same process?

The errors are the largest relative ones of answers against float64.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from ratios import Ratio, paired, ratio
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

import hopmem
from hopmem.model import sieve
from hopmem.model.entmax import entmax


def off(found: Tensor, Z: Tensor, Y: Tensor, alpha: float, beta: float, rows: int = 32) -> float:
    """The largest relative error of some answers, one step, against float64."""
    S = Y[:rows].double() @ Z.double().T
    expected = entmax(beta * S, alpha) @ Z.double()
    return float(((found[:rows].double() - expected).norm(dim=1) / expected.norm(dim=1)).max())


@contextlib.contextmanager
def without_bfloat16() -> Iterator[None]:
    """As on a processor that does not multiply bfloat16."""
    before = sieve.coarse_type
    sieve.coarse_type = lambda device: torch.float32
    try:
        yield
    finally:
        sieve.coarse_type = before


def data(M: int, d: int, B: int) -> tuple[Tensor, Tensor, hopmem.MemoryBank]:
    """Unit patterns, noisy queries, and the raw bank of the patterns."""
    draws = torch.Generator().manual_seed(0)
    Z = normalize(torch.randn(M, d, generator=draws), dim=1)
    Y = normalize(Z[torch.randint(M, (B,), generator=draws)] + torch.randn(B, d, generator=draws) / d**0.5, dim=1)
    return Z, Y, hopmem.MemoryBank.from_patterns(Z)


def large(M: int, runs: int) -> Iterator[Ratio]:
    """The rows of M = 100,000, d = 784, B = 1,024."""
    import faiss
    from entmax import entmax15

    Z, Y, bank = data(M, 784, 1024)
    flat = faiss.IndexFlatIP(784)
    flat.add(Z.numpy())

    def ask(alpha: float = 1.0, beta: float = 100.0, steps: int = 1, tolerance: float = 1e-5) -> Tensor:
        return hopmem.retrieve(bank, Y, alpha=alpha, beta=beta, steps=steps, tolerance=tolerance).patterns

    def attend(beta: float) -> Tensor:
        return scaled_dot_product_attention(Y[None, None], Z[None, None], Z[None, None], scale=beta)

    def entmax_package() -> Tensor:
        return entmax15(100.0 * (Y @ Z.T), -1, k=100) @ Z

    def error(alpha: float, beta: float) -> float:
        return off(ask(alpha, beta), Z, Y, alpha, beta)

    size, peak = f"M = {M:,}, d = 784, B = 1,024", error(1, 100)
    at_rest = paired(ask, lambda: attend(100.0), runs), paired(ask, lambda: flat.search(Y.numpy(), 1), runs)
    yield ratio(f"{size}, α = 1, β = 100", "torch SDPA", at_rest[0], 0.25, peak)
    yield ratio("the same", "faiss flat, top 1, search only", at_rest[1], 0.6)
    for alpha in (1.5, 2.0):
        times = paired(lambda alpha=alpha: ask(alpha), ask, runs)
        yield ratio(f"α = {alpha}", "hopmem, α = 1", times, 1.15, error(alpha, 100))
    yield ratio("α = 1.5", "entmax15, k = 100, on all scores", paired(lambda: ask(1.5), entmax_package, runs), 0.12)
    times = paired(lambda: ask(1.0, 1.0), lambda: attend(1.0), runs)
    yield ratio("α = 1, β = 1: every weight matters", "torch SDPA", times, 1.15, error(1, 1))
    times = paired(lambda: ask(1.5, 1.0), lambda: ask(1.0, 1.0), runs)
    yield ratio("α = 1.5, β = 1: thousands in the support", "hopmem, α = 1, β = 1", times, 1.15, error(1.5, 1))
    times = paired(lambda: hopmem.retrieve(bank, Y[:1], beta=100.0), lambda: Z @ Y[0], 4 * runs)
    yield ratio("one query, α = 1, β = 100", "matrix-vector product", times, 1.5)
    yield ratio("five steps", "hopmem, one step", paired(lambda: ask(steps=5), ask, runs), 2.2)
    with without_bfloat16():
        times = paired(ask, lambda: attend(100.0), runs)
        yield ratio("α = 1, β = 100 without bfloat16", "torch SDPA", times, 0.65, error(1, 100))


def small(runs: int) -> Ratio:
    """One query against a small bank."""
    Z, Y, bank = data(1000, 784, 1)
    x = Y[0]

    def product_and_a_millisecond() -> None:
        start = time.perf_counter()
        Z @ x
        while time.perf_counter() - start < 1e-3 + product:
            pass

    product = statistics.median(paired(lambda: Z @ x, lambda: None, 100)[0])
    times = paired(lambda: hopmem.retrieve(bank, Y, beta=100.0), product_and_a_millisecond, 20 * runs)
    return ratio("M = 1,000, d = 784, B = 1", "matrix-vector product + 1 ms", times, 1.5)


def memory(M: int) -> Ratio:
    """The most memory that is held beside the mapped bank, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.safetensors"
        hopmem.MemoryBank.from_patterns(torch.randn(M, 128, generator=torch.Generator().manual_seed(0))).save(path)
        command = [sys.executable, __file__, "--peak", str(path)]
        peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return ratio(
        f"M = {M:,}, d = 128, B = 1,024: peak memory", "300 MB above import torch", ([peak], [300.0]), 1.0, unit="MB"
    )


def peak_of(path: str) -> float:
    """Megabytes that were held at most beyond those after `import torch`, but for pages of files."""
    before = held()
    bank, Y = hopmem.MemoryBank.load(path), torch.randn(1024, 128, generator=torch.Generator().manual_seed(1))
    peak = [before]

    def look() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], held())

    done = threading.Event()
    watcher = threading.Thread(target=look)
    watcher.start()
    hopmem.retrieve(bank, Y, beta=100.0)
    done.set()
    watcher.join()
    return peak[0] - before


def held() -> float:
    """Megabytes of memory that belong to no file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not tell what a process holds")


def measure(*, quick: bool = False) -> Iterator[Ratio]:
    """All cases, one by one."""
    runs = 2 if quick else 5
    with torch.inference_mode():
        yield from large(10_000 if quick else 100_000, runs)
        yield small(runs)
    yield memory(100_000 if quick else 1_000_000)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak_of(sys.argv[2]))
    else:
        list(measure(quick="--quick" in sys.argv))
