"""The bank: what is saved is what is loaded, any safetensors reader opens it, and damage is told."""

import hashlib
import json
import math
import stat
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hopmem import header
from hopmem.bank import FORMAT, Learning, MemoryBank, Tuning, tune
from hopmem.model.kernel import FeatureMap
from hopmem.model.rows import Patterns
from tests.refusal import raises_refusal
from tests.verbs import randn

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = [
    "",
    "plain",
    "line\nbreak",
    "tab\t\0nul",
    "größe 北京 😀",
    "\udcff\udc80.png",
    "a" * 4000,
    "é" * 2000,
    "a",
    "a",
]
LEARNING = Learning(
    steps=3,
    temperature=2.0,
    batch_size=16,
    feature_dimension=4,
    curve=(-1.0, -1.5, -1.75),
    loss={"first": -1.0, "last": -2.0},
    separation={"raw": {"max_cosine": 0.9, "min_angle_degrees": 25.8, "mean_cosine": 0.1}, "learned": {}},
)


def numbers(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return (randn(*shape) * 50).abs().to(dtype)


def learned_bank(dtype: torch.dtype = torch.uint8, names: list[str] = NAMES) -> MemoryBank:
    """A bank of colour images with everything that a bank can have."""
    M, d, D = len(names), 12, 4
    return MemoryBank(
        patterns=numbers(dtype, M, d),
        names=tuple(names),
        shape=(2, 2, 3),
        scale=1 / 255,
        layout="HWC",
        resized=(2, 2),
        phi=FeatureMap(randn(D, d), randn(D)),
        features=randn(M, D),
        values=numbers(torch.float16, M, 6),
        values_shape=(2, 3),
        values_scale=0.25,
        values_layout="HW",
        objective="average",
        alpha=1.5,
        seed=7,
        tuning=Tuning(12.5, 0.25, "smallest Δ"),
        learning=LEARNING,
    )


def plain(bank: MemoryBank) -> dict[str, object]:
    """The fields of a bank as what == compares."""

    def comparable(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value.dtype, value.tolist()
        return (comparable(value.W), comparable(value.b)) if isinstance(value, FeatureMap) else value

    return {each.name: comparable(getattr(bank, each.name)) for each in fields(bank)}


def round_trip(bank: MemoryBank, path: Path) -> MemoryBank:
    bank.save(path)
    return MemoryBank.load(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_survives_the_round_trip_in_every_field(tmp_path, dtype):
    bank = learned_bank(dtype)
    assert plain(round_trip(bank, tmp_path / "x.safetensors")) == plain(bank)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_float_bank_is_read_without_loss(tmp_path, dtype):
    X = randn(5, 3).to(dtype)
    bank = round_trip(MemoryBank.from_patterns(X), tmp_path / "x.safetensors")
    assert torch.equal(bank.rows()[slice(0, 5)], X.float())


@settings(max_examples=40, deadline=None)
@given(
    names=st.lists(st.text() | st.binary(max_size=9).map(lambda b: b.decode("utf-8", "surrogateescape")), min_size=1),
    numbered=st.booleans(),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(min_value=1e-300, allow_infinity=False),
    alpha=st.floats(1, 1e6),
    seed=st.integers(0, 2**63),
    tuning=st.none() | st.builds(Tuning, st.floats(0, 1e30), st.floats(0, 2), st.text()),
)
def test_any_bank_survives_the_round_trip(tmp_path_factory, names, numbered, shape, dtype, scale, alpha, seed, tuning):
    bank = MemoryBank.from_patterns(numbers(dtype, len(names), *shape), None if numbered else names)
    bank = replace(bank, scale=scale, alpha=alpha, seed=seed, tuning=tuning)
    assert plain(round_trip(bank, tmp_path_factory.getbasetemp() / "any.safetensors")) == plain(bank)


def test_a_name_that_utf8_cannot_hold_is_refused():
    with raises_refusal(4, "names", "ud800"):
        MemoryBank.from_patterns(torch.eye(1), ["\ud800"])


def test_patterns_may_be_their_own_values(tmp_path):
    X = torch.eye(3)
    bank = round_trip(MemoryBank.from_patterns(X, values=X), tmp_path / "x.safetensors")
    assert torch.equal(bank.values, X)


def test_a_plain_reader_finds_the_tensors_of_the_contract(tmp_path):
    bank = learned_bank()
    bank.save(tmp_path / "x.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "x.safetensors")
    expected = {"patterns", "names", "names.offsets", "feature_map.weight", "feature_map.bias", "features", "values"}
    assert set(tensors) == expected
    assert torch.equal(tensors["patterns"], bank.patterns)
    assert torch.equal(tensors["features"], bank.features)
    assert torch.equal(tensors["feature_map.weight"], bank.phi.W)
    raw, ends = bytes(tensors["names"].tolist()), tensors["names.offsets"].tolist()
    assert tensors["names"].dtype == torch.uint8
    assert [raw[a:b] for a, b in pairwise(ends)] == [name.encode("utf-8", "surrogateescape") for name in NAMES]


def test_the_header_says_what_the_tensors_are(tmp_path):
    learned_bank().save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        metadata = file.metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["format"] == "hopmem.bank/1"
    assert json.loads(metadata["shape"]) == [2, 2, 3]
    assert (metadata["mode"], metadata["objective"]) == ("RGB", "average")
    assert [json.loads(metadata[key]) for key in ("scale", "alpha", "beta", "seed")] == [1 / 255, 1.5, 12.5, 7]


def test_a_raw_bank_stores_no_map(tmp_path):
    MemoryBank.from_patterns(randn(4, 3)).save(tmp_path / "x.safetensors")
    assert set(safetensors.torch.load_file(tmp_path / "x.safetensors")) == {"patterns", "names", "names.offsets"}


def test_a_bank_of_8_bit_images_takes_a_byte_for_each_pixel(tmp_path):
    MemoryBank.from_patterns(torch.zeros(500, 28, 28, dtype=torch.uint8)).save(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_size < 500 * (784 + 20) + 2000


def test_many_long_names_fit_since_they_are_no_part_of_the_header(tmp_path):
    names = [f"{row:04}" * 1000 for row in range(2000)]
    bank = round_trip(MemoryBank.from_patterns(torch.zeros(2000, 1), names), tmp_path / "x.safetensors")
    assert bank.names == tuple(names)
    with (tmp_path / "x.safetensors").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") < 5000


def test_names_are_read_when_they_are_asked_for(tmp_path):
    names = [f"{row}-é\udcff" for row in range(70_000)]
    MemoryBank.from_patterns(torch.ones(len(names), 1), names=names).save(tmp_path / "bank")
    found = MemoryBank.load(tmp_path / "bank").names
    assert not isinstance(found, tuple | list)
    assert (found[0], found[-1], found[69_999]) == (names[0], names[-1], names[-1])
    assert found[65_535:65_538] == tuple(names[65_535:65_538])
    assert found == names
    assert found != names[::-1]
    assert "1-é\udcff" in found
    with pytest.raises(IndexError):
        found[70_000]


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        learned_bank().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_checksums_in_the_header_are_those_of_the_bytes_however_many_parts_they_come_in(tmp_path):
    X = torch.randint(0, 256, (700, 1001), dtype=torch.uint8)
    MemoryBank.from_patterns(X).save(tmp_path / "bank")
    with safe_open(tmp_path / "bank", framework="pt") as bank:
        assert torch.equal(bank.get_tensor("patterns"), X)
        kept = json.loads(bank.metadata()["checksums"])
        tensors = {name: bank.get_tensor(name).numpy().tobytes() for name in bank.keys()}  # noqa: SIM118
    assert {name: hashlib.sha256(raw).hexdigest() for name, raw in tensors.items()}.items() <= kept.items()
    assert header.read(tmp_path / "bank").checksums == kept  # as many as there are tensors, and the header's own


def test_reading_out_passes_over_no_memories_even_where_a_map_has_an_offset(monkeypatch):
    bank = replace(MemoryBank.from_patterns(randn(20, 4)), phi=FeatureMap(randn(3, 4), randn(3)))

    def passed(_: Patterns) -> torch.Tensor:
        raise AssertionError("all memories were read for their mean")

    monkeypatch.setattr(Patterns, "mean", passed)
    assert bank.readout().dimension == 4
    with pytest.raises(AssertionError, match="mean"):
        bank.memory()


def test_a_missing_bank_is_named(tmp_path):
    with raises_refusal(3, "gone.safetensors", "hopmem store"):
        MemoryBank.load(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"PK\x03\x04" * 99])
def test_what_is_no_safetensors_file_is_no_bank(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with raises_refusal(6, "x", "safetensors"):
        MemoryBank.load(tmp_path / "x")


def test_a_folder_is_no_bank(tmp_path):
    with raises_refusal(3, str(tmp_path), "a folder"):
        MemoryBank.load(tmp_path)


def test_a_bank_cut_short_anywhere_is_no_bank(tmp_path):
    learned_bank(names=["a", "b"]).save(tmp_path / "x")
    raw = (tmp_path / "x").read_bytes()
    for length in [*range(0, len(raw), 97), len(raw) - 1]:
        (tmp_path / "cut").write_bytes(raw[:length])
        with raises_refusal(6, "cut"):
            MemoryBank.load(tmp_path / "cut")


def parts(bank: MemoryBank, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a saved bank."""
    bank.save(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 # no dictionary


def forge(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None) -> Path:
    safetensors.torch.save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("format_", "found"),
    [(None, "another kind"), ("pt", "another kind"), ("hopmem.bank/2", "hopmem.bank/2"), ("hopmem.bank/1.1", "/1.1")],
)
def test_another_format_or_version_is_told(tmp_path, format_, found):
    tensors, metadata = parts(learned_bank(), tmp_path / "x")
    with raises_refusal(6, "y", found):
        MemoryBank.load(forge(tmp_path / "y", tensors, metadata | {"format": format_} if format_ else None))


@pytest.mark.parametrize("name", ["patterns", "names", "names.offsets"])
def test_a_bank_without_a_tensor_is_not_whole(tmp_path, name):
    tensors, metadata = parts(learned_bank(), tmp_path / "x")
    del tensors[name]
    with raises_refusal(6, name):
        MemoryBank.load(forge(tmp_path / "y", tensors, metadata))


@pytest.mark.parametrize("key", ["shape", "scale", "layout", "objective", "alpha", "seed", "tuning", "learning"])
@pytest.mark.parametrize("value", [None, "not JSON", "[1, {}]"])
def test_a_bank_with_missing_or_damaged_metadata_is_not_whole(tmp_path, key, value):
    if key == "objective" and value:
        pytest.skip("any text is an objective")
    tensors, metadata = parts(learned_bank(), tmp_path / "x")
    damaged = {name: text for name, text in metadata.items() if name != key} | ({key: value} if value else {})
    with raises_refusal(6, "y"):
        MemoryBank.load(forge(tmp_path / "y", tensors, damaged))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patterns", (10, 11)),
        ("patterns", (9, 12)),
        ("patterns", (120,)),
        ("patterns", (0, 12)),
        ("feature_map.weight", (4, 11)),
        ("feature_map.bias", (5,)),
        ("features", (10, 5)),
        ("features", (9, 4)),
        ("values", (10, 5)),
        ("values", (11, 6)),
        ("names.offsets", (9,)),
        ("names.offsets", (0,)),
        ("names", (3,)),
    ],
)
def test_tensors_that_do_not_belong_together_are_told(tmp_path, name, shape):
    tensors, metadata = parts(learned_bank(), tmp_path / "x")
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    with raises_refusal(6, "y"):
        MemoryBank.load(forge(tmp_path / "y", tensors, metadata))


@pytest.mark.parametrize("offsets", [[1, 2, 3], [0, 2, 1], [0, 1, 99], [0, -1, 2]])
def test_names_that_do_not_fill_their_bytes_are_told(tmp_path, offsets):
    tensors, metadata = parts(learned_bank(names=["a", "b"]), tmp_path / "x")
    tensors["names.offsets"] = torch.tensor(offsets)
    with raises_refusal(6, "y"):
        MemoryBank.load(forge(tmp_path / "y", tensors, metadata))


def test_a_failure_while_saving_leaves_the_old_bank_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    learned_bank().save(path)
    before = path.read_bytes()

    def fail(tensors, target, metadata, **_how):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hopmem.bank.file.save_file", fail)
    with raises_refusal(3, str(path), "No space"):
        MemoryBank.from_patterns(torch.eye(2)).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_keeps_permissions_and_links(tmp_path):
    path, link = tmp_path / "x.safetensors", tmp_path / "link.safetensors"
    learned_bank().save(path)
    path.chmod(0o640)
    link.symlink_to(path)
    MemoryBank.from_patterns(torch.eye(2)).save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(MemoryBank.load(path)) == 2


def test_a_bank_may_be_saved_over_the_one_that_it_was_loaded_from(tmp_path):
    path = tmp_path / "x.safetensors"
    bank = learned_bank()
    bank.save(path)
    loaded = MemoryBank.load(path)
    replace(loaded, seed=8).save(path)
    assert plain(MemoryBank.load(path)) == plain(replace(bank, seed=8))
    assert plain(loaded) == plain(bank)


def test_nothing_is_overwritten_without_force(tmp_path):
    learned_bank().save(tmp_path / "x")
    with raises_refusal(2, "--force"):
        learned_bank().save(tmp_path / "x", force=False)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor, lambda X: np.asarray(X).tolist()])
def test_a_bank_is_made_of_arrays_tensors_or_lists(make):
    X = np.arange(24.0).reshape(2, 3, 4)
    bank = MemoryBank.from_patterns(make(X), values=make(X[:, 0]))
    assert np.array_equal(bank.patterns.numpy(), X.reshape(2, 12))
    assert (bank.shape, bank.values_shape, bank.names) == ((3, 4), (4,), ("0", "1"))
    assert (len(bank), bank.dimension, bank.feature_dimension) == (2, 12, 12)


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        3.0,
        [[1.0, math.nan]],
        [[1.0, math.inf]],
        np.zeros((2, 2), complex),
        np.array([["a"]]),
        [[1.0], [1.0, 2.0]],
        "text",
        None,
    ],
)
def test_what_is_no_finite_array_with_rows_is_invalid(X):
    with raises_refusal(4, "patterns"):
        MemoryBank.from_patterns(X)
    if X is not None:
        with raises_refusal(4, "values"):
            MemoryBank.from_patterns(torch.eye(2), values=X)


def test_counts_that_differ_are_invalid():
    with raises_refusal(4, "names", "3"):
        MemoryBank.from_patterns(torch.eye(2), names=["a", "b", "c"])
    with raises_refusal(4, "values", "2"):
        MemoryBank.from_patterns(torch.eye(2), values=torch.eye(3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicates_are_the_rows_that_are_equal_in_every_entry(dtype):
    X = numbers(torch.uint8, 6, 3)[[0, 1, 0, 2, 1, 0]] % 2 + torch.tensor([[0], [2], [0], [4], [2], [0]])
    X = X if dtype != torch.bool else torch.tensor([[1, 0], [0, 1], [1, 0], [1, 1], [0, 1], [1, 0]])
    assert MemoryBank.from_patterns(X.to(dtype)).duplicates == [[0, 2, 5], [1, 4]]
    assert MemoryBank.from_patterns(X[[0, 1, 3]].to(dtype)).duplicates == []


def test_zero_and_minus_zero_are_equal_entries():
    assert MemoryBank.from_patterns(torch.tensor([[0.0, 1.0], [-0.0, 1.0]])).duplicates == [[0, 1]]


def bound(delta: float, M: int, beta: float) -> float:
    """The sharp bound at r = R_Φ/2 with all other memories at the least distance."""
    distance = math.sqrt(2 * delta)
    return (M - 1) * distance * math.exp(-beta * distance * (distance / 2 - distance / 4))


@pytest.mark.parametrize("least", [1e-5, 0.1, 1.0, 2.0])
def test_beta_keeps_the_error_at_half_the_radius_and_is_the_least_that_does(least):
    tuning = tune(torch.tensor([2.0, least, 2.0], dtype=torch.float64), 3)
    assert (tuning.delta, tuning.source) == (least, "smallest Δ")
    assert bound(least, 3, tuning.beta) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("copies", [1, 3, 40])
def test_where_patterns_repeat_beta_follows_the_rest(copies):
    delta = torch.cat([torch.zeros(copies), torch.linspace(0.5, 1, 150)]).double()
    tuning = tune(delta, len(delta))
    assert "repeat" in tuning.source
    lowest = np.quantile(delta.numpy(), 0.01, method="lower")
    assert tuning.delta == (lowest if lowest > 1e-6 else 0.5)


@pytest.mark.parametrize("X", [torch.ones(1, 3), torch.ones(4, 3), torch.zeros(2, 3)])
def test_beta_is_one_where_no_two_patterns_differ(X):
    tuning = MemoryBank.from_patterns(X).tuned().tuning
    if X.any():
        assert (tuning.beta, tuning.source) == (1.0, "no two different patterns")
    assert math.isfinite(tuning.beta)


def test_a_bank_is_tuned_once():
    bank = MemoryBank.from_patterns(randn(9, 5)).tuned()
    assert bank.tuned() is bank
    Z = torch.nn.functional.normalize(bank.patterns.double(), dim=1)
    nearest = (Z @ Z.T).fill_diagonal_(-1).amax()
    assert bank.tuning.delta == pytest.approx(1 - float(nearest), abs=1e-6)


def test_a_large_bank_is_tuned_on_a_sample_that_says_so(monkeypatch):
    bank = MemoryBank.from_patterns(randn(200, 5))
    everything = bank.tuned().tuning
    monkeypatch.setattr("hopmem.bank.memory.MEASURED", 100)
    sampled = bank.tuned(block=7).tuning
    assert "from 25 of 200 patterns" in sampled.source
    assert sampled.delta >= everything.delta - 1e-6
    Z = torch.nn.functional.normalize(bank.patterns.double(), dim=1)
    deltas = 1 - (Z @ Z.T).fill_diagonal_(-1).amax(1)
    assert float((deltas - sampled.delta).abs().min()) < 1e-6
    assert bank.tuned(block=64).tuning == sampled
    assert replace(bank, seed=1).tuned().tuning.source == sampled.source


@pytest.mark.parametrize(
    ("layout", "shape", "mode"),
    [
        (None, (4,), None),
        ("HW", (2, 2), "L"),
        ("HWC", (2, 2, 3), "RGB"),
        ("CHW", (3, 2, 2), "RGB"),
        ("HWC", (2, 2, 4), None),
    ],
)
def test_the_mode_of_a_bank_follows_from_its_channels(layout, shape, mode):
    bank = replace(MemoryBank.from_patterns(torch.ones(1, *shape)), layout=layout)
    assert bank.mode == mode


def test_the_format_is_the_one_of_the_contract():
    assert FORMAT == "hopmem.bank/1"
