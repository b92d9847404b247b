"""Does `retrieve` reach its target recall without tuning, in every band of the pass rate? On your data, and stretched.

    python examples/recall_on_real_data.py --work build/recall \
      --corpus "Debian=debian/items.parquet,debian/queries.parquet" \
      --corpus "Unicode=demo/items.parquet,demo/queries.parquet"

Every corpus is measured as it is, and with each item's embedding multiplied by a log-normal factor (sigma 1), since
inner products of rows of very different lengths are where clustered search fails first. The index, the artifact and the
search have their default settings; every query is then searched exactly (`--audit`). Prints a Markdown table: mean
recall and the lower end of its 95 % interval. A band of 256 queries or fewer is answered exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stcli

SEED, SIGMA = 0, 1.0
HEAD = "| corpus | queries | band | queries in it | recall | at least | reached |\n|---|---|---|---:|---:|---:|---|"


def stretch(items: Path, path: Path) -> None:
    """Write the items with each embedding multiplied by a log-normal factor."""
    table = pq.read_table(items)
    place = table.schema.get_field_index("embedding")
    column = table.column(place).combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(column), -1)
    vectors = vectors * np.random.default_rng(SEED).lognormal(0, SIGMA, (len(vectors), 1)).astype(np.float32)
    longer = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    pq.write_table(table.set_column(place, "embedding", longer), path)


def measure(name: str, items: Path, queries: Path, work: Path, k: int, target: float) -> bool:
    """Print one line for all queries and one for each band; whether all reach the target."""
    index, model, results = work / "items.index", work / "model.safetensors", work / "results"
    stcli.build_index(items, index, overwrite=True)
    stcli.pack_model(index, model, overwrite=True)
    filters = {"filter_column": "filter"} if "filter" in pq.read_schema(queries).names else {}
    count = pq.ParquetFile(queries).metadata.num_rows
    summary = stcli.retrieve(
        model, queries, results, overwrite=True, k=k, target_recall=target, audit=count, **filters
    )  # fmt: skip
    every = True
    for band, line in summary["audit"].items():
        reached = line["recall"] >= target
        every &= reached
        print(
            f"| {name} | {count:,} | {band} | {line['queries']:,} | {line['recall']:.4f} | {line['low']:.4f} | "
            f"{'yes' if reached else '**no**'} |"
        )
    return every


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every corpus, as it is and stretched."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", required=True, help="NAME=ITEMS,QUERIES; may be given again")
    parser.add_argument("--work", type=Path, required=True, help="folder for indexes, artifacts and results")
    parser.add_argument("--k", type=int, default=100, help="results a query (default %(default)s)")
    parser.add_argument("--target", type=float, default=0.95, help="recall asked for (default %(default)s)")
    given = parser.parse_args(argv)
    given.work.mkdir(parents=True, exist_ok=True)
    print(HEAD)
    every = True
    for entry in given.corpus:
        name, _, paths = entry.partition("=")
        items, _, queries = paths.partition(",")
        if not queries:
            parser.error(f"--corpus {entry!r}: expected NAME=ITEMS,QUERIES")
        stretched = given.work / "stretched.parquet"
        stretch(Path(items), stretched)
        for told, table in ((name, Path(items)), (f"{name}, log-normal rows", stretched)):
            every &= measure(told, table, Path(queries), given.work, given.k, given.target)
    if not every:
        raise SystemExit(f"recall {given.target:g} was missed")


if __name__ == "__main__":
    main()
