"""The tables that commands print."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stcli
from stcli.cli.output import rows_of
from stcli.model.planner import BANDS
from tests.cli.conftest import retrieve


def test_names_of_columns_are_printed_as_they_are(cli, tmp_path):
    columns = {"item_id": np.arange(8), "embedding": list(np.eye(8, dtype=np.float32)), "in_stock": [True, False] * 4}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    stcli.build_index(tmp_path / "items.parquet", tmp_path / "items.index", clusters=2)
    table, index = (cli("inspect", tmp_path / name)[1] for name in ("items.parquet", "items.index"))
    assert "item_id" in table
    assert "in_stock" in table
    assert "in_stock" in index
    assert "own_words" in index  # an array
    assert "num items" in index  # a name of ours


def test_names_of_tasks_and_values_are_printed_as_they_are():
    told = {"command": "explain", "tasks": {"add_to_cart": 0.5}, "unknown_values": {"in_stock = 3": "nothing near"}}
    assert rows_of(told) == [("tasks", "add_to_cart", "0.5"), ("unknown values", "in_stock = 3", "nothing near")]


def test_a_calibration_has_a_line_for_each_band(cli, tiny):
    _, out, _ = cli(*retrieve(tiny))
    told = json.loads(cli(*retrieve(tiny, "--json", "--overwrite"))[1])["calibration"]
    for place, band in enumerate(BANDS):
        (line,) = [line for line in out.splitlines() if f" {band} " in line]
        assert f" {told['queries'][place]:,} queries, {told['probes'][place]:,} probes" in line
    assert " / " not in out
    assert cli("inspect", "out")[1].count(" probes") == len(BANDS)
