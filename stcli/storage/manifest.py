"""Manifests: canonical JSON, fingerprints, and the checks on opening a file of ours."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import FormatError
from stcli.storage.shape import ARTIFACT_SHAPE, INDEX_SHAPE, REPORT_SHAPE, RESULTS_SHAPE, SET_SHAPE, brief, check_shape

INDEX, ARTIFACT, SET = "stcli-index", "stcli-artifact", "stcli-set"
RESULTS, REPORT = "stcli-results", "stcli-report"

VERSIONS = {INDEX: (1, 0), ARTIFACT: (1, 0), SET: (1, 0), RESULTS: (1, 0), REPORT: (1, 0)}
"""Format version written by this tool: (major, minor)."""

SHAPES = {
    INDEX: INDEX_SHAPE, ARTIFACT: ARTIFACT_SHAPE, SET: SET_SHAPE, RESULTS: RESULTS_SHAPE, REPORT: REPORT_SHAPE,
}  # fmt: skip

HASH_CHUNK = 1 << 24

LARGEST_JSON = 1 << 28
"""Bytes; the footers of a million input files take some 110 MB."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def hash_array(array: np.ndarray) -> str:
    """SHA-256 of the bytes of a C-contiguous array, read in chunks."""
    digest = hashlib.sha256()
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, HASH_CHUNK):
        digest.update(flat[start : start + HASH_CHUNK].data)
    return digest.hexdigest()


def sealed(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """`body` with format, version and the fingerprint of all of it."""
    whole = {"format": kind, "version": list(VERSIONS[kind]), **body}
    return {**whole, "fingerprint": fingerprint(whole)}


def check_sealed(kind: str, manifest: Any, where: Path) -> dict[str, Any]:
    """Check that a manifest is of this format, readable by this tool, unedited and of its shape; return it.

    Raises:
        FormatError: another format, another major or a newer minor version, an edited manifest, or one that
            names something else than a manifest of its kind does.
    """
    check_shape(manifest, {}, where)
    if manifest.get("format") != kind:
        raise FormatError(
            f"{where}: its format is {brief(manifest.get('format'))}, expected {kind!r}; make it again or name another"
        )
    version = manifest.get("version")
    if not isinstance(version, list) or len(version) != 2 or not all(isinstance(part, int) for part in version):
        raise FormatError(f"{where}: states no format version, so it was edited or damaged; make it again")
    major, minor = version
    ours = VERSIONS[kind]
    if major != ours[0] or minor > ours[1]:
        raise FormatError(
            f"{where}: format version {major}.{minor}, this stcli reads {ours[0]}.0 to {ours[0]}.{ours[1]}; "
            "make it again with this version, or use the newer stcli"
        )
    if not _matches(manifest):
        raise FormatError(
            f"{where}: the manifest does not match its fingerprint, so it was edited or damaged; make it again"
        )
    check_shape(manifest, SHAPES[kind], where)
    return dict(manifest)


def _matches(manifest: dict[str, Any]) -> bool:
    body = {key: value for key, value in manifest.items() if key != "fingerprint"}
    try:
        return bool(manifest.get("fingerprint") == fingerprint(body))
    except (ValueError, RecursionError):  # NaN, half of a surrogate pair or such depths, which we never write
        return False


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file.

    Raises:
        FormatError: missing, unreadable, not JSON, or beyond any that we write.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            most = f"expected at most {LARGEST_JSON:,}"
            raise FormatError(f"{path}: has {size:,} bytes, {most}, so this {what} is damaged; make it again")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path}: not found, so this is no whole {what}") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}), so this is no whole {what}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON ({error}), so this {what} is damaged") from error
