"""Closed-form maps against literal covariances, the generalised eigenvectors, and a dense frame."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from hopmem.model.denoise import fisher
from hopmem.model.denoise.fisher import (
    Frame,
    Recipe,
    Scatter,
    Whitening,
    discriminants,
    feature_map,
    frame_of,
    lift_of,
    whitening,
)
from hopmem.model.rows import Patterns, unit
from tests.model import randn

d = 12
NO_MEAN = torch.zeros(d)
ONES = torch.full((d,), d**-0.5)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noise(rows: int = 3000, seed: int = 1) -> Tensor:
    return randn(rows, d, seed=seed) @ randn(d, d, seed=2)


def memories(rows: int = 500) -> Tensor:
    return randn(rows, d, seed=3) @ randn(d, d, seed=4)


def scatter(differences: Tensor, rows: Tensor) -> Scatter:
    return Scatter.empty(differences.shape[1], torch.device("cpu")).add_noise(differences).add_memory(rows)


def columns(white: Whitening, rows: Tensor, most: int) -> Tensor:
    """The discriminants of memories as directions of the frame."""
    return white.columns(discriminants(white(rows), most, generator()))


def covariance(rows: Tensor) -> Tensor:
    return rows.double().T @ rows.double() / len(rows)


def test_sums_of_parts_are_the_sums_of_all():
    N, C = noise(), memories()
    parts = scatter(N[:1000], C[:7]) + scatter(N[1000:], C[7:])
    assert (parts.pairs, parts.memories) == (3000, 500)
    assert_close(parts.noise / 3000, covariance(N), rtol=1e-5, atol=1e-4)
    assert_close(parts.memory / 500, covariance(C), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_whitened_noise_is_white(scale):
    N = noise() * scale
    white = whitening(scatter(N, memories()), 0.0, 1e-8)
    assert_close(covariance(white(N).double()), torch.eye(d, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("weight", "ridge"), [(0.0, 0.1), (0.03, 0.01), (1.0, 1.0), (None, 0.1)])
def test_what_is_whitened_is_the_recipes_covariance_with_its_ridge(weight, ridge):
    N, C = covariance(noise()), covariance(memories())
    K = C if weight is None else N + weight * C
    K = K + ridge * K.trace() / d * torch.eye(d)
    L = whitening(scatter(noise(), memories()), weight, ridge).L.double()
    assert_close(L @ L.T, K, rtol=1e-4, atol=1e-4 * float(K.abs().max()))


@pytest.mark.parametrize("weight", [0.0, None, 0.03])
def test_without_noise_and_with_equal_memories_there_is_still_a_map(weight):
    white = whitening(scatter(torch.zeros(5, d), torch.zeros(3, d)), weight, 1e-2)
    for each in (white, white.centred(ONES), white.centred(torch.zeros(d))):
        assert each.columns(torch.eye(d)).isfinite().all()


@pytest.mark.parametrize("centred", [False, True])
def test_columns_of_the_frame_give_the_features_of_whitened_rows(centred):
    white = whitening(scatter(noise(), memories()), 0.03, 1e-2)
    white = white.centred(ONES) if centred else white
    V = randn(d, 4, seed=8)
    assert_close(memories() @ white.columns(V), white(memories()) @ V, rtol=1e-3, atol=1e-3)


def test_centring_is_the_limit_of_a_loud_common_offset():
    N, C = noise(), memories()
    loud = N + 30 * randn(len(N), 1, seed=9) * N.std()
    limit, centred = whitening(scatter(loud, C), 0.0, 0.0), whitening(scatter(N, C), 0.0, 0.0).centred(ONES)
    kernels = [white(C[:40]) @ white(C[:40]).T for white in (limit, centred)]
    assert_close(kernels[0], kernels[1], rtol=0.05, atol=0.02 * float(kernels[1].abs().max()))


def same_span(A: Tensor, B: Tensor) -> bool:
    """Whether the columns of both span the same space: all principal angles are small."""
    bases = [torch.linalg.qr(each.double()).Q for each in (A, B)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).min()) > 1 - 1e-4


def generalised(C: Tensor, N: Tensor) -> Tensor:
    """Eigenvectors of C v = λ N v, largest λ first, by N^{-1/2} C N^{-1/2}."""
    values, vectors = torch.linalg.eigh(N)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return root @ torch.linalg.eigh(root @ C @ root).eigenvectors.flip(1)


@pytest.mark.parametrize("rows", [500, 9])  # more memories than entries, and fewer
@pytest.mark.parametrize("D", [1, 3, 6])
def test_discriminants_span_the_leading_generalised_eigenvectors(D, rows):
    N, C = noise(), memories(rows)
    white = whitening(scatter(N, C), 0.0, 1e-6)
    expected = generalised(covariance(C - C.mean(0)), covariance(N))[:, :D]
    assert same_span(columns(white, C, D), expected)


@pytest.mark.parametrize("rows", [500, 9])
def test_fewer_discriminants_are_the_first_of_more_and_leave_the_noise_white(rows):
    white = whitening(scatter(noise(), memories()), 0.0, 1e-8)
    T = columns(white, memories(rows), 8)
    for D in (1, 2, 5):
        assert same_span(columns(white, memories(rows), D), T[:, :D])
    assert_close(covariance(noise() @ T), torch.eye(8, dtype=torch.float64), atol=5e-3, rtol=0)
    signal = (memories(rows) @ T).var(0)
    assert (signal.diff() <= 1e-3 * signal[0]).all()  # best first


@pytest.mark.parametrize(("rows", "most", "expected"), [(2, 5, 2), (500, 5, 5), (500, 99, d), (1, 3, 1)])
def test_there_are_as_many_discriminants_as_can_be(rows, most, expected):
    T = columns(whitening(scatter(noise(), memories()), 0.0, 1e-2), memories(rows), most)
    assert T.shape == (d, expected)
    assert T.isfinite().all()


@pytest.mark.parametrize("rows", [300, 90])
def test_subspace_iteration_finds_what_the_dense_method_finds(monkeypatch, rows):
    r = 80
    strength = torch.cat([torch.full((6,), 20.0), torch.ones(r - 6)])  # six directions that stand out
    C = randn(rows, r) * strength
    expected = discriminants(C, 6, generator())
    monkeypatch.setattr(fisher, "MOST_DIRECTIONS", 8)
    assert same_span(discriminants(C, 6, generator()), expected)


@pytest.mark.parametrize("weight", [0.0, 0.03, None])
def test_a_centred_recipe_does_not_see_a_constant_added_to_a_vector(weight):
    C = memories()
    moments, queries = scatter(noise(), C), C[:50] + randn(50, 1, seed=9) * C.std()
    white = whitening(moments, weight, 1e-2)
    bright, plain = (feature_map(Frame(NO_MEAN), columns(each, C, d - 1)) for each in (white.centred(ONES), white))
    moved = [(phi(queries) - phi(C[:50])).norm() / phi(C[:50]).norm() for phi in (bright, plain)]
    assert moved[0] < 0.02 < moved[1]


@pytest.mark.parametrize("lift", [0.0, 50.0])
def test_the_map_is_zero_at_the_mean_and_its_rows_have_mean_square_one(lift):
    mean = randn(d, seed=5) * 1e3
    phi = feature_map(Frame(mean), randn(d, 4, seed=6) * 1e-5, lift)
    assert_close(phi.W[:4].square().sum(1).mean(), torch.tensor(1.0))
    assert_close(phi(mean[None])[0, :4], torch.zeros(4), atol=1e-5, rtol=0)
    if lift:
        assert not phi.W[4].any()
        assert phi(randn(3, d))[:, 4].unique().numel() == 1


def test_a_map_of_nothing_is_still_finite():
    phi = feature_map(Frame(NO_MEAN), torch.zeros(d, 2), lift_of(torch.zeros(3)))
    assert unit(phi(randn(3, d))).isfinite().all()


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (Recipe(), ["noise whitening", "0.01"]),
        (Recipe(None, 1.0), ["memory whitening", "ridge 1"]),
        (Recipe(0.03, centred=True), ["noise + 0.03 memory", "centred"]),
        (Recipe(dimension=8, euclidean=True), ["8 discriminants", "Euclidean"]),
    ],
)
def test_a_recipe_is_named_by_what_it_is(recipe, parts):
    assert all(part in recipe.name for part in parts)
    assert recipe.name != replace(recipe, ridge=7.0).name


class Largest(TorchDispatchMode):
    """The largest number of rows that a matrix with at least as many columns has had."""

    def __init__(self) -> None:
        super().__init__()
        self.side = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each.dim() >= 2:
                self.side = max(self.side, min(each.shape[-2:]))
        return out


def low_rank(wide: int) -> tuple[Tensor, Tensor]:
    """Ten memories and twenty differences that span at most thirty of many dimensions."""
    return randn(10, wide) + 5, randn(20, wide, seed=1) * torch.linspace(0.1, 2, 20)[:, None]


@pytest.mark.parametrize(
    "recipe", [Recipe(ridge=0.1), Recipe(0.03, 0.1), Recipe(None, 0.1), Recipe(ridge=0.1, centred=True)]
)
def test_a_span_that_covers_all_gives_the_scores_of_the_dense_frame_and_no_wide_square(monkeypatch, recipe):
    wide = 200
    X, differences = low_rank(wide)
    patterns, ones = Patterns(X), torch.full((wide,), wide**-0.5)

    def scores(frame: Frame, recipe: Recipe) -> Tensor:
        moments = Scatter.empty(frame(X).shape[1], torch.device("cpu"))
        moments = moments.add_noise(frame(X[:1] + differences) - frame(X[:1])).add_memory(frame(X))
        bright = ones if frame.basis is None else ones @ frame.basis
        white = whitening(moments, recipe.memory_weight, recipe.ridge)
        white = white.centred(bright) if recipe.centred else white
        phi = feature_map(frame, columns(white, frame(X), 9))
        return unit(phi(X[:1] + differences)) @ unit(phi(X)).T

    dense = frame_of(patterns, differences, seed=0)
    assert dense.basis is None
    monkeypatch.setattr(fisher, "WIDE", 32)
    with Largest() as seen:
        span = frame_of(patterns, differences, seed=0)
        found = scores(span, recipe)
    r = span.basis.shape[1]
    assert r <= 32
    assert seen.side <= 32
    if not recipe.centred:  # the mean of a vector is not all in the span
        expected = scores(dense, replace(recipe, ridge=recipe.ridge * wide / r))  # the ridge counts mean eigenvalues
        assert_close(found, expected, atol=2e-3, rtol=0)


def test_the_span_is_orthonormal_and_holds_memories_and_noise(monkeypatch):
    monkeypatch.setattr(fisher, "WIDE", 32)
    X, differences = low_rank(100)
    frame = frame_of(Patterns(X), differences, seed=0)
    basis = frame.basis
    assert_close(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-5, rtol=0)
    for rows in (X - X.mean(0), differences):
        assert_close(rows @ basis @ basis.T, rows, atol=1e-4, rtol=0)


def test_what_is_unknown_lies_at_the_mean_in_the_frame():
    frame, X = Frame(randn(4)), randn(3, 4, seed=1)
    X[0, 1] = torch.nan
    filled = X.clone()
    filled[0, 1] = frame.mean[1]
    assert_close(frame(X), frame(filled))
