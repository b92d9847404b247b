"""Sets: shards give the rows of the whole bit for bit; fresh items are found, deleted and replaced ones never."""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import FormatError, InputError
from stcli.filters.source import GivenFilters
from stcli.model.eligibility import words_of
from stcli.model.overarch_config import parse_overarch
from stcli.model.planner import SearchOptions, default_candidates
from stcli.model.slots import best_of_runs
from stcli.ops.bloom_hash import bloom_positions, in_block
from stcli.storage.artifact_set import Fresh, Shard, bits_of, read_set, write_set
from stcli.storage.weights import write_weights
from stcli.types import Candidates
from tests.conftest import lists

NUM, DIM, QUERIES = 30_000, 8, 80
SHARDS = (1, 2, 7)
FIELDS = ("rows", "score_matrix", "counts", "work", "routes", "probes", "admitted")
FILTERS = (None, "tags = 't003'", "tags = 't150' OR price < 30", "NOT tags = 't100' AND color = 'red'", "color IS NULL")
HOW = ({"exact": True}, {"probes": 5}, {"target_recall": None}, {})
FEATURES = ("tags", "price", "color")
MOL = {"kind": "mol", "tasks": ["like", "buy"], "dim": DIM, "query_components": 2, "item_components": 2,
       "component_dim": 4, "query_hidden": 3, "gate_hidden": 3, "tau": 0.2}  # fmt: skip


