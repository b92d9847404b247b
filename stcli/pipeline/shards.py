"""Cutting an artifact into shards: runs of whole blocks of rows, each an artifact of its own, searched as one set.

A cut stands between two blocks of 4,096 rows, so that the bits of a shard are bits of the whole: the place of a term on
Bloom rows depends on the block. A shard has all centroids, the whole vocabulary and the ranks of its ids among all
ids; a cluster that a cut goes through has rows on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stcli.errors import InputError
from stcli.pipeline.columns import KeptColumns
from stcli.storage.artifact import Artifact, write_artifact
from stcli.storage.artifact_set import Shard
from stcli.storage.sizes import array_bytes
from stcli.types import BLOCK_ROWS, BLOCK_WORDS

ROW_ARRAYS = (
    "codes", "scales", "errors", "norms", "embedding_values", "embedding_exponents", "item_ids", "id_rank",
    "overarch.features", "overarch.components", "overarch.scales", "overarch.gates",
)  # fmt: skip
"""Arrays with a line for each row. Others are ragged, bits, or the same in every shard."""


def cut_blocks(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], shards: int) -> list[tuple[int, int]]:
    """Rows of each shard, as (first, end), such that the shards have as equal bytes as blocks allow.

    Args:
        described: dtype and shape of each array of the artifact.
        arrays: those of its index.
        shards: S.

    Raises:
        InputError: there are fewer blocks than shards.
    """
    num_items = int(described["id_rank"]["shape"][0])
    blocks = -(-num_items // BLOCK_ROWS)
    if shards > blocks:
        raise InputError(
            f"--shards {shards}: a shard has at least one block of {BLOCK_ROWS:,} items, and the {num_items:,} items "
            f"make {blocks}; use --shards {blocks} or fewer"
        )
    costs = np.diff(_bytes_before(described, arrays, blocks))
    ends, total = np.cumsum(costs), costs.sum()
    cuts = [0]
    for number in range(1, shards):  # the cut nearest to an equal share that leaves each shard a block
        wanted = int(np.argmin(np.abs(ends - total * number / shards))) + 1
        cuts.append(min(max(wanted, cuts[-1] + 1), blocks - (shards - number)))
    cuts.append(blocks)
    edges = [min(cut * BLOCK_ROWS, num_items) for cut in cuts]
    return list(pairwise(edges))


def shard_bytes(
    described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], spans: list[tuple[int, int]]
) -> dict[str, int]:
    """Bytes of the tensors of each shard, by its file."""
    num_items = int(described["id_rank"]["shape"][0])
    before = _bytes_before(described, arrays, -(-num_items // BLOCK_ROWS))
    common = sum(array_bytes(entry) for entry in described.values()) - int(before[-1])
    return {
        shard_file(number): common + int(before[-(-end // BLOCK_ROWS)] - before[first // BLOCK_ROWS])
        for number, (first, end) in enumerate(spans)
    }


def shard_file(number: int) -> str:
    """Name of a shard in its set."""
    return f"shard-{number:05d}.safetensors"


def write_shards(whole: Artifact, folder: Path, spans: list[tuple[int, int]]) -> list[Shard]:
    """Write the shards of an artifact into a folder; rows are read through its mapping, a shard at a time."""
    written = []
    offsets = np.asarray(whole.arrays["cluster_offsets"])
    for number, (first, end) in enumerate(spans):
        body = {key: value for key, value in whole.manifest.items() if key not in _SEAL}
        body |= {"num_items": end - first, "shard": {"number": number, "shards": len(spans), "first_row": first}}
        sealed = write_artifact(folder / shard_file(number), _shard_arrays(whole, first, end), body)
        low, high = np.searchsorted(offsets[:-1], [first, end]).tolist()  # clusters that begin in it
        low, high = low if number else 0, high if number < len(spans) - 1 else len(offsets) - 1
        written.append(Shard(shard_file(number), sealed["fingerprint"], first, end - first, low, high - low))
    return written


_SEAL = ("format", "version", "fingerprint", "arrays")


def _bytes_before(described: Mapping[str, Any], arrays: Mapping[str, np.ndarray], blocks: int) -> np.ndarray:
    """Bytes of what belongs to the rows before each block, int64 [blocks + 1]."""
    num_items = int(described["id_rank"]["shape"][0])
    rows = np.minimum(np.arange(blocks + 1) * BLOCK_ROWS, num_items)
    a_row = sum(array_bytes(described[name]) // num_items for name in ROW_ARRAYS if name in described)
    a_row += 8 + 8  # id_order, and an offset of the terms
    words = np.minimum(np.arange(blocks + 1) * BLOCK_WORDS, -(-num_items // 64))
    before = rows * a_row + words * 8 * len(arrays["own_words"])
    before += 4 * np.asarray(arrays["term_offsets"])[rows]
    before += 8 * BLOCK_WORDS * np.asarray(arrays["bloom_offsets"])
    if "item_id_offsets" in arrays:
        before += np.asarray(arrays["item_id_offsets"])[rows] + 8 * rows
    if "columns" in arrays:
        before += rows * (len(arrays["columns"]) // max(num_items, 1))
    return before


def _shard_arrays(whole: Artifact, first: int, end: int) -> dict[str, np.ndarray]:
    """The arrays of rows first … end - 1; first is the start of a block."""
    arrays = whole.arrays
    found = dict(arrays)
    for name in ROW_ARRAYS:
        if name in arrays:
            found[name] = arrays[name][first:end]
    found["id_order"] = np.argsort(arrays["id_rank"][first:end], kind="stable").astype(np.int64)
    found["cluster_offsets"] = np.clip(arrays["cluster_offsets"], first, end) - first
    found["own_words"] = np.ascontiguousarray(arrays["own_words"][:, first // 64 : -(-end // 64)])
    blocks = slice(first // BLOCK_ROWS, -(-end // BLOCK_ROWS))
    heights = arrays["bloom_offsets"][blocks.start : blocks.stop + 1]
    found["bloom_offsets"] = heights - heights[0]
    found["bloom_words"] = arrays["bloom_words"][heights[0] : heights[-1]]
    for values, offsets in (("term_values", "term_offsets"), ("item_id_bytes", "item_id_offsets")):
        if offsets in arrays:
            places = arrays[offsets][first : end + 1]
            found[offsets], found[values] = places - places[0], arrays[values][places[0] : places[-1]]
    found["term_counts"] = np.bincount(found["term_values"], minlength=len(arrays["term_counts"])).astype(np.int64)
    found["feature_present"] = np.array(list(_present(whole.manifest, found)), np.int64)
    if "columns" in arrays:
        found["columns"] = KeptColumns(whole).slice_bytes(first, end)
    return found


def _present(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[int]:
    """Rows that have a value, of each feature."""
    terms = arrays["term_values"]
    owner = np.repeat(np.arange(len(arrays["term_offsets"]) - 1), np.diff(arrays["term_offsets"]))
    for feature in manifest["filter"]["features"]:
        low, high = feature["first_term"], feature["first_term"] + feature["num_terms"]
        yield len(np.unique(owner[(terms >= low) & (terms < high)]))
