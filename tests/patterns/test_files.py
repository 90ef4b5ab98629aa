"""Sources of every kind, several of them, and where the answers go."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hopmem.patterns import Form, Loaded, Reading, kind_of, load
from hopmem.patterns.answers import targets
from hopmem.patterns.source import ImageForm
from tests.patterns import save
from tests.refusal import raises_refusal


def npy(path: Path, rows: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.asarray(rows))
    return str(path)


def png(path: Path, value: int = 0, shape: tuple[int, ...] = (3, 4)) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return str(path)


def feed(monkeypatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.npy", "npy"),
        ("x.NPZ", "npz"),
        ("a.b.csv", "csv"),
        ("x.tsv", "tsv"),
        ("x.safetensors", "safetensors"),
        ("x.pt", "pt"),
        ("x.pth", "pt"),
        ("x.idx", "idx"),
        ("x.idx.gz", "idx"),
        ("train-images-idx3-ubyte", "idx"),
        ("train-images-idx3-ubyte.gz", "idx"),
        ("t10k-images.idx3-ubyte", "idx"),
        ("x.JPEG", "image"),
        ("x.tiff", "image"),
        ("folder", None),
        ("x.txt", None),
        ("x.npy.gz", None),
        ("x.png.gz", None),
        ("val-idx.npy", "npy"),
        ("val-idx.csv", "csv"),
        ("val-idx.png", "image"),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_name(name, kind):
    assert kind_of(Path(name)) == kind


def test_a_missing_file_is_named_with_what_was_expected(tmp_path):
    for name in ("gone.npy", "gone.csv", "gone", "gone.idx"):
        with raises_refusal(3, name, "expected"):
            load([str(tmp_path / name)], Reading())


@pytest.mark.parametrize("name", ["x.txt", "x", "x.npy.gz"])
def test_an_unknown_kind_is_unreadable(tmp_path, name):
    (tmp_path / name).write_text("1,2")
    with raises_refusal(3, name, ".npy"):
        load([str(tmp_path / name)], Reading())


def test_several_sources_follow_one_another_and_keep_counting(tmp_path):
    first, second = npy(tmp_path / "a.npy", np.zeros((2, 3))), npy(tmp_path / "b.npy", np.ones((3, 3)))
    table = tmp_path / "c.csv"
    table.write_text("name,x,y,z\ncat,7,8,9\n")
    assert load([first, second], Reading()).names is None  # numbered by whoever stores them
    loaded = load([first, str(table), second], Reading(id_column="name"))
    assert loaded.names == ("0", "1", "cat", "3", "4", "5")
    assert loaded.stored.tolist() == [[0.0] * 3] * 2 + [[7.0, 8.0, 9.0]] + [[1.0] * 3] * 3


def test_rows_left_out_of_a_later_source_do_not_restart_the_count(tmp_path):
    first = npy(tmp_path / "a.npy", np.zeros((2, 2)))
    second = npy(tmp_path / "b.npy", [[1.0, 1.0], [np.nan, 1.0], [2.0, 2.0]])
    loaded = load([first, second], Reading(on_bad="skip"))
    assert loaded.stored.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]
    assert len(set(loaded.row_names)) == 4


def test_one_type_is_kept_and_types_that_differ_meet_in_float32(tmp_path):
    a, b = npy(tmp_path / "a.npy", np.ones((1, 2), np.int16)), npy(tmp_path / "b.npy", np.ones((1, 2), np.float64))
    assert load([a, a], Reading()).stored.dtype == torch.int16
    mixed = load([a, b], Reading()).stored
    assert mixed.dtype == torch.float32
    assert mixed.tolist() == [[1.0, 1.0]] * 2


def test_an_image_and_an_array_of_images_meet_in_one_scale(tmp_path):
    picture, array = png(tmp_path / "a.png", 51), npy(tmp_path / "b.npy", np.full((1, 3, 4), 0.2, np.float32))
    loaded = load([picture, array], Reading())
    torch.testing.assert_close(loaded.stored * loaded.scale, torch.full((2, 12), 0.2))
    assert loaded.layout == "HW"


def test_the_same_file_may_be_given_twice(tmp_path):
    assert len(load([npy(tmp_path / "a.npy", np.zeros((2, 3)))] * 2, Reading()).stored) == 4


def test_shapes_that_differ_name_both_sources(tmp_path):
    a, b = npy(tmp_path / "a.npy", np.zeros((2, 3))), npy(tmp_path / "b.npy", np.zeros((2, 4)))
    with raises_refusal(4, "a.npy", "b.npy", "[3]", "[4]"):
        load([a, b], Reading())
    with raises_refusal(4, "a.npy", "c.npy", "[3]", "[3, 1]"):
        load([a, npy(tmp_path / "c.npy", np.zeros((2, 3, 1)))], Reading())


def test_two_folders_put_their_names_before_those_of_their_images(tmp_path):
    for place in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        png(tmp_path / place)
    assert load([str(tmp_path / "cats"), str(tmp_path / "dogs")], Reading()).names == (
        "cats/1.png",
        "cats/2.png",
        "dogs/1.png",
    )
    assert load([str(tmp_path / "cats")], Reading()).names == ("1.png", "2.png")


def test_images_are_named_by_their_path_as_given_unless_it_leads_elsewhere(tmp_path, monkeypatch):
    png(tmp_path / "a" / "x.png")
    png(tmp_path / "y.png")
    monkeypatch.chdir(tmp_path / "a")
    assert load(["x.png", "../y.png", str(tmp_path / "y.png")], Reading()).names == ("x.png", "y.png", "y.png")
    monkeypatch.chdir(tmp_path)
    assert load(["a/x.png"], Reading()).names == ("a/x.png",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_a_row_that_is_not_finite_is_named_or_skipped(tmp_path, bad, dtype):
    rows = np.arange(8, dtype=dtype).reshape(4, 2)
    rows[2, 1] = bad
    path = npy(tmp_path / "a.npy", rows)
    with raises_refusal(4, "a.npy, row 2", "NaN" if np.isnan(bad) else "infinity"):
        load([path], Reading())
    loaded = load([path], Reading(on_bad="skip"))
    assert loaded.stored.tolist() == rows[[0, 1, 3]].tolist()
    assert loaded.row_names == ("0", "1", "3")
    assert [skip.name for skip in loaded.skipped] == ["2"]


def test_nan_is_unknown_in_a_query_and_an_infinity_never_is(tmp_path):
    loaded = load([npy(tmp_path / "a.npy", [[1.0, np.nan], [2.0, 3.0]])], Reading(partial=True))
    assert loaded.known.tolist() == [[True, False], [True, True]]
    assert bool(loaded.stored.isfinite().all())
    with raises_refusal(4, "row 1"):
        load([npy(tmp_path / "b.npy", [[1.0, np.nan], [np.inf, 3.0]])], Reading(partial=True))


def test_rows_are_checked_in_blocks_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr("hopmem.model.rows.AT_ONCE", 6)
    rows = np.random.default_rng(0).normal(size=(11, 2))
    rows[[1, 4, 10], [0, 1, 0]] = np.nan
    path = npy(tmp_path / "a.npy", rows)
    loaded = load([path], Reading(partial=True))
    assert np.array_equal(loaded.known.numpy(), ~np.isnan(rows))
    assert np.array_equal(loaded.stored.numpy(), np.nan_to_num(rows))
    assert [skip.name for skip in load([path], Reading(on_bad="skip")).skipped] == ["1", "4", "10"]


def test_skipping_every_row_is_an_error(tmp_path):
    with raises_refusal(4, "row 0"):
        load([npy(tmp_path / "a.npy", [[np.nan], [np.nan]])], Reading(on_bad="skip"))


def test_unknown_entries_of_one_source_leave_those_of_another_known(tmp_path):
    a, b = npy(tmp_path / "a.npy", [[1.0, 2.0]]), npy(tmp_path / "b.npy", [[np.nan, 4.0]])
    assert load([a, b], Reading(partial=True)).known.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt", "idx", "csv", "tsv", "image"])
def test_standard_input_is_read_as_the_kind_that_is_named(tmp_path, monkeypatch, kind):
    rows = torch.arange(12, dtype=torch.uint8).reshape(2, 6)
    path = tmp_path / "x.png"
    if kind == "image":
        Image.fromarray(rows.numpy()).save(path)
    else:
        save(str(path), kind, rows, Form(kind), ["0", "1"], None, scale=1.0, force=False)
    feed(monkeypatch, path.read_bytes())
    loaded = load(["-"], Reading(format=kind))
    assert loaded.form.kind == kind
    assert loaded.stored.flatten().tolist() == rows.flatten().tolist()


@pytest.mark.parametrize("kind", ["npy", "npz", "png", "jpg", "bmp", "gif", "tif", "webp", "pgm"])
def test_standard_input_tells_its_kind_by_its_first_bytes(tmp_path, monkeypatch, kind):
    path = tmp_path / f"x.{kind}"
    if kind in {"npy", "npz"}:
        save(str(path), kind, torch.zeros(3, 4), Form(kind), [], None, scale=1.0, force=False)
    else:
        png(path)
    feed(monkeypatch, path.read_bytes())
    assert load(["-"], Reading()).form.kind == (kind if kind in {"npy", "npz"} else "image")


def test_standard_input_without_data_or_kind_is_refused(monkeypatch):
    feed(monkeypatch, b"")
    with raises_refusal(4, "standard input"):
        load(["-"], Reading())
    feed(monkeypatch, b"1,2\n")
    with raises_refusal(2, "--format"):
        load(["-"], Reading())


def test_standard_input_stands_among_other_sources(tmp_path, monkeypatch):
    feed(monkeypatch, b"5,6\n")
    a = npy(tmp_path / "a.npy", np.zeros((1, 2), np.float32))
    assert load([a, "-", a], Reading(format="csv")).stored.tolist() == [[0.0, 0.0], [5.0, 6.0], [0.0, 0.0]]


def folder_form(names: list[str]) -> Form:
    return Form("folder", images=tuple(ImageForm(name, (4, 3), "L") for name in names))


PARTS = st.sampled_from(["..", ".", "", "a", "b.png", "c", "/", "~", "..."])


@given(st.lists(st.lists(PARTS, min_size=1).map("/".join), min_size=1, max_size=4), st.booleans())
def test_no_answer_leaves_its_folder_and_no_two_share_a_file(names, as_images):
    form = folder_form(names) if as_images else Form("npy")
    try:
        paths = targets("out", "folder", form, names)
    except Exception as error:
        assert getattr(error, "exit_code", 1) == 4, repr(error)
        return
    assert all(".." not in path.parts and path.parts[0] == "out" and len(path.parts) > 1 for path in paths)
    assert len(set(paths)) == len(names)


@pytest.mark.parametrize("names", [["a.png", "a.png"], ["a.png", "../a.png"], ["/a.png", "a.png"], ["b/../a", "b/a"]])
def test_two_names_for_one_file_are_both_named(names):
    with raises_refusal(4, *(repr(name) for name in names)):
        targets("out", "folder", folder_form(names), names)


def test_answers_are_written_where_they_were_announced(tmp_path):
    names = ["x.png", "deep/er/y.png", "../z.png", "/etc/w.png"]
    form = folder_form(names)
    target = tmp_path / "here" / "out"
    announced = targets(str(target), "folder", form, names)
    save(str(target), "folder", torch.zeros(4, 3, 4), form, names, "HW", scale=1.0, force=False)
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(found) == sorted(announced)
    assert all(target in path.parents for path in found)


def test_named_rows_become_images_of_their_names(tmp_path):
    save(str(tmp_path), "folder", torch.zeros(2, 3, 4), Form("npy"), ["0", "1"], "HW", scale=1.0, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_nothing_is_overwritten_without_force(tmp_path):
    path = npy(tmp_path / "a.npy", [[1.0]])
    before = Path(path).read_bytes()
    with raises_refusal(2, "a.npy", "--force"):
        save(path, "npy", torch.zeros(1, 1), Form("npy"), ["0"], None, scale=1.0, force=False)
    assert Path(path).read_bytes() == before
    save(path, "npy", torch.zeros(1, 1), Form("npy"), ["0"], None, scale=1.0, force=True)
    assert np.load(path).tolist() == [[0.0]]


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "tsv", "safetensors", "pt", "idx", "image"])
def test_standard_output_gets_the_bytes_of_the_file(tmp_path, monkeypatch, kind):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    array = torch.linspace(0, 1, 12).reshape(1, 3, 4)
    save("-", kind, array, Form(kind), ["0"], "HW", scale=1.0, force=False)
    monkeypatch.undo()
    feed(monkeypatch, out.getvalue())
    loaded: Loaded = load(["-"], Reading(format=kind))
    torch.testing.assert_close(loaded.stored.flatten() * loaded.scale, array.flatten(), atol=1 / 500, rtol=0)


def test_rows_that_are_no_images_cannot_become_pictures(tmp_path):
    with raises_refusal(2, "images"):
        save(str(tmp_path / "x.png"), "image", torch.zeros(1, 5), Form("npy"), ["0"], None, scale=1.0, force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["HW", "HWC", "CHW"])
def test_pictures_of_every_layout_show_the_same(tmp_path, layout):
    image = np.random.default_rng(0).integers(0, 256, (3, 4) if layout == "HW" else (3, 4, 3), np.uint8)
    array = torch.from_numpy(image if layout != "CHW" else image.transpose(2, 0, 1).copy())[None]
    save(str(tmp_path / "x.png"), "image", array, Form("npy"), ["0"], layout, scale=1 / 255, force=False)
    with Image.open(tmp_path / "x.png") as written:
        assert np.array_equal(np.asarray(written), image)
