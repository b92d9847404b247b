"""Names and types of a formula, checked against what there is to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stcli.errors import FormulaError, nearest
from stcli.formulas.functions import FUNCTIONS, KINDS, Kind, signature
from stcli.formulas.parse import Formula
from stcli.formulas.tree import Name, Node, Number, name_text, post_order, to_text

_MENDS = {"number": "write if(…, 1, 0) to count it", "boolean": "compare it, as in … > 0"}


def resolve(formula: Formula, names: Mapping[str, str], open_scopes: Sequence[str] = ()) -> dict[str, Kind]:
    """Check a formula and tell what it reads.

    Args:
        formula: a parsed formula.
        names: what there is, as `item.price`, with its type: "number", "boolean", or another word for what no formula
            can read, such as "string", which the message repeats.
        open_scopes: scopes whose names are not known yet, such as "query"; the kind of such a name is what its place in
            the formula needs.

    Returns:
        Kind of each name that is read, in order of first use.

    Raises:
        FormulaError: a name is unknown, or a part is a number where a boolean belongs or the other way round.
    """
    found: dict[str, Kind] = {}

    def kind_of(node: Node, wanted: Kind, what: str, position: int) -> None:
        """Check that a part of the formula is of the kind its place wants."""
        if isinstance(node, Number):
            kind: str = "number"
        elif isinstance(node, Name):
            if node.name not in names and node.name.partition(".")[0] in open_scopes:
                kind = found.setdefault(node.name, wanted)
            else:
                kind, position = _known(node, formula, names), node.position
                found.setdefault(node.name, wanted)
        else:
            kind, position = signature(node.operation).gives, node.position
        if kind == wanted:
            return
        part = to_text(node)
        part = part if len(part) <= 40 else part[:37] + "..."
        message = f"formula: {what} a {wanted}, and {part} is a {kind}"
        hint = _MENDS[wanted] if kind in KINDS else "a formula reads numbers and booleans"
        raise FormulaError(f"{message}; {hint}", formula.text, position)

    # From left to right as a reader meets them; `found` keeps that order.
    for node in post_order(formula.tree):
        if isinstance(node, Name | Number):
            continue
        expected = signature(node.operation)
        shown = (
            node.operation if node.operation in FUNCTIONS else f"'{'-' if node.operation == 'neg' else node.operation}'"
        )
        for place, argument in enumerate(node.arguments):
            kind_of(argument, expected.kind_of(place), f"{shown} takes", node.position)
    kind_of(formula.tree, "number", "the score must be", 0)
    return found


def _known(node: Name, formula: Formula, names: Mapping[str, str]) -> str:
    if node.name in names:
        return names[node.name]
    scope = node.name.partition(".")[0]
    alike = [name_text(name) for name in names if name.startswith(scope + ".")]
    raise FormulaError(
        f"formula: there is no {name_text(node.name)}; {nearest(name_text(node.name), alike)}",
        formula.text,
        node.position,
    )
