"""A template bound for a whole batch means what `Template.bind` says of each query."""

from __future__ import annotations

import dataclasses
import datetime
import math
import random

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import FilterError, InputError
from stcli.filters.bind import TemplatePlan
from stcli.filters.bounds import MAX_BLOOM_TERMS
from stcli.filters.layout import paper_layout
from stcli.filters.lexicon import Placeholder
from stcli.filters.literals import find_ranks, read_literals
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.source import BoundFilters
from stcli.filters.template import Template
from stcli.filters.tree import MAX_TERMS, And, Between, Compare, In, Node, Not, Or, to_text
from stcli.ops import native
from stcli.ops.build_bit_matrix import build_bit_matrix
from tests.filters.indexed import Indexed, Sizes, index_table, random_sizes
from tests.filters.random_tables import random_table, random_tree
from tests.filters.tree_strategies import FIXED, KINDS

UTC = datetime.UTC

COLUMN_TYPES = {
    "string": [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    "integer": [pa.int64(), pa.int8(), pa.uint64(), pa.float64(), pa.float32()],
    "float": [pa.float64(), pa.float32(), pa.int64(), pa.uint64(), pa.float16()],
    "boolean": [pa.bool_()],
    "date": [pa.date32(), pa.date64(), pa.string()],
    "timestamp": [pa.timestamp("us"), pa.timestamp("s", "UTC"), pa.timestamp("ms", "Asia/Tokyo"), pa.date32(),
                  pa.string()],
}  # fmt: skip
"""Types of query columns that fit a feature of some kind."""


def column_of(rng: random.Random, kind: str, table: pa.Table, feature: str, many: bool, num_queries: int) -> pa.Array:
    """A query column for a feature: values of its items, the edges of its kind, and others; nulls."""
    dtype = rng.choice(COLUMN_TYPES[kind])
    cells = [value for cell in table[feature].to_pylist() for value in (cell if isinstance(cell, list) else [cell])]
    pool = [value for value in (fitted(value, dtype) for value in [*cells, *KINDS[kind][2]]) if value is not None]
    pool = rng.sample(pool, min(len(pool), rng.choice([1, 5, 100]))) or [None]
    nulls = rng.choice([0, 0.1, 0.5, 1])

    def value() -> object:
        return None if rng.random() < nulls else rng.choice(pool)

    if not many or rng.random() < 0.2:
        return pa.array([value() for _ in range(num_queries)], dtype)
    longest = rng.choice([1, 3, 12])
    lists = [None if rng.random() < nulls / 2 else [value() for _ in range(rng.randint(0, longest))]
             for _ in range(num_queries)]  # fmt: skip
    array = pa.array(lists, pa.large_list(dtype) if rng.random() < 0.3 else pa.list_(dtype))
    return pa.concat_arrays([array.slice(1), array.slice(0, 1)]).slice(0) if num_queries else array


def fitted(value: object, dtype: pa.DataType) -> object:
    """A value as it can stand in a column of some type, or None."""
    if pa.types.is_string(dtype) and isinstance(value, datetime.date):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    if pa.types.is_dictionary(dtype) or value is None or (isinstance(value, float) and not math.isfinite(value)):
        return value if isinstance(value, str) else None
    try:
        made = pa.array([value]).cast(dtype) if not isinstance(value, str) else pa.array([value], dtype)
        as_python = made[0].as_py()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, ValueError):
        return None
    return as_python if not isinstance(as_python, float) or math.isfinite(as_python) else None


