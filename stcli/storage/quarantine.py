"""Bad rows: fail at the first, or set them aside with their reason in a Parquet file beside the output."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stcli.errors import InputError
from stcli.storage import atomic
from stcli.storage.columns import BadRows
from stcli.storage.parquet import Table

SCHEMA = pa.schema([("row", pa.int64()), ("id", pa.string()), ("reason", pa.string())])


def rejected_path(output: Path) -> Path:
    """The file that lists the rejected rows of an output: `OUT.rejected.parquet`."""
    return output.with_name(output.name + ".rejected.parquet")


class Quarantine:
    """Collects the rows of one table that cannot be used.

    Args:
        table: where they come from, for messages.
        mode: "fail" raises at the first bad row; "quarantine" keeps a list of them.
        max_fraction: more than this share of all rows is an error in both modes.
    """

    def __init__(self, table: Table, mode: str, max_fraction: float) -> None:
        self._table, self._mode, self._max = table, mode, max_fraction
        self.rows: list[int] = []
        self._ids: list[str | None] = []
        self._reasons: list[str] = []

    def __len__(self) -> int:
        return len(self.rows)

    def entries(self, start: int = 0) -> list[tuple[int, str | None, str]]:
        """(row, id, reason) of the bad rows noted, from the `start`-th on."""
        return list(zip(self.rows[start:], self._ids[start:], self._reasons[start:], strict=True))

    def restore(self, entries: Iterable[tuple[int, str | None, str]]) -> None:
        """Take over the rows that were rejected before an interruption, unless they are noted already."""
        known = set(self.rows)
        for row, row_id, reason in entries:
            if row not in known:
                self.add(row, row_id, reason)

    def take(self, first_row: int, bad: BadRows, ids: pa.Array) -> None:
        """Note the bad rows of a batch that starts at table row `first_row`.

        Raises:
            InputError: there is one and the mode is "fail", or there are too many.
        """
        for local in sorted(bad.reasons):
            self.add(first_row + local, ids[local].as_py(), bad.reasons[local])

    def add(self, row: int, row_id: object, reason: str) -> None:
        """Note one bad row; as `take`."""
        if self._mode == "fail":
            link = "\n" if "\n" in reason else "; "  # what follows the caret under a filter has a line of its own
            raise InputError(
                f"{self._table.name}: {self._table.where(row)} (id {row_id!r}): {reason}{link}"
                "mend it, or use --bad-rows quarantine to set such rows aside"
            )
        self.rows.append(row)
        self._ids.append(None if row_id is None else str(row_id))
        self._reasons.append(reason)
        first = reason.split("\n")[0]  # the caret under a filter has no place inside a sentence
        if len(self.rows) > self._max * max(self._table.num_rows, 1):
            raise InputError(
                f"{self._table.name}: {len(self.rows)} bad rows so far, the last {self._table.where(row)} ({first}); "
                f"more than --max-bad-fraction {self._max:g} of {self._table.num_rows} rows, so nothing was written"
            )

    def write(self, output: Path) -> Path | None:
        """Write the list beside `output`, or remove an old one if there were none; the path if written."""
        path = rejected_path(output)
        if not self.rows:
            path.unlink(missing_ok=True)
            return None
        order = pa.array(np.argsort(self.rows, kind="stable"))
        table = pa.table([self.rows, self._ids, self._reasons], schema=SCHEMA).take(order)
        with atomic.new_file(path, overwrite=True) as partial:
            pq.write_table(table, partial)
        return path
