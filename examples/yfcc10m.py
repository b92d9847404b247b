"""The Big-ANN filter track (NeurIPS 2023, YFCC-10M) with stcli: its files to Parquet, and its measure.

    python examples/yfcc10m.py convert FOLDER --out yfcc     # the track's files -> items, queries and truth as Parquet
    python examples/yfcc10m.py measure yfcc                  # build, pack and bench: recall@10 >= 0.9, queries a second
    python examples/yfcc10m.py make FOLDER --items 100000    # a made set of the same shape in the same formats
    python examples/yfcc10m.py try FOLDER --against faiss    # make one, convert and measure it

The track searches by Euclidean distance among the items that have all one or two tags of a query. stcli maximises inner
products, so the items get more columns: with x and q less the mean, the nearest x maximises q.x - |x|^2 / 2. The second
term is a number for each item; it is spread over the columns that fill 192 up to 224, which the index pads to anyway,
in the scale of the other columns, so that 8 bits serve it as well as them. The order is that of the distances.

Formats: `.u8bin` uint32 rows and columns, then uint8 values. `.spmat` int64 rows, columns and entries, then int64 row
starts, int32 columns, float32 values. `.ibin` uint32 rows and k, then int32 ids, then float32 distances.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stcli
from stcli.measure.report import read_report

BASE, QUERY = "base.10M.u8bin", "query.public.100K.u8bin"
BASE_TAGS, QUERY_TAGS = "base.metadata.10M.spmat", "query.metadata.public.100K.spmat"
TRUTH = "GT.public.ibin"
K, TARGET = 10, 0.9
CHUNK = 1 << 17
MULTIPLE = 32
"""Dimensions are padded to a multiple of this; the columns that fill up carry the length of an item."""


@dataclass(frozen=True)
class Tags:
    """A bag of tags a row: `values[starts[r]:starts[r + 1]]`."""

    starts: np.ndarray
    values: np.ndarray

    def column(self, first: int, last: int) -> pa.Array:
        """Rows as lists."""
        starts = self.starts[first : last + 1]
        values = self.values[starts[0] : starts[-1]]
        return pa.ListArray.from_arrays(pa.array((starts - starts[0]).astype(np.int32)), pa.array(values))

    def row(self, row: int) -> np.ndarray:
        """One bag."""
        return self.values[self.starts[row] : self.starts[row + 1]]


def read_vectors(path: Path) -> np.ndarray:
    """uint8 [rows, columns] of a `.u8bin` file, mapped."""
    rows, columns = np.fromfile(path, np.uint32, 2).tolist()
    expect(path, 8 + rows * columns)
    return np.memmap(path, np.uint8, "r", 8, (rows, columns))


def read_tags(path: Path) -> Tags:
    """The bags of a `.spmat` file."""
    rows, _, entries = np.fromfile(path, np.int64, 3).tolist()
    expect(path, 24 + 8 * (rows + 1) + 8 * entries)
    starts = np.fromfile(path, np.int64, rows + 1, offset=24)
    return Tags(starts, np.fromfile(path, np.int32, entries, offset=24 + 8 * (rows + 1)))


def read_truth(path: Path) -> np.ndarray:
    """int32 [queries, k], the nearest items of an `.ibin` file."""
    rows, k = np.fromfile(path, np.uint32, 2).tolist()
    expect(path, 8 + 8 * rows * k)
    return np.fromfile(path, np.int32, rows * k, offset=8).reshape(rows, k)


def expect(path: Path, size: int) -> None:
    """Stop if a file is not as long as its header says."""
    found = path.stat().st_size
    if found != size:
        raise SystemExit(f"{path}: has {found:,} bytes, its header says {size:,}; download it again")


@dataclass(frozen=True)
class Lift:
    """Turns Euclidean neighbours into largest inner products.

    Attributes:
        mean: float32 [D], whole numbers, so that float16 holds a difference to it exactly.
        centre, scale: of |x|^2 / 2, so that the lifted columns look like the others.
        extra: columns that are added.
    """

    mean: np.ndarray
    centre: float
    scale: float
    extra: int

    @classmethod
    def of(cls, vectors: np.ndarray) -> Lift:
        """Measured on at most 100,000 rows."""
        some = vectors[:: max(len(vectors) // 100_000, 1)].astype(np.float32)
        mean = np.round(some.mean(0))
        halves = ((some - mean) ** 2).sum(1) / 2
        spread = float(np.sqrt(((some - mean) ** 2).mean())) or 1.0
        extra = -(vectors.shape[1] + 1) % MULTIPLE + 1
        return cls(mean, float(halves.mean()), float(halves.std()) / spread or 1.0, extra)

    def items(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [rows, D + extra]."""
        centred = vectors.astype(np.float32) - self.mean
        total = self.extra * (self.centre - (centred.astype(np.float64) ** 2).sum(1) / 2) / self.scale
        each = (total / self.extra).astype(np.float16)
        # All but the last are equal; the last makes up for what float16 rounds away from the others.
        last = total - (self.extra - 1) * each.astype(np.float64)
        added = np.repeat(each.astype(np.float32)[:, None], self.extra, 1)
        added[:, -1] = last
        return np.concatenate([centred, added], 1)

    def queries(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [rows, D + extra]."""
        added = np.full((len(vectors), self.extra), self.scale / self.extra, np.float32)
        return np.concatenate([vectors.astype(np.float32) - self.mean, added], 1)


def lists(vectors: np.ndarray) -> pa.Array:
    """Vectors as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def convert(folder: Path, out: Path) -> None:
    """Write `items.parquet`, `queries.parquet` and `truth.parquet`."""
    vectors, tags = read_vectors(folder / BASE), read_tags(folder / BASE_TAGS)
    if len(vectors) != len(tags.starts) - 1:
        raise SystemExit(f"{folder}: {len(vectors):,} vectors and {len(tags.starts) - 1:,} bags; expected as many")
    lift = Lift.of(vectors)
    out.mkdir(parents=True, exist_ok=True)
    writer = None
    for first in range(0, len(vectors), CHUNK):
        last = min(first + CHUNK, len(vectors))
        table = pa.table(
            {
                "item_id": np.arange(first, last),
                "embedding": lists(lift.items(vectors[first:last])),
                "tags": tags.column(first, last),
            }
        )
        writer = writer or pq.ParquetWriter(out / "items.parquet", table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    asked, bags = read_vectors(folder / QUERY), read_tags(folder / QUERY_TAGS)
    filters = [" AND ".join(f"tags = {tag}" for tag in bags.row(query).tolist()) or None for query in range(len(asked))]
    ids = np.arange(len(asked))
    queries = {"query_id": ids, "embedding": lists(lift.queries(asked)), "filter": pa.array(filters, pa.string())}
    pq.write_table(pa.table(queries), out / "queries.parquet")
    nearest = read_truth(folder / TRUTH)[:, :K].astype(np.int64)
    # A made set may have fewer than k items with the tags: -1 in the file.
    truth = pa.array([line[line >= 0] for line in nearest], pa.list_(pa.int64()))
    pq.write_table(pa.table({"query_id": ids, "item_id": truth}), out / "truth.parquet")
    print(f"{out}: {len(vectors):,} items, {len(asked):,} queries")


def measure(out: Path, sample: int, against: Sequence[str]) -> dict[str, float]:
    """Build, pack and bench; recall@10 against the track's own truth, and the speed of the setting that reaches 0.9."""
    model, items = out / "yfcc.safetensors", out / "items.parquet"
    if not model.exists() or model.stat().st_mtime < items.stat().st_mtime:
        stcli.build_index(items, out / "yfcc.index", feature_columns=["tags"], overwrite=True)
        stcli.pack_model(out / "yfcc.index", model, overwrite=True)
    summary = stcli.bench(
        model, out / "queries.parquet", out / "report", overwrite=True, k=K, sample=sample,
        filter_column="filter", target_recall=TARGET, truth=str(out / "truth.parquet"), against=against, repeat=3,
    )  # fmt: skip
    reached = {name: summary["queries_per_s"][name] for name, recall in summary["recall"].items() if recall >= TARGET}
    best = max(reached, key=lambda name: reached[name], default="none")
    for name, recall in summary["recall"].items():
        print(f"{name:>12}: recall@{K} {recall:.4f} at {summary['queries_per_s'][name]:,.0f} queries/s")
    print(f"fastest with recall@{K} of {TARGET}: {best}, {reached.get(best, 0):,.0f} queries/s; see {out / 'report'}")
    for workload in (read_report(out / "report")["against"] or {"workloads": []})["workloads"]:
        for line in workload["matched"][0]["lines"]:
            speed = "never" if line["setting"] is None else f"{line['queries_per_s']:,.0f} queries/s, {line['setting']}"
            print(f"{workload['name']}, mean recall {TARGET}: {line['name']} {speed}")
    return reached


def make(folder: Path, items: int, queries: int, tags: int, dim: int = 192, seed: int = 0) -> None:
    """Write a made set in the track's formats: clustered uint8 vectors, bags of tags of which few are frequent.

    A query is an item moved a little, and asks for one or two of its tags.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(128, 25, (max(items // 500, 1), dim))
    base = centres[rng.integers(len(centres), size=items)] + rng.normal(0, 18, (items, dim))
    base = base.clip(0, 255).astype(np.uint8)
    weights = 1 / np.arange(1, tags + 1) ** 0.8
    places = np.cumsum(weights / weights.sum())
    sizes = rng.poisson(10, items) + 1
    bags = [np.unique(np.searchsorted(places, rng.random(size)).clip(max=tags - 1)) for size in sizes]
    like = rng.integers(items, size=queries)
    asked = (base[like] + rng.normal(0, 10, (queries, dim))).clip(0, 255).astype(np.uint8)
    wanted = [
        np.sort(rng.choice(bags[row], min(int(rng.integers(1, 3)), len(bags[row])), replace=False)) for row in like
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_vectors(folder / BASE, base)
    write_vectors(folder / QUERY, asked)
    write_tags(folder / BASE_TAGS, bags, tags)
    write_tags(folder / QUERY_TAGS, wanted, tags)
    owners = np.repeat(np.arange(items), [len(bag) for bag in bags])
    flat = np.concatenate(bags)
    order = np.argsort(flat, kind="stable")
    edges = np.searchsorted(flat[order], np.arange(tags + 1))
    having = np.split(owners[order], edges[1:-1])
    nearest, distances = np.full((queries, K), -1, np.int32), np.full((queries, K), np.inf, np.float32)
    for query, line in enumerate(wanted):
        rows = having[line[0]] if len(line) == 1 else np.intersect1d(having[line[0]], having[line[1]])
        away = ((base[rows].astype(np.int64) - asked[query]) ** 2).sum(1)
        best = np.lexsort((rows, away))[:K]
        nearest[query, : len(best)], distances[query, : len(best)] = rows[best], away[best]
    with (folder / TRUTH).open("wb") as file:
        np.array([queries, K], np.uint32).tofile(file)
        nearest.tofile(file)
        distances.tofile(file)
    print(f"{folder}: {items:,} items with {len(flat) / items:.1f} of {tags:,} tags, {queries:,} queries")


def write_vectors(path: Path, vectors: np.ndarray) -> None:
    """A `.u8bin` file."""
    with path.open("wb") as file:
        np.array(vectors.shape, np.uint32).tofile(file)
        vectors.tofile(file)


def write_tags(path: Path, bags: Sequence[np.ndarray], tags: int) -> None:
    """A `.spmat` file."""
    starts = np.concatenate(([0], np.cumsum([len(bag) for bag in bags])))
    with path.open("wb") as file:
        np.array([len(bags), tags, starts[-1]], np.int64).tofile(file)
        starts.astype(np.int64).tofile(file)
        np.concatenate(bags).astype(np.int32).tofile(file)
        np.ones(starts[-1], np.float32).tofile(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert", help="the track's files to Parquet")
    one.add_argument("folder", type=Path, help=f"with {BASE}, {QUERY}, {BASE_TAGS}, {QUERY_TAGS} and {TRUTH}")
    one.add_argument("--out", type=Path, required=True, help="folder to write to")
    two = commands.add_parser("measure", help="the track's measure on converted files")
    two.add_argument("folder", type=Path, help="what convert wrote")
    three = commands.add_parser("make", help="a made set of the same shape")
    four = commands.add_parser("try", help="make a set, convert and measure it")
    for each in (three, four):
        each.add_argument("folder", type=Path, help="folder to write to")
        each.add_argument("--items", type=int, default=100_000)
        each.add_argument("--queries", type=int, default=10_000)
        each.add_argument("--tags", type=int, default=200_000)
    for each in (two, four):
        each.add_argument("--sample", type=int, default=10_000, help="queries to measure with (default 10,000)")
        each.add_argument("--against", default="", help="others to measure beside: faiss, torch (comma-separated)")
    given = parser.parse_args(argv)
    if given.command in ("make", "try"):
        make(given.folder, given.items, given.queries, given.tags)
    if given.command == "try":
        convert(given.folder, given.folder)
    if given.command in ("measure", "try"):
        measure(given.folder, given.sample, [name for name in given.against.split(",") if name])
    if given.command == "convert":
        missing = [name for name in (BASE, QUERY, BASE_TAGS, QUERY_TAGS, TRUTH) if not (given.folder / name).is_file()]
        if missing:
            parser.error(f"{given.folder}: no {', '.join(missing)} there; see big-ann-benchmarks.com, filter track")
        convert(given.folder, given.out)


if __name__ == "__main__":
    main()
