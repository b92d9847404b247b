"""Item ids: int64 or string, in row order, and the rows in id order."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class ItemIds:
    """The ids of the rows.

    Attributes:
        ids: int64 array, or large_string, [N] in row order; its buffers may be memory-mapped.
        order: int64 [N], rows by ascending id (signed int64, or UTF-8 bytes).
        rank: int64 or int32 [N], position of a row's id in that order.
    """

    ids: pa.Array
    order: np.ndarray
    rank: np.ndarray

    @property
    def is_string(self) -> bool:
        """Ids are strings."""
        return not pa.types.is_integer(self.ids.type)

    def take(self, rows: np.ndarray) -> pa.Array:
        """Ids of rows int64 [M], each in 0 … N-1, which is not checked."""
        return pc.take(self.ids, pa.array(rows), boundscheck=False)  # other threads of Python go on meanwhile

    def rows_of(self, wanted: pa.Array) -> np.ndarray:
        """Row of each id, int64 [M], -1 for what is no item, found by halving the sorted rows.

        Only log2(N) places are read for each id, so that a few are found among many without reading the ids through.

        Args:
            wanted: int64 or large_string, as the ids are.
        """
        if not len(self.order):
            return np.full(len(wanted), -1, np.int64)
        if self.is_string:
            place = np.array([self._string_place(text.as_py().encode()) for text in wanted], np.int64)
            found = self.order[np.minimum(place, len(self.order) - 1)]
            same = pc.equal(self.ids.take(pa.array(found)), wanted).to_numpy(zero_copy_only=False)
            return np.where(same, found, -1)
        values, keys = self.ids.to_numpy(), wanted.to_numpy()
        place, end = np.zeros(len(keys), np.int64), np.full(len(keys), len(self.order) - 1)
        while bool((place < end).any()):
            middle = (place + end) // 2
            below = values[self.order[middle]] < keys
            place, end = np.where(below, middle + 1, place), np.where(below, end, middle)
        found = self.order[np.minimum(place, len(self.order) - 1)]
        return np.where(values[found] == keys, found, -1)

    def _string_place(self, key: bytes) -> int:
        return bisect_left(
            range(len(self.order)), key, key=lambda place: self.ids[int(self.order[place])].as_py().encode()
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are stored; see FORMAT.md."""
        stored = {"id_order": self.order, "id_rank": self.rank}
        if not self.is_string:
            return {"item_ids": self.ids.to_numpy(), **stored}
        _, offsets, data = self.ids.buffers()
        place = np.frombuffer(offsets, np.int64)[self.ids.offset : self.ids.offset + len(self.ids) + 1]
        raw = np.frombuffer(data, np.uint8)[place[0] : place[-1]] if place[-1] > place[0] else np.zeros(0, np.uint8)
        return {"item_id_bytes": raw, "item_id_offsets": place - place[0], **stored}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ItemIds:
        """The inverse of `arrays`; nothing is copied."""
        if "item_ids" in arrays:
            ids = pa.array(np.asarray(arrays["item_ids"]))
        else:
            offsets, data = arrays["item_id_offsets"], arrays["item_id_bytes"]
            buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
            ids = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
        return cls(ids, arrays["id_order"], arrays["id_rank"])

    @classmethod
    def of(cls, ids: pa.Array) -> ItemIds:
        """Sort the ids of the rows."""
        order = id_order(ids)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return cls(ids, order, rank)


def id_order(ids: pa.Array) -> np.ndarray:
    """Rows by ascending id; equal ids keep their order. int64 [N]."""
    if pa.types.is_integer(ids.type):
        return np.argsort(ids.to_numpy(), kind="stable")
    return pc.sort_indices(ids.cast(pa.large_binary())).to_numpy().astype(np.int64)


def repeated(ids: pa.Array, order: np.ndarray) -> np.ndarray:
    """Positions (ascending) whose id stands at an earlier position already."""
    if len(order) < 2:
        return np.zeros(0, np.int64)
    ordered = ids.take(pa.array(order))
    same = pc.equal(ordered.slice(1), ordered.slice(0, len(order) - 1)).to_numpy(zero_copy_only=False)
    return np.sort(order[1:][same])
