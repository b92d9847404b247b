"""How cost grows: seconds to build, and queries a second, as items and k grow.

    python examples/growth.py --out examples/reports/growth [--items 100000,1000000,4000000] [--k 10,100,1000]

Items are unit vectors of 128 dimensions around 2,000 centres with a feature `bucket` of 100 values; queries come from
the same centres, without a filter, and each with one that 5 % of the items pass. Each setting runs the default plan
(recall 0.95, calibrated first) on decoded queries, as `stcli bench` times it. Writes a table and a plot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import stcli
from stcli.filters.source import GivenFilters
from stcli.measure.machine import describe_machine, versions
from stcli.model.calibrate import calibrate
from stcli.model.planner import SearchOptions, default_candidates

DIM, CENTRES, NOISE, CHUNK = 128, 2_000, 0.75, 100_000
REPEATS = 3


def vectors(rng: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors float32 [count, DIM] around random centres."""
    noise = rng.standard_normal((count, DIM), dtype=np.float32) * np.float32(NOISE / DIM**0.5)
    made = centres[rng.integers(0, len(centres), count)] + noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def write_items(path: Path, centres: np.ndarray, count: int) -> None:
    """A Parquet table of `count` items."""
    rng = np.random.default_rng(1)
    writer = None
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        table = pa.table(
            {
                "item_id": np.arange(start, start + size),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors(rng, centres, size).ravel(), DIM),
                "bucket": rng.integers(0, 100, size),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def measure(folder: Path, items: int, ks: Sequence[int], queries: int) -> list[dict[str, Any]]:
    """One line for each k at one number of items."""
    rng = np.random.default_rng(0)
    centres = vectors(rng, np.zeros((1, DIM), np.float32), CENTRES)
    users = torch.from_numpy(vectors(rng, centres, queries))
    filters = [f"bucket BETWEEN {low} AND {low + 4}" for low in rng.integers(0, 96, queries)]
    write_items(folder / "items.parquet", centres, items)
    begin = time.perf_counter()
    stcli.build_index(folder / "items.parquet", folder / "index", feature_columns=["bucket"], overwrite=True)
    build_s = time.perf_counter() - begin
    stcli.pack_model(folder / "index", folder / "model.safetensors", overwrite=True)
    model = stcli.open_artifact(folder / "model.safetensors")
    lines = []
    for k in ks:
        for kind, texts in (("no filter", [None] * queries), ("5 % pass", filters)):
            source = GivenFilters(model.planner, texts)
            plan = calibrate(model, users, source, k)
            options = SearchOptions(k, default_candidates(k), calibration=plan)
            seconds = []
            for _ in range(REPEATS):
                begin = time.perf_counter()
                found = model.search(users, source, options)
                seconds.append(time.perf_counter() - begin)
            lines.append(
                {
                    "items": items,
                    "k": k,
                    "kind": kind,
                    "queries_per_s": queries / float(np.median(seconds)),
                    "scored": float(found.work.double().mean()),
                    "build_s": build_s,
                }
            )
            print(f"{items:>10,} items  k {k:>5}  {kind:<10} {lines[-1]['queries_per_s']:>9,.0f} queries/s")
    return lines


def write_report(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    """A Markdown table and a plot."""
    import matplotlib.pyplot as plt

    machine = describe_machine(torch.device("cpu"))
    text = [
        "# How cost grows",
        "",
        f"{time.strftime('%Y-%m-%d')}, {machine['cores']} cores of {machine['cpu']}, stcli {versions()['stcli']}; "
        f"`python examples/growth.py`, median of {REPEATS}, recall@k 0.95 of every band.",
        "",
        "| items | build s | k | filter | queries/s | items scored a query |",
        "|---:|---:|---:|---|---:|---:|",
    ]
    text += [
        "| {items:,} | {build_s:.1f} | {k:,} | {kind} | {queries_per_s:,.0f} | {scored:,.0f} |".format(**line)
        for line in lines
    ]
    (out / "growth.md").write_text("\n".join([*text, "", "![queries a second by items](growth.svg)", ""]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, kind in zip(axes, dict.fromkeys(line["kind"] for line in lines), strict=True):
        for k in sorted({line["k"] for line in lines}):
            points = [
                (line["items"], line["queries_per_s"]) for line in lines if (line["kind"], line["k"]) == (kind, k)
            ]
            axis.loglog(*zip(*points, strict=True), marker="o", label=f"k = {k:g}")
        axis.set(title=str(kind), xlabel="items")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("queries / s")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(out / "growth.svg", metadata={"Date": None})


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of growth.md and growth.svg")
    parser.add_argument("--items", default="100000,1000000,4000000")
    parser.add_argument("--k", default="10,100,1000")
    parser.add_argument("--queries", type=int, default=10_000)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for items in given.items.split(","):
        with tempfile.TemporaryDirectory() as folder:
            lines += measure(Path(folder), int(items), [int(k) for k in given.k.split(",")], given.queries)
    write_report(given.out, lines)


if __name__ == "__main__":
    main()
