"""Second embeddings for re-scoring: another table, joined to the items by id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stcli.config import PackConfig
from stcli.errors import InputError
from stcli.model.lookup import IdLookup
from stcli.storage.atomic import allocate
from stcli.storage.columns import BadRows, embedding_type, id_type, read_embeddings, read_ids, unit_rows, usual_length
from stcli.storage.ids import ItemIds
from stcli.storage.parquet import open_table

BATCH_ROWS = 1 << 14


def join_by_id(config: PackConfig, ids: ItemIds, manifest: dict[str, Any], beside: Path) -> np.ndarray:
    """Read `config.embeddings` and put its rows in row order into an unlinked file, memory-mapped.

    Under the cosine metric the rows are brought to length 1, as `build_index` does with its own.

    Args:
        config: names the table and its columns.
        ids: of the index.
        manifest: of the index.
        beside: the file is made in the same folder.

    Returns:
        float16 or float32 [N, D2], D2 >= D.

    Raises:
        InputError: an item is missing or stands twice, an embedding cannot be used, or D2 < D.
    """
    assert config.embeddings is not None
    table = open_table(config.embeddings, [config.id_column, config.embedding_column])
    where = f"{table.name}: column {config.id_column!r}"
    kind = id_type(table.column_type(config.id_column, "--id-column"), where)
    if kind.name != manifest["ids"]:
        raise InputError(f"{where} holds {kind.name} ids, the index {manifest['ids']}; expected the ids of its items")
    where = f"{table.name}: column {config.embedding_column!r}"
    dtype, dim = embedding_type(table.column_type(config.embedding_column, "--embedding-column"), where)
    cosine = manifest["metric"] == "cosine"
    kept = np.dtype(np.float32) if cosine else dtype
    lookup = IdLookup(ids)
    joined: np.ndarray | None = None
    seen = np.zeros(manifest["num_items"], bool)
    for first, batch in table.batches([config.id_column, config.embedding_column], BATCH_ROWS):
        column = batch.column(config.embedding_column)
        dim = dim or usual_length(column)
        if joined is None:
            dim = dim or 0
            if dim < manifest["dim"]:
                raise InputError(
                    f"{table.name}: embeddings have {dim} dimensions, the index {manifest['dim']}; "
                    f"expected at least as many, since the first {manifest['dim']} of a query search the index"
                )
            joined = _unlinked(beside.with_name(beside.name + ".wide"), kept, (manifest["num_items"], dim))
        bad = BadRows.none(batch.num_rows)
        rows = lookup.rows_of(read_ids(batch.column(config.id_column), bad, config.id_column))
        vectors = read_embeddings(column, dim or 0, dtype, bad, config.embedding_column)
        for local in sorted(bad.reasons):
            if rows[local] >= 0:
                raise InputError(f"{table.name}: {table.where(first + local)}: {bad.reasons[local]}")
        known = rows >= 0
        twice = seen[rows[known]]
        if twice.any() or len(np.unique(rows[known])) < known.sum():
            raise InputError(f"{table.name}: an item id stands twice near {table.where(first)}; ids must be unique")
        seen[rows[known]] = True
        joined[rows[known]] = unit_rows(vectors[known]) if cosine else vectors[known]
    if joined is None or not seen.all():
        missing = ids.take(np.flatnonzero(~seen)[:1])[0].as_py()
        raise InputError(
            f"{table.name}: no embedding for item {missing!r} and {int((~seen).sum()) - 1} more of {len(seen)}; "
            "every item of the index needs one"
        )
    return joined


def _unlinked(path: Path, dtype: np.dtype, shape: tuple[int, int]) -> np.ndarray:
    try:
        array = np.memmap(path, dtype, "w+", shape=shape)
        allocate(path)
    finally:
        path.unlink(missing_ok=True)
    return array


def wide_dimensions(config: PackConfig) -> int:
    """Dimensions of the embeddings of `config.embeddings`, from its schema or its first rows."""
    assert config.embeddings is not None
    table = open_table(config.embeddings, [config.embedding_column])
    where = f"{table.name}: column {config.embedding_column!r}"
    _, dim = embedding_type(table.column_type(config.embedding_column, "--embedding-column"), where)
    for _, batch in table.batches([config.embedding_column], BATCH_ROWS, 0, BATCH_ROWS):
        dim = dim or usual_length(batch.column(0))
    return dim or 0
