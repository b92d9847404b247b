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

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stcli.errors import InputError
from stcli.model.config_fields import (
    ACTIVATIONS,
    MAX_WIDTH,
    Column,
    Fields,
    column_shapes,
    linear_shapes,
    read_columns,
)

KINDS = ("dot", "mlp", "mol")
GLU = ("geglu", "swiglu")
GATES = ("query", "item", "cross")

MAX_LOGITS = 1024
"""Largest P_q * P_x of a Mixture-of-Logits."""


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
        return column_shapes(self.columns)


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
                found |= linear_shapes(f"tasks.{task}.layers.{layer}", inputs, outputs)
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
        found |= linear_shapes("item.projection", self.item_inputs, self.item_components * size)
        if "item" in self.gates:
            found |= _gate("item.gate", self.item_inputs, hidden, logits)
        for task in self.tasks:
            prefix = f"tasks.{task}"
            if self.query_hidden:
                found |= linear_shapes(f"{prefix}.query.glu", self.dim, 2 * self.query_hidden)
            found |= linear_shapes(
                f"{prefix}.query.projection", self.query_hidden or self.dim, self.query_components * size
            )
            if "query" in self.gates:
                found |= _gate(f"{prefix}.query.gate", self.dim, hidden, logits)
            if "cross" in self.gates:
                found |= _gate(f"{prefix}.cross", logits, hidden, logits) | {f"{prefix}.cross.2.bias": (logits,)}
        return found


def _gate(name: str, inputs: int, hidden: int, logits: int) -> dict[str, tuple[int, ...]]:
    """Linear, SiLU, and a linear layer without bias."""
    return linear_shapes(f"{name}.0", inputs, hidden) | {f"{name}.2.weight": (logits, hidden)}


def parse_overarch(config: Mapping[str, Any], where: str) -> OverArchConfig:
    """Check a config and fill in its defaults.

    Args:
        config: the JSON object.
        where: how messages call the file.

    Raises:
        InputError: a key is missing, unknown, or has no usable value.
    """
    fields = Fields(config, where)
    kind = fields.word("kind", KINDS)
    tasks = fields.names("tasks")
    if kind == "dot":
        fields.finish()
        return OverArchConfig(kind, tasks, 0, ())
    dim, columns = fields.whole("dim", 1, MAX_WIDTH), read_columns(fields)
    fields.text("weights", "")
    found: OverArchConfig
    if kind == "mlp":
        found = MlpConfig(
            kind, tasks, dim, columns, fields.widths("hidden"), fields.word("activation", ACTIVATIONS, "silu")
        )
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
