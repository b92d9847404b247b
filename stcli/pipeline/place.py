"""The placement of an artifact's tensors, from its header and the free memory of a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stcli.config import RetrieveConfig
from stcli.errors import DeviceError, InputError
from stcli.model.device import free_bytes
from stcli.model.placement import (
    REQUIRED,
    Placement,
    Spread,
    check_wanted,
    choose_placement,
    group_bytes,
    share_out,
)  # fmt: skip
from stcli.model.planner import default_candidates
from stcli.storage.artifact_set import ArtifactSet, open_files
from stcli.storage.sizes import array_bytes


def place_artifact(
    path: str | Path, devices: Sequence[torch.device], config: RetrieveConfig
) -> Placement | Spread | None:
    """Choose what of an artifact or a set lies on a GPU; None for the CPU, which maps the file.

    Args:
        path: of the artifact or set.
        devices: one, or several of which each will hold a copy.
        config: options of the run.

    Returns:
        For one device, and for each of several that hold all. Where one of several is too small for a set of several
        files: the files, spread over all devices.

    Raises:
        InputError: `--place` does not parse.
        DeviceError: the artifact does not fit.
    """
    wanted = parse_places(config.place)
    if devices[0].type != "cuda":
        return None
    opened = open_files(Path(path))
    manifests = [part.manifest for part in (opened.parts if isinstance(opened, ArtifactSet) else [opened])]
    try:
        return _on_one(manifests, devices[0], config, wanted)
    except DeviceError as error:
        if len(devices) == 1:
            raise
        if len(manifests) < 2:
            raise DeviceError(
                f"{error}; or pack the index with --shards {len(devices)}, whose files can lie on several GPUs"
            ) from error
    places = share_out([sum(_sizes([manifest]).values()) for manifest in manifests], len(devices))
    on_each = {
        devices[place]: [manifest for manifest, own in zip(manifests, places, strict=True) if own == place]
        for place in sorted(set(places))
    }
    each = {device: _on_one(some, device, config, wanted) for device, some in on_each.items()}
    return Spread(tuple(devices[place] for place in places), each)


def _on_one(
    manifests: Sequence[Mapping[str, Any]], device: torch.device, config: RetrieveConfig, wanted: Mapping[str, str]
) -> Placement:
    """What of some files lies on a device that holds them all."""
    num_items = sum(int(manifest["num_items"]) for manifest in manifests)
    candidates = config.rescore or default_candidates(config.k)
    return choose_placement(
        group_bytes(_sizes(manifests)),
        num_items,
        min(2 * candidates, num_items),  # what most proofs of a search of all admitted rows need
        free_bytes(device),
        wanted=wanted,
        batch_size=config.batch_size,
    )


def _sizes(manifests: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Bytes of each array of some files."""
    sizes: Counter[str] = Counter()
    for manifest in manifests:
        sizes.update({name: array_bytes(entry) for name, entry in manifest["arrays"].items()})
    return sizes


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
