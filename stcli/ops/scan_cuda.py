"""The CUDA form of both searches and of `choose_probes`: rounds of scoring and selecting, without a host in between.

A round scores some tiles (queries times rows). A query collects the keys above its threshold in a buffer of `capacity`
places; then its best k0 move to the front and the k0-th becomes the threshold of the next round. Rounds grow, so that
10 M rows take about ten. The rows of the first rounds are spread over the whole index, or are those of the nearest
clusters: a good threshold leaves little to collect later.

A query that collects more than its buffer holds is scored again in the same round, with the k0-th of what it did
collect as threshold. One that still does not fit after `REDOS` of these, which takes rows in an unlucky order, is
answered by the torch form at the end. Results depend on neither the order of appends nor any of these sizes.

Scratch: 8 * capacity bytes a query, 64 bytes a tile, and 8 bytes a (query, probe) pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from stcli.ops import cuda
from stcli.ops.keys import EMPTY_KEY
from stcli.ops.rounds import Fit, Work
from stcli.ops.scan import Scan
from stcli.types import Candidates, Lines, Quantized

MOST_CANDIDATES = 16_384
"""The final sort of a query's keys takes place in shared memory."""

MOST_KEY = 2**63 - 1
"""As threshold: this query is done."""

THREADS = 256
"""Of a block, in every kernel of the search."""

_ROOM = 16_384
"""Places of a query's buffer beside its k0 best."""

REDOS = 2
"""More attempts of a round for queries that collected too much."""


def run_cuda(
    scan: Scan,
    rounds: Iterable[list[Work]],
    capacity: int,
    torch_form: Callable[[Scan, torch.Tensor], Candidates],
) -> Candidates:
    """Run the rounds of a search.

    Args:
        scan: checked, contiguous.
        rounds: the work of each; no (query, row) pair comes twice.
        capacity: places of a query's buffer.
        torch_form: called with the search of the queries that did not fit, and their numbers int64 [b].
    """
    if scan.excluded is not None:
        scan = replace(scan, excluded=sorted_lines(scan.excluded))
    state = _State.of(scan, capacity)
    for round_ in rounds:
        state.round(scan, round_)
    found = state.sorted(scan.k0)
    if capacity >= len(scan.index.scales):  # there was room for all
        return found
    lost = state.lost.nonzero()[:, 0]  # the only place where the host waits
    if len(lost):
        again = torch_form(_part(scan, lost), lost)
        found.rows[lost], found.scores[lost] = again.rows, again.scores
    return found


def capacity_for(num_rows: int, k0: int) -> int:
    """Places of a query's buffer: for all rows, or for its k0 best and those that a round adds."""
    return max(min(num_rows, k0 + max(_ROOM, 3 * k0)), k0)


