"""What tests of updates share: a changing corpus, and what lives in a set, read file by file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import stcli
from stcli.storage.artifact_set import open_set


def living_ids(path: Path) -> list:
    """Ids of the rows without a tombstone, ascending; bit by bit, with nothing of the search."""
    opened = open_set(path, verify=True)
    found, row = [], 0
    for part in opened.parts:
        for number in part.arrays["item_ids"].tolist():
            words = opened.tombstones
            if words is None or not int(words[row // 64]) >> (row % 64) & 1:
                found.append(number)
            row += 1
    return sorted(found)


def search_parts(path: Path, vectors: np.ndarray, filters: list[str | None], k: int) -> list[list[tuple]]:
    """The k best (score, id) of each query: every file of a set is searched alone, and dead rows are dropped."""
    opened = open_set(path)
    dead = np.zeros(opened.num_rows, bool)
    if opened.tombstones is not None:
        bits = np.unpackbits(opened.tombstones.view(np.uint8), bitorder="little")[: opened.num_rows]
        dead = bits.astype(bool)
    lines: list[list[tuple]] = [[] for _ in filters]
    base = 0
    for part in opened.parts:
        size = part.manifest["num_items"]
        lines = merge(lines, search_file(part.path, vectors, filters, size, dead[base : base + size]), k)
        base += size
    return lines


def merge(lines: list[list[tuple]], more: list[list[tuple]], k: int) -> list[list[tuple]]:
    """The k best of both, line by line: larger score first, then smaller id."""
    both = [first + second for first, second in zip(lines, more, strict=True)]
    return [sorted(line, key=lambda pair: (-pair[0], pair[1]))[:k] for line in both]


def search_file(
    path: Path, vectors: np.ndarray, filters: list[str | None], k: int, dead: np.ndarray | None = None
) -> list[list[tuple]]:
    """Exact results of one artifact as (score, id), without the rows that are dead."""
    model = stcli.open_artifact(path)
    found = model(torch.from_numpy(vectors), list(filters), k=k, exact=True)
    lines = []
    for rows, scores in zip(found.rows.tolist(), found.score_matrix.tolist(), strict=True):
        kept = [(score, row) for score, row in zip(scores, rows, strict=True)
                if row >= 0 and (dead is None or not dead[row])]  # fmt: skip
        ids = model.ids.take(np.array([row for _, row in kept], np.int64)).to_pylist()
        lines.append([(score, item) for (score, _), item in zip(kept, ids, strict=True)])
    return lines


class Corpus:
    """Items by id, changed step by step; what is true of an artifact after each step."""

    def __init__(self, table: pa.Table, folder: Path, seed: int = 0) -> None:
        self.folder, self.rng = folder, np.random.default_rng(seed)
        self.schema = table.schema
        self.items = {row["item_id"]: row for row in table.to_pylist()}

    def write(self, rows: list[dict], name: str) -> Path:
        """Rows as a Parquet file."""
        path = self.folder / name
        pq.write_table(pa.Table.from_pylist(rows, schema=self.schema), path)
        return path

    def step(self, upserts: list[dict], deletes: list) -> tuple[Path, Path]:
        """Take over a change; the tables that `update` is given for it."""
        for number in deletes:
            self.items.pop(number, None)
        self.items |= {row["item_id"]: row for row in upserts}
        gone = self.folder / "gone.parquet"
        pq.write_table(pa.table({"item_id": pa.array(deletes, self.schema.field("item_id").type)}), gone)
        return self.write(upserts, "new.parquet"), gone

    def rebuild(self, name: str, **options) -> Path:
        """An artifact of what there is now."""
        items = self.write(list(self.items.values()), f"{name}.parquet")
        stcli.build_index(items, self.folder / f"{name}.index", **options)
        stcli.pack_model(self.folder / f"{name}.index", self.folder / f"{name}.safetensors")
        return self.folder / f"{name}.safetensors"
