"""`Hopfield` against torch's own attention, the equations, and what a layer must stand in a network."""

import copy
import math
import warnings
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.testing import assert_close

from hopmem.layers import Hopfield
from hopmem.model.attention import features
from tests import reference
from tests.model import randn
from tests.refusal import raises_refusal

SIZES = [(16, 2, None, None), (12, 3, 5, 7), (8, 1, None, 3), (6, 6, 4, None)]
B, L, S = 3, 4, 6


def inputs(layer: nn.MultiheadAttention | Hopfield) -> tuple[Tensor, Tensor, Tensor]:
    return randn(B, L, layer.embed_dim), randn(B, S, layer.kdim, seed=1), randn(B, S, layer.vdim, seed=2)


def attention(embed_dim: int, num_heads: int, **options: int | bool | None) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return layer


def masks(H: int) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    padding = torch.arange(S) >= torch.tensor([6, 3, 1])[:, None]
    seen = torch.rand(L, S, generator=draw) < 0.4
    seen[:, 0] = False
    numbers = torch.randn(B * H, L, S, generator=draw)
    none = torch.zeros(B, S).masked_fill(padding, -torch.inf)
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "attention": {"attn_mask": seen},
        "both": {"key_padding_mask": padding, "attn_mask": seen},
        "numbers": {"attn_mask": numbers},
        "numbers and padding": {"attn_mask": numbers, "key_padding_mask": none},
    }


@pytest.mark.grid(5)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("mask", masks(1))
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_copied_from_attention_it_answers_alike(sizes, bias, mask, need_weights):
    embed_dim, H, kdim, vdim = sizes
    theirs = attention(embed_dim, H, kdim=kdim, vdim=vdim, bias=bias)
    ours = Hopfield.from_attention(theirs)
    given = masks(H)[mask]
    (expected, P), (answers, found) = (
        layer(*inputs(theirs), need_weights=need_weights, **given) for layer in (theirs, ours)
    )
    assert_close(answers, expected, atol=1e-6, rtol=1e-6)
    assert (found is None) == (P is None)
    if found is not None:
        assert_close(found, P, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("embed_dim", [8, 64])
def test_gradients_are_those_of_attention(embed_dim):
    theirs = attention(embed_dim, 4)
    ours = Hopfield.from_attention(theirs)
    x = randn(B, L, embed_dim)
    for layer in (theirs, ours):
        layer(x, x, x, need_weights=False)[0].square().sum().backward()
    mine = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        assert_close(mine[name].grad, parameter.grad, atol=1e-6 * float(parameter.grad.abs().max()), rtol=1e-4)


def test_alone_it_attends_to_itself_with_or_without_a_batch():
    theirs = attention(8, 2)
    ours = Hopfield.from_attention(theirs)
    x = randn(L, 8)
    expected, P = theirs(x, x, x)
    for found in (ours(x, need_weights=True), ours(x, x, need_weights=True), ours(x, x, x, need_weights=True)):
        assert_close(found, (expected, P), atol=1e-6, rtol=1e-6)
    batch, weights = ours(x[None], need_weights=True, average_attn_weights=False)
    assert_close(batch[0], expected, atol=1e-6, rtol=1e-6)
    assert weights.shape == (1, 2, L, L)


def test_a_copy_keeps_type_mode_and_dropout_and_takes_other_options():
    theirs = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True).double().eval()
    ours = Hopfield.from_attention(theirs, alpha=1.5, steps=3)
    assert (ours.dropout, ours.alpha, ours.steps, ours.training) == (0.3, 1.5, 3, False)
    assert ours.out_proj.weight.dtype == torch.float64


@pytest.mark.parametrize("option", ["kdim", "vdim", "bias"])
def test_what_the_copied_projections_settle_is_no_option(option):
    with raises_refusal(2, option, "copied"):
        Hopfield.from_attention(attention(8, 2), **{option: 5})


