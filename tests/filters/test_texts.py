"""Texts read in C++ are the same filters as texts planned in Python, and what Python refuses is never read."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import FilterError
from stcli.filters.layout import paper_layout
from stcli.filters.pieces import Pieces
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.texts import TextReader
from stcli.filters.tree import MAX_DEPTH, to_text
from stcli.filters.vocabulary import Strings
from stcli.ops import native
from tests.filters.indexed import Indexed, index_table, random_sizes
from tests.filters.random_tables import random_table, random_tree
from tests.filters.test_bind import everything

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.why_missing())

ITEMS = pa.table(
    {
        "price": [10, 20, 30, None],
        "tag": [["a", "it's"], ["b"], [], None],
        "2fa": ["x", "y", "x", "x"],
        "weight": [0.5, -1e300, 3.0, None],
        "new": [True, False, None, True],
        "Not A Name": ["ä", "日本", "", None],
        "day": pa.array([0, 19_000, -719_162, 2_932_896], pa.date32()),
        "seen": pa.array([0, 1_700_000_000_000_000, -1, None], pa.timestamp("us")),
    }
)


def read(planner: Planner, texts: Sequence[str]) -> set[str]:
    return {text for text, _ in TextReader(planner.vocabulary, planner.layout).codes(texts)}


def alone(planner: Planner, texts: Sequence[str]) -> FilterBatch:
    """Each text planned by itself, in Python."""
    plans = [planner.plan(text) for text in texts]
    assert None not in plans
    unknown = sum(plan.unknown_values for plan in plans)
    return FilterBatch.of(np.arange(len(texts)), Pieces.of_codes([plan.code() for plan in plans]), unknown)


def check_equal(indexed: Indexed, texts: Sequence[str]) -> None:
    ours, theirs = indexed.planner.batch(texts), alone(indexed.planner, texts)
    for mine, other in zip(everything(indexed, ours), everything(indexed, theirs), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert ours.unknown_values == theirs.unknown_values
    # Where Python proves it and we do not, a part stands there twice: `x AND x`.
    assert (indexed.exact(ours) <= indexed.exact(theirs)).all()


@pytest.mark.parametrize("seed", range(60))
def test_random_texts(seed):
    rng = random.Random(seed)
    table = random_table(rng, rng.choice([1, 30, 65]))
    indexed = index_table(table, random_sizes(rng))
    texts = list(dict.fromkeys(to_text(random_tree(rng, table, rng.randint(1, 4))) for _ in range(60)))
    check_equal(indexed, texts)
    assert len(read(indexed.planner, texts)) > 0.3 * len(texts)  # integers beyond 2^53 against floats are left out


WORDS = ["AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL", "TRUE", "DATE", "price"]
PIECES = ["", *"()=<>!,.'\"+-$ \n\x1c5xé%", "''", "1e999", *WORDS, *(f" {word} " for word in WORDS)]


def broken(rng: random.Random, text: str) -> str:
    """A text with one or two places cut out or overwritten."""
    for _ in range(rng.randint(1, 2)):
        start = rng.randint(0, len(text))
        text = text[:start] + rng.choice(PIECES) + text[start + rng.randint(0, 6) :]
    return text


@pytest.mark.parametrize("seed", range(20))
def test_broken_texts_are_refused_as_in_python(seed):
    rng = random.Random(seed)
    indexed = index_table(ITEMS)
    planner = indexed.planner
    table = random_table(rng, 10)
    plain = [to_text(random_tree(rng, table, 2)) for _ in range(50)] + PLAIN * 8
    texts = list(dict.fromkeys(broken(rng, text) for text in plain))
    errors, usable = {}, []
    for query, text in enumerate(texts):
        try:
            usable += [text] if planner.plan(text) is not None else []
        except FilterError as error:
            errors[query] = str(error)
    assert errors
    assert usable
    ours = planner.check(texts)
    assert {query: str(error) for query, error in ours.items()} == errors
    check_equal(indexed, usable)


PLAIN = [
    "price<-5",
    "price >=+5. AND tag='it''s'",
    "2fa = 'x' OR NOT (tag IN ('a', 'b', 'q') AND price NOT BETWEEN 15 AND 2.5e1)",
    "new AND NOT TRUE OR new = FALSE\n\tOR false",
    "\"Not A Name\" in ('ä', '日本', '') and not \"Not A Name\" is not null",
    "weight <= .5 and weight != -1e300 or weight > 3 AND weight = 3",
    "price IS NULL or tag is null",
    "price = 10.0 or price = 10.5 or price < 10.5 or price > 9223372036854775807",
    "day = '1970-01-01' or day between DATE '0001-01-01' and '9999-12-31' or day < date '2022-01-09'",
    "seen = '1970-01-01' or seen >= TIMESTAMP '2023-11-14 22:13:20' or seen < '2023-11-14T22:13:20.5'",
    "seen <> DATE '1970-01-01' AND NOT NOT seen != '1969-12-31 23:59:59'",
    "price IN ()",
    "tag = 'unknown' OR price = 10",
    "(" * MAX_DEPTH + "new" + ")" * MAX_DEPTH,
]


def test_plain_texts_are_read():
    indexed = index_table(ITEMS)
    assert read(indexed.planner, PLAIN) == set(PLAIN)
    check_equal(indexed, PLAIN)


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "price = $x", "é = 5", "price = 5 % 2", "price = 'x", "tag = 5", "prize = 5"),
        *("price", "price == 5", "price = 99999999999999999999", "price = 1e999", "price = TRUE", "new = 'true'"),
        *("weight = 9007199254740993", "seen = '2023-11-14 22:13:20.'", "seen = '2023-11-14 22:13:20+01:00'"),
        *("day = '2023-02-29'", "not in (5)"),
        *("true = 5", "price 5", "price = 5 5", "price = 5)", "(price = 5", "price IN (5", "price NOT 5"),
        *("tag = '\ud800'", "(" * (MAX_DEPTH + 1) + "new" + ")" * (MAX_DEPTH + 1), "new" + " " * 70_000),
        *("price IN (" + "5, " * 20_001 + "5)", "price = .", "price = 5x", "price = 5.x", "price = 5.-x", "price = -"),
    ],
)  # fmt: skip
def test_what_is_left_to_python(text):
    assert read(index_table(ITEMS).planner, [text]) == set()


def test_calendar():
    """Every day that exists is found where Python's calendar has it, and no other."""
    rng = np.random.default_rng(0)
    days = np.unique(np.concatenate([rng.integers(-719_162, 2_932_897, 400), np.arange(-800, 800, 3)]))
    indexed = index_table(pa.table({"day": pa.array(days.astype(np.int32), pa.date32())}))
    texts = [f"day = '{day}'" for day in np.array(days, "datetime64[D]").astype(str)]
    assert read(indexed.planner, texts) == set(texts)
    np.testing.assert_array_equal(indexed.verified(indexed.batch(texts)), np.eye(len(days), dtype=bool))
    wrong = [
        f"day = '{year}-{end}'" for year in (1900, 2000, 2023) for end in ("02-30", "04-31", "13-01", "00-10", "01-00")
    ]
    assert read(indexed.planner, [*wrong, "day = '1900-02-29'", "day = '0000-01-01'"]) == set()


