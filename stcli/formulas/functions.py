"""The operators and functions of formulas: what each takes and gives, and how tightly the operators bind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["number", "boolean"]
"""What a part of a formula is: a float32, or true and false. The two never stand for each other."""

KINDS: Final[tuple[Kind, ...]] = ("number", "boolean")


@dataclass(frozen=True)
class Signature:
    """What an operator or function takes and gives.

    Attributes:
        takes: kind of each argument; the last one stands for any number of them if `more`.
        gives: kind of the result.
        more: any number of arguments from `len(takes)` on.
    """

    takes: tuple[Kind, ...]
    gives: Kind = "number"
    more: bool = False

    def kind_of(self, argument: int) -> Kind:
        """The kind that argument number `argument` must have."""
        return self.takes[min(argument, len(self.takes) - 1)]

    def accepts(self, count: int) -> bool:
        """Whether there may be `count` arguments."""
        return count == len(self.takes) or (self.more and count > len(self.takes))


_NUMBER: Final = Signature(("number",))
_NUMBERS: Final = Signature(("number", "number"))
_COMPARES: Final = Signature(("number", "number"), "boolean")
_JOINS: Final = Signature(("boolean", "boolean"), "boolean")

FUNCTIONS: Final[dict[str, Signature]] = {
    "if": Signature(("boolean", "number", "number")),
    "min": Signature(("number", "number"), more=True),
    "max": Signature(("number", "number"), more=True),
    "clip": Signature(("number", "number", "number")),
    "abs": _NUMBER,
    "sqrt": _NUMBER,
    "exp": _NUMBER,
    "log": _NUMBER,
    "log1p": _NUMBER,
    "sigmoid": _NUMBER,
    "logit": _NUMBER,
    "step": _NUMBER,
    "pow": _NUMBERS,
    "coalesce": Signature(("number", "number"), more=True),
    "is_null": Signature(("number",), "boolean"),
}

OPERATORS: Final[dict[str, Signature]] = {
    **dict.fromkeys(("+", "-", "*", "/", "^"), _NUMBERS),
    **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), _COMPARES),
    **dict.fromkeys(("and", "or"), _JOINS),
    "not": Signature(("boolean",), "boolean"),
    "neg": _NUMBER,
}
"""`neg` is the minus before one number, for which the text has `-`."""

LEVELS: Final = {
    "or": 1, "and": 2, "not": 3, **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), 4),
    "+": 5, "-": 5, "*": 6, "/": 6, "neg": 7, "^": 8,
}  # fmt: skip
"""How tightly an operator binds; what is not an operator binds at `ATOM`."""

COMPARE: Final = 4
ATOM: Final = 9


def signature(operation: str) -> Signature:
    """The signature of an operator or function."""
    return OPERATORS.get(operation) or FUNCTIONS[operation]
