"""The slow, literal equations in NumPy float64, one loop for each sum or maximum over the memories.

The letters are those of `hopmem/model/__init__.py`. Nothing here is shared with the model: what it gets by Newton's
method in the logarithm of the largest weight is a bisection on the threshold here, and its blocks are a loop.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def real(a: ArrayLike) -> Array:
    return np.asarray(a, dtype=np.float64)


def entmax(s: ArrayLike, alpha: float) -> Array:
    """α-entmax of one row: p_i = [(α−1) s_i − τ]₊^{1/(α−1)} with τ such that they sum to one."""
    s = real(s) - real(s).max()
    if alpha == 1:
        return np.exp(s) / np.exp(s).sum()

    def weights(tau: float) -> Array:
        return np.maximum((alpha - 1) * s - tau, 0) ** (1 / (alpha - 1))

    low, high = -1.0, 0.0  # at −1 the largest entry alone has weight one; at 0 no entry has any
    while low < (tau := (low + high) / 2) < high:
        low, high = (tau, high) if weights(tau).sum() >= 1 else (low, tau)
    return weights(low)


def entropy(p: ArrayLike, alpha: float) -> float:
    """H_α(p), Tsallis: Σ (p − p^α) / (α(α−1)); at α = 1 Shannon's −Σ p ln p."""
    p = real(p)[real(p) > 0]
    return float(-(p * np.log(p)).sum() if alpha == 1 else (p - p**alpha).sum() / (alpha * (alpha - 1)))


def conjugate(s: ArrayLike, alpha: float) -> float:
    """Ψ*_α(s) = ⟨p, s⟩ + H_α(p) at the maximiser p."""
    p = entmax(s, alpha)
    return float(p @ real(s)) + entropy(p, alpha)


def features(U: ArrayLike, W: ArrayLike | None = None, b: ArrayLike | None = None) -> Array:
    """Φ(u)/‖Φ(u)‖ row by row; a zero row stays zero."""
    rows = []
    for u in real(U):
        phi = u if W is None else real(W) @ u + (0 if b is None else real(b))
        length = math.sqrt(sum(float(entry) ** 2 for entry in phi))
        rows.append(phi / length if length else phi)
    return np.stack(rows)


def weights(y: ArrayLike, Z: ArrayLike, alpha: float, beta: float) -> Array:
    """p = α-entmax(β Z y)."""
    return entmax([beta * float(z @ real(y)) for z in real(Z)], alpha)


def mix(p: ArrayLike, rows: ArrayLike) -> Array:
    """Σ_μ p_μ r_μ."""
    total = np.zeros(real(rows).shape[1])
    for weight, row in zip(real(p), real(rows), strict=True):
        total += weight * row
    return total


def retrieve(
    y: ArrayLike, Z: ArrayLike, readout: ArrayLike, alpha: float, beta: float, steps: int
) -> tuple[Array, Array]:
    """`steps` updates y ↦ p Z from a state y; the last weights p and their readout p Ξ."""
    for _ in range(steps):
        p = weights(y, Z, alpha, beta)
        y = mix(p, Z)
    return p, mix(p, readout)


def energy(y: ArrayLike, Z: ArrayLike, alpha: float, beta: float) -> float:
    """E(y) = ½‖y‖² − Ψ*_α(β Z y)/β."""
    return float(real(y) @ real(y)) / 2 - conjugate(beta * (real(Z) @ real(y)), alpha) / beta


def separation(Z: ArrayLike) -> Array:
    """Δ_μ = K(ξ_μ, ξ_μ) − max_{ν≠μ} K(ξ_ν, ξ_μ)."""
    Z = real(Z)
    return real(
        [z @ z - max((v @ z for nu, v in enumerate(Z) if nu != mu), default=-math.inf) for mu, z in enumerate(Z)]
    )


def pair_cosines(Z: ArrayLike) -> dict[tuple[int, int], float]:
    """⟨z_μ, z_ν⟩/(‖z_μ‖‖z_ν‖) of each pair μ < ν; 0 where one is zero."""
    Z, found = real(Z), {}
    for mu in range(len(Z)):
        for nu in range(mu + 1, len(Z)):
            norms = np.linalg.norm(Z[mu]) * np.linalg.norm(Z[nu])
            found[mu, nu] = float(Z[mu] @ Z[nu] / norms) if norms else 0.0
    return found


def average_loss(Z: ArrayLike, t: float) -> float:
    """Definition 4: log of the mean of exp(−t‖z_μ − z_ν‖²) over the pairs μ ≠ ν; on unit rows ‖·‖² is 2 − 2 cos."""
    exponents = [-t * (2 - 2 * cosine) for cosine in pair_cosines(Z).values()]
    largest = max(exponents)
    return largest + math.log(sum(math.exp(e - largest) for e in exponents) / len(exponents))


def distance(Z: ArrayLike, mu: int, nu: int) -> float:
    """δ_μν = ‖z_μ − z_ν‖."""
    return float(np.linalg.norm(real(Z)[mu] - real(Z)[nu]))


def lemma1(delta_min: float, radius: float, M: int, beta: float) -> float:
    """Lemma 1 of U-Hop: 2(M−1) e^{−β(Δ_min − 2R_Φ)}."""
    return 2 * (M - 1) * math.exp(-beta * (delta_min - 2 * radius))


def sharp_error(Z: ArrayLike, mu: int, beta: float, r: float) -> float:
    """Σ_ν δ_μν e^{−β δ_μν (δ_μν/2 − r)} for one memory."""
    deltas = [distance(Z, mu, nu) for nu in range(len(real(Z)))]
    return sum(delta * math.exp(-beta * delta * (delta / 2 - r)) for delta in deltas)


def guaranteed_radius(Z: ArrayLike, beta: float, error: float) -> float:
    """The largest r in [0, 2] at which the sharp bound of every memory is within the error; 0 where there is none."""

    def holds(r: float) -> bool:
        return all(sharp_error(Z, mu, beta, r) <= error for mu in range(len(real(Z))))

    low, high = 0.0, 2.0
    if holds(high):
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def cosine_on_known(x: ArrayLike, known: ArrayLike, u: ArrayLike) -> float:
    """The cosine of two vectors over the known entries alone; 0 where one is zero there."""
    pairs = [(a, b) for a, b, seen in zip(real(x), real(u), np.asarray(known, dtype=bool), strict=True) if seen]
    norms = math.sqrt(sum(a * a for a, _ in pairs)) * math.sqrt(sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / norms if norms else 0.0


def attend(
    Q: ArrayLike, K: ArrayLike, V: ArrayLike, W: ArrayLike | None, alpha: float, beta: float, steps: int
) -> tuple[Array, Array]:
    """The answers and weights of one head: steps − 1 updates among the keys, then the readout of the values."""
    Z = real(K) if W is None else features(K, W)
    answers, found = [], []
    for q in real(Q):
        state = q
        for step in range(steps):
            y = state if W is None else features(state[None], W)[0]
            p = weights(y, Z, alpha, beta)
            state = mix(p, V if step == steps - 1 else K)
        answers.append(state)
        found.append(p)
    return np.stack(answers), np.stack(found)
