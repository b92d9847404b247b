"""The packed model against brute force: complete, exact where it says so, and the same in every form."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import stcli
from stcli.errors import FilterError, InputError
from stcli.filters.tree import Compare, Not
from stcli.model.results import Results
from stcli.ops import native
from tests.model.corpus import Corpus, check_results, make

FILTERS = (
    None,
    "color = 'red'",
    "NOT tags = 't1'",
    "price < 3",
    "tags IN ('t5', 't30') AND color != 'blue'",
    "price > 99",
)
EVERY_WAY = (
    {"exact": True},
    {},
    {"probes": 1},
    {"probes": 5},
    {"candidates": 1000},
    {"exact": True, "candidates": 10},
    {"target_recall": 0.9},
)


def features(rng: np.random.Generator, count: int) -> dict[str, pa.Array]:
    return {
        "color": pa.array(rng.choice(np.array(["red", "green", "blue", None], object), count), pa.string()),
        "tags": pa.array([[f"t{tag}" for tag in rng.geometric(0.15, size)] for size in rng.integers(0, 5, count)],
                         pa.list_(pa.string())),
        "price": pa.array(np.round(rng.exponential(20, count), 1)),
    }  # fmt: skip


def clustered(rng: np.random.Generator, count: int, dim: int, noise: float = 0.5) -> np.ndarray:
    centres = rng.normal(size=(max(count // 60, 1), dim))
    return (centres[rng.integers(len(centres), size=count)] + noise * rng.normal(size=(count, dim))).astype(np.float32)


def queries_for(rng: np.random.Generator, embeddings: np.ndarray, count: int = 36) -> np.ndarray:
    near = embeddings[rng.integers(len(embeddings), size=count)]
    return (near + 0.3 * rng.normal(size=near.shape)).astype(np.float32)


def make_random(folder, dim=24, count=1500, seed=3, **more) -> tuple[Corpus, np.ndarray]:
    rng = np.random.default_rng(seed)
    embeddings = clustered(rng, count, dim)
    ids = rng.permutation(count) * 11 - 5000
    return make(folder, embeddings, ids=ids.tolist(), features=features(rng, count), **more), queries_for(
        rng, embeddings
    )


def filters_for(queries: np.ndarray) -> list[str | None]:
    return [FILTERS[number % len(FILTERS)] for number in range(len(queries))]


def check_every_way(corpus: Corpus, queries: np.ndarray, k: int = 20, filters: list[str | None] | None = None) -> None:
    filters = filters_for(queries) if filters is None else filters
    for way in EVERY_WAY:
        results = corpus.model(queries, filters, k, **way)
        check_results(corpus, queries, filters, k, results, exact="exact" in way)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_random(tmp_path_factory.mktemp("corpus"))


def same(left: Results, right: Results) -> bool:
    return torch.equal(left.rows, right.rows) and torch.equal(left.score_matrix, right.score_matrix)


def test_results_are_told_in_one_line(tiny):
    model, line = stcli.open_artifact(tiny.model), "<Results of {} queries, up to 5 items each{}; item_ids, scores>"
    assert repr(model(tiny.vectors[:3], None, 5)) == line.format(3, "")
    both = model({"like": tiny.vectors[:2], "buy": tiny.vectors[:2]}, None, 5)
    assert repr(both) == line.format(2, ", tasks=['like', 'buy']")


def test_the_shared_corpus(tiny):
    model = stcli.open_artifact(tiny.model)
    everything = Corpus(tiny.model, model, [row["item_id"] for row in tiny.item_rows],
                        packed(tiny.embeddings), tiny.item_rows, False)  # fmt: skip
    for way in EVERY_WAY:
        results = model(tiny.vectors, tiny.filters, 50, **way)
        recall = check_results(everything, tiny.vectors, tiny.filters, 50, results, exact="exact" in way)
        assert recall > (0.999 if "exact" in way else 0.2)


def packed(embeddings):
    from tests.model.corpus import packed_values

    return packed_values(embeddings, "float16")


@pytest.mark.parametrize("k", [1, 7, 100, 1499, 1500, 5000])
def test_any_k(corpus, k):
    check_every_way(*corpus, k=k)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("dim", [1, 2, 33])
def test_any_dimension(tmp_path, dtype, dim):
    check_every_way(*make_random(tmp_path, dim=dim, count=400, dtype=dtype))


def test_cosine(tmp_path):
    corpus, queries = make_random(tmp_path, metric="cosine", count=500)
    queries[::3] *= 1e4
    queries[1::3] *= 1e-4
    check_every_way(corpus, queries)


def test_string_ids(tmp_path):
    rng = np.random.default_rng(5)
    embeddings = np.repeat(clustered(rng, 60, 8), 5, axis=0)  # five of each: ties go by the bytes of the id
    ids = [f"{name} {number}" for number, name in enumerate(["Z", "a", "é", "名", "\U0001f600"] * 60)]
    corpus = make(tmp_path, embeddings, ids=ids, features=features(rng, 300))
    check_every_way(corpus, queries_for(rng, embeddings), k=13)


@pytest.mark.parametrize("scale", [1e-20, 1e-5, 1e6, 1e15])
def test_embeddings_of_any_length(tmp_path, scale):
    rng = np.random.default_rng(6)
    embeddings = clustered(rng, 300, 12) * rng.lognormal(0, 2, (300, 1)).astype(np.float32) * np.float32(scale)
    corpus = make(tmp_path, embeddings, features=features(rng, 300))
    check_every_way(corpus, queries_for(rng, clustered(rng, 300, 12)))


def test_one_item(tmp_path):
    corpus = make(tmp_path, np.ones((1, 4), np.float32), ids=[-7], features={"color": pa.array(["red"])})
    queries = np.array([[1, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    check_every_way(corpus, queries, k=3, filters=[None, "color = 'red'", "color = 'blue'"])


@pytest.mark.parametrize("clusters", [1, 299, 300])
def test_any_number_of_clusters(tmp_path, clusters):
    check_every_way(*make_random(tmp_path, count=300, dim=6, clusters=clusters))


def test_empty_clusters(tmp_path):
    """Four points, sixteen clusters."""
    rng = np.random.default_rng(8)
    embeddings = np.repeat(rng.normal(size=(4, 5)).astype(np.float32), 20, axis=0)
    corpus = make(tmp_path, embeddings, clusters=16, features=features(rng, 80))
    check_every_way(corpus, queries_for(rng, embeddings), k=33)


def test_global_scale(tmp_path):
    check_every_way(*make_random(tmp_path, count=500, scale="global"))


def test_zero_vectors(tmp_path):
    rng = np.random.default_rng(9)
    embeddings = clustered(rng, 200, 6)
    embeddings[50:80] = 0
    corpus = make(tmp_path, embeddings, features=features(rng, 200))
    queries = queries_for(rng, embeddings)
    queries[:6] = 0  # all items tie: the smallest ids
    check_every_way(corpus, queries, k=9)
    assert corpus.model(queries[:1], None, 5, exact=True).item_ids[0].tolist() == [0, 1, 2, 3, 4]


def test_more_ties_than_candidates(tmp_path):
    """400 twins, whose rows are in no order of ids, and 10 results."""
    rng = np.random.default_rng(10)
    embeddings = np.repeat(rng.normal(size=(2, 7)).astype(np.float32), [400, 100], axis=0)
    ids = rng.permutation(500).tolist()
    corpus = make(tmp_path, embeddings, ids=ids)
    found = corpus.model(embeddings[:1], None, 10, exact=True)
    assert found.item_ids[0].tolist() == sorted(ids[:400])[:10]
    check_every_way(corpus, embeddings[:3], k=10, filters=[None] * 3)


def test_exact_where_int8_tells_little(tmp_path):
    """What tells the items apart is a tenth of an int8 step, so hundreds of candidates have to be scored again."""
    rng = np.random.default_rng(13)
    embeddings = (0.05 * rng.normal(size=(600, 10))).astype(np.float32)
    embeddings[:, 0] = 60
    corpus = make(tmp_path, embeddings, features=features(rng, 600), dtype="float32")
    queries = rng.normal(size=(12, 10)).astype(np.float32)
    filters = filters_for(queries)
    results = corpus.model(queries, filters, 5, exact=True, candidates=5)
    assert check_results(corpus, queries, filters, 5, results, exact=True) == 1
    short = corpus.model(queries, filters, 5, probes=corpus.model.num_clusters, candidates=5)
    assert check_results(corpus, queries, filters, 5, short, exact=False) < 1


def test_without_packed_embeddings(tmp_path):
    """Scores are then those of the int8 codes: each off by at most half a step of query and item a dimension."""
    rng = np.random.default_rng(11)
    embeddings = clustered(rng, 400, 16)
    corpus = make(tmp_path, embeddings, features=features(rng, 400), dtype="none")
    queries = queries_for(rng, embeddings)
    filters = filters_for(queries)
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    for way in EVERY_WAY[:4]:
        results = corpus.model(queries, filters, 20, **way)
        for query, text in enumerate(filters):
            eligible = corpus.eligible(text)
            found = results.item_ids[query]  # ids are places in the table
            assert len(set(found.tolist())) == min(20, eligible.sum())
            assert eligible[found].all()
            # |q.x - q'x'| <= |q - q'||x| + |q'||x - x'|, each error at most half a step in each of 16 dimensions
            steps = np.abs(queries[query]).max() / 127 + 1e-7, np.abs(embeddings).max() / 127 + 1e-7
            bound = (
                0.5
                * 4
                * (
                    steps[0] * np.linalg.norm(embeddings, axis=1).max()
                    + steps[1] * 1.05 * np.linalg.norm(queries[query])
                )
            )
            assert np.abs(results.scores[query] - scores[query, found]).max(initial=0) <= bound
            assert (np.diff(results.scores[query]) <= 0).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_wide_embeddings(tmp_path, dtype, metric):
    """The first 8 of 40 dimensions search; all of them score."""
    rng = np.random.default_rng(12)
    wide = clustered(rng, 400, 40)
    corpus = make(tmp_path, np.ascontiguousarray(wide[:, :8]), ids=rng.permutation(400).tolist(),
                  features=features(rng, 400), wide=wide, dtype=dtype, metric=metric)  # fmt: skip
    check_every_way(corpus, queries_for(rng, wide), k=15)
    with pytest.raises(InputError, match="D=40"):
        corpus.model(wide[:2, :8])


def test_results_do_not_depend_on_the_batch(corpus):
    model, queries = corpus[0].model, corpus[1]
    filters = filters_for(queries)
    for way in ({}, {"exact": True}, {"probes": 2}):
        whole = model(queries, filters, 30, **way)
        single = [model(queries[n : n + 1], filters[n : n + 1], 30, **way) for n in range(len(queries))]
        assert torch.equal(whole.rows, torch.cat([result.rows for result in single]))
        assert torch.equal(whole.score_matrix, torch.cat([result.score_matrix for result in single]))
        assert torch.equal(whole.work, torch.cat([result.work for result in single]))
        backwards = model(queries[::-1].copy(), filters[::-1], 30, **way)
        assert torch.equal(whole.rows, backwards.rows.flip(0))


def test_results_do_not_depend_on_how_words_are_tiled(corpus, monkeypatch):
    from stcli.model import search

    model, queries = corpus[0].model, corpus[1]
    filters = [f"price < {number / 7}" for number in range(len(queries))]
    whole = model(queries, filters, 30)
    monkeypatch.setattr(model, "tile_queries", 5)
    monkeypatch.setattr(search, "HOST_SLOTS", 100)
    assert same(whole, model(queries, filters, 30))
    monkeypatch.setattr(type(model), "filters_at_once", 3)
    assert same(whole, model(queries, filters, 30))


def test_results_do_not_depend_on_threads(corpus):
    model, queries = corpus[0].model, corpus[1]
    try:
        native.set_num_threads(1)
        one = model(queries, filters_for(queries), 30)
        native.set_num_threads(3)
        assert same(one, model(queries, filters_for(queries), 30))
    finally:
        native.set_num_threads(None)


@pytest.mark.parametrize("way", EVERY_WAY, ids=str)
def test_native_and_torch_forms_are_equal(corpus, way):
    if native.library() is None:
        pytest.skip(native.why_missing())
    queries = corpus[1]
    found = [stcli.open_artifact(corpus[0].path, backend=backend)(queries, filters_for(queries), 30, **way)
             for backend in ("torch", "native")]  # fmt: skip
    assert same(*found)


def test_what_the_results_say(corpus):
    model, queries = corpus[0].model, corpus[1]
    results = model(queries[:4], [None, "color = 'red'", "price > 1e9", "tags = 't2'"], 10, probes=20)
    eligible = [int(corpus[0].eligible(text).sum()) for text in (None, "color = 'red'", "tags = 't2'")]
    assert results.counts.tolist() == [10, 10, 0, 10]
    assert results.admitted[:3].tolist() == [1500, eligible[1], 0]
    assert int(results.admitted[3]) >= eligible[2]
    assert results.probes[0] == 20
    assert 0 < int(results.work[0]) < 1500
    flat, offsets = results.flat_ids()
    assert offsets.tolist() == [0, 10, 20, 20, 30]
    assert flat.to_pylist() == [int(item) for items in results.item_ids for item in items]


def test_filters_as_texts_and_trees(corpus):
    model, queries = corpus[0].model, corpus[1]
    tree = Not(Compare("color", "=", "red"))
    texts = model(queries, "color != 'red'", 12)
    assert same(texts, model(queries, [tree] * len(queries), 12))
    assert same(texts, model(torch.from_numpy(queries).double(), [str(tree)] * len(queries), 12))


def test_excluded_items(corpus):
    whole, queries = corpus
    filters = filters_for(queries)
    best = whole.model(queries, filters, 10, exact=True).item_ids
    seen = [[*items.tolist(), 10**9] if number % 4 else None for number, items in enumerate(best)]
    for way in EVERY_WAY:
        results = whole.model(queries, filters, 10, exclude=seen, **way)
        for query, text in enumerate(filters):
            left = int(whole.eligible(text).sum()) - (len(best[query]) if seen[query] else 0)
            assert results.counts[query] == min(10, left)
            assert not set(results.item_ids[query].tolist()) & set(seen[query] or ())
    following = whole.model(queries, filters, 20, exact=True).item_ids
    after = whole.model(queries, filters, 10, exact=True, exclude=[items.tolist() for items in best]).item_ids
    assert [items.tolist() for items in after] == [items[10:].tolist() for items in following]


def test_no_queries(corpus):
    results = corpus[0].model(np.zeros((0, 24), np.float32), [], 5)
    assert (len(results), results.item_ids, results.scores) == (0, [], [])


def test_read_only_and_half_precision_queries(corpus):
    model, queries = corpus[0].model, corpus[1].copy()
    queries.flags.writeable = False
    assert same(model(queries, None, 3), model(torch.from_numpy(corpus[1]), None, 3))
    half = queries.astype(np.float16)
    assert same(model(half, None, 3), model(half.astype(np.float32), None, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k 0.*at least 1"),
        ({"filters": [None]}, "filters: 1 for 36 queries"),
        ({"filters": "colour = 'red'"}, "did you mean 'color'"),
        ({"filters": "color = "}, "expected"),
        ({"filters": "color = 3"}, "is string"),
        ({"exclude": [[1]]}, "exclude: 1 lists for 36 queries"),
        ({"queries": np.zeros((36, 23), np.float32)}, r"D=24 \(from the artifact\), got \[36, 23\]"),
        ({"queries": np.zeros(24, np.float32)}, r"got \[24\]"),
        ({"queries": np.full((36, 24), np.nan, np.float32)}, "NaN"),
        ({"queries": np.full((36, 24), -np.inf, np.float32)}, "infinite"),
    ],
)
def test_what_a_call_refuses(corpus, arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        corpus[0].model(**{"queries": corpus[1], **arguments})
    assert isinstance(caught.value, FilterError) == ("filters" in arguments and "for 36" not in message)


def test_is_a_module(corpus):
    model = corpus[0].model
    assert not model.training
    assert not list(model.parameters())
    assert {"parts.0.codes", "parts.0.own_words", "parts.0.embedding_values"} <= dict(model.named_buffers()).keys()
    assert model.state_dict() == {}  # the artifact is the state