def growth_for(k0: int, capacity: int) -> int:
    """How many times as many rows as all before a round may look at: it adds some k0 times this many keys."""
    return max((capacity - k0) // (4 * k0), 1)


def sorted_lines(lines: Lines) -> Lines:
    """The same lines, each ascending, as a kernel searches them; they are equal or do not overlap."""
    marks = torch.zeros(len(lines.values) + 1, dtype=torch.int64, device=lines.values.device)
    for bounds in (lines.begins, lines.ends):
        marks.index_fill_(0, bounds, 1)
    keys = (marks.cumsum(0)[:-1] << 32) | (lines.values & 0xFFFFFFFF)  # a number that is no row stays none
    return replace(lines, values=keys.sort().values & 0xFFFFFFFF)


def fit(scan: Scan) -> Fit:
    """Which score kernels can run for the rows of a search."""
    return Fit(scan.index.codes.shape[1], cuda.most_shared_bytes(scan.queries.codes.device))


@dataclass(frozen=True)
class _State:
    keys: torch.Tensor
    counts: torch.Tensor
    kept: torch.Tensor
    thresholds: torch.Tensor
    redo: torch.Tensor
    lost: torch.Tensor

    @classmethod
    def of(cls, scan: Scan, capacity: int) -> _State:
        device, num_queries = scan.queries.codes.device, len(scan.queries.scales)

        def numbers(value: int) -> torch.Tensor:
            return torch.full((num_queries,), value, dtype=torch.int64, device=device)

        keys = torch.empty(num_queries, capacity, dtype=torch.int64, device=device)
        lost = torch.zeros(num_queries, dtype=torch.bool, device=device)
        return cls(keys, numbers(0), numbers(0), numbers(EMPTY_KEY), numbers(MOST_KEY), lost)

    def round(self, scan: Scan, works: list[Work]) -> None:
        """Score the tiles and select; again for the queries that collected too much."""
        thresholds = self.thresholds
        for _ in range(1 + REDOS):
            for work in works:
                self._score(scan, work, thresholds)
            self._select(scan.k0)
            thresholds = self.redo
        self.lost.logical_or_(self.redo != MOST_KEY)

    def _score(self, scan: Scan, work: Work, thresholds: torch.Tensor) -> None:
        queries, index = scan.queries, scan.index
        norms, errors = scan.bounds if scan.bounds is not None else (None, None)
        bounded = scan.bounds is not None
        words = scan.words if scan.words is not None and scan.words.numel() else None
        excluded = scan.excluded if scan.excluded is not None and len(scan.excluded.values) else None
        cuda.launch(
            work.form.source,
            work.form.kernel_for(bounded),
            len(work.tiles),
            THREADS,
            queries.codes,
            queries.scales,
            norms,
            errors,
            index.codes,
            index.scales,
            index.errors if bounded else None,
            index.norms if bounded else None,
            index.codes.shape[1],
            words,
            0 if words is None else words.shape[1],
            None if words is None else scan.filter_of_query,
            None if work.span_lines is None or scan.spans is None else scan.spans.words,
            work.span_lines,
            None if excluded is None else excluded.values,
            None if excluded is None else excluded.begins,
            None if excluded is None else excluded.ends,
            work.queries,
            work.tiles,
            thresholds,
            self.counts,
            self.keys,
            self.keys.shape[1],
            shared_bytes=work.form.shared_bytes(index.codes.shape[1]),
        )

    def _select(self, k0: int) -> None:
        cuda.launch(
            "select_keys.cu",
            "select_keys",
            len(self.keys),
            THREADS,
            self.keys,
            self.counts,
            self.kept,
            self.keys.shape[1],
            k0,
            self.thresholds,
            self.redo,
            shared_bytes=2 * k0,
        )

    def sorted(self, k0: int) -> Candidates:
        """The best k0 of each query in order."""
        places = 1 << (k0 - 1).bit_length()
        rows = torch.empty(len(self.keys), k0, dtype=torch.int64, device=self.keys.device)
        scores = torch.empty(len(self.keys), k0, dtype=torch.float32, device=self.keys.device)
        cuda.launch(
            "select_keys.cu",
            "sort_keys",
            len(self.keys),
            min(max(places // 2, 32), 1024),
            self.keys,
            self.counts,
            self.keys.shape[1],
            k0,
            rows,
            scores,
            shared_bytes=8 * places,
        )
        return Candidates(rows, scores)


def _part(scan: Scan, queries: torch.Tensor) -> Scan:
    """The same search for some of its queries."""
    return replace(
        scan,
        queries=Quantized(scan.queries.codes[queries], scan.queries.scales[queries]),
        filter_of_query=scan.filter_of_query[queries] if len(scan.filter_of_query) else scan.filter_of_query,
        excluded=None if scan.excluded is None else scan.excluded.take(queries),
        bounds=None if scan.bounds is None else (scan.bounds[0][queries], scan.bounds[1][queries]),
        floors=None if scan.floors is None else scan.floors[queries],
        spans=None if scan.spans is None else replace(scan.spans, starts=scan.spans.starts[queries]),
    )
