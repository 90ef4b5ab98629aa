"""What only a process of its own can show: what is imported, pipes, a closed pipe, Ctrl-C, and the environment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Array

HOPMEM = f"{sys.executable} -m hopmem"
FIRST = {name: value for name, value in os.environ.items() if not name.startswith("HOPMEM_")}
ENVIRONMENT = FIRST | {"HOPMEM_DEVICE": "cpu", "HOPMEM_THREADS": "1"}


def shell(script: str, **variables: object) -> subprocess.CompletedProcess[bytes]:
    variables = {name: str(value) for name, value in variables.items()}
    command = ["bash", "-c", f"set -o pipefail\n{script}"]
    return subprocess.run(command, env=ENVIRONMENT | variables, capture_output=True, timeout=60, check=False)


def test_importing_hopmem_loads_neither_torch_nor_numpy():
    heavy = "{'torch', 'numpy', 'PIL', 'safetensors', 'rich', 'typer'} & set(sys.modules)"
    done = shell(f'{sys.executable} -c "import sys, hopmem; print(hopmem.__version__, {heavy})"')
    assert done.stdout.split()[1:] == [b"set()"], done


LINES = ["--help", "--version", "store -h", "optimize -h", "retrieve -h", "inspect -h", "", "store --nope", "nope"]
ASKED = f"""
import sys
from hopmem.cli import app
for line in {LINES}:
    try:
        app(line.split())
    except SystemExit:
        heavy = {{"torch", "numpy", "PIL", "safetensors"}} & set(sys.modules)
        print("LOADED", line, heavy or "nothing")
"""


def test_help_and_mistakes_load_neither_torch_nor_numpy():
    done = shell(f"{sys.executable} -c '{ASKED.replace(chr(39), chr(34))}'")
    loaded = [line for line in done.stdout.decode().splitlines() if line.startswith("LOADED")]
    assert loaded == [f"LOADED {line} nothing" for line in LINES], done


def test_the_tool_alone_shows_its_help_and_nothing_else():
    done = shell(HOPMEM)
    assert done.returncode == 2
    assert b"store" in done.stdout
    assert done.stderr == b""


def test_the_command_and_the_module_are_one_tool():
    script = Path(sys.executable).with_name("hopmem")
    done = shell(f"{HOPMEM} --version; {script} --version")
    first, second = done.stdout.decode().splitlines()
    assert first == second
    assert first.startswith("hopmem ")


def test_arrays_and_tables_pass_through_a_pipe(tmp_path: Path, bank: Path, array: Path, table: Path, vectors: Array):
    csv = "--format csv --id-column name"
    npy = f"cat $ARRAY | {HOPMEM} retrieve $BANK - --snap -q | {HOPMEM} retrieve $BANK - --snap -q > out.npy"
    done = shell(
        f"cd {tmp_path} && {npy} && {HOPMEM} retrieve $BANK - {csv} --snap -q < $TABLE > out.csv",
        BANK=bank,
        ARRAY=array,
        TABLE=table,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == table.read_text().splitlines()[0]
    answers = np.array([line.split(",")[1:] for line in lines[1:]], np.float32)
    np.testing.assert_allclose(answers, vectors, rtol=1e-6)


@pytest.mark.parametrize("what", ["--ndjson", "-o -"])
def test_a_reader_that_leaves_early_causes_no_noise(what, tmp_path: Path, bank: Path, vectors: Array):
    np.save(tmp_path / "many.npy", np.tile(vectors, (300, 1)))
    done = shell(f"{HOPMEM} retrieve $BANK {tmp_path}/many.npy -q {what} | head -c 1", BANK=bank)
    assert (len(done.stdout), done.stderr) == (1, b"")


def test_a_reader_that_is_gone_before_a_short_answer_causes_no_noise(bank: Path):
    done = shell(f"{HOPMEM} inspect $BANK --json | true; {HOPMEM} --help | true", BANK=bank)
    assert done.stderr == b""


REMEMBERED = """
import sys
from hopmem.cli import app
try:
    app(["inspect", sys.argv[1], "--json", *sys.argv[2:]])
finally:
    print({"torch", "numpy", "PIL", "safetensors"} & set(sys.modules) or "nothing", file=sys.stderr)
"""


@pytest.mark.parametrize(("options", "loaded"), [("", False), ("--closest 3 --seed 0", False), ("--beta 3", True)])
def test_what_a_bank_remembers_of_itself_is_told_without_torch(tmp_path: Path, bank: Path, options, loaded):
    script = tmp_path / "ask.py"
    script.write_text(REMEMBERED)
    done = shell(f"{sys.executable} $SCRIPT $BANK {options}", SCRIPT=script, BANK=bank)
    assert json.loads(done.stdout)["patterns"] == 12
    assert (done.stderr.decode().split() != ["nothing"]) == loaded, done


LOST = """
import os, signal, typer
from hopmem.cli.group import HopmemGroup
app = typer.Typer(cls=HopmemGroup)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what ran the tests may have ignored it
app.callback()(lambda: None)

@app.command()
def work(number: int) -> None:
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        pass
    raise ImportError("cannot load module more than once per process")

app()
"""


@pytest.mark.parametrize(("number", "code", "said"), [(2, 130, "interrupted"), (15, 143, "terminated")])
def test_an_interruption_that_compiled_code_lost_is_no_internal_error(number: int, code: int, said: str):
    done = shell(f"{sys.executable} -c '{LOST.replace(chr(39), chr(34))}' work {number}")
    assert (done.returncode, done.stderr.decode()) == (code, f"hopmem: {said}\n")
