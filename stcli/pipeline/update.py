"""`update`: new, changed and deleted items beside an index that stays as it is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli import __version__
from stcli.config import BuildConfig, Progress, UpdateConfig, checked, no_progress
from stcli.errors import FormatError, InputError
from stcli.model.device import choose_device
from stcli.pipeline.build_index import build_index
from stcli.pipeline.compact import compact
from stcli.pipeline.drift import measure_drift
from stcli.pipeline.memory import MemoryWatch, limit_arrow
from stcli.pipeline.pack_model import pack_model
from stcli.pipeline.recipe import build_options, pack_options
from stcli.pipeline.upserts import Upserts, read_deletes
from stcli.storage import atomic
from stcli.storage.artifact import open_artifact_file
from stcli.storage.artifact_set import (
    FRESH,
    FRESH_ITEMS,
    ArtifactSet,
    Fresh,
    Shard,
    bits_of,
    link_file,
    open_as_set,
    rows_of,
    write_set,
)
from stcli.storage.columns import BadRows, read_ids
from stcli.storage.ids import ItemIds
from stcli.storage.parquet import Table, open_table
from stcli.storage.remote import on_any_filesystem
from stcli.storage.steering import check_opened
from stcli.storage.table_writer import TableWriter

BATCH_ROWS = 1 << 14


@on_any_filesystem("model")
def update(
    model: str | Path,
    output: str | Path,
    *,
    upsert: str | Path | None = None,
    delete: str | Path | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> dict[str, Any]:
    """Make an artifact set of an artifact, or of a set, and a change of its items.

    The main index stays: its files are linked into the new set. Changed and new items, with those of earlier updates,
    become a fresh index beside it; rows that they supersede, and deleted ones, become tombstones.

    Args:
        model: artifact of `pack_model`, or a set.
        output: the directory to create.
        upsert: Parquet table of new or changed items, with the columns that the index was built from.
        delete: Parquet table of ids. An id that is also in `upsert` is not deleted but replaced.
        progress: see `stcli.config.Progress`.
        options: fields of `stcli.config.UpdateConfig`, which lists them all with their defaults; `stcli update -h`
            tells what each does, under the same name with dashes.

    Returns:
        Summary: counts, shares, sizes, timings in seconds, the fingerprint.

    Raises:
        InputError: an option, a table or a row cannot be used; nothing was written.
        FormatError: `model` is neither artifact nor set, or not whole.
        ExistsError: `output` is there and `overwrite` is not set.
    """
    config = checked(UpdateConfig, "update", options)
    if config.compact and (upsert is not None or delete is not None):
        raise InputError("--compact folds a set as it is; update it first, then compact the new set")
    if not config.compact and upsert is None and delete is None:
        raise InputError("update changes items: give --upsert, --delete or both, or --compact a set")
    path = Path(output)
    given = [source for source in (model, upsert, delete, config.item_tower) if source is not None]
    makes = atomic.ARTIFACT if config.compact else "an artifact set"
    atomic.check_output(path, config.overwrite, directory=not config.compact, makes=makes, inputs=given)
    choose_device(config.device)  # a wrong name is found before anything is read
    limit_arrow(config.memory_limit)
    start = time.perf_counter()
    old = open_as_set(Path(model))
    check_updatable(old)
    summary: dict[str, Any] = {"command": "update", "version": __version__, "options": asdict(config)}
    if config.compact:
        return {**summary, **_compact(old, path, config, progress, start)}
    job = _Update(old, config, progress)
    job.read(upsert, delete)
    if config.dry_run:
        return {**summary, "dry_run": True, **job.estimate()}
    with MemoryWatch() as memory, atomic.new_directory(path, config.overwrite) as partial:
        manifest = job.write(partial)
        rejected = None if job.quarantine is None else job.quarantine.write(path)
    job.timings["total"] = time.perf_counter() - start
    return {
        **summary,
        "inputs": {"model": str(model), "upsert": _text(upsert), "delete": _text(delete)},
        "counts": job.counts | {"num_items": manifest["num_items"]},
        "drift": shares(manifest) | manifest["drift"],
        "linked": not job.copied,
        "warnings": [f"{name}: could not be linked, so it was copied" for name in job.copied],
        "fingerprint": manifest["fingerprint"],
        "memory_bytes": memory.summary(),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in job.timings.items()},
        "outputs": {"model": str(path), "rejected": _text(rejected)},
    }


def check_updatable(old: ArtifactSet) -> None:
    """Check that items can be added to an artifact.

    Raises:
        InputError: it has embeddings of two tables.
    """
    main = old.shards[0]
    if main.manifest["embedding_dim"] and "errors" not in main.arrays:
        raise InputError(
            f"{main.path}: was packed with a second table of embeddings (pack-model --embeddings), which an update "
            "cannot extend; build and pack it again"
        )


def _compact(old: ArtifactSet, path: Path, config: UpdateConfig, progress: Progress, start: float) -> dict[str, Any]:
    if config.dry_run:
        size = sum(part.path.stat().st_size for part in old.parts)
        items = old.manifest["num_items"]
        return {"dry_run": True, "counts": {"items": items}, "bytes": {"model": size * items // max(old.num_rows, 1)}}
    with MemoryWatch() as memory:
        found = compact(old, path, config, progress)
    timings = found["timings_s"] | {"total": time.perf_counter() - start}
    return {
        "inputs": {"model": str(old.path)},
        **found,
        "memory_bytes": memory.summary(),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings.items()},
        "outputs": {"model": str(path)},
    }


def shares(manifest: dict[str, Any]) -> dict[str, float]:
    """Of all rows of a set: how many are tombstones, how many are in the fresh file."""
    dead = manifest["tombstones"]["count"] if manifest["tombstones"] else 0
    fresh = manifest["fresh"]["num_items"] if manifest["fresh"] else 0
    rows = max(manifest["num_rows"], 1)
    return {"tombstone_share": round(dead / rows, 4), "fresh_share": round(fresh / rows, 4)}


def _text(path: object) -> str | None:
    return None if path is None else str(path)


@dataclass
class _Update:
    """One update: what it reads, what it finds, and the seconds that each stage took."""

    old: ArtifactSet
    config: UpdateConfig
    progress: Progress
    counts: dict[str, int] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    copied: list[str] = field(default_factory=list)

    def read(self, upsert: str | Path | None, delete: str | Path | None) -> None:
        """Open and check the tables."""
        main, config = self.old.shards[0], self.config
        chosen = {
            name: getattr(config, name)
            for name in ("id_column", "embedding_column")
            if getattr(config, name) is not None
        }
        shared = {item.name: getattr(config, item.name) for item in fields(config) if item.name in _SHARED}
        self.build = BuildConfig(**{**build_options(main), **chosen, **shared})
        self.build.check()
        self.upserts = None if upsert is None else Upserts(upsert, self.build, main)
        if self.upserts is not None and self.upserts.schema is None:
            self.upserts = None  # a table without rows
        self.quarantine = None if self.upserts is None else self.upserts.quarantine
        self.deletes = None if delete is None else read_deletes(delete, self.build.id_column, main)
        for part in self.old.parts:
            check_opened(part.manifest, part.arrays, str(part.path))
        self.ids = [ItemIds.from_arrays(part.arrays, str(part.path)) for part in self.old.parts]

    def estimate(self) -> dict[str, Any]:
        """What would be written, for `--dry-run`; the rows of the upserts are not read."""
        rows = 0 if self.upserts is None else self.upserts.table.num_rows
        fresh = self.old.num_rows - self.old.num_main
        each = self.old.shards[0].path.stat().st_size / max(self.old.manifest["shards"][0]["num_items"], 1)
        return {
            "counts": {"upserts": rows, "deletes": 0 if self.deletes is None else len(self.deletes), "fresh": fresh},
            "bytes": {
                "linked": sum(shard.path.stat().st_size for shard in self.old.shards),
                "fresh": round(each * (fresh + rows)),
                "tombstones": -(-(self.old.num_rows + rows) // 64) * 8,
            },
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the new set into a folder; its manifest."""
        dead = np.zeros(self.old.num_rows, bool)
        if self.old.tombstones is not None:
            dead[rows_of(self.old.tombstones)] = True
        shards = [Shard(**entry) for entry in self.old.manifest["shards"]]
        for shard, artifact in zip(shards, self.old.shards, strict=True):
            self._link(artifact.path, folder / shard.file)
        if self.upserts is None:
            self._mark(dead, pa.array([], self.ids[0].ids.type))
            fresh = self._keep_fresh(folder, dead)
        else:
            fresh = self._new_fresh(folder, dead)
            dead[self.old.num_main :] = False
        num_rows = self.old.num_main + (0 if fresh is None else fresh.num_items)
        buried = np.flatnonzero(dead[:num_rows])
        self.counts |= {"fresh": num_rows - self.old.num_main, "tombstones": len(buried)}
        drift = {}
        if fresh is not None:
            with self._timed("drift"):
                newer = open_artifact_file(folder / fresh.file)
                drift = measure_drift(self.old.shards, newer, self.old.manifest.get("drift"))
        body = {"tool_version": __version__, "before": self.old.fingerprint, "drift": drift}
        return write_set(folder, shards, fresh, bits_of(buried, num_rows), body)

    def _mark(self, dead: np.ndarray, ids: pa.Array) -> None:
        """Set the bits bool [rows] of what upserts with these ids supersede and of what is deleted; count both."""
        with self._timed("tombstones"):
            superseded = self._living(ids, dead)
            deletes = pa.array([], ids.type) if self.deletes is None else self.deletes
            known = self._living(deletes, dead)
            replaced = pc.is_in(deletes, value_set=ids).to_numpy(zero_copy_only=False)
            deleted = self._living(deletes.filter(pa.array(~replaced)), dead)
            dead[superseded] = dead[deleted] = True
        self.counts |= {
            "upserted": len(ids),
            "superseded": len(superseded),
            "deleted": len(deleted),
            "unknown_deletes": len(deletes) - len(known),
            "rejected": 0 if self.quarantine is None else len(self.quarantine),
        }

    def _living(self, ids: pa.Array, dead: np.ndarray) -> np.ndarray:
        """The living rows of ids that have one, int64."""
        found, base = [], 0
        for part in self.ids:
            rows = part.rows_of(ids)
            rows = rows[rows >= 0] + base
            found.append(rows[~dead[rows]])
            base += len(part.order)
        return np.concatenate(found)

    def _keep_fresh(self, folder: Path, dead: np.ndarray) -> Fresh | None:
        """Link the fresh file as it is, unless none of its rows is left."""
        entry = self.old.manifest["fresh"]
        if entry is None or bool(dead[self.old.num_main :].all()):
            return None
        for name in (entry["file"], entry["items"]):
            self._link(self.old.path / name, folder / name)
        return Fresh(**entry)

    def _new_fresh(self, folder: Path, dead: np.ndarray) -> Fresh | None:
        """Build the fresh index of the upserts and of what lives of the old one; None if no row is left."""
        assert self.upserts is not None
        assert self.quarantine is not None
        before = self._old_items()
        schema = self.upserts.columns() if before is None else before.schema
        with TableWriter(folder / FRESH_ITEMS, schema) as writer:
            with self._timed("read"):
                ids = self.upserts.write(writer, self.quarantine, self.progress)
            self._mark(dead, ids)
            if before is not None:
                with self._timed("read"):
                    self._copy_living(before, writer, dead)
        if not writer.num_rows:
            (folder / FRESH_ITEMS).unlink()
            return None
        with self._timed("build"), tempfile.TemporaryDirectory(prefix="stage-", dir=folder) as stage:
            index = Path(stage) / "fresh.index"
            build_index(folder / FRESH_ITEMS, index, progress=self.progress, **asdict(self.build))
            options = pack_options(self.old.shards[0], Path(stage))
            packed = pack_model(index, folder / FRESH, progress=self.progress, **options)
        return Fresh(
            FRESH,
            packed["fingerprint"],
            packed["counts"]["num_items"],
            FRESH_ITEMS,
            open_table(folder / FRESH_ITEMS).fingerprint(),
        )

    def _old_items(self) -> Table | None:
        """The table that the old fresh file was built from."""
        entry = self.old.manifest["fresh"]
        if entry is None:
            return None
        path = self.old.path / entry["items"]
        table = open_table(path)
        if table.fingerprint() != entry["input"]:
            raise FormatError(f"{path}: is not the table that the set was made with; copy the whole set again")
        return table

    def _copy_living(self, items: Table, writer: TableWriter, dead: np.ndarray) -> None:
        alive = np.flatnonzero(~dead[self.old.num_main :])
        living = self.ids[-1].take(alive)
        for _, batch in items.batches(items.schema.names, BATCH_ROWS):
            ids = read_ids(batch.column(self.build.id_column), BadRows.none(batch.num_rows))
            writer.add(batch.filter(pc.is_in(ids, value_set=living)), items.name)

    def _link(self, source: Path, target: Path) -> None:
        if not link_file(source, target):
            self.copied.append(target.name)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - start


_SHARED = ("item_tower", "bad_rows", "max_bad_fraction", "memory_limit", "device", "backend", "threads")
