"""From measurements to the body of `report.json`: every number that the page shows, and the checks it opens with."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stcli import __version__
from stcli.config import BenchConfig
from stcli.filters.exact import Truth
from stcli.measure.ceilings import shares, stage_work
from stcli.measure.clock import PLANNING
from stcli.measure.machine import describe_machine, versions
from stcli.measure.matched import EXACT
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
from stcli.measure.sample import Sample
from stcli.model.planner import Calibration, SearchOptions
from stcli.model.results import Results
from stcli.model.retriever import Retriever
from stcli.ops import native
from stcli.storage.sizes import bytes_by_group

PACKED, ORIGINAL = "packed embeddings", "original embeddings"
"""What a truth was computed over."""

GIVEN = "given lists"
"""A ground truth that the user gave."""

BUSY_CORES = 0.3
"""Cores kept busy by other processes above which timings are to be distrusted."""

HALF_ROUNDING = 2.0**-11
"""Relative rounding of a number stored as float16."""

FILTER_STAGES = (PLANNING, "filter_match", "count_bits", "verify_terms")
"""Operations that only filters need."""

ARTIFACT_KEYS = (
    "fingerprint", "num_items", "dim", "embedding_dim", "embedding_dtype", "num_clusters", "cluster_sizes", "metric",
    "scale", "embedding_version",
)  # fmt: skip


@dataclass
class Arm:
    """One setting that is measured.

    Attributes:
        name: how the report calls it.
        kind: "planned" (for each query), "probes" (a fixed number of clusters) or "exact".
        options: how to search.
        results: of the warm-up; every repetition must give the same.
        seconds: of each repetition over the whole sample.
        other_cores: cores that other processes kept busy meanwhile.
        batch_seconds: of every batch of every repetition.
        differs: repetitions whose results were not those of the warm-up.
    """

    name: str
    kind: str
    options: SearchOptions
    results: Results | None = None
    seconds: list[float] = field(default_factory=list)
    other_cores: list[float] = field(default_factory=list)
    batch_seconds: list[float] = field(default_factory=list)
    differs: int = 0

    @property
    def found(self) -> Results:
        """The results."""
        assert self.results is not None
        return self.results


@dataclass(frozen=True)
class Measurements:
    """Everything that a benchmark measured.

    Attributes:
        model: the packed model.
        config: options.
        k: results a query.
        sample: the queries.
        table: rows and fingerprint of the query table.
        calibration: of the planned setting; None in the paper's form, which probes a fixed number of clusters.
        calibrated_on: queries that were drawn for it, as `retrieve` draws them.
        batch_size: queries of one batch in the throughput runs.
        arms: settings, the planned one first, the exact one last.
        latency: see FORMAT.md.
        stages: seconds of each operation.
        memory: bytes.
        truths: over PACKED, ORIGINAL or both, in this order; `asked` holds the results of the arms side by side.
        hidden: queries with a true best item that the bit matrix does not admit.
        timings: seconds of each stage of the benchmark.
        given: the user's own ground truth, rows of each query, or None.
        relevant: rows of the relevant items of each query, or None.
        ceilings: see `stcli.measure.ceilings`.
        against: see `stcli.measure.against`; None if nobody was asked.
    """

    model: Retriever
    config: BenchConfig
    k: int
    sample: Sample
    table: Mapping[str, Any]
    calibration: Calibration | None
    calibrated_on: int
    batch_size: int
    arms: Sequence[Arm]
    latency: Sequence[Mapping[str, Any]]
    stages: Mapping[str, float]
    memory: Mapping[str, int]
    truths: Mapping[str, Truth]
    hidden: int
    timings: dict[str, float]
    ceilings: Mapping[str, float | None]
    given: Sequence[np.ndarray] | None = None
    relevant: Sequence[np.ndarray] | None = None
    against: Mapping[str, Any] | None = None


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
            judge(arm.found.rows.numpy(), _asked(found, each, number), each, tolerance[name])
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
        "index_bytes": bytes_by_group(manifest["arrays"]),
        "filter": _filter(found, truth, filtered),
        "against": found.against,
        "calibration": found.calibration.to_json() if found.calibration else None,
        "timings_s": found.timings,
    }  # fmt: skip
    body["checks"] = _checks(found, body, quality, tolerance)
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


def _asked(found: Measurements, truth: Truth, number: int) -> np.ndarray:
    """True scores of the results of one arm, float64 [B, k]."""
    return truth.asked[:, number * found.k : (number + 1) * found.k]


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
    admitted = found.arms[0].found.admitted.numpy()[filtered]
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


def _checks(
    found: Measurements,
    body: Mapping[str, Any],
    quality: Mapping[str, Sequence[Quality]],
    tolerance: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """What must hold whatever the speed, so that a wrong result shows at a glance."""
    runs, planned = body["runs"], body["runs"][0]
    target = found.config.target_recall
    checks = []

    def check(name: str, holds: bool, detail: str, about: str = "results") -> None:
        checks.append({"name": name, "ok": bool(holds), "detail": detail, "about": about})

    ineligible = sum(run["ineligible"] for run in runs)
    check("Every result satisfies its filter", ineligible == 0, f"{ineligible:,} results do not satisfy their filter")
    hidden = found.hidden
    check("The filter hides nothing", hidden == 0, f"the bit matrix hides a true best item from {hidden:,} queries")
    incomplete = sum(run["incomplete"] for run in runs)
    check("Nobody gets too few", incomplete == 0, f"{incomplete:,} queries got fewer than min(k, eligible) results")
    repeated = sum(run["repeated"] for run in runs)
    check("No item comes twice", repeated == 0, f"{repeated:,} results stand in their list already")
    differs = sum(run["differs"] for run in runs)
    check("Repetitions agree", differs == 0, f"{differs:,} repetitions gave other rows")
    if found.model.embeddings is not None:
        share = _true_scores(found, tolerance)
        check(
            "Scores belong to their items", share > 0.999, f"{share:.2%} of the scores are those of the item returned"
        )
        exact = mean_recall(next(iter(quality.values()))[-1].recall)["mean"]
        holds = exact is None or exact > 0.9999
        check("Exact search is exact", holds, f"exact search has recall {_share(exact)} over the {PACKED}")
    others = _exact_others(found.against)
    if others:
        least = min(others)
        detail = f"another library's exact search has recall {least:.4f} by this truth"
        check("Others' exact search agrees with the truth", least >= EXACT, detail)
    low = [band["band"] for band in planned["bands"] if band["queries"] and band["high"] < target]
    mean = planned["recall"]["mean"]
    check(
        "Recall reaches the target",
        (mean is None or mean >= target) and not low,
        f"recall {_share(mean)} for a target of {target:g}" + (f", below it in band {', '.join(low)}" if low else ""),
        "recall",
    )
    busy = body["load"]["other_cores"]
    check(
        "The machine was quiet",
        busy is not None and busy <= BUSY_CORES,
        "the system does not tell how busy it was" if busy is None else f"other processes kept {busy:.2f} cores busy",
        "timing",
    )
    return checks


def _exact_others(against: Mapping[str, Any] | None) -> list[float]:
    """Recall of the exact settings of the others: an independent look at the truth and at the filters."""
    if against is None:
        return []
    contenders = [entry for workload in against["workloads"] for entry in workload["contenders"][1:]]
    settings = [setting for entry in contenders for setting in entry["settings"] if setting["name"] == "exact"]
    return [setting["recall"]["mean"] for setting in settings if setting["recall"]["mean"] is not None]


def verdict(body: Mapping[str, Any]) -> dict[str, str]:
    """What the report says first, in one sentence: `level` is wrong, poor, unsure or good, and `text`."""
    failed: dict[str, list[str]] = {about: [] for about in ("results", "recall", "timing")}
    for each in body["checks"]:
        if not each["ok"]:
            failed[each["about"]].append(each["detail"])
    planned = body["runs"][0]
    speed = f"{planned['queries_per_s']['median']:,.0f} queries/s"
    if failed["results"]:
        return {"level": "wrong", "text": f"Do not trust these results: {'; '.join(failed['results'])}."}
    if failed["recall"]:
        text = f"Too few of the right items are found: {'; '.join(failed['recall'])}."
        return {"level": "poor", "text": text}
    right = f"Results are right: recall@{body['k']} {_share(planned['recall']['mean'])} at {speed}"
    if failed["timing"]:
        return {"level": "unsure", "text": f"{right}, but distrust the timings: {failed['timing'][0]}."}
    return {"level": "good", "text": f"{right}, measured on a quiet machine."}


def _true_scores(found: Measurements, tolerance: Mapping[str, np.ndarray]) -> float:
    """Share of the eligible results of the exact setting whose score is the true score of the item returned."""
    name, truth = list(found.truths.items())[-1]
    number = len(found.arms) - 1
    results = found.arms[number].found
    true_scores = _asked(found, truth, number)
    given = (results.rows.numpy() >= 0) & (true_scores > -np.inf)
    if not given.any():
        return 1.0
    allowed = tolerance[name][:, None]
    if name == ORIGINAL and found.model.manifest["embedding_dtype"] == "float16":
        lengths = np.linalg.norm(found.model.normalized(found.sample.vectors).numpy(), axis=1)
        allowed = allowed + HALF_ROUNDING * (lengths * truth.norms.max(1, initial=0))[:, None]
    with np.errstate(invalid="ignore"):
        right = np.abs(results.score_matrix.numpy() - true_scores) <= allowed
    return float(right[given].mean())


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4f}"


def command_line(model: str, queries: Sequence[str], output: str, config: BenchConfig) -> str:
    """The command that repeats a benchmark, options at their defaults left out."""
    words = ["stcli", "bench", model, *queries, "-o", output]
    default = asdict(BenchConfig())
    for name, value in asdict(config).items():
        if name == "overwrite" or value == default[name] or (not value and not default[name]):
            continue
        shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else f"{value}"
        words += ["--" + name.replace("_", "-"), shown]
    return shlex.join(words)


def recommend(
    runs: Sequence[Mapping[str, Any]], model: str, queries: Sequence[str], config: BenchConfig
) -> dict[str, Any]:
    """The fastest setting that reaches the target in every band, as a `retrieve` command; if none does, exact."""

    def reaches(run: Mapping[str, Any]) -> bool:
        return all(
            part["mean"] is None or part["mean"] >= config.target_recall for part in (run["recall"], *run["bands"])
        )

    good = [run for run in runs if reaches(run)]
    chosen = max(good, key=lambda run: run["queries_per_s"]["median"]) if good else runs[-1]
    words = ["stcli", "retrieve", model, *queries, "-o", "results", "--k", str(config.k)]
    words += ["--id-column", config.id_column, "--embedding-column", config.embedding_column]
    words += ["--filter-column", config.filter_column] if config.filter_column else []
    words += {
        "planned": ["--target-recall", f"{config.target_recall:g}"],
        "probes": ["--probes", str(chosen["probes"])],
        "exact": ["--exact"],
    }[chosen["kind"]]
    return {"setting": chosen["name"], "reaches_target": bool(good), "command": shlex.join(words)}


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
        "latency_ms": {f"{name} of batches of {batch['batch_size']}": value for name, value in batch["ms"].items()},
        "memory_bytes": report["memory_bytes"],
        "fingerprint": report["fingerprint"],
        "timings_s": report["timings_s"],
        "verdict": report["verdict"]["text"],
        "warnings": failed,
        "outputs": {"report": str(path), "page": str(path / "report.html")},
    }


def headline_latency(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The line of the latency table for the batch size asked for, or for the largest up to 256."""
    asked = report["options"]["batch_size"]
    sizes = [line for line in report["latency"] if line["batch_size"] <= (asked or 256)]
    return sizes[-1] if sizes else report["latency"][0]
