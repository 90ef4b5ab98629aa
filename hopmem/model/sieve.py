"""The coarse pass: which groups of memories can matter to which states, with a bound on what the others weigh.

A state y is scored against every memory in the processor's fastest type, and of each group of memories only the
largest score is kept. Rounding both factors, their product, the factor that makes memories unit and the product with it
by u each, and adding up in float32, moves a score by at most

    δ = ((1 + u)⁵ − 1 + D 2⁻²⁴) ‖y‖      (‖z_μ‖ = 1; the Cauchy–Schwarz inequality on each rounding)

so that the largest score of all lies above the coarse one less δ. With m the largest score, a memory whose score is
below m − t has a weight of at most exp_α(−βt): in p_μ = e^{−c} exp_α(β(s_μ − m) e^{(α−1)c}) of `entmax` c ≥ 0 makes it
smaller. M of them weigh at most ε together from t = −ln_α(ε/M)/β on, which is ln(M/ε)/β for softmax and never more
than 1/(β(α−1)), where the weight is zero and the support ends. A group that can matter has a coarse maximum above
m̂ − t − 2δ; all others are left out, and what they weigh is bounded by ε whatever the rounding was.

For α > 1 the support ends at t = e^{−(α−1)c}/(β(α−1)) below the largest score, and c grows with every memory that is
added. The best memories of the groups, each taken to lie 2δ farther below the best of all than it seems, are some of
the memories: their c bounds that of all from below, and t from above. Taken as they seem, they tell where the support
most likely ends (`likely_floor`), which is for whoever looks there to verify.

Where other processes hold more memories, m is the best of theirs, too: three numbers for each state are compared
(`Sieve.bounds`), and a process looks only into what matters among all, which is nothing for most states of many.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hopmem.model.kernel import Features, processor_has
from hopmem.model.rows import blocks
from hopmem.model.threshold import log_peak, partial_sums, reach_of_support

GROUPS = 4096  # as many groups as this, or of `LARGEST` memories each more; small banks are scored in float32
LARGEST = 32
SAMPLE = 16  # after one in so many memories it may show that too many matter
MATTERING = 8  # which is when one group in so many certainly does, on average
COARSE_ROWS = 8192  # memories that are scored at a time, where they fit the budget
FEW_STATES = 32  # and fewer: float32 memories are scored as they are
FEW = 8  # memories, or groups with the k best, that any state may look into
ARRAYS = 6  # of the size of the maxima that their α-entmax takes
APART = 32  # groups of which only the best counts as one of the k best, where there are
MANY = 8  # times k of them, so that two of the k are seldom together
SIDE_BY_SIDE = 128  # states whose maxima are copied at a time,
COUNTED = 512  # and groups that are counted: torch counts in eight bytes for each
NEAR = 1e-3  # to which c is found: it moves how far the support reaches by as little
LIKELY = 4  # of the rounding to bfloat16 that is possible, one part in so many is likely
BYTES = 8  # for each group and state: its maximum, whether it matters, and copies of that


@dataclass(frozen=True)
class Sieve:
    """Coarse maxima of groups of memories for b states."""

    top: Tensor  # [G, b]
    group: int  # memories in a group
    slack: Tensor  # [b] δ: how far a score may lie from its coarse value
    best: Tensor | None = None  # [b, 3] the `bounds` of all memories, where others lie beside these

    def reach(self, alpha: float, beta: float, budget: int) -> Tensor:
        """How far below the largest score the support of α-entmax reaches at most, by what the maxima say.

        Args:
            alpha: α > 1.
            beta: β > 0.
            budget: bytes of working memory.

        Returns:
            t [b].
        """
        return self._reach_of_maxima(alpha, beta, budget, self.bounds(1)[:, 1] + self.slack)

    def likely_floor(self, alpha: float, beta: float, budget: int) -> Tensor:
        """A score above which the support of α-entmax most likely lies; below the largest score it surely is.

        Args:
            alpha: α > 1.
            beta: β > 0.
            budget: bytes of working memory.

        Returns:
            [b].
        """
        reaches = self._reach_of_maxima(alpha, beta, budget, self.top.amax(0).float()).float()
        likely = self.slack / LIKELY if self.top.dtype == torch.bfloat16 else 2 * self.slack
        return self.top.amax(0).float() - torch.maximum(reaches + likely, self.slack)

    def _reach_of_maxima(self, alpha: float, beta: float, budget: int, peak: Tensor) -> Tensor:
        """How far the support of α-entmax reaches where the maxima are all there is.

        Args:
            alpha: α > 1.
            beta: β > 0.
            budget: bytes of working memory.
            peak: from which the others count [b].

        Returns:
            t [b], not less than it is.
        """
        found = []
        for part in blocks(self.top.shape[1], max(1, budget // (8 * ARRAYS * len(self.top)))):
            s = self.top[:, part].T.float()  # [c, G]
            s = (s - peak[part, None]).mul_(beta).scatter_(1, s.argmax(1, keepdim=True), 0)
            sums, start = partial(partial_sums, s, alpha=alpha), s.new_zeros(len(s), 1, dtype=torch.float64)
            c = log_peak(sums, start, len(self.top), NEAR)
            found.append(reach_of_support((c - NEAR).clamp_min_(0), alpha) / beta)
        return torch.cat(found)[:, 0]

    def bounds(self, k: int) -> Tensor:
        """What is certain of the best scores.

        Args:
            k: memories that are asked for.

        Returns:
            What the largest score is not below, what it is not above, and what the k-th is not below [b, 3].
        """
        if self.best is not None:
            return self.best
        peak = self.top.amax(0).float()
        kth = peak if k == 1 else self._kth(k).float()
        return torch.stack([peak - self.slack, peak + self.slack, kth - self.slack], 1)

    def _kth(self, k: int) -> Tensor:
        """What the k-th largest maximum is not below: itself, or a little less, which is found in a tenth of the time.

        Args:
            k: at least two.

        Returns:
            [b].
        """
        G, b = self.top.shape
        if k > G:
            return self.top.new_full((b,), -math.inf)
        parts = G // APART
        if parts < MANY * k:
            sides = (self.top[:, part].T.contiguous() for part in blocks(b, SIDE_BY_SIDE))
            return torch.cat([side.topk(k, dim=1).values[:, -1] for side in sides])
        # Memories side by side may be alike, so those that count as one lie far apart.
        largest = self.top[: parts * APART].view(APART, parts, b).amax(0)
        return torch.cat([largest, self.top[parts * APART :]]).topk(k, dim=0).values[-1]

    def floor(self, reach: float | Tensor, k: int = 1) -> Tensor:
        """The coarse maximum from which a group can matter, or hold one of the k best memories.

        Args:
            reach: t, how far below the largest score a memory still matters, of all states or of each [b].
            k: memories that are asked for.

        Returns:
            [b].
        """
        low, _, kth = self.bounds(k).unbind(1)
        return torch.minimum(low - reach, kth) - self.slack


def count(top: Tensor, floor: Tensor) -> Tensor:
    """How many groups lie above a floor.

    Args:
        top: the largest score of each group [G, b].
        floor: [b].

    Returns:
        [b] int64.
    """
    total = torch.zeros(top.shape[1], dtype=torch.int64, device=top.device)
    for some in blocks(len(top), COUNTED):
        total += (top[some] >= floor).sum(0)
    return total


def unseen(Y: Tensor, M: int) -> Tensor:
    """What is certain of the best scores before any was computed (see `Sieve.bounds`): no score is above ‖y‖.

    Args:
        Y: states [b, D].
        M: memories.

    Returns:
        [b, 3].
    """
    length = Y.norm(dim=1).float()
    none = torch.full_like(length, -math.inf)
    return torch.stack([none, length * (1 + torch.finfo(length.dtype).eps) if M else none, none], 1)


def reach(alpha: float, beta: float, M: int, leak: float) -> float:
    """How far below the largest score M memories may lie and weigh more than `leak` together.

    Args:
        alpha: α ≥ 1.
        beta: β ≥ 0.
        M: memories.
        leak: ε > 0, the share of the weight that may be lost at α = 1; beyond, none is.

    Returns:
        t; infinite at β = 0.

    >>> round(reach(1.0, 10.0, 1000, 1e-7), 3), reach(2.0, 10.0, 1000, 1e-7)
    (2.303, 0.1)
    """
    if beta == 0:
        return math.inf
    return math.log(M / leak) / beta if alpha == 1 else 1 / (beta * (alpha - 1))


def coarse_type(device: torch.device) -> torch.dtype:
    """The type of the coarse pass: bfloat16 where the processor multiplies it.

    Returns:
        bfloat16 or float32.
    """
    if device.type == "cuda":
        quick = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        quick = device.type == "cpu" and processor_has("avx512_bf16")
    return torch.bfloat16 if quick else torch.float32


def states_at_once(M: int, budget: int) -> int:
    """How many states fit the budget with their coarse maxima.

    Args:
        M: memories.
        budget: bytes.

    Returns:
        At least one.
    """
    return max(1, min(1024, budget // (BYTES * -(-M // group_size(M)))))


def group_size(M: int) -> int:
    """How many memories share a maximum.

    Args:
        M: memories.

    Returns:
        A power of two, 1 for few memories.
    """
    size = 1
    while size < LARGEST and size * GROUPS < M:
        size *= 2
    return size


def suited_type(memory: Features, states: int) -> torch.dtype:
    """In which type to score coarsely.

    Args:
        memory: unit features of M memories.
        states: how many are scored.

    Returns:
        float32 for few memories, whose maxima are their scores; and for few states, if memories are that already: to
        round them would take longer than the products with them.
    """
    as_they_are = states <= FEW_STATES and memory.device.type == "cpu" and memory.kind == torch.float32
    return torch.float32 if as_they_are or group_size(len(memory)) == 1 else coarse_type(memory.device)


def sieve(Y: Tensor, memory: Features, reach: float | None, kind: torch.dtype, budget: int) -> Sieve | None:
    """Score states against all memories, coarsely.

    Args:
        Y: states [b, D].
        memory: unit features of M memories.
        reach: how far below the largest score memories matter; None where that is yet to be seen.
        kind: the type to compute in.
        budget: bytes of working memory for the memories that are scored at a time.

    Returns:
        The maxima of all groups; None as soon as it is certain that too many matter.
    """
    M, b, D = len(memory), *Y.shape
    group = group_size(M)
    length = Y.norm(dim=1).float()  # no score is larger
    slack = rounding(kind, D) * length
    if reach is not None and M > FEW and reach >= 2 * float(length.max()):
        return None
    top = torch.empty(-(-M // group), b, dtype=kind, device=Y.device)
    T = Y.to(kind).T.contiguous()
    least = min(LARGEST, (10 << 20) // (4 * D))  # as in `scan.memory_rows`
    height = max(1, max(least, min(COARSE_ROWS, budget // (4 * D))) // group) * group  # whole groups
    buffer = torch.empty(min(M, height), b, dtype=kind, device=Y.device)
    for rows in blocks(M, height):
        S = memory.products(rows, T, buffer)  # [m, b]
        maxima(S, group, top[rows.start // group : -(-rows.stop // group)])
        if reach is not None and group > 1 and rows.start < M // SAMPLE <= rows.stop:
            seen = top[: rows.stop // group]
            if float((seen >= length - reach).double().mean()) > 1 / MATTERING:
                return None
    return Sieve(top, group, slack)


def rounding(kind: torch.dtype, D: int) -> float:
    """By how much rounding moves the product of two unit vectors, at most.

    Args:
        kind: type of the factors and of the product.
        D: their dimension.

    Returns:
        δ for ‖y‖ = 1.
    """
    u = torch.finfo(kind).eps / 2
    return (1 + u) ** 5 - 1 + (D + 4) * 2.0**-24


def maxima(S: Tensor, group: int, out: Tensor) -> None:
    """The largest score of each group.

    Args:
        S: scores [m, b].
        group: memories in a group; the last may be smaller.
        out: where the maxima go [⌈m/group⌉, b].
    """
    whole = len(S) // group
    out[:whole] = S[: whole * group].view(whole, group, S.shape[1]).amax(1) if group > 1 else S
    if whole < len(out):
        out[whole] = S[whole * group :].amax(0)
