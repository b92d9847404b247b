"""One setting of one contender: on how many queries it runs, and how long that takes.

A setting first runs on a few queries, then on a pilot that gives its recall, with at least as many at once as its kind
needs to show its speed. If the recall is near what is compared it runs on as many as fill some seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stcli.measure.machine import LoadWatch
from stcli.measure.metrics import Quality
from stcli.peers.protocol import Queries

FEW, PILOT = 32, 256
"""Queries that wake a setting up, and those that tell its recall to 0.01 or 0.02."""

LEAST_QUERIES = 100
"""Fewer are never timed, however slow."""

RUN_SECONDS = 3.0
"""A first run takes as many queries as take about so long."""

TIMED_QUERIES, LONG_SECONDS = 2048, 10.0
"""A setting that decides a comparison is timed on so many queries, or on as many as take about so long."""

LEAST_SECONDS = 0.3
"""A timed run is repeated until it has taken so long: the clocks of a busy machine tell little of less."""


@dataclass
class Trial:
    """One setting of one contender.

    Attributes:
        contender, name: who, and which setting.
        family: contenders of one library.
        search: rows int64 [B, k] of queries.
        step: it and its neighbours differ in one number only, so that a value may be read between them.
        at_once: queries of a batch that shows its speed, see `Peer.at_once`.
        rows: of the first queries, as many as it was last run on.
        quality: of these rows.
        seconds, other_cores: of each timed run.
    """

    contender: str
    name: str
    family: str
    search: Callable[[Queries], np.ndarray]
    step: bool
    at_once: int
    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    quality: Quality | None = None
    seconds: list[float] = field(default_factory=list)
    other_cores: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Queries it ran on."""
        return len(self.rows)

    @property
    def each(self) -> float:
        """Seconds that a query took in the fastest run."""
        return min(self.seconds) / self.count

    @property
    def judged(self) -> Quality:
        """The quality."""
        assert self.quality is not None
        return self.quality

    def affordable(self, seconds: float) -> int:
        """Queries that take about so long."""
        return int(seconds / self.each)

    def first_run(
        self,
        queries: Queries,
        batch_size: int,
        quality: Callable[[np.ndarray], Quality],
        near: Callable[[Quality], bool],
    ) -> None:
        """Run on few queries, then on a pilot, then on as many as fill the time, if that is of use.

        Args:
            queries: all there are.
            batch_size: of one call, at most.
            quality: judges rows of the first queries.
            near: says whether a recall is worth more queries than the pilot, which is a whole batch of those that show
                their speed only there.
        """
        total = len(queries)
        self.time(queries, min(FEW, total), batch_size)
        pilot = max(min(PILOT, self.affordable(RUN_SECONDS)), LEAST_QUERIES, self.at_once)
        self.restart(queries, min(pilot, total), batch_size)
        self.quality = quality(self.rows)
        wanted = min(self.affordable(RUN_SECONDS), total)
        if wanted > self.count and near(self.quality):
            self.restart(queries, wanted, batch_size)
            self.quality = quality(self.rows)

    def restart(self, queries: Queries, count: int, batch_size: int) -> None:
        """Time it on so many queries; what was timed on others is forgotten."""
        self.seconds, self.other_cores = [], []
        self.time(queries, count, batch_size)

    def time(self, queries: Queries, count: int, batch_size: int) -> None:
        """Time it on the first `count` queries: the mean of as many runs as take LEAST_SECONDS."""
        with LoadWatch() as load:
            start, runs = time.perf_counter(), 0
            while not runs or time.perf_counter() - start < LEAST_SECONDS:
                parts = [
                    self.search(queries.take(slice(first, min(first + batch_size, count))))
                    for first in range(0, count, batch_size)
                ]
                runs += 1
            self.seconds.append((time.perf_counter() - start) / runs)
        self.other_cores.append(load.other_cores)
        self.rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
