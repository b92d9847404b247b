"""What selecting and ordering should cost beside the rest, counted from the kernels, where no GPU has measured it.

    python examples/gpu_bench/selection_cost.py

prints the shares for 10 M rows of 128 dimensions, all of them searched or those of some of 4,096 clusters. Each launch
takes the longest of what it needs: memory, second-level cache, the multiprocessors' instructions and shared memory, or
one block from begin to end. Rates are those of an H100 or H200 by their data sheets, and the score kernel is taken to
reach 600 of their 1,979 int8 TOPS, more than is asked of it: the faster it is, the larger is the share of the rest. The
narrow form is taken to reach half of that, and the one that lists rows to wait for the cache. Scores are normal; the
bytes and keys counted hold for any others without ties. A batch is scoring, selecting, sorting, re-scoring of the
candidates and their last order; filters, choosing probes and making tiles come on top of it.
"""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from stcli.ops.keys import make_keys  # noqa: E402
from stcli.ops.rounds import LISTED, NARROW, STEP, WIDE, WIDE_QUERIES, levels  # noqa: E402
from stcli.ops.scan_cuda import REDOS, most_kept, threads_for  # noqa: E402

INT8_OPS, MEMORY, CACHE = 600e12, 4e12, 5.5e12
"""Operations and bytes a second."""

PROCESSORS, CLOCK, LANES, SHARED_BYTES, THREADS = 132, 1.7e9, 128, 128, 2048
"""Multiprocessors; of each: clocks a second, instructions of one thread and bytes of shared memory a clock, threads."""

LATENCY, LAUNCH = 800, 3e-6
"""Clocks of a load from memory, and of the barriers of a count; seconds from one launch to the next."""

LOADS, BUCKETS_A_THREAD = 4, 4
"""As kernels/buckets.cuh has them."""

LOOK, COUNT, MOVE, COMPARE = 10, 14, 16, 6
"""Instructions for a key, from the loops of the kernel: to find the ends, to count it, to move it, to compare it with
one other of its bucket."""

CONFLICTS = 4
"""Times that a warp's access to random banks of shared memory is repeated."""


