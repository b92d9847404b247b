"""A dry run writes nothing and tells what the run would write, within ten per cent."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import ExistsError, InputError
from stcli.pipeline import estimate, run
from tests.conftest import lists


@pytest.fixture
def small_samples(monkeypatch):
    monkeypatch.setattr(estimate, "BUILD_ROWS", 4000)
    monkeypatch.setattr(estimate, "RETRIEVE_ROWS", 300)


def near(told: int, true: int) -> bool:
    return abs(told - true) <= 0.1 * true


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """20,000 items: more than the samples hold."""
    folder = tmp_path_factory.mktemp("estimate")
    rng = np.random.default_rng(4)
    count = 20_000
    embeddings = rng.normal(size=(count, 24)).astype(np.float32)
    tags = [[f"t{n}" for n in sorted(rng.choice(300, size, False))] for size in rng.integers(0, 8, count)]
    pq.write_table(
        pa.table(
            {
                "item_id": np.arange(count),
                "embedding": lists(embeddings),
                "tags": tags,
                "price": rng.integers(0, 500, count),
                "title": [f"title of item {n}" for n in range(count)],
            }
        ),
        folder / "items.parquet",
    )
    queries = rng.normal(size=(1200, 24)).astype(np.float32)
    filters = ["price < 100", "tags = 't7'"] * 600
    asked = pa.table({"query_id": np.arange(1200), "embedding": lists(queries), "filter": filters})
    pq.write_table(asked, folder / "queries.parquet")
    return folder


BUILD = {"feature_columns": ("tags", "price"), "keep_columns": ("title",)}


def test_the_three_commands(table, tmp_path, small_samples):
    index, model, results = (tmp_path / name for name in ("i", "m", "r"))
    before = set(tmp_path.iterdir())
    told = stcli.build_index(table / "items.parquet", index, dry_run=True, **BUILD)
    assert told["counts"] == {"items": 20_000, "sampled": 8000, "clusters": 512}
    assert told["timings_s"]["total"] > 0
    assert set(tmp_path.iterdir()) == before
    stcli.build_index(table / "items.parquet", index, **BUILD)
    built = stcli.inspect(index)["bytes"]
    assert near(told["bytes"]["total"], built["total"])
    assert near(told["bytes"]["search"], built["search"])
    assert near(told["bytes"]["terms"], built["terms"])

    for dtype in ("float16", "float32", "none"):
        told = stcli.pack_model(index, model, dry_run=True, embedding_dtype=dtype)
        assert not model.exists()
        packed = stcli.pack_model(index, model, embedding_dtype=dtype, overwrite=True)["bytes"]
        assert told["bytes"] == packed
        model.unlink()
    told = stcli.pack_model(index, model, dry_run=True, embeddings=str(table / "items.parquet"))
    assert told["counts"]["embedding_dim"] == 24

    stcli.pack_model(index, model)
    ask = {"k": 20, "filter_column": "filter"}
    told = stcli.retrieve(model, table / "queries.parquet", results, dry_run=True, **ask)
    assert told["counts"] == {"queries": 1200, "parts": 1, "sampled": 300}
    assert told["placement"] is None
    assert not results.exists()
    stcli.retrieve(model, table / "queries.parquet", results, **ask)
    assert near(told["bytes"]["results"], sum(part.stat().st_size for part in results.glob("part-*.parquet")))


def test_a_small_table_is_built_whole(tiny, tmp_path):
    told = stcli.build_index(tiny.items, tmp_path / "i", dry_run=True)
    stcli.build_index(tiny.items, tmp_path / "i")
    assert told["bytes"] == stcli.inspect(tmp_path / "i")["bytes"]


def test_inputs_are_checked(tiny, tmp_path):
    with pytest.raises(InputError, match="no column 'vector'"):
        stcli.build_index(tiny.items, tmp_path / "i", dry_run=True, embedding_column="vector")
    with pytest.raises(ExistsError):
        stcli.retrieve(tiny.model, tiny.queries, tiny.index, dry_run=True)
    with pytest.raises(InputError, match="no column 'query'"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", dry_run=True, id_column="query")


def test_the_sample_of_a_retrieve_uses_the_model_that_is_open(tiny, tmp_path, monkeypatch):
    """A second copy may not fit on a GPU."""
    opened, open_artifact = [], run.open_artifact
    monkeypatch.setattr(run, "open_artifact", lambda *given, **more: opened.append(1) or open_artifact(*given, **more))
    told = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", dry_run=True, k=7, exact=True)
    assert told["counts"]["sampled"] == 120
    assert opened == [1]
