"""Manifests of files that hold a few arrays only: whole as to keys and types, with made numbers."""

from __future__ import annotations

from typing import Any

SET_BODY = {"tool_version": "1"}

_FILTER = {
    "num_terms": 0, "own_rows": 0, "bloom_rows": [], "num_hashes": 7, "bloom_fpr": 0.001, "measured_fpr": None,
    "fixed_width": None, "paper": False, "bytes_per_item": 1.5, "features": [],
}  # fmt: skip


def _items(num_items: int) -> dict[str, Any]:
    return {
        "tool_version": "1", "num_items": num_items, "dim": 4, "num_clusters": 1, "cluster_sizes": [num_items] * 3,
        "metric": "inner_product", "scale": "row", "seed": 0, "embedding_version": None, "ids": "int64",
        "lengths_differ": False, "zero_vectors": 0, "columns": [], "input": {"rows": num_items, "files": []},
        "filter": _FILTER,
    }  # fmt: skip


def index_body(num_items: int, **other: Any) -> dict[str, Any]:
    """Of an index directory."""
    return _items(num_items) | {"nulls_in_lists": 0, "rejected": 0} | other


def artifact_body(num_items: int, **other: Any) -> dict[str, Any]:
    """Of an artifact."""
    return _items(num_items) | {"index": "0", "embedding_dtype": "none", "embedding_dim": 0} | other
