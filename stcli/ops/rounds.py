"""The rounds of a search on a GPU, and the tiles of a launch: which queries meet which rows.

A search looks at a small sample of its rows first, then at a larger one, then at all: the samples tell above which
score a row is likely to be wanted.

The tables of tiles (row_tiles.py, probe_tiles.py) are made on the device, and the host does not wait for it. They have
as many lines as there can be, and those that are not needed, which depends on data, are empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

STEP = 61
"""Each level of a sample takes one row in so many of the next: a prime, so that rows which repeat themselves in the
order of the index, as variants of one item do, do not fall in step."""

SMALL_SAMPLE = 4096
"""Rows down to which a sample needs no other that tells what to keep of it, unless there are many queries."""

MANY_KEYS = 1 << 21
"""Keys of a batch that a sample has to save to be worth its two launches: to write and read them takes as long."""

LISTED_SHARE = 64
"""A query that admits less than one row in so many reads only those: from bytes and operations, not yet measured."""

WIDE_QUERIES = 64
"""Queries a cluster, on average, from which the wide tile pays."""


@dataclass(frozen=True)
class Form:
    """One of the score kernels of `kernels/score_*.cu`; all take the same arguments.

    Attributes:
        kernel: its name.
        source: its file.
        tile_queries: queries of a tile at most.
        shared: dynamic shared memory of a block beside the queries, and bytes beside each query's codes.
    """

    kernel: str
    source: str
    tile_queries: int
    shared: tuple[int, int]

    def shared_bytes(self, dim: int) -> int:
        """Dynamic shared memory of a block, for rows of `dim` padded dimensions."""
        return self.shared[0] + self.tile_queries * (dim + self.shared[1])

    def kernel_for(self, bounded: bool) -> str:
        """The kernel for plain scores, or for upper bounds."""
        return self.kernel + ("_bounds" if bounded and self.source == "score_mma.cu" else "")


WIDE = Form("score_mma", "score_mma.cu", 128, (49_152, 48))
NARROW = Form("score_mma_narrow", "score_mma.cu", 32, (49_152, 48))
LISTED = Form("score_dp4a", "score_dp4a.cu", 8, (16_384, 0))


@dataclass(frozen=True)
class Fit:
    """The forms whose shared memory a device has.

    Attributes:
        dim: padded dimensions of the rows.
        most_shared_bytes: dynamic shared memory that a block may have.
    """

    dim: int
    most_shared_bytes: int

    def __call__(self, form: Form) -> Form:
        """The form, or the widest narrower one that fits."""
        forms = (WIDE, NARROW, LISTED)
        fitting = [other for other in forms if other.shared_bytes(self.dim) <= self.most_shared_bytes]
        return next((other for other in fitting if other.tile_queries <= form.tile_queries), LISTED)


@dataclass(frozen=True)
class Work:
    """The tiles of one launch.

    Attributes:
        form: the kernel.
        tiles: int64 [T, 4], lines (first pair, end pair, first row, end row); empty where first pair = end pair.
        queries: int64 [pairs], the query of each pair, or None where pair p is query p.
        span_lines: int64 [pairs], row r of a pair is bit r % 64 of word `span_lines + r // 64` of the spans; NO_SPAN
            where every row is admitted; None without spans.
        row_step: a tile has the rows that it divides.
    """

    form: Form
    tiles: torch.Tensor
    queries: torch.Tensor | None
    span_lines: torch.Tensor | None = None
    row_step: int = 1


def rank_in_sample(k: int) -> int:
    """Which key of a sample of every `STEP`-th row is hardly ever above the k-th best key of all rows.

    k / STEP of the best k are in the sample on average, with the square root of that as deviation; six of these are
    added, and something for the smallest numbers, where the tail is longer. So a threshold at that rank lets pass
    k + 6 * sqrt(STEP * k) + 6 * STEP rows, about.
    """
    return math.ceil(k / STEP + 6 * math.sqrt(k / STEP) + 6)


@dataclass(frozen=True)
class Level:
    """A sample of the rows, or, with row_step 1, all of them; and how many of their best keys are wanted."""

    row_step: int
    wanted: int


def levels(num_rows: int, k0: int, num_queries: int = 1) -> list[Level]:
    """What a search of so many rows looks at, small samples first: each gives the threshold of the next.

    A sample is left out where its threshold would let half of the rows pass, and where there are few rows and queries.

    Example: levels(10_000_000, 132) is [Level(3721, 10), Level(61, 17), Level(1, 132)].
    """
    found = [Level(1, k0)]
    while True:
        rank = rank_in_sample(found[0].wanted)
        few = num_rows <= SMALL_SAMPLE and num_queries * (num_rows - STEP * rank) < MANY_KEYS
        if few or 2 * STEP * rank >= num_rows:
            return found
        found.insert(0, Level(found[0].row_step * STEP, rank))
        num_rows = -(-num_rows // STEP)
