"""The native form of both searches: one structure with all arguments, as `kernels/arguments.h` declares it."""

from __future__ import annotations

import ctypes

import torch

from stcli.ops import native
from stcli.ops.scan import Scan
from stcli.types import Candidates


class _SearchArguments(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_queries", "num_rows", "dim")),
        *((name, ctypes.c_void_p) for name in ("query_codes", "query_scales", "query_norms", "query_errors")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "errors", "norms")),
        ("num_clusters", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("offsets", "centroid_codes", "centroid_scales", "words")),
        ("num_words", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("filter_of_query", "span_words", "span_starts")),
        *((name, ctypes.c_void_p) for name in ("excluded_rows", "excluded_begins", "excluded_ends", "floors")),
        ("k0", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("found_rows", "found_scores")),
        ("num_threads", ctypes.c_int64),
    ]


def run_native(scan: Scan, function: str, *more: torch.Tensor | int, lists: int | None = None) -> Candidates:
    """Call `stcli_<function>(arguments, *more)`; tensors go as pointers, numbers as int64.

    Args:
        scan: checked.
        function: of the library.
        more: contiguous where they are written to.
        lists: lines of the candidates, where it is not one a query.
    """
    library = native.library()
    assert library is not None
    queries, index, num_queries = scan.queries, scan.index, len(scan.queries.scales)
    shape = (num_queries if lists is None else lists, scan.k0)
    rows, scores = torch.empty(shape, dtype=torch.int64), torch.empty(shape, dtype=torch.float32)
    tensors = {
        "query_codes": queries.codes,
        "query_scales": queries.scales,
        "codes": index.codes,
        "scales": index.scales,
        "errors": index.errors,
        "norms": index.norms,
        "offsets": index.clusters.offsets,
        "centroid_codes": index.clusters.centroids.codes,
        "centroid_scales": index.clusters.centroids.scales,
        "found_rows": rows,
        "found_scores": scores,
    }
    if scan.bounds is not None:
        tensors["query_norms"], tensors["query_errors"] = scan.bounds
    if scan.floors is not None:
        tensors["floors"] = scan.floors
    if scan.words is not None and scan.words.numel():
        tensors |= {"words": scan.words, "filter_of_query": scan.filter_of_query}
    if scan.spans is not None:
        tensors |= {"span_words": scan.spans.words, "span_starts": scan.spans.starts}
    if scan.excluded is not None and len(scan.excluded.values):
        lines = scan.excluded
        tensors |= {"excluded_rows": lines.values, "excluded_begins": lines.begins, "excluded_ends": lines.ends}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}  # kept alive until the call returns
    kept = [item.contiguous() if isinstance(item, torch.Tensor) else item for item in more]
    arguments = _SearchArguments(
        num_queries=num_queries,
        num_rows=len(index.scales),
        dim=index.codes.shape[1],
        num_clusters=len(index.clusters.offsets) - 1,
        num_words=-(-len(index.scales) // 64),
        k0=scan.k0,
        num_threads=native.num_threads(),
        **{name: tensor.data_ptr() for name, tensor in contiguous.items()},
    )
    failed = getattr(library, f"stcli_{function}")(
        ctypes.byref(arguments),
        *(native.pointer(item) if isinstance(item, torch.Tensor) else ctypes.c_int64(item) for item in kept),
    )
    if failed:
        raise MemoryError(f"{function}: out of memory")
    return Candidates(rows, scores)
