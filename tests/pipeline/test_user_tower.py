"""User vectors from the columns of a query table: against the tower run on what a plain reading of the rows gives."""

from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.model.tower import History
from stcli.model.tower_config import parse_tower
from stcli.pipeline.user_tower import UserTower
from stcli.storage.columns import BadRows
from stcli.storage.parquet import open_table
from stcli.storage.weights import write_weights
from tests.index_tools import fixed, vectors, write_items

COLUMNS = [
    {"name": "ctx__hour", "kind": "number", "mean": 12.0, "std": 6.0},
    {"name": "ctx__country", "kind": "category", "values": ["AT", "DE"], "dim": 3},
]
HSTU = {"kind": "hstu", "dim": 8, "max_history": 4, "heads": 1, "blocks": 1, "qk_dim": 4, "v_dim": 4, "time_buckets": 9,
        "columns": COLUMNS, "tasks": ["like", "buy"]}  # fmt: skip
MEAN = {"kind": "mean_pool", "dim": 8, "max_history": 3, "head": False}
MLP = {"kind": "mlp", "dim": 8, "columns": COLUMNS, "hidden": [6]}

HISTORIES = [[3, 7, 5], [], None, [1, 999, 2, 3, 4, 5, -8], [9, None, 9], [6]]
TIMES = [[10, 20, 500], [], None, [1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [0]]
QUERIES = {
    "uih__item_id": pa.array(HISTORIES, pa.list_(pa.int64())),
    "uih__timestamp": pa.array(TIMES, pa.list_(pa.int64())),
    "ctx__hour": pa.array([0, 12, None, 23, 6, 18], pa.int32()),
    "ctx__country": pa.array(["AT", None, "DE", "FR", "DE", "AT"]),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("towers")
    items = write_items(folder / "items.parquet", {"embedding": fixed(vectors(40))})
    stcli.build_index(items, folder / "items.index", clusters=4)
    return folder / "items.index"


def tower_of(index, folder, config) -> UserTower:
    generator = torch.Generator().manual_seed(2)
    shapes = parse_tower(config, "").shapes()
    write_weights(folder / "t.json", config, {n: torch.randn(s, generator=generator) for n, s in shapes.items()})
    stcli.pack_model(index, folder / "m.safetensors", tower=str(folder / "t.json"), embedding_dtype="float32")
    model = stcli.open_artifact(folder / "m.safetensors")
    return UserTower(model, model.tower)


def batch_of(columns=QUERIES) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


def plain(tower: UserTower, history, times, hour, country) -> np.ndarray:
    """The vectors of one request, its row read by hand."""
    config, table = tower.tower.config, dict(enumerate(vectors(40)))
    pairs = [(item, time) for item, time in zip(history or [], times or [], strict=True) if item in table]
    pairs = pairs[-config.max_history :] if config.max_history else []
    numbers = []
    if config.columns:
        row = {"AT": 1, "DE": 2}.get(country, 0)
        table_of = tower.tower.weights["columns.ctx__country.weight"]
        numbers = [((hour if hour is not None else 12) - 12) / 6, *table_of[row].tolist()]
    found = tower.tower(
        None
        if config.kind == "mlp"
        else History(
            torch.from_numpy(np.array([table[item] for item, _ in pairs], np.float32).reshape(-1, 8)),
            torch.tensor([0, len(pairs)]),
            torch.tensor([time for _, time in pairs], dtype=torch.int64),
        ),
        torch.tensor([numbers], dtype=torch.float32),
    )
    return found[0].numpy()


@pytest.mark.parametrize("config", [HSTU, MEAN, MLP], ids=lambda config: config["kind"])
def test_equals_a_plain_reading_of_the_rows(tmp_path, index, config):
    tower = tower_of(index, tmp_path, config)
    bad = BadRows.none(6)
    found, unknown = tower.read(batch_of(), bad)
    assert found.shape == (6, len(config.get("tasks", [])) or 1, 8)
    assert not bad.bad.any()
    for row in range(6):
        columns = [QUERIES[name].to_pylist()[row] for name in QUERIES]
        np.testing.assert_array_equal(found[row], plain(tower, *columns))
    # The ids 999 and -8 and the null are no items of the index.
    assert unknown == (0 if config is MLP else 3)
    alone = np.concatenate([tower.read(batch_of().slice(row, 1), BadRows.none(1))[0] for row in range(6)])
    np.testing.assert_array_equal(alone, found)
    assert tower.read(batch_of().slice(0, 0), BadRows.none(0))[0].shape[0] == 0


def test_timestamps_are_seconds(tmp_path, index):
    tower = tower_of(index, tmp_path, HSTU)
    expected, _ = tower.read(batch_of(), BadRows.none(6))
    start = datetime.datetime(1970, 1, 1)
    stamps = [None if line is None else [start + datetime.timedelta(seconds=time) for time in line] for line in TIMES]
    given = {**QUERIES, "uih__timestamp": pa.array(stamps, pa.list_(pa.timestamp("us")))}
    np.testing.assert_array_equal(tower.read(batch_of(given), BadRows.none(6))[0], expected)


def test_times_that_do_not_fit_are_bad_rows_and_touch_no_others(tmp_path, index):
    tower = tower_of(index, tmp_path, HSTU)
    expected, _ = tower.read(batch_of(), BadRows.none(6))
    times = [[10, 20], [1], [3], TIMES[3], [5, None, 7], TIMES[5]]
    bad = BadRows.none(6)
    found, _ = tower.read(batch_of({**QUERIES, "uih__timestamp": pa.array(times, pa.list_(pa.int64()))}), bad)
    assert bad.bad.tolist() == [True, True, True, False, True, False]
    assert bad.reasons[0] == "column 'uih__timestamp' has 2 values, 'uih__item_id' 3"
    assert bad.reasons[4] == "column 'uih__timestamp' holds a null"
    np.testing.assert_array_equal(found[[3, 5]], expected[[3, 5]])
    assert not found[bad.bad].any()


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("uih__item_id", None, "no column 'uih__item_id'"),
        ("uih__item_id", pa.array([["a"]] * 6), "expected a list of item ids, integers"),
        ("uih__item_id", pa.array([1] * 6), "expected a list of item ids"),
        ("uih__timestamp", pa.array([[1.5]] * 6), "expected a list of seconds"),
        ("ctx__hour", pa.array(["noon"] * 6), "'ctx__hour' is string; expected numbers"),
        ("ctx__country", None, "no column 'ctx__country'"),
    ],
)
def test_wrong_query_columns_are_refused(tmp_path, index, column, values, words):
    tower = tower_of(index, tmp_path, HSTU)
    columns = {name: given for name, given in {**QUERIES, column: values}.items() if given is not None}
    pq.write_table(pa.table(columns), tmp_path / "queries.parquet")
    with pytest.raises(InputError, match=words):
        tower.check(open_table(tmp_path / "queries.parquet", []))


