"""`inspect`: what a file or directory is, told from its headers, and whether it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stcli.errors import FormatError
from stcli.measure.report import PAGE, read_report
from stcli.model.planner import Calibration
from stcli.pipeline.invariants import check_arrays, check_results
from stcli.pipeline.pack_tower import tower_summary
from stcli.pipeline.place import on_a_gpu
from stcli.pipeline.update import shares
from stcli.storage import remote
from stcli.storage.artifact import open_artifact_file
from stcli.storage.artifact_set import ArtifactSet, open_set
from stcli.storage.index_dir import open_index
from stcli.storage.kinds import PARQUET, kind_of
from stcli.storage.manifest import ARTIFACT, INDEX, REPORT, RESULTS, SET, read_json
from stcli.storage.parquet import open_table
from stcli.storage.results import MANIFEST, RUN, open_results
from stcli.storage.shape import TEXT, check_shape
from stcli.storage.sizes import bytes_by_group, overarch_summary

BATCH_ROWS = 1 << 14


def inspect(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Tell what a path holds: counts, shapes, bytes, options and origin, from headers alone.

    Args:
        path: Parquet (file, directory or URI), index, artifact, artifact set, results or report.
        verify: also read everything, and check hashes and invariants.

    Returns:
        `kind`, `path` and what belongs to the kind; with `verify`, `verified`: the checks that held.

    Raises:
        InputError: there is nothing.
        FormatError: none of these, truncated, edited, or a check failed; the message says which.
    """
    given = str(path)
    if remote.is_remote(path) and remote.holds_ours(given):
        path = remote.local_copy(given)
    kind = kind_of(path)
    told = {
        PARQUET: _parquet,
        INDEX: _index,
        ARTIFACT: _artifact,
        SET: _set,
        RESULTS: _results,
        REPORT: _report,
    }[kind](path, verify)
    return {"kind": kind, "path": given, **told}


def _parquet(path: str | Path, verify: bool) -> dict[str, Any]:
    table = open_table(path)
    fingerprint = table.fingerprint()
    metadata = table.schema.metadata or {}
    told: dict[str, Any] = {
        "counts": {"rows": table.num_rows, "files": len(table.files), "columns": len(table.schema)},
        "bytes": {"total": sum(file["bytes"] for file in fingerprint["files"])},  # type: ignore[attr-defined]
        "columns": {field.name: str(field.type) for field in table.schema},
        "origin": {"embedding_version": metadata[b"embedding_version"].decode()}
        if b"embedding_version" in metadata
        else {},
    }
    if verify:
        rows = sum(batch.num_rows for _, batch in table.batches(table.schema.names, BATCH_ROWS))
        if rows != table.num_rows:
            raise FormatError(f"{path}: {rows} rows were read, the footers say {table.num_rows}; write the table again")
        told["verified"] = ["every column of every row can be read"]
    return told


def _index(path: str | Path, verify: bool) -> dict[str, Any]:
    opened = open_index(Path(path), verify)
    told = _packed(opened.manifest)
    return told | ({"verified": ["hashes", *check_arrays(opened.manifest, opened.arrays, str(path))]} if verify else {})


def _artifact(path: str | Path, verify: bool) -> dict[str, Any]:
    opened = open_artifact_file(Path(path), verify)
    told = _packed(opened.manifest)
    told["options"] |= {key: opened.manifest[key] for key in ("embedding_dtype", "embedding_dim")}
    told["overarch"] = overarch_summary(opened.manifest)
    told["tower"] = tower_summary(opened.manifest)
    told["value_models"] = {name: model["formula"] for name, model in opened.manifest.get("value_models", {}).items()}
    told["origin"]["index"] = opened.manifest["index"]
    told["placement"] = on_a_gpu(opened.manifest)
    return told | ({"verified": ["hashes", *check_arrays(opened.manifest, opened.arrays, str(path))]} if verify else {})


def _set(path: str | Path, verify: bool) -> dict[str, Any]:
    opened = open_set(Path(path), verify)
    manifest, first = opened.manifest, opened.shards[0].manifest
    dead = manifest["tombstones"]["count"] if manifest["tombstones"] else 0
    files = {artifact.path.name: artifact.path.stat().st_size for artifact in opened.parts}
    told: dict[str, Any] = {
        "counts": {
            "num_items": manifest["num_items"],
            "main": opened.num_main,
            "fresh": opened.num_rows - opened.num_main,
            "tombstones": dead,
            "dim": first["dim"],
        },
        "bytes": files | {"total": sum(files.values())},
        "drift": {**shares(manifest), **(manifest.get("drift") or {})},
        "features": _features(opened),
        "options": {key: first[key] for key in ("metric", "scale", "ids", "embedding_version", "embedding_dtype")},
        "origin": {
            "format_version": ".".join(map(str, manifest["version"])),
            "tool_version": manifest["tool_version"],
            "index": first["index"],
        },
        "fingerprint": manifest["fingerprint"],
    }
    return told | ({"verified": _verify_set(opened)} if verify else {})


