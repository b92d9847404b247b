"""Value models as JSON: formulas by name, and short forms for the usual ones.

    {"feed": "0.5 * task.like + 13.5 * task.reply",
     "shop": {"product_power": {"click": 1, "buy": 0.7}, "boosts": [{"when": "item.is_new", "multiply": 1.2}]},
     "safe": {"weighted_sum": {"like": 0.5, "report": -369}, "nan": "error"}}

Each becomes the text of a formula, so that there is one language to check, print and store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from stcli.errors import FormulaError, nearest
from stcli.formulas.parse import parse_formula
from stcli.formulas.tree import name_text

_BODIES: Final = ("formula", "weighted_sum", "product_power")
_KEYS: Final = (*_BODIES, "boosts", "nan")
NanPolicy = Literal["lowest", "error"]
"""What a NaN becomes, see `ValueModel`."""

NAN_POLICIES: Final[tuple[NanPolicy, ...]] = ("lowest", "error")


@dataclass(frozen=True)
class ValueModelText:
    """A value model before its names are checked.

    Attributes:
        formula: canonical text.
        nan: see `ValueModel`.
    """

    formula: str
    nan: NanPolicy = "lowest"


def read_value_model(name: str, given: object) -> ValueModelText:
    """One value model from its JSON form: a formula, or an object with one of its short forms.

    Raises:
        FormulaError: of another form, or its formula does not parse.
    """
    where = f"value model {name[:40]!r}"
    if not name.isidentifier():
        raise FormulaError(f"{where}: a name has letters, digits and _, and does not start with a digit")
    if isinstance(given, str):
        given = {"formula": given}
    if not isinstance(given, Mapping):
        raise FormulaError(f"{where}: is a {type(given).__name__}; expected a formula or an object with one")
    for key in given:
        if key not in _KEYS:
            raise FormulaError(f"{where}: {key!r} is unknown; {nearest(str(key), list(_KEYS))}")
    bodies = [key for key in _BODIES if key in given]
    if len(bodies) != 1:
        raise FormulaError(f"{where}: has {' and '.join(bodies) or 'no formula'}; expected one of {', '.join(_BODIES)}")
    nan = given.get("nan", "lowest")
    if nan not in NAN_POLICIES:
        raise FormulaError(f"{where}: nan is {nan!r}; expected {' or '.join(NAN_POLICIES)}")
    text = _body(bodies[0], given[bodies[0]], where)
    boosts = given.get("boosts", [])
    if not isinstance(boosts, list):
        raise FormulaError(f"{where}: boosts is a {type(boosts).__name__}; expected a list of objects")
    for boost in boosts:
        text = _boosted(text, boost, where)
    try:
        return ValueModelText(str(parse_formula(text)), nan)
    except FormulaError as error:
        raise FormulaError(f"{where}: {error}") from error


def _body(kind: str, given: object, where: str) -> str:
    if kind == "formula":
        if not isinstance(given, str):
            raise FormulaError(f"{where}: its formula is a {type(given).__name__}; expected a text")
        return given
    if not isinstance(given, Mapping) or not given:
        raise FormulaError(f"{where}: {kind} is empty or no object; expected a number for each task")
    if kind == "product_power":
        return " * ".join(f"{name_text(f'task.{task}')}^{_number(power, where)}" for task, power in given.items())
    terms = [f"{_number(weight, where)} * {name_text(f'task.{task}')}" for task, weight in given.items()]
    return " + ".join(terms).replace("+ -", "- ")


def _boosted(text: str, boost: object, where: str) -> str:
    """The formula with one boost: its value times, or plus, something where a condition holds."""
    if not isinstance(boost, Mapping) or set(boost) not in ({"when", "multiply"}, {"when", "add"}):
        raise FormulaError(f"{where}: a boost is {boost!r}; expected an object with when, and multiply or add")
    sign, least = ("*", "1") if "multiply" in boost else ("+", "0")
    amount = boost.get("multiply", boost.get("add"))
    amount = amount if isinstance(amount, str) else _number(amount, where)
    if not isinstance(boost["when"], str):
        raise FormulaError(f"{where}: when of a boost is {boost['when']!r}; expected a condition such as item.is_new")
    for part in (text, boost["when"], amount):  # each a formula by itself, so that parentheses cannot be smuggled in
        try:
            parse_formula(part)
        except FormulaError as error:
            raise FormulaError(f"{where}: {error}") from error
    return f"({text}) {sign} if({boost['when']}, {amount}, {least})"


def _number(given: object, where: str) -> str:
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise FormulaError(f"{where}: {given!r} stands where a finite number was expected")
    return repr(given)


def read_value_models(given: Any, where: str) -> dict[str, ValueModelText]:
    """All value models of a JSON document.

    Args:
        given: the decoded document.
        where: how a message calls it.

    Raises:
        FormulaError: no object of value models, or one of them is wrong.
    """
    if not isinstance(given, Mapping) or not given:
        raise FormulaError(f"{where}: expected a JSON object with a formula for each name of a value model")
    return {name: read_value_model(name, model) for name, model in given.items()}
