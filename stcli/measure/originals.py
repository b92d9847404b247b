"""The original embeddings of the items, from the item table, joined to the rows of an artifact by id."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from stcli.errors import InputError
from stcli.filters.exact import Tile, tile_rows_for
from stcli.model.retriever import Retriever
from stcli.storage.columns import BadRows, embedding_type, read_embeddings, read_ids, usual_length
from stcli.storage.parquet import Table, open_table


def open_originals(items: str, id_column: str, embedding_column: str, model: Retriever) -> Table:
    """Open the item table and check its columns.

    Raises:
        InputError: a column is missing or has another type, or embeddings of another length than the queries.
    """
    table = open_table(items, [id_column, embedding_column])
    table.column_type(id_column, "--item-id-column")
    where = f"{table.name}: column {embedding_column!r}"
    _, dim = embedding_type(table.column_type(embedding_column, "--item-embedding-column"), where)
    if dim is None:
        for _, batch in table.batches([embedding_column], 1024):
            dim = usual_length(batch.column(0))
            if dim is not None:
                break
    if dim != model.query_dim:
        raise InputError(
            f"{where} has {dim} dimensions, the artifact {model.query_dim}; expected the table it was built from"
        )
    return table


def original_tiles(table: Table, id_column: str, embedding_column: str, model: Retriever) -> Iterator[Tile]:
    """The embeddings of every item of the artifact, float64, in the order of the table.

    Items that the artifact does not know are passed over, and so is a repeated id: the first one counts, as in
    `build-index`. The cosine metric wants length 1, so they are normalised as `build-index` did (a second, wider
    table is packed as it is).

    Raises:
        InputError: an item of the artifact is missing, or its embedding cannot be used.
    """
    seen = np.zeros(model.num_items, bool)
    for _, batch in table.batches([id_column, embedding_column], tile_rows_for(model.query_dim)):
        bad = BadRows.none(batch.num_rows)
        rows = model.lookup.rows_of(read_ids(batch.column(id_column), bad))
        vectors = read_embeddings(batch.column(embedding_column), model.query_dim, np.dtype(np.float64), bad)
        place = np.flatnonzero((rows >= 0) & ~bad.bad)
        _, once = np.unique(rows[place], return_index=True)
        place = place[np.sort(once)]
        place = place[~seen[rows[place]]]
        seen[rows[place]] = True
        items = torch.from_numpy(vectors[place])
        yield rows[place], model.normalized(items) if model.query_dim == model.manifest["dim"] else items
    if not seen.all():
        missing = model.ids.take(np.flatnonzero(~seen)[:1])[0].as_py()
        raise InputError(
            f"{table.name}: no usable embedding for item {missing!r} and {int((~seen).sum()) - 1} more of {len(seen)}; "
            "expected the table that the artifact was built from"
        )
