"""Images: upright, in one size and mode, 8 and 16 bits kept, and written as they were read."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hopmem.patterns import Loaded, Reading, load
from tests.patterns import save
from tests.refusal import raises_refusal

LOSSLESS = [
    *((mode, kind) for mode in ("1", "L", "LA", "RGB", "RGBA", "I;16") for kind in ("png", "tif")),
    *((mode, "bmp") for mode in ("1", "L", "RGB")),
    *(("RGB", "webp"), ("L", "pgm"), ("RGB", "ppm"), ("1", "pbm"), ("I;16", "pgm")),
]
SHAPES = {"LA": (5, 7, 2), "RGB": (5, 7, 3), "RGBA": (5, 7, 4)}


def pixels(mode: str, seed: int = 0) -> np.ndarray:
    """Random pixels 5 high and 7 wide; what alpha there is lets everything be seen."""
    top = 65536 if mode == "I;16" else 256
    array = np.random.default_rng(seed).integers(0, top, SHAPES.get(mode, (5, 7)))
    array.flat[:2] = 0, top - 1
    if mode == "1":
        return array > 127
    if mode in {"LA", "RGBA"}:
        array[..., -1] = 255
    return array.astype(np.uint16 if mode == "I;16" else np.uint8)


def put(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".webp":
        options["lossless"] = True
    Image.fromarray(array).save(path, **options)
    return path


def read(path: Path, **options) -> Loaded:
    return load([str(path)], Reading(**options))


def seen(loaded: Loaded) -> np.ndarray:
    """Rows as images [N, H, W] or [N, H, W, C], from 0 to 1."""
    return loaded.stored.double().mul(loaded.scale).reshape(-1, *loaded.shape).numpy()


def stored(loaded: Loaded) -> np.ndarray:
    """The same in stored units."""
    return loaded.stored.reshape(-1, *loaded.shape).numpy()


def answer(target: Path, loaded: Loaded, **options) -> None:
    """Save what was loaded as its own answer."""
    array = torch.from_numpy(seen(loaded))
    save(str(target), loaded.form.kind, array, loaded.form, loaded.names, loaded.layout, scale=1, force=True, **options)


def read_or_refused(path: Path) -> None:
    """Whatever a damaged image holds, there is one line at the most."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of damage that it reads past
            read(path, size=(8, 8))
    except Exception as error:
        assert getattr(error, "exit_code", 1) in {3, 4}, repr(error)  # 4: it says that it is huge


@pytest.mark.parametrize(("mode", "kind"), LOSSLESS)
def test_lossless_pixels_are_read_exactly(tmp_path, mode, kind):
    array = pixels(mode)
    loaded = read(put(tmp_path / f"x.{kind}", array))
    colour = array[..., : {"LA": 1, "RGBA": 3}.get(mode, 3)] if array.ndim == 3 else array
    expected = np.squeeze(colour.astype(float)) / {"1": 1, "I;16": 65535}.get(mode, 255)
    np.testing.assert_allclose(seen(loaded)[0], expected, rtol=1e-12)
    assert loaded.stored.dtype == (torch.uint16 if mode == "I;16" else torch.uint8)
    assert loaded.layout == ("HWC" if mode in {"RGB", "RGBA"} else "HW")


@pytest.mark.parametrize(("mode", "kind"), LOSSLESS)
def test_a_lossless_image_survives_the_round_trip_with_its_name_size_and_mode(tmp_path, mode, kind):
    source = put(tmp_path / "in" / f"x.{kind}", pixels(mode))
    answer(tmp_path / "out", read(source.parent))
    with Image.open(source) as before, Image.open(tmp_path / "out" / source.name) as after:
        assert (after.mode, after.size) == (before.mode, before.size)
        assert np.array_equal(np.asarray(after), np.asarray(before))


