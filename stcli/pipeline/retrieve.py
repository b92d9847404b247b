"""`retrieve`: an artifact and a Parquet query table become a directory of Parquet results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stcli import __version__
from stcli.config import Progress, RetrieveConfig, no_progress
from stcli.errors import InputError, StcliError
from stcli.model.calibrate import calibrate
from stcli.model.open import open_artifact
from stcli.model.planner import Calibration, SearchOptions, default_candidates
from stcli.model.retriever import Retriever
from stcli.pipeline.device import choose_device, describe_device, limit_threads
from stcli.pipeline.engine import SCORE_TYPES, Counts, Engine
from stcli.pipeline.memory import MemoryWatch, limit_arrow
from stcli.pipeline.prefetch import prefetch
from stcli.storage.columns import BadRows, embedding_type, id_type, read_embeddings
from stcli.storage.parquet import Table, open_table
from stcli.storage.quarantine import Quarantine
from stcli.storage.results import ResultsWriter

BATCH_ROWS = 8192
CALIBRATION_SAMPLE = 8192

RESULT_OPTIONS = (
    "id_column", "embedding_column", "filter_column", "columns", "item_columns", "k", "probes", "exact", "target_recall",
    "rescore", "min_score", "limit", "explode", "explain", "score_dtype", "part_rows", "seed",
)  # fmt: skip
"""Options that change the results; only these must be the same when a run is resumed."""


def retrieve(
    model: str | Path,
    queries: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    progress: Progress = no_progress,
    **options: Any,
) -> dict[str, Any]:
    """Answer a table of queries.

    Args:
        model: artifact made by `pack_model`.
        queries: Parquet file, files, directory or URI.
        output: the directory to create.
        progress: see `stcli.config.Progress`.
        options: fields of `stcli.config.RetrieveConfig`.

    Returns:
        Summary: counts, what ran, timings in seconds, warnings.

    Raises:
        InputError: an option, the table or a row cannot be used.
        FormatError: `model` is no whole artifact.
        ExistsError: `output` is there and `overwrite` is not set.
    """
    config = RetrieveConfig(**options)
    config.check()
    start = time.perf_counter()
    device = choose_device(config.device)
    limit_threads(config.threads)
    limit_arrow(config.memory_limit)
    opened = open_artifact(model, device=device, backend=config.backend)
    table = _open_queries(queries, config, opened)
    run = Run(opened, table, config, Path(output), progress)
    with MemoryWatch() as memory:
        summary = run.go()
    summary["inputs"] = {
        "model": str(model),
        "queries": [str(item) for item in ([queries] if isinstance(queries, str | Path) else queries)],
    }
    summary["device"] = describe_device(device)
    summary["memory_bytes"] = memory.summary()
    summary["timings_s"]["total"] = round(time.perf_counter() - start, 3)
    return summary


def _open_queries(queries: str | Path | Sequence[str | Path], config: RetrieveConfig, model: Retriever) -> Table:
    """Open the query table and check everything about it that its schema tells."""
    needed = [config.id_column, config.embedding_column, *config.columns]
    needed += [config.filter_column] if config.filter_column else []
    table = open_table(queries, needed)
    if table.num_rows == 0:
        raise InputError(f"{table.name}: has no rows; expected at least one query")
    id_type(table.column_type(config.id_column, "--id-column"), f"{table.name}: column {config.id_column!r}")
    where = f"{table.name}: column {config.embedding_column!r}"
    _, dim = embedding_type(table.column_type(config.embedding_column, "--embedding-column"), where)
    if dim is not None and dim != model.query_dim:
        raise InputError(
            f"{where} has {dim} dimensions, the artifact {model.query_dim}; use the tower the index was built with, or rebuild the index"
        )
    if config.filter_column:
        kind = table.column_type(config.filter_column, "--filter-column")
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise InputError(
                f"{table.name}: column {config.filter_column!r} is {kind}; --filter-column expects filter texts"
            )
    for name in config.columns:
        table.column_type(name, "--columns")
    stated = config.embedding_version or (table.schema.metadata or {}).get(b"embedding_version", b"").decode() or None
    ours = model.manifest["embedding_version"]
    if stated is not None and ours is not None and stated != ours:
        raise InputError(
            f"{table.name}: its embeddings are version {stated!r}, the artifact's {ours!r}; scores between them mean nothing, use queries of the same version"
        )
    return table


class Run:
    """One run of `retrieve` over an open table."""

    def __init__(
        self, model: Retriever, table: Table, config: RetrieveConfig, output: Path, progress: Progress
    ) -> None:
        self.model, self.table, self.config, self.output, self.progress = model, table, config, output, progress
        self.num_rows = min(table.num_rows, config.limit or table.num_rows)
        self.num_parts = -(-self.num_rows // config.part_rows)
        self.quarantine = Quarantine(table, config.bad_rows, config.max_bad_fraction)
        self.warnings: list[str] = []

    def go(self) -> dict[str, Any]:
        """Calibrate, answer every part that is not there yet, and publish."""
        config = self.config
        given = _read_calibration(config.calibration, self.model, min(config.k, self.model.num_items))
        engine = self._engine(
            SearchOptions(config.k, config.rescore or default_candidates(config.k), config.probes, config.exact)
        )
        if config.k > self.model.num_items:
            self.warnings.append(f"--k {config.k} is more than the {self.model.num_items} items; every query is short")
        writer = ResultsWriter(self.output, self._identity(given), config.resume, config.overwrite)
        timings = {"calibrate": 0.0, "search": 0.0}
        counts = Counts()
        resumed = 0
        try:
            begin = time.perf_counter()
            calibration = given or self._calibrate(writer)
            engine.options = SearchOptions(
                config.k, engine.options.candidates, config.probes, config.exact, calibration
            )
            timings["calibrate"] = round(time.perf_counter() - begin, 3)
            for number in range(self.num_parts):
                begin = time.perf_counter()
                if writer.has_part(number):
                    resumed += 1
                else:
                    self._write_part(writer, engine, number)
                    timings["search"] += time.perf_counter() - begin
                info = writer.part_info(number)
                counts.add(Counts(**info["counts"]))
                for row, row_id, reason in info["rejected"]:
                    self._restore(row, row_id, reason)
                self.progress("retrieve", min((number + 1) * config.part_rows, self.num_rows), self.num_rows, "queries")
        except StcliError:
            if not writer.has_part(0):
                writer.discard()
            raise
        run = {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "output": str(self.output), "timings_s": timings}
        manifest = writer.finish({"tool_version": __version__, "counts": asdict(counts)}, self.num_parts, run)
        rejected = self.quarantine.write(self.output)
        timings["search"] = round(timings["search"], 3)
        if counts.unknown_values:
            self.warnings.append(f"{counts.unknown_values} filter values do not occur in the index and match nothing")
        return {
            "command": "retrieve",
            "counts": asdict(counts) | {"parts": self.num_parts, "parts_resumed": resumed},
            "queries_per_s": round(counts.queries / timings["search"], 1)
            if timings["search"] and not resumed
            else None,
            "calibration": calibration.to_json() if calibration else None,
            "fingerprint": manifest["fingerprint"],
            "timings_s": timings,
            "warnings": self.warnings,
            "outputs": {"results": str(self.output), "rejected": str(rejected) if rejected else None},
        }

    def _engine(self, options: SearchOptions) -> Engine:
        config = self.config
        self._part_rejected: list[tuple[int, str, str]] = []
        return Engine(
            model=self.model,
            options=options,
            query_schema=self.table.schema,
            id_column=config.id_column,
            embedding_column=config.embedding_column,
            filter_column=config.filter_column,
            columns=config.columns,
            item_columns=config.item_columns,
            score_type=SCORE_TYPES.get(config.score_dtype),
            min_score=config.min_score,
            explain=config.explain,
            explode=config.explode,
            reject=self._reject,
        )

    def _reject(self, row: int, bad: BadRows, ids: pa.Array) -> None:
        before = len(self.quarantine)
        self.quarantine.take(row, bad, ids)
        self._part_rejected += self.quarantine.entries(before)

    def _restore(self, row: int, row_id: str, reason: str) -> None:
        """Take over a rejected row of a part that an earlier run wrote."""
        if row not in self.quarantine.known:
            self.quarantine.add(row, row_id, reason)

    def _write_part(self, writer: ResultsWriter, engine: Engine, number: int) -> None:
        config = self.config
        start, stop = number * config.part_rows, min((number + 1) * config.part_rows, self.num_rows)
        columns = [config.id_column, config.embedding_column, *config.columns]
        columns += [config.filter_column] if config.filter_column else []
        engine.counts = Counts()
        self._part_rejected = []
        batches = prefetch(self.table.batches(columns, config.batch_size or BATCH_ROWS, start, stop))

        def answered() -> Iterator[pa.RecordBatch]:
            for batch in engine.run(batches):
                yield batch
                self.progress("retrieve", start + engine.counts.queries, self.num_rows, "queries")

        writer.write_part(
            number,
            answered(),
            engine.schema,
            lambda: {"counts": asdict(engine.counts), "rejected": self._part_rejected},
        )

    def _identity(self, given: Calibration | None) -> dict[str, Any]:
        options = {name: getattr(self.config, name) for name in RESULT_OPTIONS}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return {
            "artifact": self.model.fingerprint,
            "queries": self.table.fingerprint(),
            "given_calibration": given.to_json() if given else None,
            **options,
        }

    def _calibrate(self, writer: ResultsWriter) -> Calibration | None:
        if self.config.exact or self.config.probes is not None:
            return None
        saved = writer.calibration()
        if saved is not None:
            return Calibration.from_json(saved)
        vectors, filters = self._sample()
        found = calibrate(
            self.model,
            vectors,
            filters,
            self.config.k,
            self.config.target_recall,
            seed=self.config.seed,
            total=self.num_rows,
        )
        writer.save_calibration(found.to_json())
        return found

    def _sample(self) -> tuple[torch.Tensor, list[str | None]]:
        """At most CALIBRATION_SAMPLE usable queries of the run, drawn by the seed."""
        config = self.config
        rows = np.arange(self.num_rows)
        if self.num_rows > CALIBRATION_SAMPLE:
            rows = np.sort(
                np.random.default_rng([config.seed, 4]).choice(self.num_rows, CALIBRATION_SAMPLE, replace=False)
            )
        columns = [config.embedding_column] + ([config.filter_column] if config.filter_column else [])
        vectors, filters = [], []
        for first, batch in self.table.batches(columns, BATCH_ROWS, 0, self.num_rows):
            low, high = np.searchsorted(rows, [first, first + batch.num_rows])
            picked = batch.take(pa.array(rows[low:high] - first))
            bad = BadRows.none(picked.num_rows)
            read = read_embeddings(
                picked.column(config.embedding_column), self.model.query_dim, np.dtype(np.float32), bad
            )
            texts = (
                picked.column(config.filter_column).to_pylist() if config.filter_column else [None] * picked.num_rows
            )
            failed = self.model.planner.check(texts)
            usable = [query for query in range(picked.num_rows) if not bad.bad[query] and query not in failed]
            vectors.append(read[usable])
            filters += [texts[query] for query in usable]
            self.progress("calibrate", int(high), len(rows), "queries")
        return torch.from_numpy(np.concatenate(vectors)), filters


def _read_calibration(path: str | None, model: Retriever, k: int) -> Calibration | None:
    if path is None:
        return None
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--calibration {path}: cannot be read ({error}); expected a file written by stcli") from error
    found = Calibration.from_json(data.get("calibration", data) if isinstance(data, dict) else {})
    found.check(model.fingerprint, k)
    return found
