"""The OverArch of plain layers over a user, an item, their product and item features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from stcli.model.layers import Weights
from stcli.model.overarch_config import MlpConfig
from stcli.ops.tiles import TILE_ROWS, in_tiles

ACTIVATION: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
}


class Mlp(nn.Module):
    """Scores candidates by layers over [user, item, user * item, features].

    Args:
        config: of the model.
        weights: by the names of `MlpConfig.shapes`.
        items: gives the item inputs float32 [R, D + F] of rows int64 [R], the embedding first.
    """

    def __init__(
        self,
        config: MlpConfig,
        weights: Mapping[str, torch.Tensor],
        items: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.config, self.items = config, items
        self.weights = Weights(weights)

    def forward(self, users: torch.Tensor, rows: torch.Tensor, task: str) -> torch.Tensor:
        """Score candidates: users float32 [B, D], rows int64 [B, M]; float32 [B, M], -inf in empty slots."""
        scores = torch.full(rows.shape, -torch.inf, device=rows.device)
        for place in (rows.flatten() >= 0).nonzero()[:, 0].split(TILE_ROWS):
            items = self.items(rows.flatten()[place])
            user = users[place // rows.shape[1]]
            embedding, features = items[:, : self.config.dim], items[:, self.config.dim :]
            inputs = torch.cat([user, embedding, user * embedding, features], 1)
            scores.view(-1)[place] = in_tiles(lambda tile: self._layers(tile, task), inputs)
        return scores

    def _layers(self, values: torch.Tensor, task: str) -> torch.Tensor:
        last = len(self.config.hidden)
        for layer in range(last):
            values = ACTIVATION[self.config.activation](self.weights.linear(f"tasks.{task}.layers.{layer}", values))
        return self.weights.linear(f"tasks.{task}.layers.{last}", values)[:, 0]
