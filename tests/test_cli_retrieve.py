"""`hopmem retrieve`: answers in the kind of the queries, the options that shape them, and partial queries."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from safetensors.numpy import save_file as save_safetensors

from tests import reference
from tests.conftest import IMAGE_NAMES, VECTOR_NAMES, Array, Ask, Hopmem


def parsed(text: str) -> Array:
    return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)


def seen(path: Path) -> tuple[Array, str, tuple[int, int], str | None]:
    """The pixels, mode, size and format of an image file."""
    with Image.open(path) as image:
        return np.array(image), image.mode, image.size, image.format


def spoilt(vectors: Array, seed: int = 3) -> Array:
    return vectors + 0.3 * np.random.default_rng(seed).standard_normal(vectors.shape).astype(np.float32)


@pytest.fixture
def noisy(tmp_path: Path, vectors: Array) -> Path:
    """The vectors with noise on them, as .npy."""
    np.save(tmp_path / "noisy.npy", spoilt(vectors))
    return tmp_path / "noisy.npy"


@pytest.mark.parametrize("kind", ["raw", "learned"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("alpha", [1, 1.25, 1.5, 2, 3])
def test_every_alpha_retrieves_as_the_equations_say(
    alpha, steps, kind, hopmem: Hopmem, ask: Ask, tmp_path: Path, noisy: Path, bank: Path, learned: Path, vectors: Array
):
    chosen = learned if kind == "learned" else bank
    tensors = load_file(chosen)
    phi = tensors.get("feature_map.weight"), tensors.get("feature_map.bias")
    Z, Y = reference.features(vectors, *phi), reference.features(np.load(noisy), *phi)
    options = ["--alpha", alpha, "--beta", 6, "--steps", steps, "--tolerance", 0]
    said = ask("retrieve", chosen, noisy, "-o", tmp_path / "out.npy", *options)
    assert (said["alpha"], said["beta"]) == (alpha, 6)
    for row, (answer, found) in enumerate(zip(np.load(tmp_path / "out.npy"), said["results"], strict=True)):
        p, expected = reference.retrieve(Y[row], Z, vectors, alpha, 6, steps)
        np.testing.assert_allclose(answer, expected, atol=1e-4)
        assert found["confidence"] == pytest.approx(p.max(), abs=1e-4)
        assert found["margin"] == pytest.approx(p.max() - np.sort(p)[-2], abs=1e-4)
        assert (found["match"], found["index"]) == (VECTOR_NAMES[p.argmax()], p.argmax())
        assert found["state"] in {"single", "metastable", "global"}


def test_beta_auto_is_what_the_bank_remembers_and_is_the_default(ask: Ask, bank: Path, array: Path):
    beta = ask("retrieve", bank, array)["beta"]
    assert beta == ask("retrieve", bank, array, "--beta", "auto")["beta"] > 0
    assert ask("retrieve", bank, array, "--beta", beta)["results"] == ask("retrieve", bank, array)["results"]


def test_beta_auto_says_that_it_left_repeats_aside(ask: Ask, tmp_path: Path, vectors: Array):
    np.save(tmp_path / "twice.npy", np.concatenate([vectors, vectors[:1]]))
    ask("store", tmp_path / "twice.npy", "-o", tmp_path / "bank.safetensors")
    said = ask("retrieve", tmp_path / "bank.safetensors", tmp_path / "twice.npy")
    assert any("repeat" in warning for warning in said["warnings"])
    assert f"{said['beta']:.6g}" in said["warnings"][0]


def test_beta_zero_mixes_all_and_a_large_beta_picks_one(ask: Ask, bank: Path, array: Path):
    assert {found["state"] for found in ask("retrieve", bank, array, "--beta", 0)["results"]} == {"global"}
    assert {found["state"] for found in ask("retrieve", bank, array, "--beta", 1000)["results"]} == {"single"}


def test_tolerance_stops_a_query_that_no_longer_moves(ask: Ask, bank: Path, noisy: Path):
    said = ask("retrieve", bank, noisy, "--steps", 500, "--tolerance", 1e-3)
    assert said["steps"] == max(found["steps"] for found in said["results"]) < 500
    assert all(found["converged"] for found in said["results"])
    hurried = ask("retrieve", bank, noisy, "--steps", 1, "--tolerance", 0, "--beta", 2)["results"]
    assert not any(found["converged"] for found in hurried)


def test_the_energy_never_rises_along_the_steps(ask: Ask, bank: Path, noisy: Path):
    energies = [
        [found["energy"] for found in ask("retrieve", bank, noisy, "--beta", 4, "--steps", steps)["results"]]
        for steps in (1, 2, 3, 8)
    ]
    assert (np.diff(energies, axis=0) <= 1e-5).all()


def test_snap_returns_the_stored_pattern_itself(hopmem: Hopmem, tmp_path: Path, bank: Path, noisy: Path, vectors):
    hopmem("retrieve", bank, noisy, "--beta", 5, "--snap", "-o", tmp_path / "out.npy")
    nearest = (reference.features(np.load(noisy)) @ reference.features(vectors).T).argmax(1)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors[nearest])


def test_top_names_the_memories_of_the_largest_weights(ask: Ask, bank: Path, noisy: Path, vectors: Array):
    Z, Y = reference.features(vectors), reference.features(np.load(noisy))
    for found, y in zip(ask("retrieve", bank, noisy, "--top", 3, "--beta", 3)["results"], Y, strict=True):
        p = reference.weights(y, Z, 1, 3)
        best = np.argsort(-p)[:3]
        assert [each["index"] for each in found["top"]] == best.tolist()
        assert [each["match"] for each in found["top"]] == [VECTOR_NAMES[row] for row in best]
        np.testing.assert_allclose([each["weight"] for each in found["top"]], p[best], atol=1e-5)


def test_top_beyond_the_bank_names_all(ask: Ask, bank: Path, noisy: Path):
    assert all(len(found["top"]) == 12 for found in ask("retrieve", bank, noisy, "--top", 99)["results"])


def test_an_answer_under_the_least_confidence_is_rejected(hopmem: Hopmem, ask: Ask, bank: Path, noisy: Path):
    options = ["--beta", 3, "--min-confidence", 0.35]
    results = ask("retrieve", bank, noisy, *options)["results"]
    assert [found["match"] is None for found in results] == [found["confidence"] < 0.35 for found in results]
    assert len({found["match"] is None for found in results}) == 2
    assert "rejected" in hopmem("retrieve", bank, noisy, *options).stdout


# ── partial queries ──────────────────────────────────────────────────────────────────────────────────────────────────


def hide(vectors: Array) -> tuple[Array, Array]:
    """The vectors with a few other entries of each unknown."""
    hidden = np.random.default_rng(7).permuted(np.tile([1, 1, 0, 0, 0, 0], (12, 1)), axis=1).astype(bool)
    return hidden, np.where(hidden, np.nan, spoilt(vectors)).astype(np.float32)


def nearest_on_known(queries: Array, vectors: Array) -> list[str]:
    cosines = [[reference.cosine_on_known(np.nan_to_num(x), ~np.isnan(x), v) for v in vectors] for x in queries]
    return [VECTOR_NAMES[row] for row in np.argmax(cosines, 1)]


@pytest.mark.parametrize("how", ["NaN", "--missing 0", "--missing -9", "mask for each", "empty cells"])
def test_unknown_entries_are_left_out_and_filled_in(
    how, ask: Ask, tmp_path: Path, bank: Path, table: Path, vectors: Array
):
    hidden, partial = hide(vectors)
    value = {"--missing 0": 0, "--missing -9": -9, "mask for each": 123}.get(how, np.nan)
    np.save(tmp_path / "q.npy", np.where(hidden, np.float32(value), partial))
    np.save(tmp_path / "mask.npy", hidden)
    (tmp_path / "q.csv").write_text(
        "".join(",".join("" if np.isnan(x) else str(x) for x in row) + "\n" for row in partial.tolist())
    )
    options = {"mask for each": ["--mask", tmp_path / "mask.npy"]}.get(how, how.split() if how[0] == "-" else [])
    name = "q.csv" if how == "empty cells" else "q.npy"
    said = ask("retrieve", bank, tmp_path / name, "-o", tmp_path / f"out.{name}", *options)
    answers = parsed((tmp_path / "out.q.csv").read_text()) if name == "q.csv" else np.load(tmp_path / "out.q.npy")
    assert [found["match"] for found in said["results"]] == nearest_on_known(partial, vectors)
    np.testing.assert_allclose(answers[~hidden], partial[~hidden], rtol=1e-6)  # what is known stays as it was
    sure = np.array([found["confidence"] > 0.99999 for found in said["results"]])
    best = vectors[[found["index"] for found in said["results"]]]
    assert sure.sum() >= 6
    np.testing.assert_allclose(answers[sure][hidden[sure]], best[sure][hidden[sure]], atol=1e-3)


def test_one_mask_hides_the_same_entries_of_all_queries(ask: Ask, tmp_path: Path, bank: Path, array: Path, vectors):
    np.save(tmp_path / "mask.npy", np.array([0, 1, 0, 0, 0, 1], np.uint8))
    ask("retrieve", bank, array, "--mask", tmp_path / "mask.npy", "-o", tmp_path / "out.npy")
    kept = [0, 2, 3, 4]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy")[:, kept], vectors[:, kept])


def test_snap_returns_the_stored_pattern_of_a_partial_query_too(
    hopmem: Hopmem, ask: Ask, tmp_path: Path, bank, vectors
):
    np.save(tmp_path / "q.npy", hide(vectors)[1])
    said = ask("retrieve", bank, tmp_path / "q.npy", "--snap", "-o", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors[[f["index"] for f in said["results"]]])


@pytest.mark.parametrize("how", ["image mask", "transparent pixels", "array mask", "folder of masks"])
def test_hidden_pixels_come_back_and_the_others_stay(how, ask: Ask, tmp_path: Path, image_bank: Path, pixels: Array):
    hidden = np.zeros((6, 8), bool)
    hidden[2:5, 3:] = True
    covered = np.where(hidden[..., None], np.uint8(77), pixels)
    for path in (tmp_path / "in", tmp_path / "masks"):
        path.mkdir()
    Image.fromarray(hidden).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", hidden[None])
    for place, image in enumerate(covered):
        alpha = np.where(hidden, 0, 255).astype(np.uint8)
        clear = np.dstack([image, alpha]) if how == "transparent pixels" else image
        Image.fromarray(clear).save(tmp_path / "in" / f"{place}.png")
        Image.fromarray(hidden).save(tmp_path / "masks" / f"{place}.png")
    mask = {"image mask": "mask.png", "array mask": "mask.npy", "folder of masks": "masks"}.get(how)
    options = ["--mask", tmp_path / mask] if mask else []
    said = ask("retrieve", image_bank, tmp_path / "in", "-o", tmp_path / "out", *options)
    assert [found["match"] for found in said["results"]] == list(IMAGE_NAMES)
    for place, image in enumerate(pixels):
        answer = seen(tmp_path / "out" / f"{place}.png")[0]
        np.testing.assert_array_equal(answer[..., :3], image)
        assert how != "transparent pixels" or (answer[..., 3] == 255).all()


def test_a_query_of_which_nothing_is_known_can_be_skipped(ask: Ask, tmp_path: Path, bank: Path, vectors: Array):
    partial = vectors.copy()
    partial[4] = np.nan
    np.save(tmp_path / "q.npy", partial)
    said = ask("retrieve", bank, tmp_path / "q.npy", "-o", tmp_path / "out.npy", "--on-bad", "skip", code=7)
    assert [skip["name"] for skip in said["skipped"]] == ["4"]
    assert [found["query"] for found in said["results"]] == [str(row) for row in range(12) if row != 4]
    assert len(np.load(tmp_path / "out.npy")) == 11


# ── kinds of output ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def gallery(tmp_path: Path, folder: Path) -> Path:
    """The images with noise, under the same names, with other modes and other files among them."""
    shutil.copytree(folder, tmp_path / "gallery")
    for place, name in enumerate(IMAGE_NAMES):
        image = seen(folder / name)[0].astype(int)
        noise = np.random.default_rng(place).integers(-40, 41, image.shape)
        picture = Image.fromarray((image + noise).clip(0, 255).astype(np.uint8))
        picture.convert({"e.png": "RGBA", "f.png": "L"}.get(name, "RGB")).save(tmp_path / "gallery" / name)
    return tmp_path / "gallery"


def test_an_image_folder_becomes_a_folder_of_the_same_names_sizes_and_modes(
    ask: Ask, tmp_path: Path, gallery: Path, image_bank: Path, pixels: Array
):
    said = ask("retrieve", image_bank, gallery, "--snap", "-o", tmp_path / "out")
    assert [found["match"] for found in said["results"]] == list(IMAGE_NAMES)
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == list(IMAGE_NAMES)
    for name, stored in zip(IMAGE_NAMES, pixels, strict=True):
        answer, *form = seen(tmp_path / "out" / name)
        assert form == [*seen(gallery / name)[1:]]
        np.testing.assert_array_equal(answer, np.asarray(Image.fromarray(stored).convert(form[0])))


def test_answers_have_the_size_of_the_query_where_the_bank_was_resized(hopmem: Hopmem, tmp_path: Path, folder: Path):
    hopmem("store", folder, "--size", "4x3", "-o", tmp_path / "bank.safetensors")
    hopmem("retrieve", tmp_path / "bank.safetensors", folder, "-o", tmp_path / "out")
    assert seen(tmp_path / "out" / "a.png")[2] == (8, 6)


def test_one_image_becomes_one_image(hopmem: Hopmem, tmp_path: Path, folder: Path, image_bank: Path, pixels: Array):
    hopmem("retrieve", image_bank, folder / "b.bmp", "-o", tmp_path / "answer.png")
    np.testing.assert_array_equal(seen(tmp_path / "answer.png")[0], pixels[1])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_an_array_becomes_an_array_of_the_same_type_and_shape(
    dtype, hopmem: Hopmem, tmp_path: Path, bank: Path, vectors: Array
):
    np.save(tmp_path / "q.npy", vectors.astype(dtype))
    hopmem("retrieve", bank, tmp_path / "q.npy", "--snap", "-o", tmp_path / "out.npy")
    answers = np.load(tmp_path / "out.npy")
    assert (answers.dtype, answers.shape) == (np.dtype(dtype), vectors.shape)
    np.testing.assert_array_equal(answers, vectors.astype(dtype))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("axes", ["HWC", "CHW"])
def test_image_arrays_keep_their_axes_and_their_units(dtype, axes, hopmem: Hopmem, tmp_path: Path, image_bank, pixels):
    queries = pixels if dtype == "uint8" else pixels.astype(np.float32) / 255
    queries = queries if axes == "HWC" else np.ascontiguousarray(queries.transpose(0, 3, 1, 2))
    np.save(tmp_path / "q.npy", queries)
    hopmem("retrieve", image_bank, tmp_path / "q.npy", "--snap", "-o", tmp_path / "out.npy")
    answers = np.load(tmp_path / "out.npy")
    assert answers.dtype == queries.dtype
    np.testing.assert_allclose(answers, queries, atol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".tsv", ".safetensors", ".idx"])
def test_the_name_of_the_output_chooses_its_kind(suffix, hopmem: Hopmem, tmp_path: Path, bank: Path, array, vectors):
    out = tmp_path / f"out{suffix}"
    hopmem("retrieve", bank, array, "--snap", "-o", out)
    if suffix == ".npz":
        (answers,) = np.load(out).values()
    elif suffix == ".safetensors":
        (answers,) = load_file(out).values()
    elif suffix in {".csv", ".tsv"}:
        answers = parsed(out.read_text().replace("\t", ","))
    elif suffix == ".idx":
        answers = np.frombuffer(out.read_bytes(), ">f4", offset=12).reshape(12, 6)
    else:
        answers = np.load(out)
    np.testing.assert_allclose(answers, vectors, rtol=1e-6)


def test_a_key_is_kept(hopmem: Hopmem, tmp_path: Path, bank: Path, vectors: Array):
    save_safetensors({"spikes": vectors}, tmp_path / "q.safetensors")
    hopmem("retrieve", bank, tmp_path / "q.safetensors", "--snap", "-o", tmp_path / "out.safetensors")
    np.testing.assert_array_equal(load_file(tmp_path / "out.safetensors")["spikes"], vectors)


def test_a_table_keeps_its_header_and_its_ids(hopmem: Hopmem, tmp_path: Path, bank: Path, table: Path, vectors: Array):
    hopmem("retrieve", bank, table, "--id-column", "name", "--snap", "-o", tmp_path / "out.csv")
    asked, answered = (
        [line.split(",") for line in path.read_text().splitlines()] for path in (table, tmp_path / "out.csv")
    )
    assert answered[0] == asked[0]
    assert [line[0] for line in answered] == [line[0] for line in asked]
    np.testing.assert_allclose(np.array([line[1:] for line in answered[1:]], np.float32), vectors, rtol=1e-6)


def test_a_folder_of_images_becomes_an_array_where_the_name_says_so(
    hopmem: Hopmem, tmp_path: Path, folder: Path, image_bank: Path, pixels: Array
):
    hopmem("retrieve", image_bank, folder, "--snap", "-o", tmp_path / "out.npy")
    answers = np.load(tmp_path / "out.npy")
    assert answers.dtype == np.uint8
    np.testing.assert_array_equal(answers, pixels)


def test_an_array_of_images_becomes_a_folder_where_the_name_says_so(
    hopmem: Hopmem, tmp_path: Path, image_bank: Path, pixels: Array
):
    np.save(tmp_path / "q.npy", pixels)
    hopmem("retrieve", image_bank, tmp_path / "q.npy", "--snap", "-o", f"{tmp_path}/out/")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{row}.png" for row in range(6)]
    for row, image in enumerate(pixels):
        np.testing.assert_array_equal(seen(tmp_path / "out" / f"{row}.png")[0], image)


@pytest.mark.parametrize("options", [[], ["-o", "-"]], ids=["by default", "by name"])
def test_stdin_goes_to_stdout_and_the_table_to_stderr(options, hopmem: Hopmem, bank: Path, array: Path, vectors: Array):
    result = hopmem("retrieve", bank, "-", "--snap", *options, stdin=array.read_bytes())
    np.testing.assert_array_equal(np.load(io.BytesIO(result.stdout_bytes)), vectors)
    assert "12 queries" in result.stderr


def test_a_table_on_stdin_is_a_table_on_stdout(hopmem: Hopmem, bank: Path, table: Path, vectors: Array):
    options = ["--format", "csv", "--id-column", "name", "--snap", "-q"]
    result = hopmem("retrieve", bank, "-", *options, stdin=table.read_bytes())
    lines = result.stdout.splitlines()
    assert lines[0] == "name,x0,x1,x2,x3,x4,x5"
    np.testing.assert_allclose(parsed("\n".join(line[2:] for line in lines[1:])), vectors, rtol=1e-6)
    assert result.stderr == ""


def test_an_image_on_stdin_is_an_image_on_stdout(hopmem: Hopmem, folder: Path, image_bank: Path, pixels: Array):
    result = hopmem("retrieve", image_bank, "-", "-q", stdin=(folder / "a.png").read_bytes())
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result.stdout_bytes))), pixels[0])


def test_json_takes_the_place_of_answers_on_stdout(ask: Ask, bank: Path, array: Path):
    assert len(ask("retrieve", bank, "-", stdin=array.read_bytes())["results"]) == 12


@pytest.mark.parametrize("options", [[], ["--top", "2"], ["--min-confidence", "1"]], ids=" ".join)
def test_ndjson_is_a_line_for_each_query_the_same_as_in_the_json(options, hopmem: Hopmem, ask: Ask, bank, noisy: Path):
    result = hopmem("retrieve", bank, noisy, "--ndjson", *options)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines == ask("retrieve", bank, noisy, *options)["results"]
    assert ("rejected" in result.stderr) == ("--min-confidence" in options)


def test_queries_are_named_by_file_row_or_id(ask: Ask, bank: Path, image_bank: Path, array: Path, table: Path, folder):
    def named(*args: Any) -> list[str]:
        return [found["query"] for found in ask("retrieve", *args)["results"]]

    assert named(image_bank, folder) == list(IMAGE_NAMES)
    assert named(bank, array) == [str(row) for row in range(12)]
    assert named(bank, table, "--id-column", "name") == list(VECTOR_NAMES)


def test_more_queries_than_a_table_shows_are_counted_in_it(hopmem: Hopmem, bank: Path, array: Path):
    assert "4 more" in hopmem("retrieve", bank, array, array).stdout


def test_a_bad_image_among_the_queries_is_skipped(ask: Ask, tmp_path: Path, gallery: Path, image_bank: Path):
    (gallery / "c.png").write_bytes(b"no picture")
    said = ask("retrieve", image_bank, gallery, "-o", tmp_path / "out", "--on-bad", "skip", code=7)
    assert [skip["name"] for skip in said["skipped"]] == ["c.png"]
    assert [found["query"] for found in said["results"]] == list(IMAGE_NAMES)
    assert not (tmp_path / "out" / "c.png").exists()


def test_plot_draws_queries_and_answers(hopmem: Hopmem, tmp_path: Path, gallery: Path, image_bank: Path):
    result = hopmem("retrieve", image_bank, gallery, "--plot", tmp_path / "sheet.png")
    _, mode, _, format_ = seen(tmp_path / "sheet.png")
    assert (mode, format_) == ("RGB", "PNG")
    assert "6 queries" in result.stdout


def test_retrieve_leaves_the_bank_and_the_queries_as_they_were(hopmem: Hopmem, tmp_path: Path, bank: Path, noisy: Path):
    before = bank.read_bytes(), noisy.read_bytes()
    hopmem("retrieve", bank, noisy, "-o", tmp_path / "out.npy")
    assert (bank.read_bytes(), noisy.read_bytes()) == before


def test_answers_may_replace_their_own_queries_by_force(hopmem: Hopmem, bank: Path, noisy: Path, vectors: Array):
    hopmem("retrieve", bank, noisy, "--snap", "-o", noisy, "--force")
    np.testing.assert_array_equal(np.load(noisy), vectors)