def test_what_is_frozen_stays_frozen():
    theirs = attention(8, 2)
    theirs.in_proj_weight.requires_grad_(False)
    frozen = {name for name, p in Hopfield.from_attention(theirs).named_parameters() if not p.requires_grad}
    assert frozen == {"in_proj_weight"}


@pytest.mark.parametrize("option", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_keys_of_its_own_is_refused(option):
    with raises_refusal(2, "attention without keys of its own"):
        Hopfield.from_attention(nn.MultiheadAttention(8, 2, **option))


@pytest.mark.parametrize("feature_dim", [None, 3, 8, 11])
@pytest.mark.parametrize(("alpha", "steps"), [(1.0, 1), (1.0, 3), (1.5, 1), (2.0, 2), (1.2, 4)])
def test_agrees_with_the_equation(feature_dim, alpha, steps):
    layer = Hopfield(16, 2, feature_dim=feature_dim, alpha=alpha, beta=1.7, steps=steps, dtype=torch.float64)
    query, key, value = (U.double() for U in inputs(layer))
    output, P = layer(query, key, value, need_weights=True, average_attn_weights=False)
    assert_close(layer(query, key, value)[0], output)
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    projected = [U @ W.T + b for U, W, b in zip((query, key, value), weights, biases, strict=True)]
    for b in range(B):
        mixed = []
        for h in range(2):
            Q, K, V = (U[b, :, 8 * h : 8 * h + 8].detach().numpy() for U in projected)
            W = None if layer.feature_map is None else layer.feature_map[h].detach().numpy()
            answers, p = reference.attend(Q, K, V, W, alpha, 1.7, steps)
            mixed.append(torch.from_numpy(answers))
            assert_close(P[b, h].detach().numpy(), p, atol=1e-9, rtol=1e-8)
        assert_close(output[b], layer.out_proj(torch.cat(mixed, 1)), atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("feature_dim", [None, 8, 16, 64])
def test_unless_told_scores_of_random_heads_spread_by_one(feature_dim):
    layer = Hopfield(64, 4, feature_dim=feature_dim)
    Q, K = (randn(4, 300, 16, seed=seed) for seed in (0, 1))  # what the heads see
    Y, Z = (U if layer.feature_map is None else features(U, layer.feature_map) for U in (Q, K))
    assert abs(float((layer.beta * Y @ Z.mT).detach().std()) - 1) < 0.05


def test_a_map_begins_as_an_isometry():
    layer = Hopfield(16, 2, feature_dim=12)
    plain = Hopfield(16, 2)
    plain.load_state_dict(layer.state_dict(), strict=False)
    keys = randn(B, S, 16)
    Z, K = layer.features(keys), nn.functional.normalize(plain.features(keys), dim=-1)
    assert Z.shape == (B, 2, S, 12)
    assert_close(Z @ Z.mT, K @ K.mT)
    for W in layer.feature_map:
        assert_close(W.T @ W, torch.eye(8), atol=1e-5, rtol=0)
    assert list(layer.feature_map_parameters()) == [layer.feature_map]
    assert not list(Hopfield(16).feature_map_parameters())


def test_more_steps_end_nearer_to_a_fixed_point():
    torch.manual_seed(0)
    query, key = randn(B, L, 16), randn(B, S, 16, seed=1)
    layer = Hopfield(16, 2, feature_dim=8, beta=20.0)
    answers = []
    for steps in (1, 2, 8, 16, 17):
        layer.steps = steps
        answers.append(layer(query, key)[0])
    moved = [float((after - before).detach().norm()) for before, after in pairwise(answers)]
    assert moved[-1] < 1e-3 * moved[0]


@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
@pytest.mark.parametrize("feature_dim", [None, 5])
def test_every_derivative_agrees_with_differences(alpha, feature_dim):
    torch.manual_seed(0)
    layer = Hopfield(4, 2, feature_dim=feature_dim, alpha=alpha, steps=2, learn_beta=True, dtype=torch.float64)
    layer = layer.train()
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in layer.named_parameters()), strict=True)
    x = randn(2, 3, 4).double().requires_grad_()
    assert gradcheck(lambda x, *p: functional_call(layer, dict(zip(names, p, strict=True)), (x,))[0], (x, *values))


