import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stcli.errors import InputError
from stcli.measure.relevance import UNKNOWN, hits, listed_recall, read_truth, relevance, rows_of_lists
from stcli.model.lookup import IdLookup
from stcli.storage.ids import ItemIds
from stcli.storage.parquet import open_table

LOOKUP = IdLookup(ItemIds.of(pa.array([10, 20, 30, 40])), "torch")

line = st.lists(st.integers(0, 12), max_size=6, unique=True)


@given(st.lists(st.tuples(line, line), min_size=1, max_size=5))
def test_against_plain_loops(cases):
    k = 6
    rows = np.array([[*found, *[-1] * (k - len(found))] for found, _ in cases])
    wanted = [np.array(items, np.int64) for _, items in cases]
    recalls, rates, gains = [], [], []
    for found, items in cases:
        first = items[:k]
        recalls.append(sum(item in first for item in found) / len(first) if first else math.nan)
        if items:
            rates.append(float(any(item in items for item in found)))
            gain = sum(1 / math.log2(place + 2) for place, item in enumerate(found) if item in items)
            gains.append(gain / sum(1 / math.log2(place + 2) for place in range(min(len(items), k))))
    assert listed_recall(rows, wanted) == pytest.approx(np.array(recalls), nan_ok=True)
    told = relevance(rows, wanted)
    assert told["ndcg"]["queries"] == len(gains)
    if gains:
        assert told["hit_rate"]["mean"] == pytest.approx(np.mean(rates))
        assert told["ndcg"]["mean"] == pytest.approx(np.mean(gains))


def test_worked_by_hand():
    # The relevant item 7 stands second: 1 / log2(3) of the best; of two relevant items one is found.
    told = relevance(np.array([[4, 7, 9]]), [np.array([7, 8])])
    assert told["hit_rate"]["mean"] == 1
    assert told["recall"]["mean"] == 0.5
    assert told["ndcg"]["mean"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_a_result_counts_once_and_unknown_items_never():
    assert hits(np.array([[3, 3, -1]]), [np.array([3, UNKNOWN])]).tolist() == [[True, False, False]]
    assert listed_recall(np.array([[3, 3, -1]]), [np.array([3, UNKNOWN])]).tolist() == [0.5]


def test_rows_of_lists():
    column = pa.array([[20, 99], None, [], [40]], pa.list_(pa.int64()))
    assert [one.tolist() for one in rows_of_lists(column, LOOKUP, "t")] == [[1, UNKNOWN], [], [], [3]]
    with pytest.raises(InputError, match="t is int64; expected a list"):
        rows_of_lists(pa.array([1]), LOOKUP, "t")


def test_a_truth_table_in_any_order(tmp_path):
    lists = pa.array([[10], [20, 30], [40]])
    pq.write_table(pa.table({"q": ["c", "a", "b"], "item_id": lists}), tmp_path / "t.parquet", row_group_size=2)
    table = open_table(tmp_path / "t.parquet")
    ids = pa.array(["a", "c", "a"], pa.large_string())
    assert [one.tolist() for one in read_truth(table, "q", "item_id", ids, LOOKUP)] == [[1, 2], [0], [1, 2]]
    with pytest.raises(InputError, match="has no row for query 'z' and 0 more of 2"):
        read_truth(table, "q", "item_id", pa.array(["a", "z"], pa.large_string()), LOOKUP)
    with pytest.raises(InputError, match="no column 'items'"):
        read_truth(table, "q", "items", ids, LOOKUP)
    with pytest.raises(InputError, match="the queries have int64 ids"):
        read_truth(table, "q", "item_id", pa.array([1]), LOOKUP)
