"""What an OverArch is made of: its JSON config, checked, and the shape of every weight that follows from it.

A config of the kind `mol`, with its defaults:

    {"kind": "mol", "tasks": ["like", "share"], "dim": 64,
     "query_components": 8, "item_components": 4, "component_dim": 64,
     "query_hidden": 512, "query_activation": "geglu", "gate_hidden": 128, "tau": 0.05,
     "gates": ["query", "item", "cross"], "columns": [], "weights": "overarch.safetensors"}

and of the kind `mlp`:

    {"kind": "mlp", "tasks": ["like"], "dim": 64, "hidden": [256, 64], "activation": "silu",
     "columns": [{"name": "price", "kind": "number", "mean": 20.0, "std": 7.5},
                 {"name": "genre", "kind": "category", "values": ["Drama", "War"], "dim": 8}]}

`dim` is that of the embeddings, `columns` are item columns that the item side reads beside the embedding. Weights are
`[outputs, inputs]` as in `torch.nn.Linear`, named as `MolConfig.shapes` and `MlpConfig.shapes` list them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stcli.errors import InputError, nearest

KINDS = ("dot", "mlp", "mol")
GLU = ("geglu", "swiglu")
ACTIVATIONS = ("relu", "silu", "gelu")
GATES = ("query", "item", "cross")

MAX_WIDTH = 8192
"""Largest size of a layer or embedding."""
MAX_LOGITS = 1024
"""Largest P_q * P_x of a Mixture-of-Logits."""
MAX_NAMES = 64
"""Most tasks, columns or layers."""
MAX_VALUES = 1_000_000
"""Most values of a category."""


@dataclass(frozen=True)
class Column:
    """An item column that the OverArch reads.

    Attributes:
        name: of the item table.
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


@dataclass(frozen=True)
class OverArchConfig:
    """What every kind has.

    Attributes:
        kind: one of KINDS.
        tasks: names, in order.
        dim: D, dimensions of user vectors and packed item embeddings.
        columns: in the order of their features.
    """

    kind: str
    tasks: tuple[str, ...]
    dim: int
    columns: tuple[Column, ...]

    @property
    def num_features(self) -> int:
        """Numbers that the columns become together."""
        return sum(column.dim for column in self.columns)

    @property
    def item_inputs(self) -> int:
        """Numbers of an item: its embedding, then its features."""
        return self.dim + self.num_features

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        return {
            f"columns.{column.name}.weight": (len(column.values) + 1, column.dim)
            for column in self.columns
            if column.kind == "category"
        }


@dataclass(frozen=True)
class MlpConfig(OverArchConfig):
    """Layers over [user, item, user * item, features]; a layer set for each task.

    Attributes:
        hidden: outputs of each hidden layer.
        activation: after each of them, one of ACTIVATIONS.
    """

    hidden: tuple[int, ...]
    activation: str

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        found = super().shapes()
        widths = [3 * self.dim + self.num_features, *self.hidden, 1]
        for task in self.tasks:
            for layer, (inputs, outputs) in enumerate(pairwise(widths)):
                found |= _linear(f"tasks.{task}.layers.{layer}", inputs, outputs)
        return found


