"""The placement of an artifact's tensors, from its header and the free memory of a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stcli.config import RetrieveConfig
from stcli.errors import InputError
from stcli.model.device import free_bytes
from stcli.model.placement import REQUIRED, Placement, check_wanted, choose_placement, group_bytes
from stcli.model.planner import default_candidates
from stcli.storage.artifact_set import ArtifactSet, open_files
from stcli.storage.sizes import array_bytes


def place_artifact(path: str | Path, device: torch.device, config: RetrieveConfig) -> Placement | None:
    """Choose what of an artifact or a set lies on a GPU; None for the CPU, which maps the file.

    Raises:
        InputError: `--place` does not parse.
        DeviceError: the artifact does not fit.
    """
    wanted = parse_places(config.place)
    if device.type != "cuda":
        return None
    opened = open_files(Path(path))
    manifests = [part.manifest for part in (opened.parts if isinstance(opened, ArtifactSet) else [opened])]
    num_items = sum(int(manifest["num_items"]) for manifest in manifests)
    candidates = config.rescore or default_candidates(config.k)
    sizes: Counter[str] = Counter()
    for manifest in manifests:
        sizes.update({name: array_bytes(entry) for name, entry in manifest["arrays"].items()})
    return choose_placement(
        group_bytes(sizes),
        num_items,
        min(2 * candidates, num_items),  # what most proofs of a search of all admitted rows need
        free_bytes(device),
        wanted=wanted,
        batch_size=config.batch_size,
    )


def on_a_gpu(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What of an artifact a GPU must hold, holds where there is room, and leaves on the host, with sizes."""
    sizes = group_bytes({name: array_bytes(entry) for name, entry in manifest["arrays"].items()})
    kinds = {"gpu": REQUIRED, "gpu where it fits": ("embeddings",), "host": ("terms",)}
    return {
        kind: ", ".join(f"{group} {sizes[group] / 1e9:.3f} GB" for group in groups if group in sizes)
        for kind, groups in kinds.items()
        if any(group in sizes for group in groups)
    }


def parse_places(given: tuple[str, ...] | list[str] | Any) -> dict[str, str]:
    """`("terms=gpu",)` as a mapping.

    Raises:
        InputError: a part has no `=`, or names an unknown group or place.
    """
    for text in given:
        if "=" not in text:
            raise InputError(f"--place {text!r}: expected group=place, such as terms=gpu")
    wanted = dict(text.split("=", 1) for text in given)
    check_wanted(wanted)
    return wanted
