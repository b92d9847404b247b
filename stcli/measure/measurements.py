"""What a benchmark measured, before it becomes a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stcli.config import BenchConfig
from stcli.filters.exact import Truth
from stcli.measure.sample import Sample
from stcli.model.planner import Calibration, SearchOptions
from stcli.model.results import Results
from stcli.model.retriever import Retriever

PACKED, ORIGINAL = "packed embeddings", "original embeddings"
"""What a truth was computed over."""

GIVEN = "given lists"
"""A ground truth that the user gave."""


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


def asked_of(found: Measurements, truth: Truth, number: int) -> np.ndarray:
    """True scores of the results of one arm, float64 [B, k]."""
    return truth.asked[:, number * found.k : (number + 1) * found.k]
