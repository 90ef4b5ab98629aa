"""How fast is retrieval beside torch SDPA, faiss and entmax, on the same data in the same process?

Every row is a ratio: the median time of hopmem over that of a peer, both measured in turn. Accuracy is the largest
relative error of an answer against float64. `--quick` takes a tenth of the memories.
"""

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

import hopmem
from hopmem.model import sieve
from hopmem.model.entmax import entmax


def paired(ours: Callable[[], object], peer: Callable[[], object], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of both, run in turn."""
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for function, taken in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return times


def row(case: str, peer: str, bar: float | None, times: tuple[list[float], list[float]], error: float | None) -> dict:
    """A line of the table, printed as soon as it is known."""
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    found = {
        "case": case,
        "peer": peer,
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
        "bar": bar,
        "seconds": statistics.median(times[0]),
        "error": error,
    }
    shown = "" if error is None else f"  error {error:.0e}"
    wanted = "" if bar is None else f" (bar {bar})"
    print(
        f"{case:52} / {peer:34} {found['ratio']:6.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]{wanted}"
        f"  {found['seconds']:.3f} s{shown}",
        flush=True,
    )
    return found


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


def large(M: int, runs: int) -> list[dict]:
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
    sdpa, search = paired(ask, lambda: attend(100.0), runs), paired(ask, lambda: flat.search(Y.numpy(), 1), runs)
    rows = [
        row(f"{size}, α = 1, β = 100", "torch SDPA", 0.25, sdpa, peak),
        row("the same", "faiss flat, top 1, search only", 0.6, search, None),
    ]
    for alpha in (1.5, 2.0):
        times = paired(lambda alpha=alpha: ask(alpha), ask, runs)
        rows.append(row(f"α = {alpha}", "hopmem, α = 1", 1.15, times, error(alpha, 100)))
    times = paired(lambda: ask(1.5), entmax_package, runs)
    rows.append(row("α = 1.5", "entmax15, k = 100, on all scores", 0.12, times, None))
    times = paired(lambda: ask(1.0, 1.0), lambda: attend(1.0), runs)
    rows.append(row("α = 1, β = 1: every weight matters", "torch SDPA", 1.15, times, error(1, 1)))
    rows.append(row("five steps", "hopmem, one step", 2.2, paired(lambda: ask(steps=5), ask, runs), None))
    with without_bfloat16():
        times = paired(ask, lambda: attend(100.0), runs)
        rows.append(row("α = 1, β = 100 without bfloat16", "torch SDPA", 0.65, times, error(1, 100)))
    return rows


def small(runs: int) -> dict:
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
    return row("M = 1,000, d = 784, B = 1", "matrix-vector product + 1 ms", 1.5, times, None)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the memories")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the rows go as JSON")
    options = parser.parse_args()
    cores = torch.get_num_threads()
    print(f"{platform.processor() or platform.machine()}, {cores} threads, torch {torch.__version__}")
    rows = [*large(10_000 if options.quick else 100_000, options.runs), small(options.runs)]
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "threads": cores, "rows": rows}, indent=1))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
