"""Outputs appear whole or not at all: they are written beside their name and renamed when done."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stcli.errors import ExistsError, InputError, RunError

OURS = {
    "manifest.json": "an index",
    "set.json": "an artifact set",
    "_manifest.json": "results",
    "report.json": "a report",
}
"""What a directory of ours is, by the file that tells it."""

ARTIFACT = "an artifact"
"""What a file of ours is."""


def check_output(
    path: Path, overwrite: bool, *, directory: bool = True, makes: str | None = None, inputs: Iterable[str | Path] = ()
) -> None:
    """Refuse, before any work, an output that exists, whose folder does not, or that must not be replaced.

    Args:
        path: the output.
        overwrite: replace it if it is there, and of the same kind.
        directory: the output is a directory, not a file.
        makes: one of the kinds in `OURS`, or `ARTIFACT`; None for whatever is there.
        inputs: what is read; an output may neither be one of them nor hold one.

    Raises:
        ExistsError: it is there and `overwrite` is False.
        InputError: its folder is missing, or it is not an output of ours, or of another kind.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder {path.absolute().parent} does not exist; create it first")
    if not path.exists():
        return
    if not overwrite:
        raise ExistsError(f"{path}: already exists; choose another -o or add --overwrite to replace it")
    for source in inputs:
        given = Path(str(source).removeprefix("file://")).resolve()
        if path.resolve() in (given, *given.parents):
            raise InputError(f"{path}: --overwrite would remove the input {source}; choose another -o")
    if path.is_dir() != directory:
        there, wanted = ("directory", "file") if path.is_dir() else ("file", "directory")
        raise InputError(f"{path}: is a {there}, and the output is a {wanted}; choose another -o")
    if not directory:
        if makes == ARTIFACT and not _may_be_artifact(path):
            raise InputError(f"{path}: is no artifact; remove it yourself or choose another -o")
        return
    found = [what for name, what in OURS.items() if (path / name).exists()]
    if any(path.iterdir()) and not found:
        raise InputError(f"{path}: is a directory that stcli did not make; remove it yourself or choose another -o")
    if found and makes not in (None, *found):
        raise InputError(f"{path}: holds {found[0]}, and the output is {makes}; choose another -o")


def _may_be_artifact(path: Path) -> bool:
    """Whether a file is empty or begins as safetensors do: eight bytes of a length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return not start or start[8:] == b"{"


def partial_path(path: Path) -> Path:
    """Where an output is written until it is whole: `OUT.partial`."""
    return path.with_name(path.name + ".partial")


@contextmanager
def new_directory(path: Path, overwrite: bool) -> Iterator[Path]:
    """A fresh `OUT.partial/` to write into; renamed to `OUT` on success, removed on failure."""
    check_output(path, overwrite)
    partial = partial_path(path)
    remove(partial)
    partial.mkdir()
    with removed_on_failure(partial):
        yield partial
        publish(partial, path)


@contextmanager
def new_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """A file `OUT.partial` to write; renamed to `OUT` on success, removed on failure."""
    check_output(path, overwrite, directory=False)
    partial = partial_path(path)
    remove(partial)
    with removed_on_failure(partial):
        yield partial
        publish(partial, path)


@contextmanager
def removed_on_failure(partial: Path) -> Iterator[None]:
    """Remove `partial` if the block raises; a full disk becomes one sentence."""
    try:
        yield
    except BaseException as error:
        remove(partial)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{partial}: the disk is full; nothing was published, free space and run again") from error
        raise


def publish(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`, replacing what is there only once `partial` is complete.

    An existing directory cannot be replaced by one rename: it steps aside, and is removed last.
    """
    sync(partial)
    aside = path.with_name(path.name + ".replaced")
    remove(aside)
    if path.is_dir() and not path.is_symlink():
        os.rename(path, aside)
    try:
        os.replace(partial, path)
    except BaseException:
        if aside.exists():
            os.rename(aside, path)
        raise
    sync(path.absolute().parent)
    remove(aside)


def allocate(path: Path) -> None:
    """Claim the disk space of a sparse file now, since a full disk met by a write to its mapping kills the process.

    Raises:
        OSError: the disk is full.
    """
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))


def sync(path: Path) -> None:
    """Ask the system to write a file or directory entry to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small file through a temporary one, so that a reader sees the old or the new text."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def remove(path: Path) -> None:
    """Remove a file or directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()
