"""`bench`: recall, throughput, latency and memory of an artifact, measured on a sample of the user's own queries.

The order of a run: calibrate as `retrieve` would; search every setting once, which warms up and gives the results that
recall is taken from; time the settings in turns; time batch sizes and operations; and only then compute the truth, so
that its memory is not counted as ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli.config import BenchConfig, Progress, checked, no_progress
from stcli.errors import InputError, ThresholdError
from stcli.events import Stages
from stcli.filters.exact import Tile, Truth, exact_search
from stcli.filters.source import GivenFilters
from stcli.measure import advice, record
from stcli.measure.ceilings import measure_ceilings
from stcli.measure.clock import forget_plans, run_batches, stage_seconds
from stcli.measure.machine import LoadWatch
from stcli.measure.measurements import ORIGINAL, PACKED, Arm, Measurements
from stcli.measure.metrics import number_or_none, percentiles
from stcli.measure.originals import open_originals, original_tiles
from stcli.measure.relevance import read_truth, rows_of_lists
from stcli.measure.report import write_report
from stcli.measure.sample import Sample
from stcli.model.admitted import Admitted
from stcli.model.calibrate import calibrate
from stcli.model.device import choose_device, limit_threads
from stcli.model.open import open_artifact
from stcli.model.planner import Calibration, SearchOptions, default_candidates
from stcli.model.retriever import Retriever
from stcli.pipeline.memory import MemoryWatch, private_bytes
from stcli.pipeline.queries import QueryReader, check_version, sample_queries
from stcli.pipeline.run import CALIBRATION_SAMPLE, PAPER_PROBES
from stcli.pipeline.sample import draw_sample
from stcli.storage import atomic
from stcli.storage.parquet import Table, open_table
from stcli.storage.remote import on_any_filesystem

LATENCY_BATCHES = (1, 16, 256)
"""Batch sizes timed beside the one asked for."""

ENOUGH_BATCHES = 100
LATENCY_SECONDS = 5.0
"""A batch size is timed until it has so many batches, or took so long."""

STAGE_REPEATS = 3
FILTERS_AT_ONCE = 64
ARM_SECONDS = 60.0
"""A setting that has taken so long is not repeated further; the report says how often it ran."""


@on_any_filesystem("model")
def bench(
    model: str | Path,
    queries: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    progress: Progress = no_progress,
    **options: Any,
) -> dict[str, Any]:
    """Measure an artifact on a sample of queries and write a report directory.

    Args:
        model: artifact made by `pack_model`.
        queries: Parquet file, files, directory or URI.
        output: the directory to create, with `report.json` and `report.html`.
        progress: see `stcli.config.Progress`.
        options: fields of `stcli.config.BenchConfig`, which lists them all with their defaults; `stcli bench -h`
            tells what each does, under the same name with dashes.

    Returns:
        Summary: recall, queries a second, latency, memory, timings in seconds, warnings.

    Raises:
        InputError: an option or a table cannot be used; nothing was written.
        FormatError: `model` is no whole artifact.
        ExistsError: `output` is there and `overwrite` is not set.
        ThresholdError: recall is below `min_recall`; the report is written.
    """
    config = checked(BenchConfig, "bench", options)
    path = Path(output)
    given = [str(item) for item in ([queries] if isinstance(queries, str | Path) else queries)]
    inputs = [model, *given, *(name for name in (config.items, config.truth) if name)]
    atomic.check_output(path, config.overwrite, makes="a report", inputs=inputs)
    start = time.perf_counter()
    device = choose_device(config.device)
    limit_threads(config.threads)
    opened = open_artifact(model, device=device, backend=config.backend)
    found = Bench(opened, given, config, progress).go()
    body = record.assemble(found)
    body["inputs"] |= {"model": str(model), "queries": given}
    body["command"] = advice.command_line(str(model), given, str(output), config)
    body["recommended"] = advice.recommend(body["runs"], str(model), given, config)
    body["timings_s"]["total"] = round(time.perf_counter() - start, 3)
    with atomic.new_directory(path, config.overwrite) as partial:
        written = write_report(partial, body)
    summary = record.summarize(written, path)
    reached = body["runs"][0]["recall"]["mean"]
    if config.min_recall is not None and reached is not None and reached < config.min_recall:
        raise ThresholdError(
            f"recall@{found.k} is {reached:.4f}, below --min-recall {config.min_recall:g}; the report is in {path}"
        )
    return summary


class Bench:
    """One benchmark of an opened model.

    Args:
        model: the packed model.
        queries: sources of the query table.
        config: options.
        progress: see `stcli.config.Progress`.
    """

    def __init__(self, model: Retriever, queries: Sequence[str], config: BenchConfig, progress: Progress) -> None:
        self.model, self.config, self.progress = model, config, progress
        _ = model.only  # the truth and the peers read one file
        self.k = min(config.k, model.num_items)
        self.paper = bool(model.manifest["filter"]["paper"])
        self.reader = QueryReader(model, config.id_column, config.embedding_column, config.filter_column)
        self.table = open_table(list(queries), self.reader.columns)
        self.reader.check(self.table)
        check_version(self.table, None, model)
        self.originals: Table | None = None
        if config.items is not None:
            self.originals = open_originals(config.items, config.item_id_column, config.item_embedding_column, model)
        elif not model.has_embeddings:
            raise InputError(
                "the artifact holds no embeddings to compute the truth from; name the item table with --items"
            )
        if config.against and not model.has_embeddings:
            raise InputError(
                "--against builds the others from the packed embeddings, and the artifact holds none; "
                "pack it with --embedding-dtype float16 or float32"
            )
        self.truth_table: Table | None = None
        if config.truth is not None:
            self.truth_table = open_table(config.truth, [config.id_column, config.truth_column])
        self.relevant = [config.relevant_column] if config.relevant_column is not None else []
        for column in self.relevant:
            self.table.column_type(column, "--relevant-column")
        self.stages = Stages()

    def go(self) -> Measurements:
        """Measure everything."""
        sample = draw_sample(self.reader, self.table, self.config.sample, self.config.seed, self.relevant)
        given, relevant = self._given(sample), self._relevant(sample)
        with self.stages("calibrate"):
            calibration = self._calibrate(self.config.target_recall, True)
        size = min(self.config.batch_size or len(sample.filters), len(sample.filters))
        arms = self._arms(calibration)
        before = private_bytes()
        with MemoryWatch() as watch:
            with self.stages("measure"):
                self._warm_up(arms, sample, size)
                self._measure(arms, sample, size)
            with self.stages("latency"):
                latency = self._latency(arms[0], sample, size)
                stages = self._stages(arms[0], sample, size)
        ceilings = measure_ceilings(self.model.device)
        memory = {"before": before, **watch.summary(), **_device_memory(self.model.device)}
        with self.stages("truth"):
            truths = self._truths(arms, sample)
            hidden = self._hidden(sample, list(truths.values())[-1])
        compared = None
        if self.config.against:
            with self.stages("against"):
                compared = self._against(sample, size, arms, truths[PACKED])
        return Measurements(
            model=self.model,
            config=self.config,
            k=self.k,
            sample=sample,
            table=self.table.fingerprint(),
            calibration=calibration,
            calibrated_on=min(self.table.num_rows, CALIBRATION_SAMPLE),
            batch_size=size,
            arms=arms,
            latency=latency,
            stages=stages,
            memory=memory,
            truths=truths,
            hidden=hidden,
            given=given,
            relevant=relevant,
            ceilings=ceilings,
            against=compared,
            timings=self.stages.rounded(),
        )

    def _calibrate(self, target: float, filtered: bool) -> Calibration | None:
        """Calibrate on the queries that `retrieve` would take, so that the planned setting is the one it would use."""
        config, count = self.config, self.table.num_rows
        if self.paper:
            return None
        drawn = sample_queries(self.reader, self.table, count, CALIBRATION_SAMPLE, config.seed)
        filters = drawn.filters if filtered else GivenFilters(self.model.planner, [None] * len(drawn.vectors))
        return calibrate(self.model, drawn.vectors, filters, self.k, target, seed=config.seed, total=count)

    def _given(self, sample: Sample) -> list[np.ndarray] | None:
        """The user's own ground truth of the sample."""
        if self.truth_table is None:
            return None
        config, lookup = self.config, self.model.lookup
        return read_truth(self.truth_table, config.id_column, config.truth_column, sample.ids, lookup)

    def _relevant(self, sample: Sample) -> list[np.ndarray] | None:
        """The relevant items of each query of the sample."""
        if not self.relevant:
            return None
        where = f"{self.table.name}: column {self.relevant[0]!r}"
        return rows_of_lists(sample.columns.column(0), self.model.lookup, where)

    def _against(self, sample: Sample, size: int, arms: Sequence[Arm], truth: Truth) -> dict[str, Any]:
        """Measure the peers, with a truth over the packed embeddings, which they are built from."""
        from stcli.measure.against import Against

        return Against(self.model, sample, self.config, self.k, size, arms, self._calibrate, self.progress).run(truth)

    def _arms(self, calibration: Calibration | None) -> list[Arm]:
        """The planned setting, a sweep of fixed probes, the exact setting; verified unless in the paper's form."""
        clusters = self.model.num_clusters
        # Fewer probes than give 2 k items would only measure how often a search is widened.
        least = min(max(clusters / 256, 2 * self.k * clusters / self.model.num_items), clusters)
        powers = [1 << shift for shift in range(clusters.bit_length()) if 1 << shift >= least]
        sweep = sorted({min(probes, clusters) for probes in self.config.probes or [*powers, clusters]})
        base = SearchOptions(self.k, default_candidates(self.k), verify=not self.paper)
        planned = replace(base, calibration=calibration, probes=PAPER_PROBES if self.paper else None)
        return [
            Arm("planned", "planned", planned),
            *(Arm(f"{probes} probes", "probes", replace(base, probes=probes)) for probes in sweep),
            Arm("exact", "exact", replace(base, exact=True)),
        ]

    def _warm_up(self, arms: Sequence[Arm], sample: Sample, size: int) -> None:
        for number, arm in enumerate(arms):
            arm.results, _ = run_batches(self.model, sample.vectors, sample.filters, arm.options, size)
            self.progress("warm up", number + 1, len(arms), "settings")

    def _measure(self, arms: Sequence[Arm], sample: Sample, size: int) -> None:
        """Time every setting `repeat` times, in turns, so that a slow moment of the machine hits all alike."""
        repeat = self.config.repeat
        for turn in range(repeat):
            for number in range(len(arms)):
                arm = arms[(number + turn) % len(arms)]
                self.progress("measure", turn * len(arms) + number, repeat * len(arms), "runs")
                if sum(arm.seconds) > ARM_SECONDS:
                    continue
                forget_plans(self.model)
                with LoadWatch() as load:
                    results, seconds = run_batches(self.model, sample.vectors, sample.filters, arm.options, size)
                arm.seconds.append(sum(seconds))
                arm.batch_seconds += seconds[: len(sample.filters) // size]
                arm.other_cores.append(load.other_cores)
                arm.differs += not torch.equal(results.rows, arm.found.rows)
        self.progress("measure", repeat * len(arms), repeat * len(arms), "runs")

    def _latency(self, arm: Arm, sample: Sample, size: int) -> list[dict[str, Any]]:
        """Latency and throughput of the planned setting in batches of several sizes; full batches only."""
        found = []
        for batch in sorted({*(number for number in LATENCY_BATCHES if number < size), size}):
            with LoadWatch() as load:
                seconds = list(arm.batch_seconds) if batch == size else []
                place = len(sample.filters)
                while len(seconds) < ENOUGH_BATCHES and sum(seconds) < LATENCY_SECONDS:
                    if place + batch > len(sample.filters):
                        forget_plans(self.model)
                        place = 0
                    part = slice(place, place + batch)
                    _, spent = run_batches(self.model, sample.vectors[part], sample.filters[part], arm.options, batch)
                    seconds += spent
                    place += batch
            found.append(
                {
                    "batch_size": batch,
                    "batches": len(seconds),
                    "ms": percentiles([1000 * value for value in seconds]),
                    "queries_per_s": batch * len(seconds) / sum(seconds),
                    "other_cores": number_or_none(load.other_cores),
                }
            )
            self.progress("latency", batch, size, "queries")
        return found

    def _stages(self, arm: Arm, sample: Sample, size: int) -> dict[str, float]:
        """Median seconds of each operation over the sample, in the default setting."""
        runs = []
        for _ in range(STAGE_REPEATS):
            forget_plans(self.model)
            with stage_seconds(self.model) as spent:
                run_batches(self.model, sample.vectors, sample.filters, arm.options, size)
            runs.append(spent)
        names = sorted({name for spent in runs for name in spent})
        return {name: float(np.median([spent.get(name, 0.0) for spent in runs])) for name in names}

    def _truths(self, arms: Sequence[Arm], sample: Sample) -> dict[str, Truth]:
        """The truth over the packed embeddings if there are any, then over the originals if they were given."""
        asked = np.concatenate([arm.found.rows.numpy() for arm in arms], 1)
        vectors, config = sample.vectors.to(self.model.device), self.config

        def search(tiles: Iterable[Tile] | None) -> Truth:
            return exact_search(
                self.model.only, vectors, sample.filters, self.k, tiles=tiles, asked=asked,
                done=lambda items: self.progress("truth", items, self.model.num_items, "items"),
            )  # fmt: skip

        truths = {}
        if self.model.has_embeddings:
            truths[PACKED] = search(None)
        if self.originals is not None:
            truths[ORIGINAL] = search(
                original_tiles(self.originals, config.item_id_column, config.item_embedding_column, self.model)
            )
        return truths

    def _hidden(self, sample: Sample, truth: Truth) -> int:
        """Queries with a true best item that the bit matrix does not admit."""
        model, hidden = self.model, 0
        for start in range(0, len(sample.filters), FILTERS_AT_ONCE):
            part = slice(start, start + FILTERS_AT_ONCE)
            ((_, batch),) = model.batches(GivenFilters(model.planner, sample.filters), part.start, part.stop)
            admitted = model.admit(batch)

            def hides(number: int, own: torch.Tensor, admitted: Sequence[Admitted] = admitted) -> torch.Tensor:
                words, line = admitted[number].words, admitted[number].line_of_query
                assert line is not None  # evaluated everywhere
                if words is None:
                    return torch.zeros_like(own, dtype=torch.bool)
                bits = words[line.clamp(min=0)[:, None], own.clamp(min=0) >> 6] >> (own & 63) & 1
                return (bits == 0) & (own >= 0) & (line >= 0)[:, None]

            rows = torch.from_numpy(truth.rows[part]).to(model.device)
            hidden += int(model.read(rows, hides, False).any(1).sum())
        return hidden


def _device_memory(device: torch.device) -> dict[str, int]:
    return {"peak_device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}
