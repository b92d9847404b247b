"""k-means on the int8 grid: the same clusters, byte for byte, for any number of threads and any device.

Distances are exact int8 dot products scaled in float32; sums are kept in int64 fixed point, whose
order of addition does not matter.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from stcli.ops.assign_clusters import assign_clusters
from stcli.ops.quantize_rows import quantize_rows
from stcli.types import Quantized

ITERATIONS = 8
POINTS_PER_CLUSTER = 64
FIXED_POINT_BITS = 40
"""Sums hold values up to the largest in 40 bits, which leaves room for 2^23 points a cluster."""

SUM_ROWS = 1 << 14

DISTANCE_ROWS = 1 << 10


def default_num_clusters(num_items: int) -> int:
    """The power of two nearest (in log) to 4 * sqrt(num_items), at most the number of items."""
    wanted = 2 ** round(np.log2(max(4 * np.sqrt(num_items), 1)))
    return int(min(wanted, num_items))


def sample_rows(num_items: int, num_clusters: int, seed: int) -> np.ndarray:
    """The rows that k-means looks at: ascending int64, at most 64 a cluster."""
    wanted = min(num_items, POINTS_PER_CLUSTER * num_clusters)
    generator = np.random.default_rng([seed, 1])
    return np.sort(generator.choice(num_items, wanted, replace=False))


def train(
    points: torch.Tensor,
    num_clusters: int,
    *,
    seed: int = 0,
    iterations: int = ITERATIONS,
    backend: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Find cluster centres by Lloyd's iterations from a random start (Lloyd 1982).

    A cluster that loses all its points is put beside the centre of one of the largest.

    Args:
        points: float32 [R, D], R >= num_clusters.
        num_clusters: C.
        seed: of the start.
        iterations: Lloyd's iterations.
        backend: see `ops/dispatch.py`.
        progress: called with the number of each finished iteration.

    Returns:
        `Quantized` centroids, codes int8 [C, Dp] and scales float32 [C].
    """
    generator = np.random.default_rng([seed, 2])
    start = np.sort(generator.choice(len(points), num_clusters, replace=False))
    centres = points[torch.from_numpy(start).to(points.device)].clone()
    codes = quantize_rows(points, backend=backend)
    unit = 2.0**FIXED_POINT_BITS / max(float(points.abs().max()), 1e-30)
    for iteration in range(iterations):
        chosen = assign(codes, quantize_rows(centres, backend=backend), backend=backend)
        sums = torch.zeros(num_clusters, points.shape[1], dtype=torch.int64, device=points.device)
        for part, owner in zip(points.split(SUM_ROWS), chosen.split(SUM_ROWS), strict=True):
            sums.index_add_(0, owner, (part.double() * unit).round().long())
        sizes = torch.bincount(chosen, minlength=num_clusters)
        centres = (sums.double() / unit / sizes.clamp(min=1).double()[:, None]).float()
        _reseed_empty(centres, sizes)
        if progress:
            progress(iteration + 1)
    return quantize_rows(centres, backend=backend)


def assign(rows: Quantized, centroids: Quantized, *, backend: str = "auto") -> torch.Tensor:
    """The nearest centre of each row by Euclidean distance; int64 [R], ties to the smaller number."""
    squares = centroids.codes.to(torch.int32).square().sum(1).float()
    # A power of two brings the scales near 1: their products then neither vanish nor overflow, whatever the unit of the
    # embeddings, and nothing else changes.
    unit = 2.0 ** -int(torch.frexp(centroids.scales.max()).exponent)
    rows = Quantized(rows.codes, rows.scales * unit)
    centroids = Quantized(centroids.codes, centroids.scales * unit)
    half_norms = squares * centroids.scales * centroids.scales / 2
    return assign_clusters(rows, centroids, half_norms, backend=backend)


def squared_distances(rows: Quantized, centroids: Quantized, chosen: torch.Tensor) -> torch.Tensor:
    """The squared distance of each row from its centre `chosen` int64 [R]; float64 [R], the same on any device.

    Rows and centres are taken as quantized, so that all sums are of whole numbers.
    """
    of_centres = centroids.codes.int().square().sum(1)
    parts = []
    for codes, scales, mine in zip(*(x.split(DISTANCE_ROWS) for x in (rows.codes, rows.scales, chosen)), strict=True):
        row, centre = scales.double(), centroids.scales.double()[mine]
        dots = (codes.int() * centroids.codes[mine]).sum(1)
        squares = codes.int().square().sum(1)
        parts.append((row * row) * squares - 2 * (row * centre) * dots + (centre * centre) * of_centres[mine])
    return torch.cat(parts)


def _reseed_empty(centres: torch.Tensor, sizes: torch.Tensor) -> None:
    """Move the centres of empty clusters beside those of the largest ones, in place."""
    empty = torch.nonzero(sizes == 0).flatten()
    if not len(empty):
        return
    largest = torch.sort(sizes, descending=True, stable=True).indices[: len(empty)]
    sign = torch.ones(centres.shape[1], device=centres.device)
    sign[::2] = -1
    centres[empty] = centres[largest] * (1 + sign / 64)
