"""Masks as `torch.nn.MultiheadAttention` has them."""

import pytest
import torch
from torch import Tensor

from hopmem.layers.masks import mask_of
from tests.refusal import raises_refusal

B, H, L, S = 2, 3, 4, 5


def test_masks_of_both_kinds_say_the_same_together():
    padding, seen = torch.rand(B, S) < 0.3, torch.rand(B * H, L, S) < 0.3
    as_numbers = [torch.zeros(m.shape).masked_fill(m, -torch.inf) for m in (padding, seen)]
    like, shape = torch.zeros(1), (B, H, L, S)
    booleans = mask_of(padding, seen, shape, like, is_causal=False)
    expected = padding[:, None, None, :] | seen.view(B, H, L, S)
    assert torch.equal(booleans, ~expected)
    for first in (padding, as_numbers[0]):
        numbers = mask_of(first, as_numbers[1], shape, like, is_causal=False)
        assert torch.equal(numbers == 0, ~expected)
        assert torch.equal(numbers == -torch.inf, expected)
    assert mask_of(None, None, shape, like, is_causal=False) is None
    assert torch.equal(mask_of(None, None, shape, like, is_causal=True), torch.ones(L, S, dtype=torch.bool).tril())


def test_a_mask_of_another_shape_is_refused():
    with raises_refusal(4, "key_padding_mask", "[2, 5]", "[2, 4]"):
        mask_of(torch.zeros(B, L), None, (B, H, L, S), torch.zeros(1), is_causal=False)
    with raises_refusal(4, "attn_mask", "[4, 5] or [6, 4, 5]", "[5, 5]"):
        mask_of(None, torch.zeros(S, S), (B, H, L, S), torch.zeros(1), is_causal=False)


@pytest.mark.parametrize("name", ["key_padding_mask", "attn_mask"])
def test_a_mask_of_integers_is_refused_as_it_could_mean_either(name: str):
    masks: dict[str, Tensor] = {"key_padding_mask": torch.zeros(B, S).long(), "attn_mask": torch.zeros(L, S).byte()}
    given = [masks[each] if each == name else None for each in masks]
    with raises_refusal(4, name, "booleans", "floats"):
        mask_of(*given, (B, H, L, S), torch.zeros(1), is_causal=False)
