"""Does it fit? Build, pack and filtered retrieval under memory limits, on generated tables of any length.

    python examples/scale.py --out scale [--items 1000000,10000000] [--queries 100000] [--memory-limit 6GB]

For each number of items: a table of unit vectors of 128 dimensions around 2,000 centres with 8 features of mixed types
is written chunk by chunk, so that the script itself stays small; then the three commands run one after another, each as
a process whose memory is watched from outside. Every query has a filter of two or three conditions. `retrieve` audits
itself: recall in each band of the pass rate comes from exact searches of its own queries. Writes `scale.json` and
`scale.md`; the tables are removed afterwards (at 10,000,000 items they take some 30 GB).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from stcli.measure.machine import describe_machine, versions

DIM, CENTRES, NOISE = 128, 2_000, 0.75
CHUNK = 100_000
WATCH_S = 0.05
LANGUAGES, COUNTRIES, CATEGORIES, BRANDS = 30, 200, 500, 5_000
FEATURES = ("language", "countries", "categories", "brand", "price", "year", "added", "in_stock")
FIRST_DAY = np.datetime64("2015-01-01")


def zipf(count: int, power: float) -> np.ndarray:
    """Probabilities float64 [count] that fall with the rank."""
    weights = 1.0 / np.arange(1, count + 1) ** power
    return weights / weights.sum()


@dataclass(frozen=True)
class Corpus:
    """What all chunks of a corpus share: centres float32 [CENTRES, DIM], and the values that each centre prefers."""

    centres: np.ndarray
    language: np.ndarray
    countries: np.ndarray
    categories: np.ndarray

    @classmethod
    def draw(cls) -> Corpus:
        """Always the same one."""
        rng = np.random.default_rng(0)
        return cls(
            unit(rng.standard_normal((CENTRES, DIM), dtype=np.float32)),
            rng.choice(LANGUAGES, CENTRES, p=zipf(LANGUAGES, 1.0)),
            rng.choice(COUNTRIES, (CENTRES, 4), p=zipf(COUNTRIES, 0.8)),
            rng.choice(CATEGORIES, (CENTRES, 4), p=zipf(CATEGORIES, 0.6)),
        )

    def vectors(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors float32 [count, DIM], and the centre of each."""
        chosen = rng.choice(CENTRES, count, p=zipf(CENTRES, 0.5))
        noise = rng.standard_normal((count, DIM), dtype=np.float32) * np.float32(NOISE / DIM**0.5)
        return unit(self.centres[chosen] + noise), chosen

    def items(self, chunk: int, count: int) -> pa.Table:
        """Chunk number `chunk` of the item table, with `count` rows."""
        rng = np.random.default_rng([1, chunk])
        vectors, centre = self.vectors(rng, count)
        language = np.where(
            rng.random(count) < 0.6, self.language[centre], rng.choice(LANGUAGES, count, p=zipf(LANGUAGES, 1.0))
        )
        brand = rng.choice(BRANDS, count, p=zipf(BRANDS, 0.9))
        days = FIRST_DAY + rng.integers(0, 4_000, count)
        return pa.table(
            {
                "item_id": np.arange(count) + chunk * CHUNK,
                "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
                "language": named("l", language),
                "countries": lists_of(named("c", some(rng, self.countries[centre], COUNTRIES, 0.8)), rng, count),
                "categories": lists_of(pa.array(some(rng, self.categories[centre], CATEGORIES, 0.6)), rng, count),
                "brand": pc.if_else(pa.array(rng.random(count) < 0.1), None, named("b", brand)),
                "price": np.round(rng.lognormal(3, 1, count), 2),
                "year": rng.integers(1990, 2025, count),
                "added": pa.array(days),
                "in_stock": rng.random(count) < 0.9,
            }
        )

    def queries(self, count: int) -> pa.Table:
        """The query table: vectors around the same centres, each with a filter of its own."""
        rng = np.random.default_rng(2)
        vectors, centre = self.vectors(rng, count)
        return pa.table(
            {
                "query_id": np.arange(count),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
                "filter": [self.filter(rng, int(number)) for number in centre],
            }
        )

    def filter(self, rng: np.random.Generator, centre: int) -> str:
        """Two or three conditions on different features; half of them suit the query's centre."""
        own = rng.random(3) < 0.5
        language = self.language[centre] if own[0] else rng.choice(LANGUAGES, p=zipf(LANGUAGES, 0.5))
        country = self.countries[centre, 0] if own[1] else rng.choice(COUNTRIES, p=zipf(COUNTRIES, 0.5))
        category = self.categories[centre, 0] if own[2] else rng.choice(CATEGORIES, p=zipf(CATEGORIES, 0.5))
        year, low, day = rng.integers(1990, 2020), rng.integers(1, 40), FIRST_DAY + rng.integers(0, 3_000)
        conditions = [
            f"language = 'l{language}'",
            f"countries IN ('c{country}', 'c{rng.integers(COUNTRIES)}')",
            f"categories = {category}",
            f"NOT brand IN ('b{rng.integers(20)}', 'b{rng.integers(20)}')",
            f"price BETWEEN {low} AND {low + rng.integers(5, 60)}",
            f"year >= {year}",
            f"added > '{day}'",
            "in_stock",
        ]
        return " AND ".join(rng.choice(conditions, rng.integers(2, 4), replace=False))


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def named(letter: str, numbers: np.ndarray) -> pa.Array:
    """Numbers as strings after a letter."""
    names = pa.array([f"{letter}{number}" for number in range(int(numbers.max()) + 1)])
    return names.take(pa.array(numbers.ravel()))


