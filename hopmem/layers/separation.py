"""Stage I in training: how crowded the features of a layer's keys are."""

import math
from typing import Literal

import torch
from torch import Tensor

from hopmem.errors import InvalidDataError, UsageError
from hopmem.layers.hopfield import Hopfield
from hopmem.layers.masks import mask_of
from hopmem.layers.memories import HopfieldLayer
from hopmem.layers.options import expect
from hopmem.layers.pooling import HopfieldPooling

INVERSE_WIDTH, TEMPERATURE = 2.0, 0.1  # t of the average loss and τ of the spherical one, where none is named


def separation_loss(
    layer: Hopfield | HopfieldPooling | HopfieldLayer,
    keys: Tensor | None = None,
    objective: Literal["average", "spherical"] = "average",
    *,
    temperature: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """How crowded the unit features z of the keys are that one query chooses from; Stage I lowers it.

    - average: log mean_{μ≠ν} exp(−t ‖z_μ − z_ν‖²) (U-Hop, Definition 4, arXiv 2404.03827)
    - spherical: τ log Σ_{μ≠ν} exp(⟨z_μ, z_ν⟩/τ), the smooth maximum of the cosines (U-Hop+, arXiv 2410.23126)

    Its gradient reaches all that the features come from. To learn Φ alone, hand `layer.feature_map_parameters()` to an
    optimizer, and detached keys to this.

    Args:
        layer: with a feature map.
        keys: [B, S, kdim]; None: the memories of a `HopfieldLayer`.
        objective: which loss.
        temperature: t of the average loss (2), τ of the spherical (0.1).
        key_padding_mask: [B, S]; True, or −∞, where a key is none.

    Returns:
        The mean over heads and those sets that have two keys or more, a scalar; 0 where there is none.

    Raises:
        UsageError: a layer without a feature map, or without keys; another objective; a temperature that is none.
        InvalidDataError: a mask that does not fit.
    """
    known = isinstance(layer, Hopfield | HopfieldPooling | HopfieldLayer)
    expect(known, "layer", "one of hopmem.layers", type(layer).__name__)
    expect(any(True for _ in layer.feature_map_parameters()), "layer", "a feature map (feature_dim)", "none")
    if keys is None and not isinstance(layer, HopfieldLayer):
        raise UsageError("keys: expected a tensor [B, S, kdim] for a layer without memories, found None")
    expect(objective in {"average", "spherical"}, "objective", "average or spherical", repr(objective))
    expect(temperature is None or temperature > 0, "temperature", "more than 0", temperature)
    keys = keys if keys is None or keys.dim() != 2 else keys[None]
    kdim = layer.kdim if isinstance(layer, Hopfield) else layer.hopfield.kdim
    if keys is not None and (keys.dim() != 3 or keys.shape[2] != kdim):
        raise InvalidDataError("keys", f"shape [B, S, {kdim}]", list(keys.shape))
    Z = layer.features(keys)  # type: ignore[arg-type]  # [B, H, S, D]; None was looked at above
    B, H, S, _ = Z.shape
    seen = mask_of(key_padding_mask, None, (B, H, 1, S), Z, is_causal=False)
    seen = seen if seen is None or seen.dtype == torch.bool else seen > -math.inf
    real = torch.ones(B, S, dtype=torch.bool, device=Z.device) if seen is None else seen[:, 0, 0].expand(B, S)
    pair = (real[:, None, :, None] & real[:, None, None, :]).expand(B, H, S, S)
    pair = pair & ~torch.eye(S, dtype=torch.bool, device=Z.device)
    count = pair.flatten(2).sum(2)  # [B, H]
    lowest = torch.where(pair | (count == 0)[..., None, None], 0, -math.inf)  # where there is no pair, no loss counts
    cosines = (Z @ Z.mT + lowest).flatten(2)  # [B, H, S²]
    if objective == "average":
        t = temperature or INVERSE_WIDTH
        losses = (2 * t * (cosines - 1)).logsumexp(2) - count.clamp_min(1).log()
    else:
        tau = temperature or TEMPERATURE
        losses = tau * (cosines / tau).logsumexp(2)
    sets = count > 0
    return torch.where(sets, losses, 0).sum() / sets.sum().clamp_min(1)
