"""The Gram matrix in blocks: every way to it gives the same, and 8-bit patterns give it exactly."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.gram import gram_blocks, shared_blocks
from hopmem.model.kernel import Features
from hopmem.model.meeting import Shard
from hopmem.model.rows import Patterns, unit
from tests.model.test_meeting import together

SHAPES = [(1, 1), (2, 1), (3, 5), (17, 3), (130, 784), (300, 33), (600, 100), (9, 70_000)]


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


@pytest.mark.parametrize("size", [3, 64])
@pytest.mark.parametrize(
    "ends", [[20], [10, 20], [1, 18, 20], [0, 8, 8, 20], [4, 9, 13, 17, 20], [0, 1, 1, 2, 2, 2]], ids=str
)
def test_several_processes_look_at_each_pair_once_between_them(ends: list[int], size: int):
    M = ends[-1]
    Z = unit(torch.randn(M, 6, generator=torch.Generator().manual_seed(0)))

    def work(rows: slice, part: Shard) -> tuple[Tensor, Tensor]:
        seen, gram = torch.zeros(M, M), torch.zeros(M, M)
        for first, second, C in shared_blocks(part, Z[rows], size):
            assert second.start >= first.start
            seen[first, second] += 1
            gram[first, second] += C
        return seen, gram

    seen, gram = (torch.stack(each).sum(0) for each in zip(*together(ends, work)[0], strict=True))
    assert torch.equal(seen.triu(), torch.ones(M, M).triu())
    assert torch.allclose(gram.triu(), (Z @ Z.T).triu(), atol=1e-6)


def test_opposite_processes_part_their_pairs():
    Z = unit(torch.randn(400, 6, generator=torch.Generator().manual_seed(0)))

    def work(rows: slice, part: Shard) -> int:
        return sum(C.numel() for _, _, C in shared_blocks(part, Z[rows], 16))

    for ends in ([200, 400], [100, 200, 300, 400], [130, 260, 400]):
        shares = together(ends, work)[0]
        assert max(shares) < 1.2 * min(shares)