def some(rng: np.random.Generator, preferred: np.ndarray, count: int, power: float) -> np.ndarray:
    """Three values for each row, as a flat array: half of them preferred ones."""
    drawn = rng.choice(count, (len(preferred), 3), p=zipf(count, power))
    kept = rng.random(drawn.shape) < 0.5
    return np.where(kept, preferred[:, :3], drawn).ravel()


def lists_of(values: pa.Array, rng: np.random.Generator, count: int) -> pa.Array:
    """One to three of the three values of each row, as lists."""
    keep = np.arange(3) < rng.integers(1, 4, count)[:, None]
    offsets = np.concatenate(([0], keep.sum(1).cumsum()))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values.filter(pa.array(keep.ravel())))


def write_items(path: Path, corpus: Corpus, count: int) -> None:
    """The item table, chunk by chunk."""
    writer = None
    for chunk in range(-(-count // CHUNK)):
        table = corpus.items(chunk, min(CHUNK, count - chunk * CHUNK))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def private_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process and its children; 0 where it has ended."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += private_bytes(int(child))
    except OSError:
        return total
    return total


def measured(*words: object) -> dict[str, Any]:
    """Run a command; its summary, and under `watched` its seconds and peak memory as seen from outside.

    Raises:
        CalledProcessError: it failed; its message was printed.
    """
    command = [sys.executable, "-m", "stcli", *map(str, words), "--json", "--no-progress"]
    start = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(WATCH_S):
            peak = max(peak, private_bytes(running.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = running.communicate()
    ended.set()
    watcher.join()
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return json.loads(out) | {"watched": {"seconds": round(time.perf_counter() - start, 1), "peak_private": peak}}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def measure(folder: Path, items: int, given: argparse.Namespace) -> dict[str, Any]:
    """One entry of the report: everything at one number of items."""
    corpus = Corpus.draw()
    table, queries, index, model = (folder / name for name in ("items.parquet", "queries.parquet", "index", "model"))
    begin = time.perf_counter()
    write_items(table, corpus, items)
    pq.write_table(corpus.queries(given.queries), queries)
    made = time.perf_counter() - begin
    limit = ("--memory-limit", given.memory_limit)
    build = measured("build-index", table, "-o", index, "--feature-columns", ",".join(FEATURES), *limit)
    sizes = {"items": size_of(table), "index": size_of(index)}
    table.unlink()
    pack = measured("pack-model", index, "-o", model)
    sizes |= {"model": size_of(model)}
    shutil.rmtree(index)
    search = ("--filter-column", "filter", "--k", given.k, "--target-recall", given.target_recall)
    found = measured("retrieve", model, queries, "-o", folder / "results", *search, "--audit", given.audit, *limit)
    sizes |= {"results": size_of(folder / "results")}
    return {
        "items": items,
        "generate_s": round(made, 1),
        "bytes": sizes,
        "build-index": {
            "timings_s": build["timings_s"],
            "clusters": build["counts"]["num_clusters"],
            **build["watched"],
        },
        "pack-model": {"timings_s": pack["timings_s"], **pack["watched"]},
        "retrieve": {
            "timings_s": found["timings_s"],
            "queries_per_s": found["queries_per_s"],
            "items_scored": round(found["counts"]["items_scored"] / given.queries),
            "short": found["counts"]["short"],
            **found["watched"],
        },
        "audit": found["audit"],
    }


def table_lines(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: time, memory and speed of each number of items, then the recall of each band."""
    yield "| items | build s | GB | pack s | GB | calibrate s | queries/s | items scored a query | GB | disk GB |"
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for run in runs:
        build, pack, found = run["build-index"], run["pack-model"], run["retrieve"]
        cells = [f"{run['items']:,}"]
        for step in (build, pack):
            cells += [f"{step['seconds']:,.1f}", f"{step['peak_private'] / 1e9:.2f}"]
        cells += [f"{found['timings_s']['calibrate']:.1f}", f"{found['queries_per_s']:,.0f}"]
        cells += [f"{found['items_scored']:,}", f"{found['peak_private'] / 1e9:.2f}"]
        yield "| " + " | ".join([*cells, f"{sum(run['bytes'].values()) / 1e9:.1f}"]) + " |"
    yield ""
    yield "| items | eligible | queries audited | recall | 95 % interval |"
    yield "|---:|---|---:|---:|---|"
    for run in runs:
        for band, line in run["audit"].items():
            interval = f"{line['low']:.4f} to {line['high']:.4f}"
            yield f"| {run['items']:,} | {band} | {line['queries']:,} | {line['recall']:.4f} | {interval} |"


def write_report(out: Path, runs: Sequence[dict[str, Any]], given: argparse.Namespace) -> None:
    """`scale.json` and `scale.md`; after every number of items, so that one that does not fit loses nothing."""
    machine = describe_machine(torch.device("cpu"))
    options = {name: value for name, value in vars(given).items() if name != "out"}
    record = {"machine": machine, "versions": versions(), "date": time.strftime("%Y-%m-%d"), "options": options}
    (out / "scale.json").write_text(json.dumps(record | {"runs": list(runs)}, indent=1) + "\n", encoding="utf-8")
    text = [
        "# Does it fit?",
        "",
        f"{record['date']}, {machine['cores']} cores of {machine['cpu']}, stcli {versions()['stcli']}; "
        f"{given.queries:,} queries, each with its own filter, k = {given.k}, recall asked {given.target_recall:g}, "
        f"`--memory-limit {given.memory_limit}`, {DIM} dimensions, {len(FEATURES)} features. GB after a time: peak of "
        "anonymous and shared memory of the process, watched from outside. Disk: table, index, artifact and results.",
        "",
        *table_lines(runs),
    ]
    (out / "scale.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report, and of the tables meanwhile")
    parser.add_argument("--items", default="1000000,10000000")
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--target-recall", type=float, default=0.95)
    parser.add_argument("--audit", type=int, default=1000, help="queries that are searched exactly, too")
    parser.add_argument("--memory-limit", default="6GB")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    for items in given.items.split(","):
        folder = given.out / "tables"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        runs.append(measure(folder, int(items), given))
        write_report(given.out, runs, given)
        shutil.rmtree(folder)
    print("\n".join(table_lines(runs)))


if __name__ == "__main__":
    main()
