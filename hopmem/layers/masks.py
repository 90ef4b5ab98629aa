"""What the masks of `torch.nn.MultiheadAttention` say together."""

import math

import torch
from torch import Tensor

from hopmem.errors import InvalidDataError

Shape = tuple[int, int, int, int]  # B, H, L, S


def mask_of(
    padding: Tensor | None, attention: Tensor | None, shape: Shape, like: Tensor, *, is_causal: bool
) -> Tensor | None:
    """Join masks.

    Args:
        padding: [B, S] or [1, S], True where a key is none, or numbers that are added to the scores.
        attention: [L, S] or [B·H, L, S], alike.
        shape: (B, H, L, S).
        like: a tensor on the device and of the type of the scores.
        is_causal: queries see keys up to their own place, where `attention` does not say what they see.

    Returns:
        Booleans, True where a query sees a key, or numbers that are added; broadcasts against [B, H, L, S]. None where
        all see all.

    Raises:
        InvalidDataError: a mask of another shape or type.
    """
    if is_causal and attention is None:
        attention = torch.ones(shape[2:], dtype=torch.bool, device=like.device).triu(1)
    masks = [mask for mask in (_of_keys(padding, shape), _of_queries(attention, shape)) if mask is not None]
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        return ~(masks[0] | masks[-1])
    none = torch.zeros((), dtype=like.dtype, device=like.device)
    added = (none.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.to(like) for mask in masks)
    return sum(added, none)


def _of_keys(mask: Tensor | None, shape: Shape) -> Tensor | None:
    """`key_padding_mask`, looked at. Sizes are compared one by one, as they may be symbols.

    Returns:
        [B or 1, 1, 1, S].

    Raises:
        InvalidDataError: it does not fit.
    """
    if mask is None:
        return None
    B, _, _, S = shape
    if not isinstance(mask, Tensor):
        raise InvalidDataError("key_padding_mask", f"a tensor of shape [{B}, {S}]", type(mask).__name__)
    if mask.dim() != 2 or mask.shape[1] != S or (mask.shape[0] != B and mask.shape[0] != 1):
        raise InvalidDataError("key_padding_mask", f"shape [{B}, {S}]", list(mask.shape))
    return _of_type("key_padding_mask", mask)[:, None, None, :]


def _of_queries(mask: Tensor | None, shape: Shape) -> Tensor | None:
    """`attn_mask`, looked at.

    Returns:
        [L, S] or [B, H, L, S].

    Raises:
        InvalidDataError: it does not fit.
    """
    if mask is None:
        return None
    B, H, L, S = shape
    if not isinstance(mask, Tensor):
        raise InvalidDataError("attn_mask", f"a tensor of shape [{L}, {S}]", type(mask).__name__)
    whole = mask.dim() == 2 or (mask.dim() == 3 and mask.shape[0] == B * H)
    if not whole or mask.shape[-2] != L or mask.shape[-1] != S:
        raise InvalidDataError("attn_mask", f"shape [{L}, {S}] or [{B * H}, {L}, {S}]", list(mask.shape))
    return _of_type("attn_mask", mask.view(B, H, L, S) if mask.dim() == 3 else mask)


def _of_type(name: str, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise InvalidDataError(name, "booleans, True where nothing is seen, or floats that are added", mask.dtype)
    return mask
