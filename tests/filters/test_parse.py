import random
import re
from datetime import date, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stcli.errors import FilterError
from stcli.filters.lexicon import feature_text, read_date, read_timestamp
from stcli.filters.parse import MAX_BYTES, parse
from stcli.filters.template import Template
from stcli.filters.tree import (
    MAX_DEPTH,
    MAX_TERMS,
    And,
    Between,
    Compare,
    Constant,
    Flag,
    In,
    IsNull,
    Node,
    Not,
    Or,
    to_text,
)
from tests.filters.tree_strategies import FIXED, PLAIN_NAMES, QUOTED_NAMES, RESERVED_NAMES, TREES

A, B, C = Compare("a", "=", 1), Compare("b", "=", 2), Compare("c", "=", 3)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        # each comparison
        ("a = 1", A),
        ("a < 1", Compare("a", "<", 1)),
        ("a <= 1", Compare("a", "<=", 1)),
        ("a > 1", Compare("a", ">", 1)),
        ("a>=1", Compare("a", ">=", 1)),
        ("a != 1", Not(A)),
        ("a <> 1", Not(A)),
        ("a IN (1, 'x')", In("a", (1, "x"))),
        ("a IN ()", In("a", ())),
        ("a NOT IN (1)", Not(In("a", (1,)))),
        ("a BETWEEN 1 AND 2", Between("a", 1, 2)),
        ("a NOT BETWEEN 1 AND 2", Not(Between("a", 1, 2))),
        ("a IS NULL", IsNull("a")),
        ("a IS NOT NULL", Not(IsNull("a"))),
        ("a", Flag("a")),
        ("TRUE", Constant(True)),
        ("false", Constant(False)),
        # AND, OR, NOT, parentheses
        ("a = 1 AND b = 2 AND c = 3", And((A, B, C))),
        ("a = 1 OR b = 2 AND c = 3", Or((A, And((B, C))))),
        ("(a = 1 OR b = 2) AND c = 3", And((Or((A, B)), C))),
        ("(a = 1 AND b = 2) AND c = 3", And((And((A, B)), C))),
        ("NOT a = 1 AND b = 2", And((Not(A), B))),
        ("NOT (a = 1 AND b = 2)", Not(And((A, B)))),
        ("NOT NOT a = 1", Not(Not(A))),
        ("NOT a != 1", Not(Not(A))),
        ("a BETWEEN 1 AND 2 AND b = 2", And((Between("a", 1, 2), B))),
        ("((a = 1))", A),
        ("\n a\t=\u00a01 aNd\r\nb=2 ", And((A, B))),
        # values
        ("a = 'x'", Compare("a", "=", "x")),
        ("a = ''", Compare("a", "=", "")),
        ("a = 'it''s'", Compare("a", "=", "it's")),
        ("a = ''''", Compare("a", "=", "'")),
        ("a = 'AND \"b\" = $c'", Compare("a", "=", 'AND "b" = $c')),
        ("a = '名前 \U0001f600\n'", Compare("a", "=", "名前 \U0001f600\n")),
        ("a = -5", Compare("a", "=", -5)),
        ("a = +5", Compare("a", "=", 5)),
        ("a = 9007199254740993", Compare("a", "=", 2**53 + 1)),
        ("a = " + "9" * 600, Compare("a", "=", 10**600 - 1)),
        ("a = 1.0", Compare("a", "=", 1.0)),
        ("a<-.5e-3", Compare("a", "<", -0.0005)),
        ("a = 2.", Compare("a", "=", 2.0)),
        ("a = 1E3", Compare("a", "=", 1000.0)),
        ("a = True", Compare("a", "=", True)),
        ("a = DATE '2024-02-29'", Compare("a", "=", date(2024, 2, 29))),
        ("a = '2024-02-29'", Compare("a", "=", "2024-02-29")),
        ("a < timestamp '2024-02-29'", Compare("a", "<", datetime(2024, 2, 29))),
        ("a < TIMESTAMP '2024-02-29T10:30Z'", Compare("a", "<", datetime(2024, 2, 29, 10, 30))),
        ("a < TIMESTAMP '2024-02-29 00:30:01.5 +01:00'", Compare("a", "<", datetime(2024, 2, 28, 23, 30, 1, 500_000))),
        # names
        ("user.age = 1", Compare("user.age", "=", 1)),
        ("top-10 = 1", Compare("top-10", "=", 1)),
        ("2fa", Flag("2fa")),
        ("名前 = 1 AND हिन्दी = 1", And((Compare("名前", "=", 1), Compare("हिन्दी", "=", 1)))),
        ('"two words" = 1', Compare("two words", "=", 1)),
        ('"say ""hi""" IS NULL', IsNull('say "hi"')),
        ('"" = 1', Compare("", "=", 1)),
        ('"2024"', Flag("2024")),
        ('"and" AND "TRUE"', And((Flag("and"), Flag("TRUE")))),
        ("cast = 'x' AND select = 'y'", And((Compare("cast", "=", "x"), Compare("select", "=", "y")))),
        ("date = DATE '2024-02-29'", Compare("date", "=", date(2024, 2, 29))),
        ("date AND timestamp", And((Flag("date"), Flag("timestamp")))),
        # words of the language as columns
        ("in = 3", Compare("in", "=", 3)),
        ("NOT in = 3", Not(Compare("in", "=", 3))),
        ("not = 'x'", Compare("not", "=", "x")),
        ("NOT not NOT BETWEEN 1 AND 2", Not(Not(Between("not", 1, 2)))),
        ("not not = 'x'", Not(Compare("not", "=", "x"))),
        ("between BETWEEN 1 AND 2", Between("between", 1, 2)),
        ("NOT between BETWEEN 1 AND 2", Not(Between("between", 1, 2))),
        ("not BETWEEN 1 AND 2", Between("not", 1, 2)),
        ("between = 1", Compare("between", "=", 1)),
        ("NOT between = 1", Not(Compare("between", "=", 1))),
        ("and = 1 AND or = 2", And((Compare("and", "=", 1), Compare("or", "=", 2)))),
        ("or = 1 OR and = 2", Or((Compare("or", "=", 1), Compare("and", "=", 2)))),
        ("in IN (1)", In("in", (1,))),
        ("NOT in IN (1)", Not(In("in", (1,)))),
        ("not IN (1)", In("not", (1,))),
        ("not NOT IN (1)", Not(In("not", (1,)))),
        ("NOT not NOT IN (1)", Not(Not(In("not", (1,))))),
        ("is IS NULL", IsNull("is")),
        ("NOT is IS NULL", Not(IsNull("is"))),
        ("not IS NOT NULL", Not(IsNull("not"))),
        ("null IS NULL", IsNull("null")),
        ("true = TRUE AND TRUE", And((Compare("true", "=", True), Constant(True)))),
        ("(or IN (1))", In("or", (1,))),
        ("between BETWEEN DATE '2024-02-29' AND '2024-03-01'", Between("between", date(2024, 2, 29), "2024-03-01")),
    ],
)
def test_text_parses_to_tree(text: str, tree: Node) -> None:
    assert parse(text) == tree
    assert parse(to_text(tree)) == tree


