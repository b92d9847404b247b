"""Outputs appear whole or not at all, and nothing that is not ours is replaced."""

from __future__ import annotations

import errno
import os

import pytest

from stcli.errors import ExistsError, InputError, RunError
from stcli.storage import atomic


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Stop(BaseException):
    """Like Ctrl-C: no Exception."""


def make(path, overwrite, text="new"):
    """A directory output with one file."""
    with atomic.new_directory(path, overwrite) as partial:
        assert partial == path.with_name(path.name + ".partial")
        (partial / "manifest.json").write_text(text)


def test_a_directory_appears_whole(tmp_path):
    out = tmp_path / "out"
    with atomic.new_directory(out, False) as partial:
        (partial / "manifest.json").write_text("new")
        assert not out.exists()
    assert tree(tmp_path) == ["out", "out/manifest.json"]


def test_a_file_appears_whole(tmp_path):
    out = tmp_path / "out"
    with atomic.new_file(out, False) as partial:
        partial.write_text("new")
        assert not out.exists()
    assert tree(tmp_path) == ["out"]
    with atomic.new_file(out, True) as partial:
        partial.write_text("newer")
        assert out.read_text() == "new"
    assert out.read_text() == "newer"


def test_a_directory_is_replaced_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    make(out, False, "old")
    (out / "old.npy").write_text("old")
    with atomic.new_directory(out, True) as partial:
        (partial / "manifest.json").write_text("new")
        assert (out / "manifest.json").read_text() == "old"
    assert tree(tmp_path) == ["out", "out/manifest.json"]
    assert (out / "manifest.json").read_text() == "new"


def half_done(context, error):
    """Write a little, then fail."""
    with context as partial:
        (partial / "half.npy" if partial.is_dir() else partial).write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), Stop(), MemoryError(), SystemExit(143)])
@pytest.mark.parametrize("kind", ["directory", "file"])
def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, error, kind):
    out = tmp_path / "out"
    enter = atomic.new_directory if kind == "directory" else atomic.new_file
    for before in (None, "old"):
        if before is not None:
            with enter(out, False) as partial:
                (partial / "manifest.json" if kind == "directory" else partial).write_text(before)
        there = tree(tmp_path)
        with pytest.raises(type(error)):
            half_done(enter(out, True), error)
        assert tree(tmp_path) == there
    assert (out / "manifest.json" if kind == "directory" else out).read_text() == "old"


def test_what_a_killed_run_left_is_cleared(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half.npy").write_text("half")
    (tmp_path / "out.replaced").mkdir()
    make(tmp_path / "out", False)
    assert tree(tmp_path) == ["out", "out/manifest.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence(tmp_path, number):
    full = OSError(number, "No space left on device")
    with pytest.raises(RunError, match=r"out.partial: the disk is full; nothing was published") as caught:
        half_done(atomic.new_directory(tmp_path / "out", False), full)
    assert caught.value.exit_code == 1
    assert tree(tmp_path) == []


def test_another_system_error_stays_itself(tmp_path):
    with pytest.raises(PermissionError):
        half_done(atomic.new_file(tmp_path / "out", False), PermissionError(errno.EACCES, "denied"))
    assert tree(tmp_path) == []


def test_a_full_disk_while_the_name_is_given(tmp_path, monkeypatch):
    make(tmp_path / "out", False, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="the disk is full"):
        make(tmp_path / "out", True, "new")
    monkeypatch.undo()
    assert (tmp_path / "out" / "manifest.json").read_text() == "old"
    assert tree(tmp_path) == ["out", "out/manifest.json"]


# ---- refused before any work ----------------------------------------------------------------------------------


def test_an_output_that_exists(tmp_path):
    make(tmp_path / "out", False)
    with pytest.raises(ExistsError, match=r"out: already exists; choose another -o or add --overwrite") as caught:
        atomic.check_output(tmp_path / "out", False)
    assert caught.value.exit_code == 2
    atomic.check_output(tmp_path / "out", True)


def test_an_output_in_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"its folder .*nowhere does not exist; create it first"):
        atomic.check_output(tmp_path / "nowhere" / "out", False)


def test_a_directory_of_others_is_never_removed(tmp_path):
    (tmp_path / "home").mkdir()
    atomic.check_output(tmp_path / "home", True)  # an empty one may be
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="home: is a directory that stcli did not make"):
        make(tmp_path / "home", True)
    assert tree(tmp_path) == ["home", "home/thesis.tex"]


def test_a_file_never_replaces_a_directory_nor_a_directory_a_file(tmp_path):
    make(tmp_path / "out", False)
    with pytest.raises(InputError, match="out: is a directory, and the output is a file"):
        atomic.check_output(tmp_path / "out", True, directory=False)
    (tmp_path / "model").write_text("model")
    with pytest.raises(InputError, match="model: is a file, and the output is a directory"):
        make(tmp_path / "model", True)


def test_an_input_is_never_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "items", False)
    (tmp_path / "items" / "part.parquet").touch()
    for inputs in (["items"], [tmp_path / "items"], ["items/part.parquet"], [(tmp_path / "items").as_uri()]):
        with pytest.raises(InputError, match="--overwrite would remove the input"):
            atomic.check_output(tmp_path / "items", True, inputs=inputs)
    atomic.check_output(tmp_path / "items", True, inputs=["other", "s3://bucket/items"])


def test_only_an_output_of_the_same_kind_is_replaced(tmp_path):
    for marker, what in atomic.OURS.items():
        there = tmp_path / marker.split(".")[0]
        there.mkdir()
        (there / marker).touch()
        for other in atomic.OURS.values():
            if other == what:
                atomic.check_output(there, True, makes=other)
                continue
            with pytest.raises(InputError, match=f"holds {what}, and the output is {other}; choose another -o"):
                atomic.check_output(there, True, makes=other)
    for text, is_ours in ((b"PAR1 and more", False), (b"", True), (b"\x10" + bytes(7) + b"{", True)):
        (tmp_path / "file").write_bytes(text)
        if is_ours:
            atomic.check_output(tmp_path / "file", True, directory=False, makes=atomic.ARTIFACT)
            continue
        with pytest.raises(InputError, match="file: is no artifact; remove it yourself or choose another -o"):
            atomic.check_output(tmp_path / "file", True, directory=False, makes=atomic.ARTIFACT)


# ---- small pieces -----------------------------------------------------------------------------------------------


def test_write_text_replaces_whole(tmp_path):
    atomic.write_text(tmp_path / "a.json", "old")
    atomic.write_text(tmp_path / "a.json", "ä")
    assert (tmp_path / "a.json").read_bytes() == "ä".encode()
    assert tree(tmp_path) == ["a.json"]


def test_remove_leaves_what_a_link_points_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    atomic.remove(tmp_path / "link")
    atomic.remove(tmp_path / "nothing")
    assert tree(tmp_path) == ["kept", "kept/a"]


def test_allocate_claims_the_space(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 20)
    assert (tmp_path / "a").stat().st_blocks * 512 < 1 << 20
    atomic.allocate(tmp_path / "a")
    assert (tmp_path / "a").stat().st_blocks * 512 >= 1 << 20
    assert (tmp_path / "a").stat().st_size == 1 << 20