@dataclass(frozen=True)
class MolConfig(OverArchConfig):
    """Mixture-of-Logits. The item side is shared by all tasks, so that it is cached once; the rest is a task's own.

    Attributes:
        query_components, item_components: P_q, P_x.
        component_dim: d.
        query_hidden: outputs of the gated layer before the query projection; 0: none.
        query_activation: its gate, `geglu` or `swiglu`.
        gate_hidden: H, hidden units of each gate.
        tau: temperature of the logits.
        gates: those of GATES that there are; without `query` or `item` that factor is 1, without both no product.
    """

    query_components: int
    item_components: int
    component_dim: int
    query_hidden: int
    query_activation: str
    gate_hidden: int
    tau: float
    gates: tuple[str, ...]

    @property
    def num_logits(self) -> int:
        """L = P_q * P_x; logit `n * P_x + m` belongs to query component n and item component m."""
        return self.query_components * self.item_components

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight."""
        found = super().shapes()
        size, hidden, logits = self.component_dim, self.gate_hidden, self.num_logits
        found |= _linear("item.projection", self.item_inputs, self.item_components * size)
        if "item" in self.gates:
            found |= _gate("item.gate", self.item_inputs, hidden, logits)
        for task in self.tasks:
            prefix = f"tasks.{task}"
            if self.query_hidden:
                found |= _linear(f"{prefix}.query.glu", self.dim, 2 * self.query_hidden)
            found |= _linear(f"{prefix}.query.projection", self.query_hidden or self.dim, self.query_components * size)
            if "query" in self.gates:
                found |= _gate(f"{prefix}.query.gate", self.dim, hidden, logits)
            if "cross" in self.gates:
                found |= _gate(f"{prefix}.cross", logits, hidden, logits) | {f"{prefix}.cross.2.bias": (logits,)}
        return found


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _gate(name: str, inputs: int, hidden: int, logits: int) -> dict[str, tuple[int, ...]]:
    """Linear, SiLU, and a linear layer without bias."""
    return _linear(f"{name}.0", inputs, hidden) | {f"{name}.2.weight": (logits, hidden)}


def parse_overarch(config: Mapping[str, Any], where: str) -> OverArchConfig:
    """Check a config and fill in its defaults.

    Args:
        config: the JSON object.
        where: how messages call the file.

    Raises:
        InputError: a key is missing, unknown, or has no usable value.
    """
    fields = _Fields(config, where)
    kind = fields.word("kind", KINDS)
    tasks = fields.names("tasks")
    if kind == "dot":
        fields.finish()
        return OverArchConfig(kind, tasks, 0, ())
    dim, columns = fields.whole("dim", 1, MAX_WIDTH), _columns(fields)
    fields.text("weights", "")
    found: OverArchConfig
    if kind == "mlp":
        hidden = fields.list("hidden", [])
        for place, width in enumerate(hidden):
            _whole(where, f"hidden[{place}]", width, 1, MAX_WIDTH)
        found = MlpConfig(kind, tasks, dim, columns, tuple(hidden), fields.word("activation", ACTIVATIONS, "silu"))
    else:
        gates = fields.list("gates", list(GATES))
        if not gates or any(gate not in GATES for gate in gates) or len(set(gates)) < len(gates):
            raise InputError(f"{where}: 'gates' is {gates!r}; expected one to three of {', '.join(GATES)}")
        found = MolConfig(
            kind,
            tasks,
            dim,
            columns,
            query_components=fields.whole("query_components", 1, MAX_LOGITS, 8),
            item_components=fields.whole("item_components", 1, MAX_LOGITS, 4),
            component_dim=fields.whole("component_dim", 1, MAX_WIDTH, 64),
            query_hidden=fields.whole("query_hidden", 0, MAX_WIDTH, 512),
            query_activation=fields.word("query_activation", GLU, GLU[0]),
            gate_hidden=fields.whole("gate_hidden", 1, MAX_WIDTH, 128),
            tau=fields.number("tau", 0.05),
            gates=tuple(gate for gate in GATES if gate in gates),
        )
        if found.tau < 1e-4:
            raise InputError(f"{where}: 'tau' is {found.tau}; expected a temperature of at least 0.0001, such as 0.05")
        if found.num_logits > MAX_LOGITS:
            raise InputError(
                f"{where}: query_components * item_components is {found.num_logits}; expected at most {MAX_LOGITS}"
            )
    fields.finish()
    return found


def _columns(fields: _Fields) -> tuple[Column, ...]:
    found = []
    for place, entry in enumerate(fields.list("columns", [])):
        if not isinstance(entry, Mapping):
            raise InputError(f"{fields.where}: columns[{place}] is {entry!r}; expected an object with name and kind")
        inner = _Fields(entry, f"{fields.where}: columns[{place}]")
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


class _Fields:
    """Takes the keys of an object one by one, each with its type and range; what is left is unknown."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where, self.known = values, where, set[str]()

    def take(self, key: str, default: Any) -> Any:
        self.known.add(key)
        value = self.values.get(key, default)
        if value is None:
            raise InputError(f"{self.where}: {key!r} is missing; {nearest(key, list(self.values))}")
        return value

    def word(self, key: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self.take(key, default)
        if value not in allowed:
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected one of {', '.join(allowed)}")
        return str(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected a text")
        return value

    def whole(self, key: str, least: int, most: int, default: int | None = None) -> int:
        return _whole(self.where, repr(key), self.take(key, default), least, most)

    def number(self, key: str, default: float) -> float:
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise InputError(f"{self.where}: {key!r} is {value!r}; expected a number")
        return float(value)

    def list(self, key: str, default: list | None, most: int = MAX_NAMES) -> list:
        value = self.take(key, default)
        if not isinstance(value, list) or len(value) > most:
            raise InputError(f"{self.where}: {key!r} is {str(value)[:60]}; expected a list of at most {most:,}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        values = self.list(key, None)
        good = [isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name) for name in values]
        if not values or not all(good) or len(set(values)) < len(values):
            raise InputError(
                f"{self.where}: {key!r} is {str(values)[:60]}; expected a list of different names of letters, "
                'digits and _, such as ["like"]'
            )
        return tuple(values)

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.known)
        if unknown:
            raise InputError(f"{self.where}: unknown key {unknown[0]!r}; {nearest(unknown[0], sorted(self.known))}")


def _whole(where: str, name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{where}: {name} is {value!r}; expected a whole number from {least} to {most}")
    return value
