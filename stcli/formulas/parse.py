"""Formula texts to trees: one regular expression cuts a text into tokens, a parser by levels of binding reads them.

The language is described in `FORMULAS.md`. Nothing in a text is ever executed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from stcli.errors import FormulaError, nearest
from stcli.formulas.functions import COMPARE, FUNCTIONS, LEVELS, OPERATORS, Signature
from stcli.formulas.tree import ALONE, LETTER, MAX_NODES, SCOPES, Apply, Name, Node, Number, to_float32, to_text

MAX_LENGTH: Final = 4096
"""Characters of a formula."""

MAX_DEPTH: Final = 32
"""Parentheses, functions, signs, NOTs and powers around a part; a chain of + or * may be as long as it likes."""

_WORD = rf"{LETTER}++"
_NUMBER = rf"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?!{LETTER}|\.)"
_QUOTED = r'"(?:[^"]++|"")++"'
_TOKEN = re.compile(
    rf"\s*+(?:({_NUMBER})|({_WORD}\.(?:{_WORD}|{_QUOTED}))|({_WORD})|(<=|>=|==|!=|[-+*/^<>])|(\()|(\))|(,)|(\Z)|(.))",
    re.DOTALL,
)
_KINDS: Final = ("", "number", "name", "word", "operator", "(", ")", ",", "end", "bad")
_HINTS: Final = {
    "=": "equality is ==",
    "&": "write and, or, not",
    "|": "write and, or, not",
    "!": "write and, or, not",
    "?": "a choice is written if(condition, a, b)",
    "%": "there is no remainder",
    "'": "strings cannot be compared; a formula reads numbers and booleans",
    ".": 'a name has two parts, such as item.price; other columns are written item."a.b"',
}


@dataclass(frozen=True)
class Formula:
    """A formula that parses.

    Attributes:
        text: as it was given.
        tree: what it means.
    """

    text: str
    tree: Node

    def __str__(self) -> str:
        return to_text(self.tree)


def parse_formula(text: str) -> Formula:
    """Read a formula.

    Raises:
        FormulaError: what was found at which character, and what was expected there.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"formula: {len(text):,} characters, at most {MAX_LENGTH:,} are allowed; simplify it")
    return Formula(text, _Parser(text).parse())


