"""Commands that a report gives its reader: the one that repeats it, and the one to use."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stcli.config import BenchConfig
from stcli.measure.verdict import reaches, short_bands


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
    """The fastest setting that reaches the target in every band, as a `retrieve` command; if none does, exact.

    The planned setting is judged as the verdict judges it: its calibration has promised each band the target, so noise
    may leave one a little short. Numbers of probes were chosen by nothing; of many, one may reach it by luck, so the
    mean of each band must.
    """
    target = config.target_recall
    good = [run for run in runs if reaches(run, target) and (run["kind"] == "planned" or not short_bands(run, target))]
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
