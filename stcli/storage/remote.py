"""Artifacts, indexes and outputs on object stores and other filesystems that pyarrow knows.

What is mapped into memory must be a local file: a remote artifact or index is copied to the cache of this host once,
and checked. What is written is written locally and copied when it is whole, its manifest last, so that a reader of
ours, who refuses a directory without one, never meets half of it.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import pyarrow.fs as pafs

from stcli.errors import ExistsError, InputError, RunError, ThresholdError
from stcli.storage import atomic
from stcli.storage.listing import resolve_filesystem

P = ParamSpec("P")

CHUNK_BYTES = 16 << 20

SOURCE = "source.json"
"""Beside a copy in the cache: what it was copied from. Written last."""


def is_remote(path: object) -> bool:
    """The path is a URI of another filesystem than the local one."""
    return "://" in str(path) and not str(path).startswith("file://")


def holds_ours(uri: str) -> bool:
    """There is an artifact, or a directory that stcli made."""
    filesystem, path = resolve_filesystem(uri)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        return path.endswith(".safetensors")
    named = filesystem.get_file_info([f"{path.rstrip('/')}/{name}" for name in atomic.OURS])
    return kind == pafs.FileType.Directory and any(info.type == pafs.FileType.File for info in named)


def local_path(path: object) -> Path:
    """A local path, from one or from a `file://` URI."""
    return Path(str(path).removeprefix("file://"))


def cache_folder() -> Path:
    """Where copies are kept: `$STCLI_CACHE`, else `stcli` in `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("STCLI_CACHE") or Path(base) / "stcli")


def on_any_filesystem(*inputs: str) -> Callable[[Callable[P, dict[str, Any]]], Callable[P, dict[str, Any]]]:
    """Let a command take URIs for the arguments named, and for `output` if it has one."""

    def decorate(command: Callable[P, dict[str, Any]]) -> Callable[P, dict[str, Any]]:
        signature = inspect.signature(command)

        @functools.wraps(command)
        def run(*args: P.args, **options: P.kwargs) -> dict[str, Any]:
            bound = signature.bind(*args, **options)
            given = bound.arguments
            if is_remote(given.get("output", "")):
                _check_apart(str(given["output"]), {**given, "output": None})
            for name in inputs:
                given[name] = local_copy(str(given[name])) if is_remote(given[name]) else local_path(given[name])
            if "output" not in given:
                return command(*bound.args, **bound.kwargs)
            if not is_remote(given["output"]):
                given["output"] = local_path(given["output"])
                return command(*bound.args, **bound.kwargs)
            more = given.get("options", {})
            if more.get("engine") == "ray":
                raise InputError(
                    f"-o {given['output']}: with --engine ray each node writes its own parts; name a folder that all "
                    "nodes share"
                )
            uri = str(given["output"])
            with remote_output(uri, bool(more.get("overwrite")), bool(more.get("resume"))) as path:
                given["output"] = path
                summary = command(*bound.args, **bound.kwargs)
            told = {name: value and str(value).replace(str(path), uri) for name, value in summary["outputs"].items()}
            return {**summary, "outputs": told}

        return run

    return decorate


def local_copy(uri: str) -> Path:
    """Copy a remote file or directory to the cache, unless its copy is there and as new; the path of the copy.

    Raises:
        InputError: nothing is there.
    """
    filesystem, source = resolve_filesystem(uri)
    files = list_files(filesystem, source, uri)
    stated = {name: [info.size, info.mtime_ns or 0] for name, info in files.items()}
    folder = cache_folder() / "inputs" / _key(uri)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / Path(source).name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process of the host copies, the others wait for it
        if (folder / SOURCE).exists() and json.loads((folder / SOURCE).read_text()) == {"uri": uri, "files": stated}:
            return copy
        (folder / SOURCE).unlink(missing_ok=True)
        atomic.remove(copy)
        for name, info in files.items():
            target = copy / name if name else copy
            target.parent.mkdir(parents=True, exist_ok=True)
            with filesystem.open_input_stream(info.path) as remote, target.open("wb") as local:
                _copy(remote, local)
            if target.stat().st_size != info.size:
                raise RunError(f"{uri}: {info.path} changed while it was copied; run again")
        _check_hashes(copy)
        atomic.write_text(folder / SOURCE, json.dumps({"uri": uri, "files": stated}))
    return copy


@contextmanager
def remote_output(uri: str, overwrite: bool, resume: bool) -> Iterator[Path]:
    """A local path to write an output to, copied to `uri` when the block ends without an error.

    An interrupted output stays on this host, for `resume`.

    Raises:
        ExistsError: something is there already and `overwrite` is not set.
    """
    filesystem, target = resolve_filesystem(uri)
    target = target.rstrip("/")
    there = filesystem.get_file_info(target).type != pafs.FileType.NotFound
    if there and not overwrite:
        raise ExistsError(f"{uri}: already exists; choose another -o or add --overwrite to replace it")
    folder = cache_folder() / "outputs" / _key(uri)
    if not resume:
        atomic.remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(target).name
    missed: ThresholdError | None = None
    try:
        yield path
    except ThresholdError as error:
        if not path.exists():
            raise
        missed = error  # a report is whole, whatever it says
    base = target.rsplit("/", 1)[0]
    made = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if there:
        _check_kind(filesystem, target, uri, path)
        remove_remote(filesystem, target)
    for path in sorted(made, key=lambda path: path.name in atomic.OURS):
        name = f"{base}/{path.relative_to(folder).as_posix()}"
        filesystem.create_dir(name.rsplit("/", 1)[0], recursive=True)
        with path.open("rb") as local, filesystem.open_output_stream(name) as remote:
            _copy(local, remote)
    atomic.remove(folder)
    if missed is not None:
        raise missed


def _check_apart(output: str, given: object) -> None:
    """Refuse an output that is an input, or holds one: a text among what a command was given."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        for value in given:
            _check_apart(output, value)
    elif f"{given}/".startswith(f"{output.rstrip('/')}/"):
        raise InputError(f"{output}: would remove the input {given}; choose another -o")


def _check_kind(filesystem: pafs.FileSystem, target: str, uri: str, made: Path) -> None:
    """Refuse to replace something else than was made."""
    for name, what in atomic.OURS.items():
        if (made / name).exists() and filesystem.get_file_info(f"{target}/{name}").type != pafs.FileType.File:
            raise InputError(f"{uri}: is not {what}, and is kept; the output lies in {made}, copy it to another place")


def remove_remote(filesystem: pafs.FileSystem, target: str) -> None:
    """Remove a remote output, its manifest first, so that no reader takes the rest for whole."""
    if filesystem.get_file_info(target).type == pafs.FileType.File:
        filesystem.delete_file(target)
        return
    for name in atomic.OURS:
        if filesystem.get_file_info(f"{target}/{name}").type == pafs.FileType.File:
            filesystem.delete_file(f"{target}/{name}")
    filesystem.delete_dir(target)


def list_files(filesystem: pafs.FileSystem, source: str, uri: str) -> dict[str, pafs.FileInfo]:
    """The files of a remote directory by their relative names; a file's own is "".

    Raises:
        InputError: nothing is there.
    """
    info = filesystem.get_file_info(source)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{uri}: no such file or directory")
    if info.type == pafs.FileType.File:
        return {"": info}
    found = filesystem.get_file_info(pafs.FileSelector(source, recursive=True))
    return {item.path[len(source) :].lstrip("/"): item for item in found if item.type == pafs.FileType.File}


def _check_hashes(copy: Path) -> None:
    from stcli.storage.artifact import open_artifact_file
    from stcli.storage.artifact_set import open_set
    from stcli.storage.index_dir import open_index

    if (copy / "manifest.json").is_file():
        open_index(copy, verify=True)
    elif (copy / "set.json").is_file():
        open_set(copy, verify=True)
    elif copy.suffix == ".safetensors":
        open_artifact_file(copy, verify=True)


def _copy(source: Any, target: Any) -> None:
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)


def _key(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:24]
