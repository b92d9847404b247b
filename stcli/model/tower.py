"""Towers: from history and columns of a request to its user vectors, from columns of an item to its embedding.

Histories are ragged from end to end: events of all requests in one list, with offsets. Every layer runs in tiles of a
fixed size, so that a request's vectors do not depend on its batch.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stcli.model.history import History
from stcli.model.layers import Weights
from stcli.model.mlp import ACTIVATION
from stcli.model.program import CODE, ProgramTower
from stcli.model.tower_config import TowerConfig, parse_tower
from stcli.ops.hstu_attention import hstu_attention, time_buckets
from stcli.ops.tiles import TILE_ROWS, in_tiles

PREFIX = "tower."
"""The names of its arrays in an artifact begin with this."""

EVENTS = 1 << 14
"""Events that pass the blocks together: the buckets of their pairs take 2 bytes times the length of their histories."""

EPSILON = 1e-6
"""Added to the variance in layer norms, as in the public code of HSTU."""


class Tower(nn.Module):
    """Makes vectors.

    Args:
        config: of the model.
        weights: by the names of `TowerConfig.shapes`, float32.
    """

    def __init__(self, config: TowerConfig, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.config = config
        self.weights = Weights(weights)

    def forward(self, history: History | None, features: torch.Tensor) -> torch.Tensor:
        """The vectors of B requests or items.

        Args:
            history: of the requests; at most `max_history` events each. None for the kind `mlp`.
            features: float32 [B, F], the numbers of the columns; F may be 0.

        Returns:
            float32 [B, T, D], T = 1 for a tower without tasks. An empty history has the state zero.
        """
        config = self.config
        values = features
        if config.kind != "mlp":
            assert history is not None
            encode = self._mean if config.hstu is None else self._hstu
            state = torch.cat([encode(part) for part in _parts(history)])
            values = torch.cat([state, features], 1)
        if config.head:
            values = in_tiles(self._head, values)
        vectors = values.view(len(values), max(len(config.tasks), 1), config.dim)
        if config.normalize:
            vectors = functional.normalize(vectors, dim=2, eps=EPSILON)
        return vectors

    def _head(self, values: torch.Tensor) -> torch.Tensor:
        last = len(self.config.hidden)
        for layer in range(last):
            values = ACTIVATION[self.config.activation](self.weights.linear(f"head.{layer}", values))
        return self.weights.linear(f"head.{last}", values)

    def _mean(self, history: History) -> torch.Tensor:
        # In float64, where the order of a sum of some thousand float32 does not show.
        lengths = history.offsets.diff()
        sums = torch.segment_reduce(history.items.double(), "sum", lengths=lengths, axis=0, unsafe=True)
        return (sums / lengths.clamp(min=1)[:, None]).float()

    def _hstu(self, history: History) -> torch.Tensor:
        """The state after the last event, layer-normed; float32 [B, width]."""
        config, hstu = self.config, self.config.hstu
        assert hstu is not None
        offsets, lengths = history.offsets, history.offsets.diff()
        events = history.items
        if hstu.width != config.dim:
            events = in_tiles(lambda tile: self.weights.linear("input", tile), events)
        place = torch.arange(len(events), device=events.device) - offsets[:-1].repeat_interleave(lengths)
        values = events * math.sqrt(hstu.width) + self.weights["places"][place]
        buckets = None
        if hstu.time_buckets:
            assert history.times is not None
            buckets = time_buckets(history.times, offsets, hstu.time_buckets)
        for block in range(hstu.blocks):
            values = self._block(block, values, offsets, buckets)
        state = values.new_zeros(len(lengths), hstu.width)
        present = lengths > 0
        state[present] = in_tiles(_layer_norm, values[offsets[1:][present] - 1])
        return state

    def _block(
        self, block: int, values: torch.Tensor, offsets: torch.Tensor, buckets: list[torch.Tensor] | None
    ) -> torch.Tensor:
        hstu = self.config.hstu
        assert hstu is not None
        name, wide, narrow = f"blocks.{block}", hstu.heads * hstu.v_dim, hstu.heads * hstu.qk_dim
        mixed = in_tiles(lambda tile: functional.silu(self.weights.linear(f"{name}.uvqk", _layer_norm(tile))), values)
        u, v, q, k = mixed.split([wide, wide, narrow, narrow], 1)
        attended = hstu_attention(
            q.reshape(-1, hstu.heads, hstu.qk_dim),
            k.reshape(-1, hstu.heads, hstu.qk_dim),
            v.reshape(-1, hstu.heads, hstu.v_dim),
            offsets,
            self.weights[f"{name}.place_bias"],
            self.weights[f"{name}.time_bias"] if buckets is not None else None,
            buckets,
        )
        gated = torch.cat([u, attended.view(len(values), wide)], 1)
        return values + in_tiles(
            lambda tile: self.weights.linear(f"{name}.output", tile[:, :wide] * _layer_norm(tile[:, wide:])), gated
        )


def _parts(history: History) -> Iterator[History]:
    """The history in parts of whole requests, with at most EVENTS events unless it is one request."""
    offsets, start = history.offsets.tolist(), 0
    while True:
        stop = max(bisect.bisect_right(offsets, offsets[start] + EVENTS) - 1, start + 1) if len(offsets) > 1 else 0
        events = slice(offsets[start], offsets[stop])
        times = None if history.times is None else history.times[events]
        yield History(history.items[events], history.offsets[start : stop + 1] - offsets[start], times)
        start = stop
        if start == len(offsets) - 1:
            return


def _layer_norm(values: torch.Tensor) -> torch.Tensor:
    assert len(values) == TILE_ROWS
    return functional.layer_norm(values, values.shape[1:], eps=EPSILON)


def load_tower(entry: Mapping[str, Any] | None, arrays: Mapping[str, np.ndarray]) -> Tower | ProgramTower | None:
    """The tower of an artifact.

    Args:
        entry: `tower` of its manifest, or None.
        arrays: of the artifact.

    Returns:
        The tower; None where user vectors stand in the query table. A program is not read before it is allowed.
    """
    if entry is None:
        return None
    config = parse_tower(entry["config"], "the artifact's tower")
    if config.program is not None:
        return ProgramTower(config, arrays[PREFIX + CODE], entry["program_sha256"])
    weights = {name: torch.from_numpy(np.array(arrays[PREFIX + name])) for name in config.shapes()}
    return Tower(config, weights)
