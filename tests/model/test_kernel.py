"""Unit features, the feature map, and patterns that are read in blocks."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hopmem.model.denoise.fisher import Frame, feature_map, lift_of
from hopmem.model.kernel import FeatureMap, Features
from hopmem.model.rows import Patterns, blocks, unit
from tests import reference
from tests.model import randn

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def stored(M: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    return (randn(M, d) * 40 + 128).clamp(0, 255).to(dtype)


def features(M: int, d: int, dtype: torch.dtype, learned: bool) -> Features:
    phi = FeatureMap(randn(6, d, seed=1), randn(6, seed=2)) if learned else FeatureMap()
    return Features(Patterns(stored(M, d, dtype), scale=1 / 255), phi)


@pytest.mark.parametrize("exponent", [-30, -20, -10, 0, 10, 20, 30])
@pytest.mark.parametrize("D", [1, 3, 1000])
def test_unit_rows_have_length_one_and_their_direction_whatever_their_norm(D, exponent):
    U = randn(20, D)
    Z = unit(U * 10.0**exponent)
    assert_close(Z.double().norm(dim=1), torch.ones(20, dtype=torch.float64), atol=1e-6, rtol=0)
    assert_close(Z.double(), torch.from_numpy(reference.features(U)), atol=1e-6, rtol=0)


def test_unit_rows_may_mix_huge_and_tiny_entries():
    assert_close(unit(torch.tensor([[1e30, 1e-30, -1e30]])), torch.tensor([[0.5**0.5, 0.0, -(0.5**0.5)]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_row_stays_zero(dtype):
    Z = unit(torch.stack([torch.zeros(5), torch.ones(5)]).to(dtype))
    assert Z.dtype == dtype
    assert not Z[0].any()
    assert_close(Z[1].norm(), torch.ones((), dtype=dtype))


def test_unit_is_its_own_fixed_point():
    Z = unit(randn(30, 17))
    assert_close(unit(Z), Z, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 5), (6, 3), (7, 3), (100, 1)])
def test_blocks_visit_every_row_once_and_in_order(count, size):
    cut = list(blocks(count, size))
    assert [row for rows in cut for row in range(count)[rows]] == list(range(count))
    assert all(rows.stop - rows.start <= size for rows in cut)


def test_the_identity_map_changes_nothing():
    U = randn(4, 7)
    assert torch.equal(FeatureMap()(U), U)
    assert FeatureMap().centre() is None


def test_the_map_is_affine():
    W, b, U = randn(3, 7), randn(3, seed=1), randn(4, 7, seed=2)
    expected = np.stack([W.double().numpy() @ u + b.double().numpy() for u in U.double().numpy()])
    assert_close(FeatureMap(W, b)(U).double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_a_map_without_offset_has_its_zero_at_the_origin():
    assert FeatureMap(randn(3, 7)).centre() is None


@pytest.mark.parametrize(("D", "d"), [(3, 7), (7, 7), (1, 4)])
def test_the_centre_is_the_shortest_zero_of_the_map(D, d):
    phi = FeatureMap(randn(D, d), randn(D, seed=1))
    centre = phi.centre()
    assert_close(phi(centre[None]), torch.zeros(1, D), atol=1e-4, rtol=0)
    shortest = np.linalg.pinv(phi.W.double().numpy()) @ -phi.b.double().numpy()
    assert_close(centre.double(), torch.from_numpy(shortest), atol=1e-5, rtol=1e-5)


def test_the_centre_of_a_map_of_low_rank_is_still_its_zero():
    W = randn(6, 2) @ randn(2, 9, seed=1)
    r = randn(9, seed=2)
    phi = FeatureMap(W, -(W @ r))
    assert_close(phi(phi.centre()[None]), torch.zeros(1, 6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("known", [[0], [1, 4, 8], list(range(10))])
def test_the_restricted_map_is_the_full_map_where_unknown_entries_equal_the_centre(known, offset):
    phi = FeatureMap(randn(4, 10), randn(4, seed=1) if offset else None)
    centre = phi.centre()
    columns = torch.tensor(known)
    U = randn(5, 10, seed=2)
    filled = torch.zeros(5, 10) if centre is None else centre.repeat(5, 1)
    filled[:, columns] = U[:, columns]
    assert_close(phi.restricted(columns, centre)(U[:, columns]), phi(filled), atol=1e-5, rtol=1e-5)


def test_the_restricted_identity_is_the_identity():
    U = randn(5, 3)
    assert torch.equal(FeatureMap().restricted(torch.tensor([0, 2, 5]), None)(U), U)


@pytest.mark.parametrize("dtype", DTYPES)
def test_patterns_are_float32_in_the_scale_that_was_asked_for(dtype):
    raw = stored(9, 5, dtype)
    block = Patterns(raw, scale=1 / 255)[slice(2, 6)]
    assert block.dtype == torch.float32
    assert_close(block.double(), raw[2:6].double() / 255, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("d", [1, 257, 3072, 70_001])
@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_lengths_of_8_bit_patterns_are_those_that_whole_numbers_give(d, scale):
    U = torch.cat([stored(30, d, torch.uint8), torch.tensor([0, 255], dtype=torch.uint8)[:, None].expand(2, d)])
    squares = [int(row @ row) for row in U.long()]
    exact = torch.tensor([math.sqrt(each) * scale for each in squares])
    assert torch.equal(Patterns(U, scale).lengths, exact)


def test_patterns_show_the_chosen_columns_alone():
    raw, columns = randn(9, 5), torch.tensor([4, 1])
    patterns = Patterns(raw, columns=columns)
    assert (len(patterns), patterns.dimension) == (9, 2)
    assert torch.equal(patterns[torch.tensor([8, 0])], raw[[8, 0]][:, [4, 1]])


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_are_the_unit_images_of_the_patterns(dtype, learned):
    Z = features(11, 8, dtype, learned)
    W, b = Z.phi.W, Z.phi.b
    expected = torch.from_numpy(reference.features(Z.patterns.stored.double().numpy() / 255, W, b))
    assert_close(Z[slice(0, 11)].double(), expected, atol=2e-6, rtol=0)
    assert Z.dimension == expected.shape[1]
    assert len(Z) == 11


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_features_block_by_block_are_those_of_all_at_once(size, dtype, learned):
    Z = features(50, 8, dtype, learned)
    assert_close(torch.cat([Z[rows] for rows in blocks(50, size)]), Z[slice(0, 50)], atol=1e-6, rtol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_features_are_found_by_row_number_too(learned):
    Z, chosen = features(50, 8, torch.uint8, learned), torch.tensor([49, 3, 3, 0])
    assert_close(Z[chosen], Z[slice(0, 50)][chosen], atol=1e-6, rtol=0)


@pytest.mark.parametrize("learned", [False, True])
def test_held_features_are_the_same_and_read_no_pattern_again(learned):
    Z = features(5000, 8, torch.uint8, learned)  # more than one block of the pass that holds them
    expected = Z[slice(0, 5000)]
    held = Z.held(1 << 20)
    Z.patterns.stored.zero_()
    assert_close(held[slice(0, 5000)], expected, atol=1e-6, rtol=0)


def test_features_are_held_up_to_the_budget_and_no_further():
    Z = features(50, 8, torch.float32, learned=False)
    assert Z.held(50 * 8 * 4 - 1) is Z
    held = Z.held(50 * 8 * 4)
    assert held.stored is not None
    assert held.held(1 << 20) is held


@pytest.mark.parametrize("learned", [False, True])
def test_restricted_features_are_those_of_a_bank_that_holds_only_these_entries(learned):
    Z, columns = features(12, 8, torch.float32, learned), torch.tensor([1, 2, 5, 7])
    centre = Z.phi.centre()
    W = None if centre is None else Z.phi.W[:, columns]
    b = None if centre is None else -(W.double() @ centre[columns].double())
    expected = reference.features(Z.patterns[slice(0, 12)][:, columns], W, b)
    assert_close(
        Z.held(1 << 20).restricted(columns, centre)[slice(0, 12)].double(),
        torch.from_numpy(expected),
        atol=2e-6,
        rtol=0,
    )


def lifted(how: str, X: torch.Tensor) -> FeatureMap:
    """A Euclidean map: of the entries themselves, or of a learned W."""
    mean = X.double().mean(0)
    if how == "identity":
        return FeatureMap(b=torch.cat([-mean, 10 * (X.double() - mean).norm(dim=1).max()[None]]))
    frame, T = Frame(mean.float()), randn(X.shape[1], 5, seed=7)
    return feature_map(frame, T, lift_of((frame(X) @ T).square().sum(1)))


def assert_ranks_as(cosines: torch.Tensor, distances: torch.Tensor) -> None:
    """The best memory by cosine is within a few per cent of the spread of being the nearest, and mostly is it."""
    nearest, found = distances.min(1).values, distances.gather(1, cosines.argmax(1, keepdim=True))[:, 0]
    assert ((found - nearest) <= 0.03 * distances.max()).all()
    assert (found == nearest).double().mean() > 0.9
    ranks = [values.argsort(1).argsort(1).double() for values in (-cosines, distances)]
    assert_close(ranks[0], ranks[1], atol=len(ranks[0][0]) / 5, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("how", ["identity", "learned"])
def test_cosines_of_lifted_features_rank_memories_as_distances_do(how, offset):
    X, Q = randn(40, 8) + offset, randn(60, 8, seed=1) + offset
    phi = lifted(how, X)
    seen = torch.eye(8, dtype=torch.float64) if phi.W is None else phi.W.double()
    distances = torch.cdist(Q.double() @ seen.T, X.double() @ seen.T).square()
    assert phi.dimension(8) == phi(Q).shape[1] == (9 if how == "identity" else 6)
    assert_ranks_as(unit(phi(Q)).double() @ unit(phi(X)).double().T, distances)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("how", ["identity", "learned"])
def test_restricted_lifted_features_rank_as_distances_over_the_entries_seen(how, offset):
    X, Q, columns = randn(40, 8) + offset, randn(60, 8, seed=1) + offset, torch.tensor([0, 3, 4, 7])
    phi = lifted(how, X)
    part = phi.restricted(columns, phi.centre())
    seen = torch.eye(4, dtype=torch.float64) if phi.W is None else phi.W[:, columns].double()
    distances = torch.cdist(Q[:, columns].double() @ seen.T, X[:, columns].double() @ seen.T).square()
    assert_ranks_as(unit(part(Q[:, columns])).double() @ unit(part(X[:, columns])).double().T, distances)


def centred_cosine(x: np.ndarray, u: np.ndarray) -> float:
    x, u = x - x.mean(), u - u.mean()
    return float(x @ u / (np.linalg.norm(x) * np.linalg.norm(u)))


@pytest.mark.parametrize("columns", [list(range(10)), [1, 4, 8], [0, 9]])
def test_the_centred_identity_compares_entries_with_their_mean_over_those_that_are_seen(columns):
    phi, X, Q = FeatureMap(centred=True), randn(7, 10) + 3, randn(5, 10, seed=1) - 2
    part = phi.restricted(torch.tensor(columns), phi.centre())
    found = unit(part(Q[:, columns])) @ unit(part(X[:, columns])).T
    rows = [np.asarray(A[:, columns].double()) for A in (Q, X)]
    expected = [[centred_cosine(x, u) for u in rows[1]] for x in rows[0]]
    assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_only_the_plain_identity_is_the_identity():
    assert FeatureMap().is_identity
    others = [
        FeatureMap(centred=True),
        FeatureMap(b=randn(4)),
        FeatureMap(torch.eye(3)),
        FeatureMap(randn(2, 3), randn(2)),
    ]
    assert not any(phi.is_identity for phi in others)
    assert not FeatureMap().near(randn(3)).to(torch.device("cpu")).centred


def test_the_features_of_a_lifted_identity_have_one_dimension_more():
    Z = Features(Patterns(randn(9, 4)), FeatureMap(b=torch.cat([torch.zeros(4), torch.tensor([2.0])])))
    assert Z.dimension == 5
    expected = reference.features(np.column_stack([Z.patterns.stored.numpy(), np.full(9, 2.0)]))
    assert_close(Z.held(1 << 20)[slice(0, 9)].double(), torch.from_numpy(expected), atol=1e-6, rtol=0)
