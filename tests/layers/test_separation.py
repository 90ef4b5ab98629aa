"""The loss of Stage I in training against its sum over pairs, and what the inner loop brings."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from hopmem.layers import Hopfield, HopfieldLayer, HopfieldPooling, separation_loss
from hopmem.model.separation import average_loss
from tests.model import randn
from tests.refusal import raises_refusal

B, S, E, H = 3, 6, 8, 2


def by_pairs(Z: Tensor, objective: str, temperature: float) -> float:
    """The loss of one set of unit features, pair by pair."""
    total = 0.0
    for a, b in product(range(len(Z)), repeat=2):
        if a != b and objective == "average":
            total += math.exp(-temperature * float((Z[a] - Z[b]).square().sum()))
        elif a != b:
            total += math.exp(float(Z[a] @ Z[b]) / temperature)
    pairs = len(Z) * (len(Z) - 1)
    return math.log(total / pairs) if objective == "average" else temperature * math.log(total)


@pytest.mark.parametrize(("objective", "usual"), [("average", 2.0), ("spherical", 0.1)])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_it_is_the_mean_over_sets_and_heads_of_the_sum_over_pairs(objective, usual, temperature):
    layer = Hopfield(E, H, feature_dim=5)
    keys, sizes = randn(B, S, E), [6, 3, 2]
    padding = torch.arange(S) >= torch.tensor(sizes)[:, None]
    Z = layer.features(keys).detach().double()
    expected = [by_pairs(Z[b, h, :n], objective, temperature or usual) for b, n in enumerate(sizes) for h in range(H)]
    found = separation_loss(layer, keys, objective, temperature=temperature, key_padding_mask=padding)
    assert_close(found.item(), sum(expected) / len(expected), atol=1e-5, rtol=1e-5)


def test_the_average_loss_is_that_of_the_bank():
    layer = Hopfield(E, feature_dim=5)
    keys = randn(1, S, E)
    assert_close(separation_loss(layer, keys, temperature=1.5), average_loss(layer.features(keys)[0, 0], 1.5))


def test_sets_of_fewer_than_two_keys_have_no_pairs():
    layer = Hopfield(E, H, feature_dim=5)
    keys, padding = randn(B, S, E), torch.arange(S) >= torch.tensor([6, 1, 0])[:, None]
    alone = separation_loss(layer, keys[:1])
    assert_close(separation_loss(layer, keys, key_padding_mask=padding), alone)
    nothing = separation_loss(layer, keys[1:], key_padding_mask=padding[1:])
    assert nothing == 0
    nothing.backward()
    assert (layer.feature_map.grad == 0).all()


@pytest.mark.parametrize("objective", ["average", "spherical"])
def test_its_derivative_agrees_with_differences(objective):
    layer = Hopfield(4, H, feature_dim=3, dtype=torch.float64)
    padding = torch.tensor([[False, False, False], [False, False, True], [False, True, True]])
    keys = randn(3, 3, 4).double().requires_grad_()
    assert gradcheck(lambda k: separation_loss(layer, k, objective, key_padding_mask=padding), (keys,))


@pytest.mark.parametrize("objective", ["average", "spherical"])
def test_stage_one_sets_the_keys_apart_and_leaves_the_rest_alone(objective):
    torch.manual_seed(0)
    layer = HopfieldPooling(E, H, feature_dim=4)
    keys = randn(B, S, E) + 2  # crowded around one direction
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizer = torch.optim.Adam(layer.feature_map_parameters(), 0.05)
    crowded = _largest_cosine(layer, keys)
    for _ in range(100):
        optimizer.zero_grad()
        separation_loss(layer, keys, objective).backward()
        optimizer.step()
    assert _largest_cosine(layer, keys) < crowded - 0.05
    changed = [name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["hopfield.feature_map"]


def _largest_cosine(layer: HopfieldPooling, keys: Tensor) -> float:
    """Mean over sets and heads."""
    Z = layer.features(keys).detach()
    return float((Z @ Z.mT - 2 * torch.eye(keys.shape[1])).flatten(2).amax(2).mean())


def test_a_layer_of_memories_needs_no_keys():
    layer = HopfieldLayer(E, 5, feature_dim=4)
    assert_close(separation_loss(layer), separation_loss(layer, layer.memories[None]))


def test_what_has_no_loss_is_refused():
    keys = randn(B, S, E)
    with raises_refusal(2, "layer", "feature map (feature_dim)"):
        separation_loss(Hopfield(E), keys)
    with raises_refusal(2, "keys", "[B, S, kdim]"):
        separation_loss(Hopfield(E, feature_dim=4))
    with raises_refusal(2, "objective", "average or spherical", "mean"):
        separation_loss(Hopfield(E, feature_dim=4), keys, "mean")
    with raises_refusal(2, "temperature", "more than 0"):
        separation_loss(Hopfield(E, feature_dim=4), keys, temperature=0)
