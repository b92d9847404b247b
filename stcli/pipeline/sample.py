"""Draw the queries of a benchmark from a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from stcli.errors import InputError
from stcli.filters.source import GivenFilters
from stcli.measure.sample import Sample
from stcli.pipeline.queries import QueryReader
from stcli.storage.parquet import Table

BATCH_ROWS = 1 << 14


def draw_sample(reader: QueryReader, table: Table, count: int, seed: int, columns: Sequence[str] = ()) -> Sample:
    """Read at most `count` queries of a table, drawn by the seed; those that cannot be used are left out.

    `columns` are read beside what the reader needs.

    Raises:
        InputError: none of them can be used.
    """
    rows = np.arange(table.num_rows)
    if len(rows) > count:
        rows = np.sort(np.random.default_rng([seed, 5]).choice(table.num_rows, count, replace=False))
    picked = []
    for first, batch in table.batches([*reader.columns, *columns], BATCH_ROWS):
        low, high = np.searchsorted(rows, [first, first + batch.num_rows])
        if low < high:
            picked.append(batch.take(pa.array(rows[low:high] - first)))
    batch = pa.Table.from_batches(picked).combine_chunks().to_batches()[0]
    read = reader.read(batch)
    rejected = [(int(rows[place]), reason) for place, reason in sorted(read.bad.reasons.items())]
    if not len(read.usable):
        row, reason = rejected[0]
        raise InputError(f"{table.name}: none of {len(rows)} queries can be used; {table.where(row)}: {reason}")
    assert isinstance(read.filters, GivenFilters)
    usable = pa.array(read.usable)
    others = batch.select(list(columns)).take(usable)
    return Sample(read.ids.take(usable), rows[read.usable], read.vectors, others, read.filters.given, rejected)
