import re
import sys
import time

import pytest
from hypothesis import given

from stcli.errors import FormulaError
from stcli.formulas.parse import MAX_DEPTH, MAX_LENGTH, parse_formula
from stcli.formulas.tree import MAX_NODES, Apply, Name, Number, to_text
from tests.filters.tree_strategies import FIXED
from tests.formulas.formula_strategies import trees

A, B, C = Name("task.a"), Name("item.b"), Name("query.c")
ONE, TWO = Number(1.0), Number(2.0)


def apply(operation, *arguments):
    return Apply(operation, arguments)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1", ONE),
        (".5", Number(0.5)),
        ("1.", ONE),
        ("1e0", ONE),
        ("task.a", A),
        ("ann_score", Name("ann_score")),
        ('item."list price"', Name("item.list price")),
        ('item."say ""hi"""', Name('item.say "hi"')),
        ("item.2nd", Name("item.2nd")),
        ("task.a + item.b - query.c", apply("-", apply("+", A, B), C)),
        ("task.a - (item.b - query.c)", apply("-", A, apply("-", B, C))),
        ("task.a+item.b*query.c", apply("+", A, apply("*", B, C))),
        ("task.a/item.b*query.c", apply("*", apply("/", A, B), C)),
        ("-task.a^2", apply("neg", apply("^", A, TWO))),
        ("2^-task.a", apply("^", TWO, apply("neg", A))),
        ("task.a^item.b^query.c", apply("^", A, apply("^", B, C))),
        ("pow(task.a, 2)", apply("^", A, TWO)),
        ("-1 * task.a", apply("*", apply("neg", ONE), A)),
        ("--1", apply("neg", apply("neg", ONE))),
        ("IF(task.a > 1 AND NOT item.b <= 2, 1, 2)",
         apply("if", apply("and", apply(">", A, ONE), apply("not", apply("<=", B, TWO))), ONE, TWO)),
        ("task.a < 1 or item.b < 1 and query.c < 1",
         apply("or", apply("<", A, ONE), apply("and", apply("<", B, ONE), apply("<", C, ONE)))),
        ("min(1, 2, task.a)", apply("min", ONE, TWO, A)),
    ],
)  # fmt: skip
def test_text_to_tree(text, tree):
    assert parse_formula(text).tree == tree
    assert parse_formula(to_text(tree)).tree == tree


@FIXED
@given(trees())
def test_what_is_printed_reads_back_equal(tree):
    text = to_text(tree)
    if len(text) <= MAX_LENGTH:
        assert parse_formula(text).tree == tree
        assert str(parse_formula(text)) == text


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "is empty"),
        ("  ", 0, "is empty"),
        ("task.a +", 8, "expected a number, a name or a function, found the end"),
        ("task.a item.b", 7, "expected an operator or the end, found 'item.b'"),
        ("(task.a", 7, "the '(' at character 0 is open"),
        ("min(1, 2", 8, "the '(' at character 3 is open"),
        ("min(1,)", 6, "found ')'"),
        ("min(1)", 0, "min takes 2 or more arguments, found 1"),
        ("exp()", 0, "exp takes 1 argument, found 0"),
        ("exp + 1", 4, "expected '(' after exp"),
        ("ecp(1)", 0, "did you mean 'exp'"),
        ("price", 0, "'price' is no name"),
        ("user.price", 0, "starts with task, item, query"),
        ("1 < 2 < 3", 6, "do not chain"),
        ("item.b = 1", 7, "equality is =="),
        ("a ? b : c", 0, "is no name"),
        ("item.b && 1", 7, "write and, or, not"),
        ("item.b == 'de'", 10, "strings cannot be compared"),
        ("item.a.b", 6, "a name has two parts"),
        ("task.a.__class__", 6, "a name has two parts"),
        ("__import__('os').system('x')", 0, "no function '__import__'"),
        ("1 + not 2", 4, "put it in parentheses"),
        ("1e39", 0, "too large for a float32"),
        ("1" * 400, 0, "too large for a float32"),
        ("1e-60", 0, "too small for a float32"),
        ('item."never', 0, "'item' is no name"),
        ('item.""', 0, "'item' is no name"),
        ("1.2.3", 0, "starts with task, item, query"),
        ("2x", 0, "is no name"),
        ("\ud800", 0, "expected"),
        ("1 \x00", 2, "expected"),
    ],
)
def test_what_is_wrong_is_said_and_where(text, position, words):
    with pytest.raises(FormulaError, match=re.escape(words)) as caught:
        parse_formula(text)
    assert caught.value.position == position
    assert str(caught.value).isprintable() or "\n" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9" * 10_000_000, "10,000,000 characters"),
        ("(" * 10_000, "characters"),
        ("(" * MAX_LENGTH, "nest deeper"),
        ("-" * MAX_LENGTH, "nest deeper"),
        ("not " * 1000, "nest deeper"),
        ("1^" * 2000 + "1", "nest deeper"),
        ("abs(" * 1000, "nest deeper"),
        ("if(" * 1000, "nest deeper"),
        ("1" + "+1" * 2000, "more than 512"),
        ("1" + "+(1" * 33 + ")" * 33, "nest deeper"),
        ("min(" + "1," * 2000 + "1)", "more than 512"),
    ],
)
def test_hostile_texts_are_answered_quickly_in_one_sentence(text, words):
    limit, start = sys.getrecursionlimit(), time.process_time()
    with pytest.raises(FormulaError, match=words) as caught:
        parse_formula(text)
    assert len(str(caught.value)) < 400
    assert sys.getrecursionlimit() == limit
    assert time.process_time() - start < 5  # of what is done, not of the machine: milliseconds


def test_the_limits_are_reached():
    assert parse_formula("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).tree == ONE
    chain = parse_formula("1" + "+1" * (MAX_NODES // 2 - 1))
    assert str(parse_formula(str(chain))) == str(chain)  # not ==, which recurses
