import pytest

from stcli.errors import FormulaError
from stcli.formulas.sugar import read_value_model, read_value_models


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("task.like+1", "task.like + 1"),
        ({"formula": "task.like"}, "task.like"),
        ({"weighted_sum": {"like": 0.5, "share": 1, "report": -369}},
         "0.5 * task.like + 1 * task.share - 369 * task.report"),
        ({"weighted_sum": {"a b": 1e-7}}, '1e-07 * task."a b"'),
        ({"product_power": {"click": 1, "buy": 0.7, "skip": -1}}, "task.click^1 * task.buy^0.7 * task.skip^-1"),
        ({"formula": "task.a + 1", "boosts": [{"when": "item.new", "multiply": 1.2}]},
         "(task.a + 1) * if(item.new, 1.2, 1)"),
        ({"formula": "task.a", "boosts": [{"when": "item.x", "multiply": 2}, {"when": "item.y > 1", "add": "-task.b"}]},
         "task.a * if(item.x, 2, 1) + if(item.y > 1, -task.b, 0)"),
    ],
)  # fmt: skip
def test_short_forms_become_formulas(given, text):
    assert read_value_model("v", given).formula == text


def test_the_nan_policy_is_kept():
    assert read_value_model("v", {"formula": "1", "nan": "error"}).nan == "error"
    assert read_value_model("v", "1").nan == "lowest"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "is a int"),
        ({}, "has no formula"),
        ({"formula": "1", "weighted_sum": {"a": 1}}, "has formula and weighted_sum"),
        ({"formulas": "1"}, "did you mean 'formula'"),
        ({"formula": 1}, "its formula is a int"),
        ({"formula": "1 +"}, "value model 'v': formula: expected a number"),
        ({"weighted_sum": {}}, "weighted_sum is empty"),
        ({"weighted_sum": {"a": "1"}}, "'1' stands where a finite number"),
        ({"weighted_sum": {"a": True}}, "True stands where"),
        ({"weighted_sum": {"a": float("nan")}}, "nan stands where"),
        ({"weighted_sum": {"a": 1e39}}, "too large for a float32"),
        ({"formula": "1", "nan": "zero"}, "expected lowest or error"),
        ({"formula": "1", "boosts": {}}, "expected a list"),
        ({"formula": "1", "boosts": [{"when": "item.a"}]}, "multiply or add"),
        ({"formula": "1", "boosts": [{"when": "item.a", "multiply": 1, "add": 1}]}, "multiply or add"),
        ({"formula": "1", "boosts": [{"when": 1, "add": 1}]}, "expected a condition"),
        ({"formula": "1", "boosts": [{"when": "item.a, 1, 1) + if(item.a", "add": 1}]}, "found ','"),
        ({"formula": "1) + (1", "boosts": [{"when": "item.a", "add": 1}]}, "found ')'"),
    ],
)
def test_other_forms_are_refused(given, words):
    with pytest.raises(FormulaError) as caught:
        read_value_model("v", given)
    assert words in str(caught.value)


def test_a_document_is_an_object_of_value_models():
    assert list(read_value_models({"a": "1", "b": {"formula": "2"}}, "x.json")) == ["a", "b"]
    for wrong in ([], {}, None, "1"):
        with pytest.raises(FormulaError, match=r"x\.json: expected a JSON object"):
            read_value_models(wrong, "x.json")
