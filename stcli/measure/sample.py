"""The queries that a benchmark is measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from stcli.filters.tree import Node


@dataclass(frozen=True)
class Sample:
    """Some usable queries of a table.

    Attributes:
        ids: of the queries, int64 or large_string.
        rows: int64 [B], their rows in the table.
        vectors: float32 [B, D], B >= 1.
        columns: the other columns that were asked for.
        filters: a text, or None, for each.
        rejected: (table row, reason) of the rows drawn that cannot be used.
    """

    ids: pa.Array
    rows: np.ndarray
    vectors: torch.Tensor
    columns: pa.RecordBatch
    filters: Sequence[str | Node | None]
    rejected: Sequence[tuple[int, str]]
