"""The items of a set as an item table again: what an artifact keeps of them, which is enough to build it anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stcli.filters.stored import load_vocabulary
from stcli.filters.vocabulary import Feature, Strings
from stcli.ops.exponents import powers_of_two
from stcli.pipeline.columns import KeptColumns
from stcli.storage.artifact import Artifact
from stcli.storage.ids import ItemIds
from stcli.storage.steering import check_all

CHUNK_ROWS = 1 << 14

ARROW_TYPES = {
    "string": pa.large_string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
}


class ItemReader:
    """The items of one artifact of a set.

    Ids, kept columns and filter values come back exactly, though a feature's values ascend and stand once each;
    embeddings as they were packed, and codes times scales where none were.

    Args:
        part: an opened artifact.
        id_column, embedding_column: what these columns are called.
        lists: features that are lists in some part of the set.
    """

    def __init__(self, part: Artifact, id_column: str, embedding_column: str, lists: set[str]) -> None:
        self.arrays, self._dim = part.arrays, int(part.manifest["dim"])
        check_all(part.manifest, part.arrays, str(part.path))
        self._ids = ItemIds.from_arrays(part.arrays, str(part.path))
        self._kept = KeptColumns(part)
        self._names = id_column, embedding_column
        self._features = {
            feature.name: (feature, values_of(feature), feature.name in lists)
            for feature in load_vocabulary(part.arrays, part.manifest["filter"]).features
        }

    def batches(self, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
        """Rows int64 [M], as columns of the names that the index was built from."""
        for start in range(0, len(rows), CHUNK_ROWS):
            some = rows[start : start + CHUNK_ROWS]
            terms, lengths = self._terms(some)
            columns: dict[str, Any] = {
                name: _feature_column(feature, values, is_list, terms, lengths)
                for name, (feature, values, is_list) in self._features.items()
            }
            # What was kept is more exact than a feature, and an embedding that was kept than a packed one.
            columns[self._names[0]], columns[self._names[1]] = self._ids.take(some), self._embeddings(some)
            columns |= {name: self._kept.take(name, some) for name in self._kept.schema.names}
            yield pa.record_batch(columns)

    def _embeddings(self, rows: np.ndarray) -> pa.Array:
        arrays = self.arrays
        if "embedding_values" in arrays:
            found = torch.from_numpy(arrays["embedding_values"][rows]).float()
            if "embedding_exponents" in arrays:
                found *= powers_of_two(torch.from_numpy(arrays["embedding_exponents"][rows]))[:, None]
        else:
            found = torch.from_numpy(arrays["codes"][rows, : self._dim]).float()
            found *= torch.from_numpy(arrays["scales"][rows])[:, None]
        return pa.FixedSizeListArray.from_arrays(pa.array(found.numpy().ravel()), found.shape[1])

    def _terms(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Terms of rows, int32 one row after another, and how many each has."""
        offsets = self.arrays["term_offsets"]
        lengths = offsets[rows + 1] - offsets[rows]
        ends = np.cumsum(lengths)
        places = np.arange(int(ends[-1])) + np.repeat(offsets[rows] - (ends - lengths), lengths)
        return self.arrays["term_values"][places], lengths


def values_of(feature: Feature) -> pa.Array:
    """The values of a feature's terms, in order."""
    kind = ARROW_TYPES[feature.kind]
    if isinstance(feature.values, Strings):
        buffers = [
            None,
            *(pa.py_buffer(np.ascontiguousarray(part)) for part in (feature.values.offsets, feature.values.data)),
        ]
        return pa.Array.from_buffers(kind, len(feature.values), buffers)
    values = pa.array(np.asarray(feature.values))
    return values.cast(pa.int32()).cast(kind) if feature.kind == "date" else values.cast(kind)


def _feature_column(
    feature: Feature, values: pa.Array, is_list: bool, terms: np.ndarray, lengths: np.ndarray
) -> pa.Array:
    mine = (terms >= feature.first_term) & (terms < feature.end_term)
    owner = np.repeat(np.arange(len(lengths)), lengths)[mine]
    ranks = terms[mine] - feature.first_term
    if is_list:
        counts = np.bincount(owner, minlength=len(lengths))
        offsets = np.concatenate(([0], np.cumsum(counts)))
        return pa.LargeListArray.from_arrays(pa.array(offsets), values.take(pa.array(ranks)))
    places = np.zeros(len(lengths), np.int64)
    places[owner] = ranks
    missing = np.ones(len(lengths), bool)
    missing[owner] = False
    return values.take(pa.array(places, mask=missing))
