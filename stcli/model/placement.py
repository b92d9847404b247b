"""Which tensors of an artifact lie on the GPU, which stay on the host, and how many queries are searched at once.

A pure function of sizes and free memory, so that `--dry-run` and `inspect` tell the same as a run would do. It never
changes a result: the planner's choices depend on the artifact alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stcli.errors import DeviceError, InputError
from stcli.ops.scan_cuda import capacity_for

GROUPS = {
    "search": (
        "codes", "scales", "errors", "norms", "centroid_codes", "centroid_scales", "cluster_offsets",
        "cluster_radii", "id_rank",
    ),
    "filter": ("own_words", "bloom_words", "bloom_offsets"),
    "embeddings": ("embedding_values", "embedding_exponents"),
    "terms": ("term_values", "term_offsets"),
}  # fmt: skip
"""Tensors that are placed together. Everything else of an artifact (ids, vocabulary, columns) stays on the host."""

REQUIRED = ("search", "filter")
"""Read by every query at the speed of the device's memory, so a search on the GPU needs them there."""

HOST, GPU = "host", "gpu"

RESERVE_BYTES = 1 << 30
"""Left to the CUDA context, the kernels and other users of the device."""

MOST_QUERIES, LEAST_QUERIES = 8192, 64

AT_ONCE = 2
"""Batches that a GPU is given at the same time, see `stcli.model.ahead`."""

CANDIDATE_BYTES = 96
"""Temporaries for each candidate of a query: rows, scores, verified, re-scored, sorted."""


@dataclass(frozen=True)
class Placement:
    """What lies where on one device.

    Attributes:
        gpu: bytes of each group on the GPU.
        host: bytes of each group that the GPU path leaves on the host.
        tile_queries: queries searched at once.
        query_bytes: temporary memory of one query of a tile, in all batches that are searched at the same time.
        free_bytes: what was free on the device when this was chosen.
    """

    gpu: dict[str, int]
    host: dict[str, int]
    tile_queries: int
    query_bytes: int
    free_bytes: int

    @property
    def resident_bytes(self) -> int:
        """Bytes of the tensors on the GPU."""
        return sum(self.gpu.values())

    @property
    def peak_bytes(self) -> int:
        """Tensors and the temporaries of a full tile of queries, each with a filter of its own."""
        return self.resident_bytes + self.tile_queries * self.query_bytes

    def summary(self) -> dict[str, Any]:
        """For summaries and `--dry-run`."""
        return {
            "gpu": ", ".join(self.gpu),
            "host": ", ".join(self.host),
            "tile_queries": self.tile_queries,
            "resident_bytes": self.resident_bytes,
            "peak_bytes": self.peak_bytes,
            "free_bytes": self.free_bytes,
        }


@dataclass(frozen=True)
class Spread:
    """What lies where on several devices.

    Attributes:
        devices: of each file of a set, or of the only file of an artifact.
        each: what lies where on each of them.
    """

    devices: tuple[torch.device, ...]
    each: Mapping[torch.device, Placement]

    @property
    def tile_queries(self) -> int:
        """Queries searched at once: as many as the fullest device takes."""
        return min(placement.tile_queries for placement in self.each.values())

    def summary(self) -> dict[str, Any]:
        """For summaries and `--dry-run`."""
        if len(self.each) == 1:
            return next(iter(self.each.values())).summary()
        return {str(device): placement.summary() for device, placement in self.each.items()}


def share_out(sizes: Sequence[int], num_devices: int) -> list[int]:
    """The device, 0 … num_devices - 1, of each file: the largest first, each where the fewest bytes are."""
    loads, places = [0] * num_devices, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda one: (-sizes[one], one)):
        places[number] = loads.index(min(loads))
        loads[places[number]] += sizes[number]
    return places


def group_bytes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each of GROUPS, from the bytes of each array of an artifact; a group without arrays is left out."""
    found = {group: sum(sizes.get(name, 0) for name in names) for group, names in GROUPS.items()}
    return {group: size for group, size in found.items() if size}


def query_bytes(num_items: int, candidates: int) -> int:
    """Temporary memory of one query on the GPU: its filter's words, the keys it collects, its candidates."""
    words = 8 * -(-num_items // 64)
    return words + 8 * capacity_for(num_items, candidates) + CANDIDATE_BYTES * candidates


def choose_placement(
    sizes: Mapping[str, int],
    num_items: int,
    candidates: int,
    free_bytes: int,
    *,
    wanted: Mapping[str, str] | None = None,
    batch_size: int | None = None,
) -> Placement:
    """Choose what lies on the GPU.

    The tensors of the search and the bit matrix must; the embeddings do where they fit beside a tile of at least 512
    queries; the exact terms, which only the few candidates need, stay on the host. `wanted` overrules the last two.

    Args:
        sizes: bytes of each group, see `group_bytes`.
        num_items: N.
        candidates: K0 of a query.
        free_bytes: free memory of the device.
        wanted: "gpu" or "host" for the groups "embeddings" and "terms".
        batch_size: queries searched at once at most, or None for the most that fit.

    Raises:
        InputError: `wanted` names an unknown group or place.
        DeviceError: the search tensors and a tile of 64 queries do not fit.
    """
    wanted = dict(wanted or {})
    check_wanted(wanted)
    each = AT_ONCE * query_bytes(num_items, candidates)
    usable = free_bytes - RESERVE_BYTES
    gpu = {group: sizes[group] for group in REQUIRED if group in sizes}
    host: dict[str, int] = {}
    least = sum(gpu.values()) + LEAST_QUERIES * each
    if least > usable:
        raise DeviceError(
            f"the GPU has {free_bytes / 1e9:.1f} GB free; the search tensors and {LEAST_QUERIES} queries take "
            f"{(least + RESERVE_BYTES) / 1e9:.1f} GB: use a larger GPU or --device cpu"
        )
    for group, comfortable in (("embeddings", 512), ("terms", None)):
        if group not in sizes:
            continue
        place = wanted.get(group)
        if place is None:
            fits = comfortable and sum(gpu.values()) + sizes[group] + comfortable * each <= usable
            place = GPU if fits else HOST
        (gpu if place == GPU else host)[group] = sizes[group]
    room = (usable - sum(gpu.values())) // each
    if room < LEAST_QUERIES:
        raise DeviceError(
            f"the GPU has {free_bytes / 1e9:.1f} GB free, which does not hold {', '.join(gpu)}; "
            f"leave {' or '.join(wanted)} on the host"
        )
    tile = min(1 << (room.bit_length() - 1), MOST_QUERIES)
    return Placement(gpu, host, min(tile, batch_size or tile), each, free_bytes)


def check_wanted(wanted: Mapping[str, str]) -> None:
    """Check a choice of places.

    Raises:
        InputError: an unknown group or place.
    """
    free = [group for group in GROUPS if group not in REQUIRED]
    for group, place in wanted.items():
        if group not in free or place not in (GPU, HOST):
            raise InputError(f"--place {group}={place}: expected {' or '.join(free)}, each =gpu or =host")
