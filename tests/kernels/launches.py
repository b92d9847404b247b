"""Launches kernels on the emulation for the tests: the grids, shared memory and rounds that the headers ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stcli.ops.keys import EMPTY_KEY
from stcli.types import BitMatrix, Candidates, Embeddings, Lines, Postings, Program, TermProgram
from tests.emulation.emulate import KERNELS, run
from tests.ops.search_cases import Case

NO_KEY = 2**63 - 1


@dataclass(frozen=True)
class Form:
    """A score kernel: its file, queries of a tile, and bytes of shared memory for codes of `dim` bytes."""

    file: str
    kernel: str
    tile_queries: int

    def shared(self, dim: int) -> int:
        if self.file == "score_dp4a":
            return 8 * dim + 16384
        return self.tile_queries * (dim + 48) + 49152


FORMS = {
    "dp4a": Form("score_dp4a", "score_dp4a", 8),
    "mma": Form("score_mma", "score_mma", 128),
    "mma_narrow": Form("score_mma", "score_mma_narrow", 32),
}


def run_kernel(file: str, kernel: str, **launch) -> None:
    run(KERNELS / f"{file}.cu", kernel, **launch)


def cut_tiles(
    pairs: list[tuple[list[int], int, int]], tile_queries: int, tile_rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [pairs] and tiles [T, 4] for lists of (queries, first row, end row)."""
    queries, tiles = [], []
    for line, first, end in pairs:
        for q in range(0, len(line), tile_queries):
            for row in range(first, end, tile_rows):
                end_pair = len(queries) + min(q + tile_queries, len(line))
                tiles.append([len(queries) + q, end_pair, row, min(row + tile_rows, end)])
        queries += line
    tiles.append([len(queries), len(queries), 0, 7])  # an empty one, as a list of tiles with room to spare has
    return torch.tensor(queries, dtype=torch.int64), torch.tensor(tiles, dtype=torch.int64)


