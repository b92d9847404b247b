"""A hundred updates of real packages: after every tenth the exact results are those of a rebuild."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli

FOLDER = Path(os.environ.get("STCLI_TEST_DATA", "")) / "debian-12k"
FEATURES = ["section", "priority", "architecture", "multi_arch", "maintainer", "tags", "depends"]
UPDATES, EVERY, COMPACT = 100, 10, 45
"""The set is compacted twice, so that the fresh file stays below a third of the items."""

SHARE = 8
"""One package of so many is an item, which keeps the test within ten seconds."""

UPSERTS, DELETES = 8, 8
"""Items replaced, as many new ones, and deletes of each update: 1 % and 0.5 % of the items."""

THREADS = 1


class Packages:
    """Packages by id: the row of the item table that each has its columns from, and its section if that was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rng = folder, np.random.default_rng(1)
        whole = pq.read_table(FOLDER / "items.parquet", columns=["item_id", "embedding", *FEATURES])
        self.source = whole.take(np.arange(0, len(whole), SHARE))
        self.living: dict[int, tuple[int, str | None]] = {
            number: (row, None) for row, number in enumerate(self.source["item_id"].to_pylist())
        }

    def write(self, entries: dict[int, tuple[int, str | None]], name: str) -> Path:
        """Items as a Parquet file."""
        table = self.source.take([row for row, _ in entries.values()])
        old = table["section"].to_pylist()
        sections = [changed or section for (_, changed), section in zip(entries.values(), old, strict=True)]
        table = table.set_column(0, "item_id", pa.array(list(entries), pa.int64()))
        place = table.schema.get_field_index("section")
        pq.write_table(table.set_column(place, "section", pa.array(sections)), self.folder / name)
        return self.folder / name

    def step(self, number: int) -> dict[str, Path]:
        """1 % upserts, half of them new items and a third with a section of their own, and 0.5 % deletes."""
        ids = list(self.living)
        known = self.rng.choice(ids, UPSERTS, replace=False).tolist()
        upserted = [*known, *range(1000 * number, 1000 * number + UPSERTS)]
        rows = self.rng.integers(len(self.source), size=len(upserted)).tolist()
        new = {
            item: (row, f"batch {number}" if place % 3 == 0 else None)
            for place, (item, row) in enumerate(zip(upserted, rows, strict=True))
        }
        deleted = self.rng.choice(ids, DELETES, replace=False).tolist()
        for item in deleted:
            del self.living[item]
        self.living |= new
        pq.write_table(pa.table({"item_id": deleted}), self.folder / "gone.parquet")
        return {"upsert": self.write(new, "new.parquet"), "delete": self.folder / "gone.parquet"}

    def build(self) -> Path:
        """An artifact of what there is now."""
        items, model = self.write(self.living, "items.parquet"), self.folder / "built.safetensors"
        options = {"overwrite": True, "threads": THREADS}
        stcli.build_index(items, self.folder / "built.index", feature_columns=FEATURES, **options)
        stcli.pack_model(self.folder / "built.index", model, overwrite=True)
        return model


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / "items.parquet").exists(), reason="STCLI_TEST_DATA names no folder with debian-12k")
def test_a_hundred_updates_end_in_the_results_of_a_rebuild(tmp_path):
    packages = Packages(tmp_path)
    queries = pq.read_table(FOLDER / "queries.parquet", columns=["embedding", "filter"])
    vectors = torch.from_numpy(np.stack(queries["embedding"].to_numpy()).astype(np.float32))
    current = packages.build().rename(tmp_path / "first")
    for number in range(1, UPDATES + 1):
        change = packages.step(1_000 + number)
        before, current = current, tmp_path / f"set{number}"
        summary = stcli.update(before, current, threads=THREADS, **change)
        assert summary["counts"]["num_items"] == len(packages.living)
        shutil.rmtree(before) if before.is_dir() else before.unlink()
        if number % COMPACT == 0:
            stcli.update(current, tmp_path / f"compacted{number}", compact=True, threads=THREADS)
            shutil.rmtree(current)
            current = tmp_path / f"compacted{number}"
        if number % EVERY == 0:
            filters = queries["filter"].to_pylist()
            filters[::7] = [f"section = 'batch {1_001 + place % number}'" for place in range(len(filters[::7]))]
            updated, rebuilt = stcli.open_artifact(current), stcli.open_artifact(packages.build())
            found, expected = (model(vectors, filters, k=50, exact=True) for model in (updated, rebuilt))
            assert all(np.array_equal(*pair) for pair in zip(found.item_ids, expected.item_ids, strict=True))
            assert torch.equal(found.score_matrix, expected.score_matrix)
            probed = np.concatenate(updated(vectors, filters, k=50).item_ids)
            assert set(probed.tolist()) <= packages.living.keys()
    assert summary["counts"]["fresh"] > 100