class Templater:
    """Puts placeholders in the place of some literals of a tree, each with a column of its own or one used before."""

    def __init__(self, rng: random.Random, table: pa.Table, num_queries: int) -> None:
        self.rng, self.table, self.num_queries = rng, table, num_queries
        self.columns: dict[str, pa.Array] = {}
        self._of_feature: dict[tuple[str, bool], list[str]] = {}

    def replaced(self, node: Node) -> Node:
        rng = self.rng
        if isinstance(node, And | Or):
            return type(node)(tuple(self.replaced(child) for child in node.children))
        if isinstance(node, Not):
            return Not(self.replaced(node.child))
        if rng.random() < 0.2:
            return node
        if isinstance(node, Compare):
            return Compare(node.feature, node.op, self.placeholder(node.feature))
        if isinstance(node, Between):
            low, high = (self.placeholder(node.feature) if rng.random() < 0.6 else end for end in (node.low, node.high))
            return Between(node.feature, low, high)
        if isinstance(node, In):
            if rng.random() < 0.7:
                return In(node.feature, (self.placeholder(node.feature, many=True),))
            return In(node.feature, tuple(self.placeholder(node.feature) if rng.random() < 0.5 else value
                                          for value in node.values))  # fmt: skip
        return node

    def placeholder(self, feature: str, many: bool = False) -> Placeholder:
        known = self._of_feature.setdefault((feature, many), [])
        if not known or self.rng.random() < 0.7:
            name = f"p {len(self.columns)}"
            kind = feature.removesuffix("s")
            self.columns[name] = column_of(self.rng, kind, self.table, feature, many, self.num_queries)
            known.append(name)
        return Placeholder(self.rng.choice(known), many)


def one_by_one(
    planner: Planner, template: Template, columns: dict, texts: list | None, count: int
) -> list[Node | None]:
    """The definition: each query's values put into the tree."""
    rows = [{name: column[query].as_py() for name, column in columns.items()} for query in range(count)]
    trees = [template.bind(row) for row in rows]
    if texts is None:
        return trees
    plans = [planner.plan(text) for text in texts]
    parsed = [None if plan is None else Template(text).tree for plan, text in zip(plans, texts, strict=True)]
    return [text if tree is None else tree if text is None else And((tree, text))
            for tree, text in zip(trees, parsed, strict=True)]  # fmt: skip


