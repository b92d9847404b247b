"""What selecting and ordering should cost beside the rest, counted from the kernels, where no GPU has measured it.

    python examples/gpu_bench/selection_cost.py

prints the shares for 10 M rows of 128 dimensions, all of them searched or those of some of 4,096 clusters. Each launch
takes the longest of what it needs: memory, second-level cache, the multiprocessors' instructions and shared memory, or
one block from begin to end. Memory is between that of an H100 (3.35 TB/s) and an H200 (4.8) by their data sheets; the
second-level cache, latencies and the time from launch to launch are assumed. The score kernel is taken to reach 600 of
1,979 int8 TOPS, more than is asked of it: the faster it is, the larger is the share of the rest. The narrow form is
taken to reach half of that, and the one that lists rows to wait for the cache. Scores are normal. To append keys counts
as scoring, and to repeat a round for nobody as a launch.

A batch without filters is choosing probes, making tiles, scoring, selecting, sorting, re-scoring of the candidates and
their last order, and torch's own operations in between. What selects or orders among the centroids counts as selecting
too. Results are left out: to copy them to the host goes on beside the next batch.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from stcli.model.search import SLOTS  # noqa: E402
from stcli.ops.keys import make_keys, split_keys  # noqa: E402
from stcli.ops.rounds import LISTED, NARROW, STEP, WIDE, WIDE_QUERIES, levels  # noqa: E402
from stcli.ops.scan_cuda import (  # noqa: E402
    MOST_THREADS,
    OWN_SHARED_BYTES,
    REDOS,
    capacity_for,
    most_kept,
    most_sorted,
    selecting_threads,
    threads_for,
)

INT8_OPS, MEMORY, CACHE = 600e12, 4e12, 5.5e12
"""Operations and bytes a second, see above."""

PROCESSORS, CLOCK, LANES, SHARED_BYTES, SHARED = 132, 1.7e9, 128, 128, 227 << 10
"""Multiprocessors; of each: clocks a second, instructions of a thread and bytes of shared memory a clock, its size."""

LATENCY, NEAR_LATENCY, LAUNCH = 800, 100, 3e-6
"""Clocks of a load from memory, and of the barriers of a count; of a load from shared memory and what is done with it;
seconds from one launch to the next."""

LOADS, LOADS_AGAIN, BUCKETS_A_THREAD = 3, 2, 4
"""As kernels/buckets.cuh has them."""

TORCH_LAUNCHES, TILE_LAUNCHES = 72, 5
"""Operations of torch in a search of clusters without filters, no more than a test counts: to quantize queries, to
start with empty buffers, to put results where they belong; and the kernels that make tiles."""

LOOK, COUNT, MOVE, COMPARE = 10, 14, 16, 6
"""Instructions for a key, from the loops of the kernel: to find the ends, to count it, to move it, to compare it with
one other of its bucket."""

CONFLICTS = 4
"""Times that a warp's access to random banks of shared memory is repeated."""


