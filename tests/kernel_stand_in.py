"""The contracts of the search kernels in plain Python, so that the launch code of the CUDA forms runs without a GPU.

What a GPU leaves open is drawn at random here: the order in which rows are appended, and which of them find room.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch.utils._python_dispatch import _disable_current_modes

from stcli.ops.keys import EMPTY_KEY, make_keys
from stcli.ops.probe_tiles import NO_SPAN

MOST_KEY = 2**63 - 1


class StandIn:
    """A launcher that keeps the contracts; counts what it launches.

    Args:
        seed: of the order of appends.
    """

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.launches: list[tuple[str, int]] = []
        self.overflows = self.guessed_too_high = 0

    def launch(self, source: Path, kernel: str, grid, threads: int, shared_bytes: int, arguments) -> None:
        self.launches.append((kernel, grid[0]))
        with _disable_current_modes():  # the host does not see what a kernel does
            self._run(kernel, grid, arguments)

    def _run(self, kernel: str, grid, arguments) -> None:
        near = [getattr(item, "here", item) for item in arguments]
        for item in near:
            assert item is None or isinstance(item, int | float) or item.is_contiguous()
        if kernel.startswith("score"):
            self.score(kernel, grid, *near)
        else:
            getattr(self, kernel)(grid, *near)

    def score(
        self, kernel, grid, q_codes, q_scales, q_norms, q_errors, codes, scales, errors, norms, dim, words, num_words,
        filter_of_query, span_words, span_lines, excluded_rows, excluded_begins, excluded_ends, queries, tiles,
        row_step, thresholds, counts, keys, capacity,
    ) -> None:  # fmt: skip
        assert grid == (len(tiles), 1, 1)
        assert dim == codes.shape[1] == q_codes.shape[1]
        assert (q_norms is None) == (q_errors is None) == (errors is None) == (norms is None)
        assert kernel.endswith("_bounds") == (q_norms is not None and kernel.startswith("score_mma"))
        most = {"score_mma": 128, "score_mma_narrow": 32, "score_dp4a": 8}[kernel.removesuffix("_bounds")]
        num_pairs = len(q_scales) if queries is None else len(queries)
        order = list(range(len(tiles)))
        self.random.shuffle(order)
        for number in order:
            first, end, row, last_row = tiles[number].tolist()
            assert 0 <= first <= end <= num_pairs
            assert end - first <= most
            if first == end or row == last_row:
                continue
            assert 0 <= row < last_row <= len(scales)
            for pair in range(first, end):
                query = pair if queries is None else int(queries[pair])
                if int(thresholds[query]) == MOST_KEY:
                    continue
                rows = torch.arange(row, last_row)
                rows = rows[rows % row_step == 0]
                found = (codes[rows].int() @ q_codes[query].int()).float() * q_scales[query]
                found = found * scales[rows]
                if q_norms is not None:
                    found = found + (q_norms[query] * errors[rows] + q_errors[query] * norms[rows])
                found_keys = make_keys(found, rows)
                keep = found_keys > thresholds[query]
                if words is not None and int(filter_of_query[query]) >= 0:
                    line = words[int(filter_of_query[query])]
                    assert len(line) == num_words
                    keep &= (line[rows >> 6] >> (rows & 63)) & 1 == 1
                elif span_words is not None and int(span_lines[pair]) != NO_SPAN:
                    keep &= (span_words[int(span_lines[pair]) + (rows >> 6)] >> (rows & 63)) & 1 == 1
                if excluded_rows is not None:
                    hidden = excluded_rows[int(excluded_begins[query]) : int(excluded_ends[query])]
                    keep &= ~torch.isin(rows, hidden)
                some = found_keys[keep].tolist()
                self.random.shuffle(some)
                begin = int(counts[query])
                room = max(capacity - begin, 0)
                keys[query, begin : begin + min(room, len(some))] = torch.tensor(some[:room], dtype=torch.int64)
                counts[query] = begin + len(some)

    def cut_rows(self, grid, num_queries, tile_queries, num_rows, span, num_dense, listed, tiles, num_tiles) -> None:
        split = num_queries if num_dense is None else int(num_dense)
        begin, end = (split, num_queries) if listed else (0, split)
        lines = [
            [min(begin + i, end), min(begin + i + tile_queries, end), row, min(row + span, num_rows)]
            for row in range(0, num_rows, span)
            for i in range(0, num_queries, tile_queries)
        ]
        assert len(lines) == num_tiles
        tiles[:] = torch.tensor(lines)

    def count_probes(self, grid, probes, num_pairs, counts, places) -> None:
        assert not counts.any()
        order = list(range(num_pairs))
        self.random.shuffle(order)
        for pair in order:
            cluster = int(probes.flatten()[pair])
            if cluster >= 0:
                places[pair] = counts[cluster]
                counts[cluster] += 1

    def begin_clusters(self, grid, counts, num_clusters, tile_queries, begins, first_tiles) -> None:
        assert grid == (1, 1, 1)
        first_tiles[0] = 0
        begins[:] = counts.cumsum(0) - counts
        first_tiles[1:] = ((counts + tile_queries - 1) // tile_queries).cumsum(0)

    def cut_tiles(
        self, grid, counts, offsets, num_clusters, tile_queries, begins, first_tiles, tiles, num_tiles
    ) -> None:
        lines = []
        for cluster, (begin, count) in enumerate(zip(begins.tolist(), counts.tolist(), strict=True)):
            assert len(lines) == first_tiles[cluster]
            for first in range(begin, begin + count, tile_queries):
                rows = offsets[cluster : cluster + 2].tolist()
                lines.append([first, min(first + tile_queries, begin + count), *rows])
        assert len(lines) == first_tiles[num_clusters] <= num_tiles == len(tiles)
        tiles.zero_()
        tiles[: len(lines)] = torch.tensor(lines, dtype=torch.int64).view(-1, 4)

    def place_probes(
        self, grid, probes, num_pairs, num_probes, offsets, starts, begins, places, queries, lines
    ) -> None:
        for pair, cluster in enumerate(probes.flatten().tolist()):
            if cluster < 0:
                continue
            place = int(begins[cluster]) + int(places[pair])
            queries[place] = pair // num_probes
            if starts is not None:
                start = int(starts.flatten()[pair])
                lines[place] = NO_SPAN if start < 0 else start - int(offsets[cluster]) // 64

    def raise_thresholds(self, grid, keys, counts, capacity, k, most, room, thresholds, spare) -> None:
        assert grid == (len(keys), 1, 1)
        assert keys.shape[1] == capacity >= room
        for query in range(len(keys)):
            count = int(counts[query])
            counts[query] = 0
            spare[query] = EMPTY_KEY if count < k else int(thresholds[query])
            if count >= k:
                there = sorted(keys[query, : min(count, capacity)].tolist(), reverse=True)
                thresholds[query] = there[: self.random.randint(k, most)][-1] - 1

    def select_keys(self, grid, keys, counts, capacity, k, most, room, thresholds, spare, redo) -> None:
        assert grid == (len(keys), 1, 1)
        assert keys.shape[1] == capacity >= room
        for query in range(len(keys)):
            count = int(counts[query])
            redo[query] = MOST_KEY
            if count < k and int(thresholds[query]) != EMPTY_KEY:
                self.guessed_too_high += 1
                thresholds[query] = redo[query] = int(spare[query])
                spare[query] = EMPTY_KEY
                counts[query] = 0
                continue
            if count <= most and count <= capacity:
                continue
            there = sorted(keys[query, : min(count, capacity)].tolist(), reverse=True)
            best = there[: self.random.randint(k, most)]
            if count > capacity:
                self.overflows += 1
                counts[query] = 0
                redo[query] = best[-1] - 1
                continue
            self.random.shuffle(best)
            keys[query, : len(best)] = torch.tensor(best, dtype=torch.int64)
            counts[query] = len(best)

    def sort_keys(self, grid, keys, counts, capacity, k, most, rows, scores) -> None:
        assert grid == (len(keys), 1, 1)
        assert keys.shape[1] == capacity
        rows.fill_(-1)
        scores.fill_(-torch.inf)
        for query in range(len(keys)):
            best = torch.tensor(sorted(keys[query, : int(counts[query])].tolist(), reverse=True), dtype=torch.int64)
            assert len(best) <= most
            assert EMPTY_KEY not in best
            best = best[:k]
            ordered = (best >> 32).to(torch.int32)
            rows[query, : len(best)] = 0xFFFFFFFF - (best & 0xFFFFFFFF)
            scores[query, : len(best)] = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
