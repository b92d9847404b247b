import numpy as np
import pytest
import torch

import stcli
from stcli.filters.exact import eligible, exact_search
from stcli.peers import families
from stcli.peers.bitmaps import count, holds, rows_of
from stcli.peers.paper import Paper
from stcli.peers.protocol import Items, Queries
from stcli.peers.workers import SHARE, Workers

K = 10


@pytest.fixture(scope="module")
def model(tiny):
    return stcli.open_artifact(tiny.model)


@pytest.fixture(scope="module")
def items(model):
    return Items.of(model, threads=1, seed=0)  # two threads of Faiss beside another process take 20 times as long


def queries_of(model, tiny, filtered):
    filters = tiny.filters[:40] if filtered else [None] * 40
    return Queries.of(model, torch.from_numpy(tiny.vectors[:40]), filters)


def recall(found, truth):
    """Share of the true items found, those that tie with the last true one counted as found."""
    hits = [
        len(set(mine[mine >= 0]) & set(true[true >= 0])) / max((true >= 0).sum(), 1) if (true >= 0).any() else 1.0
        for mine, true in zip(found, truth.rows, strict=True)
    ]
    return float(np.mean(hits))


def test_items_are_the_packed_embeddings(tiny, model, items):
    place = {item: row for row, item in enumerate(model.ids.ids.to_pylist())}
    rows = [place[line["item_id"]] for line in tiny.item_rows]
    assert np.allclose(items.vectors[rows], tiny.embeddings, rtol=2**-11, atol=1e-4)


def test_bitmaps_hold_the_eligible_items(tiny, model, items):
    for text in dict.fromkeys(tiny.filters):
        plan = model.planner.plan(text)
        if plan is None:
            continue
        expected = eligible(model.terms, plan, model.num_items)
        bits = items.bitmaps.of(plan.terms)
        assert np.array_equal(rows_of(bits), np.flatnonzero(expected))
        assert count(bits) == expected.sum()
        rows = np.array([[0, 5, 1999], [7, 8, 9]])
        assert np.array_equal(holds(bits, rows), expected[rows])


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("family", ["faiss", "torch"])
def test_the_slowest_setting_of_each_peer_is_exact(tiny, model, items, family, filtered):
    if families.missing(family):
        pytest.skip(families.missing(family))
    queries = queries_of(model, tiny, filtered)
    truth = exact_search(model, queries.raw, queries.given, K)
    for peer in families.members(family):
        peer.build(items)
        settings = list(peer.parameters(filtered, K))
        if not settings:
            assert not filtered
            continue
        found = peer.search(queries, K, settings[-1][1])
        assert found.shape == (40, K)
        assert recall(found, truth) > (0.9 if "SQ8" in peer.name or "hybrid" in peer.name else 0.97), peer.name
        for line, tree in zip(found, queries.trees, strict=True):
            rows = line[line >= 0]
            assert np.array_equal(line[: len(rows)], rows)
            assert tree is None or holds(items.bitmaps.of(tree), rows).all()
        assert peer.index_bytes > 0
        assert peer.how
        assert peer.refuses(queries) is None


def test_more_lists_find_more(tiny, model, items):
    if families.missing("faiss"):
        pytest.skip(families.missing("faiss"))
    queries = queries_of(model, tiny, True)
    truth = exact_search(model, queries.raw, queries.given, K)
    for peer in families.members("faiss")[:2]:
        peer.build(items)
        found = [recall(peer.search(queries, K, parameter), truth) for _, parameter in peer.parameters(True, K)]
        assert len(found) > 3
        assert found[0] < found[-1]


def test_a_batch_is_shared_among_the_threads_where_it_fills_them():
    if families.missing("faiss"):
        pytest.skip(families.missing("faiss"))
    workers = Workers(2, lambda: None)
    vectors = np.arange(2 * SHARE + 1)[:, None]
    asked = []

    def search(some):
        asked.append(len(some))
        return 10 * some

    assert workers.fair_batch == 2 * SHARE
    assert np.array_equal(workers.shares(search, vectors), 10 * vectors)
    assert sorted(asked) == [SHARE, SHARE + 1]
    assert np.array_equal(workers.shares(search, vectors[:-2]), 10 * vectors[:-2])
    assert asked[2:] == [2 * SHARE - 1]


def test_paper_form(tiny, model, items):
    peer = Paper()
    peer.build(items)
    vectors = torch.from_numpy(tiny.vectors[:40])
    plain = Queries.of(model, vectors, ["color = 'red'", None] * 20)
    assert peer.refuses(plain) is None
    assert "price" in peer.refuses(Queries.of(model, vectors[:1], ["price < 40"]))
    truth = exact_search(model, vectors, plain.given, K)
    found = [recall(peer.search(plain, K, parameter), truth) for _, parameter in peer.parameters(True, K)]
    assert found[0] < found[-1]
    assert found[-1] > 0.95
    assert model.planner.plan("price < 40") is not None  # the artifact itself is as it was
    assert torch.equal(model.codes, stcli.open_artifact(tiny.model).codes)


def test_a_preset_built_from_the_table_gives_the_same(tiny, tmp_path, model, items):
    stcli.build_index(tiny.items, tmp_path / "i", feature_columns=["color", "tags"], clusters=32, preset="silvertorch")
    stcli.pack_model(tmp_path / "i", tmp_path / "m")
    built = stcli.open_artifact(tmp_path / "m")
    peer = Paper()
    peer.build(items)
    queries = Queries.of(model, torch.from_numpy(tiny.vectors[:40]), ["color = 'red'", None] * 20)
    mine = peer.search(queries, K, 32)
    from stcli.filters.source import GivenFilters
    from stcli.model.planner import SearchOptions, default_candidates

    options = SearchOptions(K, default_candidates(K), probes=32, verify=False)
    theirs = built.search(queries.raw, GivenFilters(built.planner, queries.given), options)
    assert np.array_equal(model.ids.take(mine[mine >= 0]), built.ids.take(theirs.rows.numpy()[mine >= 0]))


def test_a_missing_library_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(families, "find_spec", lambda name: None)
    assert families.missing("faiss") == "faiss is not installed; pip install 'stcli[bench]'"
    assert families.missing("torch") is None
