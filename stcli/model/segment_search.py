"""The search of one segment, for a tile of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from stcli.model.admitted import Admitted, count_lines
from stcli.model.segment import Segment
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_rows import search_rows
from stcli.types import Candidates, Lines, Quantized, moved


class SegmentSearch:
    """One segment with what a tile of queries may get of it.

    Args:
        segment: the rows.
        admitted: what the filters admit of them.
        excluded: rows of all segments that each query must not get, or None.
        verify: check candidates by their exact terms.
        backend: see `ops/dispatch.py`.
    """

    def __init__(
        self,
        segment: Segment,
        admitted: Admitted,
        excluded: Lines | None,
        verify: bool,
        backend: str,
    ) -> None:
        self.segment, self.admitted, self.backend = segment, admitted, backend
        self.index = segment.index
        self.counts: torch.Tensor  # rows that each query may get, int64 [B] on the host, or estimates
        self.counted: torch.Tensor  # of the queries of the last search of all rows, int64 [b] on the device
        self._excluded = None if excluded is None else excluded.to(segment.device)
        if self._excluded is not None and segment.base:  # others are no row of it
            self._excluded = replace(self._excluded, values=self._excluded.values - segment.base)
        self.unverified, program = admitted.filters.filter_of_query, admitted.filters.program
        if program is not None:
            exact = program.exact[self.unverified.clamp(min=0)]
            self.unverified = torch.where(exact | (not verify), -1, self.unverified)
        self.exact = not bool((self.unverified >= 0).any())

    def search_rows(
        self,
        queries: Quantized,
        which: torch.Tensor,
        k0: int,
        bounds: tuple[torch.Tensor, torch.Tensor] | None,
        floors: torch.Tensor | None,
        unsure: list[torch.Tensor] | None,
    ) -> Candidates:
        """The best k0 of all admitted rows for some of the queries; see `ops/search_rows.py`."""
        queries, bounds, floors = moved((queries, bounds, floors), self.segment.device)
        words, lines = self.admitted.whole(which)
        if self.admitted.held:
            self.counted = moved(self.counts[which], self.segment.device)
        else:
            self.counted = count_lines(words, lines, self.segment.num_rows)
        return search_rows(
            queries, self.index, words, lines, k0=k0, excluded=self.barred(which), bounds=bounds, floors=floors,
            backend=self.backend, unsure=unsure,
        )  # fmt: skip

    def search_clusters(
        self,
        queries: Quantized,
        which: torch.Tensor,
        probes: torch.Tensor,
        k0: int,
        spans: bool,
        unsure: list[torch.Tensor] | None,
    ) -> Candidates:
        """The best k0 of the admitted rows in clusters, for some of the queries; see `ops/search_clusters.py`.

        `spans`: their filters are evaluated on these clusters alone, unless they have been on all rows.
        """
        queries, probes = moved((queries, probes), self.segment.device)
        words, lines, spanned = self.admitted.probed(which, probes, spans)
        return search_clusters(
            queries, self.index, probes, words, lines, k0=k0, spans=spanned, excluded=self.barred(which),
            backend=self.backend, unsure=unsure,
        )  # fmt: skip

    def barred(self, which: torch.Tensor) -> Lines | None:
        """The rows that some queries must not get."""
        return None if self._excluded is None else self._excluded.take(moved(which, self.segment.device))


def at_once(search: Callable[[SegmentSearch], Candidates], runs: Sequence[SegmentSearch]) -> list[Candidates]:
    """One search of every segment; on several devices a thread for each segment, as a search waits for its device."""
    if len({run.segment.device for run in runs}) == 1:
        return [search(run) for run in runs]
    with ThreadPoolExecutor(len(runs)) as pool:
        return list(pool.map(search, runs))
