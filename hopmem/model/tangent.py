"""α-entmax, 1 < α ≤ 1.5, over all memories in one float32 pass, at a threshold that is nearly right and corrected.

In scores ζ_μ = (α−1) β s_μ the weights are p_μ = [ζ_μ − τ]₊ᵏ with k = 1/(α−1), where τ makes F = Σ p one (Peters,
Niculae, Martins, 2019, arXiv 1905.05702). With x = [ζ − τ]₊ the derivatives of F by τ are −k Σ x^{k−1} and
k(k−1) Σ x^{k−2}, which tell the root τ + δ to the third order of δ, and

    Σ p r ≈ Σ xᵏ r − δ k Σ x^{k−1} r

what the rows r mix to there, to the second: no more than `LOST` of the weights is then at the wrong place. So near
comes who asks scores in bfloat16, a tenth of the work: what rounds off one is random unless all are alike, and τ is a
matter of many. A state that does not come so near makes the pass again from where it came. For α > 1.5 the second
derivative has no bound near the end of the support, and other ways are taken.

Since x^{k−1} is multiplied by δ, bfloat16 mixes it, with rows less the mean of their block: the product is rounded to
bfloat16, too, and blocks may cancel. The dual Ψ* = min_τ τ/(α−1) + Σ x^{k+1}/α + 1/(α(α−1)) is flat at the root.
Memories so near to τ that δ, or rounding, may put them on the other side are told one by one.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hopmem.model.best import above, best, usual
from hopmem.model.kernel import Features
from hopmem.model.passes import Scores
from hopmem.model.scan import Mixed, RowBlocks
from hopmem.model.sieve import Sieve, group_size, maxima, suited_type
from hopmem.model.threshold import log_peak, partial_sums, stretch
from hopmem.model.weighing import BLUR, ROUNDED, Association, Weighing

LOST = 1e-6  # the share of the weights that the second order of a step may be; less where rows differ in length,
SPREAD = 12.0  # by no more than so much: a lost weight of a loud row weighs more
NEAR = 1e-3  # |F − 1| of most such steps,
LEADS = 0.1  # and from which a step of the coarse type most likely leads there
STEPS, PASSES = 6, 4  # at most, in the coarse type and in float32
SAMPLE, ABOUT = 4096, 1e-2  # memories that tell where to begin, and how well they do
LEAST, BYTES_OF_ROW, BYTES_OF_SCORE = 64, 16, 20  # of a sample, for each entry of a row and for each score
STEEPEST = 8.0  # k beyond which powers of x lose digits
FLATTEST = 1e-6  # β below which scores do
OF_STATES = ("tau", "total", "slope", "curve", "power", "mixed", "rate", "support", "window")
MOST_BESIDE, BYTES_OF_BESIDE = 1 << 20, 60  # memories that are told one by one, and what each takes with copies


@dataclass(frozen=True)
class Tangent:
    """Sums over all memories at τ, for b states."""

    tau: Tensor  # [b] float32
    total: Tensor  # F = Σ xᵏ [b] float64
    slope: Tensor  # k Σ x^{k−1} [b] float64
    curve: Tensor  # k(k−1) Σ x^{k−2} [b] float64
    power: Tensor  # Σ x^{k+1} [b] float64
    mixed: Tensor  # Σ xᵏ r [b, n] float64
    rate: Tensor  # k Σ x^{k−1} r [b, n]
    support: Tensor  # memories above τ that are not beside it [b] int64
    beside: Tensor  # [2, e] states and memories that are,
    gap: Tensor  # and how far above τ they lie [e]
    window: Tensor  # how far from τ beside it is [b]
    top: Tensor  # the largest ζ of each group [G, b]
    k: float

    @property
    def step(self) -> Tensor:
        """δ [b], float64: Newton's step, and what the curve adds to it."""
        newton = (self.total - 1) / self.slope
        return newton + self.curve * newton.square() / (2 * self.slope)

    def mixture(self) -> Tensor:
        """Σ p r at τ + δ, with Σ p = 1.

        Returns:
            [b, n] float64.
        """
        step = self.step[:, None]
        return (self.mixed - step * self.rate) / (self.total - self.step * self.slope)[:, None]

    def dual(self) -> Tensor:
        """Ψ*_α(β Z y).

        Returns:
            [b] float64.
        """
        alpha = 1 + 1 / self.k
        at_tau = self.k * self.tau.double() + self.power / alpha + self.k / alpha
        return at_tau - self.k * (self.total - 1).square() / (2 * self.slope)

    def near(self, slack: Tensor, lost: float) -> Tensor:
        """Whether a step is as good as the root, and does not leave the window.

        Args:
            slack: what rounding may have moved a score by [b].
            lost: the share of the weights that the step may lose.

        Returns:
            bool [b].
        """
        state, step = self.beside[0], self.step
        let_in = torch.where(self.gap > 0, 0.0, (self.gap - step[state]).clamp_min(0) ** self.k)
        second = (self.curve * step.square() / 2).index_add(0, state, let_in)
        return (second <= lost) & (self.step.abs() + slack <= self.window)

    def of(self, states: Tensor) -> "Tangent":
        """The sums of some of the states.

        Args:
            states: their numbers [c].

        Returns:
            Sums of c states.
        """
        if len(states) == len(self.tau):
            return self
        place = states.new_full((len(self.tau),), -1)
        place[states] = torch.arange(len(states), device=states.device)
        kept = place[self.beside[0]] >= 0
        beside = torch.stack([place[self.beside[0, kept]], self.beside[1, kept]])
        rows = {name: getattr(self, name)[states] for name in OF_STATES}
        return replace(self, **rows, beside=beside, gap=self.gap[kept], top=self.top[:, states])


