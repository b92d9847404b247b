"""`build_index --item-tower`: the index of a tower's embeddings is the index of a table that holds them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.model.tower import Tower
from stcli.model.tower_config import parse_tower
from stcli.storage.index_dir import open_index
from stcli.storage.weights import write_weights
from tests.index_tools import fixed

ROWS = 3000
CONFIG = {
    "kind": "mlp", "dim": 8, "hidden": [12],
    "columns": [{"name": "price", "kind": "number", "mean": 10.0, "std": 5.0},
                {"name": "color", "kind": "category", "values": ["red", "blue"], "dim": 4}],
}  # fmt: skip


def items(rng=None) -> dict:
    rng = rng or np.random.default_rng(4)
    return {
        "item_id": pa.array(range(ROWS)),
        "price": pa.array(rng.uniform(0, 30, ROWS).astype(np.float32)),
        "color": pa.array(rng.choice(["red", "blue", "green"], ROWS)).dictionary_encode(),
    }


def write_tower(path, scale=1.0, **change):
    config = {**CONFIG, **change}
    parsed = parse_tower(config, "")
    generator = torch.Generator().manual_seed(1)
    weights = {name: scale * torch.randn(shape, generator=generator) for name, shape in parsed.shapes().items()}
    write_weights(path, config, weights)
    return Tower(parsed, weights)


def embeddings(tower: Tower, columns: dict) -> np.ndarray:
    price = (torch.tensor(columns["price"].to_pylist(), dtype=torch.float64) - 10) / 5
    row = torch.tensor([{"red": 1, "blue": 2}.get(color, 0) for color in columns["color"].to_pylist()])
    table = tower.weights["columns.color.weight"]
    return tower(None, torch.cat([price.float()[:, None], table[row]], 1))[:, 0].numpy()


@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_the_index_is_that_of_the_embeddings(tmp_path, metric):
    tower, columns = write_tower(tmp_path / "tower.json"), items()
    pq.write_table(pa.table(columns), tmp_path / "plain.parquet", row_group_size=700)
    given = {**columns, "embedding": fixed(embeddings(tower, columns))}
    pq.write_table(pa.table(given), tmp_path / "given.parquet")
    options = {"clusters": 8, "metric": metric, "keep_columns": ["price"]}
    stcli.build_index(tmp_path / "given.parquet", tmp_path / "given.index", **options)
    stcli.build_index(
        tmp_path / "plain.parquet", tmp_path / "plain.index", item_tower=str(tmp_path / "tower.json"), **options
    )
    a, b = open_index(tmp_path / "given.index"), open_index(tmp_path / "plain.index", verify=True)
    assert set(a.arrays) == set(b.arrays)
    for name in a.arrays:
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name])
    assert set(b.manifest["item_tower"]) == {"config_sha256", "weights_sha256"}
    assert "item_tower" not in a.manifest
    stcli.pack_model(tmp_path / "plain.index", tmp_path / "m.safetensors")
    assert stcli.open_artifact(tmp_path / "m.safetensors").manifest["item_tower"] == b.manifest["item_tower"]


def test_an_embedding_that_is_not_finite_is_a_bad_row(tmp_path):
    write_tower(tmp_path / "tower.json", scale=1e30)
    pq.write_table(pa.table(items()), tmp_path / "items.parquet")
    with pytest.raises(InputError, match="the item tower gives an embedding that is not finite"):
        stcli.build_index(
            tmp_path / "items.parquet", tmp_path / "i.index", item_tower=str(tmp_path / "tower.json"), clusters=4
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "mean_pool"}, "an item tower is of the kind 'mlp'"),
        ({"tasks": ["a", "b"]}, "with one vector an item"),
        ({"columns": [{"name": "prize", "kind": "number"}]}, "no column 'prize' .* did you mean 'price'"),
        ({"columns": [{"name": "color", "kind": "number"}]}, "expected numbers"),
    ],
)
def test_towers_that_do_not_fit_the_table_are_refused(tmp_path, change, words):
    write_tower(tmp_path / "tower.json", **change)
    pq.write_table(pa.table(items()), tmp_path / "items.parquet")
    with pytest.raises(InputError, match=words):
        stcli.build_index(tmp_path / "items.parquet", tmp_path / "i.index", item_tower=str(tmp_path / "tower.json"))
    assert not (tmp_path / "i.index").exists()
