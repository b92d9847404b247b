"""Filter texts that differ in their values alone: parsed and planned once, as a template that binds all their values.

A text costs 14 us where hundreds have its shape, and 40 us where it is parsed and planned by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from stcli.errors import InputError
from stcli.filters.binder import Binder
from stcli.filters.layout import Layout
from stcli.filters.lexicon import FLOAT, INTEGER, QUOTED, STRING, WORD, unquote
from stcli.filters.literals import read_literals
from stcli.filters.pieces import Code
from stcli.filters.template import Template
from stcli.filters.vocabulary import Vocabulary

LEAST_TEXTS = 64
"""Texts of a shape from which on binding them together is faster than planning each."""

MAX_VALUES = 64
"""Values of a text; longer lists differ in length, so that few texts have the same shape."""

MAX_LETTERS = 4096
MAX_SHAPES = 1024

# What stands before a value, token by token in the parser's order, and the value: a string, integer or float. Where no
# token follows, all the rest, so that nothing is read twice.
_VALUE = re.compile(
    rf"((?:(?![0-9]){WORD}|[<>=!]=|<>|[<>=(),]|\s|(?!{INTEGER}|{FLOAT}){WORD}|{QUOTED})*+)"
    rf"(?:({STRING})|({INTEGER})|({FLOAT})|(.*))",
    re.DOTALL,
)


class _Shape(NamedTuple):
    """What texts have in common: the parts before each value and after the last, and which type each value has."""

    between: tuple[str, ...]
    strings: tuple[bool, ...]
    integers: tuple[bool, ...]
    floats: tuple[bool, ...]

    @property
    def kinds(self) -> list[int | None]:
        """For each place: 0 a string, 1 an integer, 2 a float, or None at the end."""
        return [kinds.index(True) if any(kinds) else None for kinds in zip(*self[1:], strict=True)]

    @property
    def template(self) -> str:
        """The text with a placeholder in the place of each value."""
        places = enumerate(zip(self.between, self.kinds, strict=True))
        return "".join(part if kind is None else f"{part} $v{place} " for place, (part, kind) in places)


Values = tuple[tuple[str, ...], ...]
"""Strings, integers and floats of a text as they are written, each at its place, with "" at the others."""


class Shapes:
    """Writes filter texts over one index, those of a shape together.

    Args:
        vocabulary: the terms of the index.
        layout: its bit matrix.
    """

    def __init__(self, vocabulary: Vocabulary, layout: Layout) -> None:
        self._vocabulary, self._layout = vocabulary, layout
        self._binders: dict[_Shape, Binder | None] = {}

    def codes(self, texts: Sequence[str]) -> Iterator[tuple[str, Code]]:
        """Write those texts whose shape is frequent; the others, and what cannot be used, are left to be planned."""
        if len(texts) < LEAST_TEXTS:
            return
        groups: dict[_Shape, list[tuple[str, Values]]] = {}
        for text in texts:
            found = _cut(text)
            if found is not None:
                groups.setdefault(found[0], []).append((text, found[1]))
        for shape, members in groups.items():
            if len(members) >= LEAST_TEXTS:
                try:
                    yield from self._bound(shape, members)
                except (InputError, OverflowError, ValueError):  # the planner says of each text what is wrong with it
                    continue

    def _bound(self, shape: _Shape, members: Sequence[tuple[str, Values]]) -> Iterable[tuple[str, Code]]:
        binder = self._binder(shape)
        if binder is None:
            return []
        literals = {
            f"v{place}": read_literals(_column([values[kind][place] for _, values in members], kind), "value")
            for place, kind in enumerate(shape.kinds)
            if kind is not None
        }
        operands = binder.read(literals, len(members))
        refused = binder.refused(operands, len(members))
        if refused:
            usable = [member for query, member in enumerate(members) if query not in refused]
            return self._bound(shape, usable) if usable else []
        bound = binder.bind(operands, len(members))
        codes = bound.filters.codes()
        numbers, unknown = bound.filter_of_query.tolist(), bound.unknown_values.tolist()
        return [
            (text, codes[number]._replace(unknown_values=count) if count else codes[number])
            for (text, _), number, count in zip(members, numbers, unknown, strict=True)
        ]

    def _binder(self, shape: _Shape) -> Binder | None:
        if shape not in self._binders:
            if len(self._binders) >= MAX_SHAPES:
                self._binders.clear()
            try:
                self._binders[shape] = Binder(Template(shape.template), self._vocabulary, self._layout)
            except InputError:
                self._binders[shape] = None
        return self._binders[shape]


def _cut(text: str) -> tuple[_Shape, Values] | None:
    """The shape and the values of a text, or None if it is too long or not made of tokens."""
    if len(text) > MAX_LETTERS:
        return None
    found = _VALUE.findall(text)
    between, *values, rest = zip(*found, strict=True)
    if len(found) > MAX_VALUES or any(rest):
        return None
    return _Shape(between, *(tuple(map(bool, tokens)) for tokens in values)), tuple(values)


def _column(written: Sequence[str], kind: int) -> pa.Array:
    if kind == 0:
        return pa.array([unquote(token) for token in written], pa.string())
    return pa.array(map(int, written), pa.int64()) if kind == 1 else pa.array(map(float, written), pa.float64())