def _features(opened: ArtifactSet) -> dict[str, str]:
    """The features of a set; fresh items have values of their own."""
    described = opened.shards[0].manifest["filter"]["features"]
    if opened.fresh is None:
        return {feature["name"]: _feature(feature) for feature in described}
    new = {feature["name"]: feature["num_terms"] for feature in opened.fresh.manifest["filter"]["features"]}
    return {
        feature["name"]: _feature(feature, f" in the main part and {new.get(feature['name'], 0):,} in the fresh one")
        for feature in described
    }


def _verify_set(opened: ArtifactSet) -> list[str]:
    checked = [check_arrays(part.manifest, part.arrays, str(part.path)) for part in opened.parts]
    return ["hashes", *checked[0]]


def _packed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an index and an artifact have in common."""
    described = manifest["filter"]
    counts = {
        key: manifest[key]
        for key in ("num_items", "dim", "num_clusters", "zero_vectors", "rejected")
        if key in manifest
    }
    return {
        "counts": counts | {"num_terms": described["num_terms"]},
        "bytes": bytes_by_group(manifest["arrays"]),
        "cluster_sizes": dict(zip(("min", "median", "max"), manifest["cluster_sizes"], strict=True)),
        "features": {feature["name"]: _feature(feature) for feature in described["features"]},
        "kept_columns": ", ".join(manifest["columns"]) or None,
        "filter": {
            key: described[key] for key in ("own_rows", "bloom_rows", "num_hashes", "bloom_fpr", "bytes_per_item")
        },
        "options": {key: manifest[key] for key in ("metric", "scale", "seed", "ids", "embedding_version")},
        "arrays": {
            name: f"{entry['dtype']} [{', '.join(map(str, entry['shape']))}]"
            for name, entry in sorted(manifest["arrays"].items())
        },
        "origin": {
            "format_version": ".".join(map(str, manifest["version"])),
            "tool_version": manifest["tool_version"],
            "input_rows": manifest["input"]["rows"],
            "input_footers": ", ".join(file["footer_sha256"][:16] for file in manifest["input"]["files"]),
        },
        "fingerprint": manifest["fingerprint"],
    }


def _feature(feature: Mapping[str, Any], where: str = "") -> str:
    several = ", several an item" if feature["multi"] else ""
    return f"{feature['kind']}, {feature['num_terms']:,} values{where}{several}"


def _results(path: str | Path, verify: bool) -> dict[str, Any]:
    folder = Path(path)
    manifest = open_results(folder)
    parts = [folder / part["name"] for part in manifest["parts"]]
    identity = dict(manifest["identity"])
    artifact, queries, found = identity.pop("artifact"), identity.pop("queries"), manifest["calibration"]
    run = read_json(folder / RUN, "results directory") if (folder / RUN).exists() else {}
    check_shape(run, {"finished?": TEXT}, folder / RUN)
    told: dict[str, Any] = {
        "counts": {**manifest["counts"], "parts": len(manifest["parts"])},
        "bytes": {"total": sum(part.stat().st_size for part in parts)},
        "columns": {field.name: str(field.type) for field in open_table(parts).schema} if parts else {},
        "options": {key: value for key, value in identity.items() if value not in (None, [], {})},
        "calibration": Calibration.from_json(found, f"{folder / MANIFEST}: its calibration").to_json() if found else {},
        "origin": {
            "format_version": ".".join(map(str, manifest["version"])),
            "tool_version": manifest["tool_version"],
            "finished": run.get("finished"),
            "artifact": artifact,
            "query_rows": queries["rows"],
        },
        "fingerprint": manifest["fingerprint"],
    }
    return told | ({"verified": check_results(folder, manifest)} if verify else {})


def _report(path: str | Path, verify: bool) -> dict[str, Any]:
    folder = Path(path)
    report = read_report(folder)
    planned = report["runs"][0]
    told: dict[str, Any] = {
        "counts": {"queries": report["queries"]["sampled"], "settings": len(report["runs"]), "k": report["k"]},
        "recall": {run["name"]: run["recall"]["mean"] for run in report["runs"]},
        "queries_per_s": {run["name"]: run["queries_per_s"]["median"] for run in report["runs"]},
        "checks": {check["name"]: "yes" if check["ok"] else f"no, {check['detail']}" for check in report["checks"]},
        "memory_bytes": report["memory_bytes"],
        "origin": {
            "format_version": ".".join(map(str, report["version"])),
            "tool_version": report["tool_version"],
            "date": report["date"],
            "machine": report["machine"]["cpu"],
            "device": report["machine"]["device"],
            "artifact": report["artifact"]["fingerprint"],
            "command": report["command"],
        },
        "fingerprint": report["fingerprint"],
    }
    if verify:
        if not (folder / PAGE).is_file():
            raise FormatError(f"{folder / PAGE}: missing, so the report is not whole; run stcli bench again")
        if planned["name"] != "planned":
            raise FormatError(
                f"{folder}: its first run is {planned['name']!r}, expected 'planned'; run stcli bench again"
            )
        told["verified"] = ["the record is unedited", "the page is there"]
    return told
