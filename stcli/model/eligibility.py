"""Eligibility lists: item ids that a query, or the whole run, must not get, or may only get.

They act before the selection, as a filter does, so that a query still gets min(k, eligible) results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from stcli.model.corpus import Corpus, Words
from stcli.types import Lines


@dataclass(frozen=True)
class Excluded:
    """Items that each query must not get.

    Attributes:
        rows: a line of int64 rows a query, in any order; -1 for an id that is no item.
        unknown: ids that are no item, over all queries.
    """

    rows: Lines
    unknown: int


def excluded_rows(model: Corpus, ids: pa.Array, lengths: np.ndarray) -> Excluded:
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


def with_own(excluded: Excluded | None, own: np.ndarray) -> Excluded:
    """Also exclude one row of each query, int64 [B]; -1 for none."""
    if excluded is None:
        return Excluded(_lines(own, np.ones(len(own), np.int64)), 0)
    lines = excluded.rows
    lengths = (lines.ends - lines.begins).numpy()
    ends = np.cumsum(lengths)
    places = np.repeat(lines.begins.numpy() - (ends - lengths), lengths) + np.arange(lengths.sum())
    values = np.insert(lines.values.numpy()[places], ends, own)
    return Excluded(_lines(values, lengths + 1), excluded.unknown)


def distinct_rows(model: Corpus, ids: pa.Array, lengths: np.ndarray) -> tuple[Lines, np.ndarray]:
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


def words_of(model: Corpus, ids: pa.Array) -> tuple[Words, int]:
    """The rows of some ids as words, and how many of the ids are no item."""
    rows = model.lookup.rows_of(ids)
    words = []
    for segment in model.segments:
        bits = np.zeros(64 * segment.num_words, np.uint8)
        bits[rows[(rows >= segment.base) & (rows < segment.end)] - segment.base] = 1
        words.append(torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int64)))
    return tuple(words), int((rows < 0).sum())


def all_words(model: Corpus) -> Words:
    """Words in which every row's bit is set and no other."""
    words = []
    for segment in model.segments:
        every = torch.full((segment.num_words,), -1, dtype=torch.int64)
        if segment.num_rows % 64:
            every[-1] = (1 << (segment.num_rows % 64)) - 1
        words.append(every)
    return tuple(words)
