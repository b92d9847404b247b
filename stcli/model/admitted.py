"""What the filters of a tile of queries admit of one segment: words of all rows, or of the rows that are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stcli.filters.program import FilterBatch
from stcli.model.segment import RUN_WORDS, Segment
from stcli.ops.count_bits import count_bits
from stcli.types import Spans, moved

SAMPLE_RUNS = 256
"""Runs of 8 words from which the items that a filter admits are estimated."""

MARGIN = 2.0
"""Deviations of an estimate within which the number may lie: an estimate so near to a threshold is counted."""


@dataclass(frozen=True)
class Admitted:
    """What the filters of B queries admit of one segment.

    Attributes:
        segment: the rows.
        filters: planned, on the CPU, for verification.
        here: the same on the device of the segment.
        barrier: int64 [W] words of the only rows that any query may get, or None.
        most: distinct filters whose words are held at once.
        words: int64 [F, W] admitted rows of each line; None where nothing is filtered, or none have been made.
        line_of_query: int64 [B], line of `words`, or -1 for every row; None where none have been made.
    """

    segment: Segment
    filters: FilterBatch
    here: FilterBatch
    barrier: torch.Tensor | None
    most: int
    words: torch.Tensor | None = None
    line_of_query: torch.Tensor | None = None

    @classmethod
    def of(cls, segment: Segment, filters: FilterBatch, barrier: torch.Tensor | None, most: int) -> Admitted:
        """Nothing evaluated yet."""
        return cls(segment, filters, filters.to(segment.device), barrier, most)

    def everywhere(self) -> Admitted:
        """The same with the words of all filters; they are good until the segment is asked for others."""
        lines = self.here.filter_of_query
        if self.barrier is None and self.here.program is None:
            return replace(self, line_of_query=lines)
        words = self.segment.match(self.here, self.barrier, self.most)
        if self.barrier is None:
            return replace(self, words=words[:-1], line_of_query=lines)
        return replace(self, words=words, line_of_query=torch.where(lines >= 0, lines, len(words) - 1))

    @property
    def held(self) -> bool:
        """The words of all filters are there."""
        return self.line_of_query is not None

    def take(self, queries: torch.Tensor) -> Admitted:
        """Some of the queries, int64 [b], perhaps repeated."""
        there, here = queries.cpu(), moved(queries, self.segment.device)
        return replace(
            self,
            filters=replace(self.filters, filter_of_query=self.filters.filter_of_query[there], sent={}),
            here=replace(self.here, filter_of_query=self.here.filter_of_query[here]),
            line_of_query=None if self.line_of_query is None else self.line_of_query[here],
        )

    def whole(self, queries: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The words of all rows for some queries, and the line of each; made now unless they are held."""
        if self.line_of_query is not None:
            return self.words, self.line_of_query[moved(queries, self.segment.device)]
        filters = self.filters.only(self.filters.filter_of_query[queries.cpu()])
        made = replace(self, filters=filters, here=filters.to(self.segment.device)).everywhere()
        assert made.line_of_query is not None
        return made.words, made.line_of_query

    def probed(
        self, queries: torch.Tensor, probes: torch.Tensor, spans: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor, Spans | None]:
        """The words for some queries on the clusters that they probe.

        Args:
            queries: int64 [b].
            probes: int64 [b, P], on the device of the segment.
            spans: make those of the clusters and no others, unless all are held.

        Returns:
            As `search_clusters` takes them: whole words, the line of each query, and words of clusters.
        """
        if self.held or not spans:
            return *self.whole(queries), None
        filters = self.here.filter_of_query[moved(queries, probes.device)]
        # Queries without a filter see the barrier, all others are behind it already.
        whole = None if self.barrier is None else self.barrier[None]
        lines = torch.full_like(filters, -1) if whole is None else torch.where(filters < 0, 0, -1)
        if self.here.program is None:
            return whole, lines, None
        return whole, lines, self.segment.match_probed(self.here.program, filters, probes, self.barrier)

    def count(self, queries: torch.Tensor) -> torch.Tensor:
        """Rows that some queries may get; int64 [b] on the device of the segment."""
        parts = [count_lines(*self.whole(part), self.segment.num_rows) for part in queries.split(self.most)]
        return torch.cat(parts) if parts else queries.new_zeros(0)

    def counts(self) -> torch.Tensor:
        """Rows that each query may get; int64 [B] on the device of the segment."""
        return self.count(torch.arange(len(self.filters.filter_of_query)))


def count_lines(words: torch.Tensor | None, lines: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Rows on each line int64 [b] of words int64 [F, W], -1 for all of them; int64 [b]."""
    every = torch.full_like(lines, num_rows)
    return every if words is None else torch.where(lines >= 0, count_bits(words)[lines.clamp(min=0)], every)


def admitted_counts(admitted: Sequence[Admitted]) -> torch.Tensor:
    """Rows of all segments that each query may get; int64 [B] on the device of the first."""
    home = admitted[0].segment.device
    return torch.stack([part.counts().to(home) for part in admitted]).sum(0)


def estimate(admitted: Sequence[Admitted]) -> tuple[torch.Tensor, torch.Tensor]:
    """Estimate the rows that each query may get from a sample of words, the same whatever files the rows are in.

    Args:
        admitted: of the same queries, of segments that share their planner.

    Returns:
        Estimates, float64 [segments, B], and the deviation of their sum, float64 [B], on the device of the first.
    """
    home, filters = admitted[0].segment.device, admitted[0].filters.filter_of_query
    num_rows = sum(part.segment.num_rows for part in admitted)
    step = max(sum(part.segment.num_words for part in admitted) // (RUN_WORDS * SAMPLE_RUNS), 1)
    unfiltered = torch.tensor([_behind(part) for part in admitted], dtype=torch.float64, device=home)
    if admitted[0].here.program is None:
        return unfiltered[:, None].expand(-1, len(filters)), torch.zeros(len(filters), device=home).double()
    runs = [part.segment.match_sample(part.here, part.barrier, step, part.most).to(home) for part in admitted]
    every = torch.cat(runs, 1)
    count = max(every.shape[1], 1)
    scale = num_rows / (64 * RUN_WORDS * count)
    own = torch.stack([part.sum(1).double() * scale for part in runs])
    # Sums of whole numbers, which no order of adding changes. A word more than was seen may always have been missed.
    sums, squares = every.sum(1), (every * every).sum(1)
    deviation = ((squares - sums.double() ** 2 / count).clamp(min=0) + 64).sqrt() * scale
    lines = moved(filters, home)
    none = lines < 0
    return (
        torch.where(none, unfiltered[:, None], own[:, lines.clamp(min=0)]),
        deviation[lines.clamp(min=0)].masked_fill(none, 0),
    )


def _behind(part: Admitted) -> int:
    return part.segment.num_rows if part.barrier is None else int(count_bits(part.barrier[None]))