class _Parser:
    """One pass over one text; token `i` is `tokens[i]` of kind `kinds[i]` at character `starts[i]`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = self.nodes = 0
        self.kinds: list[str] = []
        self.tokens: list[str] = []
        self.starts: list[int] = []
        for match in _TOKEN.finditer(text):
            group: int = match.lastindex  # type: ignore[assignment]
            token, kind = match[group], _KINDS[group]
            if kind == "word" and token.lower() in ("and", "or", "not"):
                token, kind = token.lower(), "operator"
            self.kinds.append(kind)
            self.tokens.append(token)
            self.starts.append(match.start(group))

    def parse(self) -> Node:
        """Read the whole text."""
        if self.kinds[0] == "end":
            raise FormulaError("formula: is empty; for example: 0.5 * task.like + 13.5 * task.reply")
        tree = self._expression(0, 0)
        if self.kinds[self.at] != "end":
            raise self._unexpected("an operator or the end")
        return tree

    def _expression(self, level: int, depth: int) -> Node:
        """An operand, and the operators after it that bind at `level` or closer."""
        left = self._operand(level, depth)
        while self.kinds[self.at] == "operator" and (own := LEVELS.get(self.tokens[self.at], 0)) >= level:
            operator, start = self.tokens[self.at], self.starts[self.at]
            if operator == "not":
                break
            if (
                own == COMPARE
                and isinstance(left, Apply)
                and left.operation in _COMPARISONS
                and self._closed is not left
            ):
                raise self._error(f"comparisons do not chain; write a {left.operation} b and b {operator} c")
            self.at += 1
            if operator == "^":
                right = self._expression(LEVELS["neg"], self._deeper(depth))
            else:
                right = self._expression(own + 1, depth)
            left = self._count(Apply(operator, (left, right), start))
        return left

    def _operand(self, level: int, depth: int) -> Node:
        """A number, a name, a function, parentheses, or what a sign or NOT stands before."""
        kind, token, start = self.kinds[self.at], self.tokens[self.at], self.starts[self.at]
        if kind == "number":
            return self._count(self._number(token))
        if kind == "name":
            return self._count(self._name(token, start))
        if kind == "word":
            return self._word(token, start, depth)
        if kind == "(":
            self.at += 1
            inner = self._expression(0, self._deeper(depth))
            self._close("an operator or ')'", start)
            self._closed = inner
            return inner
        if token == "-":
            self.at += 1
            return self._count(Apply("neg", (self._expression(LEVELS["neg"], self._deeper(depth)),), start))
        if token == "not" and level <= LEVELS["not"]:
            self.at += 1
            return self._count(Apply("not", (self._expression(LEVELS["not"], self._deeper(depth)),), start))
        raise self._unexpected("a number, a name or a function", "put it in parentheses" if token == "not" else "")

    _closed: Node | None = None
    """What the last parentheses held: a comparison in parentheses is none of a chain."""

    def _number(self, token: str) -> Number:
        try:
            value = to_float32(written := float(token))
        except OverflowError:
            value, written = math.inf, math.inf
        if math.isinf(value):
            raise self._error(f"{_show(token)} is too large for a float32; the largest is 3.402e38")
        if value == 0 and written != 0:
            raise self._error(f"{_show(token)} is too small for a float32; the smallest is 1.4e-45")
        self.at += 1
        return Number(value)

    def _name(self, token: str, start: int) -> Name:
        scope, column = token.split(".", 1)
        if scope not in SCOPES:
            raise self._error(f"a name starts with {', '.join(SCOPES)} and a dot, not with '{_show(scope)}.'")
        self.at += 1
        if column[0] == '"':
            column = column[1:-1].replace('""', '"')
        return Name(f"{scope}.{column}", start)

    def _word(self, token: str, start: int, depth: int) -> Node:
        if self.kinds[self.at + 1] != "(":
            if token in ALONE:
                self.at += 1
                return self._count(Name(token, start))
            if token.lower() in FUNCTIONS:
                self.at += 1
                raise self._unexpected(f"'(' after {token}")
            raise self._error(f"'{_show(token)}' is no name; names are task.like, item.price, query.hour, ann_score")
        function = token.lower()
        if function not in FUNCTIONS:
            raise self._error(f"there is no function '{_show(token)}'; {nearest(function, list(FUNCTIONS), 99)}")
        self.at += 1
        opened = self.starts[self.at]
        inside = self._deeper(depth)
        self.at += 1
        arguments: list[Node] = []
        while self.kinds[self.at] != ")" or arguments:
            arguments.append(self._expression(0, inside))
            if self.kinds[self.at] != ",":
                break
            self.at += 1
        self._close("an operator, ',' or ')'", opened)
        expected = FUNCTIONS[function]
        if not expected.accepts(len(arguments)):
            counted = _counted(expected)
            raise FormulaError(f"formula: {function} takes {counted}, found {len(arguments)}", self.text, start)
        return self._count(Apply("^" if function == "pow" else function, tuple(arguments), start))

    def _close(self, expected: str, opened: int) -> None:
        if self.kinds[self.at] != ")":
            raise self._unexpected(expected, f"the '(' at character {opened} is open")
        self.at += 1

    def _deeper(self, depth: int) -> int:
        if depth == MAX_DEPTH:
            raise self._error(f"parts nest deeper than {MAX_DEPTH} levels; simplify it")
        return depth + 1

    def _count(self, node: Node) -> Node:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise FormulaError(
                f"formula: more than {MAX_NODES} numbers, names, operators and functions; simplify it",
                self.text,
                self.starts[self.at],
            )
        return node

    def _unexpected(self, expected: str, hint: str = "") -> FormulaError:
        """What to raise where the current token cannot stand."""
        kind, token = self.kinds[self.at], self.tokens[self.at]
        found = "the end of the text" if kind == "end" else f"'{_show(token)}'"
        if kind == "bad":
            hint = 'a " that is never closed' if token == '"' else _HINTS.get(token, hint)
        return self._error(f"expected {expected}, found {found}" + (f"; {hint}" if hint else ""))

    def _error(self, message: str) -> FormulaError:
        return FormulaError(f"formula: {message}", self.text, self.starts[self.at])


_COMPARISONS: Final = frozenset(name for name in OPERATORS if LEVELS[name] == COMPARE)


def _show(token: str) -> str:
    """A piece of the text for a message, on one line and not too long."""
    return token if len(token) <= 40 and token.isprintable() else ascii(token[:40])[1:-1] + "..."


def _counted(expected: Signature) -> str:
    count = len(expected.takes)
    return f"{count}{' or more' if expected.more else ''} argument{'s' if count > 1 or expected.more else ''}"
