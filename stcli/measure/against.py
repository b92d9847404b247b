"""`bench --against`: other ways to search the same items with the same filters, in one process and in turns with ours.

Everybody searches the packed embeddings, on the same number of threads, and is judged by one truth. Each contender
climbs its settings from fast to slow until it reaches the highest recall asked for in every band; then all settings of
all contenders are timed in turns, those that decide a comparison several times, the others once. A setting that is slow
runs on fewer queries, the first of the sample, in a batch as large as a few seconds allow.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stcli.config import BenchConfig, Progress
from stcli.filters.exact import Truth, exact_search
from stcli.filters.tree import Node
from stcli.measure import matched
from stcli.measure.clock import forget_plans
from stcli.measure.machine import LoadWatch
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
from stcli.measure.sample import Sample
from stcli.model.planner import Calibration, SearchOptions
from stcli.model.retriever import Retriever
from stcli.ops import native
from stcli.peers.bitmaps import holds
from stcli.peers.families import members, missing, versions
from stcli.peers.protocol import Items, Peer, Queries

OURS = "stcli"
PILOT, GROWTH = 32, 4
"""Queries of the first trial of a setting, and how many times as many the next takes.

A batch that shares its work among its queries (Faiss Flat: 83 queries/s on 319, over 500 on 2,000) shows its speed only
on a large one, so the batch grows until it fills the time.
"""

RUN_SECONDS, LONG_SECONDS = 3.0, 8.0
"""A setting runs on so many of the first queries as take about so long; longer while a larger batch is faster."""

CHEAPER = 0.9
"""Share of the time of a query below which a larger batch counts as cheaper."""

LEAST_SECONDS = 0.3
"""A timed run is repeated until it has taken so long: the clocks of a busy machine tell little of less."""

LEAST_QUERIES = 100

FILTERED, UNFILTERED = "with filters", "without filters"


@dataclass
class Trial:
    """One setting of one contender.

    Attributes:
        contender, name: who, and which setting.
        search: rows int64 [B, k] of queries.
        step: it and its neighbours differ in one number only, so that a value may be read between them.
        count: queries it runs on.
        each: seconds a query took in the warm-up.
        rows: of the warm-up.
        quality: of these.
        seconds, other_cores: of each timed run.
    """

    contender: str
    name: str
    search: Callable[[Queries], np.ndarray]
    step: bool
    count: int = 0
    each: float = 0.0
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    quality: Quality | None = None
    seconds: list[float] = field(default_factory=list)
    other_cores: list[float] = field(default_factory=list)


@dataclass
class Against:
    """One comparison.

    Attributes:
        model: the opened artifact.
        sample: the queries.
        config: options.
        k: results a query.
        batch_size: queries of one call.
        base: search options of every setting of ours.
        calibrate: gives the calibration for a target recall, with the filters of the queries or without.
        progress: see `stcli.config.Progress`.
    """

    model: Retriever
    sample: Sample
    config: BenchConfig
    k: int
    batch_size: int
    base: SearchOptions
    calibrate: Callable[[float, bool], Calibration | None]
    progress: Progress

    def run(self, truth: Truth | None) -> dict[str, Any]:
        """Compare, with filters if there are any, and without; `truth` is that of the sample over the packed ones."""
        threads = native.num_threads()
        left_out = [{"name": name, "reason": reason} for name in self.config.against if (reason := missing(name))]
        named = {entry["name"] for entry in left_out}
        self.items = Items.of(self.model, threads, self.config.seed)
        peers: list[Peer] = []
        told = []
        for family in (name for name in self.config.against if name not in named):
            for peer in members(family):
                self.progress("build", len(peers), len(peers) + 1, peer.name)
                start = time.perf_counter()
                peer.build(self.items)
                seconds = time.perf_counter() - start
                peers.append(peer)
                told.append(
                    {"name": peer.name, "how": peer.how, "build_s": seconds, "index_bytes": int(peer.index_bytes)}
                )
        workloads = []
        if any(item is not None for item in self.sample.filters):
            workloads.append(self._workload(FILTERED, self.sample.filters, peers, left_out, truth))
            truth = None
        none: list[str | Node | None] = [None] * len(self.sample.filters)
        workloads.append(self._workload(UNFILTERED, none, peers, left_out, truth))
        return {
            "versions": versions(family for family in self.config.against if family not in named),
            "threads": threads,
            "targets": list(self._targets),
            "batch_size": self.batch_size,
            "run_seconds": RUN_SECONDS,
            "long_seconds": LONG_SECONDS,
            "peers": told,
            "left_out": left_out,
            "workloads": workloads,
        }

    @property
    def _targets(self) -> tuple[float, ...]:
        return tuple(sorted(self.config.compare_at)) or (self.config.target_recall,)

    def _workload(
        self,
        name: str,
        filters: Sequence[str | Node | None],
        peers: Sequence[Peer],
        left_out: list[dict[str, str]],
        truth: Truth | None,
    ) -> dict[str, Any]:
        queries = Queries.of(self.model, self.sample.vectors, filters)
        self.items.bitmaps.prepare(queries.trees)
        if truth is None:
            truth = exact_search(self.model.only, self.sample.vectors.to(self.model.device), filters, self.k)
        judged = Judge(self, queries, truth)
        trials: list[Trial] = []
        for contender, ladder in self._contenders(queries, peers, name, left_out):
            for setting, search in ladder:
                trial = Trial(contender, setting, search, contender != OURS or setting.endswith(" probes"))
                self._warm_up(trial, queries)
                trial.quality = judged.quality(trial.rows)
                trials.append(trial)
                self.progress(f"try {name}", len(trials), len(trials) + 1, "settings")
                if contender != OURS and judged.least(trial.quality) >= max(self._targets):
                    break
        self._time(trials, queries, judged, name)
        return self._tell(name, trials, queries, judged)

    def _contenders(
        self, queries: Queries, peers: Sequence[Peer], workload: str, left_out: list[dict[str, str]]
    ) -> Iterator[tuple[str, Iterator[tuple[str, Callable[[Queries], np.ndarray]]]]]:
        yield OURS, self._ours(queries.filtered)
        for peer in peers:
            reason = peer.refuses(queries)
            if reason is not None:
                left_out.append({"name": peer.name, "reason": f"{workload}: {reason}"})
                continue
            yield peer.name, self._theirs(peer, queries.filtered)

    def _theirs(self, peer: Peer, filtered: bool) -> Iterator[tuple[str, Callable[[Queries], np.ndarray]]]:
        for setting, parameter in peer.parameters(filtered, self.k):
            yield setting, functools.partial(_search, peer, self.k, parameter)

    def _ours(self, filtered: bool) -> Iterator[tuple[str, Callable[[Queries], np.ndarray]]]:
        """Fixed numbers of clusters, what `retrieve` plans for each target, and the exact search."""

        def using(options: SearchOptions) -> Callable[[Queries], np.ndarray]:
            def search(queries: Queries) -> np.ndarray:
                forget_plans(self.model)
                results = self.model.search(queries.raw, queries.source(self.model), options)
                results.flat_ids()
                return results.rows.numpy()

            return search

        clusters = self.model.num_clusters
        least = max(clusters // 256, 2 * self.k * clusters // self.model.num_items, 1)
        for shift in range(clusters.bit_length()):
            if least <= 1 << shift < clusters:
                yield f"{1 << shift} probes", using(replace(self.base, probes=1 << shift))
        for target in self._targets:
            calibration = self.calibrate(target, filtered)
            if calibration is not None:
                yield f"planned for {target:g}", using(replace(self.base, calibration=calibration))
        yield "exact", using(replace(self.base, exact=True))

    def _warm_up(self, trial: Trial, queries: Queries) -> None:
        """Let the number of queries grow until they fill the time, and longer while that makes each cheaper."""
        least, wanted = min(LEAST_QUERIES, len(queries)), min(PILOT, len(queries))
        before = math.inf
        while wanted > trial.count and (wanted >= 2 * trial.count or trial.count < least or wanted == len(queries)):
            trial.count = wanted
            start = time.perf_counter()
            trial.rows = self._run(trial, queries)
            trial.each = (time.perf_counter() - start) / trial.count
            seconds = LONG_SECONDS if trial.each < CHEAPER * before else RUN_SECONDS
            before = trial.each
            wanted = min(max(int(seconds / trial.each), least), GROWTH * trial.count, len(queries))

    def _run(self, trial: Trial, queries: Queries) -> np.ndarray:
        step = self.batch_size
        parts = [
            trial.search(queries.take(slice(start, min(start + step, trial.count))))
            for start in range(0, trial.count, step)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _time(self, trials: Sequence[Trial], queries: Queries, judged: Judge, name: str) -> None:
        """Time every trial once, and the decisive ones `repeat` times, in turns."""
        decisive = self._decisive(trials, judged, queries.filtered)
        for turn in range(self.config.repeat):
            taking_part = [trial for trial in trials if turn == 0 or id(trial) in decisive]
            for number in range(len(taking_part)):
                trial = taking_part[(number + turn) % len(taking_part)]
                with LoadWatch() as load:
                    trial.seconds.append(self._seconds(trial, queries))
                trial.other_cores.append(load.other_cores)
                self.progress(f"time {name}, turn {turn + 1}", number + 1, len(taking_part), "settings")

    def _decisive(self, trials: Sequence[Trial], judged: Judge, filtered: bool) -> set[int]:
        """Identities of the trials that may be the fastest of their contender at a target, or stand beside it."""
        found = set()
        for contender in dict.fromkeys(trial.contender for trial in trials):
            own = [trial for trial in trials if trial.contender == contender]
            for reached in (judged.mean, judged.least) if filtered else (judged.mean,):
                points = [(reached(trial.quality), 1 / trial.each, trial.step) for trial in own if trial.quality]
                for target in (*self._targets, matched.EXACT):
                    found |= {id(own[number]) for number in matched.decisive(points, target)}
        return found

    def _seconds(self, trial: Trial, queries: Queries) -> float:
        """Seconds of one run, the mean of as many as take LEAST_SECONDS."""
        start, runs = time.perf_counter(), 0
        while not runs or time.perf_counter() - start < LEAST_SECONDS:
            self._run(trial, queries)
            runs += 1
        return (time.perf_counter() - start) / runs

    def _tell(self, name: str, trials: Sequence[Trial], queries: Queries, judged: Judge) -> dict[str, Any]:
        contenders: dict[str, list[dict[str, Any]]] = {}
        for trial in trials:
            assert trial.quality is not None
            contenders.setdefault(trial.contender, []).append(
                {
                    "name": trial.name,
                    "step": trial.step,
                    "queries": trial.count,
                    "recall": mean_recall(trial.quality.recall),
                    "bands": recall_by_band(trial.quality.recall, judged.bands[: trial.count]),
                    "queries_per_s": spread([trial.count / seconds for seconds in trial.seconds]),
                    "ineligible": int(trial.quality.ineligible.sum()),
                    "incomplete": int(trial.quality.incomplete.sum()),
                    "other_cores": number_or_none(float(np.mean(trial.other_cores))),
                }
            )
        listed: list[dict[str, Any]] = [
            {"name": contender, "settings": settings} for contender, settings in contenders.items()
        ]
        every = [setting for entry in listed for setting in entry["settings"]]
        points = [(setting["recall"]["mean"] or 0.0, setting["queries_per_s"]["median"]) for setting in every]
        for setting, best in zip(every, frontier(points), strict=True):
            setting["frontier"] = best
        criteria = [matched.MEAN, *([matched.EVERY_BAND] if queries.filtered else [])]
        return {
            "name": name,
            "queries": len(queries),
            "contenders": listed,
            "matched": matched.match(listed, self._targets, criteria),
        }


def _search(peer: Peer, k: int, parameter: Any, queries: Queries) -> np.ndarray:
    return peer.search(queries, k, parameter)


class Judge:
    """Judges rows by the truth of one workload."""

    def __init__(self, run: Against, queries: Queries, truth: Truth) -> None:
        self._items, self._queries, self._truth = run.items, queries, truth
        self._tolerance = tie_tolerance(truth, queries.vectors)
        filtered = np.array([tree is not None for tree in queries.trees], bool)
        self.bands = band_numbers(truth.eligible, filtered, run.model.num_items)

    def quality(self, rows: np.ndarray) -> Quality:
        """Of the first queries, as many as there are rows."""
        count = len(rows)
        names = ("rows", "scores", "norms", "eligible", "asked")
        truth = Truth(*(getattr(self._truth, name)[:count] for name in names))
        return judge(rows, self._scores(rows), truth, self._tolerance[:count])

    def mean(self, quality: Quality) -> float:
        """Mean recall."""
        return mean_recall(quality.recall)["mean"] or 0.0

    def least(self, quality: Quality) -> float:
        """The lowest mean recall of all bands."""
        bands = recall_by_band(quality.recall, self.bands[: len(quality.recall)])
        return min((band["mean"] for band in bands if band["queries"]), default=1.0)

    def _scores(self, rows: np.ndarray) -> np.ndarray:
        """True scores float64 [B, k]; -inf in empty slots and where the item is not eligible.

        Most results stand in the truth, which has their scores; only the others are computed.
        """
        true = self._truth.rows[: len(rows)]
        order = np.argsort(true, axis=1)
        scores = np.full(rows.shape, -np.inf)
        for query, (line, places) in enumerate(zip(rows, order, strict=True)):
            place = places[np.searchsorted(true[query], line, sorter=places).clip(max=len(places) - 1)]
            known = true[query, place] == line
            scores[query, known] = self._truth.scores[query, place[known]]
            self._score_others(query, line, ~known & (line >= 0), scores[query])
        scores[rows < 0] = -np.inf
        return scores

    def _score_others(self, query: int, line: np.ndarray, unknown: np.ndarray, scores: np.ndarray) -> None:
        tree = self._queries.trees[query]
        if tree is not None and unknown.any():
            unknown = unknown & holds(self._items.bitmaps.of(tree), np.maximum(line, 0))
        vectors = self._items.vectors[line[unknown]].astype(np.float64)
        scores[unknown] = vectors @ self._queries.vectors[query].astype(np.float64)
