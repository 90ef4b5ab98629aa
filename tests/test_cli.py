"""What all commands have in common: keys, streams, exit codes, help, and that nothing is overwritten."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file

from hopmem.cli import app
from tests.conftest import Array, Ask, Hopmem

COMMANDS = ("store", "optimize", "retrieve", "inspect", "evaluate")
NUMBER = (int, float)
MAYBE = (int, float, type(None))
SHARED = {"schema": str, "version": str, "device": str, "seconds": float, "warnings": list, "skipped": list}
SIDE = dict.fromkeys(("min", "mean", "max_cosine", "min_angle_degrees", "radius"), MAYBE) | {"quantiles": dict}
SIDE |= {"effective_rank": MAYBE, "worst": list}  # beside the contract
ANGLES = {"max_cosine": float, "min_angle_degrees": float, "mean_cosine": float}
CONTRACT: dict[str, dict[str, Any]] = {
    "store": {
        "bank": str,
        "patterns": int,
        "dimension": int,
        "shape": [int],
        "dtype": str,
        "duplicates": list,
        "bytes": int,
    },
    "optimize": {
        "objective": str,
        "feature_dimension": int,
        "steps": int,
        "loss": {"first": float, "last": float},
        "separation": {"raw": ANGLES, "learned": ANGLES},
        "validation": list,
        "kept": str,
        "method": str | None,  # beside the contract: the map that is kept, in words
    },
    "retrieve": {
        "alpha": float,
        "beta": float,
        "steps": int,
        "results": [
            {
                "query": str,
                "match": str,
                "index": int,
                "confidence": float,
                "margin": float,
                "support": int,
                "state": str,
                "steps": int,
                "converged": bool,
                "energy": float,
            }
        ],
    },
    "inspect": {
        "patterns": int,
        "dimension": int,
        "shape": [int],
        "feature_dimension": int,
        "objective": str,
        "separation": {"raw": SIDE, "learned": SIDE},
        "bounds": {
            "lower": MAYBE,
            "upper": MAYBE,
            "lemma1_error": MAYBE,
            "error": MAYBE,
            "beta_for_error": MAYBE,
            "guaranteed_radius": NUMBER,
            "exact_fraction": NUMBER,
            # beside the contract: the optimum where it is known, and the share of the best that is reached
            "optimum": MAYBE,
            "reached": MAYBE,
            # and the Δ that Theorem 2 asks for
            "delta_for_exact": MAYBE,
        },
        "closest_pairs": [{"a": str, "b": str, "cosine": float}],
        "duplicates": list,
        "metastable": dict,
        # beside the contract: how the map was learned
        "learning": {"steps": int, "temperature": float, "batch_size": int, "seed": int, "loss": dict},
        # and what was found by running the bank, and at which α and β
        "stored": {"tested": int, "fraction": float, "lost": list},
        "self_test": {"noise": list, "queries": int, "accuracy": float},
        "appended": type(None),
        "alpha": float,
        "beta": float,
        # and the bounds of the raw patterns, where a map was learned
        "raw_bounds": dict,
        # and whether every byte is what was written, with --verify
        "verified": type(None),
    },
    "evaluate": {
        "rows": [
            {
                "noise": str,
                "method": str,
                "size": int,
                "accuracy": float,
                "error": float,
                "metastable": float,
                # beside the contract: standard errors, and what they rest on
                "accuracy_se": float,
                "error_se": float,
                "metastable_se": float,
                "beta": MAYBE,
                "samples": int,
            }
        ]
    },
}


def agrees(value: Any, contract: Any) -> bool:
    if isinstance(contract, dict):
        keys_agree = isinstance(value, dict) and value.keys() == contract.keys()
        return keys_agree and all(agrees(value[key], contract[key]) for key in contract)
    if isinstance(contract, list):
        return isinstance(value, list) and bool(value) and all(agrees(each, contract[0]) for each in value)
    return isinstance(value, contract) and isinstance(value, bool) == (contract is bool)


@pytest.fixture
def calls(tmp_path: Path, array: Path, bank: Path, learned: Path) -> dict[str, list[object]]:
    """Each command with arguments that work."""
    return {
        "store": ["store", array, "-o", tmp_path / "new.safetensors"],
        "optimize": ["optimize", bank, "--objective", "average", "-o", tmp_path / "optimized.safetensors"],
        "retrieve": ["retrieve", bank, array, "-o", tmp_path / "answers.npy"],
        "inspect": ["inspect", learned],
        "evaluate": ["evaluate", learned, "--samples", 10],
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_json_has_the_keys_and_the_types_of_the_contract_and_is_alone_on_stdout(command, calls, hopmem: Hopmem):
    result = hopmem(*calls[command], "--json")
    said = json.loads(result.stdout)
    assert agrees(said, SHARED | CONTRACT[command]), said
    assert said["schema"] == f"hopmem.{command}/1"
    assert said["device"] == "cpu"
    assert said["seconds"] > 0
    assert result.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_leaves_stdout_and_stderr_empty(command, calls, hopmem: Hopmem):
    assert hopmem(*calls[command], "-q").output == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_does_not_silence_json(command, calls, ask: Ask):
    assert ask(*calls[command], "-q")["schema"] == f"hopmem.{command}/1"


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_table_on_stdout_is_no_wider_than_the_terminal(command, columns, calls, hopmem: Hopmem):
    result = hopmem(*calls[command], env={"COLUMNS": columns})
    assert 0 < max(len(line) for line in result.stdout.splitlines()) <= int(columns)
    assert result.stderr == ""


def every_option() -> Iterator[tuple[str, str, str | None]]:
    for name, command in typer.main.get_command(app).commands.items():
        yield name, "the command", command.help
        for option in command.params:
            yield name, option.opts[-1], option.help


@pytest.mark.parametrize(("command", "what", "help_"), list(every_option()))
def test_every_command_argument_and_option_says_what_it_is_for(command, what, help_):
    assert help_, f"{command}: {what}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_options_that_all_share(command):
    options = {opt for option in typer.main.get_command(app).commands[command].params for opt in option.opts}
    assert options >= {"--device", "--seed", "--threads", "--memory-limit", "--json", "-q", "-v"}


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_printed_on_stdout(command, columns, flag, hopmem: Hopmem):
    result = hopmem(*command, flag, env={"COLUMNS": columns})
    assert "Usage:" in result.stdout
    assert result.stderr == ""


@pytest.fixture
def bad(tmp_path: Path, vectors: Array, folder: Path, bank: Path) -> Path:
    """A folder of things that are not what they should be."""
    np.save(tmp_path / "seven.npy", np.ones((3, 7), np.float32))
    np.save(tmp_path / "one.npy", vectors[:1])
    np.save(tmp_path / "nan.npy", np.where(np.arange(12)[:, None] == 4, np.nan, vectors))
    np.save(tmp_path / "inf.npy", np.where(np.arange(12)[:, None] == 4, np.inf, vectors))
    np.save(tmp_path / "none.npy", np.full((2, 6), np.nan))
    np.save(tmp_path / "empty.npy", np.empty((0, 6)))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", left=vectors, right=vectors)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "seven.npy").read_bytes()[:60])
    (tmp_path / "ragged.csv").write_text("1,2,3\n4,5\n")
    (tmp_path / "word.csv").write_text("1,2,3\n4,cat,6\n")
    (tmp_path / "notes.txt").write_text("no patterns\n")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "nothing").mkdir()
    shutil.copytree(folder, tmp_path / "sizes")
    Image.new("RGB", (9, 5)).save(tmp_path / "sizes" / "odd.png")
    (tmp_path / "cut.safetensors").write_bytes(bank.read_bytes()[:-20])
    save_file({"patterns": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    save_file({"patterns": torch.ones(2, 2)}, tmp_path / "newer.safetensors", {"format": "hopmem.bank/99"})
    tensors = load_file(bank)
    save_file(tensors | {"names": tensors["names"][:1]}, tmp_path / "halfway.safetensors", {"format": "hopmem.bank/1"})
    return tmp_path


# Words that have to be in the one line: what was expected, what was found, and where.
MISTAKES = [
    ("frobnicate", 2, ["frobnicate"]),
    ("--frobnicate", 2, ["--frobnicate"]),
    ("store {array} -o {new} --frobnicate", 2, ["--frobnicate"]),
    ("store {array}", 2, ["--output"]),
    ("store -o {new}", 2, ["expected", "at least one", "found none"]),
    ("store {array} -o {new} --size 8", 2, ["--size", "expected WxH", "'8'"]),
    ("store {array} -o {new} --dtype int3", 2, ["--dtype", "int3", "float32"]),
    ("store {array} -o {new} --mode CMYK", 2, ["--mode", "CMYK", "RGB"]),
    ("store {array} -o {new} --threads 0", 2, ["--threads", "found"]),
    ("store {array} -o {new} --device tpu", 2, ["--device", "expected auto, cpu", "'tpu'"]),
    ("store {array} -o {new} --memory-limit much", 2, ["--memory-limit", "2G", "'much'"]),
    ("store {array} -o {new} --seed x", 2, ["--seed", "whole number"]),
    ("optimize {bank} --seed 99999999999999999999", 2, ["seed"]),
    ("optimize {bank} --steps -1", 2, ["--steps", "found"]),
    ("optimize {bank} --temperature 0", 2, ["temperature", "positive", "0"]),
    ("optimize {bank} --learning-rate nan", 2, ["learning", "positive", "nan"]),
    ("optimize {bank} --batch-size 1", 2, ["--batch-size", "found"]),
    ("optimize {bank} --feature-dim 0", 2, ["--feature-dim", "found"]),
    ("optimize {bank} --objective none", 2, ["--objective", "none", "average"]),
    ("retrieve {bank}", 2, ["expected", "found none"]),
    ("retrieve {bank} {array} --alpha 0.9", 2, ["--alpha", "found"]),
    ("retrieve {bank} {array} --alpha nan", 2, ["alpha"]),
    ("retrieve {bank} {array} --beta warm", 2, ["--beta", "auto", "warm"]),
    ("retrieve {bank} {array} --beta -1", 2, ["beta", "-1"]),
    ("retrieve {bank} {array} --beta nan", 2, ["beta", "nan"]),
    ("retrieve {bank} {array} --steps 0", 2, ["--steps", "found"]),
    ("retrieve {bank} {array} --tolerance nan", 2, ["tolerance"]),
    ("retrieve {bank} {array} --top 0", 2, ["--top", "found"]),
    ("retrieve {bank} {array} --min-confidence 1.5", 2, ["--min-confidence", "found"]),
    ("retrieve {bank} {array} --min-confidence nan", 2, ["confidence"]),
    ("retrieve {bank} {array} -o - --json", 2, ["-o -", "json"]),
    ("retrieve {bank} {array} -o - --ndjson", 2, ["-o -", "json"]),
    ("retrieve {bank} {array} --json --ndjson", 2, ["json"]),
    ("retrieve {bank} {array} -o {bad}/out.png", 2, ["out.png", "no images"]),
    ("retrieve {bank} {array} --plot {bad}/sheet.png", 2, ["--plot", "images"]),
    ("inspect {bank} --error 0", 2, ["error", "> 0", "0"]),
    ("inspect {bank} --closest -1", 2, ["--closest", "found"]),
    ("evaluate {bank} --noise fog:1", 2, ["--noise fog:1", "gaussian", "'fog'"]),
    ("evaluate {bank} --noise mask:2", 2, ["--noise mask:2", "0 to 1", "'2'"]),
    ("evaluate {bank} --noise blur:1", 2, ["--noise blur:1", "images"]),
    ("evaluate {bank} --samples 0", 2, ["--samples", "found"]),
    ("evaluate {bank} --methods bank,oracle", 2, ["methods", "bank, modern", "'oracle'"]),
    ("evaluate {bank} --sizes 5,13", 2, ["sizes", "1 to 12", "13"]),
    ("evaluate {bank} --sizes 0", 2, ["sizes", "1 to 12", "found 0"]),
    ("evaluate {bank} --sizes few", 2, ["--sizes", "whole numbers", "'few'"]),
    ("evaluate {bank} --fail-under 101", 2, ["--fail-under", "100", "'101'"]),
    ("evaluate {bank} --fail-under most", 2, ["--fail-under", "share", "'most'"]),
    ("evaluate {bad}/missing.safetensors", 3, ["missing.safetensors", "expected a bank", "nothing there"]),
    ("store {bad}/missing.npy -o {new}", 3, ["missing.npy", "expected", "nothing there"]),
    ("store {bad}/notes.txt -o {new}", 3, ["notes.txt", "expected", ".npy", "'.txt'"]),
    ("store {bad}/broken.png -o {new}", 3, ["broken.png", "expected an image"]),
    ("store {bad}/cut.npy -o {new}", 3, ["cut.npy", "expected a NumPy .npy"]),
    ("store -T {bad}/missing.txt -o {new}", 3, ["missing.txt", "expected", "nothing there"]),
    ("store {array} -o {array}/x.safetensors", 3, ["vectors.npy", "expected", "found"]),
    ("optimize {bad}/missing.safetensors", 3, ["missing.safetensors", "expected a bank", "nothing there"]),
    ("retrieve {bad}/missing.safetensors {array}", 3, ["missing.safetensors", "expected a bank", "nothing there"]),
    ("retrieve {bank} {bad}/missing.csv", 3, ["missing.csv", "expected", "nothing there"]),
    ("inspect {bad}/missing.safetensors", 3, ["missing.safetensors", "expected a bank", "nothing there"]),
    ("store {bad}/nan.npy -o {new}", 4, ["nan.npy, row 4", "finite", "NaN"]),
    ("store {bad}/inf.npy -o {new}", 4, ["inf.npy, row 4", "finite", "infinity"]),
    ("store {bad}/empty.npy -o {new}", 4, ["empty.npy", "at least|N ≥ 1", "[0, 6]"]),
    ("store {bad}/objects.npy -o {new}", 4, ["objects.npy", "array of numbers", "pickle"]),
    ("store {bad}/two.npz -o {new}", 4, ["two.npz", "--key", "left, right"]),
    ("store {bad}/two.npz --key up -o {new}", 4, ["two.npz", "'up'", "left, right"]),
    ("store {bad}/ragged.csv -o {new}", 4, ["ragged.csv, line 2", "3 cells", "2"]),
    ("store {bad}/word.csv -o {new}", 4, ["word.csv, line 2", "a number", "cat"]),
    ("store {table} --id-column nick -o {new}", 4, ["vectors.csv", "'nick'", "name, x0"]),
    ("store {bad}/nothing -o {new}", 4, ["nothing", "at least one image"]),
    ("store {bad}/sizes -o {new}", 4, ["odd.png", "9x5", "a.png", "8x6", "--size"]),
    ("store {array} {bad}/seven.npy -o {new}", 4, ["seven.npy", "[6]", "[7]"]),
    ("store {array} --values {bad}/seven.npy -o {new}", 4, ["--values", "12", "3"]),
    ("store {array} --dtype uint8 -o {new}", 4, ["uint8", "0 to 1"]),
    ("optimize {single}", 4, ["two different patterns", "1"]),
    ("retrieve {bank} {bad}/seven.npy", 4, ["seven.npy", "6", "7"]),
    ("retrieve {bank} {bad}/inf.npy", 4, ["inf.npy, row 4", "infinity"]),
    ("retrieve {bank} {bad}/none.npy", 4, ["none.npy, query 0", "known entry", "none"]),
    ("retrieve {bank} {array} --mask {bad}/seven.npy", 4, ["seven.npy", "6", "7"]),
    ("retrieve {images} {bad}/sizes/odd.png", 4, ["odd.png", "[6, 8, 3]", "[5, 9, 3]"]),
    ("inspect {bank} --device cuda:7", 5, ["cuda:7", "expected", "found"]),
    ("inspect {array}", 6, ["vectors.npy", "expected a safetensors file"]),
    ("inspect {bad}", 3, ["expected a bank", "a folder"]),
    ("inspect {bad}/cut.safetensors", 6, ["cut.safetensors", "expected"]),
    ("inspect {bad}/other.safetensors", 6, ["other.safetensors", "expected a hopmem bank"]),
    ("inspect {bad}/newer.safetensors", 6, ["newer.safetensors", "hopmem.bank/1", "hopmem.bank/99"]),
    ("inspect {bad}/halfway.safetensors", 6, ["halfway.safetensors", "expected"]),
    ("optimize {bad}/cut.safetensors", 6, ["cut.safetensors"]),
    ("retrieve {bad}/cut.safetensors {array}", 6, ["cut.safetensors"]),
    ("store {array} --append -o {bad}/cut.safetensors", 6, ["cut.safetensors"]),
]


@pytest.mark.parametrize(("line", "code", "words"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_was_expected_what_was_found_and_where(
    line, code, words, hopmem: Hopmem, bad: Path, array: Path, table: Path, bank: Path, image_bank: Path
):
    new, single = bad / "new.safetensors", bad / "single.safetensors"
    if "{single}" in line:
        hopmem("store", bad / "one.npy", "-o", single)
    paths = {"bad": bad, "array": array, "table": table, "bank": bank, "images": image_bank}
    args = [arg.format(new=new, single=single, **paths) for arg in line.split()]
    result = hopmem(*args, code=code)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("hopmem: ")
    assert "Traceback" not in result.stderr
    for word in words:
        assert any(choice in result.stderr for choice in word.split("|")), (word, result.stderr)
    assert not new.exists()


@pytest.mark.parametrize("mistake", ["--threads -3", "--seed eleven", "--alpha 0.25", "--closest -3"])
def test_a_value_that_an_option_refuses_is_said_back(mistake, hopmem: Hopmem, bank: Path):
    assert mistake.split()[1] in hopmem("inspect", bank, *mistake.split(), code=2).stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [(["inspect", "missing"], 3), (["store", "missing.npy", "-o", "new"], 3)],
    ids=["inspect", "store"],
)
def test_a_traceback_comes_with_v_alone(args, code, hopmem: Hopmem):
    result = hopmem(*args, "-v", code=code)
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.splitlines()[-1] == hopmem(*args, code=code).stderr.strip()


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (ZeroDivisionError("by nothing"), 1, ["internal", "ZeroDivisionError", "by nothing"]),
        (MemoryError(), 5, ["out of memory", "--memory-limit"]),
        (torch.OutOfMemoryError("CUDA"), 5, ["out of memory", "--memory-limit"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 5, ["out of memory", "--memory-limit"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
    ids=lambda case: type(case).__name__ if isinstance(case, BaseException) else "",
)
def test_trouble_inside_ends_in_one_line_and_its_code(problem, code, words, monkeypatch, hopmem: Hopmem, bank: Path):
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("hopmem.verbs.inspect", fail)
    asked = ("inspect", bank, "--beta", 3)  # which no bank remembers
    result = hopmem(*asked, code=code)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" in hopmem(*asked, "-v", code=code).stderr


OVERWRITES = {
    "store": "store {array} -o {target}",
    "optimize -o": "optimize {bank} -o {target}",
    "retrieve to a file": "retrieve {bank} {array} -o {target}",
    "retrieve to a folder": "retrieve {images} {folder} -o {root}",
    "retrieve --plot": "retrieve {images} {folder} --plot {target}",
    "evaluate --plot": "evaluate {bank} --samples 5 --plot {target}",
}


@pytest.mark.parametrize("what", OVERWRITES)
def test_nothing_is_overwritten_without_force(
    what, hopmem: Hopmem, tmp_path: Path, array: Path, bank: Path, image_bank: Path, folder: Path
):
    target = tmp_path / ("e.png" if "--plot" in what or "retrieve" in what else "bank.safetensors")
    target = tmp_path / "answers.npy" if what == "retrieve to a file" else target
    target.write_bytes(b"precious")
    paths = {"array": array, "bank": bank, "images": image_bank, "folder": folder, "root": tmp_path, "target": target}
    args = OVERWRITES[what].format(**paths).split()
    result = hopmem(*args, code=2)
    assert target.name in result.stderr
    assert "--force" in result.stderr
    assert result.stdout == ""
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]
    hopmem(*args, "--force")
    assert target.read_bytes() != b"precious"


def test_a_picture_that_is_in_the_way_is_found_before_answers_are_written(
    hopmem: Hopmem, tmp_path: Path, image_bank: Path, folder: Path
):
    (tmp_path / "sheet.png").write_bytes(b"precious")
    hopmem("retrieve", image_bank, folder, "-o", tmp_path / "out", "--plot", tmp_path / "sheet.png", code=2)
    assert not (tmp_path / "out").exists()


def test_a_warning_goes_to_stderr_and_into_the_json(hopmem: Hopmem, ask: Ask, tmp_path: Path, folder: Path):
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    call = ["store", tmp_path / "in", "-o", tmp_path / "bank.safetensors", "--force"]
    result = hopmem(*call)
    assert "warning: " in result.stderr
    assert "warning: " not in result.stdout
    said = ask(*call)
    assert len(said["warnings"]) == 1
    assert said["warnings"][0] in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "flag", "key", "by_variable", "by_flag"),
    [
        ("HOPMEM_ALPHA", "2", ["--alpha", "1.5"], "alpha", 2, 1.5),
        ("HOPMEM_BETA", "7", ["--beta", "3"], "beta", 7, 3),
        ("HOPMEM_DEVICE", "cpu", ["--device", "cpu"], "device", "cpu", "cpu"),
    ],
)
def test_a_flag_comes_before_a_variable_and_a_variable_before_the_default(
    variable, value, flag, key, by_variable, by_flag, ask: Ask, bank: Path, array: Path
):
    assert ask("retrieve", bank, array, env={variable: value})[key] == by_variable
    assert ask("retrieve", bank, array, *flag, env={variable: value})[key] == by_flag


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HOPMEM_DEVICE", "tpu"),
        ("HOPMEM_SEED", "x"),
        ("HOPMEM_THREADS", "0"),
        ("HOPMEM_MEMORY_LIMIT", "much"),
        ("HOPMEM_ALPHA", "0"),
        ("HOPMEM_BETA", "warm"),
    ],
)
def test_a_variable_is_checked_as_its_flag_is(variable, value, hopmem: Hopmem, bank: Path):
    result = hopmem("inspect", bank, env={variable: value}, code=2)
    assert result.stderr.count("\n") == 1
    assert variable.removeprefix("HOPMEM_").lower().replace("_", "-") in result.stderr


def test_json_quiet_and_verbose_are_variables_too(hopmem: Hopmem, bank: Path):
    assert json.loads(hopmem("inspect", bank, env={"HOPMEM_JSON": "1"}).stdout)["patterns"] == 12
    assert hopmem("inspect", bank, env={"HOPMEM_QUIET": "1"}).output == ""
    assert "Traceback" in hopmem("inspect", "missing", env={"HOPMEM_VERBOSE": "1"}, code=3).stderr


def test_variables_stand_in_for_flags(hopmem: Hopmem, bank: Path, array: Path):
    here = {"HOPMEM_JSON": "1", "HOPMEM_ALPHA": "2", "HOPMEM_BETA": "7", "HOPMEM_STEPS": "3"}
    said = json.loads(hopmem("retrieve", bank, array, env=here).stdout)
    assert (said["alpha"], said["beta"]) == (2, 7)


def test_threads_are_those_that_torch_uses(hopmem: Hopmem, bank: Path):
    before = torch.get_num_threads()
    try:
        hopmem("inspect", bank, "--threads", 3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
