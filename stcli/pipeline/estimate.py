"""`--dry-run`: what a command would write, hold and take, found by doing a sample of it in a temporary folder.

A sample goes through the same code as the run, so that an estimate cannot drift away from it. It is the head of the
table: where the rows are sorted by something that matters, the estimate is off.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stcli.index.kmeans import default_num_clusters
from stcli.pipeline.memory import MemoryWatch
from stcli.pipeline.shards import cut_blocks, shard_bytes
from stcli.storage.index_dir import IndexDir
from stcli.storage.parquet import Table
from stcli.storage.sizes import array_bytes, bytes_by_group

if TYPE_CHECKING:
    from stcli.pipeline.run import Job, Run

BUILD_ROWS = 16_384
"""A build is sampled at so many rows and at twice as many: the vocabulary grows slower than the rest."""

RETRIEVE_ROWS = 2048

PACK_BYTES_PER_S = 400e6
"""Hashing and writing, 2 cores of AMD EPYC Zen 4."""

Built = tuple[dict[str, dict[str, Any]], dict[str, float]]


def estimate_build(table: Table, clusters: int | None, build: Callable[[Table, Path], Built]) -> dict[str, Any]:
    """Bytes and seconds of a build.

    Args:
        table: of the items.
        clusters: as asked for.
        build: builds the rows of a table into a folder; gives the described arrays and the seconds of each stage.

    Returns:
        `counts`, `bytes` by group and in all, `seconds` by stage and in all.
    """
    total = table.num_rows
    sizes: list[tuple[int, dict[str, int]]] = []
    for rows in (BUILD_ROWS, 2 * BUILD_ROWS):
        if sizes and total <= BUILD_ROWS:
            break
        with tempfile.TemporaryDirectory(prefix="stcli-estimate-") as folder:
            arrays, seconds = build(table.head(rows), Path(folder))
        sizes.append((min(rows, total), bytes_by_group(arrays)))
    (first, small), (last, large) = sizes[0], sizes[-1]
    slope = {group: (large[group] - small[group]) / max(last - first, 1) for group in large}
    found = {group: round(large[group] + slope[group] * (total - last)) for group in large}
    wider = (clusters or default_num_clusters(total)) / min(clusters or default_num_clusters(last), last)
    grown = {"cluster": wider**2, "assign": wider * total / last}
    stages = {stage: round(value * grown.get(stage, total / last), 2) for stage, value in seconds.items()}
    return {
        "counts": {"items": total, "sampled": last, "clusters": min(clusters or default_num_clusters(total), total)},
        "bytes": found,
        "timings_s": {stage: round(value, 2) for stage, value in stages.items()}
        | {"total": round(sum(stages.values()), 2)},
    }


def estimate_pack(
    index: IndexDir, dtype: str, dim: int, learned: Mapping[str, Mapping[str, Any]], shards: int | None
) -> dict[str, Any]:
    """Bytes and seconds of packing an index with embeddings of `dim` dimensions.

    Args:
        index: the index.
        dtype, dim: of the packed embeddings.
        learned: arrays of tower and OverArch, as a manifest describes them; writing them is in the seconds, computing
            them is not.
        shards: files to cut the artifact into, or None for one.

    Raises:
        InputError: the items are too few for so many shards.
    """
    arrays = pack_arrays(index, dtype, dim) | dict(learned)
    total = sum(array_bytes(entry) for entry in arrays.values())
    found = {
        "counts": {"items": int(index.manifest["num_items"]), "embedding_dim": dim},
        "bytes": bytes_by_group(arrays),
        "timings_s": {"total": round(total / PACK_BYTES_PER_S * (1 if shards is None else 2), 2)},
    }
    if shards is not None:
        found["shards"] = shard_bytes(arrays, index.arrays, cut_blocks(arrays, index.arrays, shards))
    return found


def pack_arrays(index: IndexDir, dtype: str, dim: int) -> dict[str, Any]:
    """Type and shape of the arrays that an index is packed to, but for learned layers."""
    manifest = index.manifest
    num_items = int(manifest["num_items"])
    arrays: dict[str, Any] = {name: entry for name, entry in manifest["arrays"].items() if name != "embeddings"}
    if dtype != "none":
        arrays["embedding_values"] = {"dtype": dtype, "shape": [num_items, dim]}
        if dtype == "float16":
            arrays["embedding_exponents"] = {"dtype": "int8", "shape": [num_items]}
        if dim == int(manifest["dim"]):
            arrays |= {name: {"dtype": "float32", "shape": [num_items]} for name in ("errors", "norms")}
    return arrays


def estimate_retrieve(job: Job, run: Run) -> dict[str, Any]:
    """Bytes and seconds of a retrieve, from its first queries.

    Args:
        job: the run asked for.
        run: opened and checked.
    """
    rows = min(run.num_rows, RETRIEVE_ROWS)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="stcli-estimate-") as folder:
        limits = {name: None for name in ("min_recall", "max_short_fraction") if hasattr(job.config, name)}
        config = replace(
            job.config,
            dry_run=False,
            limit=rows,
            workers=1,
            resume=False,
            overwrite=False,
            **limits,  # type: ignore[arg-type]
        )
        output = Path(folder) / "sample"
        with MemoryWatch() as memory:
            summary = run.over(replace(job, output=str(output), config=config)).go(memory)
        written = sum(part.stat().st_size for part in output.glob("part-*.parquet"))
    share = run.num_rows / max(rows, 1)
    search = summary["timings_s"]["search"] * share
    calibrate = summary["timings_s"]["calibrate"]
    return {
        "counts": {"queries": run.num_rows, "parts": run.num_parts, "sampled": rows},
        "bytes": {"results": round(written * share), **run.model.bytes_by_group()},
        "placement": run.placement.summary() if run.placement else None,
        "timings_s": {
            "calibrate": round(calibrate, 2),
            "search": round(search, 2),
            "total": round(calibrate + search, 2),
            "estimating": round(time.perf_counter() - start, 2),
        },
    }
