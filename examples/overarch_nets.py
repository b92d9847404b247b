"""What `train_overarch.py` trains: item embeddings, a tower of stcli, and a Mixture-of-Logits or none.

Weights have the names that the configs of stcli give them (`TowerConfig.shapes`, `MolConfig.shapes`), so that what is
trained is what is written. Without an OverArch the score of a task is user vector times item embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from overarch_data import RECENT
from stcli.model.history import History
from stcli.model.overarch_config import MolConfig, parse_overarch
from stcli.model.tower import Tower
from stcli.model.tower_config import parse_tower

TASKS = ("click", "like")
OLDER_COLUMN = "ctx__older_{}"
"""Columns with the mean embedding of the older events, a number each."""
COMPONENTS = 2
MIXTURE = {"kind": "mol", "query_components": COMPONENTS, "item_components": 1, "query_hidden": 0, "gate_hidden": 4}
MIN_NORM = 1e-6


@dataclass(frozen=True)
class Setting:
    """What is tuned.

    Attributes:
        rate: highest learning rate.
        tau: temperature of the Mixture-of-Logits; None: dot products.
    """

    rate: float
    tau: float | None = None


class Net:
    """A two-tower model of TASKS.

    The tower reads the mean embedding of the recent events, and that of the older ones, which are columns. Both kinds
    of net begin as something simple: its last layer gives the sum of both means for dot products; for a Mixture-of-
    Logits one component of each, with the first half of an item's embedding as the item's component.

    Args:
        start: item embeddings to begin with, float32 [N, D], D even, the most important dimensions first.
        setting: see there.
        seed: of the random weights.
    """

    def __init__(self, start: Tensor, setting: Setting, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        dim = start.shape[1]
        self.tau = setting.tau
        self.embeddings = start.clone().requires_grad_()
        columns = [{"name": OLDER_COLUMN.format(number), "kind": "number"} for number in range(dim)]
        both = {"dim": dim, "tasks": list(TASKS)}
        tower = {"kind": "mean_pool", "max_history": RECENT, "hidden": [max(128, 4 * dim)], "columns": columns}
        self.tower_config: dict[str, Any] = tower | both
        config = parse_tower(self.tower_config, "tower")
        self.tower_weights = _random(config.shapes(), generator)
        self.tower = Tower(config, self.tower_weights)
        recent, older = torch.eye(2 * dim).split(dim)
        self.mol_config: dict[str, Any] | None = None
        self.mol: dict[str, Tensor] = {}
        if self.tau is None:
            first = recent + older
        else:
            half = dim // COMPONENTS
            self.mol_config = MIXTURE | both | {"component_dim": half, "tau": self.tau}
            mixture = parse_overarch(self.mol_config, "overarch")
            assert isinstance(mixture, MolConfig)
            self.mol = _random(mixture.shapes(), generator)
            # Recent events serve both interests: twice their mean less the older one is what the others are about.
            first = torch.cat([older[:half], 2 * recent[:half] - older[:half]])
            _begin(self.mol["item.projection.weight"], torch.eye(half, dim))
            _begin(self.mol["item.gate.2.weight"], torch.zeros(COMPONENTS, 1))
            for task in TASKS:
                _begin(self.mol[f"tasks.{task}.query.projection.weight"], torch.eye(dim))
                _begin_as_linear(self.mol, f"tasks.{task}.cross", torch.eye(COMPONENTS))
        _begin_as_linear(self.tower_weights, "head", first.repeat(len(TASKS), 1), layers=(0, 1))

    def weights(self) -> list[Tensor]:
        """Everything that is trained."""
        return [self.embeddings, *self.tower_weights.values(), *self.mol.values()]

    def users(self, recent: Tensor, older: Tensor) -> Tensor:
        """User vectors float32 [B, T, D] of items int64 [B, H], and mean embeddings of older ones float32 [B, D]."""
        offsets = torch.arange(len(recent) + 1) * recent.shape[1]
        return self.tower(History(self.embeddings[recent.flatten()], offsets), older)

    def scores(self, users: Tensor, task: int, items: Tensor) -> Tensor:
        """Scores float32 [B, S] of the vectors of a task, [B, T, D], with all items int64 [S]."""
        vectors, embeddings = users[:, task], self.embeddings[items]
        if self.tau is None:
            return vectors @ embeddings.T
        prefix = f"tasks.{TASKS[task]}"
        query = _linear(self.mol, f"{prefix}.query.projection", vectors).unflatten(1, (COMPONENTS, -1))
        query = functional.normalize(query, dim=2, eps=MIN_NORM)
        item = functional.normalize(_linear(self.mol, "item.projection", embeddings), dim=1, eps=MIN_NORM)
        logits = (query.flatten(0, 1) @ item.T / self.tau).unflatten(0, (-1, COMPONENTS)).transpose(1, 2).contiguous()
        gates = _gate(self.mol, f"{prefix}.query.gate", vectors)[:, None] * _gate(self.mol, "item.gate", embeddings)
        gates = gates + _gate(self.mol, f"{prefix}.cross", logits)
        return (torch.softmax(functional.silu(gates), 2) * logits).sum(2)


def _random(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights with the variance of 1 / inputs, biases of 0."""
    found = {}
    for name, shape in shapes.items():
        scale = 0.0 if name.endswith("bias") else 1 / math.sqrt(shape[-1])
        found[name] = (torch.randn(shape, generator=generator) * scale).requires_grad_()
    return found


@torch.no_grad()
def _begin(weight: Tensor, values: Tensor) -> None:
    """Let a layer begin as `values`, and a little of what it was."""
    weight.mul_(0.1).add_(values)


@torch.no_grad()
def _begin_as_linear(
    weights: Mapping[str, Tensor], name: str, matrix: Tensor, layers: tuple[int, int] = (0, 2)
) -> None:
    """Let two layers with SiLU between them begin as a matrix [outputs, inputs]: silu(x) - silu(-x) = x.

    A cross gate that is the identity makes a mixture near the largest logit. With a random one it begins as their mean,
    which is one dot product, and leaves that only after thousands of steps.
    """
    first, second = (weights[f"{name}.{layer}.weight"] for layer in layers)
    eye = torch.eye(matrix.shape[1])
    width = 2 * len(eye)
    second.mul_(0.1)
    first[:width] = torch.cat([eye, -eye])
    second[:, :width] = torch.cat([matrix, -matrix], 1)


def _linear(weights: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
    return functional.linear(inputs, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _gate(weights: Mapping[str, Tensor], name: str, inputs: Tensor) -> Tensor:
    return _linear(weights, f"{name}.2", functional.silu(_linear(weights, f"{name}.0", inputs)))
