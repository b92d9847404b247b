"""Eligibility lists: item ids that a query, or the whole run, must not get, or may only get.

They act before the selection, as a filter does, so that a query still gets min(k, eligible) results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from stcli.types import Lines

if TYPE_CHECKING:
    from stcli.model.retriever import Retriever


@dataclass(frozen=True)
class Excluded:
    """Items that each query must not get.

    Attributes:
        rows: a line of int64 rows a query, in any order; -1 for an id that is no item.
        unknown: ids that are no item, over all queries.
    """

    rows: Lines
    unknown: int


def excluded_rows(model: Retriever, ids: pa.Array, lengths: np.ndarray) -> Excluded:
    """Map the excluded ids of each query to rows.

    Args:
        model: whose items they are.
        ids: of all queries, one after another; nulls are ignored.
        lengths: int64 [B], ids of each query.

    Returns:
        `Excluded` with B lines.
    """
    rows = model.lookup.rows_of(ids)
    unknown = int(np.count_nonzero(rows < 0)) - ids.null_count
    return Excluded(_lines(rows, lengths), unknown)


def distinct_rows(model: Retriever, ids: pa.Array, lengths: np.ndarray) -> tuple[Lines, np.ndarray]:
    """Map lists of ids to rows, each row of a list once.

    Args:
        model: whose items they are.
        ids: of all lists, one after another; a null is no item.
        lengths: int64 [B], ids of each list.

    Returns:
        The rows of each list, ascending, and how many ids of each are no item, int64 [B].
    """
    rows = model.lookup.rows_of(ids)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    known = rows >= 0
    keys = (owner[known] << 32) | rows[known]
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]
    missing = np.bincount(owner[~known], minlength=len(lengths))
    return _lines(keys & 0xFFFFFFFF, np.bincount(keys >> 32, minlength=len(lengths))), missing


def _lines(rows: np.ndarray, lengths: np.ndarray) -> Lines:
    """Lines that stand one after another."""
    ends = torch.from_numpy(np.cumsum(lengths))
    return Lines(torch.from_numpy(rows), ends - torch.from_numpy(lengths), ends)


def words_of(model: Retriever, ids: pa.Array) -> tuple[torch.Tensor, int]:
    """The rows of some ids as words int64 [W], and how many of the ids are no item."""
    rows = model.lookup.rows_of(ids)
    bits = np.zeros((model.num_items + 63) // 64 * 64, np.uint8)
    bits[rows[rows >= 0]] = 1
    packed = np.packbits(bits, bitorder="little").view(np.int64)
    return torch.from_numpy(packed), int((rows < 0).sum())


def all_words(model: Retriever) -> torch.Tensor:
    """Words int64 [W] in which every item's bit is set and no other."""
    words = torch.full(((model.num_items + 63) // 64,), -1, dtype=torch.int64)
    if model.num_items % 64:
        words[-1] = (1 << (model.num_items % 64)) - 1
    return words
