"""Choose the clusters that each query looks into."""

from __future__ import annotations

import torch

from stcli.errors import InputError
from stcli.ops import native
from stcli.ops.checks import Shapes
from stcli.ops.dispatch import resolve
from stcli.ops.int_dot import int_dot
from stcli.ops.keys import best_keys, make_keys, split_keys
from stcli.ops.scan import Scan
from stcli.ops.scan_cuda import search_all_rows, sorts
from stcli.types import Candidates, Clusters, Quantized, SearchIndex

_TILE_SCORES = 1 << 21


def choose_probes(
    queries: Quantized,
    centroids: Quantized,
    *,
    num_probes: int,
    reaches: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """List the most promising clusters of each query, best first.

    The score of a cluster is the dot product of its centroid with the query, plus its reach times the length of the
    query: a wide cluster holds rows that are much better than its centroid. In float32, it is
    `(float32(dot) * query_scale) * centroid_scale + (sqrt(float32(squares)) * query_scale) * reach`, `squares` being
    the exact sum of the squared query codes; of equal scores the smaller cluster comes first.

    Args:
        queries: codes int8 [B, Dp], scales float32 [B].
        centroids: codes int8 [C, Dp], scales float32 [C].
        num_probes: clusters for each query, at least 1.
        reaches: float32 [C], finite and not negative; None for zeros.
        backend: see `ops/dispatch.py`.

    Returns:
        int64 [B, P] with P = min(num_probes, C), each in 0 … C-1, no repeats within a line.

    Raises:
        TensorError: a tensor has another dtype or shape than stated.
        InputError: num_probes is below 1.
    """
    shapes = Shapes()
    shapes.check("queries.codes", queries.codes, torch.int8, "B Dp")
    shapes.check("queries.scales", queries.scales, torch.float32, "B")
    shapes.check("centroids.codes", centroids.codes, torch.int8, "C Dp")
    shapes.check("centroids.scales", centroids.scales, torch.float32, "C")
    if reaches is None:
        reaches = torch.zeros_like(centroids.scales)
    shapes.check("reaches", reaches, torch.float32, "C")
    if num_probes < 1:
        raise InputError(f"num_probes is {num_probes}; expected at least 1")
    num_probes = min(num_probes, len(centroids.scales))
    forms = {"torch": _torch, "native": _native, "cuda": _cuda}
    form = forms[resolve(backend, queries.codes, kernel=sorts(num_probes, queries.codes.device))]
    return form(queries, centroids, reaches, num_probes)


def _lengths(queries: Quantized) -> torch.Tensor:
    """Lengths float32 [B] of the quantized queries."""
    return queries.codes.int().square().sum(1).float().sqrt() * queries.scales


def _torch(queries: Quantized, centroids: Quantized, reaches: torch.Tensor, num_probes: int) -> torch.Tensor:
    num_queries, num_clusters = len(queries.scales), len(centroids.scales)
    probes = torch.empty((num_queries, num_probes), dtype=torch.int64, device=queries.codes.device)
    clusters = torch.arange(num_clusters, device=queries.codes.device)
    for part in torch.arange(num_queries, device=probes.device).split(max(1, _TILE_SCORES // max(num_clusters, 1))):
        some = Quantized(queries.codes[part], queries.scales[part])
        dots = int_dot(some.codes, centroids.codes)
        scores = (dots.float() * some.scales[:, None]) * centroids.scales + _lengths(some)[:, None] * reaches
        probes[part] = split_keys(best_keys(make_keys(scores, clusters), num_probes)).rows
    return probes


def _native(queries: Quantized, centroids: Quantized, reaches: torch.Tensor, num_probes: int) -> torch.Tensor:
    probes = torch.empty((len(queries.scales), num_probes), dtype=torch.int64)
    tensors = (queries.codes, queries.scales, centroids.codes, centroids.scales, reaches)
    sizes = (*queries.codes.shape[:1], *centroids.codes.shape, num_probes, native.num_threads())
    native.call("stcli_choose_probes", *tensors, *sizes, probes)
    return probes


def _cuda(queries: Quantized, centroids: Quantized, reaches: torch.Tensor, num_probes: int) -> torch.Tensor:
    """The centroids are the rows of a search without clusters, their reaches the errors in its bounds."""
    none = torch.empty(0, dtype=torch.int64, device=queries.codes.device)
    index = SearchIndex(centroids.codes, centroids.scales, reaches, reaches, Clusters(centroids, none))
    lengths = _lengths(queries)
    scan = Scan(queries, index, None, none, num_probes, None, (lengths, torch.zeros_like(lengths)))

    def torch_form(part: Scan, _: torch.Tensor) -> Candidates:
        rows = _torch(part.queries, centroids, reaches, num_probes)
        return Candidates(rows, torch.zeros_like(rows, dtype=torch.float32))

    return search_all_rows(scan, torch_form).rows
