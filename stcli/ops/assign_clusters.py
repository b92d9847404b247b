"""Assign each row to its nearest centroid."""

from __future__ import annotations

import torch

from stcli.errors import InputError
from stcli.ops import native
from stcli.ops.checks import Shapes
from stcli.ops.dispatch import resolve
from stcli.ops.int_dot import int_dot
from stcli.types import Quantized

_TILE_SCORES = 1 << 22


def assign_clusters(
    rows: Quantized, centroids: Quantized, half_norms: torch.Tensor, *, backend: str = "auto"
) -> torch.Tensor:
    """Find the centroid with the largest `dot - half_norm` for each row.

    The value is `((float32(dot) * centroid_scale) * row_scale) - half_norms[c]` in float32, in this order; of equal
    values the smaller cluster wins. With half the squared norms of the centroids that is the nearest one in Euclidean
    distance, with zeros the largest dot product.

    Args:
        rows: codes int8 [R, Dp], scales float32 [R].
        centroids: codes int8 [C, Dp], scales float32 [C], at least one.
        half_norms: float32 [C].
        backend: see `ops/dispatch.py`.

    Returns:
        int64 [R] in 0 … C-1.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
    """
    shapes = Shapes()
    shapes.check("rows.codes", rows.codes, torch.int8, "R Dp")
    shapes.check("rows.scales", rows.scales, torch.float32, "R")
    shapes.check("centroids.codes", centroids.codes, torch.int8, "C Dp")
    shapes.check("centroids.scales", centroids.scales, torch.float32, "C")
    shapes.check("half_norms", half_norms, torch.float32, "C")
    if not len(half_norms):
        raise InputError("centroids are empty; expected at least one")
    form = _native if resolve(backend, rows.codes) == "native" else _torch
    return form(rows, centroids, half_norms)


def _torch(rows: Quantized, centroids: Quantized, half_norms: torch.Tensor) -> torch.Tensor:
    clusters = torch.empty(len(rows.scales), dtype=torch.int64, device=rows.codes.device)
    step = max(1, _TILE_SCORES // len(half_norms))
    for start in range(0, len(clusters), step):
        dots = int_dot(rows.codes[start : start + step], centroids.codes)
        scaled = (dots.float() * centroids.scales) * rows.scales[start : start + step, None]
        clusters[start : start + step] = (scaled - half_norms).max(1).indices  # the first of equal values
    return clusters


def _native(rows: Quantized, centroids: Quantized, half_norms: torch.Tensor) -> torch.Tensor:
    clusters = torch.empty(len(rows.scales), dtype=torch.int64)
    tensors = (rows.codes, rows.scales, centroids.codes, centroids.scales, half_norms)
    sizes = (len(rows.scales), *centroids.codes.shape, native.num_threads())
    native.call("stcli_assign_clusters", *tensors, *sizes, clusters)
    return clusters
