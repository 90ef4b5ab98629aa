"""`HopfieldPooling` and `HopfieldLayer`: a `Hopfield` whose queries, or whose keys, are its own."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hopmem.layers import Hopfield, HopfieldLayer, HopfieldPooling
from tests.model import randn
from tests.refusal import raises_refusal

B, L, S, E = 3, 4, 6, 8


@pytest.mark.parametrize("options", [{}, {"alpha": 2.0, "feature_dim": 5}, {"steps": 3, "kdim": 7}])
def test_pooling_is_retrieval_by_learned_queries(options):
    pool = HopfieldPooling(E, 2, num_queries=3, **options)
    sets = randn(B, S, pool.hopfield.kdim)
    output, P = pool(sets, need_weights=True)
    expected = pool.hopfield(pool.queries.expand(B, -1, -1), sets, need_weights=True)
    assert output.shape == (B, 3, E)
    assert_close((output, P), expected)
    one, weights = pool(sets[0], need_weights=True)
    assert_close((one, weights), (output[0], P[0]))


def test_pooling_does_not_see_the_order_nor_the_padding_of_a_set():
    pool = HopfieldPooling(E, 2, alpha=1.5, feature_dim=4)
    sets, order = randn(B, S, E), torch.randperm(S, generator=torch.Generator().manual_seed(0))
    assert_close(pool(sets)[0], pool(sets[:, order])[0])
    padding = torch.arange(S + 2).expand(B, -1) >= S
    padded = torch.cat([sets, randn(B, 2, E, seed=1)], 1)
    assert_close(pool(padded, key_padding_mask=padding)[0], pool(sets)[0])


def test_pooling_begins_near_the_mean_of_the_set_and_learns_to_look():
    torch.manual_seed(0)
    pool = HopfieldPooling(E, alpha=1.5)
    sets = randn(64, S, E)
    _, P = pool(sets, need_weights=True)
    assert_close(P, torch.full_like(P, 1 / S), atol=0.02, rtol=0)
    wanted = sets[torch.arange(64), sets[:, :, 0].argmax(1)]
    optimizer = torch.optim.Adam(pool.parameters(), 0.02)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (pool(sets)[0][:, 0] - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 3


def test_values_may_be_others_than_the_keys():
    pool = HopfieldPooling(E, kdim=5, vdim=3)
    assert pool(randn(B, S, 5), randn(B, S, 3))[0].shape == (B, 1, E)


def test_a_layer_of_memories_is_retrieval_from_them_and_they_are_learned():
    layer = HopfieldLayer(E, 5, 2, alpha=1.5)
    query = randn(B, L, E)
    output, P = layer(query, need_weights=True)
    expected = layer.hopfield(query, layer.memories.expand(B, -1, -1), need_weights=True)
    assert_close((output, P), expected)
    assert P.shape == (B, L, 5)
    assert_close(layer(query[0])[0], output[0])
    output.square().sum().backward()
    assert layer.memories.grad.abs().sum() > 0


def test_memories_that_are_given_stay_and_are_saved():
    Xi, values = randn(5, 7), randn(5, 2, seed=1)
    layer = HopfieldLayer(E, 5, 2, memories=Xi, values=values)
    assert (layer.hopfield.kdim, layer.hopfield.vdim) == (7, 2)
    assert all(parameter is not layer.memories for parameter in layer.parameters())
    other = HopfieldLayer(E, 5, 2, memories=torch.zeros(5, 7), values=torch.zeros(5, 2))
    other.load_state_dict(layer.state_dict())
    query = randn(B, L, E)
    assert_close(other(query)[0], layer(query)[0])
    expected = layer.hopfield(query, Xi.expand(B, -1, -1), values.expand(B, -1, -1))[0]
    assert_close(layer(query)[0], expected)


def test_memories_that_are_a_parameter_are_learned_from_there():
    layer = HopfieldLayer(E, 5, memories=nn.Parameter(randn(5, E)))
    assert any(parameter is layer.memories for parameter in layer.parameters())


def test_a_memory_looked_up_with_itself_is_found():
    Xi = 3 * randn(20, E)
    layer = HopfieldLayer(E, 20, memories=Xi, feature_dim=E, beta=1000.0, alpha=2.0)
    with torch.no_grad():
        weight = layer.hopfield.in_proj_weight
        weight.copy_(torch.eye(E).repeat(3, 1))
        layer.hopfield.out_proj.weight.copy_(torch.eye(E))
    output, P = layer(Xi[None], need_weights=True)
    assert_close(P[0], torch.eye(20))
    assert_close(output[0], Xi)


def test_maps_and_features_are_those_of_the_layer_within():
    for layer in (HopfieldPooling(E, 2, feature_dim=4), HopfieldLayer(E, 5, 2, feature_dim=4)):
        assert list(layer.feature_map_parameters()) == [layer.hopfield.feature_map]
        keys = randn(B, S, E)
        assert torch.equal(layer.features(keys), layer.hopfield.features(keys))
    assert torch.equal(layer.features(), layer.hopfield.features(layer.memories[None]))


def test_hooks_of_the_layer_within_are_called_once():
    for layer, given in ((HopfieldPooling(E), randn(S, E)), (HopfieldLayer(E, 5), randn(L, E))):
        called: list[nn.Module] = []
        layer.hopfield.register_forward_pre_hook(lambda inner, _, called=called: called.append(inner))
        layer(given)
        assert called == [layer.hopfield]
        assert isinstance(called[0], Hopfield)


def test_memories_that_are_given_are_copied_and_take_the_type_of_the_layer():
    Xi = randn(5, E)
    layer = HopfieldLayer(E, 5, memories=Xi, dtype=torch.float64)
    layer.memories.zero_()
    assert Xi.abs().sum() > 0
    assert layer(randn(B, L, E).double())[0].dtype == torch.float64


def test_what_is_learned_is_drawn_anew_and_what_was_given_stays():
    for layer in (HopfieldPooling(E), HopfieldLayer(E, 5), HopfieldLayer(E, 5, memories=randn(5, E))):
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        layer.reset_parameters()
        same = {name for name, value in layer.state_dict().items() if torch.equal(value, before[name])}
        given = {"memories"} if isinstance(layer, HopfieldLayer) and not layer.memories.requires_grad else set()
        assert same == given | {"hopfield.in_proj_bias", "hopfield.out_proj.bias"}


def test_what_fits_no_layer_is_refused():
    with raises_refusal(2, "num_queries", "at least 1"):
        HopfieldPooling(E, num_queries=0)
    with raises_refusal(2, "num_memories", "at least 1"):
        HopfieldLayer(E, 0)
    with raises_refusal(2, "kdim", "8, the entries of what is given", "3"):
        HopfieldLayer(E, 5, memories=torch.zeros(5, E), kdim=3)
    with raises_refusal(4, "memories", "[5, entries]", "[4, 8]"):
        HopfieldLayer(E, 5, memories=torch.zeros(4, E))
    with raises_refusal(4, "values", "[5, entries]", "[5]"):
        HopfieldLayer(E, 5, values=torch.zeros(5))
