"""The function that Spark calls, without Spark: the rows of `retrieve`, however the table is cut; opened once."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import spark_map_in_arrow as example
import stcli

open_artifact = stcli.open_artifact


@pytest.fixture(scope="module")
def queries(tiny) -> pa.Table:
    table = pq.read_table(tiny.queries)
    return table.set_column(0, "query_id", pa.array(range(table.num_rows)))


@pytest.mark.parametrize("rows", [7, 120])
def test_gives_the_rows_of_retrieve(tiny, queries, tmp_path, monkeypatch, rows):
    opened = []
    monkeypatch.setattr(stcli, "open_artifact", lambda path: opened.append(path) or open_artifact(path))
    example.open_model.cache_clear()
    (whole,) = queries.combine_chunks().to_batches()
    answer = example.answering(str(tiny.model), example.plan(str(tiny.model), whole, 10, 120), 10)
    halves = [queries.slice(0, 70), queries.slice(70)]
    found = pa.Table.from_batches(
        [done for half in halves for done in answer(iter(half.to_batches(max_chunksize=rows)))]
    )
    assert opened == [str(tiny.model)]
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", k=10, filter_column="filter")
    expected = pq.read_table(tmp_path / "out" / "part-00000.parquet")
    assert found["query_id"].to_pylist() == list(range(120))
    for name in ("item_id", "score"):
        assert found[name].to_pylist() == expected[name].to_pylist()