@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000"])
def test_blank_text_is_no_filter(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "words", "position"),
    [
        ("a =", "expected a value after '=', found the end of the text; write a number", 3),
        ("a = 1 AND ", "expected a condition, found the end of the text", 10),
        ("a AND AND b", "expected a condition, found 'AND'; a column of that name is written \"AND\" here", 6),
        ("in", 'a column of that name is written "in" here', 0),
        ("NULL", "null is asked for with: column IS NULL", 0),
        ("5 < a", "the column stands first", 0),
        ("'x' = a", "the column stands first", 0),
        ("!a", "found '!'; write NOT", 0),
        ("`a` = 1", "double quotes", 0),
        ("()", r"expected a condition, found '\)'", 1),
        ("(a = 1", r"expected AND, OR or '\)', found the end of the text; the '\(' at character 0 is open", 6),
        ("a = 1)", r"expected AND, OR or the end, found '\)'", 5),
        ("a = 1 b = 2", "expected AND, OR or the end, found 'b'", 6),
        ("a = 1;", "found ';'", 5),
        ("a b", "expected an operator, IN, BETWEEN or IS after a, found 'b'", 2),
        ("a LIKE 'x%'", "there is no matching of patterns", 2),
        ("a && b", "write NOT, AND, OR", 2),
        ("a ≤ 3", "found '≤'", 2),
        ("a == 1", "equality is a single =", 2),
        ("a =< 1", "expected a value after '=', found '<'", 3),
        ("a - 1", "found '-'", 2),
        ("a = - 1", "a sign stands directly before its digits", 4),
        ("a = NULL", "nothing equals null; write: column IS NULL", 4),
        ("a != null", "nothing equals null", 5),
        ("a IN (1, NULL)", "nothing equals null", 9),
        ("a = en", "a string stands in single quotes: 'en'; two columns cannot be compared", 4),
        ('a = "en"', "a string stands in single quotes: 'en'", 4),
        ("a = ‘en’", "straight single quotes", 4),
        ("a = 2024-02-29", "a string stands in single quotes: '2024-02-29'", 4),
        ("a = 'x", "a ' that is never closed", 4),
        ("a = 'x''", "a ' that is never closed", 4),
        ('"a = 1', 'a " that is never closed', 0),
        ("a = 12x", "found '12x'", 4),
        ("a = 1.2.3", "found '1.2.3'", 4),
        ("a = 1e999", "too large for a number", 4),
        ("a = " + "1" * 601, "601 digits, 600 are allowed", 4),
        ("a = DATE '2024-02-30'", "'2024-02-30' is no date; write DATE 'YYYY-MM-DD'", 9),
        ("a = timestamp '2024-02-29 25:00'", "is no timestamp; write TIMESTAMP 'YYYY-MM-DD HH:MM:SS'", 14),
        ("a = $x", r"\$x stands for a query column", 4),
        ("a IN 1", r"expected '\(' after IN, found '1'", 5),
        ("a IN (1", r"expected ',' or '\)' in the values of IN, found the end", 7),
        ("a IN (1 2)", r"expected ',' or '\)' in the values of IN, found '2'", 8),
        ("a IN (1,)", r"expected a value after ',', found '\)'", 8),
        ("a IN (,)", r"expected a value after '\(', found ','", 6),
        ("a NOT 1", "expected IN or BETWEEN after NOT, found '1'", 6),
        ("a NOT NULL", "expected IN or BETWEEN after NOT, found 'NULL'", 6),
        ("a BETWEEN 1", "expected AND between the two ends of BETWEEN, found the end", 11),
        ("a BETWEEN 1 OR 2", "expected AND between the two ends of BETWEEN, found 'OR'", 12),
        ("a BETWEEN 1 AND b", "expected a value after AND, found 'b'", 16),
        ("a IS 3", "expected NULL, found '3'; IS asks for NULL or NOT NULL", 5),
        ("a IS NOT TRUE", "expected NULL, found 'TRUE'", 9),
        ("a = 1 \ud800", "half of a surrogate pair", 6),
        ("a = 'x\u0000y' \u0000", r"found '\\x00", 10),
    ],
)
def test_error_says_what_and_where(text: str, words: str, position: int) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        parse(text)
    assert (caught.value.text, caught.value.position) == (text, position)
    assert str(caught.value).startswith("filter: ")
    assert str(caught.value).splitlines()[0].count("\n") == 0


