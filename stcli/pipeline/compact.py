"""`update --compact`: one new artifact of all that lives in a set."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from stcli.config import BuildConfig, Progress, UpdateConfig
from stcli.errors import InputError
from stcli.pipeline.build_index import build_index
from stcli.pipeline.pack_model import pack_model
from stcli.pipeline.read_back import ItemReader
from stcli.pipeline.recipe import build_options, pack_options, tower_options
from stcli.storage import atomic
from stcli.storage.artifact_set import ArtifactSet, rows_of
from stcli.storage.index_dir import add_to_manifest
from stcli.storage.table_writer import TableWriter


def compact(old: ArtifactSet, output: Path, config: UpdateConfig, progress: Progress) -> dict[str, Any]:
    """Read the living items of a set back, build an index of them and pack it as the main one was packed.

    Returns:
        `counts`, `bytes`, `fingerprint` and `timings_s` for the summary.

    Raises:
        InputError: nothing lives in the set.
    """
    if not old.manifest["num_items"]:
        raise InputError(f"{old.path}: no item lives in this set, so there is nothing to build; upsert items first")
    main, timings = old.shards[0], dict[str, float]()
    options = {"embedding_column": "embedding", "id_column": "item_id"} | build_options(main)
    shared = ("memory_limit", "device", "backend", "threads")
    options |= {item.name: getattr(config, item.name) for item in fields(config) if item.name in shared}
    stage = output.with_name(output.name + ".stage")
    atomic.remove(stage)
    with atomic.removed_on_failure(stage):
        stage.mkdir()
        scoring = pack_options(main, stage) | tower_options(main, stage)
        start = time.perf_counter()
        _write_items(old, stage / "items.parquet", BuildConfig(**options), progress)
        timings["read"] = time.perf_counter() - start
        start = time.perf_counter()
        built = build_index(stage / "items.parquet", stage / "items.index", progress=progress, **options)
        if "item_tower" in main.manifest:  # the embeddings are its, and newer items must come from it too
            add_to_manifest(stage / "items.index", {"item_tower": main.manifest["item_tower"]})
        timings["build"] = time.perf_counter() - start
        start = time.perf_counter()
        packed = pack_model(stage / "items.index", output, progress=progress, overwrite=config.overwrite, **scoring)
        timings["pack"] = time.perf_counter() - start
    atomic.remove(stage)
    return {
        "counts": built["counts"],
        "bytes": packed["bytes"],
        "fingerprint": packed["fingerprint"],
        "timings_s": timings,
    }


def _write_items(old: ArtifactSet, path: Path, build: BuildConfig, progress: Progress) -> None:
    dead = np.zeros(old.num_rows, bool)
    if old.tombstones is not None:
        dead[rows_of(old.tombstones)] = True
    lists = {
        feature["name"] for part in old.parts for feature in part.manifest["filter"]["features"] if feature["multi"]
    }
    writer: TableWriter | None = None
    base = done = 0
    for part in old.parts:
        reader = ItemReader(part, build.id_column, build.embedding_column, lists)
        rows = np.flatnonzero(~dead[base : base + part.manifest["num_items"]])
        base += part.manifest["num_items"]
        for batch in reader.batches(rows):
            writer = writer or TableWriter(path, batch.schema)
            writer.add(batch, str(old.path))
            done += batch.num_rows
            progress("read", done, old.manifest["num_items"], "items")
    assert writer is not None
    writer.close()
