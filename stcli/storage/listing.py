"""Which files a table is made of: paths, URIs, directories, globs and hive partitions, on any pyarrow filesystem."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from stcli.errors import InputError

GLOB = frozenset("*?[")

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Found:
    """A file of a table.

    Attributes:
        filesystem, path: where it is.
        partition: values of the hive columns, from `column=value` in its path; None is null.
    """

    filesystem: pafs.FileSystem
    path: str
    partition: Mapping[str, str | None]


def resolve_filesystem(source: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI, and the path in it.

    Raises:
        InputError: the URI scheme is unknown to pyarrow.
    """
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            f"{source}: cannot be opened as a pyarrow filesystem ({error}); use a path or a URI such as s3://bucket/table"
        ) from error
    return filesystem, path


def find_files(source: str) -> list[Found]:
    """The files of one input, in the order of their names; hidden ones and those with a leading underscore left out.

    Raises:
        InputError: nothing is there, or the URI scheme is unknown.
    """
    if GLOB.isdisjoint(source) or ("://" not in source and Path(source).exists()):
        return _files_of(source)
    address, _, query = source.partition("?") if "://" in source else (source, "", "")  # s3://…?endpoint_override=…
    if GLOB.isdisjoint(address):
        return _files_of(source)
    parts = address.split("/")
    first = next(number for number, part in enumerate(parts) if not GLOB.isdisjoint(part))
    base = "/".join(parts[:first]) or ("/" if address.startswith("/") else ".")
    filesystem, folder = resolve_filesystem(base + ("?" + query if query else ""))
    below = _below(filesystem, folder) if filesystem.get_file_info(folder).type == pafs.FileType.Directory else []
    matched = [found for found in below if _matches(found.path[len(folder) :].strip("/").split("/"), parts[first:])]
    if not matched:
        raise InputError(f"{source}: no file matches; expected a pattern such as items/*.parquet")
    return matched


def partition_types(files: Sequence[Found]) -> dict[str, pa.DataType]:
    """Types of the hive columns of a table: int64 if every value is a whole number, else string."""
    names = list(dict.fromkeys(name for file in files for name in file.partition))
    types = {}
    for name in names:
        values = [file.partition.get(name) for file in files]
        types[name] = pa.int64() if all(value is None or _is_whole(value) for value in values) else pa.string()
    return types


def _files_of(source: str) -> list[Found]:
    filesystem, path = resolve_filesystem(source)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise InputError(f"{source}: no such file or directory")
    if info.type == pafs.FileType.File:
        return [Found(filesystem, path, {})]
    return _below(filesystem, path)


def _below(filesystem: pafs.FileSystem, folder: str) -> list[Found]:
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    # Object stores mark folders by empty files; an empty *.parquet is a table cut short, and fails when it is opened.
    files = [entry.path for entry in entries if entry.type == pafs.FileType.File and (entry.size or entry.extension)]
    visible = sorted(path for path in files if not _is_hidden(path[len(folder) :]))
    return [Found(filesystem, path, _partition(path[len(folder) :])) for path in visible]


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/") if part)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, or lies below a directory that does."""
    return len(parts) >= len(pattern) and all(map(fnmatch.fnmatchcase, parts, pattern))


def _partition(path: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if "=" in part]
    return {unquote(name): None if value == HIVE_NULL else unquote(value) for name, value in pairs}


def _is_whole(text: str) -> bool:
    try:
        return str(int(text)) == text and abs(int(text)) < 1 << 63
    except ValueError:
        return False
