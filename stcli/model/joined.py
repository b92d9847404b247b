"""The parts of a set as one: their segments, ids, and the order of all ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.model.segment import Segment
from stcli.storage.artifact import Artifact
from stcli.storage.artifact_set import ArtifactSet
from stcli.storage.ids import ItemIds
from stcli.storage.steering import check_ranks


def open_segments(opened: Artifact | ArtifactSet, backend: str) -> list[Segment]:
    """The segment of an artifact, or those of a set: its shards share the vocabulary of one index."""
    if isinstance(opened, Artifact):
        return [Segment(opened, backend)]
    segments: list[Segment] = []
    base, planner = 0, None
    for artifact in opened.parts:
        fresh = artifact is opened.fresh
        end = base + int(artifact.manifest["num_items"])
        living = None if opened.tombstones is None else _living(opened.tombstones, base, end)
        made = Segment(artifact, backend, base, None if fresh else planner, living)
        made.probed = not fresh or _same_centroids(artifact, opened.shards[0])
        base, planner = end, made.planner
        segments.append(made)
    return segments


def _same_centroids(one: Artifact, other: Artifact) -> bool:
    return all(np.array_equal(one.arrays[name], other.arrays[name]) for name in ("centroid_codes", "centroid_scales"))


def _living(tombstones: np.ndarray, base: int, end: int) -> torch.Tensor | None:
    """Words int64 of the rows base … end - 1 whose bit is not set, or None if none is."""
    words = tombstones[base // 64 : -(-end // 64)]
    dead = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")[base % 64 :][: end - base]
    if not dead.any():
        return None
    alive = np.pad(1 - dead, (0, -len(dead) % 64))
    return torch.from_numpy(np.packbits(alive, bitorder="little").view(np.int64))


class JoinedIds:
    """The ids of several segments."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.parts = [segment.ids for segment in segments]
        self.bases = np.array([segment.base for segment in segments])

    @property
    def is_string(self) -> bool:
        """Ids are strings."""
        return self.parts[0].is_string

    def take(self, rows: np.ndarray) -> pa.Array:
        """Ids of rows int64 [M]."""
        owner = np.searchsorted(self.bases, rows, side="right") - 1
        order = np.argsort(owner, kind="stable")
        edges = np.searchsorted(owner[order], np.arange(len(self.parts) + 1))
        taken = [
            part.take(rows[order[first:end]] - base)
            for part, base, first, end in zip(self.parts, self.bases, edges[:-1], edges[1:], strict=True)
        ]
        place = np.empty(len(rows), np.int64)
        place[order] = np.arange(len(rows))
        return pa.concat_arrays(taken).take(pa.array(place))


class LivingLookup:
    """Finds the rows of item ids in several segments, of whose rows some may be dead.

    An id has at most one living row: where an item was replaced, that is the new one.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments

    def rows_of(self, wanted: pa.Array) -> np.ndarray:
        """Row of each id, int64 [M]; -1 for an id that is no living item, is null, or has another type."""
        if isinstance(wanted, pa.ChunkedArray):
            wanted = wanted.combine_chunks()
        rows = np.full(len(wanted), -1, np.int64)
        for segment in self.segments:
            left = np.flatnonzero(rows < 0)
            found = segment.lookup.rows_of(wanted.take(pa.array(left)))
            known = found >= 0
            if segment.living_words is not None:
                known &= (segment.living_words.numpy()[found >> 6] >> (found & 63)) & 1 > 0
            rows[left[known]] = found[known] + segment.base
        return rows


def interleave_ranks(segments: Sequence[Segment]) -> torch.Tensor:
    """Give the ids of the last segment their ranks among those of all; what this does to the others' ranks.

    The ranks of the other segments lie in a file and are not written again: to rank `r` there belongs, among all,
    `r` and as many as the result has numbers of at most `r`.

    Raises:
        FormatError: the ranks or the order of the last segment are damaged.

    Returns:
        int64 [M], ascending: for each id of the last segment, the smallest first, how many ids of the others are below.
    """
    *others, fresh = segments
    check_ranks(fresh.manifest, fresh.artifact.arrays, str(fresh.artifact.path))
    ordered = fresh.ids.take(fresh.ids.order)
    below = np.zeros(len(ordered), np.int64)
    for segment in others:
        below += ids_below(segment.ids, ordered)
    fresh.set_ranks(fresh.ids.rank + below[fresh.ids.rank])
    return torch.from_numpy(below)


def ids_below(ids: ItemIds, wanted: pa.Array) -> np.ndarray:
    """How many of some ids are smaller than each wanted one; int64 [M]. By halving, so that few ids are read."""
    values = wanted.cast(pa.large_binary()) if ids.is_string else wanted
    low, high = np.zeros(len(wanted), np.int64), np.full(len(wanted), len(ids.order), np.int64)
    while (low < high).any():
        middle = np.minimum((low + high) // 2, len(ids.order) - 1)
        there = ids.take(ids.order[middle])
        smaller = pc.less(there.cast(pa.large_binary()) if ids.is_string else there, values)
        below = smaller.to_numpy(zero_copy_only=False) & (low < high)
        low, high = np.where(below, middle + 1, low), np.where(below | (low >= high), high, middle)
    return low
