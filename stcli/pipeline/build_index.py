"""`build_index`: a Parquet item table becomes an index directory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stcli import __version__
from stcli.config import BuildConfig, Progress, checked, no_progress
from stcli.events import Stages
from stcli.index.build import Build
from stcli.index.ingest import check_schema, ingest
from stcli.model.device import choose_device, limit_threads, why_no_gpu
from stcli.pipeline.estimate import Built, estimate_build
from stcli.pipeline.item_tower import ItemTower
from stcli.pipeline.memory import MemoryWatch, limit_arrow
from stcli.storage import atomic
from stcli.storage.index_dir import IndexWriter
from stcli.storage.parquet import Table, open_table
from stcli.storage.quarantine import Quarantine
from stcli.storage.remote import on_any_filesystem

VERSION_METADATA = b"embedding_version"
"""Key of the Parquet schema metadata that names the version of the embeddings."""


@on_any_filesystem()
def build_index(
    items: str | Path | Sequence[str | Path], output: str | Path, *, progress: Progress = no_progress, **options: Any
) -> dict[str, Any]:
    """Build an index directory from a Parquet item table.

    Args:
        items: file, files, directory or URI.
        output: the directory to create.
        progress: see `stcli.config.Progress`.
        options: fields of `stcli.config.BuildConfig`, which lists them all with their defaults; `stcli build-index -h`
            tells what each does, under the same name with dashes.

    Returns:
        Summary: counts, sizes, timings in seconds, the fingerprint.

    Raises:
        InputError: an option, the table or a row cannot be used; nothing was written.
        ExistsError: `output` is there and `overwrite` is not set.
    """
    config = checked(BuildConfig, "build_index", options)
    path = Path(output)
    inputs = [items] if isinstance(items, str | Path) else list(items)
    more = [] if config.item_tower is None else [config.item_tower]
    atomic.check_output(path, config.overwrite, makes="an index", inputs=[*inputs, *more])
    device = choose_device(config.device)
    no_gpu = why_no_gpu(config.device, device)
    limit_threads(config.threads)
    limit_arrow(config.memory_limit)
    start = time.perf_counter()
    vectors = [config.embedding_column] if config.item_tower is None else []
    table = open_table(inputs, [config.id_column, *vectors, *(config.feature_columns or ()), *config.keep_columns])
    tower = None if config.item_tower is None else ItemTower(table, config.item_tower)
    schema = check_schema(table, config, tower)
    if config.embedding_version is None:
        stated = (table.schema.metadata or {}).get(VERSION_METADATA)
        config.embedding_version = stated.decode() if stated else None
    if config.dry_run:

        def sample(part: Table, folder: Path) -> Built:
            writer, stages = IndexWriter(folder), Stages()
            bad = Quarantine(part, config.bad_rows, config.max_bad_fraction)
            with tempfile.TemporaryDirectory(dir=folder) as stage:
                with stages("read"):
                    staged = ingest(part, schema, config, Path(stage), bad, no_progress)
                Build(staged, config, writer, device, no_progress, stages).run()
            return writer.described(), stages.seconds

        found = estimate_build(table, config.clusters, sample)
        return {"command": "build-index", "dry_run": True, "version": __version__, "options": asdict(config), **found}
    quarantine = Quarantine(table, config.bad_rows, config.max_bad_fraction)
    stages = Stages()
    with MemoryWatch() as memory, atomic.new_directory(path, config.overwrite) as partial:
        writer = IndexWriter(partial)
        with tempfile.TemporaryDirectory(prefix="stage-", dir=partial) as folder:
            with stages("read"):
                staged = ingest(table, schema, config, Path(folder), quarantine, progress)
            build = Build(staged, config, writer, device, progress, stages)
            body = build.run()
            del staged, build
        with stages("seal"):
            if tower is not None:
                body["item_tower"] = tower.fingerprint
            manifest = writer.finish({**body, "input": table.fingerprint(), "rejected": len(quarantine)})
            rejected = quarantine.write(path)
    seconds = time.perf_counter() - start
    return {
        "command": "build-index",
        "version": __version__,
        "options": asdict(config),
        "inputs": {"items": [str(item) for item in inputs], "item_tower": config.item_tower},
        "counts": {key: manifest[key] for key in ("num_items", "dim", "num_clusters", "zero_vectors", "rejected")},
        "filter": {key: value for key, value in manifest["filter"].items() if key != "features"},
        "cluster_sizes": manifest["cluster_sizes"],
        "device": str(device) if no_gpu is None else f"{device} (no GPU: {no_gpu})",
        "fingerprint": manifest["fingerprint"],
        "memory_bytes": memory.summary(),
        "items_per_s": round(manifest["num_items"] / seconds, 1),
        "timings_s": {**stages.rounded(), "total": round(seconds, 3)},
        "outputs": {"index": str(path), "rejected": str(rejected) if rejected else None},
    }