def test_a_copy_has_its_own_values():
    planner = pickle.loads(pickle.dumps(index_table(ITEMS).planner))
    assert read(planner, PLAIN) == set(PLAIN)
    assert planner.batch(PLAIN).num_filters == len(PLAIN)
    table = copy.deepcopy(planner)._reader._table
    assert (table[:, 8] != planner._reader._table[:, 8]).all()


def test_the_form_of_the_paper():
    indexed = index_table(ITEMS)
    layout = paper_layout(indexed.vocabulary, 512, 2)
    planner = Planner(indexed.vocabulary, layout)
    texts = [f"NOT price = {number}" for number in (10, 20)] + ["tag = 'a' AND NOT tag IN ('b')", "price IS NULL"]
    assert read(planner, texts) == set(texts)
    ours, theirs = planner.batch(texts), alone(planner, texts)
    assert not ours.program.exact.any()
    assert ours.program.ops.tolist() == theirs.program.ops.tolist()
    assert ours.program.leaves.tolist() == theirs.program.leaves.tolist()
    many = Planner(*_many_values())
    assert read(many, ["n < 200", "n < 300"]) == {"n < 200"}  # more values than the paper's form can spell out


def _many_values():
    vocabulary = index_table(pa.table({"n": range(400)})).vocabulary
    return vocabulary, paper_layout(vocabulary, 512, 2)


@pytest.mark.parametrize("ends", [(0, 2**40, 2, 3), (0, -(2**40), 2, 3), (0, 3, 2, 3)], ids=str)
def test_a_damaged_vocabulary_is_not_followed(ends):
    """Values that do not lie within the bytes are empty ones, so that only they are lost."""
    planner = index_table(pa.table({"tag": ["a", "b", "c"]})).planner
    (feature,) = planner.vocabulary.features
    damaged = replace(feature, values=Strings(feature.values.data, np.array(ends)))
    reader = TextReader(replace(planner.vocabulary, features=(damaged,)), planner.layout)
    unknown = {text: code.unknown_values for text, code in reader.codes(["tag = 'b'", "tag = 'c'"])}
    assert unknown == {"tag = 'b'": 1, "tag = 'c'": 0}