def make_items(rng, num, first_id=0, tag="t"):
    """Items around 64 centres, a hundredth of them twins of others; most tags are rare, so they stand on Bloom rows."""
    embeddings = rng.normal(size=(64, DIM))[rng.integers(64, size=num)] + 0.7 * rng.normal(size=(num, DIM))
    embeddings[-(num // 100) :] = embeddings[: num // 100]
    weights = 1 / np.arange(1, 201)
    counts = rng.integers(0, 6, num)
    drawn = np.split(rng.choice(200, counts.sum(), p=weights / weights.sum()), np.cumsum(counts)[:-1])
    return pa.table(
        {
            "item_id": pa.array(first_id + rng.permutation(num).astype(np.int64) * 3),
            "embedding": lists(embeddings.astype(np.float32)),
            "tags": pa.array(
                [sorted({f"{tag}{value:03d}" for value in part}) for part in drawn], pa.list_(pa.string())
            ),
            "price": pa.array(rng.integers(0, 1000, num)),
            "color": pa.array(rng.choice(np.array(["red", "green", None], object), num), pa.string()),
        }
    )


def build(table, folder, name, **pack):
    pq.write_table(table, folder / f"{name}.parquet")
    index = folder / f"{name}.index"
    stcli.build_index(
        folder / f"{name}.parquet", index, feature_columns=FEATURES, keep_columns=["price", "color"], clusters=128
    )
    stcli.pack_model(index, folder / f"{name}.safetensors", **pack)
    return index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30,000 items, 8 blocks: as one file, and cut in 1, 2 and 7 shards; with an OverArch and a value model."""
    folder = tmp_path_factory.mktemp("sets")
    generator = torch.Generator().manual_seed(1)
    shapes = parse_overarch(MOL, "test").shapes()
    weights = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_weights(folder / "overarch.json", MOL, weights)
    pack = {
        "overarch": str(folder / "overarch.json"),
        "value_models": ["feed=task.like + 2 * task.buy - 0.001 * item.price"],
    }
    index = build(make_items(np.random.default_rng(5), NUM), folder, "whole", **pack)
    for shards in SHARDS:
        stcli.pack_model(index, folder / f"set{shards}", shards=shards, **pack)
    return folder


@pytest.fixture(scope="module")
def models(folder):
    return [stcli.open_artifact(folder / name) for name in ("whole.safetensors", *(f"set{n}" for n in SHARDS))]


@pytest.fixture(scope="module")
def vectors(models):
    """Noisy items, and a query for which all items are equal."""
    rng = np.random.default_rng(6)
    found = models[0].embeddings_of(torch.from_numpy(rng.integers(NUM, size=QUERIES)))
    found = found + 0.3 * torch.from_numpy(rng.normal(size=found.shape)).float()
    found[7] = 0
    return found


def item_lists(model, seed, size=30):
    """Lists of item ids, some of them unknown."""
    rng = np.random.default_rng(seed)
    return [[*model.ids.take(rows).to_pylist(), 1] for rows in rng.integers(NUM, size=(QUERIES, size))]


def check_same(expected, found):
    for name in FIELDS:
        assert torch.equal(getattr(expected, name), getattr(found, name)), name
    assert all(np.array_equal(*pair) for pair in zip(expected.item_ids, found.item_ids, strict=True))


@pytest.mark.parametrize("how", HOW, ids=str)
def test_shards_give_the_rows_of_the_whole(models, vectors, how):
    filters = FILTERS * (QUERIES // len(FILTERS))
    dots = stcli.scoring_options(models[0], overarch=False)
    exclude = item_lists(models[0], 1)
    whole = models[0](vectors, filters, 20, exclude=exclude, scoring=dots, **how)
    assert (whole.counts > 0).all()
    for model, shards in zip(models[1:], SHARDS, strict=True):
        assert len(model.segments) == shards
        check_same(whole, model(vectors, filters, 20, exclude=exclude, scoring=dots, **how))


@pytest.mark.parametrize("how", [{"probes": 5}, {"target_recall": None}], ids=str)
def test_shards_estimate_what_the_whole_does(models, vectors, how, monkeypatch):
    """From a sample of some words of each block, wherever it lies."""
    monkeypatch.setattr("stcli.model.admitted.SAMPLE_RUNS", 20)
    filters = FILTERS * (QUERIES // len(FILTERS))
    dots = stcli.scoring_options(models[0], overarch=False)
    whole, *others = (model(vectors, filters, 20, scoring=dots, filter_scope="probed", **how) for model in models)
    for found in others:
        check_same(whole, found)
        assert torch.equal(whole.estimates, found.estimates)
    everywhere = models[0](vectors, filters, 20, scoring=dots, filter_scope="all", **how)
    assert torch.equal(whole.rows, everywhere.rows)


@pytest.mark.parametrize("combine", ["union", "intersection"])
def test_shards_score_as_the_whole(models, vectors, combine):
    users = {"like": vectors[:40], "buy": vectors[40:]}
    results = []
    for model in models:
        scoring = stcli.scoring_options(
            model, tasks=("like", "buy"), value_models=["feed"], max_per=["color=5"], combine=combine, pool=60
        )
        results.append(model(users, list(FILTERS * 8), 12, probes=5, scoring=scoring))
    for found in results[1:]:
        check_same(results[0], found)
        assert torch.equal(results[0].task_matrix, found.task_matrix)
        assert torch.equal(results[0].ann_scores, found.ann_scores)


def test_shards_rank_given_items_as_the_whole(models, vectors):
    given = item_lists(models[0], 2)
    results = [model({"like": vectors, "buy": vectors.flip(0)}, "price < 700", 12, rank=given) for model in models]
    assert (results[0].counts > 0).all()
    assert (results[0].missing == 1).all()
    for found in results[1:]:
        check_same(results[0], found)
        assert torch.equal(results[0].missing, found.missing)


def test_lists_of_a_run_hold_in_shards(models, vectors):
    ids = pa.array([*models[0].ids.take(np.arange(0, NUM, 7)).to_pylist(), 1])
    results = []
    for model in models:
        allowed, unknown = words_of(model, ids)
        assert unknown == 1
        options = SearchOptions(20, default_candidates(20), allowed=allowed)
        results.append(model.search(vectors, GivenFilters(model.planner, FILTERS * 16), options))
    assert (results[0].rows % 7 == 0)[results[0].rows >= 0].all()
    for found in results[1:]:
        check_same(results[0], found)


@pytest.fixture(scope="module")
def retrieved(folder, vectors):
    """Query table, and options; the results of the whole."""
    queries = pa.table({"query_id": range(QUERIES), "embedding": lists(vectors.numpy()), "filter": FILTERS * 16})
    pq.write_table(queries, folder / "queries.parquet")
    options = {"filter_column": "filter", "item_columns": ("price", "color"), "part_rows": 40, "k": 9, "probes": 9}
    stcli.retrieve(folder / "whole.safetensors", folder / "queries.parquet", folder / "results", **options)
    return folder / "queries.parquet", options, pq.read_table(folder / "results")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_command_writes_the_same_parts(folder, retrieved, tmp_path, workers):
    queries, options, expected = retrieved
    stcli.retrieve(folder / "set7", queries, tmp_path / "results", workers=workers, **options)
    assert expected.num_rows == QUERIES
    assert expected.equals(pq.read_table(tmp_path / "results"))


def test_a_set_says_what_it_is(folder):
    told = stcli.inspect(folder / "set7", verify=True)
    assert told["counts"]["num_items"] == NUM
    assert len(told["bytes"]) == 8
    explained = [stcli.explain(folder / name, "tags = 't150'")["items"] for name in ("whole.safetensors", "set7")]
    assert explained[0] == explained[1]
    assert explained[0]["eligible"] > 0
    with pytest.raises(InputError, match="set of 7 files"):
        stcli.bench(folder / "set7", folder / "whole.parquet", folder / "report", id_column="item_id")


def test_the_estimate_of_each_shard(folder):
    overarch = str(folder / "overarch.json")
    told = stcli.pack_model(folder / "whole.index", folder / "none", shards=7, overarch=overarch, dry_run=True)[
        "shards"
    ]
    sizes = {path.name: path.stat().st_size for path in (folder / "set7").glob("*.safetensors")}
    assert told.keys() == sizes.keys()
    assert len(told) == 7
    for name, size in sizes.items():
        assert abs(told[name] - size) < 0.1 * size
    assert not (folder / "none").exists()
    with pytest.raises(InputError, match="make 8; use --shards 8 or fewer"):
        stcli.pack_model(folder / "whole.index", folder / "none", shards=9)
    assert not (folder / "none").exists()


def test_a_set_that_is_not_whole_is_refused(folder, tmp_path):
    def copy():
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        return shutil.copytree(folder / "set2", tmp_path / "set") / "shard-00001.safetensors"

    copy().unlink()
    with pytest.raises(FormatError, match=r"shard-00001\.safetensors: is missing"):
        stcli.open_artifact(tmp_path / "set")
    shutil.copy(folder / "set7" / "shard-00001.safetensors", copy())
    with pytest.raises(FormatError, match=r"shard-00001\.safetensors: .* of another set"):
        stcli.open_artifact(tmp_path / "set")
    changed = copy()
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-64] + bytes(64))
    with pytest.raises(FormatError, match=r"shard-00001\.safetensors: tensor .* does not match its hash"):
        stcli.open_artifact(tmp_path / "set", verify=True)
    changed.write_bytes(whole[:-64])
    with pytest.raises(FormatError, match=r"shard-00001\.safetensors: is truncated"):
        stcli.open_artifact(tmp_path / "set")
    assert FormatError.exit_code == 2


# ---- fresh items and tombstones --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(folder):
    """Two shards and fresh items: 200 replace others, 300 are new, with tags of their own; 100 others are deleted.

    Beside it an artifact that was built from the same items at once.
    """
    old = pq.read_table(folder / "whole.parquet")
    ids = old["item_id"].to_numpy()
    fresh = make_items(np.random.default_rng(8), 500, NUM * 3, tag="n")
    new_ids = np.concatenate((ids[1000:1200], fresh["item_id"].to_numpy()[200:]))
    fresh = fresh.set_column(0, "item_id", pa.array(new_ids))
    gone = np.concatenate((ids[1000:1200], ids[5000:5100]))
    build(fresh, folder, "fresh")
    build(pa.concat_tables([old.filter(pa.array(~np.isin(ids, gone))), fresh]), folder, "rebuilt")
    target = folder / "changed"
    target.mkdir()
    shards = [Shard(**entry) for entry in read_set(folder / "set2")["shards"]]
    for shard in shards:
        shutil.copy(folder / "set2" / shard.file, target)
    shutil.copy(folder / "fresh.safetensors", target)
    pq.write_table(fresh, target / "fresh.parquet")
    main = stcli.open_artifact(folder / "set2")
    dead = main.lookup.rows_of(pa.array(gone))
    manifest = stcli.open_artifact(folder / "fresh.safetensors").manifest
    newer = Fresh("fresh.safetensors", manifest["fingerprint"], 500, "fresh.parquet", {"rows": 500, "files": []})
    write_set(target, shards, newer, bits_of(dead, NUM + 500), {"tool_version": "0"})
    return stcli.open_artifact(target), stcli.open_artifact(folder / "rebuilt.safetensors"), gone[200:], new_ids


CHANGED_FILTERS = (
    None,
    "tags = 't003'",
    "tags = 'n001'",
    "NOT tags IN ('t000', 'n000') AND price < 300",
    "color = 'red'",
)


@pytest.fixture(scope="module")
def asked(changed, vectors):
    """Queries of which half lie near fresh items."""
    model, _, _, new_ids = changed
    near = model.embeddings_of(torch.from_numpy(model.lookup.rows_of(pa.array(new_ids[:400:10]))))
    return torch.cat([near, vectors[8:48]]), list(CHANGED_FILTERS * (QUERIES // len(CHANGED_FILTERS)))


def test_exact_results_are_those_of_a_rebuild(changed, asked):
    model, rebuilt, _, new_ids = changed
    dots = [stcli.scoring_options(one, overarch=False) for one in (model, rebuilt)]
    found, expected = (
        one(*asked, 20, exact=True, scoring=scoring) for one, scoring in zip((model, rebuilt), dots, strict=True)
    )
    assert model.num_items == rebuilt.num_items == NUM - 100 + 300
    assert all(np.array_equal(*pair) for pair in zip(found.item_ids, expected.item_ids, strict=True))
    assert torch.equal(found.score_matrix, expected.score_matrix)
    assert np.isin(np.concatenate(found.item_ids), new_ids).mean() > 0.1


@pytest.mark.parametrize("how", [{"probes": 5}, {"target_recall": None}, {}], ids=str)
def test_probing_finds_fresh_items_and_no_dead_ones(changed, asked, how):
    model, rebuilt, deleted, new_ids = changed
    dots = stcli.scoring_options(model, overarch=False)
    found = model(*asked, 20, scoring=dots, **how)
    true = rebuilt(*asked, 20, exact=True)
    living = rebuilt.lookup
    for mine, best in zip(found.item_ids, true.item_ids, strict=True):
        assert len(mine) == len(best) == len(set(mine.tolist()))
        assert (living.rows_of(pa.array(mine)) >= 0).all()
        assert not np.isin(mine, deleted).any()
    fresh = [best[np.isin(best, new_ids)] for best in true.item_ids]
    assert sum(map(len, fresh)) > 50
    assert all(np.isin(best, mine).all() for best, mine in zip(fresh, found.item_ids, strict=True))


def test_dead_and_fresh_items_wherever_filters_are_evaluated(changed, asked):
    model = changed[0]
    dots = stcli.scoring_options(model, overarch=False)
    for how in ({"probes": 5}, {"target_recall": None}, {"exact": True}):
        probed, everywhere = (model(*asked, 20, scoring=dots, filter_scope=s, **how) for s in ("probed", "all"))
        assert torch.equal(probed.rows, everywhere.rows)
        assert torch.equal(probed.admitted, everywhere.admitted)


def test_an_id_means_its_newest_row(changed, asked):
    model, rebuilt, deleted, new_ids = changed
    assert (model.lookup.rows_of(pa.array(deleted)) == -1).all()
    assert (model.lookup.rows_of(pa.array(new_ids)) >= NUM).all()
    assert model.ids.take(model.lookup.rows_of(pa.array(new_ids))).to_pylist() == new_ids.tolist()
    given = [new_ids[:200].tolist() + deleted[:10].tolist()] * QUERIES
    scoring = stcli.scoring_options(model, overarch=False)
    ranked, expected = (
        model(*asked, 30, rank=given, scoring=scoring),
        rebuilt(*asked, 30, rank=given, scoring=stcli.scoring_options(rebuilt)),
    )
    assert (ranked.missing == 10).all()
    assert all(np.array_equal(*pair) for pair in zip(ranked.item_ids, expected.item_ids, strict=True))
    excluded = model(*asked, 20, exact=True, exclude=given, scoring=scoring)
    expected = rebuilt(*asked, 20, exact=True, exclude=given)
    assert all(np.array_equal(*pair) for pair in zip(excluded.item_ids, expected.item_ids, strict=True))


# ---- the parts -----------------------------------------------------------------------------------------------------


def test_terms_of_a_later_block():
    terms, blocks = torch.arange(0, 100_000, 7)[:, None], torch.arange(9)
    widths = torch.arange(9) + 3
    for first in (1, 17, 2**31):
        expected = bloom_positions(terms, blocks + first, widths, 5)
        assert torch.equal(bloom_positions(in_block(terms, first), blocks, widths, 5), expected)


def test_runs_are_merged_by_score_then_row():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(np.sort(rng.choice(1000, (50, 60)), 1)).long()
    scores = torch.from_numpy(rng.integers(-3, 4, (50, 60))).float()
    parts, expected = [], []
    for first in range(0, 60, 20):
        lines = []
        for row, score in zip(
            rows[:, first : first + 20].tolist(), scores[:, first : first + 20].tolist(), strict=True
        ):
            lines.append(sorted(zip(row, score, strict=True), key=lambda pair: (-pair[1], pair[0])))
        parts.append(Candidates(torch.tensor(lines)[..., 0].long(), torch.tensor(lines)[..., 1]))
    for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
        expected.append(sorted(zip(row, score, strict=True), key=lambda pair: (-pair[1], pair[0]))[:25])
    found = best_of_runs(parts, 25)
    assert torch.equal(found.rows, torch.tensor(expected)[..., 0].long())
    assert torch.equal(found.scores, torch.tensor(expected)[..., 1])