@pytest.mark.parametrize("kind", ["jpg", "gif", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_an_image_of_a_lossy_format_is_read_as_pillow_shows_it_and_nearly_survives(tmp_path, mode, kind):
    ramp = np.add.outer(np.arange(16) * 6, np.arange(24) * 5).astype(np.uint8)
    source = put(tmp_path / "in" / f"x.{kind}", ramp if mode == "L" else np.stack([ramp, 255 - ramp, ramp // 2], 2))
    loaded = read(source.parent)
    with Image.open(source) as image:
        assert np.array_equal(stored(loaded)[0], np.asarray(image.convert("L" if image.mode == "L" else "RGB")))
    answer(tmp_path / "out", loaded)
    assert np.abs(seen(read(tmp_path / "out")) - seen(loaded)).mean() < 0.02


def test_a_palette_is_read_as_its_colours(tmp_path):
    array = pixels("RGB") // 128 * 255
    Image.fromarray(array).quantize(8).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == "P"
    assert np.array_equal(stored(read(tmp_path / "x.png"))[0], array)


def test_the_transparent_entry_of_a_palette_is_unknown(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "x.png", transparency=1)
    known = read(tmp_path / "x.png", partial=True).known
    assert known.reshape(3, 3).all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_transparent_pixels_are_unknown_in_a_query_and_noted_in_a_pattern(tmp_path, mode, kind):
    array = pixels(mode)
    array[1, 2:5, -1] = 0
    array[3, 3, -1] = 1  # barely visible is visible
    path = put(tmp_path / f"x.{kind}", array)
    query = read(path, partial=True)
    known = query.known.reshape(query.shape)
    expected = np.repeat(array[..., -1:] > 0, 1 if mode == "LA" else 3, 2)
    assert np.array_equal(known.reshape(5, 7, -1).numpy(), expected)
    pattern = read(path)
    assert pattern.known is None
    assert "1 of 1 images have transparent pixels" in pattern.notes[0]
    assert np.array_equal(stored(pattern).reshape(5, 7, -1), array[..., :-1])


def test_an_answer_to_a_transparent_query_is_opaque(tmp_path):
    array = pixels("RGBA")
    array[1, :, -1] = 0
    loaded = read(put(tmp_path / "in" / "x.png", array).parent, partial=True)
    answer(tmp_path / "out", loaded)
    with Image.open(tmp_path / "out" / "x.png") as image:
        assert image.mode == "RGBA"
        assert image.getchannel("A").getextrema() == (255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_images_are_turned_upright_as_their_exif_says(tmp_path, orientation, kind):
    array = pixels("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = read(put(tmp_path / f"x.{kind}", array, exif=exif))
    turned = {  # what the 0th row and the 0th column of the file are to the eye, by the EXIF standard
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.transpose(1, 0, 2),
        6: array[::-1].transpose(1, 0, 2),
        7: array[::-1, ::-1].transpose(1, 0, 2),
        8: array[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    assert np.array_equal(stored(loaded)[0], turned)
    assert loaded.form.images[0].size == turned.shape[1::-1]


def test_a_folder_is_read_in_the_order_of_its_posix_paths(tmp_path):
    names = ["b.png", "a/z.png", "a.png", "a/b/c.PNG", "B.bmp", "a b/é.png", "10.png", "9.png"]
    for seed, name in enumerate(names):
        put(tmp_path / name, pixels("L", seed))
    loaded = read(tmp_path)
    assert loaded.names == tuple(sorted(names))
    expected = np.stack([pixels("L", names.index(name)) for name in sorted(names)])
    assert np.array_equal(stored(loaded), expected)


def test_hidden_files_are_not_looked_at_and_others_are_counted(tmp_path):
    put(tmp_path / "x.png", pixels("L"))
    put(tmp_path / ".hidden.png", pixels("L"))
    put(tmp_path / ".cache" / "y.png", pixels("L"))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "Thumbs.db").write_text("hello")
    loaded = read(tmp_path)
    assert loaded.names == ("x.png",)
    assert "2 files that are no images" in loaded.notes[0]


def test_a_folder_without_images_is_invalid(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with raises_refusal(4, "at least one image", "1 files"):
        read(tmp_path)


def test_sizes_that_differ_name_two_files_or_are_skipped(tmp_path):
    put(tmp_path / "a.png", np.zeros((4, 6), np.uint8))
    put(tmp_path / "b.png", np.zeros((6, 4), np.uint8))
    with raises_refusal(4, "a.png", "b.png", "6x4", "4x6", "--size"):
        read(tmp_path)
    loaded = read(tmp_path, on_bad="skip")
    assert loaded.names == ("a.png",)
    assert [skip.name for skip in loaded.skipped] == ["b.png"]


def test_an_upright_and_a_turned_image_of_one_file_size_differ_in_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(tmp_path / "a.png", pixels("L"))
    put(tmp_path / "b.png", pixels("L"), exif=exif)
    with raises_refusal(4, "7x5", "5x7"):
        read(tmp_path)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_resized_flat_image_keeps_its_value_and_a_picture_its_mean(tmp_path, mode):
    array = pixels(mode)
    put(tmp_path / "a.png", np.full_like(array, 40))
    put(tmp_path / "b.png", np.repeat(np.repeat(array, 4, 0), 4, 1))
    loaded = read(tmp_path, size=(14, 10))
    assert loaded.shape[:2] == (10, 14)
    top = 65535 if mode == "I;16" else 255
    np.testing.assert_allclose(seen(loaded)[0], 40 / top, atol=1e-12)
    assert seen(loaded)[1].mean() == pytest.approx(array.mean() / top, abs=0.02)


def test_answers_to_resized_queries_have_the_size_of_each_query(tmp_path):
    put(tmp_path / "in" / "a.png", pixels("RGB"))
    put(tmp_path / "in" / "b.png", np.zeros((9, 3), np.uint8))
    put(tmp_path / "in" / "c.png", np.zeros((3, 9), np.uint16))
    answer(tmp_path / "out", read(tmp_path / "in", size=(4, 4)))
    for name, mode, size in (("a", "RGB", (7, 5)), ("b", "L", (3, 9)), ("c", "I;16", (9, 3))):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size == size
            assert image.mode in {mode, "RGB"}


@pytest.mark.parametrize(("mode", "weights"), [("L", [0.299, 0.587, 0.114]), ("RGB", None)])
def test_the_mode_is_forced_on_every_image(tmp_path, mode, weights):
    colour = put(tmp_path / "a.png", pixels("RGB"))
    grey = put(tmp_path / "b.png", pixels("L"))
    loaded = load([str(colour), str(grey)], Reading(mode=mode))
    first, second = stored(loaded)
    if weights:  # ITU-R 601
        np.testing.assert_allclose(first, pixels("RGB") @ np.array(weights), atol=0.51)
        assert np.array_equal(second, pixels("L"))
    else:
        assert np.array_equal(first, pixels("RGB"))
        assert np.array_equal(second, np.stack([pixels("L")] * 3, 2))


def test_one_image_in_colour_makes_all_colour_and_one_of_16_bits_makes_all_deep(tmp_path):
    put(tmp_path / "a.png", pixels("L"))
    put(tmp_path / "b.png", pixels("RGB"))
    put(tmp_path / "c.png", pixels("I;16"))
    loaded = read(tmp_path)
    assert loaded.stored.dtype == torch.uint16
    grey, colour, deep = seen(loaded)
    np.testing.assert_allclose(grey, np.stack([pixels("L") / 255] * 3, 2), rtol=1e-12)
    np.testing.assert_allclose(colour, pixels("RGB") / 255, rtol=1e-12)
    np.testing.assert_allclose(deep, np.stack([pixels("I;16") / 65535] * 3, 2), rtol=1e-12)


@pytest.mark.parametrize("size", [None, (7, 5), (14, 10)])
def test_float_images_meet_16_bit_ones_in_one_scale(tmp_path, size):
    put(tmp_path / "a.tif", np.full((5, 7), 0.25, np.float32))
    put(tmp_path / "b.png", np.full((5, 7), 16384, np.uint16))
    put(tmp_path / "c.png", np.full((5, 7), 64, np.uint8))
    np.testing.assert_allclose(seen(read(tmp_path, size=size)).mean((1, 2)), [0.25, 0.25, 0.25], atol=2e-3)


def damaged(path: Path, how: str) -> Path:
    raw = put(path, np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).read_bytes()
    path.write_bytes({"cut": raw[: len(raw) // 2], "garbage": b"no image" * 20, "empty": b""}[how])
    return path


@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "gif", "pgm"])
def test_a_damaged_image_is_an_error_that_names_it_or_is_skipped(tmp_path, kind, how):
    put(tmp_path / "good.png", np.zeros((32, 32), np.uint8))
    damaged(tmp_path / f"bad.{kind}", how)
    with raises_refusal(3, f"bad.{kind}"):
        read(tmp_path)
    loaded = read(tmp_path, on_bad="skip")
    assert loaded.names == ("good.png",)
    assert [skip.name for skip in loaded.skipped] == [f"bad.{kind}"]


@pytest.mark.parametrize("how", ["cut", "empty"])
def test_a_folder_of_damaged_images_alone_is_an_error_even_when_skipping(tmp_path, how):
    damaged(tmp_path / "a.png", how)
    damaged(tmp_path / "b.png", how)
    with raises_refusal(3, ".png"):
        read(tmp_path, on_bad="skip")


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif", "gif", "pgm", "webp"])
def test_an_image_cut_anywhere_or_with_flipped_bytes_is_read_or_refused_in_one_line(tmp_path, kind):
    raw = put(tmp_path / f"whole.{kind}", pixels("RGB" if kind != "pgm" else "L")).read_bytes()
    draw = np.random.default_rng(0)
    variants = [raw[:length] for length in range(0, len(raw), max(1, len(raw) // 60))]
    for _ in range(100):
        flipped = bytearray(raw)
        for place in draw.integers(0, min(len(raw), 200), 2):
            flipped[place] ^= int(draw.integers(1, 256))
        variants.append(bytes(flipped))
    path = tmp_path / f"bad.{kind}"
    for variant in variants:
        path.write_bytes(variant)
        read_or_refused(path)


def test_a_missing_image_is_named(tmp_path):
    with raises_refusal(3, "gone.png"):
        read(tmp_path / "gone.png")


def test_a_dangling_link_is_no_image(tmp_path):
    put(tmp_path / "a.png", pixels("L"))
    os.symlink(tmp_path / "gone", tmp_path / "b.png")  # noqa: PTH211 # the target is not there
    with raises_refusal(3, "b.png"):
        read(tmp_path)
    assert read(tmp_path, on_bad="skip").names == ("a.png",)


def test_the_mean_of_two_colours_is_written_as_the_nearest_8_bit_value(tmp_path):
    loaded = read(put(tmp_path / "in" / "x.png", pixels("L")).parent)
    halfway = torch.full((1, 5, 7), 100.4 / 255)
    save(str(tmp_path / "out"), "folder", halfway, loaded.form, loaded.names, "HW", scale=1.0, force=False)
    with Image.open(tmp_path / "out" / "x.png") as image:
        assert image.getextrema() == (100, 100)


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_answers_beyond_black_and_white_are_clamped(tmp_path, value):
    loaded = read(put(tmp_path / "in" / "x.png", pixels("I;16")).parent)
    save(
        str(tmp_path / "out"),
        "folder",
        torch.full((1, 5, 7), value),
        loaded.form,
        loaded.names,
        "HW",
        scale=1,
        force=False,
    )
    with Image.open(tmp_path / "out" / "x.png") as image:
        assert image.getextrema() == ((0, 0) if value < 0 else (65535, 65535))


STRANGE = {
    "CMYK": "JPEG", "LAB": "TIFF", "YCbCr": "JPEG", "LA": "PNG", "RGBA": "PNG", "I;16": "PNG", "F": "TIFF", "1": "TIFF",
    "P": "PNG",
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif", "pgm", "ppm", "pbm"])
@pytest.mark.parametrize("mode", STRANGE)
def test_an_answer_can_be_read_back_whatever_the_query_was_under_its_name(tmp_path, mode, suffix):
    draw = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    depth = {"I;16": np.uint16(257) * draw[..., 0], "F": draw[..., 0].astype(np.float32) / 255}
    frombytes = {"LAB": Image.frombytes("LAB", (7, 5), draw.tobytes())}
    image = frombytes.get(mode) or Image.fromarray(depth.get(mode, draw))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"x.{suffix}"
    (image if mode in depth or mode in frombytes else image.convert(mode)).save(path, STRANGE[mode])
    loaded = read(path.parent)
    answer(tmp_path / "out", loaded)
    again = read(tmp_path / "out")
    assert again.names == loaded.names
    assert again.form.images[0].size == (7, 5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_the_first_of_several_pictures_is_read_and_the_others_are_noted(tmp_path, suffix, mode):
    path, frames = tmp_path / f"x.{suffix}", [Image.fromarray(pixels(mode, seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    put(tmp_path / "y.png", pixels(mode))
    loaded = read(tmp_path)
    assert loaded.notes == ("1 of 2 files hold several images; the first of each was read",)
    with Image.open(path) as image:
        assert np.array_equal(stored(loaded)[0], np.asarray(image.convert("RGB" if loaded.layout == "HWC" else "L")))


def test_the_second_picture_that_a_camera_puts_beside_a_photo_is_not_noted(tmp_path):
    frames = [Image.fromarray(pixels("RGB", seed)) for seed in range(2)]
    frames[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "x.jpg").notes == ()


@pytest.mark.parametrize("suffix", ["gif", "tif", "png", "webp"])
def test_damage_behind_the_first_picture_never_escapes(tmp_path, suffix):
    path, frames = tmp_path / f"x.{suffix}", [Image.fromarray(pixels("RGB", seed)) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    raw, draw = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(raw)
        for place in draw.integers(len(raw) // 3, len(raw), 3):
            damaged[place] = int(draw.integers(256))
        path.write_bytes(damaged)
        read_or_refused(path)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "ICO", "SGI", "DDS", "PDF", "XBM"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_formats_that_no_image_here_has_are_unreadable_under_any_name(tmp_path, kind, suffix):
    Image.fromarray(pixels("1" if kind == "XBM" else "RGB")).save(tmp_path / f"x.{suffix}", kind)
    with raises_refusal(3, f"x.{suffix}", "expected an image"):
        read(tmp_path / f"x.{suffix}")


def test_what_libtiff_would_print_is_in_the_one_line_alone(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise // 16).save(tmp_path / "x.tif", compression="tiff_adobe_deflate")
    raw = bytearray((tmp_path / "x.tif").read_bytes())
    for place in range(20, 200):
        raw[place] ^= 0x5A
    (tmp_path / "x.tif").write_bytes(raw)
    with raises_refusal(3, "x.tif"):
        read(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [2, 5, 7, 12])
def test_a_tiff_that_says_in_another_type_where_its_pixels_are_is_unreadable(tmp_path, kind):
    raw = put(tmp_path / "x.tif", pixels("RGB")).read_bytes()
    place = max(raw.find(b"\x11\x01\x04\x00"), raw.find(b"\x11\x01\x03\x00"))
    (tmp_path / "x.tif").write_bytes(raw[: place + 2] + bytes([kind]) + raw[place + 3 :])
    with raises_refusal(3, "x.tif"):
        read(tmp_path / "x.tif")
