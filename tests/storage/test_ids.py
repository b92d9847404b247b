"""Item ids: order, ranks, repeats, and the arrays they are stored as."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import FormatError
from stcli.model.lookup import IdLookup
from stcli.storage.ids import ItemIds, id_order, repeated

INTEGERS = [5, -3, 2**63 - 1, 0, -(2**63), 17]
TEXTS = ["b", "", "ä", "a", "B", "\U0001f600", "�", "ab"]


def ids_of(values):
    return pa.array(values, pa.int64() if isinstance(values[0], int) else pa.large_string())


def sort_key(value):
    return value if isinstance(value, int) else value.encode()


@pytest.mark.parametrize("values", [INTEGERS, TEXTS], ids=["int64", "string"])
def test_order_is_by_number_or_by_utf8_bytes(values):
    ids = ItemIds.of(ids_of(values))
    assert ids.order.tolist() == sorted(range(len(values)), key=lambda row: sort_key(values[row]))
    assert [ids.rank[row] for row in ids.order] == list(range(len(values)))
    assert ids.take(np.array([2, 0, 2])).to_pylist() == [values[2], values[0], values[2]]
    assert ids.take(np.array([], np.int64)).to_pylist() == []


@pytest.mark.parametrize("values", [INTEGERS, TEXTS, ["", ""], [7]], ids=["int64", "string", "empty texts", "one"])
def test_stored_arrays_come_back(values):
    for column in (ids_of(values), ids_of([*values, *values]).slice(len(values))):
        stored = {name: np.array(array) for name, array in ItemIds.of(column).arrays().items()}
        again = ItemIds.from_arrays(stored)
        assert again.is_string == isinstance(values[0], str)
        assert again.ids.to_pylist() == values
        assert again.order.tolist() == ItemIds.of(column).order.tolist()


@pytest.mark.parametrize(
    "values", [[3, 1, 3, 2, 1, 3], ["c", "a", "c", "b", "a", "c"], [1], [1, 2], [4, 4, 4, 4]], ids=str
)
def test_repeats_are_all_but_the_first(values):
    ids = ids_of(values)
    expected = [row for row, value in enumerate(values) if value in values[:row]]
    assert repeated(ids, id_order(ids)).tolist() == expected


def test_many_random_ids():
    rng = np.random.default_rng(3)
    values = rng.integers(0, 500, 2000).tolist()
    for column in (ids_of(values), ids_of([str(value) for value in values])):
        given = column.to_pylist()
        seen: set = set()
        expected = [row for row, value in enumerate(given) if value in seen or seen.add(value)]
        assert repeated(column, id_order(column)).tolist() == expected


@pytest.mark.parametrize("values", [INTEGERS, TEXTS, [7], ["one"]], ids=["int64", "string", "one", "one text"])
def test_rows_are_found_by_id(values):
    ids = ItemIds.of(ids_of(values))
    strangers = [1, 2**62, -(2**63) + 1, *range(18, 30)] if isinstance(values[0], int) else ["zz", "aa", "\uffff"]
    wanted = [*reversed(values), *strangers, values[0]]
    expected = [values.index(value) if value in values else -1 for value in wanted]
    assert ids.rows_of(ids_of(wanted)).tolist() == expected
    assert ItemIds.of(ids_of(values).slice(0, 0)).rows_of(ids_of(wanted)).tolist() == [-1] * len(wanted)


@pytest.mark.parametrize(
    ("place", "value"), [(2, 0), (3, -(2**40)), (3, 2**40), (-1, 2**40), (0, -1)],
    ids=["descending", "negative", "past the end", "last past the end", "first negative"],
)  # fmt: skip
def test_damaged_offsets_of_strings_are_not_followed(place, value):
    stored = ItemIds.of(ids_of(TEXTS)).arrays()
    damaged = stored["item_id_offsets"].copy()
    damaged[place] = value
    if value == 0:
        damaged[1] = 1

    def ids():
        return ItemIds.from_arrays({**stored, "item_id_offsets": damaged}, "m")

    for use in (
        lambda: ids().take(np.arange(len(TEXTS))),
        lambda: ids().rows_of(ids_of(TEXTS)),
        lambda: IdLookup(ids()).rows_of(ids_of(TEXTS)),
    ):
        with pytest.raises(FormatError, match=r"m: item_id_offsets do not ascend within 0 … .* damaged"):
            use()


@pytest.mark.parametrize("row", [-1, 6, 2**40, -(2**40)])
@pytest.mark.parametrize("values", [INTEGERS, TEXTS[:6]], ids=["int64", "string"])
def test_a_damaged_order_is_not_followed(values, row):
    ids = ItemIds.of(ids_of(values))
    with pytest.raises(FormatError, match=r"expected rows in 0 … 5, .*damaged"):
        ids.take(np.array([0, row]))
    damaged = ItemIds(ids.ids, np.full_like(ids.order, row), ids.rank)
    with pytest.raises(FormatError, match=r"expected rows in 0 … 5, .*damaged"):
        damaged.rows_of(ids_of(values))
