"""How near `stcli.retrieve`, from Parquet to Parquet, comes to the same searches of a matrix in memory.

    python examples/parquet_to_parquet.py model.safetensors queries.parquet [--probes 64] [--k 100] [--turns 5]

Takes turns; every run is a process of its own, so that each reads the artifact anew, from the system's cache of files.
Counted are the queries and the seconds of the search: in memory from the first vector to the last rows and scores, in
`retrieve` from the first row read to the last part on the disk. Neither has filters; ids are looked up in
`retrieve` alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

import stcli


def in_memory(given: argparse.Namespace) -> float:
    """Queries a second of the model's own call, in batches as `retrieve` has them."""
    column = pq.read_table(given.queries, columns=[given.embedding_column]).column(0).combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    model = stcli.open_artifact(given.model, device="cpu")
    begin = time.perf_counter()
    for first in range(0, len(vectors), given.batch_size):
        model(vectors[first : first + given.batch_size], k=given.k, probes=given.probes)
    return len(vectors) / (time.perf_counter() - begin)


def from_parquet(given: argparse.Namespace) -> float:
    """What `retrieve` says of itself."""
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        out = Path(folder) / "results"
        stcli.retrieve(
            given.model, given.queries, out, k=given.k, probes=given.probes, batch_size=given.batch_size,
            id_column=given.id_column, embedding_column=given.embedding_column, device="cpu",
        )  # fmt: skip
        return float(json.loads((out / "_run.json").read_text(encoding="utf-8"))["queries_per_s"])


def measure(way: str, arguments: list[str]) -> float:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, *arguments, "--way", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


WAYS = {"memory": in_memory, "parquet": from_parquet}


def main(arguments: list[str]) -> None:
    """Print a line for each turn, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("queries", help="one Parquet file")
    parser.add_argument("--id-column", default="query_id")
    parser.add_argument("--embedding-column", default="embedding")
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8192)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scratch", help="folder for the results; default: that of temporary files")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        print(WAYS[given.way](given))
        return
    print("turn  in memory, queries/s  from Parquet to Parquet  share")
    found = []
    for turn in range(1, given.turns + 1):
        rates = {way: measure(way, arguments) for way in list(WAYS)[:: 1 if turn % 2 else -1]}
        found.append((rates["memory"], rates["parquet"]))
        print(f"{turn:4}  {found[-1][0]:21,.0f}  {found[-1][1]:23,.0f}  {found[-1][1] / found[-1][0]:5.2f}", flush=True)
    memory, parquet = (median(rates) for rates in zip(*found, strict=True))
    shares = sorted(there / here for here, there in found)
    print(f"median{memory:20,.0f}  {parquet:23,.0f}  {median(shares):5.2f} ({shares[0]:.2f}-{shares[-1]:.2f})")


if __name__ == "__main__":
    main(sys.argv[1:])
