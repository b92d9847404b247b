"""The terms of a formula, for explanations: what is added up to the score."""

from __future__ import annotations

from typing import Final

from stcli.formulas.tree import MAX_NODES, Apply, Node, post_order

MAX_GROWTH: Final = 16
"""How many times larger than a formula its terms may be together; a factor is repeated for each."""


def additive_terms(tree: Node) -> list[Node]:
    """Trees whose values add up to that of `tree`: its terms, with the signs and factors that stand before them."""
    done: list[list[Node]] = []
    for node in post_order(tree):
        if not isinstance(node, Apply):
            done.append([node])
            continue
        parts = done[-len(node.arguments) :]
        del done[-len(node.arguments) :]
        done.append(_terms(node, parts))
    found = done[0]
    size = sum(len(post_order(term)) for term in found)
    return found if size <= MAX_GROWTH * MAX_NODES else [tree]


def _terms(node: Apply, parts: list[list[Node]]) -> list[Node]:
    match node.operation, parts:
        case "+", [left, right]:
            return left + right
        case "-", [left, right]:
            return left + [Apply("neg", (term,)) for term in right]
        case "neg", [terms]:
            return [Apply("neg", (term,)) for term in terms]
        case "*", [left, [_]] if len(left) > 1:
            return [Apply("*", (term, node.arguments[1])) for term in left]
        case "*", [[_], right] if len(right) > 1:
            return [Apply("*", (node.arguments[0], term)) for term in right]
        case "/", [left, [_]] if len(left) > 1:
            return [Apply("/", (term, node.arguments[1])) for term in left]
    return [node]
