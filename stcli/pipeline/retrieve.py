"""`retrieve`: an artifact and a Parquet query table become a directory of Parquet results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stcli import __version__
from stcli.config import Progress, RetrieveConfig, checked, no_progress
from stcli.model.device import device_warnings
from stcli.pipeline.estimate import estimate_retrieve
from stcli.pipeline.memory import MemoryWatch
from stcli.pipeline.run import Job, open_run
from stcli.storage import atomic
from stcli.storage.remote import on_any_filesystem


@on_any_filesystem("model")
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
        options: fields of `stcli.config.RetrieveConfig`, which lists them all with their defaults; `stcli retrieve -h`
            tells what each does, under the same name with dashes.

    Returns:
        Summary: counts, what ran, timings in seconds, warnings.

    Raises:
        InputError: an option, the table or a row cannot be used.
        FormatError: `model` is no whole artifact.
        ExistsError: `output` is there and `overwrite` is not set.
        ThresholdError: `min_recall` or `max_short_fraction` was missed; the parts stay in OUTPUT.partial.
    """
    config = checked(RetrieveConfig, "retrieve", options)
    start = time.perf_counter()
    names = (queries,) if isinstance(queries, str | Path) else queries
    job = Job(str(model), tuple(map(str, names)), str(output), config)
    more = (config.exclude_items, config.only_items, config.calibration)
    inputs = [job.model, *job.queries, *(name for name in more if name is not None)]
    atomic.check_output(Path(job.output), config.overwrite or config.resume, makes="results", inputs=inputs)
    run = open_run(job, progress)
    if config.dry_run:
        told = {"command": "retrieve", "dry_run": True, "version": __version__, "options": asdict(config)}
        return told | {"device": run.device_names} | estimate_retrieve(job, run)
    with MemoryWatch() as memory:
        summary = run.go(memory)
    summary["inputs"] = {"model": job.model, "queries": list(job.queries)}
    summary["version"], summary["options"] = __version__, asdict(config)
    summary["device"] = run.device_names
    summary["placement"] = run.placement.summary() if run.placement else None
    summary["warnings"] += [*run.model.warnings, *device_warnings(config.device, run.devices[0])]
    summary["memory_bytes"] = memory.summary()
    summary["timings_s"]["total"] = round(time.perf_counter() - start, 3)
    return summary
