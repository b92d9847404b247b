"""Filter texts to trees: one regular expression cuts a text into tokens, a recursive-descent parser reads them.

The language is described in `FILTERS.md`. A word of the language may also be a column's name: where a condition starts,
it is a column if what follows can only come after a column (`in = 3`, `not IN (1)`, `between BETWEEN 1 AND 2`).
"""

from __future__ import annotations

import math
import re
from typing import Final

from stcli.errors import FilterError
from stcli.filters.lexicon import (
    FLOAT,
    INTEGER,
    MAX_DIGITS,
    QUOTED,
    RESERVED,
    STRING,
    WORD,
    Placeholder,
    Value,
    read_date,
    read_timestamp,
    unquote,
    value_text,
)
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
)

MAX_BYTES: Final = 65_536
"""Length of a filter text in UTF-8."""

# Names that start with a letter come first and the white space belongs to the token after it: half the time.
_TOKEN = re.compile(
    rf"\s*+(?:((?![0-9]){WORD})|([<>=!]=|<>|[<>=])|({STRING})|(\()|(\))|(,)|({INTEGER})|({FLOAT})|({WORD})|({QUOTED})"
    rf"|(\$(?:{WORD}|{QUOTED}))|(\Z)|(.))",
    re.DOTALL,
)
_KINDS: Final = (
    *("", "word", "operator", "string", "(", ")", ",", "integer", "float", "word", "quoted", "placeholder", "end"),
    "bad",
)
# Lower case, since capitals of other scripts may fold onto ASCII: "ı".upper() is "I".
_RESERVED_KIND: Final = {word: word for word in RESERVED}
_VALUE_KINDS: Final = frozenset({"string", "integer", "float", "true", "false", "placeholder"})
_TYPED: Final = {"date": (read_date, "YYYY-MM-DD"), "timestamp": (read_timestamp, "YYYY-MM-DD HH:MM:SS")}
_TOO_LONG: Final = "long lists belong in an eligibility column"


def parse(text: str) -> Node | None:
    """Read a filter text; empty or blank text is no filter and gives None.

    Raises:
        FilterError: what was found at which character, and what was expected there.
    """
    return Parser(text).parse()