def suits(how: Weighing, memory: Features) -> bool:
    """Whether weights may be corrected from a threshold nearby.

    Args:
        how: α, β, and what is asked for.
        memory: unit features of M memories.

    Returns:
        False also of few memories, of which bfloat16 tells less.
    """
    k, alike = 1 / (how.alpha - 1), how.spread <= SPREAD and not how.sharp
    return len(memory) > SAMPLE and alike and 2 <= k <= STEEPEST and how.beta >= FLATTEST and not how.at_once


def corrected(
    Y: Tensor, memory: Features, how: Weighing, first: RowBlocks, width: int, peak: Tensor | None
) -> Generator[tuple[Tensor, Association], None, Tensor]:
    """Weigh all memories by α-entmax, at a threshold that is corrected.

    Args:
        Y: states [b, D], float64.
        memory: unit features of M memories.
        how: α, β, and what is asked for.
        first: what will be mixed first.
        width: its entries.
        peak: about the largest score [b], where that is known.

    Yields:
        Some of the states and their association.

    Returns:
        The states that are left: float32 tells too little of them, or memories beside the threshold are too many, as
        ties there are.
    """
    k, scale, coarse = 1 / (how.alpha - 1), (how.alpha - 1) * how.beta, suited_type(memory, len(Y))
    scores = Scores.within((scale * Y).float().T, memory, width, how.budget)
    tau, spread = approach(scores, begin(Y, memory, how, peak), k, coarse)
    slack, left, lost = 2 * scale * usual(Y), torch.arange(len(Y), device=Y.device), list[Tensor]()
    for _ in range(PASSES):
        window = 2 * NEAR * spread[left] + slack[left]
        some = scores.of(left)
        found = tangent(some, tau[left], window, k, first, width, coarse, how.budget)
        if bool(found.window.isinf().any()):
            break
        reach = k * (found.top.amax(0) - found.tau)
        clear = how.beta * ROUNDED * Y[left].norm(dim=1) <= BLUR * reach
        near = found.near(slack[left], LOST / how.spread) & clear
        if bool(near.any()):
            states = near.nonzero()[:, 0]
            yield left[states], _associated(found.of(states), Y[left[states]], some.of(states), how, first)
        lost.append(left[~clear])
        tau[left], spread[left] = (found.tau + found.step).float(), (found.total / found.slope).float().nan_to_num(0)
        left = left[clear & ~near]
        if not len(left):
            break
    return torch.cat([*lost, left])


def _associated(found: Tangent, Y: Tensor, scores: Scores, how: Weighing, first: RowBlocks) -> Association:
    """What sums at a threshold nearby tell of the weights.

    Args:
        found: of b states.
        Y: the states [b, D], float64.
        scores: ζ of them.
        how: α, β, and what is asked for.
        first: what was mixed.

    Returns:
        The association.
    """
    memory, scale, step = scores.memory, (how.alpha - 1) * how.beta, found.step
    tau, top, number = found.tau.double() + step, found.top / scale, min(max(2, how.top), len(memory))
    floor = Sieve(top, group_size(len(memory)), usual(Y)).floor(0.0, number)
    index, S = best(Y, memory, top, floor, number, how)
    P = powers((scale * S - tau[:, None]).clamp_min(0), found.k)[0]
    away, state = found.gap - step[found.beside[0]], found.beside[0]
    unsure = away.abs() <= 2 * scale * usual(Y)[state]
    support = found.support.index_add(0, state, ((away > 0) & ~unsure).long())
    edge = found.beside[:, unsure]
    support = support.index_add(0, edge[0], above(tau / scale, edge, Y, memory, how.budget))

    def mix(rows_of: RowBlocks, n: int, some: Tensor) -> Tensor:
        return mixed[some] if rows_of is first else _mixture(scores.of(some), tau[some], found.k, rows_of, n)

    mixed = found.mixture()
    return Association(index, S, P, support, found.dual(), mix)