def test_alpha_and_beta_of_each_head_are_fixed_or_learned():
    fixed = Hopfield(16, 2, alpha=[1.0, 2.0], beta=torch.tensor([0.5, 3.0]))
    assert fixed.alpha.flatten().tolist() == [1.0, 2.0]
    assert fixed.beta.flatten().tolist() == [0.5, 3.0]
    learned = Hopfield(16, 2, alpha=1.5, learn_alpha=True, learn_beta=True)
    x = randn(B, L, 16)
    optimizer = torch.optim.SGD([learned.learned_excess, learned.learned_log_beta], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        learned(x)[0].square().sum().backward()
        optimizer.step()
    assert (learned.alpha != 1.5).all()
    assert (learned.beta != 1 / math.sqrt(8)).all()
    assert (learned.alpha[0] != learned.alpha[1]).all()


def sharpness(layer: Hopfield, x: Tensor) -> Tensor:
    return layer(x, need_weights=True, average_attn_weights=False)[1].square().sum(-1).mean()


def test_an_alpha_that_a_step_takes_below_one_is_one_and_comes_back():
    layer, x = Hopfield(8, learn_alpha=True), randn(1, 3, 8)
    expected = layer(x)[0]
    with torch.no_grad():
        layer.learned_excess -= 0.1
    assert_close(layer(x)[0], expected)
    sharpness(layer, x).backward()  # the loss of one who wants it dense: not further down
    assert layer.learned_excess.grad == 0
    (-sharpness(layer, x)).backward()
    assert layer.learned_excess.grad < 0


def test_an_alpha_that_wants_to_be_less_than_one_does_not_run_away():
    layer, x = Hopfield(16, 4, alpha=1.2, learn_alpha=True), randn(2, 5, 16)
    optimizer = torch.optim.Adam([layer.learned_excess], 1e-2)
    for step in range(200):
        optimizer.zero_grad()
        loss = sharpness(layer, x) * (1 if step < 100 else -1)
        loss.backward()
        optimizer.step()
        if step == 99:
            assert (layer.alpha == 1).all()
            assert layer.learned_excess.min() > -0.2
    assert (layer.alpha > 1.2).all()


def test_weight_decay_leads_to_softmax():
    layer = Hopfield(8, 2, alpha=3.0, learn_alpha=True)
    layer(randn(1, 3, 8))[0].sum().mul(0).backward()
    optimizer = torch.optim.AdamW([layer.learned_excess], 0.1, weight_decay=1.0)
    for _ in range(100):
        optimizer.step()
    assert_close(layer.alpha.flatten(), torch.ones(2), atol=1e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler itself does it
@pytest.mark.slow
def test_learned_alphas_compile_where_sizes_are_symbols():
    layer, x = Hopfield(16, 4, alpha=1.5, learn_alpha=True), randn(2, 4, 16)
    compiled = torch.compile(layer, dynamic=True, backend="aot_eager")
    assert_close(compiled(x)[0], layer(x)[0])
    compiled(randn(2, 7, 16))[0].sum().backward()


def test_shapes_are_known_without_numbers():
    layer = Hopfield(16, 4, alpha=1.5, device="meta")
    assert layer(torch.empty(2, 5, 16, device="meta"))[0].shape == (2, 5, 16)


def test_an_attention_that_is_not_batch_first_is_copied_with_a_warning():
    theirs, x = nn.MultiheadAttention(8, 2).eval(), randn(B, L, 8)
    with pytest.warns(UserWarning, match="takes \\[batch, rows, entries\\]"):
        ours = Hopfield.from_attention(theirs)
    rows_first = x.transpose(0, 1)
    assert_close(ours(x)[0], theirs(rows_first, rows_first, rows_first)[0].transpose(0, 1))


def test_print_says_alpha_and_beta_of_each_head_in_a_line():
    shown = repr(Hopfield(8, 2, alpha=[1.0, 1.5], learn_beta=True))
    assert "alpha=[1, 1.5], beta=[0.5, 0.5] (learned)" in shown


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Hopfield(8, alpha="a"), "alpha"),
        (lambda: Hopfield(8, alpha=[1.0, None]), "alpha"),
        (lambda: Hopfield(8, beta="auto"), "beta"),
        (lambda: Hopfield.from_attention(nn.Linear(3, 3)), "MultiheadAttention, found Linear"),
        (lambda: Hopfield.from_attention(nn.MultiheadAttention(8, 2), num_heads=2), "num_heads"),
    ],
)
def test_what_makes_no_layer_is_said_in_a_line(call, said):
    with raises_refusal(2, said):
        call()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda layer, x: layer(x, x, x, None, False), "attn_mask"),
        (lambda layer, x: layer(x, x, x, False), "key_padding_mask"),
        (lambda layer, x: layer(x.numpy()), "query"),
        (lambda layer, x: layer(x[0, 0]), "query: expected shape [batch, rows, 8]"),
    ],
)
def test_what_fits_no_layer_is_said_in_a_line(call, said):
    with raises_refusal(4, said):
        call(Hopfield(8, 2), randn(2, 3, 8))


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_query_that_sees_nothing_gets_the_bias_and_no_gradient_is_lost(alpha, need_weights, steps):
    layer = Hopfield(8, 2, alpha=alpha, steps=steps)
    nn.init.normal_(layer.out_proj.bias)
    x, padding = randn(2, L, 8).requires_grad_(), torch.tensor([[False] * L, [True] * L])
    output, P = layer(x, key_padding_mask=padding, need_weights=need_weights)
    assert_close(output[1], layer.out_proj.bias.expand(L, -1))
    if P is not None:
        assert (P[1] == 0).all()
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_causal_queries_see_the_past_alone(alpha):
    layer = Hopfield(8, 2, alpha=alpha)
    x = randn(1, 5, 8)
    y = torch.cat([x[:, :3], randn(1, 2, 8, seed=1)], 1)
    assert_close(layer(x, is_causal=True)[0][:, :3], layer(y, is_causal=True)[0][:, :3])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert_close(layer(x, is_causal=True)[0], layer(x, attn_mask=later)[0])