# ---- retrieve -------------------------------------------------------------------------------------------------


def test_retrieve_with_a_tower_equals_retrieve_with_its_vectors(tmp_path, index):
    tower = tower_of(index, tmp_path, HSTU)
    ids = {"query_id": pa.array(range(6), pa.int64())}
    pq.write_table(pa.table(ids | QUERIES), tmp_path / "features.parquet")
    found, _ = tower.read(batch_of(), BadRows.none(6))
    given = {f"user_embedding__{task}": fixed(found[:, place]) for place, task in enumerate(HSTU["tasks"])}
    pq.write_table(pa.table(ids | given), tmp_path / "vectors.parquet")
    model = tmp_path / "m.safetensors"
    summary = stcli.retrieve(model, tmp_path / "features.parquet", tmp_path / "a", k=5, exact=True, batch_size=2)
    stcli.retrieve(model, tmp_path / "vectors.parquet", tmp_path / "b", k=5, exact=True)
    results = [pq.read_table(tmp_path / name / "part-00000.parquet") for name in "ab"]
    assert results[0].equals(results[1])
    assert {"task_like", "task_buy"} <= set(results[0].schema.names)
    assert summary["counts"]["unknown_events"] == 3
    assert any("3 events" in warning for warning in summary["warnings"])


def test_retrieve_calibrates_on_the_vectors_of_the_tower(tmp_path, index):
    tower_of(index, tmp_path, HSTU)
    rows = 300
    columns = {"query_id": pa.array(range(rows), pa.int64())} | {
        name: pa.concat_arrays([column] * (rows // 6)) for name, column in QUERIES.items()
    }
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    summary = stcli.retrieve(tmp_path / "m.safetensors", tmp_path / "q.parquet", tmp_path / "r", k=3)
    assert summary["counts"]["queries"] == rows
    assert summary["calibration"] is not None


def test_vectors_in_the_table_go_before_the_tower(tmp_path, index):
    tower_of(index, tmp_path, MLP)
    table = pa.table({"query_id": pa.array([1]), "embedding": fixed(vectors(1))})
    pq.write_table(table, tmp_path / "q.parquet")
    summary = stcli.retrieve(tmp_path / "m.safetensors", tmp_path / "q.parquet", tmp_path / "r", k=3, exact=True)
    assert summary["counts"]["results"] == 3


def test_rows_that_the_tower_cannot_read_are_rejected(tmp_path, index):
    tower_of(index, tmp_path, HSTU)
    times = pa.array([[1], [], None, [1, 2, 3, 4, 5, 6, 7], [5, 6, 7], [0]], pa.list_(pa.int64()))
    columns = {"query_id": pa.array(range(6), pa.int64()), **QUERIES, "uih__timestamp": times}
    pq.write_table(pa.table(columns), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="'uih__timestamp' has 1 values, 'uih__item_id' 3"):
        stcli.retrieve(tmp_path / "m.safetensors", tmp_path / "q.parquet", tmp_path / "r", k=3, exact=True)
    summary = stcli.retrieve(
        tmp_path / "m.safetensors", tmp_path / "q.parquet", tmp_path / "r", k=3, exact=True, bad_rows="quarantine",
        max_bad_fraction=0.5,
    )  # fmt: skip
    assert summary["counts"]["rejected"] == 1