@dataclass(frozen=True)
class Block:
    """What one query costs in one launch: bytes, instructions of one thread, clocks from begin to end."""

    threads: int
    size: int = 0  # of its shared memory
    memory: float = 0
    cache: float = 0
    instructions: float = 0
    shared: float = 0
    clocks: float = 0

    def seconds(self, batch: int) -> float:
        """Of a launch of as many blocks as queries."""
        each = max(self.instructions / LANES, self.shared / SHARED_BYTES)
        fitting = min(MOST_THREADS // self.threads, SHARED // (self.size + OWN_SHARED_BYTES))
        at_once = PROCESSORS * max(fitting, 1)
        busy = max(batch / PROCESSORS, 1) * each / CLOCK
        alone = -(-batch // at_once) * self.clocks / CLOCK
        return LAUNCH + max(batch * self.memory / MEMORY, batch * self.cache / CACHE, busy, alone)


@dataclass(frozen=True)
class Step:
    """One level of a search.

    Attributes:
        rows: looked at.
        gathered: keys.
        wanted, kept: of these, at least and in fact.
        counts: of the keys that it takes to find the threshold.
    """

    rows: int
    gathered: int
    wanted: int
    kept: int
    counts: int


def best_keys(num_rows: int, count: int) -> torch.Tensor:
    """Keys of the best `count` of so many normal scores, best first."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / num_rows
    return make_keys(torch.special.ndtri(1 - places).float(), torch.arange(count))


def cut(keys: torch.Tensor, wanted: int, most: int, num_buckets: int) -> tuple[int, int]:
    """How many of some keys, best first, `find_bound` of kernels/select_keys.cu keeps, and how often it counts them."""
    line, above, counts = keys.tolist(), 0, 0
    while True:
        counts += 1
        width = line[0] - line[-1]
        shift = max(width.bit_length() - (num_buckets.bit_length() - 1), 0)
        buckets = [(line[0] - key) >> shift for key in line]
        chosen = buckets[wanted - above - 1]
        end = sum(bucket <= chosen for bucket in buckets)
        if above + end <= most:
            return above + end, counts
        begin = sum(bucket < chosen for bucket in buckets)
        above, line = above + begin, line[begin:end]


def steps_of(num_rows: int, k0: int, batch: int) -> list[Step]:
    """The levels of a search: what passes the threshold of each, on average, is gathered by the next."""
    found: list[Step] = []
    for level in levels(num_rows, k0, batch):
        rows = -(-num_rows // level.row_step)
        gathered = min(STEP * found[-1].kept, rows) if found else rows
        buckets = BUCKETS_A_THREAD * selecting_threads(level.wanted)
        is_sample = level.row_step > 1
        most = most_sorted(k0) if found and not is_sample else most_kept(level.wanted)
        kept, counts = gathered, 0
        if is_sample or gathered > most:
            kept, counts = cut(best_keys(rows, gathered), level.wanted, most, buckets)
        found.append(Step(rows, gathered, level.wanted, kept, counts))
    return found


def select(step: Step, is_sample: bool) -> Block:
    """One selection: to find the ends, to count, to close the gaps, for which a sample has no use."""
    threads, count = selecting_threads(step.wanted), step.gathered
    if not step.counts:  # all stay
        return Block(threads, clocks=LATENCY)
    own = 16 * threads + 2 * most_kept(step.wanted)
    near = min(max(SHARED * threads // MOST_THREADS - OWN_SHARED_BYTES - own, 0) // 8, count)
    passes = step.counts + (not is_sample)
    moved = 0 if is_sample else min(step.kept, count - step.kept)
    buckets = BUCKETS_A_THREAD * threads
    return Block(
        threads,
        own + 8 * near,
        memory=8 * count + 8 * moved,
        cache=8 * count + 8 * passes * (count - near) + 8 * moved,
        instructions=(LOOK + COUNT * step.counts + MOVE * (not is_sample)) * count + 10 * buckets * step.counts,
        shared=8 * near * (1 + passes) + CONFLICTS * 4 * (count * step.counts + 2 * moved) + 16 * buckets * step.counts,
        clocks=LATENCY * -(-count // (LOADS * threads))
        + passes * (LATENCY * -(-(count - near) // (LOADS_AGAIN * threads)) + NEAR_LATENCY * -(-near // threads))
        + (1 + passes) * 2 * LATENCY,
    )


def sort(count: int, num_rows: int, k0: int, threads: int, read: int, room: int) -> Block:
    """A sort of `count` keys, the best of so many rows, with `read` bytes for each; `room` is that for keys."""
    buckets = BUCKETS_A_THREAD * threads
    pairs = pairs_in_buckets(best_keys(num_rows, count), buckets)
    return Block(
        threads,
        16 * threads + 8 * room,
        memory=read * count + 12 * k0,
        cache=2 * read * count + 12 * k0,
        instructions=(LOOK + COUNT + MOVE) * count + COMPARE * pairs + 10 * buckets,
        shared=16 * count + CONFLICTS * (4 + 12 + 8) * count + 2 * 8 * pairs / 32 * CONFLICTS + 16 * buckets,
        clocks=3 * LATENCY * (-(-count // (LOADS * threads)) + 2) + 30 * pairs / threads,
    )


def pairs_in_buckets(keys: torch.Tensor, num_buckets: int) -> float:
    """How many pairs of keys share a bucket of a scale, each with itself among them."""
    scores = split_keys(keys[None]).scores[0].double()
    high, low = scores.max(), scores.min()
    buckets = ((high - scores) * (num_buckets / (high - low))).long().clamp(max=num_buckets - 1)
    return float(buckets.bincount().double().square().sum())


def score_all(batch: int, rows: int, keys: int, dim: int) -> float:
    """Seconds of a launch over some rows for every query, each of which keeps so many keys."""
    return LAUNCH + max(2 * batch * rows * dim / INT8_OPS, (rows * (dim + 4) + 8 * batch * keys) / MEMORY)


def score_clusters(batch: int, num_clusters: int, num_probes: int, rows: float, keys: int, dim: int) -> float:
    """The same for so many rows of each of the clusters that a query probes, as `work_over_probes` cuts tiles."""
    pairs = batch * num_probes
    form = LISTED if pairs < 4 * num_clusters else NARROW if pairs < WIDE_QUERIES * num_clusters else WIDE
    seen = num_clusters * (1 - (1 - 1 / num_clusters) ** pairs)  # clusters that anybody probes
    tiles = pairs if form is LISTED else max(seen, pairs / form.tile_queries + seen / 2)
    rate = {LISTED: math.inf, NARROW: INT8_OPS / 2, WIDE: INT8_OPS}[form]
    multiplied = 2 * tiles * form.tile_queries * rows * dim / rate
    read = max(tiles * rows * (dim + 4) / CACHE, (seen * rows * (dim + 4) + 8 * batch * keys) / MEMORY)
    return LAUNCH + max(multiplied, read)


def search(
    num_rows: int, batch: int, k0: int, dim: int, num_clusters: int = 1, num_probes: int = 0
) -> tuple[float, float, float]:
    """Seconds of scoring, selecting and sorting, over all rows or those of `num_probes` clusters."""
    looked_at = num_rows * num_probes // num_clusters or num_rows
    steps = steps_of(looked_at, k0, batch)
    redos = min(len(steps) - 1, REDOS) if capacity_for(num_rows, k0) >= num_rows else REDOS
    scored = redos * LAUNCH
    for step in steps:
        if num_probes:
            scored += score_clusters(batch, num_clusters, num_probes, step.rows / num_probes, step.gathered, dim)
        else:
            scored += score_all(batch, step.rows, step.gathered, dim)
    selected = sum(select(step, step is not steps[-1]).seconds(batch) for step in steps)
    ordered = sort(steps[-1].kept, looked_at, k0, selecting_threads(k0), 8, most_sorted(k0)).seconds(batch)
    return scored, selected + redos * LAUNCH, ordered


def shares(
    num_rows: int, batch: int, k: int, k0: int, dim: int = 128, num_clusters: int = 1, num_probes: int = 0
) -> dict[str, float]:
    """Milliseconds of the parts of a batch and what selecting and ordering have of them: the share of all, of all but
    torch's operations, and, without choosing and the last order, of scoring, selecting and sorting alone.

    Without `num_probes` all rows are searched, and no probes are chosen. A large batch is searched in pieces, of which
    this is one. Nothing is scored again.
    """
    batch = min(batch, SLOTS // k0)
    scored, selected, ordered = search(num_rows, batch, k0, dim, num_clusters, num_probes)
    chosen = search(num_clusters, batch, num_probes, dim) if num_probes else (0.0, 0.0, 0.0)
    parts = {
        "choose": sum(chosen),
        "torch": TORCH_LAUNCHES * LAUNCH,
        "tiles": TILE_LAUNCHES * LAUNCH,
        "score": scored,
        "select": selected,
        "sort": ordered,
        "rescore": LAUNCH + batch * k0 * (2 * dim + 12) / MEMORY,
        "order": sort(k0, 100 * k0, k, threads_for(k0), 12, k0).seconds(batch),
    }
    selecting = selected + ordered + parts["order"] + chosen[1] + chosen[2]
    return {f"{name}_ms": 1e3 * seconds for name, seconds in parts.items()} | {
        "share": selecting / sum(parts.values()),
        "share_of_kernels": selecting / (sum(parts.values()) - parts["torch"]),
        "share_of_search": (selected + ordered) / (selected + ordered + scored),
    }


def main() -> None:
    """Print the table."""
    for (k, k0), probes in itertools.product(((100, 132), (1_000, 1_300), (10_000, 13_000)), (0, 64, 256)):
        steps = steps_of(10_000_000 * probes // 4096 or 10_000_000, k0, 1024)
        where = f"{probes} of 4,096 clusters" if probes else "all rows"
        print(f"k={k}, k0={k0}, {where}", *steps, sep="\n  ")
        for batch in (16, 64, 256, 1024, 4096):
            cost = shares(10_000_000, batch, k, k0, num_clusters=4096, num_probes=probes)
            print(f"  B={batch:<5}", "  ".join(f"{name} {value:.3f}" for name, value in cost.items()))


if __name__ == "__main__":
    main()
