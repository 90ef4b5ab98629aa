"""The corruptions against their definitions: moments, literal loops, and what each layout of an image makes of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from hopmem.model.noise import KINDS, Canvas, canvas_of, parse_noise
from hopmem.model.rows import Patterns
from tests.model import randn
from tests.refusal import raises_refusal

H, W, C = 6, 9, 3
FLAT = Canvas((54,))
HW, HWC, CHW = Canvas((H, W), "HW"), Canvas((H, W, C), "HWC"), Canvas((C, H, W), "CHW")
every_canvas = pytest.mark.parametrize("canvas", [FLAT, HW, HWC, CHW], ids=["flat", "HW", "HWC", "CHW"])
every_image = pytest.mark.parametrize("canvas", [HW, HWC, CHW], ids=["HW", "HWC", "CHW"])
LEVELS = {"shift": "2", "blur": "0.8"}
ALL = ["mixed", *(f"{kind}:{LEVELS.get(kind, '0.4')}" for kind in KINDS), "blur:0.8+gaussian:0.1s+missing:0.3"]


def corrupt(name: str, X: Tensor, canvas: Canvas, seed: int = 0) -> Tensor:
    noise = parse_noise(name, images=canvas.layout is not None)
    return noise(X, canvas, torch.Generator().manual_seed(seed))


def clean(canvas: Canvas, rows: int = 50) -> Tensor:
    return 1 + randn(rows, math.prod(canvas.shape)).abs()  # no entry is zero, salt or pepper by itself


def planes(X: Tensor, canvas: Canvas) -> Tensor:
    """Rows as [B, C, H, W], by loops over the definition of each layout."""
    d = math.prod(canvas.shape)
    channels = d // (H * W)
    out = torch.empty(len(X), channels, H, W)
    for place in range(d):
        if canvas.layout == "HWC":
            y, x, c = place // (W * channels), place // channels % W, place % channels
        else:
            c, y, x = place // (H * W), place // W % H, place % W
        out[:, c, y, x] = X[:, place]
    return out


def assert_rate(hits: Tensor, rate: float) -> None:
    n = hits.numel()
    assert abs(float(hits.double().mean()) - rate) <= 5 * math.sqrt(rate * (1 - rate) / n)


def assert_normal(draws: Tensor, deviation: float) -> None:
    """Mean zero, and the variance and the share within one deviation of a normal law."""
    n = draws.numel()
    draws = draws.double().flatten() / deviation
    assert abs(float(draws.mean())) <= 5 / math.sqrt(n)
    assert abs(float(draws.square().mean()) - 1) <= 5 * math.sqrt(2 / n)
    assert_rate(draws.abs() < 1, math.erf(1 / math.sqrt(2)))


@pytest.mark.parametrize(("level", "deviation"), [("0.5", 0.5), ("2", 2.0), ("0.5s", 1.5), ("2s", 6.0)])
def test_gaussian_adds_normal_draws_of_its_own_to_every_entry(level, deviation):
    X = clean(FLAT, 400)
    added = corrupt(f"gaussian:{level}", X, Canvas((54,), deviation=3.0)) - X
    assert_normal(added, deviation)
    products = (added[:, 1:] * added[:, :-1]).double() / deviation**2
    assert abs(float(products.mean())) <= 5 / math.sqrt(products.numel())


@every_canvas
@pytest.mark.parametrize("level", [0.1, 0.5, 1])
def test_mask_zeroes_entries_at_its_rate_and_leaves_the_others(canvas, level):
    X = clean(canvas, 400)
    Y = corrupt(f"mask:{level}", X, canvas)
    assert_rate(Y == 0, level)
    assert torch.equal(Y[Y != 0], X[Y != 0])


@every_canvas
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_missing_forgets_entries_at_its_rate_and_leaves_the_others(canvas, level):
    X = clean(canvas, 400)
    Y = corrupt(f"missing:{level}", X, canvas)
    assert_rate(Y.isnan(), level)
    assert torch.equal(Y[~Y.isnan()], X[~Y.isnan()])


@pytest.mark.parametrize("name", ["missing:1", "missing:0.99"])
@pytest.mark.parametrize("d", [1, 2, 54])
def test_some_entry_of_each_row_stays_known(name, d):
    known = ~corrupt(name, randn(500, d), Canvas((d,))).isnan()
    assert known.any(1).all()
    if name == "missing:1":
        assert (known.sum(1) == 1).all()
        assert len(known.long().argmax(1).unique()) == d  # and not always the same one


@pytest.mark.parametrize("level", [0.2, 1])
def test_salt_and_pepper_come_equally_often(level):
    canvas = Canvas((54,), low=-7.0, high=11.0)
    X = clean(canvas, 400)
    Y = corrupt(f"saltpepper:{level}", X, canvas)
    assert_rate(Y == 11, level / 2)
    assert_rate(Y == -7, level / 2)
    kept = (Y != 11) & (Y != -7)
    assert torch.equal(Y[kept], X[kept])


@every_image
@pytest.mark.parametrize(("level", "lines"), [(0.34, 2), (0.5, 3), (1, 6)])
def test_occlude_zeroes_the_last_lines_of_an_image(canvas, level, lines):
    X = clean(canvas)
    expected = planes(X, canvas)
    expected[:, :, H - lines :] = 0
    assert torch.equal(planes(corrupt(f"occlude:{level}", X, canvas), canvas), expected)


@pytest.mark.parametrize(("level", "entries"), [(0.25, 14), (0.5, 27), (1, 54)])
def test_occlude_zeroes_the_last_entries_of_a_row_of_numbers(level, entries):
    X = clean(FLAT)
    expected = X.clone()
    expected[:, 54 - entries :] = 0
    assert torch.equal(corrupt(f"occlude:{level}", X, FLAT), expected)


@every_image
@pytest.mark.parametrize(("level", "side"), [(0.34, 2), (0.6, 4), (1, 6)])
def test_block_zeroes_a_square_somewhere(canvas, level, side):
    X = clean(canvas, 300)
    before, after = planes(X, canvas), planes(corrupt(f"block:{level}", X, canvas), canvas)
    corners = set()
    for old, new in zip(before, after, strict=True):
        y, x = (int(places.min()) for places in (new == 0).any(0).nonzero(as_tuple=True))
        expected = old.clone()
        expected[:, y : y + side, x : x + side] = 0
        assert torch.equal(new, expected)
        corners.add((y, x))
    assert corners == {(y, x) for y in range(H - side + 1) for x in range(W - side + 1)}


def test_block_zeroes_a_span_of_a_row_of_numbers_somewhere():
    X, starts = clean(FLAT, 500), set()
    for old, new in zip(X, corrupt("block:0.5", X, FLAT), strict=True):
        start = int((new == 0).nonzero().min())
        expected = old.clone()
        expected[start : start + 27] = 0
        assert torch.equal(new, expected)
        starts.add(start)
    assert starts == set(range(54 - 27 + 1))


@every_canvas
def test_contrast_is_one_gain_and_one_offset_for_each_row(canvas):
    X = clean(canvas, 1500).double()
    Y = corrupt("contrast:0.3", X, canvas).double()
    centred = X - X.mean(1, keepdim=True)
    gain = (centred * Y).sum(1) / centred.square().sum(1)  # least squares, row by row
    offset = Y.mean(1) - gain * X.mean(1)
    assert_close(gain[:, None] * X + offset[:, None], Y, atol=1e-5, rtol=1e-5)
    assert_normal(gain.log(), 0.3)
    assert_normal(offset, 0.15)
    assert abs(float((gain.log() * offset).mean())) <= 5 * 0.3 * 0.15 / math.sqrt(1500)


def blurred(line: list[float], level: float) -> list[float]:
    """A line of pixels under a Gaussian cut off at four deviations; beyond its ends stands its mirror image."""
    reach, n, out = math.ceil(4 * level), len(line), []
    for place in range(n):
        total = weights = 0.0
        for step in range(-reach, reach + 1):
            at = place + step
            while not 0 <= at < n:
                at = -1 - at if at < 0 else 2 * n - 1 - at
            weight = math.exp(-0.5 * (step / level) ** 2)
            total, weights = total + weight * line[at], weights + weight
        out.append(total / weights)
    return out


@every_image
@pytest.mark.parametrize("level", [0.3, 1, 5])
def test_blur_is_the_literal_convolution_with_mirrored_edges(canvas, level):
    X = clean(canvas, 2)
    expected = planes(X, canvas)
    for image in expected.flatten(0, 1):
        for y in range(H):
            image[y] = torch.tensor(blurred(image[y].tolist(), level))
        for x in range(W):
            image[:, x] = torch.tensor(blurred(image[:, x].tolist(), level))
    assert_close(planes(corrupt(f"blur:{level}", X, canvas), canvas), expected, atol=1e-5, rtol=0)


@every_image
@pytest.mark.parametrize("level", [0.5, 3, 100])
def test_blur_keeps_constant_images_and_the_mean_of_every_image(canvas, level):
    flat = torch.full((2, math.prod(canvas.shape)), 0.7)
    assert_close(corrupt(f"blur:{level}", flat, canvas), flat, atol=1e-6, rtol=0)
    X = clean(canvas)
    mean = planes(corrupt(f"blur:{level}", X, canvas), canvas).mean((2, 3))
    assert_close(mean, planes(X, canvas).mean((2, 3)), atol=1e-5, rtol=0)


@every_image
@pytest.mark.parametrize("most", [1, 2])
def test_shift_moves_every_pixel_alike_and_zeros_move_in(canvas, most):
    X = clean(canvas, 250)
    before, after = planes(X, canvas), planes(corrupt(f"shift:{most}", X, canvas), canvas)
    fitting = []
    for dy in range(-most, most + 1):
        for dx in range(-most, most + 1):
            moved = torch.zeros_like(before)
            for y in range(max(0, dy), min(H, H + dy)):
                for x in range(max(0, dx), min(W, W + dx)):
                    moved[:, :, y, x] = before[:, :, y - dy, x - dx]
            fitting.append((moved == after).flatten(1).all(1))
    assert (torch.stack(fitting).sum(0) == 1).all()  # each row was moved by one of them,
    assert torch.stack(fitting).any(1).all()  # and each of them moved one


def test_a_shift_beyond_the_edges_may_leave_nothing():
    X = clean(HW, 400)
    for most in ("12", "1e30"):
        Y = corrupt(f"shift:{most}", X, HW)
        assert (Y == 0).all(1).any()
        assert set(Y.unique().tolist()) <= {0.0, *X.unique().tolist()}


@pytest.mark.parametrize(("level", "expected"), [("1e-300", "itself"), ("0.01", "itself"), ("1e9", "its mean")])
def test_blur_reaches_from_the_image_itself_to_its_mean(level, expected):
    X = clean(HW)
    target = X if expected == "itself" else X.mean(1, keepdim=True).expand_as(X)
    assert_close(corrupt(f"blur:{level}", X, HW), target, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["occlude:0.5", "block:0.5", "blur:1", "shift:2", "contrast:0.3"])
def test_both_layouts_of_coloured_images_suffer_the_same(name):
    X = clean(CHW)
    turned = X.view(-1, C, H, W).permute(0, 2, 3, 1).reshape(len(X), -1)
    found = corrupt(name, turned, HWC).view(-1, H, W, C).permute(0, 3, 1, 2).reshape(len(X), -1)
    assert_close(found, corrupt(name, X, CHW), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "levels"),
    [("mask:0.5+occlude:0.5", (0, None)), ("saltpepper:1+mask:1", (0, 0)), ("mask:1+saltpepper:1", (5, 9))],
)
def test_a_chain_applies_its_links_in_order(name, levels):
    Y = corrupt(name, clean(FLAT), Canvas((54,), low=5.0, high=9.0))
    if levels[1] is None:
        assert not Y[:, 27:].any()
        assert_rate(Y[:, :27] == 0, 0.5)
    else:
        assert set(Y.unique().tolist()) == set(levels)


def test_a_chain_draws_as_its_links_one_after_another():
    X, name = clean(HW), "blur:1+gaussian:0.2+shift:1"
    generator, Y = torch.Generator().manual_seed(3), X
    for link in name.split("+"):
        Y = parse_noise(link, images=True)(Y, HW, generator)
    assert torch.equal(corrupt(name, X, HW, seed=3), Y)


@pytest.mark.parametrize("rows", [1, 3, 5, 7, 1003])
@pytest.mark.parametrize("canvas", [FLAT, HW], ids=["flat", "HW"])
def test_mixed_is_its_kinds_in_equal_parts(canvas, rows):
    """With every entry 100 the kinds are told apart: occlusion and block zero runs, gaussian leaves no entry alone."""
    canvas = Canvas(canvas.shape, canvas.layout, low=-1.0, high=-2.0)
    X = torch.full((rows, 54), 100.0)
    Y = corrupt("mixed", X, canvas)
    tail = torch.zeros_like(X, dtype=torch.bool)
    tail[:, 27:] = True
    zero = Y == 0
    salted = (Y < 0).any(1)
    occluded = (zero == tail).all(1)
    gaussian = ((Y != 100) & (Y > 90)).all(1)
    if canvas.layout is None:
        runs = zero.long().diff(dim=1).abs().sum(1) <= 2
    else:
        runs = torch.tensor([bool((z == torch.outer(z.any(1), z.any(0))).all()) for z in zero.view(-1, H, W)])
    block = runs & ~occluded & ~salted & ~gaussian
    masked = ~(salted | occluded | gaussian | block)
    counts = torch.stack([gaussian, masked, occluded, block, salted]).sum(1)
    assert int(counts.sum()) == rows
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_every_bit(name):
    X = clean(HW)
    first, again, other = (corrupt(name, X, HW, seed) for seed in (1, 1, 2))
    assert torch.equal(first.nan_to_num(-9), again.nan_to_num(-9))
    if name not in {"occlude:0.4", "blur:0.8"}:  # which draw nothing
        assert not torch.equal(first.nan_to_num(-9), other.nan_to_num(-9))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("canvas", [HW, HWC, CHW], ids=["HW", "HWC", "CHW"])
def test_the_rows_themselves_are_left_alone(canvas, name):
    X = clean(canvas)
    before = X.clone()
    Y = corrupt(name, X, canvas)
    assert torch.equal(X, before)
    assert (Y.shape, Y.dtype) == (X.shape, X.dtype)


@every_canvas
@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_changes_nothing(canvas, kind):
    if canvas.layout is None and KINDS[kind][1]:
        pytest.skip("needs images")
    X = clean(canvas)
    assert torch.equal(corrupt(f"{kind}:0", X, canvas), X)


@every_image
@pytest.mark.parametrize("name", ALL)
def test_no_rows_become_no_rows(canvas, name):
    assert corrupt(name, clean(canvas, 0), canvas).shape == (0, math.prod(canvas.shape))


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1), st.sampled_from(["HW", "HWC", "CHW"]), st.integers(0, 99))
def test_every_kind_keeps_the_shape_of_images_of_any_size(height, width, level, layout, seed):
    shape = {"HW": (height, width), "HWC": (height, width, 2), "CHW": (2, height, width)}[layout]
    X = clean(Canvas(shape, layout), 4)
    for kind in KINDS:
        Y = corrupt(f"{kind}:{round(3 * level) if kind == 'shift' else level}", X, Canvas(shape, layout), seed)
        assert Y.shape == X.shape
        assert kind == "missing" or Y.isfinite().all()


@pytest.mark.parametrize("text", ["gaussian:0.5", "gaussian:0.5s", "gaussian:0", "mask:1", "blur:2.5+shift:3", "mixed"])
def test_a_noise_is_called_what_the_user_wrote(text):
    assert parse_noise(text, images=True).name == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "KIND:LEVEL"),
        ("hail:0.5", "KIND:LEVEL"),
        ("Mask:0.5", "KIND:LEVEL"),
        (":0.5", "KIND:LEVEL"),
        ("mask:0.5+", "KIND:LEVEL"),
        ("+mask:0.5", "KIND:LEVEL"),
        ("mixed:0.5", "mixed alone"),
        ("mixed+mask:0.5", "mixed alone"),
        ("missing:0.5+mask:0.5", "missing last"),
        ("mask:0.5+mixed", "mixed alone"),
        ("mask", "from 0 to 1"),
        ("mask:", "from 0 to 1"),
        ("mask:-0.1", "from 0 to 1"),
        ("mask:1.01", "from 0 to 1"),
        ("mask:0.5s", "from 0 to 1"),
        ("mask:half", "from 0 to 1"),
        ("mask:0.5:0.5", "from 0 to 1"),
        ("saltpepper:nan", "from 0 to 1"),
        ("occlude:inf", "from 0 to 1"),
        ("block:2", "from 0 to 1"),
        ("missing:1.5", "from 0 to 1"),
        ("gaussian", "from 0 up"),
        ("gaussian:nan", "standard deviations"),
        ("gaussian:inf", "from 0 up"),
        ("gaussian:-1s", "from 0 up"),
        ("gaussian:s", "from 0 up"),
        ("contrast:0.5s", "from 0 to 10"),
        ("blur:-1", "from 0 up"),
        ("shift:1.5", "a whole number"),
        ("shift:inf", "a whole number"),
        ("shift:nan", "a whole number"),
        ("hail\n:0.5", "KIND:LEVEL"),
    ],
)
def test_a_noise_that_cannot_be_is_refused_with_what_was_expected(text, expected):
    for images in (True, False):
        if images or not text.startswith(("blur", "shift")):
            with raises_refusal(2, "--noise", expected):
                parse_noise(text, images=images)


@pytest.mark.parametrize("text", ["blur:1", "shift:1", "mask:0.5+blur:1"])
def test_what_needs_images_is_refused_without(text):
    with raises_refusal(2, "images", "--layout"):
        parse_noise(text, images=False)


def test_an_unknown_kind_is_told_all_kinds():
    with raises_refusal(2, "'hail'", "mixed", *KINDS):
        parse_noise("hail:1", images=True)


@pytest.mark.parametrize(
    ("low", "high", "layout", "expected"),
    [
        (0.2, 0.6, "HW", (0.0, 1.0)),
        (0.0, 1.0, "HW", (0.0, 1.0)),
        (-0.5, 0.5, "HW", (-0.5, 0.5)),
        (0.0, 3.0, "HW", (0.0, 3.0)),
        (0.25, 0.75, None, (0.25, 0.75)),
    ],
)
def test_salt_and_pepper_are_black_and_white_or_else_the_extreme_values(low, high, layout, expected):
    X = torch.full((5000, 6), (low + high) / 2)  # more than one block of rows
    X[0, 0], X[4999, 5] = low, high
    canvas = canvas_of(Patterns(X), (2, 3) if layout else (6,), layout)
    assert_close((canvas.low, canvas.high), expected)
    assert (canvas.shape, canvas.layout) == ((2, 3) if layout else (6,), layout)


@pytest.mark.parametrize("offset", [0, 1000])
def test_the_deviation_is_that_of_all_stored_values(offset):
    X = (randn(5000, 7) * 3 + offset).double()
    canvas = canvas_of(Patterns(X), (7,), None)
    assert_close(canvas.deviation, float(X.float().double().std(correction=0)), atol=0, rtol=1e-6)


def test_the_canvas_is_in_the_units_of_the_patterns():
    X = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8)
    canvas = canvas_of(Patterns(X, 1 / 255), (2,), None)
    assert_close((canvas.low, canvas.high), (0.0, 1.0))
    assert_close(canvas.deviation, float((X.double() / 255).std(correction=0)))


def test_a_constant_bank_has_no_deviation():
    assert canvas_of(Patterns(torch.full((3, 4), 0.1)), (4,), None).deviation == pytest.approx(0, abs=1e-8)
