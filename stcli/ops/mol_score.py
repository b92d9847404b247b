"""Score candidates by Mixture-of-Logits from cached item components and gates."""

from __future__ import annotations

import torch
from torch.nn import functional

from stcli.errors import TensorError
from stcli.ops import native
from stcli.ops.checks import Shapes, check_range
from stcli.ops.dispatch import resolve
from stcli.ops.tiles import TILE_ROWS, linear
from stcli.types import MolCross, MolItems, MolQueries


def mol_score(
    queries: MolQueries,
    items: MolItems,
    cross: MolCross | None,
    rows: torch.Tensor,
    *,
    tau: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Score the candidates of each query.

    With f_n the query components and g_m the item components, in float32 (arXiv 2306.04039, without dropout):

        s[m * Pq + n] = <f_n, g_m> / tau
        a  = query gate * item gate + cross(s)      (a missing factor is 1; no product without both)
        pi = softmax(a * sigmoid(a))
        score = sum(pi * s)

    A score depends on its query and its row alone: not on the batch, the other candidates or the threads. Forms differ
    by float32 rounding: by less than 1e-5 of the largest possible |s|, 1 / tau, times the size of the gates.

    Args:
        queries: B queries with Pq components of d dimensions.
        items: N items with Px components of d dimensions.
        cross: the gate over the logits, or None.
        rows: int64 [B, M] in 0 … N-1, or -1 for an empty slot.
        tau: temperature, positive.
        backend: see `ops/dispatch.py`.

    Returns:
        float32 [B, M], -inf in empty slots.

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
    """
    shapes = Shapes()
    shapes.check("queries.components", queries.components, torch.float32, "B Pq d")
    shapes.check("items.components", items.components, (torch.float32, torch.float16, torch.int8), "N Px d")
    if (items.scales is None) == (items.components.dtype == torch.int8):
        raise TensorError("items.scales: float32 [N, Px] expected with int8 components only")
    if items.scales is not None:
        shapes.check("items.scales", items.scales, torch.float32, "N Px")
    logits = str(queries.components.shape[1] * items.components.shape[1])
    if queries.gates is not None:
        shapes.check("queries.gates", queries.gates, torch.float32, f"B {logits}")
    if items.gates is not None:
        shapes.check("items.gates", items.gates, (torch.float32, torch.float16), f"N {logits}")
    if cross is not None:
        shapes.check("cross.first", cross.first, torch.float32, f"H {logits}")
        shapes.check("cross.first_bias", cross.first_bias, torch.float32, "H")
        shapes.check("cross.second", cross.second, torch.float32, f"{logits} H")
        shapes.check("cross.second_bias", cross.second_bias, torch.float32, logits)
    shapes.check("rows", rows, torch.int64, "B M")
    check_range("rows", rows, len(items.components))
    form = _native if resolve(backend, rows) == "native" else _torch
    return form(queries, items, cross, rows, tau)


def _torch(
    queries: MolQueries, items: MolItems, cross: MolCross | None, rows: torch.Tensor, tau: float
) -> torch.Tensor:
    scores = torch.full(rows.shape, -torch.inf, dtype=torch.float32, device=rows.device)
    filled = (rows.flatten() >= 0).nonzero()[:, 0]
    places = torch.arange(TILE_ROWS, device=rows.device)
    for start in range(0, len(filled), TILE_ROWS):
        slots = filled[(places + start).clamp_max(len(filled) - 1)]  # the last tile repeats its last slot
        scores.view(-1)[slots] = _tile(queries, items, cross, slots // rows.shape[1], rows.flatten()[slots], tau)
    return scores


def _tile(
    queries: MolQueries, items: MolItems, cross: MolCross | None, query: torch.Tensor, row: torch.Tensor, tau: float
) -> torch.Tensor:
    components = items.components[row].float()
    if items.scales is not None:
        components = components * items.scales[row][:, :, None]
    logits = torch.bmm(components, queries.components[query].transpose(1, 2)).flatten(1) / tau
    gate = torch.zeros_like(logits)
    if queries.gates is not None and items.gates is not None:
        gate = queries.gates[query] * items.gates[row].float()
    elif queries.gates is not None:
        gate = queries.gates[query]
    elif items.gates is not None:
        gate = items.gates[row].float()
    if cross is not None:
        hidden = functional.silu(linear(logits, cross.first, cross.first_bias))
        gate = gate + linear(hidden, cross.second, cross.second_bias)
    weights = torch.softmax(functional.silu(gate), 1)
    return (weights * logits).sum(1)


PAD, PAD_QUERIES = 16, 8
"""Sizes that the native form walks by vectors are padded with zeros to a multiple of these."""


def _native(
    queries: MolQueries, items: MolItems, cross: MolCross | None, rows: torch.Tensor, tau: float
) -> torch.Tensor:
    num_queries, per_query, dim = queries.components.shape
    per_item = items.components.shape[1]
    logits = per_query * per_item
    gates = queries.gates
    if gates is None:
        gates = torch.full((num_queries, logits), float(items.gates is not None))
    hidden = 0 if cross is None else len(cross.first_bias)
    layers = [torch.empty(0)] * 4
    if cross is not None:
        layers = [
            _padded(cross.first.t(), (0, PAD)),
            _padded(cross.first_bias, (PAD,)),
            _padded(cross.second.t(), (0, PAD)),
            _padded(cross.second_bias, (PAD,)),
        ]
    scores = torch.empty(rows.shape, dtype=torch.float32)
    native.call(
        "stcli_mol_score",
        _padded((queries.components / tau).transpose(1, 2), (0, 0, PAD_QUERIES)),
        _padded(gates, (0, PAD)),
        items.components,
        KINDS[items.components.dtype],
        items.scales if items.scales is not None else torch.empty(0),
        items.gates if items.gates is not None else torch.empty(0),
        int(items.gates is not None and items.gates.dtype == torch.float16),
        *layers,
        _padded(torch.ones(logits), (PAD,)),
        rows,
        *rows.shape,
        per_query,
        per_item,
        dim,
        hidden,
        native.num_threads(),
        scores,
    )
    return scores


KINDS = {torch.float32: 0, torch.float16: 1, torch.int8: 2}


def _padded(tensor: torch.Tensor, multiples: tuple[int, ...]) -> torch.Tensor:
    """A copy whose sizes are padded with zeros to the multiples; 0 leaves a size as it is."""
    padding = [0 if not step else -size % step for size, step in zip(tensor.shape, multiples, strict=True)]
    return functional.pad(tensor, [side for pad in reversed(padding) for side in (0, pad)]).contiguous()
