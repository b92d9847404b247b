"""The CUDA form of both searches and of `choose_probes`: rounds of scoring and selecting, without a host in between.

A round scores some tiles (queries times rows). A query collects the keys above its threshold in a buffer of `capacity`
places.

Samples of the rows come first, spread evenly over all of them or over those of the probed clusters, and then all
(`levels` in rounds.py). Of a sample only a threshold stays. It is a guess, so low that k0 rows are above it almost
surely. A query that is left with fewer is scored again with the threshold that the sample itself was collected with;
one that collects more than its buffer holds, with about the k0-th of what it did collect. What is there then is sorted,
or, where it is too much for that, selected first.

A query that still has too few or too many after `REDOS` of these is answered by the torch form at the end, unless the
caller sees to it: hardly ever one, but for rows that repeat themselves in step with the samples, or ascend where there
are none. Results depend on neither the order of appends nor any of these sizes.

Scratch: 8 * capacity bytes a query (132 KB for k0 = 132, 141 KB for 1,300, 300 KB for 13,000), 32 bytes a tile, and
up to 20 bytes a (query, probe) pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from stcli.ops import cuda
from stcli.ops.keys import EMPTY_KEY
from stcli.ops.probe_tiles import work_over_probes
from stcli.ops.rounds import (
    LISTED_SHARE,
    STEP,
    Fit,
    Work,
    levels,
    rank_in_sample,
)
from stcli.ops.row_tiles import RowTiles
from stcli.ops.scan import Scan
from stcli.types import Candidates, Lines, Quantized

MOST_CANDIDATES = 16_384
"""Of a query: what a selection keeps of so many is sorted in the shared memory of a block, see `sorts`."""

OWN_SHARED_BYTES = 2048
"""Of the kernels that sort, at most, beside what a launch asks for."""

MOST_THREADS = 2048
"""Of a multiprocessor; some have fewer, and more shared memory for each."""

SORTED_AT_ONCE = 6144
"""Keys above a threshold that are sorted without a selection before it, which would read them once more; at most."""

MOST_KEY = 2**63 - 1
"""As threshold: this query is done, or takes no part."""

THREADS = 256
"""Of a block, in every score kernel."""

_ROOM = 16_384
"""Places of a query's buffer beside its k0 best, at least."""

REDOS = 1
"""More attempts for queries that collected too much or too little; each has its launches, if there are any or not."""

