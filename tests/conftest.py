"""What the tests of the command line share: the tool itself, and a few small sources and banks that no test changes."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from hopmem.cli import app
from tests.zygote import InChild, zygote

# Of torch, in all processes that tests begin. The workers of pytest-xdist share the cores, and threads that wait for
# one that another worker has do so busily: what takes a second then takes ten.
os.environ["OMP_NUM_THREADS"] = "1"

Array = NDArray[Any]
Hopmem = Callable[..., Result]
Ask = Callable[..., dict[str, Any]]

IMAGE_NAMES = ("a.png", "b.bmp", "deep/c.tif", "deep/down/d.png", "e.png", "f.png")  # every format without loss
VECTOR_NAMES = tuple("ABCDEFGHIJKL")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the slow tests all but one in n cases of a grid; where n divides none of its sides, none is left out."""
    seen = Counter[str]()
    for item in items:
        grid = item.get_closest_marker("grid")
        if grid is not None:
            function = item.nodeid.partition("[")[0]
            if seen[function] % grid.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[function] += 1


def write_queries(path: Path, vectors: Array, count: int) -> Path:
    """So many noisy copies of patterns as .npy, some of them partial."""
    draw = np.random.default_rng(5)
    rows = vectors[draw.integers(len(vectors), size=count)] + 0.5 * draw.standard_normal((count, vectors.shape[1]))
    rows[::97, :3] = np.nan
    np.save(path, rows.astype(np.float32))
    return path


@pytest.fixture(scope="session")
def hopmem() -> Hopmem:
    """Run the command line here, and check how it ends: `hopmem("inspect", bank, code=0)`."""
    outside = {name: None for name in os.environ if name.startswith("HOPMEM_")}
    terminal = {"COLUMNS": "80", "FORCE_COLOR": None, "TTY_COMPATIBLE": None}
    runner = CliRunner(env=outside | terminal | {"HOPMEM_DEVICE": "cpu"})

    def run(
        *args: object, code: int = 0, stdin: bytes | str | None = None, env: dict[str, str] | None = None
    ) -> Result:
        result = runner.invoke(app, [str(arg) for arg in args], input=stdin, env=env)
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="session")
def in_child() -> Iterator[InChild]:
    """Run what python would, in a process that has loaded everything: `in_child("-m", "hopmem", "inspect", bank)`."""
    with zygote() as run:
        yield run


@pytest.fixture(scope="session")
def ask(hopmem: Hopmem) -> Ask:
    """Run a command with --json and read what it says: `ask("inspect", bank)["patterns"]`."""

    def run(*args: object, **how: Any) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(hopmem(*args, "--json", **how).stdout)
        return answer

    return run


@pytest.fixture(scope="session")
def vectors() -> Array:
    """Twelve patterns of six entries."""
    return np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)


@pytest.fixture(scope="session")
def pixels() -> Array:
    """Six images, 8 wide and 6 high."""
    return np.random.default_rng(1).integers(0, 256, (6, 6, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the files below stand."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="session")
def array(shelf: Path, vectors: Array) -> Path:
    """The vectors as .npy."""
    np.save(shelf / "vectors.npy", vectors)
    return shelf / "vectors.npy"


@pytest.fixture(scope="session")
def table(shelf: Path, vectors: Array) -> Path:
    """The vectors as .csv, with a header and a column of names."""
    lines = ["name," + ",".join(f"x{column}" for column in range(6))]
    lines += [f"{name}," + ",".join(map(str, row)) for name, row in zip(VECTOR_NAMES, vectors.tolist(), strict=True)]
    (shelf / "vectors.csv").write_text("\n".join(lines) + "\n")
    return shelf / "vectors.csv"


@pytest.fixture(scope="session")
def folder(shelf: Path, pixels: Array) -> Path:
    """The images as a folder with folders in it."""
    for name, image in zip(IMAGE_NAMES, pixels, strict=True):
        path = shelf / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return shelf / "images"


@pytest.fixture(scope="session")
def bank(hopmem: Hopmem, shelf: Path, table: Path) -> Path:
    """A raw bank of the vectors."""
    hopmem("store", table, "--id-column", "name", "-o", shelf / "vectors.safetensors")
    return shelf / "vectors.safetensors"


@pytest.fixture(scope="session")
def learned(hopmem: Hopmem, shelf: Path, bank: Path) -> Path:
    """The same bank with a learned map."""
    hopmem("optimize", bank, "--objective", "average", "-o", shelf / "learned.safetensors")
    return shelf / "learned.safetensors"


@pytest.fixture(scope="session")
def image_bank(hopmem: Hopmem, shelf: Path, folder: Path) -> Path:
    """A raw bank of the images."""
    hopmem("store", folder, "-o", shelf / "images.safetensors")
    return shelf / "images.safetensors"