@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("feature_dim", [None, 8])
def test_under_autocast_it_works_in_half_precision(alpha, feature_dim):
    layer = Hopfield(16, 2, alpha=alpha, feature_dim=feature_dim, learn_beta=True)
    x = randn(2, 5, 16).requires_grad_()
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x, attn_mask=torch.zeros(5, 5))[0]
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), expected, atol=0.05, rtol=0.05)
    found.float().square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_it_works_in_its_own_type(dtype, alpha):
    layer = Hopfield(8, 2, feature_dim=4, alpha=alpha, beta=[1.0, 2.0], dtype=dtype)
    output, P = layer(randn(2, 3, 8).to(dtype), need_weights=True)
    assert output.dtype == P.dtype == dtype


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler itself does it
@pytest.mark.no_cover  # a compiler that is watched takes twice as long
@pytest.mark.parametrize("options", [{}, {"alpha": 1.5, "feature_dim": 4, "steps": 2}, {"alpha": [1.0, 2.0]}])
def test_it_compiles_without_a_break(options):
    layer = Hopfield(8, 2, **options)
    x = randn(2, 3, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for each in (layer, compiled):
        layer.zero_grad()
        each(x)[0].square().sum().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
    assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler itself does it
@pytest.mark.no_cover  # a compiler that is watched takes twice as long
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_it_compiles_once_for_all_lengths_and_batches(alpha):
    layer, compiled = Hopfield(8, 2, alpha=alpha, feature_dim=4), []

    def backend(graph, given):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    together = torch.compile(layer, fullgraph=True, backend=backend)
    for B, L in ((2, 3), (3, 5), (4, 7), (5, 4), (6, 9), (7, 6)):
        x = randn(B, L, 8)
        assert_close(together(x)[0], layer(x)[0])
    assert len(compiled) <= 3  # for the first sizes, and for any


def test_it_is_exported_for_any_length_and_batch():
    layer = Hopfield(8, 2, alpha=1.5, feature_dim=4).eval()
    sizes = {0: torch.export.Dim("B", min=2, max=64), 1: torch.export.Dim("L", min=2, max=64)}
    exported = torch.export.export(layer, (randn(2, 5, 8),), dynamic_shapes=(sizes,)).module()
    x = randn(3, 7, 8)
    assert_close(exported(x)[0], layer(x)[0])


@pytest.mark.slow  # it calls a C++ compiler
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the compiler
def test_it_compiles_to_code_of_the_machine():
    layer = Hopfield(8, 2, alpha=1.5, feature_dim=4, steps=2)
    x = randn(2, 3, 8)
    assert_close(torch.compile(layer, fullgraph=True)(x)[0], layer(x)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_an_ensemble_and_gradients_of_each_sample_come_by_vmap(alpha):
    layers = [Hopfield(8, 2, alpha=alpha, feature_dim=4) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    x = randn(2, 5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap tells that the fused attention has no rule of its own
        together = vmap(lambda p, b: functional_call(layers[0], (p, b), (x,))[0])(parameters, buffers)
        of_samples = vmap(grad(lambda one: layers[0](one[None])[0].square().sum()))(x)
    for layer, found in zip(layers, together, strict=True):
        assert_close(found, layer(x)[0], atol=1e-5, rtol=1e-5)
    for one, found in zip(x, of_samples, strict=True):
        leaf = one.clone().requires_grad_()
        layers[0](leaf[None])[0].square().sum().backward()
        assert_close(found, leaf.grad, atol=1e-5, rtol=1e-5)


def test_in_the_encoder_of_torch_it_takes_the_place_of_attention():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    swapped = copy.deepcopy(encoder)
    for each in swapped.layers:
        each.self_attn = Hopfield.from_attention(each.self_attn)
    x, padding = randn(B, L, 16), torch.arange(L) >= torch.tensor([4, 2, 3])[:, None]
    for mode in (True, False):
        encoder.train(mode)
        swapped.train(mode)
        with torch.set_grad_enabled(mode):
            expected, found = (net(x, src_key_padding_mask=padding) for net in (encoder, swapped))
        assert_close(found[~padding], expected[~padding], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype:UserWarning")
def test_nested_tensors_are_refused_with_what_to_do():
    layer, nested = Hopfield(8, 2), torch.nested.nested_tensor([randn(3, 8), randn(2, 8)])
    with raises_refusal(4, "query", "padded", "enable_nested_tensor=False"):
        layer(nested)


def test_in_the_encoder_alpha_counts_when_it_is_evaluated_too():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    block.self_attn = Hopfield.from_attention(block.self_attn, alpha=2.0, beta=5.0)
    x = randn(B, L, 16)
    trained = block(x)
    with torch.no_grad():
        assert_close(block.eval()(x), trained)


def test_state_comes_back_from_a_file_and_loads_from_attention(tmp_path):
    layer = Hopfield(8, 2, feature_dim=4, alpha=1.5, learn_alpha=True, learn_beta=True)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = Hopfield(8, 2, feature_dim=4, alpha=1.2, learn_alpha=True, learn_beta=True)
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    x = randn(2, 3, 8)
    assert_close(other(x)[0], layer(x)[0])
    plain = Hopfield(8, 2)
    plain.load_state_dict(attention(8, 2).state_dict())


def test_it_is_made_without_memory_and_filled_later():
    with torch.device("meta"):
        layer = Hopfield(8, 2, feature_dim=4, alpha=[1.0, 1.5], learn_alpha=True, learn_beta=True)
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.alpha.flatten().tolist() == [1.0, 1.5]
    assert_close(layer.beta.flatten(), torch.full((2,), 2.0))
    assert layer(randn(2, 3, 8))[0].isfinite().all()


def test_a_map_changes_nothing_of_what_is_drawn_beside_and_after_it():
    drawn = []
    for feature_dim in (None, 5):
        torch.manual_seed(0)
        layer = Hopfield(8, 2, feature_dim=feature_dim)
        drawn.append([layer.in_proj_weight.detach(), layer.out_proj.weight.detach(), torch.rand(3)])
    assert_close(*drawn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("alpha", [1.0, 1.5])
@pytest.mark.parametrize("added", [True, False])
def test_a_zero_row_has_no_direction_and_no_gradient(added, alpha, dtype):
    layer = Hopfield(8, 2, feature_dim=4, alpha=alpha, steps=2, dtype=dtype)  # the biases are zero
    x = randn(2, 4, 8).to(dtype)
    x[:, 3] = 0
    padding = torch.tensor([[False, False, False, True], [True] * 4])
    mask = torch.zeros(2, 4, dtype=dtype).masked_fill(padding, -torch.inf) if added else padding
    output = layer(x, key_padding_mask=mask)[0]
    assert output.isfinite().all()
    (output.float().square().mean()).backward()
    assert layer.in_proj_bias.grad.abs().max() < 10


def test_it_says_what_it_is():
    said = repr(Hopfield(16, 2, feature_dim=8, alpha=1.5, learn_beta=True))
    assert "16, num_heads=2" in said
    assert "alpha=1.5, beta=[2.828, 2.828] (learned)" in said


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"embed_dim": 10, "num_heads": 3}, ["embed_dim", "a multiple of num_heads = 3", "10"]),
        ({"embed_dim": 0}, ["embed_dim"]),
        ({"num_heads": 0}, ["num_heads", "from 1 upward"]),
        ({"kdim": 0}, ["kdim"]),
        ({"feature_dim": 0}, ["feature_dim"]),
        ({"steps": 0}, ["steps"]),
        ({"steps": 1.5}, ["steps", "whole"]),
        ({"dropout": 1.5}, ["dropout", "1.5"]),
        ({"alpha": 0.9}, ["alpha", "from 1 upward", "0.9"]),
        ({"alpha": math.nan}, ["alpha"]),
        ({"alpha": [1.0, 1.5, 2.0], "num_heads": 2}, ["alpha", "2 heads", "3"]),
        ({"beta": -1.0}, ["beta", "from 0 upward"]),
        ({"beta": math.inf}, ["beta"]),
        ({"beta": 0.0, "learn_beta": True}, ["beta", "more than 0"]),
    ],
)
def test_numbers_that_fit_no_layer_are_refused(wrong, told):
    with raises_refusal(2, *told):
        Hopfield(**({"embed_dim": 8} | wrong))


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ([(2, 3, 7)], ["query", "[batch, rows, 8]", "[2, 3, 7]"]),
        ([(2, 3, 8), (3, 4, 8)], ["key", "a batch of 2", "[3, 4, 8]"]),
        ([(2, 3, 8), (2, 4, 8), (2, 5, 8)], ["value", "4", "[2, 5, 8]"]),
        ([(2, 3, 8), (4, 8)], ["key", "[4, 8]"]),
        ([(1, 2, 3, 8)], ["query"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes, told):
    with raises_refusal(4, *told):
        Hopfield(8, 2)(*(torch.zeros(shape) for shape in shapes))
