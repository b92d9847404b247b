"""Tiles of the queries that probe the same cluster, made on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from stcli.ops import cuda
from stcli.ops.rounds import LISTED, NARROW, WIDE, WIDE_QUERIES, Fit, Work

NO_SPAN = -(2**63)
"""As kernels/keys.cuh has it."""

_THREADS = 256


def work_over_probes(
    probes: torch.Tensor,
    offsets: torch.Tensor,
    row_steps: Sequence[int],
    fit: Fit,
    starts: torch.Tensor | None = None,
) -> list[list[Work]]:
    """For each row step, tiles of the queries that probe the same cluster, times those of its rows that it divides.

    Args:
        probes: int64 [B, P]; -1 in unused slots.
        offsets: int64 [C + 1].
        row_steps: at least 1 each.
        fit: which kernels the device can run.
        starts: int64 [B, P], of `Spans`, or None.
    """
    num_clusters, num_pairs, device = len(offsets) - 1, probes.numel(), probes.device
    if not num_clusters or not num_pairs:
        return [[] for _ in row_steps]
    each = num_pairs / num_clusters
    form = fit(LISTED if each < 4 else NARROW if each < WIDE_QUERIES else WIDE)
    counts = torch.zeros(num_clusters, dtype=torch.int32, device=device)
    places = torch.empty(num_pairs, dtype=torch.int32, device=device)
    begins, first_tiles = torch.empty_like(counts), counts.new_empty(num_clusters + 1)
    most = num_pairs // form.tile_queries + min(num_clusters, num_pairs)
    tiles = torch.empty(most, 4, dtype=torch.int64, device=device)
    queries = torch.empty(num_pairs, dtype=torch.int64, device=device)
    lines = None if starts is None else torch.empty_like(queries)
    starts = None if starts is None else starts.contiguous()
    probes, blocks = probes.contiguous(), -(-num_pairs // _THREADS)
    _launch("count_probes", blocks, _THREADS, probes, num_pairs, counts, places)
    sizes = num_clusters, form.tile_queries
    threads = min(max(1 << (num_clusters // 4).bit_length(), 32), 1024)
    _launch("begin_clusters", 1, threads, counts, *sizes, begins, first_tiles)
    wide = -(-max(num_clusters, most) // _THREADS)
    _launch("cut_tiles", wide, _THREADS, counts, offsets, *sizes, begins, first_tiles, tiles, most)
    given = probes, num_pairs, probes.shape[1], offsets, starts
    _launch("place_probes", blocks, _THREADS, *given, begins, places, queries, lines)
    return [[Work(form, tiles, queries, lines, row_step)] for row_step in row_steps]


_launch = partial(cuda.launch, "probe_tiles.cu")
