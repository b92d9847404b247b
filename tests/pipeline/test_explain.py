"""`explain --filter`: counts against Python over the item rows, and what is told about values that no item has."""

from __future__ import annotations

import datetime

import pytest

import stcli
from stcli.errors import FilterError, InputError

RED_AND_CHEAP = "color = 'red' AND price < 40"


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        (RED_AND_CHEAP, lambda item: item["color"] == "red" and item["price"] < 40),
        ("NOT tags = 't02'", lambda item: "t02" not in item["tags"]),
        ("tags = 't57' OR in_stock", lambda item: "t57" in item["tags"] or item["in_stock"]),
        ("color IS NULL", lambda item: item["color"] is None),
        ("day > '2024-03-01'", lambda item: item["day"] > datetime.date(2024, 3, 1)),
        ("color = 'no such colour'", lambda item: False),
    ],
)
def test_counts_are_those_of_the_items(tiny, text, holds):
    told = stcli.explain(tiny.model, text)
    eligible = sum(map(holds, tiny.item_rows))
    admitted = told["items"]["admitted"]
    assert told["items"] == {"all": len(tiny.item_rows), "admitted": admitted, "eligible": eligible, "lost": 0}
    assert admitted == eligible if told["exact"] else admitted >= eligible
    assert told["false_positives"] == (admitted - eligible) / (len(tiny.item_rows) - eligible)
    exact, checked = "not needed, the plan is exact", "candidates are checked by their exact terms"
    assert told["verification"] == (exact if told["exact"] else checked)


def test_not_in_the_papers_form_loses_items_and_is_not_verified(tiny, tmp_path):
    stcli.build_index(tiny.items, tmp_path / "index", preset="silvertorch", bloom_bits=512, bloom_hashes=1)
    stcli.pack_model(tmp_path / "index", tmp_path / "model.safetensors")
    terms = stcli.explain(tmp_path / "model.safetensors", "tags = 't02'")
    told = stcli.explain(tmp_path / "model.safetensors", "NOT tags = 't02'")
    falsely = terms["items"]["admitted"] - terms["items"]["eligible"]
    assert falsely == told["items"]["lost"] > 0
    assert (terms["false_positives"] > 0, told["false_positives"]) == (True, 0)
    assert (told["exact"], told["verification"]) == (False, "none, as in the paper's form")


def test_the_plan_names_features_and_values(tiny):
    told = stcli.explain(tiny.model, RED_AND_CHEAP)
    assert told["filter"] == RED_AND_CHEAP
    for part in ("row[color = 'red']", " AND ", "slices[price < "):
        assert part in told["plan"]
    assert told["rows_read"] > 2


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("color = 'rde'", {"color = 'rde'": "nearest 'red'"}),
        ("color IN ('red', 'greeen')", {"color = 'greeen'": "nearest 'green'"}),
        ("tags = 'unlike any'", {"tags = 'unlike any'": "nothing near"}),
        ("year = 1066", {"year = 1066": "nearest 2000"}),
        ("year = 2003.5", {"year = 2003.5": "nearest 2003 and 2004"}),
        ("day = '2031-01-01'", {"day = '2031-01-01'": "nearest '2024-03-30'"}),
        ("year < 1066 AND color = 'red'", {}),
    ],
)
def test_values_that_no_item_has_are_told_with_the_nearest(tiny, text, unknown):
    assert stcli.explain(tiny.model, text)["unknown_values"] == unknown


def test_nothing_to_explain(tiny):
    with pytest.raises(InputError, match="--filter: is empty"):
        stcli.explain(tiny.model, "  ")
    with pytest.raises(FilterError, match="did you mean 'color'"):
        stcli.explain(tiny.model, "colour = 'red'")
