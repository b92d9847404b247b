"""Commands that a report gives its reader: the one that repeats it, and the one to use."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from stcli.config import BenchConfig


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
