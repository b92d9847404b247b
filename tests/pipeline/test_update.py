"""`update`: what lives in the new set is what the changes say, whatever the order in which they came."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.cli.main import run
from stcli.errors import ExistsError, FormatError, InputError
from stcli.storage.artifact import open_artifact_file
from stcli.storage.artifact_set import open_set
from tests.conftest import FILTERS
from tests.pipeline import test_item_tower, test_pack_overarch, test_pack_tower
from tests.pipeline.sets import Corpus, living_ids, search_file, search_parts

FEATURES = ["color", "tags", "price", "year", "in_stock", "day"]
NEW_FILTERS = ["color = 'violet'", "tags = 'brand new'", "NOT tags = 'brand new' AND price < 20", "price > 1000"]


def changed(corpus: Corpus, tiny, count: int, start: int) -> list[dict]:
    """Half of them known items with another embedding and price, half new ones; all with values that are new."""
    known = corpus.rng.choice(list(corpus.items), count // 2, replace=False).tolist()
    ids = [*known, *range(100_000 + start, 100_000 + start + count - count // 2)]
    rows = []
    for place, number in enumerate(ids):
        row = dict(tiny.item_rows[int(corpus.rng.integers(len(tiny.item_rows)))])
        row |= {"item_id": number, "price": float(place + 990), "color": "violet", "tags": ["brand new", "t01"]}
        rows.append(row | {"embedding": corpus.rng.normal(size=16).astype(np.float32).tolist()})
    return rows


@pytest.fixture(scope="module")
def stream(tiny, tmp_path_factory):
    """Four updates one after another: the corpus, and the set after each."""
    corpus = Corpus(pq.read_table(tiny.items), tmp_path_factory.mktemp("stream"))
    before, sets = tiny.model, []
    for number in range(4):
        upserts = changed(corpus, tiny, 40, 1000 * number)
        deletes = [*corpus.rng.choice(list(corpus.items), 20, replace=False).tolist(), -5]
        output = corpus.folder / f"set{number}"
        new, gone = corpus.step(upserts, deletes)
        summary = stcli.update(before, output, upsert=new, delete=gone)
        assert summary["counts"]["num_items"] == len(corpus.items)
        assert summary["counts"]["unknown_deletes"] == 1
        assert living_ids(output) == sorted(corpus.items)
        before = output
        sets.append(output)
    return corpus, sets


def test_after_a_stream_of_updates_the_results_are_those_of_a_rebuild(stream, tiny):
    corpus, sets = stream
    filters = [*FILTERS, *NEW_FILTERS]
    rebuilt = corpus.rebuild("whole", feature_columns=FEATURES)
    expected = search_file(rebuilt, tiny.vectors[: len(filters)], filters, 50)
    assert all(len(expected[filters.index(text)]) == 50 for text in NEW_FILTERS[:3])
    assert search_parts(sets[-1], tiny.vectors[: len(filters)], filters, 50) == expected
    assert search_file(sets[-1], tiny.vectors[: len(filters)], filters, 50) == expected


def test_a_compacted_set_gives_the_results_of_a_rebuild(stream, tiny, tmp_path):
    corpus, sets = stream
    filters = [*FILTERS, *NEW_FILTERS]
    summary = stcli.update(sets[-1], tmp_path / "c.safetensors", compact=True)
    assert summary["counts"]["num_items"] == len(corpus.items)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    expected = search_parts(sets[-1], tiny.vectors[: len(filters)], filters, 50)
    assert search_file(tmp_path / "c.safetensors", tiny.vectors[: len(filters)], filters, 50) == expected
    again = stcli.update(tmp_path / "c.safetensors", tmp_path / "next", delete=corpus.folder / "gone.parquet")
    assert again["counts"]["unknown_deletes"] == 21


def test_the_main_file_is_linked_and_the_old_set_stays(stream, tiny):
    _, sets = stream
    assert all((path / "main.safetensors").samefile(tiny.model) for path in sets)
    told = [stcli.inspect(path, verify=True) for path in sets]
    assert [one["counts"]["main"] for one in told] == [2000] * 4
    assert 40 < told[0]["counts"]["fresh"] + 1 < told[3]["counts"]["fresh"] <= 160
    assert told[3]["drift"]["distance_ratio"] > 1.2  # the new embeddings are noise
    assert told[3]["counts"]["tombstones"] >= 4 * 20


def test_deletes_alone_leave_the_fresh_file_as_it_is(stream, tiny, tmp_path):
    corpus, sets = stream
    fresh = [number for number in corpus.items if number >= 100_000]
    pq.write_table(pa.table({"item_id": fresh[:5]}), tmp_path / "gone.parquet")
    counts = stcli.update(sets[-1], tmp_path / "a", delete=tmp_path / "gone.parquet")["counts"]
    assert counts["deleted"] == 5
    assert (tmp_path / "a" / "fresh.safetensors").samefile(sets[-1] / "fresh.safetensors")
    assert living_ids(tmp_path / "a") == sorted(set(corpus.items) - set(fresh[:5]))
    revived = {**corpus.items[fresh[0]], "color": "grey"}
    stcli.update(tmp_path / "a", tmp_path / "b", upsert=corpus.write([revived], "one.parquet"))
    assert living_ids(tmp_path / "b") == sorted(set(corpus.items) - set(fresh[1:5]))
    items = pq.read_table(tmp_path / "b" / "fresh.parquet")
    assert [row["color"] for row in items.to_pylist() if row["item_id"] == fresh[0]] == ["grey"]
    everything = pa.table({"item_id": pq.read_table(sets[-1] / "fresh.parquet")["item_id"]})
    pq.write_table(everything, tmp_path / "gone.parquet")
    stcli.update(tmp_path / "b", tmp_path / "c", delete=tmp_path / "gone.parquet")
    assert open_set(tmp_path / "c").fresh is None
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "main.safetensors", "set.json", "tombstones.npy",
    ]  # fmt: skip


def test_an_id_that_is_deleted_and_upserted_is_replaced(tiny, tmp_path):
    corpus = Corpus(pq.read_table(tiny.items), tmp_path)
    row = tiny.item_rows[7]
    new, gone = corpus.step([row], [row["item_id"]])
    counts = stcli.update(tiny.model, tmp_path / "set", upsert=new, delete=gone)["counts"]
    assert (counts["superseded"], counts["deleted"], counts["unknown_deletes"]) == (1, 0, 0)
    assert living_ids(tmp_path / "set") == sorted(corpus.items)


def test_the_same_change_gives_the_same_bytes(stream, tmp_path):
    corpus, sets = stream
    for name in ("a", "b"):
        stcli.update(sets[0], tmp_path / name, upsert=corpus.folder / "new.parquet")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("kind", ["scoring", "paper", "none", "cosine"])
def test_a_fresh_row_is_packed_as_in_the_main_file(kind, tiny, tmp_path):
    """Items that are upserted as they are have the same numbers in every array of rows."""
    build = {"feature_columns": ["year", "tags"], "keep_columns": ["price", "color"]}
    pack = {}
    if kind == "scoring":
        overarch = test_pack_overarch.write(tmp_path, test_pack_overarch.MOL)
        pack = {"overarch": str(overarch), "overarch_cache": "int8", "value_models": ["feed=0.5 * task.like"]}
        test_pack_tower.write(tmp_path / "tower.json", dim=16)
        pack["tower"] = str(tmp_path / "tower.json")
    elif kind == "paper":
        build |= {"preset": "silvertorch", "bloom_bits": 512, "bloom_hashes": 3}
    elif kind == "none":
        pack = {"embedding_dtype": "none"}
    else:
        build |= {"metric": "cosine", "bloom_fpr": 0.01}
        pack = {"embedding_dtype": "float32"}
    stcli.build_index(tiny.items, tmp_path / "i", **build)
    stcli.pack_model(tmp_path / "i", tmp_path / "m.safetensors", **pack)
    pq.write_table(pq.read_table(tiny.items).slice(100, 50), tmp_path / "new.parquet")
    stcli.update(tmp_path / "m.safetensors", tmp_path / "set", upsert=tmp_path / "new.parquet")
    opened = open_set(tmp_path / "set", verify=True)
    main, fresh = opened.parts
    place = {number: row for row, number in enumerate(main.arrays["item_ids"].tolist())}
    rows = [place[number] for number in fresh.arrays["item_ids"].tolist()]
    names = [name for name, array in main.arrays.items() if array.shape[:1] == (2000,) and "id_" not in name]
    assert {"codes", "scales"} < set(names)
    assert kind != "scoring" or "overarch.components" in names
    for name in names:
        if kind == "paper" and name in ("codes", "scales", "errors", "norms"):
            continue  # one scale for all of a build
        assert np.array_equal(fresh.arrays[name], main.arrays[name][rows]), name
    for key in ("metric", "scale", "embedding_dtype", "overarch", "value_models", "columns"):
        assert fresh.manifest.get(key) == main.manifest.get(key), key
    assert fresh.manifest["filter"]["paper"] == (kind == "paper")
    if kind == "scoring":
        stcli.update(tmp_path / "set", tmp_path / "c", compact=True)
        compacted = open_artifact_file(tmp_path / "c").manifest
        assert all(compacted[key] == main.manifest[key] for key in ("overarch", "tower", "value_models"))
    if kind == "paper":
        assert (fresh.manifest["filter"]["fixed_width"], fresh.manifest["filter"]["num_hashes"]) == (512, 3)


def test_string_ids(tmp_path):
    vectors = pa.array(np.eye(4, dtype=np.float32).tolist(), pa.list_(pa.float32(), 4))
    pq.write_table(pa.table({"item_id": ["b", "ä", "", "c"], "embedding": vectors}), tmp_path / "i.parquet")
    stcli.build_index(tmp_path / "i.parquet", tmp_path / "i")
    stcli.pack_model(tmp_path / "i", tmp_path / "m")
    pq.write_table(pa.table({"item_id": ["", "d"], "embedding": vectors.slice(0, 2)}), tmp_path / "new.parquet")
    pq.write_table(pa.table({"item_id": ["ä", "zz", None]}), tmp_path / "gone.parquet")
    summary = stcli.update(
        tmp_path / "m", tmp_path / "set", upsert=tmp_path / "new.parquet", delete=tmp_path / "gone.parquet"
    )
    counts = summary["counts"]
    assert [counts[key] for key in ("superseded", "deleted", "unknown_deletes", "num_items")] == [1, 1, 1, 4]
    stcli.update(tmp_path / "set", tmp_path / "c", compact=True)
    compacted = open_artifact_file(tmp_path / "c").arrays
    assert sorted(compacted["item_id_bytes"].tobytes().decode()) == ["b", "c", "d"]


def test_bad_rows_are_set_aside_and_their_old_versions_stay(tiny, tmp_path):
    corpus = Corpus(pq.read_table(tiny.items), tmp_path)
    rows = [dict(row) for row in tiny.item_rows[:4]]
    rows[1]["embedding"] = [float("nan")] * 16
    rows[3]["item_id"] = rows[0]["item_id"]
    new = corpus.write(rows, "new.parquet")
    with pytest.raises(InputError, match=r"new.parquet: row 1 \(id \d+\): column 'embedding' holds a NaN"):
        stcli.update(tiny.model, tmp_path / "set", upsert=new)
    assert not list(tmp_path.glob("set*"))
    summary = stcli.update(tiny.model, tmp_path / "set", upsert=new, bad_rows="quarantine", max_bad_fraction=1)
    assert [summary["counts"][key] for key in ("upserted", "superseded", "rejected")] == [2, 2, 2]
    assert living_ids(tmp_path / "set") == sorted(corpus.items)
    assert pq.read_table(summary["outputs"]["rejected"])["row"].to_pylist() == [1, 3]


def test_a_benchmark_of_an_updated_set_names_compact(tiny, tmp_path):
    pq.write_table(pq.read_table(tiny.items).slice(0, 3), tmp_path / "new.parquet")
    stcli.update(tiny.model, tmp_path / "set", upsert=tmp_path / "new.parquet")
    with pytest.raises(InputError, match=r"a set of 2 files; .* make one of it with stcli update --compact"):
        stcli.bench(tmp_path / "set", tiny.queries, tmp_path / "report", k=5)


def test_tables_that_do_not_fit(tiny, tmp_path):
    table = pq.read_table(tiny.items).slice(0, 3)
    strings = pa.array(["a", "b", "c"])
    wide = pa.array([[1.0] * 17] * 3, pa.list_(pa.float32()))
    versioned = table.replace_schema_metadata({"embedding_version": "2"})
    stcli.build_index(tiny.items, tmp_path / "i", embedding_version="1", feature_columns=FEATURES)
    stcli.pack_model(tmp_path / "i", tmp_path / "m")
    for given, message in (
        (table.drop_columns(["color"]), "no column 'color'"),
        (table.set_column(0, "item_id", strings), "'item_id' holds string ids, the artifact has int64 ids"),
        (table.set_column(1, "embedding", wide), "embeddings have 17 dimensions, those of the artifact 16"),
        (table.set_column(5, "year", strings), "'year' is string, the feature of the artifact is integer"),
        (versioned, "has embeddings of version '2', the artifact of '1'"),
    ):
        pq.write_table(given, tmp_path / "new.parquet")
        with pytest.raises(InputError, match=message):
            stcli.update(tmp_path / "m", tmp_path / "set", upsert=tmp_path / "new.parquet")
    pq.write_table(pa.table({"item_id": strings}), tmp_path / "gone.parquet")
    with pytest.raises(InputError, match="'item_id' holds string ids, the artifact has int64 ids"):
        stcli.update(tmp_path / "m", tmp_path / "set", delete=tmp_path / "gone.parquet")
    assert not list(tmp_path.glob("set*"))


def test_options_that_do_not_fit(stream, tiny, tmp_path):
    corpus, sets = stream
    new = corpus.folder / "new.parquet"
    for options, message in (
        ({}, "give --upsert, --delete or both, or --compact"),
        ({"upsert": new, "compact": True}, "--compact folds a set as it is"),
        ({"upsert": new, "item_tower": str(new)}, "not a JSON config|not with an item tower"),
    ):
        with pytest.raises(InputError, match=message):
            stcli.update(sets[0], tmp_path / "set", **options)
    with pytest.raises(ExistsError, match="already exists"):
        stcli.update(sets[0], sets[1], upsert=new)
    with pytest.raises(InputError, match="--overwrite would remove the input"):
        stcli.update(sets[0], sets[0], upsert=new, overwrite=True)
    with pytest.raises(FormatError, match="is not there"):
        stcli.update(tmp_path / "nothing", tmp_path / "set", upsert=new)
    stcli.pack_model(tiny.index, tmp_path / "wide", embeddings=str(tiny.items))
    with pytest.raises(InputError, match="packed with a second table of embeddings"):
        stcli.update(tmp_path / "wide", tmp_path / "set", upsert=new)
    (sets[1] / "fresh.parquet").rename(tmp_path / "kept")
    try:
        pq.write_table(pq.read_table(tmp_path / "kept").slice(1), sets[1] / "fresh.parquet")
        with pytest.raises(FormatError, match="is not the table that the set was made with"):
            stcli.update(sets[1], tmp_path / "set", upsert=new)
    finally:
        (tmp_path / "kept").rename(sets[1] / "fresh.parquet")


def test_an_item_tower_gives_the_fresh_embeddings_too(tmp_path):
    test_item_tower.write_tower(tmp_path / "tower.json")
    columns = test_item_tower.items()
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    tower = {"item_tower": str(tmp_path / "tower.json")}
    stcli.build_index(tmp_path / "items.parquet", tmp_path / "i", clusters=8, **tower)
    stcli.pack_model(tmp_path / "i", tmp_path / "m")
    pq.write_table(pa.table(columns).slice(5, 20), tmp_path / "new.parquet")
    new = {"upsert": tmp_path / "new.parquet"}
    with pytest.raises(InputError, match="built with an item tower; give the same one"):
        stcli.update(tmp_path / "m", tmp_path / "set", **new)
    stcli.update(tmp_path / "m", tmp_path / "set", **new, **tower)
    main, fresh = open_set(tmp_path / "set").parts
    place = {number: row for row, number in enumerate(main.arrays["item_ids"].tolist())}
    rows = [place[number] for number in fresh.arrays["item_ids"].tolist()]
    assert np.array_equal(fresh.arrays["embedding_values"], main.arrays["embedding_values"][rows])
    stcli.update(tmp_path / "set", tmp_path / "c", compact=True)
    assert open_artifact_file(tmp_path / "c").manifest["item_tower"] == main.manifest["item_tower"]
    test_item_tower.write_tower(tmp_path / "tower.json", scale=2.0)
    with pytest.raises(InputError, match="is another tower than the artifact was built with"):
        stcli.update(tmp_path / "m", tmp_path / "other", **new, **tower)


KILLED = """
import os, signal, sys
import stcli
from stcli.pipeline import update
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
update.write_set = die
stcli.update(sys.argv[1], sys.argv[2], upsert=sys.argv[3])
"""


def test_an_update_killed_at_the_last_moment_leaves_the_old_set_whole(stream, tmp_path):
    corpus, sets = stream
    new, output = corpus.folder / "new.parquet", tmp_path / "set"
    before = {path.name: path.read_bytes() for path in sets[0].iterdir()}
    words = [sys.executable, "-c", KILLED, sets[0], output, new]
    killed = subprocess.run([str(word) for word in words], cwd=Path(stcli.__file__).parent.parent, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert {path.name: path.read_bytes() for path in sets[0].iterdir()} == before
    assert not output.exists()
    with pytest.raises(FormatError, match="was not finished"):
        stcli.inspect(tmp_path / "set.partial")
    stcli.update(sets[0], output, upsert=new)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_command(stream, tmp_path, capsys):
    corpus, sets = stream
    words = ["update", str(sets[0]), "--upsert", str(corpus.folder / "new.parquet"), "-o", str(tmp_path / "set")]
    assert run([*words, "--dry-run"]) == 0
    assert not list(tmp_path.iterdir())
    assert "fresh" in capsys.readouterr().out
    assert run(words) == 0
    assert "tombstone share" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "set")]) == 0
    assert run(words) == 2
    assert run([*words, "--overwrite", "--quiet"]) == 0
    assert run(["update", str(tmp_path / "set"), "--compact", "-o", str(tmp_path / "c")]) == 0
