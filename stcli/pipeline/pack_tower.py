"""Packs a user tower: its config and weights, checked against the embeddings that are searched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import InputError
from stcli.model.tower import PREFIX
from stcli.model.tower_config import parse_tower
from stcli.storage.weights import read_config, read_weights, weights_beside


def pack_tower(path: str | None, dim: int) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Check a tower and read its weights.

    Args:
        path: the JSON config, its weights beside it; None for no tower.
        dim: D of the packed embeddings, which a history is read as; 0 if none are packed.

    Returns:
        The manifest entry and the arrays by name; None and none without a tower.

    Raises:
        InputError: config, weights and embeddings do not fit together, or a file could run code.
        FormatError: the weights are truncated or damaged.
    """
    if path is None:
        return None, {}
    raw = read_config(Path(path))
    config = parse_tower(raw, path)
    if config.dim != dim:
        raise InputError(
            f"{path}: 'dim' is {config.dim}, the packed embeddings have {dim or 'no'} dimensions; use the tower that "
            "they were trained with, and pack them"
        )
    weights = read_weights(weights_beside(Path(path), raw), config.shapes())
    entry = {
        "kind": config.kind,
        "tasks": list(config.tasks),
        "columns": [column.name for column in config.columns],
        "max_history": config.max_history,
        "config": {key: value for key, value in raw.items() if key != "weights"},
    }
    return entry, {PREFIX + name: tensor.numpy() for name, tensor in weights.items()}


def tower_summary(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What summaries say of an artifact's tower."""
    entry = manifest.get("tower")
    if entry is None:
        return None
    weights = [array for name, array in manifest["arrays"].items() if name.startswith(PREFIX)]
    count = sum(int(np.prod(array["shape"], dtype=np.int64)) for array in weights)
    return {key: entry[key] for key in ("kind", "tasks", "columns", "max_history")} | {"num_weights": count}
