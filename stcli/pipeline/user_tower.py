"""User vectors of requests by the tower of an artifact, from history and context columns of the query table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError
from stcli.model.history import History
from stcli.model.program import ProgramTower
from stcli.model.retriever import Retriever
from stcli.model.tower import EVENTS, Tower
from stcli.pipeline.features import check_column, column_numbers
from stcli.storage.columns import BadRows
from stcli.storage.parquet import Table

HISTORY_COLUMN = "uih__item_id"
"""Query column with the item ids of a user's history, oldest first."""

TIME_COLUMN = "uih__timestamp"
"""Query column with the times of these events: seconds as integers, or timestamps."""

WHERE = "the artifact's tower"


@dataclass
class UserTower:
    """Reads what a tower needs of a query table and computes the user vectors.

    Attributes:
        model: the packed model, whose embeddings a history is read as.
        tower: of the same artifact.
    """

    model: Retriever
    tower: Tower | ProgramTower

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the vectors; () for one without a name."""
        return self.tower.config.tasks

    @property
    def columns(self) -> list[str]:
        """The query columns that are read."""
        config = self.tower.config
        history = [HISTORY_COLUMN] if config.max_history else []
        times = [TIME_COLUMN] if config.reads_times else []
        return history + times + [column.name for column in config.columns]

    def check(self, table: Table) -> None:
        """Check the columns of a query table.

        Raises:
            InputError: one is missing or has a type that cannot be read.
        """
        option = "the tower that is packed in the artifact"
        config = self.tower.config
        if config.max_history:
            kind = table.column_type(HISTORY_COLUMN, option)
            inner = kind.value_type if _is_list(kind) else None
            text = inner is not None and (pa.types.is_string(inner) or pa.types.is_large_string(inner))
            if inner is None or text != self.model.ids.is_string or not (text or pa.types.is_integer(inner)):
                expected = "strings" if self.model.ids.is_string else "integers"
                raise InputError(
                    f"{table.name}: column {HISTORY_COLUMN!r} is {kind}; expected a list of item ids, {expected} as in "
                    "the item table"
                )
        if config.reads_times:
            kind = table.column_type(TIME_COLUMN, option)
            inner = kind.value_type if _is_list(kind) else kind
            if not _is_list(kind) or not (pa.types.is_integer(inner) or pa.types.is_timestamp(inner)):
                raise InputError(
                    f"{table.name}: column {TIME_COLUMN!r} is {kind}; expected a list of seconds or timestamps, "
                    "one an event"
                )
        for column in config.columns:
            kind = table.column_type(column.name, option)
            check_column(column, kind, f"{table.name}: column {column.name!r}")

    def read(self, batch: pa.RecordBatch, bad: BadRows) -> tuple[np.ndarray, int]:
        """The user vectors of a batch, float32 [rows, T, D], and how many events have an item that is not in the index.

        Rows whose times are not as many as their events, or hold a null, are marked bad; their vectors are zero. A null
        history is an empty one. Unknown items are left out, then the last `max_history` events are read.
        """
        config, rows = self.tower.config, batch.num_rows
        features = [
            column_numbers(column, _plain(batch.column(column.name)), self.tower.weights, WHERE)
            for column in config.columns
        ]
        numbers = torch.cat(features, 1) if features else torch.zeros(rows, 0)
        place = self.model.device
        if not config.max_history:
            return self._finite(self.tower(None, numbers.to(place)).cpu().numpy(), bad), 0
        items, times, lengths, unknown = self._events(batch, bad)
        offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))))
        vectors = []
        step = max(EVENTS // config.max_history, 1)
        for start in range(0, max(rows, 1), step):
            stop = min(start + step, rows)
            part = slice(int(offsets[start]), int(offsets[stop]))
            history = History(
                self._embeddings(items[part]).to(place),
                (offsets[start : stop + 1] - offsets[start]).to(place),
                None if times is None else times[part].to(place),
            )
            vectors.append(self.tower(history, numbers[start:stop].to(place)).cpu())
        return self._finite(torch.cat(vectors).numpy(), bad), unknown

    def _embeddings(self, rows: torch.Tensor) -> torch.Tensor:
        """The packed embeddings of rows int64 [S]."""
        return self.model.embeddings_of(rows)

    @staticmethod
    def _finite(found: np.ndarray, bad: BadRows) -> np.ndarray:
        wrong = ~np.isfinite(found).all((1, 2))
        bad.mark(wrong, "the tower gives a vector that is not finite")
        found[bad.bad] = 0
        return found

    def _events(self, batch: pa.RecordBatch, bad: BadRows) -> tuple[torch.Tensor, torch.Tensor | None, np.ndarray, int]:
        """Rows and times (int64 [S]) of the events that are read, and how many each request has (int64 [rows]).

        Last, the events that are left out since their item is not in the index.
        """
        config = self.tower.config
        column = batch.column(HISTORY_COLUMN)
        lengths = _lengths(column)
        items = self.model.lookup.rows_of(column.flatten())
        seconds = np.zeros(0, np.int64)
        if config.reads_times:
            stamps = batch.column(TIME_COLUMN)
            counts, flat = _lengths(stamps), _seconds(stamps.flatten())
            other = counts != lengths
            bad.mark(
                other,
                [
                    f"column {TIME_COLUMN!r} has {there} values, {HISTORY_COLUMN!r} {here}"
                    for there, here in zip(counts[other], lengths[other], strict=True)
                ],
            )
            holes = np.zeros(len(counts), bool)
            holes[np.repeat(np.arange(len(counts)), counts)[flat.is_null().to_numpy(zero_copy_only=False)]] = True
            bad.mark(holes, f"column {TIME_COLUMN!r} holds a null")
            # Rows that are bad read nothing, so that the two lists fit.
            keep = ~(other | holes)
            items = items[np.repeat(keep, lengths)]
            seconds = pc.fill_null(flat, 0).to_numpy(zero_copy_only=False)[np.repeat(keep, counts)]
            lengths = np.where(keep, lengths, 0)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        known = items >= 0
        lengths = np.bincount(owner[known], minlength=len(lengths))
        ends = np.cumsum(lengths)
        late = np.arange(int(known.sum())) >= np.repeat(ends - config.max_history, lengths)
        items = items[known][late]
        times = torch.from_numpy(seconds[known][late]) if config.reads_times else None
        return torch.from_numpy(items), times, np.minimum(lengths, config.max_history), int((~known).sum())


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _lengths(column: pa.Array) -> np.ndarray:
    """Values of each list, int64 [rows]; null is empty."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def _seconds(values: pa.Array) -> pa.Array:
    """Times as int64 seconds."""
    if pa.types.is_timestamp(values.type):
        return values.cast(pa.timestamp("s", values.type.tz), safe=False).cast(pa.int64())
    return values.cast(pa.int64())
