"""The results directory: Parquet parts of a fixed range of query rows, and a manifest, written last. See FORMAT.md.

While a run is going on, everything stands in `OUT.partial/`; each part is renamed into place when
it is whole, so a part that exists is finished work. A run may be killed between any two steps, the last ones too:
what the results depend on stands in `identity.json` until the manifest, which repeats it, is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stcli.errors import ExistsError, FormatError, InputError
from stcli.storage import atomic
from stcli.storage.manifest import RESULTS, canonical, check_sealed, read_json, sealed
from stcli.storage.shape import ANY, Each, check_shape

MANIFEST = "_manifest.json"
IDENTITY = "_identity.json"
CALIBRATION = "_calibration.json"
RUN = "_run.json"
"""Readers of a Parquet directory pass over names with a leading underscore."""


def part_name(number: int) -> str:
    """File name of a part."""
    return f"part-{number:05d}.parquet"


def _list_encodings(schema: pa.Schema) -> dict[str, str]:
    """Integers in lists are written as differences: the ids of 8,192 times 100 results on Corpus R in 11 ms and 2.2 MB,
    plain in 28 ms and 2.7 MB.

    Scores are plain. BYTE_STREAM_SPLIT would make 1.9 MB of 2.8 in equal time, but the vectorized reader of Apache
    Spark, its default, did not know that encoding until SPARK-56894 (2026).
    """
    lists = [field for field in schema if pa.types.is_list(field.type)]
    return {
        f"{field.name}.list.element": "DELTA_BINARY_PACKED"
        for field in lists
        if pa.types.is_integer(field.type.value_type)
    }


INPUTS = {
    "artifact": "the artifact",
    "queries": "the query table",
    "item_lists": "the table of --only-items or --exclude-items",
    "given_calibration": "--calibration",
}
"""How messages call the inputs that results depend on, beside options."""


class PartsFolder:
    """The parts of a run that is going on; several processes may write into it.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_empty(self) -> bool:
        """No part is finished."""
        return next(self.folder.glob("part-*.parquet"), None) is None

    def has_part(self, number: int) -> bool:
        """The part is finished."""
        return (self.folder / part_name(number)).exists()

    def calibration(self) -> Any | None:
        """The calibration of the interrupted run, if it got that far."""
        if (self.folder / CALIBRATION).exists():
            return read_json(self.folder / CALIBRATION, "interrupted run")
        if (self.folder / MANIFEST).exists():
            return open_results(self.folder)["calibration"]
        return None

    def write_part(
        self, number: int, batches: Iterable[pa.RecordBatch], schema: pa.Schema, info: Callable[[], dict[str, Any]]
    ) -> None:
        """Write a part; what `info` gives once all batches are written is kept in its footer, for `part_info`."""
        path = self.folder / part_name(number)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # a worker of a killed run may still be at it
        plain = [field.name for field in schema if not pa.types.is_list(field.type)]
        options = {"use_dictionary": plain, "write_statistics": plain, "column_encoding": _list_encodings(schema)}
        with pq.ParquetWriter(temporary, schema, compression="zstd", compression_level=1, **options) as writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.add_key_value_metadata({"stcli": canonical(info())})
        atomic.sync(temporary)
        os.replace(temporary, path)

    def part_info(self, number: int) -> dict[str, Any]:
        """What `write_part` was given with this part."""
        return part_info(self.folder / part_name(number))