def sorted_lines(lines: Lines) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, begins and ends of the same lines, each ascending."""
    pieces = zip(lines.begins.tolist(), lines.ends.tolist(), strict=True)
    parts = [lines.values[begin:end].sort().values for begin, end in pieces]
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    return torch.cat(parts), ends - torch.tensor([len(part) for part in parts]), ends


def score(case: Case, form: Form, queries, tiles, thresholds, counts, keys, seed: int, row_step: int = 1) -> None:
    """Score tiles and append to `keys`."""
    index, dim = case.index, case.queries.codes.shape[1]
    bounds = case.bounds or (None, None)
    excluded = sorted_lines(case.excluded) if case.excluded else (None, None, None)
    run_kernel(
        form.file,
        form.kernel + ("_bounds" if case.bounds and form.file == "score_mma" else ""),
        grid=(len(tiles),),
        block=(256,),
        shared=form.shared(dim),
        seed=seed,
        args=[
            case.queries.codes,
            case.queries.scales,
            *bounds,
            index.codes,
            index.scales,
            index.errors if case.bounds else None,
            index.norms if case.bounds else None,
            dim,
            case.words,
            0 if case.words is None else case.words.shape[1],
            None if case.words is None else case.filter_of_query,
            None,
            None,
            *excluded,
            queries,
            tiles,
            row_step,
            thresholds,
            counts,
            keys,
            keys.shape[1],
        ],
    )


def most_for(k: int) -> int:
    """A little more than k."""
    return k + k // 16 + 3


def raise_thresholds(
    keys, counts, k: int, thresholds, spare, threads: int = 64, seed: int = 0, room: int = 400
) -> None:
    run_kernel(
        "select_keys",
        "raise_thresholds",
        grid=(len(keys),),
        block=(threads,),
        shared=16 * threads + 8 * room,
        seed=seed,
        args=[keys, counts, keys.shape[1], k, most_for(k), room, thresholds, spare],
    )


def select(keys, counts, k: int, thresholds, spare, redo, threads: int = 64, seed: int = 0, room: int = 400) -> None:
    run_kernel(
        "select_keys",
        "select_keys",
        grid=(len(keys),),
        block=(threads,),
        shared=16 * threads + 2 * most_for(k) + 8 * room,
        seed=seed,
        args=[keys, counts, keys.shape[1], k, most_for(k), room, thresholds, spare, redo],
    )


def sort(keys, counts, k: int, threads: int = 64, seed: int = 0) -> Candidates:
    rows = torch.empty(len(keys), k, dtype=torch.int64)
    scores = torch.empty(len(keys), k)
    run_kernel(
        "select_keys",
        "sort_keys",
        grid=(len(keys),),
        block=(threads,),
        shared=16 * threads + 8 * most_for(k),
        seed=seed,
        args=[keys, counts, keys.shape[1], k, most_for(k), rows, scores],
    )
    return Candidates(rows, scores)


def take_best(rows, scores, ranks, k: int, threads: int = 64, seed: int = 0) -> Candidates:
    best = Candidates(torch.empty(len(rows), k, dtype=torch.int64), torch.empty(len(rows), k))
    run_kernel(
        "take_best",
        "take_best",
        grid=(len(rows),),
        block=(threads,),
        shared=16 * threads + 8 * rows.shape[1],
        seed=seed,
        args=[rows, scores, ranks, rows.shape[1], k, best.rows, best.scores],
    )
    return best


def search(
    case: Case, form: Form, rounds, capacity: int, tile_rows: int, seed: int, row_step: int = 1
) -> tuple[Candidates, int]:
    """A whole search, and how often it had to be repeated for some queries.

    Args:
        rounds: lists of (queries, first row, end row); no pair of a query and a row comes twice.
        capacity: keys that a query has room for, more than `most_for(k0)`, or the same keys might be lost again and
            again.
        tile_rows: rows of a tile at most.
        row_step: only the rows that it divides.
    """
    num_queries, repeats = len(case.queries.scales), 0
    if num_queries == 0:
        return Candidates(torch.empty(0, case.k0, dtype=torch.int64), torch.empty(0, case.k0)), 0
    keys = torch.full((num_queries, capacity), 12345, dtype=torch.int64)
    counts = torch.zeros(num_queries, dtype=torch.int64)
    thresholds, spare, redo = torch.full((3, num_queries), EMPTY_KEY)
    limits, launches = thresholds, [cut_tiles(pairs, form.tile_queries, tile_rows) for pairs in rounds]
    while True:
        for number, (queries, tiles) in enumerate(launches):
            score(case, form, queries, tiles, limits, counts, keys, seed + number, row_step)
        select(keys, counts, case.k0, thresholds, spare, redo, seed=seed)
        if bool((redo == NO_KEY).all()):
            return sort(keys, counts, case.k0, seed=seed), repeats
        limits, repeats = redo.clone(), repeats + 1


def filter_match(matrix: BitMatrix, program: Program, group: int, seed: int, grid_y: int = 2) -> torch.Tensor:
    """Words [F, W], in groups of `group` blocks."""
    num_words, num_filters = -(-matrix.num_items // 64), len(program.op_offsets) - 1
    out = torch.full((num_filters, num_words), 0x1234, dtype=torch.int64)
    for first in range(0, num_words, group * 64):
        masks = torch.full((len(program.leaves), group * 64), 0x5678, dtype=torch.int64)
        run_kernel(
            "filter_match",
            "filter_leaves",
            grid=(group, grid_y),
            block=(256,),
            seed=seed,
            args=[
                *(matrix.own, num_words, matrix.bloom, matrix.bloom_offsets, matrix.num_hashes),
                *(program.leaves, len(program.leaves), first, group * 64, masks),
            ],
        )
        warps = 2
        run_kernel(
            "filter_match",
            "filter_match",
            grid=(group, grid_y),
            block=(32 * warps,),
            shared=512 * (program.max_depth - 1) * warps,
            seed=seed,
            args=[
                *(matrix.own, num_words, program.leaves, masks, group * 64, program.ops, program.op_offsets),
                *(num_filters, program.max_depth, matrix.num_items, first, out),
            ],
        )
    return out


def rescore(queries: torch.Tensor, embeddings: Embeddings, rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
    scores = torch.full(rows.shape, 7.0)
    values = embeddings.values
    run_kernel(
        "rescore",
        "rescore",
        grid=(-(-rows.numel() // 16),),
        block=(256,),
        seed=seed,
        args=[
            *(queries, values, int(values.dtype == torch.float16), embeddings.exponents),
            *(rows, *rows.shape, queries.shape[1], scores),
        ],
    )
    return scores


def verify_terms(
    terms: Postings, program: TermProgram, rows: torch.Tensor, filter_of_query: torch.Tensor, seed: int = 0
) -> torch.Tensor:
    verified = torch.full(rows.shape, 7, dtype=torch.uint8)
    run_kernel(
        "verify_terms",
        "verify_terms",
        grid=(-(-rows.numel() // 8),),
        block=(256,),
        seed=seed,
        args=[
            *(terms.values, terms.offsets, len(terms.values), program.lows, program.highs, program.leaf_offsets),
            *(program.ops, program.op_offsets, rows, filter_of_query, *rows.shape, verified),
        ],
    )
    return verified.bool()
