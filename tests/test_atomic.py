"""A file is written whole or not at all."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hopmem import atomic
from hopmem.atomic import refuse_overwrite, replacing
from tests.refusal import raises_refusal


def write(path: Path, text: str, *, force: bool = True) -> None:
    with replacing(path, force=force) as temporary:
        temporary.write_text(text)


def test_a_file_stands_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "new" / "folders" / "x.txt"
    with replacing(path, force=False) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == path.suffix
        assert temporary.parent == path.parent
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("old", ["old", None])
def test_a_failure_inside_leaves_what_was_there_and_nothing_else(tmp_path, failure, old):
    path = tmp_path / "x.txt"
    if old:
        path.write_text(old)
    with pytest.raises(failure), replacing(path, force=True) as temporary:
        temporary.write_text("half")
        raise failure
    assert [each.name for each in tmp_path.iterdir()] == (["x.txt"] if old else [])
    assert not old or path.read_text() == old


def test_a_reader_of_the_old_file_keeps_reading_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with path.open() as reader:
        write(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with raises_refusal(2, "x.txt", "--force"):
        write(path, "new", force=False)
    with raises_refusal(2, "x.txt"):
        refuse_overwrite(path, force=False)
    refuse_overwrite(path, force=True)
    refuse_overwrite(tmp_path / "y.txt", force=False)
    assert path.read_text() == "old"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_that_open_would_give(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "x", "new")
        (tmp_path / "y").write_text("plain")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    write(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_text() == "new"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_keeps_pointing_where_it_points(tmp_path, there):
    target, link = tmp_path / "elsewhere" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink()
    assert not target.is_symlink()
    assert target.read_text() == "new"


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with raises_refusal(3, "can be written to"):
        write(tmp_path / "file" / "x", "new")


@pytest.mark.parametrize(
    "name",
    ["😀" * 60 + ".npy", "a" * 251 + ".npy", "a." + "b" * 253, "ä" * 127],
    ids=["wide", "long", "suffix", "umlauts"],
)
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, name):
    (tmp_path / name).write_text("old")
    write(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"


LEAVE = """
import os, sys
from pathlib import Path
from hopmem.atomic import replacing
with replacing(Path(sys.argv[1]), force=True) as temporary:
    temporary.write_text("half")
    os._exit(1)
"""


def test_what_a_killed_run_left_is_cleared_by_the_next_one_and_nothing_else_is(tmp_path):
    subprocess.run([sys.executable, "-c", LEAVE, str(tmp_path / "x.txt")], check=False)
    assert [each.name.startswith(atomic._own()) for each in tmp_path.iterdir()] == [True]
    (tmp_path / ".hopmem-mine").write_text("kept")
    alive = tmp_path / f"{atomic._own()}{os.getppid()}-abc"
    alive.write_text("somebody writes here")
    atomic._clear.cache_clear()
    write(tmp_path / "z.txt", "new")
    assert {each.name for each in tmp_path.iterdir()} == {".hopmem-mine", alive.name, "z.txt"}


def test_the_folder_is_synced_after_the_new_name(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_mode) or fsync(handle))
    write(tmp_path / "x", "new")
    assert [stat.S_ISDIR(mode) for mode in synced] == [False, True]
