"""Score candidates again from the packed embeddings, in a stated order of additions."""

from __future__ import annotations

import torch

from stcli.ops import cuda, native
from stcli.ops.checks import Shapes, check_range
from stcli.ops.dispatch import reads_values, resolve
from stcli.types import Embeddings

_LANES = 16
_THREADS = 256
_CANDIDATES_A_BLOCK = _THREADS // _LANES
_TILE_NUMBERS = 1 << 22


def rescore(
    queries: torch.Tensor, embeddings: Embeddings, rows: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Take the dot product of each query with its candidate rows, in float32.

    The order of additions is part of the contract, so that a score is the same in any batch and form: lane j of 16 sums
    `value[d] * query[d]` over d = j, j + 16, … with products and sums rounded one by one; then lane i takes lane i + 8,
    i + 4, i + 2, i + 1.

    Args:
        queries: float32 [B, D].
        embeddings: values float16 or float32 [N, D], exponents int8 [N] or None.
        rows: int64 [B, M] in 0 … N-1, or -1 for an empty slot.
        backend: see `ops/dispatch.py`.

    Returns:
        float32 [B, M], -inf in empty slots.

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
    """
    shapes = Shapes()
    shapes.check("queries", queries, torch.float32, "B D")
    shapes.check("embeddings.values", embeddings.values, (torch.float16, torch.float32), "N D")
    if embeddings.exponents is not None:
        shapes.check("embeddings.exponents", embeddings.exponents, torch.int8, "N")
    shapes.check("rows", rows, torch.int64, "B M")
    form = resolve(backend, queries, kernel=True)
    if reads_values(form, rows):
        check_range("rows", rows, len(embeddings.values))
    return {"torch": _torch, "native": _native, "cuda": _cuda}[form](queries, embeddings, rows)


def _torch(queries: torch.Tensor, embeddings: Embeddings, rows: torch.Tensor) -> torch.Tensor:
    scores = torch.full(rows.shape, -torch.inf, dtype=torch.float32, device=rows.device)
    slots = (rows.flatten() >= 0).nonzero()[:, 0]
    for part in slots.split(max(1, _TILE_NUMBERS // max(queries.shape[1], 1))):
        values = _values(embeddings, rows.flatten()[part])
        scores.view(-1)[part] = _ordered_dot(values, queries[part // rows.shape[1]])
    return scores


def _values(embeddings: Embeddings, rows: torch.Tensor) -> torch.Tensor:
    values = embeddings.values[rows].float()
    if embeddings.exponents is None:
        return values
    # A table, since pow() need not be exact.
    powers = torch.tensor([2.0**exponent for exponent in range(-128, 128)], dtype=torch.float32, device=rows.device)
    return values * powers[embeddings.exponents[rows].long() + 128, None]


def _ordered_dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    lanes = torch.zeros((len(left), _LANES), dtype=torch.float32, device=left.device)
    for start in range(0, left.shape[1], _LANES):
        products = left[:, start : start + _LANES] * right[:, start : start + _LANES]
        lanes[:, : products.shape[1]] += products
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _native(queries: torch.Tensor, embeddings: Embeddings, rows: torch.Tensor) -> torch.Tensor:
    scores = torch.empty(rows.shape, dtype=torch.float32)
    half = embeddings.values.dtype == torch.float16
    sizes = (*rows.shape, queries.shape[1], native.num_threads())
    native.call("stcli_rescore", queries, embeddings.values, half, embeddings.exponents, rows, *sizes, scores)
    return scores


def _cuda(queries: torch.Tensor, embeddings: Embeddings, rows: torch.Tensor) -> torch.Tensor:
    scores = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    exponents = None if embeddings.exponents is None else embeddings.exponents.contiguous()
    cuda.launch(
        "rescore.cu",
        "rescore",
        -(-rows.numel() // _CANDIDATES_A_BLOCK),
        _THREADS,
        queries.contiguous(),
        embeddings.values.contiguous(),
        int(embeddings.values.dtype == torch.float16),
        exponents,
        rows.contiguous(),
        *rows.shape,
        queries.shape[1],
        scores,
    )
    return scores
