"""The Gram matrix in blocks: every way to it gives the same, and 8-bit patterns give it exactly."""

import pytest
import torch
from torch.testing import assert_close

from hopmem.model.gram import gram_blocks
from hopmem.model.kernel import Features, Patterns, unit

SHAPES = [(1, 1), (2, 1), (3, 5), (17, 3), (130, 784), (300, 33), (9, 70_000)]


def pixels(M, d, seed=0):
    return torch.randint(0, 256, (M, d), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole(Z, size=1024, **options):
    """The Gram matrix put together from its blocks; what no block covers stays NaN."""
    C = torch.full((len(Z), len(Z)), torch.nan)
    for first, second, block in gram_blocks(Z, size, options.get("progress")):
        assert second.start >= first.start
        C[first, second], C[second, first] = block, block.T
    return C


def rounding(d):
    """What float32 loses in the length of d entries."""
    return (d**0.5 + 16) * 2.0**-24


def exactly(Xi):
    U = Xi.double()
    return U @ U.T / (U.norm(dim=1)[:, None] * U.norm(dim=1)).clamp_min(1e-300)


@pytest.mark.parametrize(("M", "d"), SHAPES)
@pytest.mark.parametrize("size", [1, 16, 1024])
@pytest.mark.parametrize("instructions", [True, False])
def test_pixels_have_the_cosines_of_float64_with_and_without_instructions_for_them(
    M, d, size, instructions, monkeypatch
):
    if instructions and not torch.cpu._is_vnni_supported():
        pytest.skip("this processor has no instructions for 8-bit products")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: instructions)
    Xi = pixels(M, d)
    assert_close(whole(Features(Patterns(Xi, 1 / 255)), size).double(), exactly(Xi), atol=rounding(d), rtol=0)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 255])
def test_pixels_that_are_all_alike_overflow_nothing(value):
    Xi = torch.full((3, 200_000), value, dtype=torch.uint8)
    Xi[1, 0] ^= 1
    assert_close(whole(Features(Patterns(Xi))).double(), exactly(Xi), atol=rounding(200_000), rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [3, 64, 1024])
def test_progress_ends_with_all_pairs(dtype, size):
    told = []
    whole(Features(Patterns(pixels(150, 40).to(dtype))), size, progress=lambda *what: told.append(what))
    assert told == sorted(told)
    assert told[-1] == (150 * 150, 150 * 150)


def test_a_tensor_of_rows_is_multiplied_as_it_is():
    Z = unit(torch.randn(70, 9, generator=torch.Generator().manual_seed(0)))
    assert_close(whole(Z, 16), Z @ Z.T)
