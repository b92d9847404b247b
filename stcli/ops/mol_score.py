"""Score candidates by Mixture-of-Logits from cached item components and gates."""

from __future__ import annotations

import torch
from torch.nn import functional

from stcli.ops.checks import Shapes
from stcli.ops.dispatch import resolve
from stcli.ops.scan import check_range
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
    resolve(backend, rows)
    return _torch(queries, items, cross, rows, tau)


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
