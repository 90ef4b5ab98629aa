"""The update of many heads against the equations in loops, one head and one query at a time."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.attention import Heads, attend, features
from tests import reference
from tests.model import randn

B, H, L, S, d, e, D = 2, 3, 4, 5, 6, 7, 8


def rows() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(randn(B, H, n, width, seed=n).double() for n, width in ((L, d), (S, d), (S, e)))


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("alpha", [1.0, 1.3, 1.5, 2.0])
@pytest.mark.parametrize("mapped", [False, True])
def test_agrees_with_the_equation_head_by_head(mapped, alpha, steps):
    Q, K, V = rows()
    W = randn(H, D, d).double() if mapped else None
    betas = torch.tensor([0.5, 1.0, 3.0]).double()
    heads = Heads(alpha, betas[:, None, None], W, steps)
    answers, P = attend(Q, K, V, heads, need_weights=True)
    fused, none = attend(Q, K, V, heads)
    assert none is None
    assert_close(fused, answers, atol=1e-9, rtol=1e-9)
    for b in range(B):
        for h in range(H):
            of_head = None if W is None else W[h].numpy()
            expected = reference.attend(Q[b, h], K[b, h], V[b, h], of_head, alpha, float(betas[h]), steps)
            assert_close(answers[b, h].numpy(), expected[0], atol=1e-9, rtol=1e-8)
            assert_close(P[b, h].numpy(), expected[1], atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_a_masked_key_is_one_that_is_not_there(alpha):
    Q, K, V = rows()
    mask = torch.arange(S)[None] < 3
    heads = Heads(alpha, 1.0, randn(H, D, d).double(), steps=3)
    expected, _ = attend(Q, K[:, :, :3], V[:, :, :3], heads)
    added = torch.zeros(1, S).double().masked_fill(~mask, -torch.inf)
    for each in (mask, added):
        assert_close(attend(Q, K, V, heads, each)[0], expected)
        assert_close(attend(Q, K, V, heads, each, need_weights=True)[0], expected)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_a_batch_of_one_serves_all_queries(alpha):
    Q, K, V = rows()
    heads = Heads(alpha, 1.0)
    found, _ = attend(Q, K[:1], V[:1], heads)
    assert_close(found, attend(Q, K[:1].expand_as(K), V[:1].expand_as(V), heads)[0])


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_leaves_out_a_share_of_the_weights_and_keeps_the_mean(alpha, need_weights):
    torch.manual_seed(0)
    Q, K, V = (torch.ones(1, 1, n, 1) for n in (20_000, 4, 4))
    answers, _ = attend(Q, K, V, Heads(alpha, 1.0, dropout=0.25), need_weights=need_weights)
    assert abs(float(answers.mean()) - 1) < 0.01
    assert set((answers * 3).round().flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}  # 4 weights of ¼ over ¾


def test_features_have_length_one_and_none_for_zero():
    Z = features(torch.cat([randn(H, S, d), torch.zeros(H, 1, d)], 1), randn(H, D, d))
    assert_close(Z.norm(dim=-1), torch.ones(H, S + 1) - torch.eye(S + 1)[S])
    U = randn(H, S, d)
    assert features(U, None) is U
