"""Which of our formats a path holds, told from its first bytes or the names in a directory."""

from __future__ import annotations

from pathlib import Path

from stcli.errors import FormatError, InputError
from stcli.storage.listing import find_files
from stcli.storage.manifest import ARTIFACT, INDEX, REPORT, RESULTS, SET, read_json
from stcli.storage.shape import brief

PARQUET = "parquet"

EXPECTED = (
    "expected Parquet (a file, a directory or a URI), an index of build-index, an artifact of pack-model, "
    "a set of update, results of retrieve or a report of bench"
)

PARQUET_MAGIC = b"PAR1"


def kind_of(path: str | Path) -> str:
    """PARQUET, or the format name of one of our own: INDEX, ARTIFACT, SET, RESULTS or REPORT.

    Nothing is checked beyond what tells the kind; a URI is taken for Parquet.

    Raises:
        InputError: there is nothing.
        FormatError: none of them, or an output that was never finished.
    """
    if "://" in str(path):
        return PARQUET
    path = Path(path)
    if path.is_dir():
        return _kind_of_directory(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; {EXPECTED}")
    start = _start(path)
    if start[:4] == PARQUET_MAGIC:
        return PARQUET
    if len(start) == 9 and start[8:] == b"{":
        return ARTIFACT
    raise FormatError(f"{path}: is none of ours, or is truncated; {EXPECTED}")


def _kind_of_directory(path: Path) -> str:
    manifests = [path / name for name in ("manifest.json", "set.json", "_manifest.json") if (path / name).exists()]
    if path.name.endswith(".partial") and not manifests:
        raise FormatError(f"{path}: an output that was not finished; run its command again, retrieve with --resume")
    if manifests:
        manifest = read_json(manifests[0], "directory of ours")
        kind = manifest.get("format") if isinstance(manifest, dict) else None
        if kind in (INDEX, SET, RESULTS):
            return str(kind)
        raise FormatError(f"{manifests[0]}: its format is {brief(kind)}, so it is damaged or none of ours; {EXPECTED}")
    if (path / "report.json").exists():
        return REPORT
    if any(file.suffix == ".parquet" or file.name == "_SUCCESS" for file in path.rglob("*")):
        foreign = next((file.path for file in find_files(str(path)) if _is_foreign(Path(file.path))), None)
        if foreign is not None:
            raise FormatError(
                f"{path}: the directory is none of ours, and no table either: {foreign} is not Parquet; {EXPECTED}"
            )
        return PARQUET
    raise FormatError(
        f"{path}: the directory is none of ours, without manifest.json, set.json, report.json or Parquet files; "
        f"{EXPECTED}"
    )


def _is_foreign(file: Path) -> bool:
    """Neither its name nor its first bytes say Parquet; a table that is cut short is not meant."""
    return file.suffix not in ("", ".parquet") and _start(file)[:4] != PARQUET_MAGIC


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)
