import numpy as np
import pytest
import torch

import stcli
from stcli.filters import exact
from stcli.filters.exact import TermRows, eligible, exact_search, packed_tiles
from stcli.filters.parse import parse
from stcli.filters.program import FilterPlan
from stcli.filters.tree import Constant
from stcli.types import Embeddings, Postings
from tests.oracles_tree import eligible_rows


@pytest.fixture(scope="module")
def model(tiny):
    return stcli.open_artifact(tiny.model)


@pytest.fixture(scope="module")
def table_rows(tiny, model):
    """Table row of each index row."""
    place = {row["item_id"]: number for number, row in enumerate(tiny.item_rows)}
    return np.array([place[item] for item in model.ids.take(np.arange(model.num_items)).to_pylist()])


def plan_of(*, intervals=None, node=None):
    from stcli.filters.bounds import TermSet

    return FilterPlan((), False, TermSet(None, intervals) if node is None else node, 0)


def test_worked_example():
    terms = Postings(torch.tensor([2, 5, 3], dtype=torch.int32), torch.tensor([0, 2, 3]))
    rows = TermRows(terms, np.array([0, 1]))
    assert rows.eligible(plan_of(intervals=((2, 4),))).tolist() == [True, True]
    assert rows.eligible(plan_of(intervals=((4, 9),))).tolist() == [True, False]
    assert rows.eligible(plan_of(intervals=((0, 2), (3, 4)))).tolist() == [False, True]
    assert rows.eligible(plan_of(node=Constant(True))).tolist() == [True, True]
    assert rows.eligible(None).tolist() == [True, True]


def test_items_without_terms_and_no_items():
    terms = Postings(torch.zeros(0, dtype=torch.int32), torch.zeros(4, dtype=torch.int64))
    assert eligible(terms, plan_of(intervals=((0, 9),)), 3).tolist() == [False, False, False]
    none = Postings(torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64))
    assert eligible(none, plan_of(intervals=((0, 9),)), 0).tolist() == []


def test_eligible_is_what_the_table_says(tiny, model, table_rows):
    for text in dict.fromkeys(tiny.filters):
        if text is not None:
            expected = np.array(eligible_rows(tiny.item_rows, parse(text)))[table_rows]
            found = eligible(model.terms, model.planner.plan(text), model.num_items)
            assert found.tolist() == expected.tolist(), text


def test_rows_in_any_order(model):
    plan = model.planner.plan("NOT tags IN ('t00', 't05') AND year > 2004")
    rows = np.random.default_rng(1).permutation(model.num_items)[:700]
    assert TermRows(model.terms, rows).eligible(plan).tolist() == eligible(model.terms, plan, 2000)[rows].tolist()


def brute_force(tiny, model, table_rows, query, k):
    """Best rows of one query by plain sorting: larger float64 score first, then smaller item id."""
    values = model.embeddings.values.numpy().astype(np.float64)
    values *= 2.0 ** model.embeddings.exponents.numpy().astype(np.float64)[:, None]
    scores = [
        sum(a * b for a, b in zip(row, tiny.vectors[query].astype(float), strict=True)) for row in values.tolist()
    ]
    tree = parse(tiny.filters[query]) if tiny.filters[query] else None
    fine = eligible_rows([tiny.item_rows[row] for row in table_rows], tree)
    ids = [tiny.item_rows[row]["item_id"] for row in table_rows]
    best = sorted((-scores[row], ids[row], row) for row in range(len(scores)) if fine[row])[:k]
    return [row for _, _, row in best], [-score for score, _, _ in best], sum(fine)


@pytest.mark.parametrize("tile_bytes", [exact.TILE_BYTES, 8 * 256 * 17])
def test_exact_search_equals_sorting(tiny, model, table_rows, monkeypatch, tile_bytes):
    monkeypatch.setattr(exact, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(exact, "CHUNK_QUERIES", 7 if tile_bytes < 1 << 20 else 256)
    k, count = 25, 18
    asked = np.random.default_rng(2).integers(-1, model.num_items, (count, 40))
    truth = exact_search(model, torch.from_numpy(tiny.vectors[:count]), tiny.filters[:count], k, asked=asked)
    twin = [tiny.embeddings[row].tobytes() for row in table_rows]
    for query in range(count):
        rows, scores, number = brute_force(tiny, model, table_rows, query, k)
        filled = len(rows)
        assert truth.eligible[query] == number
        assert (truth.rows[query, filled:] == -1).all()
        assert np.isneginf(truth.scores[query, filled:]).all()
        # 1e-12: the two sums of 16 float64 products may differ in their last places.
        np.testing.assert_allclose(truth.scores[query, :filled], scores, rtol=1e-12, atol=1e-12)
        # Twins have equal embeddings, so either may stand first where a matrix product rounds their sums differently.
        assert [twin[row] for row in truth.rows[query, :filled]] == [twin[row] for row in rows]
        every = dict(zip(*brute_force(tiny, model, table_rows, query, model.num_items)[:2], strict=True))
        for row, score in zip(asked[query].tolist(), truth.asked[query].tolist(), strict=True):
            assert score == (pytest.approx(every[row], abs=1e-12) if row in every else -np.inf)


def test_ties_at_the_kth_place_go_to_the_smaller_id(model):
    """All items score 0: the first k ids win, whatever the tiles."""
    truth = exact_search(model, torch.zeros(1, 16), [None], 5)
    assert model.ids.take(truth.rows[0]).to_pylist() == [3, 10, 17, 24, 31]


def test_items_in_another_order_give_the_same(tiny, model):
    rows = np.random.default_rng(3).permutation(model.num_items)
    _, vectors = next(packed_tiles(model.embeddings, model.num_items))
    tiles = [(rows[start : start + 300], vectors[rows[start : start + 300]]) for start in range(0, 2000, 300)]
    queries, filters = torch.from_numpy(tiny.vectors[:9]), tiny.filters[:9]
    one, other = exact_search(model, queries, filters, 10), exact_search(model, queries, filters, 10, tiles=tiles)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-12)
    assert one.eligible.tolist() == other.eligible.tolist()


def test_no_queries(model):
    truth = exact_search(model, torch.zeros(0, 16), [], 5)
    assert truth.rows.shape == (0, 5)
    assert truth.eligible.shape == (0,)


def test_packed_tiles_apply_the_exponents():
    embeddings = Embeddings(torch.tensor([[1.5], [1.0]], dtype=torch.float16), torch.tensor([-20, 3], dtype=torch.int8))
    (rows, first), (_, second) = packed_tiles(embeddings, 1)
    assert rows.tolist() == [0]
    assert (first.item(), second.item()) == (1.5 * 2.0**-20, 8.0)


def test_the_model_in_exact_mode_agrees(tiny, model):
    truth = exact_search(model, torch.from_numpy(tiny.vectors), tiny.filters, 20)
    results = model(tiny.vectors, tiny.filters, k=20, exact=True)
    assert (results.rows.numpy() >= 0).sum(1).tolist() == np.minimum(truth.eligible, 20).tolist()
    # Float32 against float64: items whose scores agree within 1e-5 may change places, nothing else.
    found = np.where(results.rows.numpy() >= 0, results.score_matrix.numpy(), 0)
    np.testing.assert_allclose(found, np.where(truth.rows >= 0, truth.scores, 0), rtol=1e-5, atol=1e-5)