TorchForm = Callable[[Scan, torch.Tensor], Candidates]
"""Called with the search of the queries that the rounds could not answer, and their numbers int64 [b]."""


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        works: what is scored; no (query, row) pair comes twice.
        again: the same, perhaps in larger tiles, for the few queries that are scored again; not of a sample.
        wanted: how many of its best keys a query keeps at least.
    """

    works: list[Work]
    again: list[Work]
    wanted: int


def search_all_rows(
    scan: Scan,
    torch_form: TorchForm,
    admitted: torch.Tensor | None = None,
    fits: Fit | None = None,
    unsure: list[torch.Tensor] | None = None,
) -> Candidates:
    """The best k0 of all rows.

    Args:
        scan: checked, contiguous.
        torch_form: see `TorchForm`.
        admitted: int64 [B], how many rows each query may see; None where it may see all of them.
        fits: which score kernels may run; None for those that the device can.
        unsure: takes bool [B], the queries that the rounds could not answer and the caller has to ask again; None to
            wait for the device here and let `torch_form` answer them.
    """
    num_queries, num_rows, device = len(scan.queries.scales), len(scan.index.scales), scan.queries.codes.device
    capacity = capacity_for(num_rows, scan.k0)
    listed, whole = None, None
    if admitted is not None:
        listed = admitted * LISTED_SHARE < num_rows
        whole = admitted <= capacity
    tiles = RowTiles.of(num_queries, num_rows, device, fits or fit(scan), listed)
    *samples, last = levels(num_rows, scan.k0, num_queries)
    rounds = [Round(tiles.work(level.row_step), [], level.wanted) for level in samples]
    rounds.append(Round(tiles.work(1), tiles.work(1, large_tiles=True), last.wanted))
    return _run(scan, rounds, capacity, torch_form, unsure, whole)


def search_probed_rows(
    scan: Scan, probes: torch.Tensor, torch_form: TorchForm, unsure: list[torch.Tensor] | None = None
) -> Candidates:
    """The best k0 rows of the probed clusters; arguments as of `search_all_rows`, and probes int64 [B, P]."""
    num_rows, offsets = len(scan.index.scales), scan.index.clusters.offsets
    starts = None if scan.spans is None else scan.spans.starts
    looked_at = -(-num_rows * probes.shape[1] // max(len(offsets) - 1, 1))  # by a query, on average
    looks = levels(min(looked_at, num_rows), scan.k0, len(probes))
    works = work_over_probes(probes, offsets, [look.row_step for look in looks], fit(scan), starts)
    rounds = [Round(work, work, look.wanted) for work, look in zip(works, looks, strict=True)]
    return _run(scan, rounds, capacity_for(num_rows, scan.k0), torch_form, unsure)


def _run(
    scan: Scan,
    rounds: Sequence[Round],
    capacity: int,
    torch_form: TorchForm,
    unsure: list[torch.Tensor] | None,
    whole: torch.Tensor | None = None,
) -> Candidates:
    """Run the rounds of a search, samples first; `whole`, bool [B], has queries that need none: all they see fits."""
    if scan.excluded is not None:
        scan = replace(scan, excluded=sorted_lines(scan.excluded))
    state = _State.of(scan, capacity, whole)
    *samples, last = rounds
    for sample in samples:
        state.sample(scan, sample)
    most = most_sorted(scan.k0) if samples and whole is None else most_kept(scan.k0)
    # With room for all there is never too much, and a guess that was too high is taken back once for each sample.
    has_room = capacity >= len(scan.index.scales)
    state.round(scan, last, most, redos=len(samples) if has_room else REDOS)
    found = state.sorted(scan.k0, most)
    if has_room:
        return found
    if unsure is not None:
        unsure.append(state.lost)
        return found
    lost = state.lost.nonzero()[:, 0]  # the only place where the host waits
    if len(lost):
        again = torch_form(_part(scan, lost), lost)
        found.rows[lost], found.scores[lost] = again.rows, again.scores
    return found


def capacity_for(num_rows: int, k0: int) -> int:
    """Places of a query's buffer: for all rows, or for twice what passes a sample's threshold on average."""
    return max(min(num_rows, max(k0 + _ROOM, 2 * STEP * rank_in_sample(k0))), k0)


def sorts(k0: int, device: torch.device) -> bool:
    """Whether the kernels can sort k0 candidates of a query: the shared memory of the device sets the limit too."""
    fitting = sort_bytes(k0) + OWN_SHARED_BYTES <= cuda.most_shared_bytes(device)
    return k0 <= MOST_CANDIDATES and fitting


def sort_bytes(k0: int) -> int:
    """Dynamic shared memory of a block of `sort_keys`."""
    return 16 * selecting_threads(k0) + 8 * most_sorted(k0)


def most_kept(wanted: int) -> int:
    """Keys that a selection may keep: an exact cut would take more passes over them."""
    return wanted + wanted // 16 + 32


def most_sorted(k0: int) -> int:
    """Keys of a query that the final sort takes where all are above the threshold of a sample.

    Half as many more as pass it on average, two deviations for k0 from 132 to 1,300, so that hardly a query is selected
    first; where the shared memory would be too much, no more than a selection keeps.
    """
    passing = STEP * rank_in_sample(k0) * 3 // 2
    return max(most_kept(k0), passing if passing <= SORTED_AT_ONCE else 0)


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
    """What the kernels carry from round to round, a line a query; see kernels/select_keys.cu."""

    keys: torch.Tensor
    counts: torch.Tensor
    thresholds: torch.Tensor
    spare: torch.Tensor
    redo: torch.Tensor
    lost: torch.Tensor
    whole: torch.Tensor | None

    @classmethod
    def of(cls, scan: Scan, capacity: int, whole: torch.Tensor | None) -> _State:
        device, num_queries = scan.queries.codes.device, len(scan.queries.scales)

        keys = torch.empty(num_queries, capacity, dtype=torch.int64, device=device)
        counts = torch.zeros(num_queries, dtype=torch.int64, device=device)
        thresholds, spare = torch.full((2, num_queries), EMPTY_KEY, dtype=torch.int64, device=device)
        redo = torch.full((num_queries,), MOST_KEY, dtype=torch.int64, device=device)
        lost = torch.zeros(num_queries, dtype=torch.bool, device=device)
        return cls(keys, counts, thresholds, spare, redo, lost, whole)

    def sample(self, scan: Scan, round_: Round) -> None:
        """Score the tiles for thresholds alone."""
        thresholds = self.thresholds if self.whole is None else self.thresholds.masked_fill(self.whole, MOST_KEY)
        self._score(scan, round_.works, thresholds)
        threads, most = selecting_threads(round_.wanted), most_kept(round_.wanted)
        room = room_for(threads, 16 * threads, self.keys)
        cuda.launch(
            "select_keys.cu",
            "raise_thresholds",
            len(self.keys),
            threads,
            self.keys,
            self.counts,
            self.keys.shape[1],
            round_.wanted,
            most,
            room,
            self.thresholds,
            self.spare,
            shared_bytes=16 * threads + 8 * room,
        )

    def round(self, scan: Scan, round_: Round, most: int, redos: int) -> None:
        """Score the tiles and keep at most so many; again for the queries that collected too much or too little."""
        thresholds, works = self.thresholds, round_.works
        for _ in range(1 + redos):
            self._score(scan, works, thresholds)
            self._select(round_.wanted, most)
            thresholds, works = self.redo, round_.again
        self.lost.logical_or_(self.redo != MOST_KEY)

    def _score(self, scan: Scan, works: list[Work], thresholds: torch.Tensor) -> None:
        queries, index = scan.queries, scan.index
        norms, errors = scan.bounds if scan.bounds is not None else (None, None)
        bounded = scan.bounds is not None
        words = scan.words if scan.words is not None and scan.words.numel() else None
        excluded = scan.excluded if scan.excluded is not None and len(scan.excluded.values) else None
        for work in works:
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
                work.row_step,
                thresholds,
                self.counts,
                self.keys,
                self.keys.shape[1],
                shared_bytes=work.form.shared_bytes(index.codes.shape[1]),
            )

    def _select(self, wanted: int, most: int) -> None:
        threads = selecting_threads(wanted)
        own = 16 * threads + 2 * most
        room = room_for(threads, own, self.keys)
        cuda.launch(
            "select_keys.cu",
            "select_keys",
            len(self.keys),
            threads,
            self.keys,
            self.counts,
            self.keys.shape[1],
            wanted,
            most,
            room,
            self.thresholds,
            self.spare,
            self.redo,
            shared_bytes=own + 8 * room,
        )

    def sorted(self, k0: int, most: int) -> Candidates:
        """The best k0 of each query, which has kept at most so many, in order."""
        threads = selecting_threads(k0)
        rows = torch.empty(len(self.keys), k0, dtype=torch.int64, device=self.keys.device)
        scores = torch.empty(len(self.keys), k0, dtype=torch.float32, device=self.keys.device)
        cuda.launch(
            "select_keys.cu",
            "sort_keys",
            len(self.keys),
            threads,
            self.keys,
            self.counts,
            self.keys.shape[1],
            k0,
            most,
            rows,
            scores,
            shared_bytes=16 * threads + 8 * most,
        )
        return Candidates(rows, scores)


def threads_for(num_keys: int) -> int:
    """Of a block that handles so many keys, some four each: as many buckets as keys."""
    return min(max(1 << (num_keys // 4).bit_length(), 64), 1024)


def selecting_threads(wanted: int) -> int:
    """Of a block that selects so many keys."""
    return max(threads_for(wanted), 256)


def room_for(threads: int, own: int, keys: torch.Tensor) -> int:
    """Keys that a block holds in shared memory beside `own` bytes, so that it takes no more than its threads' share."""
    share = cuda.most_shared_bytes(keys.device) * threads // MOST_THREADS
    return min(max(share - OWN_SHARED_BYTES - own, 0) // 8, keys.shape[1])


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
