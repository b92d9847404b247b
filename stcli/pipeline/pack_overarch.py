"""Packs an OverArch: its weights, and for each item what can be computed before any request is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli.errors import InputError, nearest
from stcli.model.layers import Weights
from stcli.model.mol import item_components, item_gates
from stcli.model.overarch import PREFIX
from stcli.model.overarch_config import MolConfig, OverArchConfig, parse_overarch
from stcli.ops.tiles import in_tiles
from stcli.pipeline.columns import KeptColumns
from stcli.pipeline.features import check_column, column_numbers
from stcli.storage.sizes import array_bytes
from stcli.storage.tensors import LazyArray
from stcli.storage.weights import read_config, read_weights, weights_beside

CACHES = ("components", "int8", "none")
HALF_MAX = 65_504.0

Chunks = Callable[[], Iterator[tuple[slice, torch.Tensor]]]
"""Gives the packed embeddings from the start, float32, in chunks with the rows of each."""


def pack_overarch(
    path: Path,
    embeddings: Chunks,
    num_items: int,
    dim: int,
    columns: KeptColumns,
    names: Sequence[str] | None,
    cache: str,
) -> tuple[dict[str, Any], dict[str, np.ndarray | LazyArray]]:
    """Check an OverArch against the items, and compute its item side while the artifact is written.

    Args:
        path: the JSON config; its weights lie beside it.
        embeddings: of the items, in row order, as the artifact keeps them.
        num_items: N.
        dim: D of the embeddings.
        columns: kept item columns.
        names: the item columns in the order of the config's, if they are called otherwise there.
        cache: one of CACHES, for the item side of a Mixture-of-Logits.

    Returns:
        The manifest entry, and the arrays by name.

    Raises:
        InputError: config, weights, columns and items do not fit together.
        FormatError: the weights are truncated or damaged.
    """
    raw = read_config(path)
    config = parse_overarch(raw, str(path))
    entry: dict[str, Any] = {"kind": config.kind, "tasks": list(config.tasks)}
    if config.kind == "dot":
        return entry, {}
    if config.dim != dim:
        raise InputError(
            f"{path}: 'dim' is {config.dim}, the packed embeddings have {dim} dimensions; "
            "use the OverArch that was trained on them"
        )
    features = _Features(config, columns, names, str(path))
    weights = read_weights(weights_beside(path, raw), config.shapes())
    side = _ItemSide(config, weights, embeddings, features, num_items)
    arrays: dict[str, np.ndarray | LazyArray] = {}
    if isinstance(config, MolConfig) and cache != "none":
        arrays = side.cached(cache)
    elif config.columns:
        arrays = {"features": side.lazy(np.float32, config.num_features, lambda inputs: inputs[:, config.dim :])}
    item_bytes = sum(array_bytes({"dtype": array.dtype, "shape": array.shape}) for array in arrays.values())
    arrays |= {f"weights.{name}": tensor.numpy() for name, tensor in weights.items()}
    entry |= {
        "cache": cache if isinstance(config, MolConfig) else "none",
        "bytes_per_item": item_bytes // max(num_items, 1),
        "columns": features.names,
        "config": {key: value for key, value in raw.items() if key != "weights"},
    }
    return entry, {PREFIX + name: array for name, array in arrays.items()}


class _ItemSide:
    """Computes arrays over all items, chunk by chunk, while they are written."""

    def __init__(
        self,
        config: OverArchConfig,
        weights: dict[str, torch.Tensor],
        embeddings: Chunks,
        features: _Features,
        num_items: int,
    ) -> None:
        self.config, self.weights = config, Weights(weights)
        self.embeddings, self.features, self.num_items = embeddings, features, num_items

    def cached(self, cache: str) -> dict[str, np.ndarray | LazyArray]:
        """Components and gates of a Mixture-of-Logits, as in `stcli.types.MolItems`."""
        config = self.config
        assert isinstance(config, MolConfig)

        def components(inputs: torch.Tensor) -> torch.Tensor:
            return in_tiles(lambda tile: item_components(config, self.weights, tile), inputs)

        def scales(found: torch.Tensor) -> torch.Tensor:
            return (found.abs().amax(2) / 127).clamp_min(torch.finfo(torch.float32).tiny)

        def codes(inputs: torch.Tensor) -> torch.Tensor:
            found = components(inputs)
            return (found / scales(found)[:, :, None]).round().clamp(-127, 127)

        def gates(inputs: torch.Tensor) -> torch.Tensor:
            found = in_tiles(lambda tile: item_gates(config, self.weights, tile), inputs)
            if bool((found.abs() > HALF_MAX).any()):
                raise InputError(
                    f"an item gate is beyond {HALF_MAX:,.0f}, the largest float16; use --overarch-cache none"
                )
            return found

        shape = (config.item_components, config.component_dim)
        arrays: dict[str, np.ndarray | LazyArray] = {}
        if cache == "int8":
            arrays["components"] = self.lazy(np.int8, shape, codes)
            arrays["scales"] = self.lazy(np.float32, shape[0], lambda inputs: scales(components(inputs)))
        else:
            arrays["components"] = self.lazy(np.float16, shape, components)
        if "item" in config.gates:
            arrays["gates"] = self.lazy(np.float16, config.num_logits, gates)
        return arrays

    def lazy(
        self, dtype: type, shape: int | tuple[int, ...], compute: Callable[[torch.Tensor], torch.Tensor]
    ) -> LazyArray:
        """An array [N, *shape] that `compute` gives from item inputs [R, item_inputs]."""
        inner = shape if isinstance(shape, tuple) else (shape,)

        def pieces() -> Iterator[np.ndarray]:
            for part, rows in self.embeddings():
                inputs = torch.cat([rows, self.features.read(part.start, len(rows), self.weights)], 1)
                yield compute(inputs).numpy().astype(dtype)

        return LazyArray(np.dtype(dtype), (self.num_items, *inner), pieces())


class _Features:
    """The item columns of a config as numbers."""

    def __init__(self, config: OverArchConfig, kept: KeptColumns, names: Sequence[str] | None, where: str) -> None:
        if names is not None and len(names) != len(config.columns):
            raise InputError(
                f"--overarch-columns names {len(names)} columns, {where} has {len(config.columns)}; "
                "expected one for each, in the same order"
            )
        self.names = list(names) if names is not None else [column.name for column in config.columns]
        self.kept, self.where, self.columns = kept, where, config.columns
        for name, column in zip(self.names, config.columns, strict=True):
            if name not in kept.schema.names:
                raise InputError(
                    f"{where}: item column {name!r} is not kept in the index; build it with --keep-columns {name} "
                    f"({nearest(name, kept.schema.names)})"
                )
            check_column(column, kept.schema.field(name).type, f"{where}: item column {name!r}")

    def read(self, first: int, count: int, weights: Weights) -> torch.Tensor:
        """Features float32 [count, F] of the rows from `first` on."""
        rows = np.arange(first, first + count)
        found = [
            column_numbers(column, self.kept.take(name, rows), weights, self.where)
            for name, column in zip(self.names, self.columns, strict=True)
        ]
        return torch.cat(found, 1) if found else torch.zeros(count, 0)
