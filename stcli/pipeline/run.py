"""One run of `retrieve`: what its processes share, and how its parts are answered and published."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from stcli import __version__
from stcli.config import Progress, RetrieveConfig, no_progress
from stcli.errors import InputError, StcliError
from stcli.events import Stages, tell
from stcli.model.calibrate import calibrate, read_calibration
from stcli.model.device import choose_devices, describe_device, limit_threads
from stcli.model.open import open_artifact
from stcli.model.placement import Placement, Spread
from stcli.model.planner import Calibration, SearchOptions, default_candidates
from stcli.model.retriever import Retriever
from stcli.model.scoring_options import ScoringOptions
from stcli.pipeline.audit import DEFAULT_SAMPLE, SEED_APART, audit, check_thresholds
from stcli.pipeline.engine import SCORE_TYPES, Counts, Engine
from stcli.pipeline.item_lists import ItemLists
from stcli.pipeline.memory import MemoryWatch, limit_arrow
from stcli.pipeline.place import place_artifact
from stcli.pipeline.prefetch import prefetch
from stcli.pipeline.queries import QueryReader, check_version, sample_queries, task_columns, user_tower
from stcli.pipeline.replicas import on_first_device, worker_jobs
from stcli.pipeline.scoring import run_scoring
from stcli.pipeline.workers import local_workers, ray_workers
from stcli.storage import atomic
from stcli.storage.columns import BadRows
from stcli.storage.parquet import Table, open_table
from stcli.storage.quarantine import Quarantine
from stcli.storage.results import PartsFolder, ResultsWriter

BATCH_ROWS = 8192
CALIBRATION_SAMPLE = 8192
PAPER_PROBES = 24
"""Clusters that the SilverTorch paper probes in production (arXiv 2511.14881, section on evaluation)."""

RESULT_OPTIONS = (
    "id_column", "embedding_column", "task_embeddings", "combine", "candidates_column", "query_item_column", "k_column",
    "overarch",
    "value_model", "value_model_column", "max_per", "distinct_by", "filter_column",
    "filter", "exclude_column", "columns", "item_columns", "k",
    "probes", "exact", "target_recall", "rescore", "verify", "min_score", "limit", "explode", "explain", "score_dtype",
    "part_rows", "seed",
)  # fmt: skip
"""Options that change the results; only these must be the same when a run is resumed."""


@dataclass(frozen=True)
class Job:
    """All that a process needs to know to answer parts of a run: plain data that can be sent anywhere."""

    model: str
    queries: tuple[str, ...]
    output: str
    config: RetrieveConfig


def open_run(job: Job, progress: Progress = no_progress) -> Run:
    """Open and check the artifact and the query table of a run."""
    config = job.config
    devices = choose_devices(config.device)
    limit_threads(config.threads)
    limit = limit_arrow(config.memory_limit)
    placement = place_artifact(job.model, devices, config)
    # The driver of several copies answers nothing itself, so it leaves the memory of the devices to the workers.
    here = len(devices) == 1 or isinstance(placement, Spread)
    if isinstance(placement, Spread) and (config.workers > 1 or config.engine == "ray"):
        raise InputError(
            f"--device {config.device}: no GPU holds the artifact by itself, so its files lie on {len(placement.each)} "
            "of them and one process searches them; leave out --workers and --engine"
        )
    opened = open_artifact(
        job.model,
        device=devices[0] if here else "cpu",
        backend=config.backend,
        placement=placement if here else None,
        allow_model_code=config.allow_model_code,
    )
    if placement is None:
        opened.words_bytes = min(opened.words_bytes, limit // 4)
    table = open_table(job.queries)
    vectors, tower = {}, None
    if config.query_item_column is None:
        vectors = task_columns(table, config.task_embeddings, config.embedding_column)
        tower = user_tower(opened, table, vectors, config.embedding_column)
    tasks = tower.tasks if tower else tuple(vectors)
    scoring = run_scoring(opened, config, tasks, table.schema.names)
    reader = QueryReader(
        opened, config.id_column, config.embedding_column, config.filter_column, config.filter, config.exclude_column,
        vectors, config.candidates_column, config.k_column, config.k,
        tower, scoring.values, config.value_model_column,
        -1 if config.value_model is None else 0, config.query_item_column,
    )  # fmt: skip
    table.check_same([*reader.columns, *config.columns])
    reader.check(table)
    for name in config.columns:
        table.column_type(name, "--columns")
    check_version(table, config.embedding_version, opened)
    return Run(job, reader, table, scoring, devices, progress, placement)


def part_worker(job: Job) -> Callable[[int], None]:
    """What answers single parts of a run whose driver has made the folder and the calibration."""
    run = open_run(job)
    folder = PartsFolder(atomic.partial_path(run.output))
    saved = folder.calibration()
    engine = run.engine(Calibration.from_json(saved) if saved else None)

    def answer(number: int) -> None:
        if not folder.has_part(number):
            list(run.write_parts(folder, engine, [number]))

    return answer


class Run:
    """One run of `retrieve` over an open table."""

    def __init__(
        self,
        job: Job,
        reader: QueryReader,
        table: Table,
        scoring: ScoringOptions,
        devices: Sequence[torch.device],
        progress: Progress,
        placement: Placement | Spread | None = None,
    ) -> None:
        self.job, self.config, self.output = job, job.config, Path(job.output)
        self.reader, self.table, self.progress, self.placement = reader, table, progress, placement
        self.scoring, self.devices = scoring, devices
        config = job.config
        self.model = reader.model
        self.num_rows = min(table.num_rows, config.limit or table.num_rows)
        self.num_parts = -(-self.num_rows // config.part_rows)
        self.quarantine = Quarantine(table, config.bad_rows, config.max_bad_fraction)
        self.lists = ItemLists(self.model, config)
        self.warnings: list[str] = list(self.lists.warnings)
        self.retries = 0
        if config.k > self.model.num_items:
            self.warnings.append(
                f"--k {config.k} is more than the {self.model.num_items} items; a query gets no more than those"
            )
        self._rejected: list[tuple[int, str | None, str]] = []
        self.paper = bool(self.model.manifest["filter"]["paper"])
        self.verify = config.verify == "on" or (config.verify == "auto" and not self.paper)
        self.probes = config.probes
        if self.paper and self.probes is None and not config.exact:
            self.probes = PAPER_PROBES
        if not self.verify:
            self.warnings.append("candidates are not verified, so ineligible items may appear; --verify on checks them")
        if self.paper:
            self.warnings.append(
                "the paper's form complements Bloom rows, so a filter with NOT may lose eligible items"
            )

    def over(self, job: Job) -> Run:
        """A run of another job over the model and table of this one: a GPU may not have room for them twice."""
        return Run(job, self.reader, self.table, self.scoring, self.devices, no_progress, self.placement)

    @property
    def is_spread(self) -> bool:
        """The files of the artifact lie on several devices, which this process searches together."""
        return isinstance(self.placement, Spread)

    @property
    def device_names(self) -> str:
        """What the run searches on."""
        return ", ".join(describe_device(device, self.config.device) for device in self.devices)

    def go(self, memory: MemoryWatch) -> dict[str, Any]:
        """Calibrate, answer every part that is not there yet, and publish; `memory` watches this process."""
        config = self.config
        engine = self.engine(None)
        given = read_calibration(config.calibration, self.model, engine.calibrated_k)
        if config.bad_rows == "fail":
            self._check_filters()
        writer = ResultsWriter(self.output, self._identity(given), config.resume, config.overwrite)
        stages, counts, first_unknown = Stages(), Counts(), None
        try:
            with stages("calibrate"):
                calibration = self._calibration(given, writer, engine.calibrated_k)
                engine.options = replace(engine.options, calibration=calibration)
            missing = [number for number in range(self.num_parts) if not writer.has_part(number)]
            resumed = [number for number in range(self.num_parts) if writer.has_part(number)]
            with stages("search"):
                for done, number in enumerate(chain(resumed, self._answer(missing, writer, engine)), 1):
                    info = writer.part_info(number)
                    counts.add(Counts(**info["counts"]))
                    first_unknown = first_unknown or info.get("first_unknown")
                    self.quarantine.restore(info["rejected"])
                    tell("part", stage="search", number=number, resumed=number in resumed, **info["counts"])
                    self.progress("retrieve", min(done * config.part_rows, self.num_rows), self.num_rows, "queries")
        except StcliError:
            if writer.is_empty:
                writer.discard()
            raise
        with stages("audit"):
            audited = self._audit(engine.options)
        check_thresholds(config, audited, counts.queries - counts.rejected, counts.short, str(writer.folder))
        timings = stages.rounded()
        if not missing:
            timings["search"] = 0.0
        speed = round(counts.queries / timings["search"], 1) if timings["search"] and not resumed else None
        run: dict[str, Any] = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "output": str(self.output),
            "timings_s": timings,
            "queries_per_s": speed,
            "memory_bytes": memory.summary(),
            "retries": self.retries,
        }
        run |= {"audit": audited} if audited else {}
        rejected = self.quarantine.write(self.output)
        if writer.is_whole:
            self.warnings.append(f"{self.output}: was whole already, from the same inputs and options")
        manifest = writer.finish({"tool_version": __version__, "counts": asdict(counts)}, self.num_parts, run)
        self._warn_about(counts, first_unknown)
        return {
            "command": "retrieve",
            "counts": asdict(counts) | {"parts": self.num_parts, "parts_resumed": len(resumed)},
            "queries_per_s": speed,
            "retries": self.retries,
            "calibration": calibration.to_json() if calibration else None,
            "audit": audited,
            "fingerprint": manifest["fingerprint"],
            "timings_s": timings,
            "warnings": self.warnings,
            "outputs": {"results": str(self.output), "rejected": str(rejected) if rejected else None},
        }

    def _answer(self, numbers: Sequence[int], writer: ResultsWriter, engine: Engine) -> Iterator[int]:
        """Answer parts here or in workers; yields the number of each once it is written."""
        on_ray = self.config.engine == "ray"  # which gives each actor a device of its own
        copies = self.devices[:1] if on_ray or self.is_spread else self.devices
        jobs = worker_jobs(self.job, copies)
        if on_ray:
            on_gpu = self.devices[0].type == "cuda"
            job = replace(jobs[0], config=replace(jobs[0].config, device="cuda" if on_gpu else self.config.device))
            threads = jobs[0].config.threads or 1
            yield from ray_workers(part_worker, job, numbers, len(jobs), threads, int(on_gpu))
        elif len(jobs) > 1:
            yield from local_workers(part_worker, jobs, numbers, self._retried)
        else:
            yield from self.write_parts(writer, engine, numbers)

    def _retried(self) -> None:
        self.retries += 1

    def _audit(self, options: SearchOptions) -> dict[str, dict[str, Any]] | None:
        """Recall of random queries of this run, if it was asked for."""
        config = self.config
        size = config.audit or (DEFAULT_SAMPLE if config.min_recall is not None else None)
        if size is None:
            return None
        seed = config.seed + SEED_APART
        sample = sample_queries(self.reader, self.table, self.num_rows, size, seed)
        return on_first_device(self, open_run, lambda model: audit(model, sample, options))

    def _warn_about(self, counts: Counts, first_unknown: str | None) -> None:
        if 2 * counts.rejected > counts.queries:
            self.warnings.append(
                f"{counts.rejected} of {counts.queries} queries were rejected; the list beside the results says why"
            )
        if counts.unknown_values:
            such = f", such as {first_unknown}" if first_unknown else ""
            self.warnings.append(
                f"{counts.unknown_values} filter values do not occur in the index and match nothing{such}"
            )
        if counts.missing:
            named = {"candidates": self.reader.candidates_column, "query items": self.reader.item_column}
            what = " and ".join(name for name, column in named.items() if column is not None)
            self.warnings.append(f"{counts.missing} {what} are no items of the index")
        if counts.unknown_events:
            self.warnings.append(f"{counts.unknown_events} events of histories have items that are not in the index")
        if counts.unknown_excluded:
            self.warnings.append(f"{counts.unknown_excluded} excluded ids are no items of the index")

    def engine(self, calibration: Calibration | None) -> Engine:
        """What turns batches of queries into batches of results."""
        config = self.config
        return Engine(
            reader=self.reader,
            options=SearchOptions(
                config.k,
                config.rescore or default_candidates(config.k),
                self.probes,
                config.exact,
                calibration,
                allowed=self.lists.allowed,
                verify=self.verify,
                filter_scope=config.filter_scope,
                count=config.explain,
            ),
            query_schema=self.table.schema,
            columns=config.columns,
            item_columns=config.item_columns,
            score_type=SCORE_TYPES.get(config.score_dtype),
            min_score=config.min_score,
            explain=config.explain,
            explode=config.explode,
            scoring=self.scoring,
            reject=self._reject,
        )

    def _check_filters(self) -> None:
        """Find a filter that cannot be used before anything is written, rather than in the middle of the night."""
        column = self.config.filter_column
        if column is None:
            return
        for first, batch in self.table.batches([column], self.config.part_rows, 0, self.num_rows):
            failed = self.model.planner.check(batch.column(0).to_pylist())
            for query, error in sorted(failed.items()):
                raise InputError(
                    f"{self.table.name}: {self.table.where(first + query)}: {error}\n"
                    "mend it, or use --bad-rows quarantine to set such rows aside"
                )

    def _reject(self, row: int, bad: BadRows, ids: pa.Array) -> None:
        before = len(self.quarantine)
        self.quarantine.take(row, bad, ids)
        self._rejected += self.quarantine.entries(before)

    def write_parts(self, folder: PartsFolder, engine: Engine, numbers: Sequence[int]) -> Iterator[int]:
        """Answer the queries of parts and write them; yields the number of each once it is written.

        The batches of all of them are one stream, so that the next part is read and searched while one is finished.
        """
        columns = [*self.reader.columns, *self.config.columns]
        most = self.config.batch_size or BATCH_ROWS
        each = (self.table.batches(columns, most, *self._rows(number)) for number in numbers)

        def info() -> dict[str, Any]:
            counts, first = asdict(engine.counts), engine.first_unknown
            return {"counts": counts, "first_unknown": first, "rejected": self._rejected}

        with closing(engine.run(prefetch(chain.from_iterable(each)))) as answered:
            for number in numbers:
                engine.counts, engine.first_unknown, self._rejected = Counts(), None, []
                folder.write_part(number, self._of_part(number, answered, engine), engine.schema, info)
                yield number

    def _of_part(self, number: int, answered: Iterator[pa.RecordBatch], engine: Engine) -> Iterator[pa.RecordBatch]:
        """The batches of a part, the next ones of those answered."""
        start, stop = self._rows(number)
        while start + engine.counts.queries < stop and (batch := next(answered, None)) is not None:
            yield batch
            self.progress("retrieve", start + engine.counts.queries, self.num_rows, "queries")
        if start + engine.counts.queries != stop:
            raise InputError(
                f"{self.table.name}: rows {start} to {stop - 1} are no longer what they were when the run began; leave "
                "the table alone during a run, and begin again with --overwrite"
            )

    def _rows(self, number: int) -> tuple[int, int]:
        """The first table row of a part, and the row after its last."""
        return number * self.config.part_rows, min((number + 1) * self.config.part_rows, self.num_rows)

    def _identity(self, given: Calibration | None) -> dict[str, Any]:
        options = {name: getattr(self.config, name) for name in RESULT_OPTIONS}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return {
            "artifact": self.model.fingerprint,
            "queries": self.table.fingerprint(),
            "item_lists": self.lists.fingerprints,
            "given_calibration": given.to_json() if given else None,
            **options,
        }

    def _calibration(self, given: Calibration | None, writer: ResultsWriter, k: int) -> Calibration | None:
        """The calibration given, or the one an interrupted run began with, or a new one on a sample of this run."""
        if self.config.exact or self.probes is not None or self.reader.candidates_column is not None:
            return None
        saved = writer.calibration()
        if saved is not None:
            return Calibration.from_json(saved, f"{writer.folder}: its calibration")
        found = given
        if found is None:
            count = max(CALIBRATION_SAMPLE // self.reader.num_vectors, 1)
            sample = sample_queries(self.reader, self.table, self.num_rows, count, self.config.seed)
            total = self.num_rows * self.reader.num_vectors

            def measure(model: Retriever) -> Calibration:
                return calibrate(
                    model, sample.vectors, sample.filters, k, self.config.target_recall,
                    seed=self.config.seed, total=total, allowed=self.lists.allowed,
                )  # fmt: skip

            found = on_first_device(self, open_run, measure)
        writer.save_calibration(found.to_json())
        return found
