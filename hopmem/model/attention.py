"""The update of a kernelized Hopfield network for many heads at once, differentiable: attention between features.

With states q and stored patterns k as rows, a step in association space and the readout of values v are

    q ← Σ_μ p_μ k_μ    and    Σ_μ p_μ v_μ,    p = α-entmax(β ⟨Φ(k_μ), Φ(q)⟩)

(Ramsauer et al., 2020, arXiv 2008.02217; Φ as in U-Hop, 2024, arXiv 2404.03827). Without a map, Φ is the identity and
one step is the attention of transformers. With one, features are of unit length, for queries and keys alike, so that β
means the same before and after Stage I.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

from hopmem.model.entmax import entmax


@dataclass(frozen=True)
class Heads:
    """How the heads of a layer associate. A tensor has a number for each head, [H, 1, 1]."""

    alpha: float | Tensor
    beta: float | Tensor
    W: Tensor | None = None  # [H, D, d], Φ(u) = W u of each head; None: the identity
    steps: int = 1  # in association space; the last reads the values
    dropout: float = 0.0  # share of the weights that the readout leaves out


def features(U: Tensor, W: Tensor | None) -> Tensor:
    """Φ of the rows of each head.

    Args:
        U: rows [..., H, N, d].
        W: maps [H, D, d]; None is the identity.

    Returns:
        Unit features [..., H, N, D]; the rows themselves where there is no map.
    """
    return U if W is None else unit(U @ W.mT)


def unit(F: Tensor) -> Tensor:
    """Scale each row to unit length; a zero row, which has no direction, stays zero and gets no gradient.

    Args:
        F: rows [..., D].

    Returns:
        Rows of length one (or zero) [..., D], of the type of `F`.
    """
    exact = F if F.dtype == torch.float64 else F.float()  # squares leave half precision
    length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    there = length > torch.finfo(length.dtype).tiny
    return torch.where(there, exact / torch.where(there, length, 1), 0).to(F.dtype)


def attend(
    Q: Tensor, K: Tensor, V: Tensor, heads: Heads, mask: Tensor | None = None, *, need_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Retrieve what each query is associated with.

    Args:
        Q: queries [B, H, L, d].
        K: stored patterns [B, H, S, d].
        V: what is read out of them [B, H, S, e].
        heads: how.
        mask: broadcasts against [B, H, L, S]: False where a query sees nothing of a pattern, or numbers that are
            added to the scores.
        need_weights: return them too.

    Returns:
        Readouts [B, H, L, e], zero where a query sees no pattern, and weights [B, H, L, S], after dropout, or None.
    """
    Z = features(K, heads.W)
    for _ in range(heads.steps - 1):
        Q = _mixed(features(Q, heads.W), Z, K, heads, mask, 0.0)
    Q = features(Q, heads.W)
    if not need_weights:
        return _mixed(Q, Z, V, heads, mask, heads.dropout), None
    P = dropout(associate(Q, Z, heads, mask), heads.dropout)
    return P @ V.to(P), P


def associate(Q: Tensor, Z: Tensor, heads: Heads, mask: Tensor | None) -> Tensor:
    """The weights p = α-entmax(β ⟨z_μ, q⟩).

    Returns:
        Weights [B, H, L, S]; zero where a query sees no pattern.
    """
    S = _sharpened(Q, heads.beta) @ Z.mT  # [B, H, L, S]
    if mask is not None:
        S = S.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else S + mask
    return entmax(S, heads.alpha)


def _mixed(Q: Tensor, Z: Tensor, V: Tensor, heads: Heads, mask: Tensor | None, left_out: float) -> Tensor:
    """Σ_μ p_μ v_μ; softmax runs on torch's fused attention, which holds no weights.

    Returns:
        [B, H, L, e].
    """
    if isinstance(heads.alpha, Tensor) or heads.alpha != 1:
        P = associate(Q, Z, heads, mask)
        return dropout(P, left_out) @ V.to(P)
    scale = 1.0 if isinstance(heads.beta, Tensor) else heads.beta
    Q = _sharpened(Q, heads.beta) if isinstance(heads.beta, Tensor) else Q
    Z, V = (U.expand(Q.shape[0], -1, -1, -1) for U in (Z, V))  # a batch of one serves all
    return scaled_dot_product_attention(Q, Z, V, attn_mask=mask, dropout_p=left_out, scale=scale)


def _sharpened(Q: Tensor, beta: float | Tensor) -> Tensor:
    """β q.

    Returns:
        [B, H, L, D], of the type of `Q`.
    """
    return Q * (beta.to(Q) if isinstance(beta, Tensor) else beta)