def _mixture(scores: Scores, tau: Tensor, k: float, rows_of: RowBlocks, width: int) -> Tensor:
    """Σ p r at the root.

    Args:
        scores: ζ of b states and M memories.
        tau: τ [b].
        k: 1/(α−1).
        rows_of: M rows to mix.
        width: entries of a row.

    Returns:
        [b, width] float64.
    """
    total, mixed = torch.zeros_like(tau, dtype=torch.float64), Mixed(tau, width)
    for rows, S in scores:
        P, *_ = powers(S.sub_(tau.to(S)).clamp_min_(0), k)
        total += P.sum(0)
        mixed.add(P.T, rows_of[rows])
    return mixed.total / total[:, None]


def powers(x: Tensor, k: float) -> tuple[Tensor, Tensor, Tensor]:
    """The powers of a base that is not negative.

    Args:
        x: [...].
        k: at least 2.

    Returns:
        xᵏ, x^{k−1} and x^{k−2}, all zero where x is.
    """
    if k == 2:
        return x.square(), x, x.sign()
    least = x.pow(k - 2)
    below = least * x
    return below * x, below, least


def begin(Y: Tensor, memory: Features, how: Weighing, peak: Tensor | None = None) -> Tensor:
    """About where τ lies, by a sample of the memories and the largest score, which may weigh as much as they all do.

    Args:
        Y: states [b, D].
        memory: unit features of M memories.
        how: α and β.
        peak: about the largest score [b]; None takes that of the sample.

    Returns:
        τ [b].
    """
    M, fitting = len(memory), how.budget // (BYTES_OF_ROW * memory.dimension + BYTES_OF_SCORE * len(Y))
    rows = torch.linspace(0, M - 1, min(M, SAMPLE, max(LEAST, fitting)), dtype=torch.float64, device=Y.device).long()
    S = Y.float() @ memory[rows].T
    largest, itself = S.max(1)
    peak = largest if peak is None else torch.maximum(peak, largest)
    s, each = (S - peak[:, None]).mul_(how.beta), M / len(rows)
    found = (largest >= peak - ABOUT * peak.abs()).nonzero()[:, 0]
    s[found, itself[found]] = -math.inf  # the peak stands for no others

    def sums(c: Tensor) -> tuple[Tensor, Tensor]:
        total, rate = partial_sums(s, c, how.alpha)
        return each * total + 1, each * rate

    c = log_peak(sums, s.new_zeros(len(s), 1, dtype=torch.float64), M, ABOUT)
    return (how.alpha - 1) * how.beta * peak - (1 / stretch(c, how.alpha)).float()[:, 0]


def approach(scores: Scores, tau: Tensor, k: float, coarse: torch.dtype) -> tuple[Tensor, Tensor]:
    """Steps towards the root by scores in a coarse type.

    What rounds off a state is made orthogonal to it, by a factor: Σ x^{k−1} z, along which it would move F, lies about
    where the state does. The largest score, whose weight may be as much as all others together, enters exactly.

    Args:
        scores: ζ of b states.
        tau: where to begin [b].
        k: 1/(α−1).
        coarse: the type.

    Returns:
        τ, and about how far it moves F by one [b].
    """
    rounded, T = Scores(scores.T.to(coarse), scores.memory, scores.rows), scores.T
    along = (T * rounded.T).sum(0)
    factor = torch.where(along > 0, T.square().sum(0) / along, 1)
    tau, spread, left = tau.clone(), torch.empty_like(tau), torch.arange(len(tau), device=tau.device)
    top, strongest, exact = torch.full_like(tau, -math.inf), torch.zeros_like(left), torch.zeros_like(tau)
    for step in range(STEPS):
        start = tau[left] / factor[left]
        sums = torch.zeros(3, len(left), device=tau.device)
        for rows, S in rounded.of(left):
            if step == 0:
                largest, place = S.max(0)
                strongest = torch.where(largest > top, place + rows.start, strongest)
                top = torch.maximum(top, largest)
            each = powers(S.float().sub_(start).clamp_min_(0), k)
            sums += torch.stack([power.sum(0) for power in each])
        if step == 0:
            exact = (scores.memory[strongest] * T.T).sum(1)
        without = powers((top[left] - start).clamp_min_(0), k)
        within = powers((exact[left] - tau[left]).clamp_min_(0), k)
        F, H, C = (
            factor[left] ** (k - lower) * (every - one) + itself
            for lower, (every, one, itself) in enumerate(zip(sums, without, within, strict=True))
        )
        # On F^{1/k}, which is linear in τ where all x are alike, to the third order; above all memories, where there is
        # no slope, half the way back to where the largest weight is one.
        slope, curve = k * H, k * (k - 1) * C
        newton = k * (F - F ** (1 - 1 / k)) / slope
        more = newton.square() * (curve - (1 - 1 / k) * slope.square() / F) / (2 * slope)
        tau[left] += torch.where(F > 0, newton + more.minimum(newton.abs() / 2), -0.5)
        spread[left] = F / slope
        left = left[(F - 1).abs() > LEADS]
        if not len(left):
            break
    return tau, spread.nan_to_num(0.0)


