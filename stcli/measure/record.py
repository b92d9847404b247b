"""From measurements to the body of `report.json`: every number that the page shows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stcli import __version__
from stcli.filters.exact import Truth
from stcli.filters.source import GivenFilters
from stcli.measure import show
from stcli.measure.ceilings import shares, stage_work
from stcli.measure.clock import PLANNING
from stcli.measure.machine import describe_machine, versions
from stcli.measure.matched import EXACT
from stcli.measure.measurements import GIVEN, Arm, Measurements, asked_of
from stcli.measure.metrics import (
    Quality,
    band_numbers,
    frontier,
    judge,
    mean_recall,
    number_or_none,
    recall_by_band,
    spread,
    tie_tolerance,
)
from stcli.measure.relevance import listed_recall, relevance
from stcli.measure.verdict import checks, verdict
from stcli.model.calibrate import count_admitted
from stcli.ops import native

FILTER_STAGES = (PLANNING, "filter_match", "filter_probes", "count_bits", "verify_terms")
"""Operations that only filters need."""

ARTIFACT_KEYS = (
    "fingerprint", "num_items", "dim", "embedding_dim", "embedding_dtype", "num_clusters", "cluster_sizes", "metric",
    "scale", "embedding_version",
)  # fmt: skip


def assemble(found: Measurements) -> dict[str, Any]:
    """The body of `report.json`, see FORMAT.md."""
    model, sample = found.model, found.sample
    filtered = np.array([model.planner.plan(text) is not None for text in sample.filters], bool)
    queries = model.normalized(sample.vectors).numpy()
    over, truth = list(found.truths.items())[-1]
    bands = band_numbers(truth.eligible, filtered, model.num_items)
    tolerance = {name: tie_tolerance(each, queries) for name, each in found.truths.items()}
    quality = {
        name: [
            judge(arm.found.rows.numpy(), asked_of(found, each, number), each, tolerance[name])
            for number, arm in enumerate(found.arms)
        ]
        for name, each in found.truths.items()
    }
    runs = [_run(found, arm, quality[over][number], bands) for number, arm in enumerate(found.arms)]
    for name in list(found.truths)[:-1]:
        for run, each in zip(runs, quality[name], strict=True):
            run["recall_packed"] = mean_recall(each.recall)
    for run, arm in zip(runs, found.arms, strict=True):
        rows = arm.found.rows.numpy()
        if found.given is not None:
            run["recall_exact"] = run["recall"]
            run |= _recall(listed_recall(rows, found.given), bands)
        if found.relevant is not None:
            run["relevance"] = relevance(rows, found.relevant)
    best = frontier([(run["recall"]["mean"] or 0.0, run["queries_per_s"]["median"]) for run in runs])
    for run, on_frontier in zip(runs, best, strict=True):
        run["frontier"] = on_frontier
    other = [value for arm in found.arms for value in arm.other_cores]
    other += [line["other_cores"] for line in found.latency if line["other_cores"] is not None]
    manifest = model.manifest
    body: dict[str, Any] = {
        "tool_version": __version__,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "k": found.k,
        "batch_size": found.batch_size,
        "inputs": {"items": found.config.items, "truth": found.config.truth},
        "artifact": {key: manifest.get(key) for key in ARTIFACT_KEYS}
        | {"filter": {key: value for key, value in manifest["filter"].items() if key != "features"}},
        "queries": {
            **found.table,
            "sampled": len(sample.filters),
            "filtered": int(filtered.sum()),
            "rejected": len(sample.rejected),
            "reasons": sorted({reason.splitlines()[0] for _, reason in sample.rejected})[:5],
            "nothing_eligible": int((truth.eligible == 0).sum()),
            "calibrated_on": found.calibrated_on,
        },
        "options": {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(found.config).items()
        },
        "machine": describe_machine(model.device) | {"threads": native.num_threads()},
        "versions": versions() | (found.against or {}).get("versions", {}),
        "load": {
            "other_cores": number_or_none(float(np.mean(other))),
            "most_other_cores": number_or_none(float(np.max(other))),
        },
        "truth": {
            "over": over if found.given is None else GIVEN,
            "tie_tolerance": {"median": float(np.median(tolerance[over])), "largest": float(tolerance[over].max())},
        },
        "runs": runs,
        "latency": list(found.latency),
        "stages_s": dict(found.stages),
        "ceilings": dict(found.ceilings) | {"stages": shares(_work(found), found.stages, found.ceilings)},
        "cost": _cost(found.config.price_per_hour, runs[0]["queries_per_s"]["median"]),
        "memory_bytes": dict(found.memory),
        "index_bytes": model.bytes_by_group(),
        "filter": _filter(found, truth, filtered),
        "against": found.against,
        "calibration": found.calibration.to_json() if found.calibration else None,
        "timings_s": found.timings,
    }  # fmt: skip
    body["checks"] = checks(found, body, quality, tolerance)
    body["verdict"] = verdict(body)
    return body


def _work(found: Measurements) -> dict[str, dict[str, float]]:
    planned = found.arms[0]
    filters = len(set(found.sample.filters) - {None})
    return stage_work(found.model, planned.found, planned.options, filters)


def _cost(price_per_hour: float | None, queries_per_s: float) -> dict[str, float] | None:
    """What a million queries cost in the planned setting, this machine being busy with nothing else."""
    if price_per_hour is None:
        return None
    return {"price_per_hour": price_per_hour, "per_million": price_per_hour / 3600 / queries_per_s * 1e6}


def _run(found: Measurements, arm: Arm, quality: Quality, bands: np.ndarray) -> dict[str, Any]:
    count = len(found.sample.filters)
    return {
        "name": arm.name,
        "kind": arm.kind,
        "probes": arm.options.probes,
        **_recall(quality.recall, bands),
        "queries_per_s": spread([count / seconds for seconds in arm.seconds]),
        "items_scored": float(arm.found.work.double().mean()),
        "short": int(quality.short.sum()),
        "incomplete": int(quality.incomplete.sum()),
        "ineligible": int(quality.ineligible.sum()),
        "repeated": int(quality.repeated.sum()),
        "differs": arm.differs,
        "other_cores": number_or_none(float(np.mean(arm.other_cores))),
    }


def _recall(recall: np.ndarray, bands: np.ndarray) -> dict[str, Any]:
    return {"recall": mean_recall(recall), "bands": recall_by_band(recall, bands)}


def _filter(found: Measurements, truth: Truth, filtered: np.ndarray) -> dict[str, Any]:
    """How well the bit matrix does: the items it admits that are not eligible, and queries it hides one from."""
    admitted = count_admitted(found.model, GivenFilters(found.model.planner, found.sample.filters))[0].numpy()[filtered]
    eligible = truth.eligible[filtered]
    rate = (admitted - eligible) / np.maximum(found.model.num_items - eligible, 1)
    return {
        "queries": len(eligible),
        "eligible_share": _quartiles(eligible / found.model.num_items),
        "false_positive_rate": {"mean": float(rate.mean()), "largest": float(rate.max())} if len(rate) else None,
        "hidden": found.hidden,
        "us_per_query": 1e6 * sum(found.stages.get(name, 0.0) for name in FILTER_STAGES) / len(found.sample.filters),
    }


def _quartiles(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {name: float(np.percentile(values, point)) for name, point in (("low", 0), ("median", 50), ("high", 100))}


def summarize(report: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the command prints."""
    planned = report["runs"][0]
    failed = [check["detail"] for check in report["checks"] if not check["ok"]]
    batch = headline_latency(report)
    return {
        "command": "bench",
        "version": __version__,
        "inputs": report["inputs"],
        "counts": {
            "queries": report["queries"]["sampled"],
            "rejected": report["queries"]["rejected"],
            "ineligible": planned["ineligible"],
            "incomplete": planned["incomplete"],
        },
        "recall": {run["name"]: run["recall"]["mean"] for run in report["runs"]},
        "queries_per_s": {run["name"]: round(run["queries_per_s"]["median"], 1) for run in report["runs"]},
        "against": _against(report["against"]),
        "latency_ms": {f"{name} of batches of {batch['batch_size']}": value for name, value in batch["ms"].items()},
        "memory_bytes": report["memory_bytes"],
        "fingerprint": report["fingerprint"],
        "timings_s": report["timings_s"],
        "verdict": report["verdict"]["text"],
        "warnings": failed,
        "outputs": {"report": str(path), "page": str(path / "report.html")},
    }


def _against(against: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A line for each contender in each table of `matched`, and for each that was not measured."""
    if against is None:
        return None
    told: dict[str, Any] = {}
    for workload in against["workloads"]:
        for table in workload["matched"]:
            reach = "exact" if table["target"] == EXACT else f"recall {table['target']:g}, {table['criterion']}"
            for line in table["lines"]:
                told[f"{line['name']}, {workload['name']}, {reach}"] = _contender(line)
    told |= {f"{entry['name']}, not measured": entry["reason"] for entry in against["left_out"]}
    return told


def _contender(line: Mapping[str, Any]) -> str:
    if line["setting"] is None:
        return "never reached"
    ratio = "" if line["ratio"] is None else f", stcli is {line['ratio']['median']:.2f} times as fast"
    return f"{show.number(line['queries_per_s'])} queries/s, recall {line['recall']:.4f}{ratio}"


def headline_latency(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line of the latency table for the batch size asked for, or for the largest up to 256."""
    asked = report["options"]["batch_size"]
    sizes = [line for line in report["latency"] if line["batch_size"] <= (asked or 256)]
    return sizes[-1] if sizes else report["latency"][0]
