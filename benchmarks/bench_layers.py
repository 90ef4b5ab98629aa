"""Is a layer as fast as the attention that it stands for, and α-entmax with its gradient as the entmax package?

    python benchmarks/bench_layers.py [--quick]

Both compute the same: the error is the largest difference of their answers, in float32.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from entmax import entmax15, entmax_bisect, sparsemax
from ratios import Ratio, Work, paired, ratio
from torch import Tensor, nn

from hopmem.layers import Hopfield, entmax


def step(layer: nn.Module, x: Tensor) -> Work:
    """Forward and backward, without weights, as torch's attention is fused."""

    def work() -> None:
        layer.zero_grad()
        layer(x, x, x, need_weights=False)[0].square().sum().backward()

    return work


def look(layer: nn.Module, x: Tensor) -> Work:
    """Forward alone, as when a network is used."""

    def work() -> None:
        with torch.inference_mode():
            layer(x, x, x, need_weights=False)

    return work


def differentiated(weights: Callable[[Tensor], Tensor], S: Tensor, G: Tensor) -> Work:
    """Weights and the gradient through them."""

    def work() -> None:
        leaf = S.clone().requires_grad_()
        weights(leaf).backward(G)

    return work


def measure(*, quick: bool = False) -> Iterator[Ratio]:
    """All cases, one by one."""
    runs = 3 if quick else 15
    torch.manual_seed(0)
    for B, L, E, H in ((32, 64, 128, 4),) if quick else ((32, 64, 128, 4), (16, 256, 256, 8), (4, 1024, 512, 8)):
        theirs = nn.MultiheadAttention(E, H, batch_first=True)
        ours, x = Hopfield.from_attention(theirs), torch.randn(B, L, E)
        error = float((ours(x)[0] - theirs(x, x, x)[0]).detach().abs().max())
        case = f"Hopfield, {B} × {L} × {E}, {H} heads"
        times = paired(step(ours, x), step(theirs, x), runs)
        yield ratio(f"{case}: forward, backward", "torch MultiheadAttention", times, 1.2, error)
        times = paired(look(ours.eval(), x), look(theirs.eval(), x), runs)
        yield ratio(f"{case}: forward", "torch MultiheadAttention", times, 1.2, error)
    S, G = torch.randn(16, 8, 64, 64), torch.randn(16, 8, 64, 64)
    packages = {1.5: entmax15, 2.0: sparsemax, 1.3: lambda s: entmax_bisect(s, 1.3)}
    for alpha, package in packages.items():
        error = float((entmax(S, alpha) - package(S)).abs().max())
        times = paired(differentiated(lambda s, a=alpha: entmax(s, a), S, G), differentiated(package, S, G), runs)
        yield ratio(f"entmax and its gradient, 64 keys, α = {alpha}", "the entmax package", times, None, error)


if __name__ == "__main__":
    list(measure(quick="--quick" in sys.argv))
