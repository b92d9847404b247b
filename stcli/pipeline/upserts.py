"""The rows of an update: new versions of items, checked like those of a build, and ids to delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stcli.config import BuildConfig, Progress
from stcli.errors import InputError
from stcli.index.ingest import ItemSchema, check_schema
from stcli.pipeline.build_index import VERSION_METADATA
from stcli.pipeline.columns import KeptColumns
from stcli.pipeline.item_tower import ItemTower
from stcli.storage.artifact import Artifact
from stcli.storage.columns import BadRows, id_type, read_ids
from stcli.storage.ids import id_order, repeated
from stcli.storage.parquet import Table, open_table
from stcli.storage.quarantine import Quarantine
from stcli.storage.table_writer import TableWriter, plain_type

BATCH_ROWS = 1 << 14


class Upserts:
    """A table of new or changed items, checked against the index that they go beside.

    Args:
        source: its path or URI.
        config: options that build an index like the main one.
        main: the main artifact, or its first shard.

    Raises:
        InputError: a column is missing or of another kind than in the index, or the embeddings are others.
    """

    def __init__(self, source: str | Path, config: BuildConfig, main: Artifact) -> None:
        vectors = [config.embedding_column] if config.item_tower is None else []
        features = config.feature_columns or ()
        self.table: Table = open_table(source, [config.id_column, *vectors, *features, *config.keep_columns])
        self.config, self.main = config, main
        self.schema: ItemSchema | None = None
        if self.table.num_rows:
            tower = None if config.item_tower is None else ItemTower(self.table, config.item_tower)
            self._check_tower(tower)
            self.schema = check_schema(self.table, config, tower)
            self._check(self.schema)

    @property
    def quarantine(self) -> Quarantine:
        """Where its bad rows go."""
        return Quarantine(self.table, self.config.bad_rows, self.config.max_bad_fraction)

    def _check_tower(self, tower: ItemTower | None) -> None:
        built_with = self.main.manifest.get("item_tower")
        if built_with is None and tower is not None:
            raise InputError(
                "--item-tower: the artifact was built from embeddings, not with an item tower; leave it out"
            )
        if built_with is not None and tower is None:
            raise InputError("the artifact was built with an item tower; give the same one with --item-tower")
        if tower is not None and tower.fingerprint != built_with:
            raise InputError(f"--item-tower {tower.path}: is another tower than the artifact was built with")

    def _check(self, schema: ItemSchema) -> None:
        name, manifest = self.table.name, self.main.manifest
        if schema.ids_are_strings != (manifest["ids"] == "string"):
            found = "string" if schema.ids_are_strings else "int64"
            raise InputError(
                f"{name}: column {self.config.id_column!r} holds {found} ids, the artifact has {manifest['ids']} ids"
            )
        if schema.vectors.dim != manifest["dim"]:
            raise InputError(
                f"{name}: embeddings have {schema.vectors.dim} dimensions, those of the artifact {manifest['dim']}; "
                "make them with the model that made the others, or build a new index"
            )
        for feature in manifest["filter"]["features"]:
            kind = schema.features[feature["name"]][0]
            if kind != feature["kind"]:
                raise InputError(
                    f"{name}: column {feature['name']!r} is {kind}, the feature of the artifact is {feature['kind']}; "
                    "write it with that type, or build a new index"
                )
        stated = (self.table.schema.metadata or {}).get(VERSION_METADATA, b"").decode() or None
        ours = manifest["embedding_version"]
        if stated is not None and ours is not None and stated != ours:
            raise InputError(
                f"{name}: has embeddings of version {stated!r}, the artifact of {ours!r}; scores of two versions "
                "cannot be compared, build a new index"
            )

    def columns(self) -> pa.Schema:
        """The columns that a build reads, without dictionaries; those that are kept have the types of the artifact."""
        assert self.schema is not None
        names = [self.config.id_column, *self.schema.vectors.columns, *self.schema.features, *self.config.keep_columns]
        kept = KeptColumns(self.main).schema
        kinds = {field.name: plain_type(field.type) for field in self.table.schema}
        kinds |= {field.name: field.type for field in kept}
        return pa.schema([(name, kinds[name]) for name in dict.fromkeys(names)])

    def _repeats(self) -> np.ndarray:
        """The rows whose id stands at an earlier row already, bool [rows]."""
        parts = []
        for _, batch in self.table.batches([self.config.id_column], BATCH_ROWS):
            parts.append(read_ids(batch.column(0), BadRows.none(batch.num_rows)))
        ids = pa.concat_arrays(parts)
        again = np.zeros(len(ids), bool)
        again[repeated(ids, id_order(ids))] = True
        return again

    def write(self, writer: TableWriter, quarantine: Quarantine, progress: Progress) -> pa.Array:
        """Write the usable rows; their ids.

        Raises:
            InputError: a bad row in mode "fail", or too many of them.
        """
        assert self.schema is not None
        again = self._repeats()
        read = list(dict.fromkeys([*writer.schema.names, self.config.id_column]))
        ids = []
        for row, batch in self.table.batches(read, BATCH_ROWS):
            bad = BadRows.none(batch.num_rows)
            found = read_ids(batch.column(self.config.id_column), bad, self.config.id_column)
            self.schema.vectors.read(batch, bad)
            bad.mark(again[row : row + batch.num_rows], "id occurs at an earlier row already")
            quarantine.take(row, bad, batch.column(self.config.id_column))
            good = pa.array(~bad.bad)
            writer.add(batch.filter(good), self.table.name)
            ids.append(found.filter(good))
            progress("read", row + batch.num_rows, self.table.num_rows, "items")
        return pa.concat_arrays(ids)


def read_deletes(source: str | Path, column: str, main: Artifact) -> pa.Array:
    """The distinct ids of a table, int64 or large_string; nulls, and numbers that no item can have, are left out.

    Raises:
        InputError: no such column, or ids of the other kind.
    """
    table = open_table(source, [column])
    kind = id_type(table.column_type(column, "--id-column"), f"{table.name}: column {column!r}")
    if kind.name != main.manifest["ids"]:
        raise InputError(
            f"{table.name}: column {column!r} holds {kind.name} ids, the artifact has {main.manifest['ids']} ids"
        )
    parts: list[Any] = [pa.array([], pa.large_string() if kind.is_string else pa.int64())]
    for _, batch in table.batches([column], BATCH_ROWS):
        bad = BadRows.none(batch.num_rows)
        ids = read_ids(batch.column(0), bad)
        parts.append(ids.filter(pa.array(~bad.bad)))
    return pa.concat_arrays(parts).unique()
