"""What a tower is made of: its JSON config, checked, and the shape of every weight that follows from it.

A tower makes the user vectors of a request from the items of a history and from columns, or the embedding of an item
from its columns. A config of the kind `hstu`, with its defaults but for `columns`:

    {"kind": "hstu", "dim": 64, "tasks": [], "max_history": 200, "width": 64, "blocks": 2, "heads": 2,
     "qk_dim": 32, "v_dim": 32, "time_buckets": 128, "columns": [{"name": "ctx__hour", "kind": "number"}],
     "hidden": [], "activation": "silu", "head": true, "normalize": false, "weights": "tower.safetensors"}

`mean_pool` has `max_history` of these, `mlp` reads columns only; for `program` see TOWERS.md. `dim` is that of the
embeddings that are searched; a tower with `tasks` gives a vector for each. `head` is the layers behind the history:
without them its state is the vector.
Weights are `[outputs, inputs]` as in `torch.nn.Linear`, named as `TowerConfig.shapes` lists them.
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

KINDS = ("mlp", "mean_pool", "hstu", "program")
MAX_HISTORY = 4096
"""Most events of a history that a tower reads."""
MAX_BATCH = 4096
"""Most requests that a program is called with."""
MAX_BUCKETS = 128
"""Most buckets of time differences: the last one begins at e^38 seconds."""


@dataclass(frozen=True)
class Hstu:
    """The blocks of an HSTU.

    Attributes:
        width: of an event between the blocks; another than `dim` has an input layer.
        blocks, heads: how many.
        qk_dim, v_dim: of a head.
        time_buckets: of the bias by time; 0: none, and no timestamps are read.
    """

    width: int
    blocks: int
    heads: int
    qk_dim: int
    v_dim: int
    time_buckets: int


@dataclass(frozen=True)
class Program:
    """A `torch.export` program.

    Attributes:
        batch: requests that it is called with.
        times: it reads when events were.
    """

    batch: int
    times: bool


@dataclass(frozen=True)
class TowerConfig:
    """A tower.

    Attributes:
        kind: one of KINDS.
        dim: D, of each vector it makes, and of the item embeddings that a history is read as.
        tasks: names of the vectors it makes; () for one without a name.
        columns: in the order of their features.
        hidden: outputs of each hidden layer of the head.
        activation: after each of them, one of ACTIVATIONS.
        head: there are layers behind the history.
        normalize: vectors are made 1 long.
        max_history: the last events of a history that are read; 0 for the kind `mlp`.
        hstu: of that kind, or None.
        program: of that kind, or None.
    """

    kind: str
    dim: int
    tasks: tuple[str, ...]
    columns: tuple[Column, ...]
    hidden: tuple[int, ...]
    activation: str
    head: bool
    normalize: bool
    max_history: int
    hstu: Hstu | None
    program: Program | None = None

    @property
    def state_dim(self) -> int:
        """Numbers that a history becomes."""
        return 0 if self.kind == "mlp" else self.hstu.width if self.hstu else self.dim

    @property
    def reads_times(self) -> bool:
        """The tower reads when the events of a history were."""
        return self.program.times if self.program else self.hstu is not None and self.hstu.time_buckets > 0

    @property
    def head_widths(self) -> list[int]:
        """Inputs of the head, outputs of its hidden layers, its outputs."""
        features = sum(column.dim for column in self.columns)
        return [self.state_dim + features, *self.hidden, self.dim * max(len(self.tasks), 1)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every weight; a program has its own."""
        if self.program is not None:
            return {}
        found = column_shapes(self.columns)
        if self.hstu is not None:
            hstu = self.hstu
            if hstu.width != self.dim:
                found |= linear_shapes("input", self.dim, hstu.width)
            found["places"] = (self.max_history, hstu.width)
            for block in range(hstu.blocks):
                found[f"blocks.{block}.uvqk.weight"] = (2 * hstu.heads * (hstu.v_dim + hstu.qk_dim), hstu.width)
                found |= linear_shapes(f"blocks.{block}.output", hstu.heads * hstu.v_dim, hstu.width)
                found[f"blocks.{block}.place_bias"] = (2 * self.max_history - 1,)
                if hstu.time_buckets:
                    found[f"blocks.{block}.time_bias"] = (hstu.time_buckets + 1,)
        if self.head:
            for layer, (inputs, outputs) in enumerate(pairwise(self.head_widths)):
                found |= linear_shapes(f"head.{layer}", inputs, outputs)
        return found


def parse_tower(config: Mapping[str, Any], where: str) -> TowerConfig:
    """Check a config and fill in its defaults.

    Args:
        config: the JSON object.
        where: how messages call the file.

    Raises:
        InputError: a key is missing, unknown, or has no usable value.
    """
    fields = Fields(config, where)
    kind, dim = fields.word("kind", KINDS), fields.whole("dim", 1, MAX_WIDTH)
    tasks = fields.names("tasks") if config.get("tasks") else tuple(fields.list("tasks", []))
    columns = read_columns(fields)
    if kind == "program":
        return _program(fields, dim, tasks, columns)
    fields.text("weights", "")
    found = TowerConfig(
        kind,
        dim,
        tasks,
        columns,
        fields.widths("hidden"),
        fields.word("activation", ACTIVATIONS, "silu"),
        fields.flag("head", True),
        fields.flag("normalize", False),
        0 if kind == "mlp" else fields.whole("max_history", 1, MAX_HISTORY, 200),
        _hstu(fields, dim) if kind == "hstu" else None,
    )
    fields.finish()
    if kind == "mlp" and not (found.columns and found.head):
        raise InputError(f"{where}: reads no history, so it needs 'columns' and a head")
    if not found.head and (found.columns or found.hidden or len(found.tasks) > 1 or found.state_dim != dim):
        raise InputError(
            f"{where}: has no head, so it can have no 'columns', no 'hidden' and one task at most; "
            "'width' must be 'dim'"
        )
    return found


def _program(fields: Fields, dim: int, tasks: tuple[str, ...], columns: tuple[Column, ...]) -> TowerConfig:
    fields.text("program", "")
    history = fields.whole("max_history", 0, MAX_HISTORY, 0)
    program = Program(fields.whole("batch", 1, MAX_BATCH, 256), fields.flag("times", False))
    fields.finish()
    if not history and (program.times or not columns):
        raise InputError(f"{fields.where}: reads no history, so it needs 'columns', and 'times' must be false")
    wide = [column.name for column in columns if column.dim != 1]
    if wide:
        raise InputError(
            f"{fields.where}: column {wide[0]!r} has a 'dim' above 1; a program gets a category as its number, so "
            "expected 1"
        )
    return TowerConfig("program", dim, tasks, columns, (), "silu", False, False, history, None, program)


def _hstu(fields: Fields, dim: int) -> Hstu:
    return Hstu(
        width=fields.whole("width", 1, MAX_WIDTH, dim),
        blocks=fields.whole("blocks", 1, 64, 2),
        heads=fields.whole("heads", 1, 64, 2),
        qk_dim=fields.whole("qk_dim", 1, 1024, 32),
        v_dim=fields.whole("v_dim", 1, 1024, 32),
        time_buckets=fields.whole("time_buckets", 0, MAX_BUCKETS, 128),
    )