@dataclass(frozen=True)
class Block:
    """What one query costs in one launch: bytes, instructions of one thread, clocks from begin to end."""

    threads: int
    memory: float = 0
    cache: float = 0
    instructions: float = 0
    shared: float = 0
    clocks: float = 0

    def seconds(self, batch: int) -> float:
        """Of a launch of as many blocks as queries."""
        each = max(self.instructions / LANES, self.shared / SHARED_BYTES)
        at_once = PROCESSORS * max(THREADS // self.threads, 1)
        busy = max(batch / PROCESSORS, 1) * each / CLOCK
        alone = -(-batch // at_once) * self.clocks / CLOCK
        return LAUNCH + max(batch * self.memory / MEMORY, batch * self.cache / CACHE, busy, alone)


def select(count: float, wanted: int, num_counts: int = 1) -> Block:
    """One selection among `count` keys: to find the ends, to count, to close the gaps."""
    threads, kept = max(threads_for(wanted), 256), min(most_kept(wanted), count)
    moved = min(kept, count - kept)
    buckets = BUCKETS_A_THREAD * threads
    return Block(
        threads,
        memory=8 * count + 8 * moved,
        cache=8 * (2 + num_counts) * count + 8 * moved,
        instructions=(LOOK + COUNT * num_counts + MOVE) * count + 10 * buckets * num_counts,
        shared=CONFLICTS * 4 * (count * num_counts + 2 * moved) + 16 * buckets * num_counts,
        clocks=(2 + num_counts) * LATENCY * (-(-count // (LOADS * threads)) + 2),
    )


def sort(num_rows: int, k0: int) -> Block:
    """The final sort."""
    threads, count = threads_for(k0), min(most_kept(k0), num_rows)
    buckets, pairs = BUCKETS_A_THREAD * threads, pairs_in_buckets(num_rows, count, BUCKETS_A_THREAD * threads)
    return Block(
        threads,
        memory=8 * count + 12 * k0,
        cache=24 * count + 12 * k0,
        instructions=(LOOK + COUNT + MOVE) * count + COMPARE * pairs + 10 * buckets,
        shared=CONFLICTS * (4 * count + 12 * count + 8 * count) + 2 * 8 * pairs / 32 * CONFLICTS + 16 * buckets,
        clocks=3 * LATENCY * (-(-count // (LOADS * threads)) + 2) + 30 * pairs / threads,
    )


def pairs_in_buckets(num_rows: int, count: int, num_buckets: int) -> float:
    """How many pairs of the best `count` of `num_rows` normal scores share a bucket, each with itself among them."""
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / num_rows
    scores = torch.special.ndtri(1 - places).float()
    keys = make_keys(scores, torch.arange(count))
    width = int(keys.max()) - int(keys.min())
    buckets = (keys.max() - keys) >> max(width.bit_length() - (num_buckets.bit_length() - 1), 0)
    return float(buckets.bincount().double().square().sum())


def gathered(num_rows: int, k0: int) -> list[tuple[int, int, int]]:
    """For each level: rows looked at, keys gathered, keys wanted. The most that its threshold lets pass on average."""
    found, above = [], None
    for level in levels(num_rows, k0):
        rows = -(-num_rows // level.row_step)
        found.append((rows, rows if above is None else min(STEP * most_kept(above), rows), level.wanted))
        above = level.wanted
    return found


def order(num_slots: int, k: int) -> Block:
    """The last order of the candidates, in kernels/take_best.cu."""
    threads = threads_for(num_slots)
    buckets, pairs = (
        BUCKETS_A_THREAD * threads,
        pairs_in_buckets(100 * num_slots, num_slots, BUCKETS_A_THREAD * threads),
    )
    return Block(
        threads,
        memory=(8 + 4 + 32 + 8) * num_slots + 12 * k,
        cache=24 * num_slots + 8 * k,
        instructions=(COUNT + LOOK + COUNT + MOVE) * num_slots + COMPARE * pairs + 10 * buckets,
        shared=CONFLICTS * (4 + 12 + 10) * num_slots + 2 * 8 * pairs / 32 * CONFLICTS + 16 * buckets,
        clocks=4 * LATENCY * (-(-num_slots // (LOADS * threads)) + 2) + 30 * pairs / threads,
    )


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


def shares(
    num_rows: int, batch: int, k: int, k0: int, dim: int = 128, num_clusters: int = 1, num_probes: int = 0
) -> dict[str, float]:
    """Milliseconds of the parts of a batch, the share of selecting and ordering, and that of selecting and sorting in
    scoring, selecting and sorting alone; nothing is scored again.

    Without `num_probes` all rows are searched.
    """
    looked_at = num_rows * num_probes // num_clusters or num_rows
    steps = gathered(looked_at, k0)
    scored = REDOS * LAUNCH
    for rows, keys, _ in steps:
        if num_probes:
            scored += score_clusters(batch, num_clusters, num_probes, rows / num_probes, keys, dim)
        else:
            scored += score_all(batch, rows, keys, dim)
    # The first keys have both signs, hence most exponents, and so one count seldom tells enough.
    blocks = [select(keys, wanted, 1 if number else 2) for number, (_, keys, wanted) in enumerate(steps)]
    parts = {
        "score": scored,
        "select": REDOS * LAUNCH + sum(block.seconds(batch) for block in blocks),
        "sort": sort(looked_at, k0).seconds(batch),
        "rescore": LAUNCH + batch * k0 * (2 * dim + 12) / MEMORY,
        "order": order(k0, k).seconds(batch),
    }
    selecting = parts["select"] + parts["sort"]
    return {f"{name}_ms": 1e3 * seconds for name, seconds in parts.items()} | {
        "share": (selecting + parts["order"]) / sum(parts.values()),
        "share_of_search": selecting / (selecting + scored),
    }


def main() -> None:
    """Print the table."""
    for (k, k0), probes in itertools.product(((100, 132), (1_000, 1_300), (10_000, 13_000)), (0, 64, 256)):
        steps = gathered(10_000_000 * probes // 4096 or 10_000_000, k0)
        where = f"{probes} of 4,096 clusters" if probes else "all rows"
        print(f"k={k}, k0={k0}, {where}; rows, keys gathered and wanted at each level:", *steps)
        for batch in (16, 64, 256, 1024, 4096):
            cost = shares(10_000_000, batch, k, k0, num_clusters=4096, num_probes=probes)
            print(f"  B={batch:<5}", "  ".join(f"{name} {value:.3f}" for name, value in cost.items()))


if __name__ == "__main__":
    main()
