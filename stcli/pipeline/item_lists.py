"""Item lists of a whole run: the only items that may be returned, and items that never are."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from stcli.config import RetrieveConfig
from stcli.errors import InputError
from stcli.model.corpus import Words
from stcli.model.eligibility import all_words, words_of
from stcli.model.retriever import Retriever
from stcli.storage.columns import BadRows, id_type, read_ids
from stcli.storage.parquet import open_table

BATCH_ROWS = 1 << 16


class ItemLists:
    """`--only-items` and `--exclude-items`, read and joined.

    Attributes:
        allowed: the rows that any query may get, or None for all.
        fingerprints: of the files.
        warnings: how many ids are no items.
    """

    def __init__(self, model: Retriever, config: RetrieveConfig) -> None:
        self.allowed: Words | None = None
        self.fingerprints: dict[str, Any] = {}
        self.warnings: list[str] = []
        for option, path in (("--only-items", config.only_items), ("--exclude-items", config.exclude_items)):
            if path is None:
                continue
            words = self._read(model, option, path, config.item_id_column)
            every = all_words(model)
            if option == "--exclude-items":
                words = tuple(here & ~barred for here, barred in zip(every, words, strict=True))
            self.allowed = tuple(here & listed for here, listed in zip(self.allowed or every, words, strict=True))

    def _read(self, model: Retriever, option: str, path: str, column: str) -> Words:
        table = open_table(path, [column])
        kind = id_type(table.column_type(column, "--item-id-column"), f"{table.name}: column {column!r}")
        if kind.is_string != model.ids.is_string:
            raise InputError(f"{table.name}: column {column!r} holds {kind.name} ids, the artifact has the other kind")
        self.fingerprints[option] = table.fingerprint()
        ids = [_usable_ids(batch.column(0)) for _, batch in table.batches([column], BATCH_ROWS)]
        words, unknown = words_of(model, pa.concat_arrays(ids) if ids else pa.array([], pa.int64()))
        if unknown:
            self.warnings.append(f"{option}: {unknown} of {table.num_rows} ids are no items of the index")
        return words


def _usable_ids(column: pa.Array) -> pa.Array:
    """The ids without nulls and numbers that no item can have."""
    bad = BadRows.none(len(column))
    return read_ids(column, bad).filter(pa.array(~bad.bad))
