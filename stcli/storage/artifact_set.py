"""The artifact set: a directory of artifacts that are searched as one; `set.json` is written last. See FORMAT.md."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import FormatError
from stcli.storage.artifact import Artifact, open_artifact_file
from stcli.storage.atomic import write_text
from stcli.storage.manifest import SET, canonical, check_sealed, hash_array, read_json, sealed
from stcli.storage.tensors import map_npy

MANIFEST = "set.json"
TOMBSTONES = "tombstones.npy"
MAIN, FRESH, FRESH_ITEMS = "main.safetensors", "fresh.safetensors", "fresh.parquet"
"""Names of a main index that was not split, of the fresh file, and of the table that it was built from."""

UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Why a file cannot be linked where it could be copied: another filesystem, or one without hard links."""


@dataclass(frozen=True)
class Shard:
    """A run of clusters of the main index in a file of its own; an index that was not split is one shard.

    Attributes:
        file: its name in the set.
        fingerprint: of the artifact.
        first_row, num_items: its rows among those of the set.
        first_cluster, num_clusters: its clusters among those of the main index.
    """

    file: str
    fingerprint: str
    first_row: int
    num_items: int
    first_cluster: int
    num_clusters: int


@dataclass(frozen=True)
class Fresh:
    """The items that came after the main index was built, in an index of their own.

    Attributes:
        file: its name in the set.
        fingerprint: of the artifact.
        num_items: its rows, which follow those of the shards.
        items: name in the set of the Parquet table that it was built from; the next update takes over its living rows.
        input: fingerprint of that table.
    """

    file: str
    fingerprint: str
    num_items: int
    items: str
    input: Mapping[str, Any]


@dataclass(frozen=True)
class ArtifactSet:
    """An opened set. Rows are numbered through the shards, then the fresh file.

    Attributes:
        path: the directory.
        manifest: `set.json`.
        shards: the main index, in row order.
        fresh: newer items, or None.
        tombstones: int64 words [ceil(rows / 64)], memory-mapped: bit `i` is set if row `i` was deleted or superseded;
            None if no row was.
    """

    path: Path
    manifest: dict[str, Any]
    shards: tuple[Artifact, ...]
    fresh: Artifact | None
    tombstones: np.ndarray | None

    @property
    def parts(self) -> tuple[Artifact, ...]:
        """All artifacts in row order."""
        return (*self.shards, *([] if self.fresh is None else [self.fresh]))

    @property
    def num_main(self) -> int:
        """Rows of the shards."""
        return sum(entry["num_items"] for entry in self.manifest["shards"])

    @property
    def num_rows(self) -> int:
        """Rows of all parts, dead ones included."""
        return int(self.manifest["num_rows"])

    @property
    def fingerprint(self) -> str:
        """Of the set: another one for each update."""
        return str(self.manifest["fingerprint"])


