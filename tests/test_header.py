"""The header of a bank, read without its tensors."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hopmem.header import metadata, read
from tests.conftest import Hopmem
from tests.refusal import raises_refusal


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "file", {"said": "yes", "format": "x/1"})
    return tmp_path / "file"


def test_what_the_library_wrote_is_read(file: Path):
    assert metadata(file) == {"said": "yes", "format": "x/1"}


def test_a_file_without_tensors_or_without_metadata_is_whole(tmp_path: Path):
    save_file({}, tmp_path / "none", {"said": "yes"})
    save_file({"a": torch.ones(1)}, tmp_path / "silent")
    assert metadata(tmp_path / "none") == {"said": "yes"}
    assert metadata(tmp_path / "silent") == {}


@pytest.mark.parametrize("length", [0, 4, 8, 20, -1])
def test_of_a_cut_file_nothing_is_told(file: Path, length):
    file.write_bytes(file.read_bytes()[:length])
    assert metadata(file) == {}


@pytest.mark.parametrize(
    "raw", [b"", b"\xff" * 40, (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b"null"]
)
def test_of_another_file_nothing_is_told(tmp_path: Path, raw):
    (tmp_path / "other").write_bytes(raw)
    assert metadata(tmp_path / "other") == {}


def test_of_no_file_and_of_a_folder_nothing_is_told(tmp_path: Path):
    assert metadata(tmp_path / "missing") == metadata(tmp_path) == {}


@pytest.mark.parametrize("values", ["[]", "0", "{}"])
def test_a_header_of_millions_of_values_is_refused_before_they_take_memory(tmp_path: Path, values: str):
    text = ('{"a": [' + ",".join([values] * 1_000_000) + "]}").encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    try:
        with raises_refusal(6, "more than 200,000 values"):
            read(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] <= 2 * len(text)  # the file, and the message
    finally:
        tracemalloc.stop()


def test_the_names_of_many_copies_do_not_outgrow_the_header(tmp_path: Path, hopmem: Hopmem):
    np.save(tmp_path / "x.npy", np.ones((3_000, 1), dtype=np.uint8))
    hopmem("store", tmp_path / "x.npy", "-o", tmp_path / "bank")
    assert len(read(tmp_path / "bank").metadata["tuning"]) < 1000
    assert "3,000" in hopmem("inspect", tmp_path / "bank").stdout