class Parser:
    """One pass over one text.

    Token `i` is `tokens[i]` of kind `kinds[i]` at character `starts[i]`; kinds are those of `_KINDS` and, for a
    reserved word, the word itself in lower case.

    Args:
        text: the filter.
        template: `$name` may stand for a value.
    """

    __slots__ = ("at", "kinds", "starts", "template", "terms", "text", "tokens")

    def __init__(self, text: str, *, template: bool = False) -> None:
        self.text, self.template = text, template
        self.at = self.terms = 0
        self.kinds: list[str] = []
        self.tokens: list[str] = []
        self.starts: list[int] = []

    def parse(self) -> Node | None:
        """Read the whole text."""
        self._tokenize()
        if self.kinds[0] == "end":
            return None
        tree = self._disjunction(0)
        if self.kinds[self.at] != "end":
            raise self._unexpected("AND, OR or the end")
        if self.terms > MAX_TERMS:
            raise FilterError(f"filter: {self.terms:,} values, at most {MAX_TERMS:,} are allowed; {_TOO_LONG}")
        return tree

    def _tokenize(self) -> None:
        text = self.text
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError as error:
            message = "filter: half of a surrogate pair; give valid Unicode"
            raise FilterError(message, text, error.start) from None
        if size > MAX_BYTES:
            raise FilterError(f"filter: {size:,} bytes of text, at most {MAX_BYTES:,} are allowed; {_TOO_LONG}")
        kinds, tokens, starts = self.kinds, self.tokens, self.starts
        for match in _TOKEN.finditer(text):
            group: int = match.lastindex  # type: ignore[assignment]
            token, kind = match[group], _KINDS[group]
            if kind == "word":
                kind = _RESERVED_KIND.get(token.lower(), kind)
            kinds.append(kind)
            tokens.append(token)
            starts.append(match.start(group))
        kinds += ("end", "end", "end")  # `_continues_column` looks at four tokens

    def _disjunction(self, depth: int) -> Node:
        first = self._conjunction(depth)
        if self.kinds[self.at] != "or":
            return first
        children = [first]
        while self.kinds[self.at] == "or":
            self.at += 1
            children.append(self._conjunction(depth))
        return Or(tuple(children))

    def _conjunction(self, depth: int) -> Node:
        first = self._condition(depth)
        if self.kinds[self.at] != "and":
            return first
        children = [first]
        while self.kinds[self.at] == "and":
            self.at += 1
            children.append(self._condition(depth))
        return And(tuple(children))

    def _condition(self, depth: int) -> Node:
        """NOT, parentheses, a constant, or what is said of one column."""
        at, kind = self.at, self.kinds[self.at]
        if kind == "word" or (kind in RESERVED and self._continues_column(at + 1)):
            return self._leaf(self.tokens[at])
        if kind == "quoted":
            return self._leaf(unquote(self.tokens[at]))
        if kind in ("not", "("):
            if depth == MAX_DEPTH:
                raise self._error(f"parentheses and NOT nest deeper than {MAX_DEPTH} levels; simplify it")
            self.at += 1
            if kind == "not":
                return Not(self._condition(depth + 1))
            inner = self._disjunction(depth + 1)
            if self.kinds[self.at] != ")":
                raise self._unexpected("AND, OR or ')'", f"the '(' at character {self.starts[at]} is open")
            self.at += 1
            return inner
        if kind in ("true", "false"):
            self.at += 1
            return Constant(kind == "true")
        raise self._unexpected("a condition", _why_no_condition(kind, self.tokens[at]))

    def _continues_column(self, at: int) -> bool:
        """Whether the tokens from `at` can only follow a column."""
        first, second, third = self.kinds[at : at + 3]
        if first == "operator":
            return True
        if first == "is":
            return second == "null" or (second == "not" and third == "null")
        if first == "not":
            first, second, third = self.kinds[at + 1 : at + 4]
        if first == "in":
            return second in ("(", "placeholder")
        return first == "between" and (second in _VALUE_KINDS or (second == "word" and third == "string"))

    def _leaf(self, feature: str) -> Node:
        """What is said of the column at the current token; `x != v` is NOT `x = v`, and so on."""
        start = self.starts[self.at]
        self.at += 1
        self.terms += 1
        kind = self.kinds[self.at]
        if kind == "operator":
            written = self.tokens[self.at]
            if written == "==":
                raise self._unexpected("an operator", "equality is a single =")
            self.at += 1
            value = self._value(f"'{written}'")
            if written in ("!=", "<>"):
                return Not(Compare(feature, "=", value, start))
            return Compare(feature, written, value, start)
        negated = kind == "not"
        if negated:
            self.at += 1
            kind = self.kinds[self.at]
        leaf: Node
        if kind == "in":
            self.at += 1
            leaf = In(feature, self._list(), start)
        elif kind == "between":
            self.at += 1
            low = self._value("BETWEEN")
            self._take("and", "AND between the two ends of BETWEEN")
            leaf = Between(feature, low, self._value("AND"), start)
        elif negated:
            raise self._unexpected("IN or BETWEEN after NOT", "NOT of a whole condition stands before its column")
        elif kind == "is":
            self.at += 1
            negated = self.kinds[self.at] == "not"
            self.at += negated
            self._take("null", "NULL", "IS asks for NULL or NOT NULL; for booleans write = TRUE or = FALSE")
            leaf = IsNull(feature, start)
        elif kind in ("and", "or", ")", "end"):
            return Flag(feature, start)
        else:
            raise self._unexpected(
                f"an operator, IN, BETWEEN or IS after {_show(feature)}", _why_no_operator(self.tokens[self.at])
            )
        return Not(leaf) if negated else leaf

    def _list(self) -> tuple[Value | Placeholder, ...]:
        """The values of IN: `(v, v, …)`, also none, or in a template `$name`."""
        if self.kinds[self.at] == "placeholder":
            return (self._placeholder(many=True),)
        self._take("(", "'(' after IN", "its values stand in parentheses: IN (1, 2)")
        values: list[Value | Placeholder] = []
        while self.kinds[self.at] != ")" or values:
            values.append(self._value("','" if values else "'('"))
            if self.kinds[self.at] == ")":
                break
            self._take(",", "',' or ')' in the values of IN")
        self.at += 1
        self.terms += max(0, len(values) - 1)
        return tuple(values)

    def _value(self, after: str) -> Value | Placeholder:
        at = self.at
        kind, token = self.kinds[at], self.tokens[at]
        if kind == "string":
            self.at += 1
            return unquote(token)
        if kind == "integer":
            if len(token) > MAX_DIGITS and (digits := len(token.lstrip("+-"))) > MAX_DIGITS:
                raise self._error(
                    f"an integer of {digits} digits, {MAX_DIGITS} are allowed; no column holds such a number"
                )
            self.at += 1
            return int(token)
        if kind == "float":
            if math.isinf(number := float(token)):
                raise self._error(f"{_show(token)} is too large for a number; the largest is 1.797e308")
            self.at += 1
            return number
        if kind in ("true", "false"):
            self.at += 1
            return kind == "true"
        if kind == "placeholder":
            return self._placeholder(many=False)
        if kind == "word" and self.kinds[at + 1] == "string" and token.lower() in _TYPED:
            read, form = _TYPED[token.lower()]
            self.at += 1
            if (moment := read(unquote(self.tokens[self.at]))) is None:
                raise self._error(
                    f"{_show(self.tokens[self.at])} is no {token.lower()}; write {token.upper()} '{form}'"
                )
            self.at += 1
            return moment
        raise self._unexpected(f"a value after {after}", _why_no_value(kind, token))

    def _placeholder(self, *, many: bool) -> Placeholder:
        at, name = self.at, self.tokens[self.at][1:]
        if not self.template:
            raise self._error(f"{_show('$' + name)} stands for a query column, which only a template has (--filter)")
        self.at += 1
        return Placeholder(unquote(name) if name[0] == '"' else name, many, self.starts[at])

    def _take(self, kind: str, expected: str, hint: str = "") -> None:
        if self.kinds[self.at] != kind:
            raise self._unexpected(expected, hint)
        self.at += 1

    def _unexpected(self, expected: str, hint: str = "") -> FilterError:
        """What to raise where the current token cannot stand."""
        found = _describe(self.kinds[self.at], self.tokens[self.at])
        return self._error(f"expected {expected}, found {found}" + (f"; {hint}" if hint else ""))

    def _error(self, message: str) -> FilterError:
        return FilterError(f"filter: {message}", self.text, self.starts[self.at])


