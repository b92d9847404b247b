"""Filter templates: one text for all queries, with `$name` where a query column's value goes.

    language IN $languages AND price <= $budget AND NOT tag IN $blocked

`Template.bind` is the definition of what a template means for one query; a batch is bound on term ids and must agree
with it. A null drops the clause it stands in: the smallest comparison (the whole IN or BETWEEN) disappears, then an AND
or OR without children and a NOT without child. So a dropped clause asks for nothing, under NOT too; nothing left is no
filter. Nulls inside a list are ignored, an empty list is `IN ()`, which no item satisfies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from stcli.errors import FilterError, nearest
from stcli.filters.lexicon import Placeholder, Value, to_value, value_text
from stcli.filters.parse import Parser
from stcli.filters.tree import And, Between, Compare, In, Node, Not, Or, all_of, any_of, check


@dataclass(frozen=True, slots=True)
class Clause:
    """A leaf of a template with at least one placeholder.

    Attributes:
        path: which child to take at each node from the root down; the child of a NOT is number 0.
        leaf: the comparison, with `Placeholder` in the place of values.
        placeholders: those of the leaf, as they stand in it.
    """

    path: tuple[int, ...]
    leaf: Compare | In | Between
    placeholders: tuple[Placeholder, ...]


class Template:
    """A filter text with placeholders, parsed once.

    Attributes:
        text: as given.
        tree: what it parses to, with `Placeholder` in the place of values; None for an empty text.
        clauses: the leaves with placeholders, in the order of the text.
        placeholders: the distinct names, in the order of the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = Parser(text, template=True).parse()
        self.clauses = tuple(_clauses(self.tree, ())) if self.tree is not None else ()
        names = (placeholder.name for clause in self.clauses for placeholder in clause.placeholders)
        self.placeholders = tuple(dict.fromkeys(names))

    def bind(self, values: Mapping[str, object]) -> Node | None:
        """Put one query's values in the places of the placeholders.

        Args:
            values: placeholder name -> value, list of values, or None; names that the template lacks are ignored.

        Returns:
            The filter of that query, or None for no filter.

        Raises:
            FilterError: a placeholder without an entry, a list where one value is meant, or a value of no known type.
        """
        tree = self._bind(self.tree, values) if self.tree is not None else None
        if tree is not None:
            check(tree)
        return tree

    def _bind(self, node: Node, values: Mapping[str, object]) -> Node | None:
        match node:
            case And(children) | Or(children):
                bound = [child for child in (self._bind(child, values) for child in children) if child is not None]
                if not bound:
                    return None
                return all_of(bound) if isinstance(node, And) else any_of(bound)
            case Not(child):
                inner = self._bind(child, values)
                return None if inner is None else Not(inner)
            case Compare(feature, op, value, position):
                one = self._values(feature, (value,), values)
                return None if one is None else Compare(feature, op, one[0], position)
            case Between(feature, low, high, position):
                two = self._values(feature, (low, high), values)
                return None if two is None else Between(feature, two[0], two[1], position)
            case In(feature, listed, position):
                some = self._values(feature, listed, values)
                return None if some is None else In(feature, some, position)
        return node

    def _values(
        self, feature: str, operands: tuple[Value | Placeholder, ...], values: Mapping[str, object]
    ) -> tuple[Value | Placeholder, ...] | None:
        """The operands of a leaf with placeholders replaced, or None if one of them is null."""
        bound: list[Value | Placeholder] = []
        for operand in operands:
            if not isinstance(operand, Placeholder):
                bound.append(operand)
                continue
            if operand.name not in values:
                raise self._error(operand, f"no column {operand.name!r} to bind; {nearest(operand.name, list(values))}")
            given = values[operand.name]
            if given is None:
                return None
            is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes)
            if is_list and not operand.many:
                raise self._error(operand, f"a list stands for one value; write: feature IN {value_text(operand)}")
            given_values: Iterable[object] = given if is_list else (given,)  # type: ignore[assignment]
            try:
                bound += [to_value(feature, value) for value in given_values if value is not None]
            except FilterError as error:
                raise self._error(operand, str(error).removeprefix("filter: ")) from error
        return tuple(bound)

    def _error(self, placeholder: Placeholder, message: str) -> FilterError:
        return FilterError(f"filter: {value_text(placeholder)}: {message}", self.text, placeholder.position)


def _clauses(node: Node, path: tuple[int, ...]) -> Iterator[Clause]:
    match node:
        case And(children) | Or(children):
            for number, child in enumerate(children):
                yield from _clauses(child, (*path, number))
        case Not(child):
            yield from _clauses(child, (*path, 0))
        case Compare(_, _, value):
            yield from _clause(path, node, (value,))
        case Between(_, low, high):
            yield from _clause(path, node, (low, high))
        case In(_, values):
            yield from _clause(path, node, values)


def _clause(
    path: tuple[int, ...], leaf: Compare | In | Between, operands: tuple[Value | Placeholder, ...]
) -> Iterator[Clause]:
    placeholders = tuple(operand for operand in operands if isinstance(operand, Placeholder))
    if placeholders:
        yield Clause(path, leaf, placeholders)