def write_set(
    folder: Path,
    shards: Sequence[Shard],
    fresh: Fresh | None = None,
    tombstones: np.ndarray | None = None,
    body: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Seal a directory that holds the files of the parts already; return the manifest.

    Args:
        folder: the directory; the caller renames it afterwards.
        shards: in row order.
        fresh: newer items.
        tombstones: int64 words over all rows; None, or no bit set, if every row lives.
        body: more keys of the manifest.
    """
    num_rows = sum(shard.num_items for shard in shards) + (0 if fresh is None else fresh.num_items)
    dead = 0 if tombstones is None else int(np.bitwise_count(tombstones.view(np.uint64)).sum())
    buried = None
    if tombstones is not None and dead:
        np.save(folder / TOMBSTONES, tombstones)
        buried = {"file": TOMBSTONES, "sha256": hash_array(tombstones), "count": dead}
    manifest = sealed(
        SET,
        {
            **(body or {}),
            "num_rows": num_rows,
            "num_items": num_rows - dead,
            "shards": [asdict(shard) for shard in shards],
            "fresh": None if fresh is None else asdict(fresh),
            "tombstones": buried,
        },
    )
    write_text(folder / MANIFEST, canonical(manifest))
    return manifest


def read_set(path: Path) -> dict[str, Any]:
    """The manifest of a set, checked by itself.

    Raises:
        FormatError: no set, edited, of another version, or its numbers do not add up.
    """
    if not path.is_dir():
        raise FormatError(f"{path}: is not an artifact set; expected a directory made by stcli update or pack-model")
    manifest = check_sealed(SET, read_json(path / MANIFEST, "artifact set"), path / MANIFEST)
    row = cluster = 0
    for entry in manifest["shards"]:
        if entry["first_row"] != row or entry["first_cluster"] != cluster:
            raise FormatError(
                f"{path / MANIFEST}: {entry['file']} starts at row {entry['first_row']} and cluster "
                f"{entry['first_cluster']}, expected row {row} and cluster {cluster}; make the set again"
            )
        row, cluster = row + entry["num_items"], cluster + entry["num_clusters"]
    row += manifest["fresh"]["num_items"] if manifest["fresh"] else 0
    dead = manifest["tombstones"]["count"] if manifest["tombstones"] else 0
    if not manifest["shards"] or row != manifest["num_rows"] or row - dead != manifest["num_items"]:
        raise FormatError(
            f"{path / MANIFEST}: its parts have {row} rows, {dead} of them dead, but it states {manifest['num_rows']} "
            f"rows and {manifest['num_items']} items; make the set again"
        )
    return manifest


def open_set(path: Path, verify: bool = False) -> ArtifactSet:
    """Map all files of a set; with `verify` the hash of every array is checked.

    Raises:
        FormatError: no set, a file of it is missing, foreign or damaged, or the numbers do not add up.
    """
    manifest = read_set(path)
    shards = tuple(_open_part(path, entry, verify) for entry in manifest["shards"])
    fresh = None
    if manifest["fresh"] is not None:
        fresh = _open_part(path, manifest["fresh"], verify)
        _there(path, manifest["fresh"]["items"])
    tombstones = _open_tombstones(path, manifest, verify)
    return ArtifactSet(path, manifest, shards, fresh, tombstones)


def open_as_set(path: Path) -> ArtifactSet:
    """Map a set, or a single artifact as the set that it would be, with nothing fresh and nothing dead.

    Raises:
        FormatError: neither, or damaged.
    """
    if path.is_dir():
        return open_set(path)
    main = open_artifact_file(path)
    num_items, num_clusters = main.manifest["num_items"], main.manifest["num_clusters"]
    shard = Shard(MAIN, main.manifest["fingerprint"], 0, num_items, 0, num_clusters)
    manifest = {
        "fingerprint": shard.fingerprint,
        "num_rows": num_items,
        "num_items": num_items,
        "shards": [asdict(shard)],
        "fresh": None,
        "tombstones": None,
    }
    return ArtifactSet(path, manifest, (main,), None, None)


def _there(path: Path, name: str) -> Path:
    file = path / name
    if Path(name).name != name or not file.is_file():
        raise FormatError(f"{file}: is missing, so the set is not whole; copy or make the whole directory again")
    return file


def _open_part(path: Path, entry: Mapping[str, Any], verify: bool) -> Artifact:
    file = _there(path, entry["file"])
    artifact = open_artifact_file(file, verify)
    found = artifact.manifest["fingerprint"]
    if found != entry["fingerprint"]:
        raise FormatError(
            f"{file}: has fingerprint {found[:16]}, the set was made with {entry['fingerprint'][:16]}; "
            "the file is of another set, copy or make the whole directory again"
        )
    if artifact.manifest["num_items"] != entry["num_items"]:
        raise FormatError(
            f"{file}: has {artifact.manifest['num_items']} items, {MANIFEST} says {entry['num_items']}; "
            "make the set again"
        )
    return artifact


def _open_tombstones(path: Path, manifest: Mapping[str, Any], verify: bool) -> np.ndarray | None:
    entry = manifest["tombstones"]
    if entry is None:
        return None
    file = _there(path, entry["file"])
    words = map_npy(file, "c")  # copy-on-write, so that torch may wrap it
    expected = -(-manifest["num_rows"] // 64)
    if words.dtype != np.int64 or words.shape != (expected,):
        raise FormatError(
            f"{file}: is {words.dtype.name} {list(words.shape)}, expected int64 [{expected}] for "
            f"{manifest['num_rows']} rows; copy or make the whole set again"
        )
    if verify and hash_array(words) != entry["sha256"]:
        raise FormatError(f"{file}: does not match its hash, so it was edited or damaged; make the set again")
    return words


def bits_of(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Rows int64 [M], perhaps repeated, as words int64 [ceil(num_rows / 64)]."""
    words = np.zeros(-(-num_rows // 64), np.uint64)
    np.bitwise_or.at(words, rows // 64, np.left_shift(np.uint64(1), (rows % 64).astype(np.uint64)))
    return words.view(np.int64)


def rows_of(words: np.ndarray) -> np.ndarray:
    """The rows whose bits are set, int64, ascending: the inverse of `bits_of`."""
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little"))


def link_file(source: Path, target: Path) -> bool:
    """Give a file that does not change a second name, or copy it where that cannot be; whether it was linked."""
    try:
        os.link(source.resolve(), target)
        return True
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
    shutil.copyfile(source, target)
    return False


def open_files(path: Path, verify: bool = False) -> Artifact | ArtifactSet:
    """Map an artifact, or all files of a set; with `verify` the hash of every array is checked.

    Raises:
        FormatError: neither, or damaged, see `open_artifact_file` and `open_set`.
    """
    return open_set(path, verify) if (path / MANIFEST).is_file() else open_artifact_file(path, verify)