def _show(token: str) -> str:
    """A piece of the text for a message, on one line and not too long."""
    return token if len(token) <= 40 and token.isprintable() else ascii(token[:40])[1:-1] + "..."


def _describe(kind: str, token: str) -> str:
    if kind == "end":
        return "the end of the text"
    if kind == "bad" and token in "'\"":
        return f"a {token} that is never closed"
    return _show(token) if kind == "string" else f"'{_show(token)}'"


def _why_no_condition(kind: str, token: str) -> str:
    match kind:
        case "null":
            return "null is asked for with: column IS NULL"
        case "integer" | "float" | "string":
            return "the column stands first: price > 5; a column of that name needs double quotes"
        case _ if kind in RESERVED:
            return f'a column of that name is written "{token}" here'
        case "bad" if token in "!&|":
            return "write NOT, AND, OR"
        case "bad" if token in "`[":
            return "names stand in double quotes"
    return "for example: language = 'en' AND price < 20"


def _why_no_operator(token: str) -> str:
    if token.lower() in ("like", "ilike", "similar", "regexp", "glob"):
        return "there is no matching of patterns"
    if token in ("&", "|", "!"):
        return "write NOT, AND, OR"
    return "for example: language = 'en'"


def _why_no_value(kind: str, token: str) -> str:
    match kind:
        case "null":
            return "nothing equals null; write: column IS NULL, or IS NOT NULL"
        case "word" | "quoted":
            inner = unquote(token) if kind == "quoted" else token
            return f"a string stands in single quotes: {_show(value_text(inner))}; two columns cannot be compared"
        case "bad" if token in "`‘’‚‛“”„´":
            return "a string stands in straight single quotes: 'en'"
        case "bad" if token in "+-":
            return "a sign stands directly before its digits"
    return "write a number, TRUE, FALSE, 'a string' or DATE '2024-01-31'"
