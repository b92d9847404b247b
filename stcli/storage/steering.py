"""The arrays of an artifact that say where others are read, checked so that all they lead to lies within the others.

Native code and kernels follow these numbers without asking again. Few numbers are checked whenever a file is opened.
Where the numbers are as many as the rows, the CPU forms check those that they follow, since opening must not take
longer for more rows; a GPU searches nothing before all of them have been checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stcli.errors import FormatError
from stcli.storage.manifest import INDEX
from stcli.types import BLOCK_ROWS

PIECE = 1 << 22
"""Numbers looked at in one piece."""

MOST_RANK = 2**32 - 2
"""A rank is half of a key, whose largest number is taken."""

_OF_ROWS = (
    "codes", "scales", "errors", "norms", "embeddings", "embedding_values", "embedding_exponents", "item_ids",
    "id_order", "id_rank", "overarch.features", "overarch.components", "overarch.scales", "overarch.gates",
)  # fmt: skip
_OF_CLUSTERS = ("centroid_codes", "centroid_scales", "cluster_radii")
_OF_TERMS = ("own_row", "bloom_terms", "term_counts")
_ALWAYS = (
    "codes", "scales", "cluster_offsets", "id_order", "id_rank", "term_values", "term_offsets", "own_words",
    "bloom_words", "bloom_offsets", "slices", "presence", "feature_present", *_OF_CLUSTERS[:2], *_OF_TERMS,
)  # fmt: skip

Arrays = Mapping[str, np.ndarray]


def check_opened(manifest: Mapping[str, Any], arrays: Arrays, where: str) -> None:
    """Check what takes no longer for more rows: that the arrays are there, all lengths, and the offsets of clusters and
    of Bloom rows.

    Raises:
        FormatError: naming the array.
    """
    for name in _needed(manifest, arrays):
        if name not in arrays:
            raise damage(where, name, "is missing")
    lengths = dict.fromkeys(_OF_ROWS, int(manifest["num_items"]))
    lengths |= dict.fromkeys(_OF_CLUSTERS, int(manifest["num_clusters"]))
    lengths |= dict.fromkeys(_OF_TERMS, int(manifest["filter"]["num_terms"]))
    for number, feature in enumerate(manifest["filter"]["features"]):
        lengths[f"vocabulary_{number:03d}"] = int(feature["num_terms"])
    lengths |= {name: count + 1 for name, (count, _) in offset_ends(manifest, arrays).items()}
    for name, length in lengths.items():
        if name in arrays and len(arrays[name]) != length:
            raise damage(where, name, f"has {len(arrays[name])} entries, expected {length}")
    for name in ("cluster_offsets", "bloom_offsets"):
        check_offsets(manifest, arrays, where, name)


def _needed(manifest: Mapping[str, Any], arrays: Arrays) -> list[str]:
    """Names of the arrays that every index and artifact has; texts are two arrays."""
    names = [*_ALWAYS, *(["embeddings"] if manifest["format"] == INDEX else [])]
    features = [f"vocabulary_{number:03d}" for number in range(len(manifest["filter"]["features"]))]
    for name, stem in (("item_ids", "item_id"), *zip(features, features, strict=True)):
        names += [name] if name in arrays else [f"{stem}_bytes", f"{stem}_offsets"]
    return names


def check_placed(manifest: Mapping[str, Any], arrays: Arrays, where: str, *, terms: bool) -> None:
    """Check what a GPU follows besides: ranks, the own rows of filters, and with `terms` where those of a row lie.

    Raises:
        FormatError: naming the array.
    """
    check_ranks(manifest, arrays, where)
    check_own_rows(manifest, arrays, where)
    if terms:
        check_offsets(manifest, arrays, where, "term_offsets")


def check_all(manifest: Mapping[str, Any], arrays: Arrays, where: str) -> None:
    """Check what is checked at opening, and all other offsets, for what reads all rows anyway.

    Raises:
        FormatError: naming the array.
    """
    check_opened(manifest, arrays, where)
    for name in offset_ends(manifest, arrays):
        check_offsets(manifest, arrays, where, name)


def offset_ends(manifest: Mapping[str, Any], arrays: Arrays) -> dict[str, tuple[int, int]]:
    """For each array of offsets: of how many lines, and where the last of them ends."""
    num_items = int(manifest["num_items"])
    ends = {
        "cluster_offsets": (int(manifest["num_clusters"]), num_items),
        "term_offsets": (num_items, len(arrays["term_values"])),
        "bloom_offsets": (-(-num_items // BLOCK_ROWS), len(arrays["bloom_words"])),
    }
    if "item_id_offsets" in arrays:
        ends["item_id_offsets"] = (num_items, len(arrays["item_id_bytes"]))
    for number, feature in enumerate(manifest["filter"]["features"]):
        name = f"vocabulary_{number:03d}"
        if f"{name}_offsets" in arrays:
            ends[f"{name}_offsets"] = (int(feature["num_terms"]), len(arrays[f"{name}_bytes"]))
    return ends


def check_offsets(manifest: Mapping[str, Any], arrays: Arrays, where: str, name: str) -> None:
    """Check that offsets ascend from 0 to the end of what they lead into.

    Raises:
        FormatError: they do not.
    """
    offsets, (count, last) = arrays[name], offset_ends(manifest, arrays)[name]
    if len(offsets) != count + 1:
        raise damage(where, name, f"has {len(offsets)} entries, expected {count + 1}")
    if offsets[0] != 0 or offsets[-1] != last:
        raise damage(where, name, f"does not run from 0 to {last} but from {offsets[0]} to {offsets[-1]}")
    for part in pieces(len(offsets), overlap=1):
        falls = offsets[part][1:] < offsets[part][:-1]
        if falls.any():
            place = part.start + int(falls.argmax())
            raise damage(
                where, name, f"descends from {offsets[place]} to {offsets[place + 1]} at entry {place + 1}, "
                f"expected ascending numbers from 0 to {last}"
            )  # fmt: skip


def check_ranks(manifest: Mapping[str, Any], arrays: Arrays, where: str) -> None:
    """Check that every row has a rank of its own.

    Equal scores are ordered by rank, so that of two rows of one rank either could come first.

    Raises:
        FormatError: naming the array.
    """
    order, rank, before = arrays["id_order"], arrays["id_rank"], -1
    most = MOST_RANK if "shard" in manifest else len(order) - 1  # a shard has ranks among those of the whole index
    for part in pieces(len(order)):
        _check_within(where, "id_order", order[part], 0, len(order) - 1)
        ranks = rank[order[part]]
        _check_within(where, "id_rank", ranks, 0, most)
        if ranks[0] <= before or (ranks[1:] <= ranks[:-1]).any():
            raise damage(where, "id_rank", "gives two rows one rank or is not in the order of id_order")
        before = ranks[-1]


def check_own_rows(manifest: Mapping[str, Any], arrays: Arrays, where: str) -> None:
    """Check that terms, slices and the presence of values lie on own rows that there are.

    Raises:
        FormatError: naming the array.
    """
    num_own, described = len(arrays["own_words"]), manifest["filter"]["features"]
    _check_within(where, "own_row", arrays["own_row"], -1, num_own - 1)
    rows = [feature["presence_row"] for feature in described]
    rows += [
        end for feature in described for first, bits in feature["slices"] or () for end in (first, first + bits - 1)
    ]
    _check_within(where, "the manifest's filter", np.array(rows, np.int64), -1, num_own - 1)


def _check_within(where: str, name: str, numbers: np.ndarray, low: int, high: int) -> None:
    if len(numbers) and (numbers.min() < low or numbers.max() > high):
        raise damage(where, name, f"leads to {numbers.min()} … {numbers.max()}, expected numbers in {low} … {high}")


def damage(where: str, name: str, found: str) -> FormatError:
    """The error of an array that cannot be as it was written."""
    return FormatError(f"{where}: {name} {found}, so the content is damaged; make it again from its input")


def pieces(count: int, width: int = 1, overlap: int = 0) -> Iterator[slice]:
    """Slices of `count` lines of `width` numbers; each reaches `overlap` lines into the next."""
    step = max(PIECE // max(width, 1), 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step + overlap, count))
