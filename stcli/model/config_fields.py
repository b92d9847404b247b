"""What the JSON configs of all models have in common: fields with type and range, columns, layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stcli.errors import InputError, nearest

ACTIVATIONS = ("relu", "silu", "gelu")

MAX_WIDTH = 8192
"""Largest size of a layer or embedding."""
MAX_NAMES = 64
"""Most tasks, columns or layers."""
MAX_VALUES = 1_000_000
"""Most values of a category."""


@dataclass(frozen=True)
class Column:
    """A column that a model reads.

    Attributes:
        name: of the table.
        kind: `number`: `(value - mean) / std`, missing 0; `category`: a learned row for each value, row 0 for others.
        mean, std: of a number.
        values: of a category; value i has row i + 1.
        dim: numbers that it becomes; 1 for a number.
    """

    name: str
    kind: str
    mean: float = 0.0
    std: float = 1.0
    values: tuple[Any, ...] = ()
    dim: int = 1


def column_shapes(columns: Iterable[Column]) -> dict[str, tuple[int, ...]]:
    """Name and shape of the weights of columns: a row for each value of a category, and row 0 for others."""
    return {
        f"columns.{column.name}.weight": (len(column.values) + 1, column.dim)
        for column in columns
        if column.kind == "category"
    }


def linear_shapes(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of the weights of a linear layer, as in `torch.nn.Linear`."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def read_columns(fields: Fields) -> tuple[Column, ...]:
    """The columns under the key `columns`, each once."""
    found = []
    for place, entry in enumerate(fields.list("columns", [])):
        if not isinstance(entry, Mapping):
            raise InputError(f"{fields.where}: columns[{place}] is {entry!r}; expected an object with name and kind")
        inner = Fields(entry, f"{fields.where}: columns[{place}]")
        name, kind = inner.text("name"), inner.word("kind", ("number", "category"))
        if kind == "number":
            column = Column(name, kind, inner.number("mean", 0.0), inner.number("std", 1.0))
            if column.std <= 0:
                raise InputError(f"{inner.where}: 'std' is {column.std}; expected a number above 0")
        else:
            values = tuple(inner.list("values", None, MAX_VALUES))
            if len({(type(value), value) for value in values if isinstance(value, str | int)}) < len(values):
                raise InputError(f"{inner.where}: 'values' must be different strings or whole numbers")
            column = Column(name, kind, values=values, dim=inner.whole("dim", 1, MAX_WIDTH))
        inner.finish()
        found.append(column)
    if len({column.name for column in found}) < len(found):
        raise InputError(f"{fields.where}: a column stands twice in 'columns'; each may stand once")
    return tuple(found)


class Fields:
    """Takes the keys of an object one by one, each with its type and range; what is left is unknown."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where, self.known = values, where, set[str]()

    def take(self, key: str, default: Any) -> Any:
        """The value of a key; an error if there is neither value nor default."""
        self.known.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise InputError(f"{self.where}: {key!r} is missing; {nearest(key, list(self.values))}")
        return value

    def word(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.take(key, default)
        if value not in allowed:
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected one of {', '.join(allowed)}")
        return str(value)

    def text(self, key: str, default: str | None = None) -> str:
        """Any text."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected a text")
        return value

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """A whole number in a range."""
        return _whole(self.where, repr(key), self.take(key, default), least, most)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected a number")
        return float(value)

    def list(self, key: str, default: list | None, most: int = MAX_NAMES) -> list:
        """A list of anything."""
        value = self.take(key, default)
        if not isinstance(value, list) or len(value) > most:
            raise InputError(f"{self.where}: {key!r} is {str(value)[:60]}; expected a list of at most {most:,}")
        return value

    def widths(self, key: str) -> tuple[int, ...]:
        """Sizes of layers; none by default."""
        found = self.list(key, [])
        return tuple(_whole(self.where, f"{key}[{place}]", width, 1, MAX_WIDTH) for place, width in enumerate(found))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected true or false")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Different names of letters, digits and _."""
        values = self.list(key, None)
        good = [isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) for name in values]
        if not values or not all(good) or len(set(values)) < len(values):
            raise InputError(
                f"{self.where}: {key!r} is {str(values)[:60]}; expected a list of different names of letters, "
                'digits and _, such as ["like"]'
            )
        return tuple(values)

    def finish(self) -> None:
        """Refuse keys that were not taken."""
        unknown = sorted(set(self.values) - self.known)
        if unknown:
            raise InputError(f"{self.where}: unknown key {unknown[0]!r}; {nearest(unknown[0], sorted(self.known))}")


def _whole(where: str, name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{where}: {name} is {value!r}; expected a whole number from {least} to {most}")
    return value