class ResultsWriter(PartsFolder):
    """Writes the parts of one run, or goes on with an interrupted one.

    Args:
        output: the directory to appear when the run is whole.
        identity: what the results depend on: fingerprints and options.
        resume: go on with what an interrupted run left.
        overwrite: replace an existing output.

    Raises:
        ExistsError: the output is there, or an interrupted run is and neither option was given.
        InputError: `resume`, but the inputs or options are not those of the interrupted run.
    """

    def __init__(self, output: Path, identity: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
        super().__init__(atomic.partial_path(output))
        self.output = output
        self._identity = dict(identity)
        before = self._found() if resume else None
        if before is None:
            atomic.check_output(output, overwrite)
            if self.folder.exists() and not (overwrite or resume):
                raise ExistsError(
                    f"{self.folder}: an interrupted run is there; "
                    "add --resume to go on with it, or --overwrite to start again"
                )
            atomic.remove(self.folder)
            self.folder.mkdir()
            atomic.write_text(self.folder / IDENTITY, canonical(self._identity))
            return
        changed = sorted(
            key for key in self._identity.keys() | before.keys() if self._identity.get(key) != before.get(key)
        )
        if changed:
            values = [
                f" ({key} was {_short(before.get(key))}, is {_short(self._identity.get(key))})"
                for key in changed
                if key not in INPUTS  # whose fingerprints tell nobody anything
            ]
            raise InputError(
                f"{self.folder}: {', '.join(INPUTS.get(key, key) for key in changed)} changed since that run"
                f"{''.join(values[:1])}; give the same inputs and options, or --overwrite to start again"
            )

    def _found(self) -> Any | None:
        """What the results of an earlier run depend on; None if it did not get so far as to write that down.

        Sets `folder` to the output if the earlier run is whole already, and there is nothing left to do.
        """
        if not self.folder.is_dir() and (self.output / MANIFEST).is_file():
            self.folder = self.output
            return open_results(self.output)["identity"]
        if (self.folder / IDENTITY).exists():
            identity = read_json(self.folder / IDENTITY, "interrupted run")
            check_shape(identity, Each(ANY), self.folder / IDENTITY)
            return identity
        if (self.folder / MANIFEST).exists():
            return open_results(self.folder)["identity"]
        if not self.is_empty:  # a run writes it down before its first part
            raise FormatError(
                f"{self.folder}: has parts, but no {IDENTITY} that says of which run; --overwrite to start again"
            )
        return None

    @property
    def is_whole(self) -> bool:
        """An earlier run has finished; there is nothing to do."""
        return self.folder == self.output

    def save_calibration(self, data: Any) -> None:
        """Keep the calibration, before the first part."""
        atomic.write_text(self.folder / CALIBRATION, canonical(data))

    def discard(self) -> None:
        """Remove what this run wrote."""
        atomic.remove(self.folder)

    def finish(self, body: Mapping[str, Any], num_parts: int, run: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest and give the directory its name."""
        if self.is_whole:
            return open_results(self.output)
        parts = []
        for number in range(num_parts):
            path = self.folder / part_name(number)
            parts.append({"name": path.name, "rows": pq.read_metadata(path).num_rows})
        manifest = sealed(
            RESULTS, {**body, "identity": self._identity, "calibration": self.calibration(), "parts": parts}
        )
        atomic.write_text(self.folder / RUN, canonical(dict(run)))
        atomic.write_text(self.folder / MANIFEST, canonical(manifest))
        for path in (self.folder / IDENTITY, self.folder / CALIBRATION, *self.folder.glob("*.tmp")):
            path.unlink(missing_ok=True)
        atomic.publish(self.folder, self.output)
        return manifest


def part_info(path: Path) -> dict[str, Any]:
    """What was kept in the footer of a part.

    Raises:
        FormatError: the file is no part of ours.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return json.loads(metadata[b"stcli"])
    except (pa.ArrowInvalid, OSError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: is no whole part of a results directory; remove it and resume") from error


def open_results(path: Path) -> dict[str, Any]:
    """The manifest of a whole results directory.

    Raises:
        FormatError: not one, or not whole.
    """
    manifest = check_sealed(RESULTS, read_json(path / MANIFEST, "results directory"), path / MANIFEST)
    for part in manifest["parts"]:
        file = path / part["name"]
        try:
            rows = pq.read_metadata(file).num_rows
        except (ValueError, OSError) as error:  # a ValueError for a zero in the name, and of Arrow
            raise FormatError(f"{file}: missing or no whole Parquet file; retrieve again") from error
        if rows != part["rows"]:
            raise FormatError(f"{file}: has {rows} rows, the manifest says {part['rows']}; retrieve again")
    return manifest


def _short(value: Any) -> str:
    text = canonical(value)
    return text if len(text) <= 40 else text[:37] + "..."