def everything(indexed: Indexed, batch: FilterBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per query: admitted and verified items, and whether a filter is there at all."""
    filtered = batch.filter_of_query.numpy() >= 0
    admitted = np.ones((len(filtered), indexed.num_items), bool)
    verified = admitted.copy()
    if batch.program is not None:
        exact = indexed.exact(batch)[filtered]
        admitted[filtered], verified[filtered] = indexed.admitted(batch)[filtered], indexed.verified(batch)[filtered]
        assert (admitted[filtered] >= verified[filtered])[~exact].all()
        assert (admitted[filtered] == verified[filtered])[exact].all()
    else:
        assert batch.terms is None
        assert batch.num_filters == 0
        assert not filtered.any()
    return admitted, verified, filtered


def check_same(ours: FilterBatch, theirs: FilterBatch) -> None:
    """All tensors are equal."""
    assert (ours.num_filters, ours.unknown_values) == (theirs.num_filters, theirs.unknown_values)
    assert ours.filter_of_query.equal(theirs.filter_of_query)
    for mine, other in ((ours.program, theirs.program), (ours.terms, theirs.terms)):
        assert (mine is None) == (other is None)
        for field in dataclasses.fields(mine) if mine is not None else ():
            left, right = getattr(mine, field.name), getattr(other, field.name)
            assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, field.name
            assert not isinstance(left, torch.Tensor) or left.dtype == right.dtype


def check_bound(indexed: Indexed, template: Template, columns: dict, texts: list | None, count: int) -> FilterBatch:
    expected = indexed.planner.batch(one_by_one(indexed.planner, template, columns, texts, count))
    plan = TemplatePlan(template, indexed.planner)
    assert plan.check(plan.read(columns, texts)) == {}
    bound = plan.batch(plan.read(columns, texts))
    with pytest.MonkeyPatch.context() as patch:  # in C++ where the library was built, and in Python, the same
        patch.setattr(native, "library", lambda: None)
        check_same(bound, plan.batch(plan.read(columns, texts)))
    for ours, theirs in zip(everything(indexed, bound), everything(indexed, expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert bound.unknown_values == expected.unknown_values
    if bound.program is not None:
        used = bound.filter_of_query.unique()
        assert used[used >= 0].tolist() == list(range(bound.num_filters))
        assert len(bound.program.leaves.unique(dim=0)) == len(bound.program.leaves)
    return bound


@pytest.mark.parametrize("seed", range(150))
def test_random_templates(seed):
    rng = random.Random(seed)
    table = random_table(rng, rng.choice([1, 30, 65]))
    indexed = index_table(table, random_sizes(rng))
    for _ in range(4):
        num_queries = rng.choice([1, 7, 40])
        maker = Templater(rng, table, num_queries)
        tree = maker.replaced(random_tree(rng, table))
        columns = {**maker.columns, "query id": pa.array(range(num_queries))}
        texts = None
        if rng.random() < 0.5:
            pool = [None, "", *(to_text(random_tree(rng, table, 1)) for _ in range(3))]
            texts = [rng.choice(pool) for _ in range(num_queries)]
        check_bound(indexed, Template(to_text(tree)), columns, texts, num_queries)


ITEMS = pa.table(
    {
        "lang": ["de", "en", "fr", None, "en"],
        "price": [10, 20, 30, 40, None],
        "tag": [["a", "b"], ["b"], [], None, ["c"]],
        "sizes": [[1, 9], [5], [3, 4], None, [2]],
        "day": pa.array([datetime.date(2024, 1, day) for day in range(1, 6)]),
    }
)
TEXT = "lang IN $langs AND price <= $budget AND NOT tag IN $blocked"


def test_by_hand():
    indexed = index_table(ITEMS)
    columns = {
        "langs": pa.array([["de", "en"], ["en", None, "de", "de"], None, [], ["xx"]]),
        "budget": pa.array([20.0, 20.0, 35.0, 99.0, None]),
        "blocked": pa.array([["a"], ["a"], None, ["a"], None]),
    }
    plan = TemplatePlan(Template(TEXT), indexed.planner)
    batch = plan.batch(plan.read(columns))
    assert batch.filter_of_query.tolist() == [0, 0, 1, 2, 3]  # the first two ask for the same
    assert indexed.verified(batch).astype(int).tolist() == [
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert batch.unknown_values == 1


def test_without_values_or_placeholders():
    indexed = index_table(ITEMS)
    empty = pa.nulls(3)
    for template, columns, texts, filters in (
        (TEXT, {"langs": empty, "budget": empty, "blocked": empty}, None, [-1, -1, -1]),
        (TEXT, {"langs": empty, "budget": empty, "blocked": empty}, [None, "lang = 'de'", ""], [-1, 0, -1]),
        ("", {"id": empty}, None, [-1, -1, -1]),
        ("", {}, ["price < 5", None, "price < 5"], [0, -1, 0]),
        ("lang = 'de'", {"id": empty}, None, [0, 0, 0]),
        ("lang = 'de'", {"id": empty}, [None, "price < 5", None], [0, 1, 0]),
        ("NOT lang IN $x", {"x": pa.array([[None]] * 3, pa.list_(pa.null()))}, None, [0, 0, 0]),
    ):
        batch = check_bound(indexed, Template(template), columns, texts, 3)
        assert batch.filter_of_query.tolist() == filters
    none = {"langs": pa.array([], pa.string()), "budget": pa.array([], pa.int8()), "blocked": pa.array([], pa.string())}
    plan = TemplatePlan(Template(TEXT), indexed.planner)
    assert plan.batch(plan.read(none)).filter_of_query.tolist() == []


def test_chunked_sliced_and_fixed_size_columns():
    indexed = index_table(ITEMS)
    langs = pa.array([["xx", "yy"], ["de", "en"], None, ["fr", None], ["en", "en"]], pa.list_(pa.string(), 2))
    columns = {"langs": langs.slice(1), "budget": pa.chunked_array([[25], [35, None], [5]]), "blocked": pa.nulls(4)}
    check_bound(indexed, Template(TEXT), columns, None, 4)


def test_a_null_in_the_dictionary_of_a_column():
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), pa.array(["de", None, "en"]))
    columns = {"langs": coded, "budget": pa.nulls(4), "blocked": pa.ListArray.from_arrays([0, 2, 2, 3, 4], coded)}
    plan = TemplatePlan(Template(TEXT), index_table(ITEMS).planner)
    decoded = {**columns, "langs": coded.dictionary_decode(), "blocked": pa.array([["de"], [], [None], ["en"]])}
    for encoded in (columns, decoded):
        assert plan.batch(plan.read(encoded)).filter_of_query.tolist() == [0, 1, 1, 2]


def test_lists_beyond_the_bloom_terms_that_are_spelled_out():
    rng = random.Random(2)
    numbers = 3 * MAX_BLOOM_TERMS
    lists = [["often", *rng.sample([f"t{n}" for n in range(numbers)], 4)] for _ in range(500)] + [None]
    table = pa.table({"tag": lists, "size": [[len(str(tags)), 7 * n] for n, tags in enumerate(lists)]})
    long = [[f"t{n}" for n in range(0, numbers, 1 + step)] + ["often"] * (step % 2) for step in range(4)]
    for sizes in (Sizes(own_rows=1), Sizes(own_rows=0)):
        indexed = index_table(table, sizes)
        for text in ("tag IN $x", "NOT tag IN $x", "tag >= $low", "NOT tag < $low", "size IN $y", "NOT size IN $y"):
            columns = {
                "x": pa.array(long),
                "y": pa.array([[7 * n for n in range(0, 400, 1 + step)] for step in range(4)]),
                "low": pa.array(["a", "t5", "t9", "z"]),
            }
            check_bound(indexed, Template(text), columns, None, 4)


def test_the_form_of_the_paper():
    indexed = index_table(ITEMS)
    layout = paper_layout(indexed.vocabulary, 512, 2)
    matrix, planner = build_bit_matrix(indexed.terms, layout.plan), Planner(indexed.vocabulary, layout)
    paper = Indexed(indexed.vocabulary, layout, indexed.terms, matrix, planner)
    blocked = pa.array([["a", "q"], ["c"]])
    columns = {"langs": pa.array([["de", "en"], None]), "budget": pa.array([20, 35]), "blocked": blocked}
    for text in (TEXT, f"NOT ({TEXT})"):
        assert not check_bound(paper, Template(text), columns, None, 2).program.exact.any()


def test_what_the_form_of_the_paper_cannot_express():
    vocabulary = index_table(pa.table({"x": [[number] for number in range(MAX_BLOOM_TERMS + 2)]})).vocabulary
    plan = TemplatePlan(Template("NOT x >= $low"), Planner(vocabulary, paper_layout(vocabulary, 512, 2)))
    assert plan.batch(plan.read({"low": pa.array([2, 3])})).num_filters == 2
    with pytest.raises(InputError, match=f"'x' covers more than {MAX_BLOOM_TERMS} values"):
        plan.batch(plan.read({"low": pa.array([2, 1])}))


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("price <= $budgte", {"budget": pa.array([1])}, r"\$budgte: no column 'budgte' to bind; did you mean 'budget'"),
        ("price <= $x", {"x": pa.array(["5"])}, r"\$x: column 'x' is string.*feature 'price', which is integer.*float"),
        ("price <= $x", {"x": pa.array([True])}, "column 'x' is boolean"),
        ("lang = $x", {"x": pa.array([1])}, "column 'x' is integer.*feature 'lang', which is string"),
        ("day = $x", {"x": pa.array([0], pa.timestamp("us"))}, "column 'x' is timestamp.*'day', which is date"),
        ("price <= $x", {"x": pa.array([[1]])}, r"holds lists.*write: price IN \$x"),
        ("price IN (1, $x)", {"x": pa.array([[1]])}, "holds lists"),
        ("price <= $x", {"x": pa.array([b"5"])}, "column 'x' is binary"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit(text, columns, words):
    plan = TemplatePlan(Template(text), index_table(ITEMS).planner)
    with pytest.raises(InputError, match=words):
        plan.batch(plan.read(columns))
    with pytest.raises(InputError, match=words):
        plan.check(plan.read({name: column.slice(0, 0) for name, column in columns.items()}))


@pytest.mark.parametrize(
    ("text", "words", "position"),
    [
        ("lang = 'de' AND prize <= $x", "no feature 'prize' in the index; did you mean 'price'", 16),
        ("price IN ('5', $x)", "'price' is integer, so '5' cannot", 0),
        ("lang = 'de' OR price = 'x'", "'price' is integer", 15),
    ],
)
def test_templates_that_do_not_fit_the_index(text, words, position):
    with pytest.raises(FilterError, match=words) as caught:
        TemplatePlan(Template(text), index_table(ITEMS).planner)
    assert (caught.value.text, caught.value.position) == (text, position)


def test_values_that_cannot_be_compared_are_told_by_query():
    plan = TemplatePlan(Template("price IN $x AND NOT day = $y"), index_table(ITEMS).planner)
    columns = {
        "x": pa.array([[1.5], [1.0, math.nan], None, [math.inf], [2.0]]),
        "y": pa.array(["2024-02-30", "2024-02-28", "2024-02-28", None, "2024-02-28"]),
    }
    texts = [None, None, "price >", "price > 2", "price > 2"]
    failed = plan.check(plan.read(columns, texts))
    assert sorted(failed) == [0, 1, 2, 3]
    assert "$y: feature 'day' is date, so '2024-02-30' cannot be compared with it; write 'YYYY-MM-DD'" in str(failed[0])
    assert "$x: feature 'price': nan is not a value to compare with" in str(failed[1])
    assert "found the end of the text" in str(failed[2])
    assert failed[0].text[failed[0].position :].startswith("$y")
    with pytest.raises(FilterError, match="2024-02-30"):
        plan.batch(plan.read(columns, texts))
    usable = {name: column.slice(4) for name, column in columns.items()}
    assert plan.batch(plan.read(usable, texts[4:])).num_filters == 1


def test_a_null_elsewhere_in_the_clause_saves_a_value_that_cannot_be_compared():
    plan = TemplatePlan(Template("price BETWEEN $x AND $y"), index_table(ITEMS).planner)
    assert plan.check(plan.read({"x": pa.array([None, 1.0]), "y": pa.array([math.nan, math.nan])})).keys() == {1}


def test_the_limit_on_values_holds_for_each_query():
    plan = TemplatePlan(
        Template("price IN $x OR price IN (1, $y, 3) OR lang IN ('de', 'en')"), index_table(ITEMS).planner
    )
    x = pa.array([[*range(MAX_TERMS - 5)], [*range(MAX_TERMS - 4)], [*range(MAX_TERMS - 3)], [None] * MAX_TERMS])
    assert plan.check(plan.read({"x": x, "y": pa.array([1, 1, None, 1])})).keys() == {1}
    with pytest.raises(FilterError, match="more than 20,000 values"):
        plan.batch(plan.read({"x": x, "y": pa.array([1, 1, None, 1])}))


def test_unknown_values_of_the_template_itself_count_for_each_query():
    text = "lang IN ('de', 'xx', $x) AND NOT (tag = 'yy' OR price IN (7, 10)) AND lang = $x AND tag > 'zz'"
    planner = index_table(ITEMS).planner
    plan = TemplatePlan(Template(text), planner)
    filters = BoundFilters(plan, {"x": pa.array(["de", "en", "?"])}, [None, "tag = 'zz'", None])
    assert filters.unknown_values() == 3 * 3 + 1  # 'xx', 'yy' and 7; what is bound is not counted
    assert filters.first_unknown() in {("lang", "xx"), ("tag", "yy"), ("price", 7)}
    known = BoundFilters(TemplatePlan(Template("lang IN ('de', $x)"), planner), filters.columns, filters.texts)
    assert known.first_unknown() == ("tag", "zz")  # of the text of a query
    knows_some = index_table(pa.concat_tables([ITEMS, ITEMS.set_column(2, "tag", pa.array([["yy"]] * 5))])).planner
    assert filters.unknown_values([knows_some]) == 3 * 2 + 1


def test_numbers_of_queries_that_differ():
    plan = TemplatePlan(Template("price = $x"), index_table(ITEMS).planner)
    with pytest.raises(InputError, match=r"\[1, 2\]"):
        plan.batch(plan.read({"x": pa.array([1])}, [None, None]))


EDGES = [0, 2**53, -(2**53), 2**62, 2**63, -(2**63), 2**64 - 4]
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.tuples(st.sampled_from(EDGES), st.integers(-3, 3)).map(sum),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2.0**53, 2.0**63, -(2.0**63), 2.0**64, 0.5, -0.5, 5e-324]),
)


def stored(values: list, dtype: pa.DataType) -> pa.Array:
    """The values that fit a type, as numbers of it."""
    if dtype == pa.float64():
        return pa.array([float(value) for value in values], dtype)
    low, high = (0, 2**64) if dtype == pa.uint64() else (-(2**63), 2**63)
    return pa.array([int(value) for value in values if low <= value < high and value == int(value)], dtype)


@settings(FIXED, max_examples=150)
@given(
    st.lists(NUMBERS, max_size=12),
    st.lists(NUMBERS, max_size=12),
    st.sampled_from([pa.int64(), pa.float64()]),
    st.sampled_from([pa.int64(), pa.uint64(), pa.float64()]),
)
def test_ranks_of_numbers_are_exact_across_types(values, literals, kept, given_type):
    column = stored(values, kept)
    feature = index_table(pa.table({"x": pa.concat_arrays([column, pa.nulls(1, kept)])})).vocabulary.by_name["x"]
    queries = stored(literals + values, given_type)
    ranks = find_ranks(read_literals(queries, "x"), feature)
    distinct = set(column.to_pylist())
    assert ranks.before.tolist() == [sum(value < x for value in distinct) for x in queries.to_pylist()]
    assert ranks.after.tolist() == [sum(value <= x for value in distinct) for x in queries.to_pylist()]
    spans = [feature.span(x) for x in queries.to_pylist()]
    assert spans == list(zip(ranks.before.tolist(), ranks.after.tolist(), strict=True))


def test_times_of_all_units():
    leap_day = datetime.datetime(2024, 2, 29)
    moments = [datetime.datetime(1969, 12, 31, 23, 59, 59), leap_day, leap_day + datetime.timedelta(hours=1)]
    feature = index_table(pa.table({"x": pa.array(moments, pa.timestamp("us"))})).vocabulary.by_name["x"]
    units = (pa.timestamp("s"), pa.timestamp("ms", "Europe/Berlin"), pa.timestamp("us", "UTC"), pa.timestamp("ns"))
    for dtype in units:
        ranks = find_ranks(read_literals(pa.array(moments).cast(pa.timestamp("us")).cast(dtype), "x"), feature)
        assert (ranks.before.tolist(), ranks.after.tolist()) == ([0, 1, 2], [1, 2, 3])
    days = pa.array([datetime.date(1, 1, 1), datetime.date(2024, 2, 29), datetime.date(9999, 12, 31)])
    ranks = find_ranks(read_literals(days, "x"), feature)
    assert (ranks.before.tolist(), ranks.after.tolist()) == ([0, 1, 3], [0, 2, 3])
