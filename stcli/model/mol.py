"""Mixture-of-Logits: its two sides, and the module that scores candidates from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from stcli.model.layers import Weights
from stcli.model.overarch_config import MolConfig
from stcli.ops.mol_score import mol_score
from stcli.ops.tiles import TILE_QUERIES, in_tiles
from stcli.types import MolCross, MolItems, MolQueries

MIN_NORM = 1e-6
"""Components are divided by their length, or by this if they are shorter."""

CROSS = ("first", "first_bias", "second", "second_bias")
"""Fields of `stcli.types.MolCross`."""

SLOTS_AT_ONCE = 1 << 16
"""Candidates whose item side is computed at once when it is not cached: 64 MiB with 256 numbers each."""


def op_order(config: MolConfig) -> torch.Tensor:
    """For each logit of `ops/mol_score.py`, its number in the weights; int64 [L]."""
    return torch.arange(config.num_logits).view(config.query_components, config.item_components).t().flatten()


def item_components(config: MolConfig, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
    """The components of items, each of length 1: float32 [R, item_inputs] to [R, Px, d]."""
    projected = weights.linear("item.projection", inputs)
    return _unit(projected.view(len(inputs), config.item_components, config.component_dim))


def item_gates(config: MolConfig, weights: Weights, inputs: torch.Tensor) -> torch.Tensor:
    """The item gate in the order of the operation: float32 [R, item_inputs] to [R, L]."""
    return _gate(weights, "item.gate", inputs)[:, op_order(config).to(inputs.device)]


class Mol(nn.Module):
    """Scores candidates by Mixture-of-Logits.

    Args:
        config: of the model.
        weights: by the names of `MolConfig.shapes`.
        cached: `components`, `scales` and `gates` as in `stcli.types.MolItems`; empty: they are computed at each call.
        items: gives the item inputs float32 [R, item_inputs] of rows int64 [R]; called only without a cache.
        backend: see `ops/dispatch.py`.
    """

    def __init__(
        self,
        config: MolConfig,
        weights: Mapping[str, torch.Tensor],
        cached: Mapping[str, torch.Tensor],
        items: Callable[[torch.Tensor], torch.Tensor],
        backend: str,
    ) -> None:
        super().__init__()
        self.config, self.items, self.backend = config, items, backend
        self.weights = Weights(weights)
        order = op_order(config)
        if "cross" in config.gates:
            self.cross = nn.ModuleDict({task: Weights(_cross(weights, task, order)) for task in config.tasks})
        self.register_buffer("order", order, persistent=False)
        self.cached = "components" in cached
        for name in ("components", "scales", "gates"):
            self.register_buffer(name, cached.get(name), persistent=False)

    def forward(self, users: torch.Tensor, rows: torch.Tensor, task: str) -> torch.Tensor:
        """Score candidates: users float32 [B, D], rows int64 [B, M]; float32 [B, M], -inf in empty slots."""
        queries = self.queries(users, task)
        if self.cached:
            items = MolItems(self.get_buffer("components"), _optional(self, "scales"), _optional(self, "gates"))
            return self._score(queries, items, rows, task)
        scores = torch.empty(rows.shape, device=rows.device)
        width = min(max(rows.shape[1], 1), SLOTS_AT_ONCE)
        for first in range(0, len(rows), SLOTS_AT_ONCE // width):
            some = slice(first, first + SLOTS_AT_ONCE // width)
            part = MolQueries(queries.components[some], None if queries.gates is None else queries.gates[some])
            for slot in range(0, rows.shape[1], width):
                scores[some, slot : slot + width] = self._fresh(part, rows[some, slot : slot + width], task)
        return scores

    def _fresh(self, queries: MolQueries, rows: torch.Tensor, task: str) -> torch.Tensor:
        """Score with item components that are computed now, once for each item of the tile."""
        distinct, places = torch.unique(rows.clamp_min(0), return_inverse=True)
        inputs = self.items(distinct)
        components = in_tiles(lambda tile: item_components(self.config, self.weights, tile), inputs)
        gates = None
        if "item" in self.config.gates:
            gates = in_tiles(lambda tile: item_gates(self.config, self.weights, tile), inputs)
        return self._score(queries, MolItems(components, None, gates), torch.where(rows < 0, -1, places), task)

    def _score(self, queries: MolQueries, items: MolItems, rows: torch.Tensor, task: str) -> torch.Tensor:
        cross = None
        if "cross" in self.config.gates:
            layers = self.cross.get_submodule(task)
            cross = MolCross(*(layers.get_buffer(name) for name in CROSS))
        return mol_score(queries, items, cross, rows, tau=self.config.tau, backend=self.backend)

    def queries(self, users: torch.Tensor, task: str) -> MolQueries:
        """The query side for users float32 [B, D]."""
        prefix = f"tasks.{task}.query"
        components = in_tiles(lambda tile: self._components(tile, prefix), users, TILE_QUERIES)
        if "query" not in self.config.gates:
            return MolQueries(components, None)
        gates = in_tiles(lambda tile: _gate(self.weights, f"{prefix}.gate", tile), users, TILE_QUERIES)
        return MolQueries(components, gates[:, self.get_buffer("order")].contiguous())

    def _components(self, users: torch.Tensor, prefix: str) -> torch.Tensor:
        if self.config.query_hidden:
            act = functional.gelu if self.config.query_activation == "geglu" else functional.silu
            gate, value = self.weights.linear(f"{prefix}.glu", users).chunk(2, 1)
            users = act(gate) * value
        projected = self.weights.linear(f"{prefix}.projection", users)
        return _unit(projected.view(len(users), self.config.query_components, self.config.component_dim))


def _gate(weights: Weights, name: str, inputs: torch.Tensor) -> torch.Tensor:
    return weights.linear(f"{name}.2", functional.silu(weights.linear(f"{name}.0", inputs)))


def _cross(weights: Mapping[str, torch.Tensor], task: str, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The cross gate of a task with its logits in the order of the operation."""
    prefix = f"tasks.{task}.cross"
    return {
        "first": weights[f"{prefix}.0.weight"][:, order].contiguous(),
        "first_bias": weights[f"{prefix}.0.bias"],
        "second": weights[f"{prefix}.2.weight"][order].contiguous(),
        "second_bias": weights[f"{prefix}.2.bias"][order].contiguous(),
    }


def _unit(components: torch.Tensor) -> torch.Tensor:
    return components / components.norm(dim=-1, keepdim=True).clamp_min(MIN_NORM)


def _optional(module: nn.Module, name: str) -> torch.Tensor | None:
    return getattr(module, name)
