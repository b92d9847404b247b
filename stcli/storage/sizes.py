"""How many bytes of an index or artifact serve which purpose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

GROUPS = ("search", "embeddings", "filter", "terms", "ids", "columns", "overarch", "tower")
"""Int8 search, item embeddings, bit matrix, exact terms and vocabulary, ids, kept columns, OverArch, tower."""


def array_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of an array described in a manifest by `dtype` and `shape`."""
    return int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize


def bytes_by_group(arrays: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of each of GROUPS and their `total`, from the `arrays` of a manifest."""
    sizes = dict.fromkeys(GROUPS, 0)
    for name, entry in arrays.items():
        sizes[group_of(name)] += array_bytes(entry)
    return sizes | {"total": sum(sizes.values())}


def overarch_summary(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a summary says of the OverArch of an artifact; empty if it has none."""
    entry = manifest.get("overarch")
    if entry is None:
        return {}
    shown = {key: entry[key] for key in ("kind", "cache", "bytes_per_item") if key in entry}
    return shown | {key: ", ".join(entry[key]) for key in ("tasks", "columns") if entry.get(key)}


def group_of(name: str) -> str:
    """Which of GROUPS an array belongs to."""
    if name.startswith(("overarch.", "tower.")):
        return name.partition(".")[0]
    if name.startswith("embedding"):
        return "embeddings"
    if name in ("own_words", "bloom_words", "bloom_offsets"):
        return "filter"
    if name.startswith(("item_id", "id_")):
        return "ids"
    if name == "columns":
        return "columns"
    if name in ("codes", "scales", "errors", "norms") or name.startswith(("centroid", "cluster_")):
        return "search"
    return "terms"
