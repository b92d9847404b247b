"""Filter texts to codes in C++, thousands a call; what it does not understand is left to the parser in Python.

A condition costs 0.2 to 0.7 us there, and 12 to 40 us in `parse`, `resolve` and `Bounder`, which are the definition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from stcli.filters.layout import Layout
from stcli.filters.parse import MAX_BYTES
from stcli.filters.pieces import Code, lines
from stcli.filters.ragged import offsets_of
from stcli.filters.tree import MAX_DEPTH, MAX_TERMS
from stcli.filters.vocabulary import Feature, Strings, Vocabulary
from stcli.ops import native

_KINDS = ("string", "integer", "float", "boolean", "date", "timestamp")


class TextReader:
    """Writes filter texts over one index.

    Args:
        vocabulary: the terms of the index.
        layout: its bit matrix.
    """

    def __init__(self, vocabulary: Vocabulary, layout: Layout) -> None:
        self._made_of = vocabulary, layout  # keeps the arrays whose addresses are in the table
        self._table = torch.tensor([_row(feature, layout) for feature in vocabulary.features], dtype=torch.int64)
        names = b"".join(feature.name.encode() for feature in vocabulary.features)
        self._names = torch.from_numpy(np.frombuffer(names + b"\0", np.uint8).copy())
        self._own_row, self._paper = layout.plan.own_row, layout.paper

    def __reduce__(self) -> tuple[object, ...]:
        return TextReader, self._made_of  # a copy has addresses of its own

    def codes(self, texts: Sequence[str]) -> Iterator[tuple[str, Code]]:
        """Write those texts that are plain and correct; the others, and blank ones, are left out."""
        try:
            encoded = [text.encode() for text in texts]
        except UnicodeEncodeError:  # half of a surrogate pair: Python says in which text
            return
        if not texts or native.library() is None:
            return
        offsets = torch.from_numpy(offsets_of(np.fromiter(map(len, encoded), np.int64, len(texts))))
        data = torch.from_numpy(np.frombuffer(b"".join(encoded) + b"\0", np.uint8).copy())
        sizes = torch.empty(6, dtype=torch.int64)
        handle = sizes[5:]
        limits = (MAX_BYTES, MAX_DEPTH, MAX_TERMS)
        matrix = (self._table, len(self._table), self._names, self._own_row, int(self._paper))
        native.call("stcli_read_filters", data, offsets, len(texts), *matrix, *limits, sizes, handle)
        types = (torch.int8, torch.int64, torch.int8, torch.int32, torch.int64)
        parts = [torch.empty(size, dtype=kind) for size, kind in zip(sizes.tolist(), types, strict=False)]
        ends = torch.empty(len(texts), len(types) + 2, dtype=torch.int64)
        native.call("stcli_take_filters", int(handle), *parts, ends)
        *stops, read, unknown = ends.numpy().T
        columns = [lines(part.numpy(), np.concatenate(([0], stop))) for part, stop in zip(parts, stops, strict=True)]
        for text, code in zip(texts, zip(*columns, read.tolist(), unknown.tolist(), strict=True), strict=True):
            if code[-2] >= 0:
                yield text, Code._make(code)


def _row(feature: Feature, layout: Layout) -> list[int]:
    """A feature as `FilterFeature` in `kernels/filter_values.h`."""
    values, kind, ends, num_bytes = feature.values, feature.kind, 0, 0
    if isinstance(values, Strings):
        address, ends = values.data.ctypes.data, values.offsets.ctypes.data
        num_bytes = len(values.data)
    else:
        address = values.ctypes.data
        if kind in ("integer", "float"):
            kind = "float" if values.dtype == np.float64 else "integer"
    return [_KINDS.index(kind), *layout.numbers(feature), address, ends, num_bytes, len(feature.name.encode())]
