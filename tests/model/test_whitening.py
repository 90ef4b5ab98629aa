"""Whitening: the inverse root of the covariance, by either way to it."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hopmem.model.rows import Patterns
from hopmem.model.whitening import whiten
from tests.model import randn


@pytest.mark.parametrize(("M", "d"), [(40, 8), (8, 40), (8, 8), (9, 8), (2, 5), (2, 1)])
def test_whitening_is_the_inverse_of_the_covariance(M, d):
    Xi = randn(M, d) * torch.linspace(1, 5, d) + 2
    W = whiten(Patterns(Xi)).map(ridge=0).double()
    C = np.cov(Xi.double().numpy().T.reshape(d, M), bias=True).reshape(d, d)
    inverse = torch.from_numpy(np.linalg.pinv(C, rcond=1e-9, hermitian=True))
    assert_close(W.T @ W, inverse, atol=1e-4 * float(inverse.abs().max()), rtol=0)
    assert len(W) == min(d, M - 1)


def test_both_ways_of_whitening_agree():
    Xi = randn(20, 12)
    through_d = whiten(Patterns(Xi))  # [12, 12]
    through_M = whiten(Patterns(torch.cat([Xi, torch.zeros(20, 30)], 1)))  # [20, 20]
    assert_close(through_d.eigenvalues, through_M.eigenvalues, atol=1e-10, rtol=1e-8)
    for ridge in (0.0, 1e-3, 0.1):
        W, V = through_d.map(ridge), through_M.map(ridge)
        assert_close(V[:, 12:], torch.zeros(12, 30), atol=1e-6, rtol=0)
        assert_close(V[:, :12].T @ V[:, :12], W.T @ W, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("M", "d"), [(5000, 3), (40, 8), (8, 40)])
def test_whitening_knows_the_mean_and_the_spread_of_the_memories(M, d):
    Xi = randn(M, d) + 2
    whitened = whiten(Patterns(Xi))
    assert_close(whitened.mean, Xi.mean(0), atol=1e-5, rtol=0)
    assert float(whitened.eigenvalues.sum()) == pytest.approx(float(Xi.double().var(0, correction=0).sum()), rel=1e-6)
    assert (whitened.eigenvalues.diff() <= 0).all()
    assert_close(whitened.directions @ whitened.directions.T, torch.eye(len(whitened.directions)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("M", "d"), [(4, 2), (2, 4)])
def test_whitening_keeps_at_least_one_direction(M, d):
    assert len(whiten(Patterns(torch.ones(M, d))).eigenvalues) >= 1