def test_caret_stands_under_the_problem() -> None:
    with pytest.raises(FilterError) as caught:
        parse("language = en")
    assert str(caught.value).splitlines()[1:] == ["  language = en", "             ^"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(" * 2_000_000, "2,000,000 bytes of text, at most 65,536"),
        ("NOT " * 2_000_000, "bytes of text"),
        ("a = '" + "é" * 32_768 + "'", "65,542 bytes of text"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), f"nest deeper than {MAX_DEPTH} levels"),
        ("(" * 60_000, f"nest deeper than {MAX_DEPTH} levels"),
        ("NOT " * (MAX_DEPTH + 1) + "a", f"nest deeper than {MAX_DEPTH} levels"),
        ("NOT (" * 10_000, f"nest deeper than {MAX_DEPTH} levels"),
        ("a IN (" + "1," * MAX_TERMS + "1)", "20,001 values, at most 20,000"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_limits_give_one_sentence(text: str, words: str) -> None:
    with pytest.raises(FilterError, match=words) as caught:
        parse(text)
    assert len(str(caught.value)) < 400


def test_texts_at_the_limits_parse() -> None:
    deepest = "(" * MAX_DEPTH + "a AND b OR c" + ")" * MAX_DEPTH
    assert parse(deepest) == Or((And((Flag("a"), Flag("b"))), Flag("c")))
    for text in ("NOT " * MAX_DEPTH + "a", "NOT " * MAX_DEPTH + "a != 1", deepest):
        tree = parse(text)
        assert tree is not None
        assert parse(to_text(tree)) == tree
    longest = parse("a IN (" + "1," * (MAX_TERMS - 1) + "1)")
    assert isinstance(longest, In)
    assert len(longest.values) == MAX_TERMS
    assert parse("a" + " " * (MAX_BYTES - 1)) == Flag("a")


@settings(FIXED, max_examples=300)
@given(TREES)
def test_printed_trees_parse_back_equal(tree: Node) -> None:
    text = to_text(tree)
    again = parse(text)
    assert again == tree
    assert hash(again) == hash(tree)
    assert again is not None
    assert to_text(again) == text


@pytest.mark.parametrize("name", PLAIN_NAMES + QUOTED_NAMES + RESERVED_NAMES)
def test_names_are_quoted_only_where_needed(name: str) -> None:
    assert feature_text(name).startswith('"') == (name not in PLAIN_NAMES)
    for leaf in (Compare(name, "=", 1), In(name, (1,)), Between(name, 1, 2), IsNull(name), Flag(name)):
        assert parse(to_text(And((Not(leaf), leaf)))) == And((Not(leaf), leaf))


@pytest.mark.parametrize("name", PLAIN_NAMES + RESERVED_NAMES)
def test_every_word_may_be_a_column_without_quotes(name: str) -> None:
    for rest in ("= 1", "IN (1)", "NOT IN (1)", "BETWEEN 1 AND 2", "NOT BETWEEN 1 AND 2", "IS NULL", "IS NOT NULL"):
        quoted = parse(f'"{name}" {rest}')
        assert quoted is not None
        assert parse(f"{name} {rest}") == quoted
        assert parse(f"NOT {name} {rest}") == Not(quoted)
        assert parse(f"{name} {rest} AND {name} {rest} OR ({name} {rest})") == Or((And((quoted, quoted)), quoted))


PIECES = [
    *("a", "b-c", '"x y"', "and", "or", "not", "in", "between", "is", "null", "true", "date", "timestamp", "like"),
    *("=", "<", "<=", "!=", "<>", "==", "(", ")", ",", "'", '"', "''", "'x'", "'2024-02-29'", "1", "-2.5", "1e400"),
    *("$x", "$", ";", "\\", "\0", "\ud800", "‘", "名", " ", "\n", "--", "/*", "."),
]


@settings(FIXED, max_examples=800)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map(lambda pieces: " ".join(pieces)) | st.text(max_size=60))
@example("'" * 50_001)
@example("1" * 60_000 + "x")
@example("a.-" * 20_000)
@example("((a) " * 40)
def test_garbage_raises_filter_errors_with_a_position_inside(text: str) -> None:
    tree, position = parse_or_position(text)
    assert 0 <= position <= len(text)
    if tree is not None:
        assert parse(to_text(tree)) == tree


def parse_or_position(text: str) -> tuple[Node | None, int]:
    try:
        return parse(text), 0
    except FilterError as error:
        return None, error.position


def test_any_cut_and_any_changed_character_gives_a_tree_or_a_filter_error() -> None:
    text = (
        "NOT (lang IN ('de', 'it''s') OR \"a b\" BETWEEN -1.5 AND 2) AND day >= DATE '2024-02-29' AND new IS NOT NULL"
    )
    random.seed(0)
    texts = [text[:end] for end in range(len(text))]
    for at in range(len(text)):
        texts += [text[:at] + random.choice("'\"()=<,$ xN1-.\0") + text[at + 1 :] for _ in range(5)]
    for changed in texts:
        assert 0 <= parse_or_position(changed)[1] <= len(changed)


def test_values_of_different_types_are_different_values() -> None:
    leaves = [Compare("a", "=", value) for value in (1, 1.0, True, "1")]
    assert len(set(leaves)) == len({In("a", (leaf.value,)) for leaf in leaves}) == 4
    assert len({Between("a", leaf.value, 2) for leaf in leaves}) == 4


def test_position_does_not_count() -> None:
    first, second = parse("a = 1 OR b"), parse("  a = 1   OR b")
    assert first == second
    assert hash(first) == hash(second)
    assert isinstance(second, Or)
    assert [child.position for child in second.children] == [2, 13]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    [
        "a = 1 OR b = 2 AND c = 3",
        "(a = 1 OR b) AND NOT (c AND d)",
        "a != 1 OR b NOT IN (1, 2.0, '') OR c NOT BETWEEN -1 AND TRUE OR d IS NOT NULL",
        "NOT a < DATE '2024-02-29' AND NOT NOT b",
        "a = TIMESTAMP '2024-02-29 00:00:00' AND \"in\" IS NULL",
    ],
)
def test_canonical_texts_print_as_they_are(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", ["2024-2-29", "20240229", "2023-02-29", "2024-02-29 ", "٢٠٢٤-٠٢-٢٩", "0000-01-01", ""])
def test_dates_have_one_form(text: str) -> None:
    assert read_date(text) is None


@pytest.mark.parametrize(
    "text",
    [
        *("2024-02-29 1:00", "2024-02-29 24:00", "2024-02-29 01:00:00.1234567", "2024-02-29 01:00+25:00"),
        *("9999-12-31 23:00-02:00", "2024-02-29+01:00", "2024-W09-4", "now"),
    ],
)
def test_timestamps_have_one_form(text: str) -> None:
    assert read_timestamp(text) is None


def test_examples_of_the_documentation_work() -> None:
    page = Path(parse.__code__.co_filename).with_name("FILTERS.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sql", "text", "template", "python"]
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "FILTERS.md", "exec"), {})
        elif kind != "text":
            assert all(Template(line).tree is not None for line in block.splitlines())
