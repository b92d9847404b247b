"""Packs a user tower: its config and weights or program, checked against the embeddings that are searched."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli.errors import InputError
from stcli.model.history import History
from stcli.model.program import CODE, CONSENT, ProgramTower
from stcli.model.tower import PREFIX
from stcli.model.tower_config import TowerConfig, parse_tower
from stcli.storage.weights import WAY_OUT, read_config, read_program, read_weights, weights_beside


def pack_tower(
    path: str | None, dim: int, allow_model_code: bool = False
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """Check a tower and read its weights.

    Args:
        path: the JSON config, its weights beside it; None for no tower.
        dim: D of the packed embeddings, which a history is read as; 0 if none are packed.
        allow_model_code: a `torch.export` program may be packed, and is called once.

    Returns:
        The manifest entry and the arrays by name; None and none without a tower.

    Raises:
        InputError: config, weights and embeddings do not fit together, or a file could run code that is not allowed.
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
    entry: dict[str, Any] = {
        "kind": config.kind,
        "tasks": list(config.tasks),
        "columns": [column.name for column in config.columns],
        "max_history": config.max_history,
        "config": {key: value for key, value in raw.items() if key not in ("weights", "program")},
    }
    if config.program is not None:
        code = read_program(Path(path), raw)
        if not allow_model_code:
            raise InputError(f"{path}: names a torch.export program, which is code; {CONSENT}, or {WAY_OUT}")
        entry["program_sha256"] = hashlib.sha256(code).hexdigest()
        content = np.frombuffer(code, np.uint8)
        _try_out(ProgramTower(config, content, entry["program_sha256"]))
        return entry, {PREFIX + CODE: content}
    weights = read_weights(weights_beside(Path(path), raw), config.shapes())
    return entry, {PREFIX + name: tensor.numpy() for name, tensor in weights.items()}


def _try_out(tower: ProgramTower) -> None:
    """Call a program with one request without events, so that one that does not fit is found while it is packed."""
    config: TowerConfig = tower.config
    tower.allowed = True
    history = History(torch.zeros(0, config.dim), torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    tower(history, torch.zeros(1, len(config.columns)))


def tower_summary(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What summaries say of an artifact's tower."""
    entry = manifest.get("tower")
    if entry is None:
        return None
    told = {key: entry[key] for key in ("kind", "tasks", "columns", "max_history")}
    if "program_sha256" in entry:
        return told | {"program_sha256": entry["program_sha256"]}
    weights = [array for name, array in manifest["arrays"].items() if name.startswith(PREFIX)]
    return told | {"num_weights": sum(int(np.prod(array["shape"], dtype=np.int64)) for array in weights)}
