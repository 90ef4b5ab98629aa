"""`hopmem optimize` for noise and for spherical codes: what is kept, what is said, and how it is gone on with."""

import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import hopmem as library
from hopmem.pipeline import optimize as pipeline
from tests.conftest import Ask, Hopmem
from tests.test_cli_process import ENVIRONMENT, HOPMEM

ROWS, WIDTH = 60, 24


def metadata(bank: Path) -> dict[str, str]:
    with safe_open(bank, framework="np") as file:
        return dict(file.metadata())


def patterns(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, WIDTH)).astype(np.float32)


def spoilt(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose first half is drowned in one loud, shared direction and in noise."""
    draw = np.random.default_rng(seed)
    out = rows.copy()
    out[:, : WIDTH // 2] += 8 * draw.standard_normal((len(rows), WIDTH // 2)).astype(np.float32)
    return out


@pytest.fixture
def store(ask: Ask, tmp_path: Path) -> Path:
    np.save(tmp_path / "clean.npy", patterns())
    ask("store", tmp_path / "clean.npy", "-o", tmp_path / "bank.safetensors")
    return tmp_path / "bank.safetensors"


def accuracy(ask: Ask, bank: Path, queries: np.ndarray, folder: Path) -> float:
    np.save(folder / "queries.npy", queries)
    results = ask("retrieve", bank, folder / "queries.npy")["results"]
    return float(np.mean([each["index"] == row for row, each in enumerate(results)]))


def test_the_default_is_to_learn_for_mixed_noise(ask: Ask, store: Path):
    said = ask("optimize", store)
    assert said["objective"] == "denoise"
    assert {row["noise"] for row in said["validation"]} == {"mixed"}
    assert said["kept"] in {"learned", "raw"}
    assert said["method"] in {row["method"] for row in said["validation"]}
    assert json.loads(metadata(store)["learning"])["noise"] == ["mixed"]


def test_every_map_that_was_tried_is_told_and_kept_in_the_bank(ask: Ask, store: Path):
    said = ask("optimize", store, "--noise", "occlude:0.5", "--noise", "mask:0.3")
    methods = {row["method"] for row in said["validation"]}
    assert {"cosine", "centred cosine", "euclidean"} <= methods
    for kind in ("noise whitening", "memory whitening", "noise + 0.03 memory whitening"):
        assert any(method.startswith(kind) for method in methods)
    assert any("whitening, centred" in method for method in methods)
    for method in methods:
        assert {row["noise"] for row in said["validation"] if row["method"] == method} == {"occlude:0.5", "mask:0.3"}
    assert json.loads(metadata(store)["learning"])["validation"] == said["validation"]


def test_a_map_that_beats_the_raw_ones_is_kept(ask: Ask, tmp_path: Path):
    rows = patterns(200) + 4 * np.linspace(0, 1, WIDTH, dtype=np.float32)
    np.save(tmp_path / "clean.npy", rows)
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "clean.npy", "-o", bank)
    queries = rows.copy()
    queries[:, WIDTH // 2 :] = 0
    before = accuracy(ask, bank, queries, tmp_path)
    said = ask("optimize", bank, "--noise", "occlude:0.5")
    assert said["kept"] == "learned"
    assert accuracy(ask, bank, queries, tmp_path) > before + 0.2


def test_under_isotropic_noise_the_raw_patterns_are_best_and_kept(ask: Ask, tmp_path: Path):
    rows = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    np.save(tmp_path / "clean.npy", rows)
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "clean.npy", "-o", bank)
    said = ask("optimize", bank, "--noise", "gaussian:0.8")
    assert said["kept"] == "raw"
    assert any("no learned map beats" in warning for warning in said["warnings"])
    assert "feature_map.weight" not in load_file(bank)
    assert ask("inspect", bank)["objective"] == "raw"


def test_force_keeps_the_learned_map_all_the_same(ask: Ask, tmp_path: Path):
    rows = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    np.save(tmp_path / "clean.npy", rows)
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "clean.npy", "-o", bank)
    said = ask("optimize", bank, "--noise", "gaussian:0.8", "--force")
    assert said["kept"] == "learned"
    assert "feature_map.weight" in load_file(bank)


def test_the_best_raw_map_is_stored_where_no_learned_one_helps(ask: Ask, tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 12)).astype(np.float32) * np.exp(rng.standard_normal((400, 1))).astype(np.float32)
    np.save(tmp_path / "clean.npy", rows)
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "clean.npy", "-o", bank)
    queries = rows + rng.standard_normal(rows.shape).astype(np.float32)
    before = accuracy(ask, bank, queries, tmp_path)
    said = ask("optimize", bank, "--noise", "gaussian:1")
    distances = ((queries[:, None] - rows[None]) ** 2).sum(2)
    nearest = float((distances.argmin(1) == np.arange(400)).mean())
    found = accuracy(ask, bank, queries, tmp_path)
    assert found > before  # lengths tell patterns apart, which the cosine does not see
    assert found >= nearest - 0.02
    assert said["kept"] == "learned" or json.loads(metadata(bank)["learning"])["method"] == "euclidean"


def test_beta_auto_is_the_one_that_validation_found(ask: Ask, store: Path, tmp_path: Path):
    ask("optimize", store, "--noise", "occlude:0.5")
    np.save(tmp_path / "queries.npy", patterns())
    said = ask("retrieve", store, tmp_path / "queries.npy")
    assert said["beta"] == pytest.approx(json.loads(metadata(store)["beta"]))
    assert json.loads(metadata(store)["tuning"])["source"].startswith("validation")
    assert said["warnings"] == []


def test_real_pairs_are_learned_from_row_by_row(ask: Ask, store: Path, tmp_path: Path):
    clean = np.concatenate([patterns()] * 8)
    np.save(tmp_path / "pairs.npy", clean)
    np.save(tmp_path / "noisy.npy", spoilt(clean, 1))
    before = accuracy(ask, store, spoilt(patterns(), 2), tmp_path)
    said = ask("optimize", store, "--noise-from", tmp_path / "noisy.npy", "--clean-from", tmp_path / "pairs.npy")
    assert said["kept"] == "learned"
    assert {row["noise"] for row in said["validation"]} == {"the pairs given"}
    assert accuracy(ask, store, spoilt(patterns(), 2), tmp_path) > before + 0.2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_clean_halves_are_found_among_patterns_that_were_rounded(dtype, ask: Ask, tmp_path: Path):
    np.save(tmp_path / "clean.npy", patterns())
    ask("store", tmp_path / "clean.npy", "-o", tmp_path / "bank", "--dtype", dtype)
    clean = np.concatenate([patterns()] * 3)
    np.save(tmp_path / "pairs.npy", clean)
    np.save(tmp_path / "noisy.npy", spoilt(clean, 1))
    said = ask(
        "optimize", tmp_path / "bank", "--noise-from", tmp_path / "noisy.npy", "--clean-from", tmp_path / "pairs.npy"
    )
    assert said["kept"] == "learned"
    assert said["validation"][-1]["accuracy"] > 0.9
    assert json.loads(metadata(tmp_path / "bank")["beta"]) < 1e4


def test_real_pairs_of_images_without_common_names_are_paired_in_order_and_the_tool_says_so(ask: Ask, tmp_path: Path):
    for folder, prefix in (("clean", ""), ("noisy", "x")):
        (tmp_path / folder).mkdir()
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{prefix}{number}.png")
    ask("store", tmp_path / "clean", "-o", tmp_path / "bank")
    said = ask("optimize", tmp_path / "bank", "--noise-from", tmp_path / "noisy", "--clean-from", tmp_path / "clean")
    assert any("paired in order" in warning for warning in said["warnings"])


def test_real_pairs_of_images_are_matched_by_name(ask: Ask, hopmem: Hopmem, tmp_path: Path):
    draw = np.random.default_rng(0)
    for number in range(30):
        pixels = draw.integers(0, 256, (6, 6), dtype=np.uint8)
        for folder, image in (("clean", pixels), ("noisy", np.where(draw.random((6, 6)) < 0.3, 0, pixels))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / folder / f"{number}.png")
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "clean", "-o", bank)
    said = ask("optimize", bank, "--noise-from", tmp_path / "noisy", "--clean-from", tmp_path / "clean")
    best = max(row["accuracy"] for row in said["validation"])
    assert best > 0.9  # by chance, or with partners mixed up, it would be a thirtieth
    (tmp_path / "clean" / "7.png").unlink()
    refused = hopmem("optimize", bank, "--noise-from", tmp_path / "noisy", "--clean-from", tmp_path / "clean", code=4)
    assert "7.png" in refused.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--noise", "fog:1"], 2, "fog"),
        (["--noise", "mask:2"], 2, "from 0 to 1"),
        (["--noise", "blur:1"], 2, "images"),
        (["--noise", "mask:0.5", "--noise", "mask:0.5"], 2, "once"),
        (["--noise", "mask:0.5", "--objective", "average"], 2, "denoise"),
        (["--noise-from", "x.npy"], 2, "--clean-from"),
        (["--clean-from", "x.npy"], 2, "--noise-from"),
        (["--noise", "mask:0.5", "--noise-from", "x.npy", "--clean-from", "x.npy"], 2, "both"),
        (["--noise-from", "x.npy", "--clean-from", "x.npy"], 3, "x.npy"),
        (["--temperature", "1"], 2, "temperature"),
        (["--resume"], 3, "checkpoint"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_the_bank_is_left_alone(
    options, code, words, hopmem: Hopmem, store: Path
):
    before = store.read_bytes()
    refused = hopmem("optimize", store, *options, code=code)
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert store.read_bytes() == before


@pytest.mark.parametrize("M", [2, 4, 5])
def test_spherical_reaches_the_simplex(M, ask: Ask, tmp_path: Path):
    np.save(tmp_path / "independent.npy", np.eye(M, 8, dtype=np.float32))
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "independent.npy", "-o", bank)
    said = ask("optimize", bank, "--objective", "spherical", "--feature-dim", 4)
    assert said["separation"]["learned"]["max_cosine"] == pytest.approx(-1 / (M - 1), abs=1e-4)
    assert ask("inspect", bank)["separation"]["learned"]["max_cosine"] == pytest.approx(-1 / (M - 1), abs=1e-4)


@pytest.mark.parametrize(("M", "D", "cosine"), [(7, 2, np.cos(2 * np.pi / 7)), (6, 3, 0.0), (12, 3, 5**-0.5)])
def test_spherical_reaches_known_optima(M, D, cosine, ask: Ask, tmp_path: Path):
    np.save(tmp_path / "independent.npy", np.random.default_rng(0).standard_normal((M, 20)).astype(np.float32))
    bank = tmp_path / "bank.safetensors"
    ask("store", tmp_path / "independent.npy", "-o", bank)
    learned = ask("optimize", bank, "--objective", "spherical", "--feature-dim", D)["separation"]["learned"]
    assert learned["max_cosine"] == pytest.approx(cosine, abs=1e-4)


OBJECTIVES = {
    "denoise": ["--noise", "occlude:0.5", "--steps", 60],
    "average": ["--objective", "average", "--steps", 60, "--feature-dim", 6, "--batch-size", 16],
    "spherical": ["--objective", "spherical", "--feature-dim", 3],
}


STANDS = {"denoise": "parameter.0", "average": "A", "spherical": "best_step"}  # what a checkpoint goes on from
CANDIDATES = 24  # of denoise, each of which asks once whether to stop


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(
    objective, ask: Ask, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = OBJECTIVES[objective]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    checkpoint = tmp_path / "parts.safetensors.checkpoint"
    ask("optimize", store, "-o", whole, *options)
    before = CANDIDATES if objective == "denoise" else 0
    for number, asked in enumerate((0, before + 1, before + 7)):
        counted = itertools.count()
        monkeypatch.setattr(pipeline, "until", lambda *_, asked=asked, counted=counted: lambda: next(counted) >= asked)
        said = ask("optimize", store, "-o", parts, *(options if number == 0 else ["--resume"]))
        assert any("--resume" in warning for warning in said["warnings"])
        assert number == 0 or any(STANDS[objective] in name for name in load_file(checkpoint)), load_file(checkpoint)
    monkeypatch.undo()
    ask("optimize", store, "-o", parts, *options, "--resume")
    assert parts.read_bytes() == whole.read_bytes()
    assert not checkpoint.exists()


def test_however_short_the_time_each_run_tries_another_map(ask: Ask, store: Path, tmp_path: Path):
    options, checkpoint = OBJECTIVES["denoise"], tmp_path / "parts.safetensors.checkpoint"
    ask("optimize", store, "-o", tmp_path / "whole.safetensors", *options)
    for run in range(3):
        again = options if run == 0 else ["--resume"]
        ask("optimize", store, "-o", tmp_path / "parts.safetensors", *again, "--time-limit", 0)
        assert len(load_file(checkpoint)["tried.numbers"]) == run + 1
    ask("optimize", store, "-o", tmp_path / "parts.safetensors", "--resume")
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("usual", [["--objective", "denoise"], ["--noise", "mixed"], ["--restarts", 16]])
def test_resume_refuses_what_the_interrupted_run_had_not_even_if_it_is_usual(usual, hopmem: Hopmem, store: Path):
    had = {"--objective": ["--objective", "average"], "--noise": ["--noise", "occlude:0.5"]}.get(
        str(usual[0]), ["--objective", "spherical", "--restarts", 3]
    )
    hopmem("optimize", store, *had, "--time-limit", 0)
    refused = hopmem("optimize", store, *usual, "--resume", code=2)
    assert str(had[-1]) in refused.stderr


def test_resume_remembers_force(ask: Ask, hopmem: Hopmem, store: Path):
    hopmem("optimize", store, "--noise", "gaussian:1", "--force", "--time-limit", 0)
    assert ask("optimize", store, "--resume")["kept"] == "learned"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_seed_will_do(objective, hopmem: Hopmem, store: Path, tmp_path: Path):
    for seed in (2**61, 2**63 - 1):
        hopmem("optimize", store, "-o", tmp_path / f"{seed}", *OBJECTIVES[objective], "--seed", seed)
        assert library.MemoryBank.load(tmp_path / f"{seed}").seed == seed


def test_resume_refuses_other_options_and_other_patterns(hopmem: Hopmem, ask: Ask, store: Path, tmp_path: Path):
    ask("optimize", store, "--noise", "occlude:0.5", "--time-limit", 0)
    refused = hopmem("optimize", store, "--noise", "mask:0.5", "--resume", code=2)
    assert "occlude:0.5" in refused.stderr
    refused = hopmem("optimize", store, "--seed", 9, "--resume", code=2)
    assert "seed" in refused.stderr
    np.save(tmp_path / "more.npy", patterns(3))
    ask("store", "--append", tmp_path / "more.npy", "-o", store)
    refused = hopmem("optimize", store, "--resume", code=2)
    assert "patterns" in refused.stderr


def rest(terminal: int) -> bytes:
    """All that is still shown: where nobody reads what a process shows, it waits for ever."""
    shown = b""
    with suppress(OSError):  # who showed it is gone
        while more := os.read(terminal, 1 << 16):
            shown += more
    return shown


def test_ctrl_c_keeps_the_best_map_so_far_and_resume_ends_as_if_nothing_had_been(hopmem: Hopmem, tmp_path: Path):
    np.save(tmp_path / "many.npy", np.random.default_rng(0).standard_normal((1500, 64)).astype(np.float32))
    bank = tmp_path / "bank.safetensors"
    hopmem("store", tmp_path / "many.npy", "-o", bank)
    shutil.copy(bank, tmp_path / "other.safetensors")
    options = ["--objective", "average", "--steps", "150", "--feature-dim", "32", "--batch-size", "512"]
    ours, theirs = pty.openpty()  # a terminal, so that the progress tells when the learning has begun
    command = [*HOPMEM.split(), "optimize", str(bank), *options]
    with subprocess.Popen(
        command, env=ENVIRONMENT | {"TERM": "xterm"}, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        while b"learning" not in shown:
            shown += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        shown += rest(ours)
    os.close(ours)
    assert process.returncode == 130
    assert b"Traceback" not in shown
    assert library.MemoryBank.load(bank).learning is not None
    hopmem("optimize", bank, "--resume")
    hopmem("optimize", tmp_path / "other.safetensors", *options)
    assert bank.read_bytes() == (tmp_path / "other.safetensors").read_bytes()


def test_a_picture_shows_what_was_tried(hopmem: Hopmem, store: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    hopmem("optimize", store, "--noise", "occlude:0.5", "--plot", tmp_path / "learning.png")
    with Image.open(tmp_path / "learning.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    refused = hopmem("optimize", store, "--plot", tmp_path / "learning.png", code=2)
    assert "--force" in refused.stderr
