"""Collecting the features of a table: values become terms while the rows stream by.

Values get temporary ids in the order in which they are met; when all rows are known, the values of
each feature are sorted and `final_ids` maps a temporary id to its term.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import InputError
from stcli.filters.ragged import places
from stcli.filters.vocabulary import Feature, Strings
from stcli.storage.columns import STORED_TYPE, FeatureValues

PENDING_VALUES = 1 << 21
"""Values held before they are looked up together: the table of known values is hashed once for each such group."""


@dataclass
class _Known:
    """Values of one feature met so far, and the temporary id of each."""

    values: pa.Array
    ids: np.ndarray
    multi: bool = False


class TermCollector:
    """Streams the features of a table into one file of temporary term ids.

    Args:
        kinds: feature name -> kind, in any order; kept sorted by name.
        folder: where the file is written.
    """

    def __init__(self, kinds: dict[str, str], folder: Path) -> None:
        self.kinds = dict(sorted(kinds.items()))
        self._path = folder / "terms.bin"
        self._known = {
            name: _Known(pa.array([], STORED_TYPE[kind]), np.zeros(0, np.int32)) for name, kind in self.kinds.items()
        }
        self._pending: dict[str, list[FeatureValues]] = {name: [] for name in self.kinds}
        self._pending_values = self._pending_rows = 0
        self._lengths: list[np.ndarray] = []
        self._num_ids = 0
        self.dropped = 0

    def add(self, batch: dict[str, FeatureValues], rows: int) -> None:
        """Add the features of a batch of rows (every feature, the same rows)."""
        self._pending_rows += rows
        for name, values in batch.items():
            self._pending[name].append(values)
            self._pending_values += len(values.values)
            self.dropped += values.dropped
        if self._pending_values >= max(PENDING_VALUES, self._num_ids):
            self._flush()

    def _flush(self) -> None:
        if not self._pending_rows:
            return
        codes, lengths = [], []
        for name, pending in self._pending.items():
            lengths.append(np.concatenate([item.lengths for item in pending]))
            codes.append(self._encode(name, pa.chunked_array([item.values for item in pending])))
            self._known[name].multi |= bool(lengths[-1].max(initial=0) > 1)
            pending.clear()
        total = np.sum([np.zeros(self._pending_rows, np.int64), *lengths], axis=0)
        starts = np.concatenate(([0], np.cumsum(total)[:-1]))
        merged = np.empty(int(total.sum()), np.int32)
        for code, length in zip(codes, lengths, strict=True):
            merged[places(starts, length)] = code
            starts = starts + length
        with self._path.open("ab") as file:
            file.write(merged.data)
        self._lengths.append(total.astype(np.int32))
        self._pending_values = self._pending_rows = 0

    def _encode(self, name: str, values: pa.ChunkedArray) -> np.ndarray:
        encoded = pc.dictionary_encode(values)
        if encoded.num_chunks == 0 or not len(encoded):
            return np.zeros(0, np.int32)
        local = encoded.chunk(0).dictionary
        known = self._known[name]
        place = pc.index_in(local, value_set=known.values)
        fresh = place.is_null().to_numpy(zero_copy_only=False)
        ids = np.empty(len(local), np.int32)
        ids[~fresh] = known.ids[pc.drop_null(place).to_numpy()]
        count = int(fresh.sum())
        if self._num_ids + count > 2**31 - 1:
            raise InputError(
                "the features have more than 2^31 - 1 distinct values; leave the widest out of --feature-columns"
            )
        if count:
            ids[fresh] = np.arange(self._num_ids, self._num_ids + count)
            self._num_ids += count
            known.values = pa.concat_arrays([known.values, local.filter(pa.array(fresh))])
            known.ids = np.concatenate([known.ids, ids[fresh]])
        return np.concatenate([ids[chunk.indices.to_numpy()] for chunk in encoded.chunks])

    def finish(self) -> CollectedTerms:
        """Sort the values; the collector is used up."""
        self._flush()
        final_ids = np.zeros(self._num_ids, np.int32)
        features = []
        first = 0
        for name, kind in self.kinds.items():
            known = self._known.pop(name)
            order = pc.sort_indices(known.values).to_numpy()
            final_ids[known.ids[order]] = np.arange(first, first + len(order), dtype=np.int32)
            values = _values_of(known.values.take(pa.array(order)), kind)
            features.append(Feature(name, kind, first, len(order), known.multi, values))
            first += len(order)
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
        size = int(offsets[-1])
        raw = np.memmap(self._path, np.int32, "r", shape=(size,)) if size else np.zeros(0, np.int32)
        return CollectedTerms(tuple(features), final_ids, raw, offsets)


@dataclass(frozen=True)
class CollectedTerms:
    """Terms of all rows in table order.

    Attributes:
        features: of the vocabulary, with values and term intervals.
        final_ids: int32 [V], temporary id -> term.
        raw: int32 temporary ids, row after row, perhaps repeated within a row.
        offsets: int64 [N + 1] into `raw`.
    """

    features: tuple[Feature, ...]
    final_ids: np.ndarray
    raw: np.ndarray
    offsets: np.ndarray

    def of_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Terms of some table rows: (int32 terms, ascending and distinct within a row; int64 counts [rows])."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        if not int(lengths.sum()):
            return np.zeros(0, np.int32), np.zeros(len(rows), np.int64)
        terms = self.final_ids[self.raw[places(self.offsets[rows], lengths)]]
        keys = np.repeat(np.arange(len(rows), dtype=np.int64) << 32, lengths) | terms
        keys.sort()
        keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))]
        return (keys & 0xFFFFFFFF).astype(np.int32), np.bincount(keys >> 32, minlength=len(rows)).astype(np.int64)


def _values_of(values: pa.Array, kind: str) -> np.ndarray | Strings:
    if kind != "string":
        return values.to_numpy()
    _, offsets, data = values.buffers()
    place = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
    raw = (
        np.frombuffer(data, np.uint8)[place[0] : place[-1]]
        if data is not None and len(place)
        else np.zeros(0, np.uint8)
    )
    return Strings(raw, place - place[0] if len(place) else np.zeros(1, np.int64))
