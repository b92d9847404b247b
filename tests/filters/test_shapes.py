"""Texts of one shape, written together, are the same filters as texts planned one by one."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from stcli.errors import FilterError
from stcli.filters import shapes
from stcli.filters.layout import paper_layout
from stcli.filters.parse import parse
from stcli.filters.program import Planner
from stcli.filters.shapes import Shapes
from stcli.filters.template import Template
from stcli.filters.tree import Node, to_text
from tests.filters.indexed import index_table, random_sizes
from tests.filters.random_tables import random_table, random_tree
from tests.filters.test_bind import Templater, everything
from tests.filters.tree_strategies import FIXED, TREES

ITEMS = pa.table({"price": [10, 20, 30, None], "tag": [["a", "it's"], ["b"], [], None], "2fa": ["x", "y", "x", "x"]})


def values_of(found: shapes.Values, kinds: list) -> dict[str, object]:
    """Placeholder -> value, straight from the words of the text."""
    read = (lambda token: token[1:-1].replace("''", "'"), int, float)
    return {f"v{place}": read[kind](found[kind][place]) for place, kind in enumerate(kinds) if kind is not None}


@settings(FIXED, max_examples=400)
@given(TREES)
def test_a_shape_with_its_values_is_the_text(tree: Node) -> None:
    text = to_text(tree)
    cut = shapes._cut(text)
    if cut is None:
        assert len(text) > shapes.MAX_LETTERS or len(shapes._VALUE.findall(text)) > shapes.MAX_VALUES
        return
    shape, found = cut
    try:
        template = Template(shape.template)
    except FilterError:
        assert "DATE '" in text or "TIMESTAMP '" in text  # a typed string is no single value
        return
    assert template.bind(values_of(found, shape.kinds)) == tree == parse(text)


@pytest.mark.parametrize(
    ("text", "template"),
    [
        ("price<-5", "price< $v0 "),
        ("price >=+5. AND tag='it''s'", "price >= $v0  AND tag= $v1 "),
        ("2fa = '2'AND x-1 = .5e3", "2fa =  $v0 AND x-1 =  $v1 "),
        ("\"it's 5\" IN (1,2 , '3')", '"it\'s 5" IN ( $v0 , $v1  ,  $v2 )'),
        ("new AND NOT TRUE", "new AND NOT TRUE"),
        ("5 5", " $v0   $v1 "),
    ],
)
def test_where_texts_are_cut(text, template):
    assert shapes._cut(text)[0].template == template


@pytest.mark.parametrize("text", ["price = 5 % x", "price = 'x", "%" * 4096, "'" + "a1.5" * 1000, "$x = 5", 'a = "b'])
def test_what_is_not_made_of_tokens_is_left_to_the_parser(text):
    assert shapes._cut(text) is None


def planned_alone(monkeypatch, planner: Planner, texts: list) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "LEAST_TEXTS", 10**9)
        return Planner(planner.vocabulary, planner.layout).batch(texts)


@pytest.mark.parametrize("seed", range(40))
def test_random_texts(seed, monkeypatch):
    rng = random.Random(seed)
    table = random_table(rng, rng.choice([1, 30, 65]))
    indexed = index_table(table, random_sizes(rng))
    texts: list[str | None] = [None, "", "  "]
    for _ in range(4):
        maker = Templater(rng, table, 12)
        template = Template(to_text(maker.replaced(random_tree(rng, table))))
        columns = {name: column.to_pylist() for name, column in maker.columns.items()}
        bound = [template.bind({name: column[query] for name, column in columns.items()}) for query in range(12)]
        texts += [None if tree is None else to_text(tree) for tree in bound]
    rng.shuffle(texts)
    monkeypatch.setattr(shapes, "LEAST_TEXTS", 2)
    alone = planned_alone(monkeypatch, indexed.planner, texts)
    for _ in range(2):  # the second time from what is kept
        batch = indexed.planner.batch(texts)
        for ours, theirs in zip(everything(indexed, batch), everything(indexed, alone), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert batch.filter_of_query.tolist() == alone.filter_of_query.tolist()
        assert batch.unknown_values == alone.unknown_values == indexed.planner.unknown_values(texts)


def together(monkeypatch, planner: Planner, texts: list[str]) -> set[str]:
    monkeypatch.setattr(shapes, "LEAST_TEXTS", 3)
    return {text for text, _ in Shapes(planner.vocabulary, planner.layout).codes(texts)}


def test_only_frequent_shapes_that_can_be_used_are_written_together(monkeypatch):
    planner = index_table(ITEMS).planner
    usable = ["price = 1", "price = 2", "price = 3", "price  = 4"]
    assert together(monkeypatch, planner, usable) == set(usable[:3])
    too_large = "price = {}99999999999999999999"
    for bad in ("prize = {}", "price = '{}'", "tag = {}", "price = {} AND", "price = DATE '{}'", too_large):
        assert together(monkeypatch, planner, [bad.format(number) for number in range(1, 5)]) == set()
    assert together(monkeypatch, planner, ["price = 1e99", "price = 1e999", "price = 5e9", "price = 1e0"]) == {
        "price = 1e99", "price = 5e9", "price = 1e0",
    }  # fmt: skip
    assert together(monkeypatch, planner, ["price = '\ud800'"] * 3) == set()


def test_errors_are_those_of_the_text(monkeypatch):
    planner = index_table(ITEMS).planner
    monkeypatch.setattr(shapes, "LEAST_TEXTS", 2)
    texts = ["price = 1", "price = 2", "price = 1e9", "price = 1e999", "price = '1'", "price = '2'"]
    failed = planner.check(texts)
    assert failed.keys() == {3, 4, 5}
    for query, error in failed.items():
        with pytest.raises(FilterError) as caught:
            Planner(planner.vocabulary, planner.layout).plan(texts[query])
        assert str(error) == str(caught.value)
    assert planner.batch(texts[:3]).num_filters == 3


def test_the_form_of_the_paper(monkeypatch):
    indexed = index_table(ITEMS)
    planner = Planner(indexed.vocabulary, paper_layout(indexed.vocabulary, 512, 2))
    monkeypatch.setattr(shapes, "LEAST_TEXTS", 2)
    assert not planner.batch([f"price = {number}" for number in range(5)]).program.exact.any()