def tangent(
    scores: Scores,
    tau: Tensor,
    window: Tensor,
    k: float,
    rows_of: RowBlocks,
    width: int,
    coarse: torch.dtype,
    budget: int,
) -> Tangent:
    """Sum up and mix at τ, in one pass.

    Args:
        scores: ζ of b states and M memories.
        tau: τ [b].
        window: how far from τ memories are told one by one [b].
        k: 1/(α−1), from 2 to `STEEPEST`.
        rows_of: M rows to mix.
        width: entries of a row.
        coarse: the type that mixes the derivative.
        budget: bytes of working memory.

    Returns:
        The sums; with a window of −∞ where more memories lie beside τ than fit.
    """
    M, b, device = len(scores.memory), len(tau), tau.device
    group = group_size(M)
    top = torch.empty(-(-M // group), b, device=device)
    total, slope, curve, power, positive = (torch.zeros(b, dtype=torch.float64, device=device) for _ in range(5))
    mixed, rate = Mixed(tau, width), torch.zeros(b, width, device=device)
    found, count = list[tuple[Tensor, Tensor, Tensor]](), 0
    most = min(MOST_BESIDE, budget // BYTES_OF_BESIDE)
    for rows, S in scores:
        maxima(S, group, top[rows.start // group : -(-rows.stop // group)])
        state, row, gap = _beside(S.sub_(tau), group, window, most)
        found.append((state, row + rows.start, gap))
        count += len(state)
        if count > most:
            window = torch.full_like(window, -math.inf)
        x = S.clamp_min_(0)
        P, H, C = powers(x, k)
        r = rows_of[rows]
        below = C.sum(0)
        positive += below if k == 2 else x.sign().sum(0)
        total += P.sum(0)
        slope += k * H.sum(0)
        curve += k * (k - 1) * below
        power += (P * x).sum(0)
        if coarse == r.dtype:
            rate.addmm_(H.T, r, alpha=k)  # a small step multiplies it
        else:
            centre = r.mean(0)
            rate.add_(H.T.to(coarse) @ (r - centre).to(coarse), alpha=k).addr_(H.sum(0), centre, alpha=k)
        mixed.add(P.T, r)
    state, row, gap = (torch.cat(each) for each in zip(*found, strict=True))
    support = positive.long().index_add_(0, state, -(gap > 0).long())
    return Tangent(
        tau, total, slope, curve, power, mixed.total, rate, support, torch.stack([state, row]), gap, window, top, k
    )


def _beside(S: Tensor, group: int, window: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The scores in a window around zero, which few groups have: only those are looked into.

    Args:
        S: scores less τ [m, b].
        group: memories in a group; the last may be smaller.
        window: how far from zero [b].
        most: scores that may be looked into at once.

    Returns:
        States, memories, and their scores [e]; not all of them where they are more.
    """
    nearest = S.new_empty(-(-len(S) // group), S.shape[1])
    maxima(S.abs().neg_(), group, nearest)
    close, found, count = (nearest >= -window).nonzero(as_tuple=True), list[tuple[Tensor, Tensor, Tensor]](), 0
    for which, state in zip(*(torch.split(each, max(1, most // group)) for each in close), strict=True):
        row = (which[:, None] * group + torch.arange(group, device=S.device)).clamp_max_(len(S) - 1)  # [n, group]
        gap = S[row, state[:, None]]
        inside = gap.abs() <= window[state, None]
        inside[:, 1:] &= row[:, 1:] > row[:, :-1]  # the last of a short group only once
        some, place = inside.nonzero(as_tuple=True)
        found.append((state[some], row[some, place], gap[some, place]))
        count += len(some)
        if count > most:
            break
    state, row, gap = (torch.cat(each) for each in zip(*found, strict=True))
    return state, row, gap
