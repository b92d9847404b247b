"""How an artifact was built and packed, told from the artifact: options that make another one like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from stcli.errors import InputError
from stcli.model.overarch import PREFIX
from stcli.model.tower import PREFIX as TOWER_PREFIX
from stcli.storage.artifact import Artifact
from stcli.storage.weights import write_weights

WEIGHTS = PREFIX + "weights."


def build_options(artifact: Artifact) -> dict[str, Any]:
    """Options of `build_index` that give an index of the same features, metric and filter."""
    manifest = artifact.manifest
    described = manifest["filter"]
    options: dict[str, Any] = {
        "feature_columns": tuple(feature["name"] for feature in described["features"]),
        "small_features": False,
        "keep_columns": tuple(manifest["columns"]),
        "metric": manifest["metric"],
        "scale": manifest["scale"],
        "seed": manifest["seed"],
        "embedding_version": manifest["embedding_version"],
        **manifest.get("build", {}),
    }
    if described["paper"]:
        options |= {
            "preset": "silvertorch",
            "bloom_bits": described["fixed_width"],
            "bloom_hashes": described["num_hashes"],
        }
    return options


def pack_options(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Options of `pack_model` that score items alike; configs and weights are written as files of `folder`.

    A user tower makes queries, not items, and is none of them.
    """
    manifest = artifact.manifest
    options: dict[str, Any] = {"embedding_dtype": manifest["embedding_dtype"]}
    learned = manifest.get("overarch")
    if learned is not None:
        options["overarch"] = str(folder / "overarch.json")
        plain = {"kind": learned["kind"], "tasks": learned["tasks"]}
        write_weights(folder / "overarch.json", learned.get("config", plain), _tensors(artifact, WEIGHTS))
        if learned.get("columns"):
            options["overarch_columns"] = tuple(learned["columns"])
        if learned["kind"] == "mol":
            options["overarch_cache"] = learned["cache"]
    if manifest.get("value_models"):
        models = {
            name: {key: model[key] for key in ("formula", "nan")} for name, model in manifest["value_models"].items()
        }
        options["value_model_file"] = str(folder / "value_models.json")
        (folder / "value_models.json").write_text(json.dumps(models), encoding="utf-8")
    return options


def tower_options(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Options of `pack_model` that pack the user tower of an artifact again, if it has one.

    Raises:
        InputError: the tower is a program.
    """
    entry = artifact.manifest.get("tower")
    if entry is None:
        return {}
    if "program_sha256" in entry:
        raise InputError(
            f"{artifact.path}: has a tower that is a torch.export program, which --compact does not pack again; build "
            "the index from the item table and pack it with --tower"
        )
    write_weights(folder / "tower.json", entry["config"], _tensors(artifact, TOWER_PREFIX))
    return {"tower": str(folder / "tower.json")}


def _tensors(artifact: Artifact, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of an artifact whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in artifact.arrays.items()
        if name.startswith(prefix)
    }
