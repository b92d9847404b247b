"""Item ids: int64 or string, in row order, and the rows in id order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import FormatError
from stcli.storage.steering import damage


@dataclass(frozen=True)
class ItemIds:
    """The ids of the rows.

    Attributes:
        ids: int64 array, or large_string, [N] in row order; its buffers may be memory-mapped.
        order: int64 [N], rows by ascending id (signed int64, or UTF-8 bytes).
        rank: int64 or int32 [N], position of a row's id in that order.
        where: the file that they are in, for messages.
    """

    ids: pa.Array
    order: np.ndarray
    rank: np.ndarray
    where: str = "ids"

    @property
    def is_string(self) -> bool:
        """Ids are strings."""
        return not pa.types.is_integer(self.ids.type)

    def take(self, rows: np.ndarray) -> pa.Array:
        """Ids of rows int64 [M].

        Raises:
            FormatError: a row is none of 0 … N-1, or the ids are strings whose offsets are damaged.
        """
        self._check_rows(rows)
        return pc.take(self.readable, pa.array(rows), boundscheck=False)  # other threads of Python go on meanwhile

    def rows_of(self, wanted: pa.Array) -> np.ndarray:
        """Row of each id, int64 [M], -1 for what is no item, found by halving the sorted rows.

        Only log2(N) places are read for each id, so that a few are found among many without reading the ids through.

        Args:
            wanted: int64 or large_string, as the ids are.

        Raises:
            FormatError: as `take`, where `order` leads to such a row.
        """
        if not len(self.order):
            return np.full(len(wanted), -1, np.int64)
        if self.is_string:
            place = np.array([self._string_place(text.as_py().encode()) for text in wanted], np.int64)
            found = self.order[np.minimum(place, len(self.order) - 1)]
            same = pc.equal(self.take(found), wanted).to_numpy(zero_copy_only=False)
            return np.where(same, found, -1)
        values, keys = self.ids.to_numpy(), wanted.to_numpy()
        place, end = np.zeros(len(keys), np.int64), np.full(len(keys), len(self.order) - 1)
        while bool((place < end).any()):
            middle = (place + end) // 2
            rows = self.order[middle]
            self._check_rows(rows)
            below = values[rows] < keys
            place, end = np.where(below, middle + 1, place), np.where(below, end, middle)
        found = self.order[np.minimum(place, len(self.order) - 1)]
        self._check_rows(found)
        return np.where(values[found] == keys, found, -1)

    def _string_place(self, key: bytes) -> int:
        def at(place: int) -> bytes:
            text: str = self.take(self.order[place : place + 1])[0].as_py()
            return text.encode()

        return bisect_left(range(len(self.order)), key, key=at)

    @cached_property
    def readable(self) -> pa.Array:
        """The ids, once the offsets of strings have been looked through, which takes 0.3 to 0.7 ns a row.

        Raises:
            FormatError: the offsets do not ascend within the bytes; Arrow would follow them.
        """
        if self.is_string and len(self.ids):
            _, buffer, data = self.ids.buffers()
            offsets = np.frombuffer(buffer, np.int64)[self.ids.offset : self.ids.offset + len(self.ids) + 1]
            size = 0 if data is None else data.size
            if offsets[0] < 0 or offsets[-1] > size or (offsets[1:] < offsets[:-1]).any():
                raise _damaged_offsets(self.where, size)
        return self.ids

    def _check_rows(self, rows: np.ndarray) -> None:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self.ids)):
            raise damage(
                self.where, "id_order or another array", f"leads to the rows {rows.min()} … {rows.max()}, "
                f"expected rows in 0 … {len(self.ids) - 1}"
            )  # fmt: skip

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
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], where: str = "ids") -> ItemIds:
        """The inverse of `arrays`; nothing is copied. `where` is the file that they are in.

        Raises:
            FormatError: the offsets of strings do not begin and end within the bytes.
        """
        if "item_ids" in arrays:
            ids = pa.array(np.asarray(arrays["item_ids"]))
        else:
            offsets, data = arrays["item_id_offsets"], arrays["item_id_bytes"]
            buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(np.ascontiguousarray(data))]
            try:
                ids = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
            except pa.ArrowInvalid as error:  # it looks at the ends alone
                raise _damaged_offsets(where, len(data)) from error
        return cls(ids, arrays["id_order"], arrays["id_rank"], where)

    @classmethod
    def of(cls, ids: pa.Array) -> ItemIds:
        """Sort the ids of the rows."""
        order = id_order(ids)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return cls(ids, order, rank)


def _damaged_offsets(where: str, size: int) -> FormatError:
    return damage(where, "item_id_offsets", f"do not ascend within 0 … {size}")


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
