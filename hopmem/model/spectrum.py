"""The spectrum of the memories: how many dimensions of feature space they use."""

import math

import torch
from torch import Tensor

from hopmem.divided import Division, everywhere
from hopmem.model.gram import TALL, Progress, shared_blocks
from hopmem.model.kernel import Exactly, Features
from hopmem.model.rows import AT_ONCE

WIDEST = 4096  # rows of the smaller Gram matrix up to which it is decomposed where memory allows,
NARROWEST = 256  # and up to which it is in any case
COPIES = 3  # of it, that its decomposition holds


def singular_values(Z: Features, budget: int, progress: Progress | None = None) -> Tensor | None:
    """The singular values of Z, through the smaller of Zᵀ Z and Z Zᵀ.

    Args:
        Z: unit features of M memories.
        budget: bytes of working memory.
        progress: told how many of the memories are done.

    Returns:
        min(M, D) values, float64, the largest first; None where both M and D are too large to decompose.
    """
    M, D = len(Z), Z.dimension
    if min(M, D) > min(WIDEST, max(NARROWEST, math.isqrt(budget // (8 * COPIES)))):
        return None
    gram = everywhere(Z, _gram, Z, progress=progress)
    values: Tensor = torch.linalg.eigvalsh(gram).clamp_min_(0).sqrt().flip(0)
    return values.cpu()


def _gram(part: Division, Z: Features) -> Tensor:
    """The smaller Gram matrix.

    Returns:
        float64 [min(M, D), min(M, D)].
    """
    M, D = part.memories, Z.dimension
    gram = torch.zeros(min(M, D), min(M, D), dtype=torch.float64, device=Z.device)
    if M < D:
        for first, second, C in shared_blocks(part, Exactly(Z), max(1, min(AT_ONCE // D, TALL))):
            gram[first, second], gram[second, first] = C, C.T
    else:
        for rows in Z.patterns.in_blocks():
            block = Z[rows].double()  # [m, D]
            gram.addmm_(block.T, block)
            if part.progress:
                part.progress(rows.stop, len(Z))
    return part.others.total(gram)


def effective_rank(sigma: Tensor) -> float:
    """e^H with H the entropy of the singular values as shares of their sum (Roy and Vetterli, 2007).

    Args:
        sigma: singular values, at least one.

    Returns:
        From 1, all memories on one line, to the number of the values; 0 where all are zero.

    >>> effective_rank(torch.tensor([2.0, 2.0]))
    2.0
    """
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    share = sigma[sigma > 0].double() / total
    return round(float((-(share * share.log()).sum()).exp()), 12)
