"""`bench --against`: other ways to search the same items with the same filters, in one process and in turns with ours.

Everybody searches the packed embeddings, on the same number of threads, and is judged by one truth. Each contender
climbs its settings from fast to slow until it reaches the highest recall asked for in every band, each setting on as
many of the first queries as a few seconds allow (`stcli.measure.trials`). The settings that decide, those that may be
the fastest of ours or of a library at a recall, are then timed in turns, several times, on more queries; the others
keep what was timed while climbing. How many queries and runs a figure comes from stands beside it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stcli.config import BenchConfig, Progress
from stcli.events import Stages
from stcli.filters.exact import Truth, exact_search
from stcli.filters.tree import Node
from stcli.measure import matched
from stcli.measure.clock import forget_plans
from stcli.measure.judge import Judge
from stcli.measure.measurements import Arm
from stcli.measure.metrics import frontier, mean_recall, number_or_none, recall_by_band, spread
from stcli.measure.sample import Sample
from stcli.measure.trials import LONG_SECONDS, RUN_SECONDS, TIMED_QUERIES, Trial
from stcli.model.planner import Calibration, SearchOptions
from stcli.model.retriever import Retriever
from stcli.ops import native
from stcli.peers.families import members, missing, versions
from stcli.peers.protocol import WHOLE_BATCH, Items, Peer, Queries

OURS = "stcli"

FAR = 0.1
"""A mean recall so far below the lowest compared is left with what the pilot told."""

FILTERED, UNFILTERED = "with filters", "without filters"


@dataclass
class Against:
    """One comparison.

    Attributes:
        model: the opened artifact.
        sample: the queries.
        config: options.
        k: results a query.
        batch_size: queries of one call, at most.
        arms: our own settings, searched and timed on the sample.
        calibrate: gives the calibration for a target recall, with the filters of the queries or without.
        progress: see `stcli.config.Progress`.
    """

    model: Retriever
    sample: Sample
    config: BenchConfig
    k: int
    batch_size: int
    arms: Sequence[Arm]
    calibrate: Callable[[float, bool], Calibration | None]
    progress: Progress

    def run(self, truth: Truth) -> dict[str, Any]:
        """Compare, with filters if there are any, and without; `truth` is that of the sample over the packed ones."""
        threads = native.num_threads()
        self.left_out = [{"name": name, "reason": reason} for name in self.config.against if (reason := missing(name))]
        named = {entry["name"] for entry in self.left_out}
        families = [name for name in self.config.against if name not in named]
        self.stages = Stages()
        with self.stages("build"):
            self.items = Items.of(self.model, threads, self.config.seed)
            built = self._build(families)
        filtered = any(item is not None for item in self.sample.filters)
        workloads = [self._workload(FILTERED if filtered else UNFILTERED, self.sample.filters, truth, True)]
        if filtered:
            none: list[str | Node | None] = [None] * len(self.sample.filters)
            with self.stages("truth"):
                free = exact_search(self.model.only, self.sample.vectors.to(self.model.device), none, self.k)
            workloads.append(self._workload(UNFILTERED, none, free, False))
        return {
            "versions": versions(families),
            "threads": threads,
            "targets": list(self._targets),
            "batch_size": self.batch_size,
            "run_seconds": RUN_SECONDS,
            "timed_queries": TIMED_QUERIES,
            "long_seconds": LONG_SECONDS,
            "peers": built,
            "left_out": self.left_out,
            "workloads": workloads,
            "timings_s": self.stages.rounded(),
        }

    def _build(self, families: Sequence[str]) -> list[dict[str, Any]]:
        """Build every peer; what the report tells of each."""
        self.peers: list[tuple[str, Peer]] = []
        told: list[dict[str, Any]] = []
        for family in families:
            for peer in members(family):
                self.progress("build", len(told), len(told) + 1, peer.name)
                start = time.perf_counter()
                peer.build(self.items)
                seconds = time.perf_counter() - start
                self.peers.append((family, peer))
                told.append(
                    {"name": peer.name, "how": peer.how, "build_s": seconds, "index_bytes": int(peer.index_bytes)}
                )
        return told

    @property
    def _targets(self) -> tuple[float, ...]:
        return tuple(sorted(self.config.compare_at)) or (self.config.target_recall,)

    def _workload(
        self, name: str, filters: Sequence[str | Node | None], truth: Truth, measured: bool
    ) -> dict[str, Any]:
        """Everybody on one list of filters; `measured`: our own settings have been, on these."""
        queries = Queries.of(self.model, self.sample.vectors, filters)
        with self.stages("try"):
            self.items.bitmaps.prepare(queries.trees)
            judged = Judge(self.items, queries, truth)
            trials = self._climb(name, queries, judged, measured)
        with self.stages("time"):
            self._time(trials, queries, judged, name)
        return self._tell(name, trials, queries, judged)

    def _climb(self, name: str, queries: Queries, judged: Judge, measured: bool) -> list[Trial]:
        """Try the settings of everybody, each contender's steps until one reaches the highest recall in every band."""
        near = min(self._targets) - FAR
        trials: list[Trial] = []
        for contender in (self._ours(queries.filtered, measured), *self._theirs(queries, name)):
            reached = False
            for trial in contender:
                if reached and trial.step:
                    continue
                if trial.count:
                    trial.quality = judged.quality(trial.rows)
                else:
                    trial.first_run(
                        queries, self.batch_size, judged.quality, lambda quality: judged.mean(quality) >= near
                    )
                reached |= trial.step and judged.least(trial.judged) >= max(self._targets)
                trials.append(trial)
                self.progress(f"try {name}", len(trials), len(trials) + 1, "settings")
        return trials

    def _theirs(self, queries: Queries, workload: str) -> Iterator[list[Trial]]:
        for family, peer in self.peers:
            reason = peer.refuses(queries)
            if reason is not None:
                self.left_out.append({"name": peer.name, "reason": f"{workload}: {reason}"})
                continue
            at_once = peer.at_once(queries.filtered)
            yield [
                Trial(peer.name, setting, family, functools.partial(_search, peer, self.k, parameter), True, at_once)
                for setting, parameter in peer.parameters(queries.filtered, self.k)
            ]

    def _ours(self, filtered: bool, measured: bool) -> Iterator[Trial]:
        """Fixed numbers of clusters, what `retrieve` plans for each target, and the exact search."""
        planned, *fixed = self.arms
        for arm in fixed:
            if arm.kind == "probes":
                yield self._own(arm.name, arm.options, arm if measured else None)
        for target in self._targets:
            name = f"planned for {target:g}"
            if measured and target == self.config.target_recall and planned.options.calibration is not None:
                yield self._own(name, planned.options, planned)
                continue
            calibration = self.calibrate(target, filtered)
            if calibration is not None:
                yield self._own(name, replace(fixed[-1].options, exact=False, calibration=calibration), None)
        yield self._own(fixed[-1].name, fixed[-1].options, fixed[-1] if measured else None)

    def _own(self, name: str, options: SearchOptions, arm: Arm | None) -> Trial:
        """One of our settings; with what was measured of it, if it was."""

        def search(queries: Queries) -> np.ndarray:
            forget_plans(self.model)
            results = self.model.search(queries.raw, queries.source(self.model), options)
            results.flat_ids()
            return results.rows.numpy()

        trial = Trial(OURS, name, OURS, search, options.probes is not None, WHOLE_BATCH)
        if arm is not None:
            trial.rows = arm.found.rows.numpy()
            trial.seconds, trial.other_cores = list(arm.seconds), list(arm.other_cores)
        return trial

    def _time(self, trials: Sequence[Trial], queries: Queries, judged: Judge, name: str) -> None:
        """Time the decisive trials `repeat` times, in turns; twice if that takes long."""
        decisive = self._decisive(trials, judged, queries.filtered)
        for turn in range(self.config.repeat):
            for number in range(len(decisive)):
                trial = decisive[(number + turn) % len(decisive)]
                if turn == 0:
                    enough = trial.count if trial.name == matched.EXACT_NAME else trial.affordable(LONG_SECONDS)
                    count = min(max(trial.count, min(enough, TIMED_QUERIES)), len(queries))
                    trial.restart(queries, count, self.batch_size)
                    trial.quality = judged.quality(trial.rows)
                elif turn == 1 or sum(trial.seconds) < 2 * LONG_SECONDS:
                    trial.time(queries, trial.count, self.batch_size)
                self.progress(f"time {name}, turn {turn + 1}", number + 1, len(decisive), "settings")

    def _decisive(self, trials: Sequence[Trial], judged: Judge, filtered: bool) -> list[Trial]:
        """The trials that may be the fastest of ours, or of a library, at a target."""
        found: set[int] = set()
        for family in dict.fromkeys(trial.family for trial in trials):
            own = [trial for trial in trials if trial.family == family]
            speeds = [1 / trial.each for trial in own]
            exact = [float(trial.name == matched.EXACT_NAME) for trial in own]
            found |= {id(own[number]) for number in matched.decisive(exact, speeds, 1.0)}
            for reached in (judged.mean, judged.least) if filtered else (judged.mean,):
                recalls = [reached(trial.judged) for trial in own]
                for target in self._targets:
                    found |= {id(own[number]) for number in matched.decisive(recalls, speeds, target)}
        return [trial for trial in trials if id(trial) in found]

    def _tell(self, name: str, trials: Sequence[Trial], queries: Queries, judged: Judge) -> dict[str, Any]:
        contenders: dict[str, list[dict[str, Any]]] = {}
        for trial in trials:
            quality = trial.judged
            contenders.setdefault(trial.contender, []).append(
                {
                    "name": trial.name,
                    "step": trial.step,
                    "queries": trial.count,
                    "recall": mean_recall(quality.recall),
                    "bands": recall_by_band(quality.recall, judged.bands[: trial.count]),
                    "queries_per_s": spread([trial.count / seconds for seconds in trial.seconds]),
                    "ineligible": int(quality.ineligible.sum()),
                    "incomplete": int(quality.incomplete.sum()),
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
