"""The index directory: `manifest.json`, written last, and one `.npy` file an array. See FORMAT.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import FormatError
from stcli.storage.atomic import allocate, write_text
from stcli.storage.manifest import INDEX, canonical, check_sealed, hash_array, read_json, sealed
from stcli.storage.tensors import map_npy

MANIFEST = "manifest.json"
SEAL = ("format", "version", "fingerprint")


class IndexWriter:
    """Creates the arrays of an index directory one by one, memory-mapped, and seals it.

    Args:
        folder: an empty directory; the caller renames it when `finish` has returned.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def create(self, name: str, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
        """A new array to fill in place."""
        array: np.ndarray
        if np.prod(shape, dtype=np.int64):
            array = np.lib.format.open_memmap(self._path(name), "w+", np.dtype(dtype), shape)
            allocate(self._path(name))
        else:  # cannot be mapped
            array = np.zeros(shape, dtype)
            np.save(self._path(name), array)
        self._arrays[name] = array
        return array

    def described(self) -> dict[str, dict[str, Any]]:
        """Type and shape of each array so far, as the manifest has them."""
        return {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in self._arrays.items()}

    def write(self, name: str, array: np.ndarray) -> np.ndarray:
        """Write a whole array."""
        created = self.create(name, array.dtype, array.shape)
        created[...] = array
        return created

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def finish(self, body: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest with the hash of every array; return it."""
        arrays = {}
        for name, array in sorted(self._arrays.items()):
            if isinstance(array, np.memmap):
                array.flush()
            arrays[name] = {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": hash_array(array)}
        manifest = sealed(INDEX, {**body, "arrays": arrays})
        write_text(self.folder / MANIFEST, canonical(manifest))
        return manifest


def add_to_manifest(folder: Path, more: dict[str, Any]) -> None:
    """Seal an index directory again, with more keys in its manifest."""
    body = {key: value for key, value in read_json(folder / MANIFEST, "index").items() if key not in SEAL}
    write_text(folder / MANIFEST, canonical(sealed(INDEX, {**body, **more})))


@dataclass(frozen=True)
class IndexDir:
    """An opened index directory.

    Attributes:
        path: where it is.
        manifest: its manifest.
        arrays: memory-mapped, read-only, by name.
    """

    path: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]


def open_index(path: Path, verify: bool = False) -> IndexDir:
    """Open an index directory; with `verify` the hash of every array is checked.

    Raises:
        FormatError: not an index, damaged, or of another version.
    """
    if not path.is_dir():
        raise FormatError(f"{path}: is not an index directory; expected the output of stcli build-index")
    manifest = check_sealed(INDEX, read_json(path / MANIFEST, "index"), path / MANIFEST)
    arrays = {}
    for name, entry in manifest["arrays"].items():
        file = path / f"{name}.npy"
        array = map_npy(file, None if 0 in entry["shape"] else "r")
        if array.dtype.name != entry["dtype"] or list(array.shape) != entry["shape"]:
            raise FormatError(
                f"{file}: is {array.dtype.name} {list(array.shape)}, the manifest says "
                f"{entry['dtype']} {entry['shape']}; build the index again"
            )
        if verify and hash_array(array) != entry["sha256"]:
            raise FormatError(f"{file}: its content does not match the hash in the manifest; build the index again")
        arrays[name] = array
    return IndexDir(path, manifest, arrays)
