"""Item embeddings by a tower over item columns, while the table is read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stcli.errors import InputError
from stcli.model.tower import Tower
from stcli.model.tower_config import parse_tower
from stcli.pipeline.features import check_column, column_numbers
from stcli.storage.columns import BadRows
from stcli.storage.parquet import Table
from stcli.storage.weights import read_config, read_weights, weights_beside


class ItemTower:
    """Embeddings that a tower of the kind `mlp` computes, see `stcli.index.ingest.Vectors`.

    Args:
        table: of the items.
        path: the tower's JSON config, its weights beside it.

    Raises:
        InputError: config, weights and table do not fit together, or a file could run code.
        FormatError: the weights are truncated or damaged.
    """

    def __init__(self, table: Table, path: str) -> None:
        raw = read_config(Path(path))
        config = parse_tower(raw, path)
        if config.kind != "mlp" or len(config.tasks) > 1:
            raise InputError(
                f"{path}: an item tower is of the kind 'mlp' with one vector an item; its columns are item's"
            )
        for column in config.columns:
            kind = table.column_type(column.name, f"'columns' of {path}")
            check_column(column, kind, f"{table.name}: column {column.name!r}")
        weights = weights_beside(Path(path), raw)
        self.path, self.tower = path, Tower(config, read_weights(weights, config.shapes()))
        self.columns = list(dict.fromkeys(column.name for column in config.columns))
        self.dim, self.dtype = config.dim, np.dtype(np.float32)
        self.fingerprint = {
            "config_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }

    def read(self, batch: pa.RecordBatch, bad: BadRows) -> np.ndarray:
        """The embeddings of a batch, float32 [rows, D]; a null is the mean of its column or no known category."""
        features = [
            column_numbers(column, batch.column(column.name), self.tower.weights, self.path)
            for column in self.tower.config.columns
        ]
        found = self.tower(None, torch.cat(features, 1))[:, 0].numpy()
        bad.mark(~np.isfinite(found).all(1), "the item tower gives an embedding that is not finite")
        return np.where(bad.bad[:, None], np.float32(0), found)
