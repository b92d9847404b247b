"""The model artifact: one safetensors file whose metadata is the manifest. See FORMAT.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import FormatError
from stcli.storage.kinds import PARQUET_MAGIC
from stcli.storage.manifest import ARTIFACT, canonical, check_sealed, hash_array, sealed
from stcli.storage.tensors import LazyArray, read_safetensors, write_safetensors


@dataclass(frozen=True)
class Artifact:
    """An opened artifact.

    Attributes:
        path: the file.
        manifest: its manifest.
        arrays: memory-mapped, by name.
    """

    path: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_artifact(path: Path, arrays: Mapping[str, np.ndarray | LazyArray], body: dict[str, Any]) -> dict[str, Any]:
    """Write an artifact with `body` and the hash of every array in its manifest; return the manifest."""
    shapes = {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays.items()}

    def manifest(hashes: dict[str, str]) -> str:
        described = {name: {**shape, "sha256": hashes[name]} for name, shape in shapes.items()}
        return canonical(sealed(ARTIFACT, {**body, "arrays": described}))

    return json.loads(write_safetensors(path, arrays, manifest))


def open_artifact_file(path: Path, verify: bool = False) -> Artifact:
    """Map an artifact; with `verify` the hash of every array is checked.

    Raises:
        FormatError: not an artifact, truncated, edited or of another version.
    """
    if not path.is_file():
        kind = "a directory" if path.is_dir() else "not there"
        raise FormatError(f"{path}: is {kind}; expected a .safetensors file made by stcli pack-model")
    with path.open("rb") as file:
        if file.read(4) == PARQUET_MAGIC:
            raise FormatError(f"{path}: is a Parquet file; expected a .safetensors file made by stcli pack-model")
    text, arrays = read_safetensors(path)
    try:
        manifest = check_sealed(ARTIFACT, json.loads(text), path)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its manifest is not JSON ({error}); pack it again") from error
    if set(arrays) != set(manifest["arrays"]):
        raise FormatError(f"{path}: its tensors are not those of its manifest; pack it again")
    for name, entry in manifest["arrays"].items():
        array = arrays[name]
        if array.dtype.name != entry["dtype"] or list(array.shape) != entry["shape"]:
            raise FormatError(
                f"{path}: tensor {name!r} is {array.dtype.name} {list(array.shape)}, its manifest "
                f"says {entry['dtype']} {entry['shape']}; pack it again"
            )
        if verify and hash_array(array) != entry["sha256"]:
            raise FormatError(
                f"{path}: tensor {name!r} does not match its hash, so the file was edited or damaged; pack it again"
            )
    return Artifact(path, manifest, arrays)
