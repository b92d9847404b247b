"""What stands where in a manifest: checked when one is read, so that code behind it can rely on keys and types."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stcli.errors import FormatError


@dataclass(frozen=True)
class Leaf:
    """A value without parts.

    Attributes:
        words: what is expected, for messages.
        holds: whether a value is that.
    """

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


def _number(value: Any) -> bool:
    # Python reads NaN and Infinity as JSON, and whole numbers that no float holds.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


COUNT = Leaf("a whole number from 0", _whole)
SOME = Leaf("a whole number from 1", lambda value: _whole(value, 1))
ROW = Leaf("a whole number from -1", lambda value: _whole(value, -1))
NUMBER = Leaf("a number", _number)
POSITIVE = Leaf("a number above 0", lambda value: _number(value) and value > 0)
FLAG = Leaf("true or false", lambda value: isinstance(value, bool))
TEXT = Leaf("a text", lambda value: isinstance(value, str))
ANY = Leaf("anything", lambda value: True)


def one_of(*names: str) -> Leaf:
    """One of some texts."""
    return Leaf(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


@dataclass(frozen=True)
class Maybe:
    """Null or of a shape."""

    shape: Shape


@dataclass(frozen=True)
class Each:
    """An object of any keys, whose values have a shape."""

    shape: Shape


Shape = Leaf | Maybe | Each | dict[str, "Shape"] | list["Shape"] | tuple["Shape", ...]
"""An object with these keys and perhaps others (a key that ends in `?` may be absent), a list, or a list of so many."""

TABLE: Shape = {"rows": COUNT, "files": [{"bytes": COUNT, "footer_sha256": TEXT, "partition?": Each(ANY)}]}

_SLICES: Shape = ((COUNT, COUNT), (COUNT, COUNT))

_FEATURE: Shape = {
    "name": TEXT, "kind": one_of("string", "integer", "float", "boolean", "date", "timestamp"), "multi": FLAG,
    "first_term": COUNT, "num_terms": COUNT, "presence_row": ROW, "slices": Maybe(_SLICES),
}  # fmt: skip

_FILTER: Shape = {
    "num_terms": COUNT, "own_rows": COUNT, "bloom_rows": [COUNT], "num_hashes": COUNT, "bloom_fpr": NUMBER,
    "measured_fpr": Maybe(NUMBER), "fixed_width": Maybe(COUNT), "paper": FLAG, "bytes_per_item": NUMBER,
    "features": [_FEATURE],
}  # fmt: skip

_ITEMS: dict[str, Shape] = {
    "tool_version": TEXT, "num_items": SOME, "dim": SOME, "num_clusters": SOME, "cluster_sizes": [COUNT],
    "metric": one_of("inner_product", "cosine"), "scale": one_of("row", "global"), "seed": COUNT,
    "embedding_version": Maybe(TEXT), "ids": one_of("int64", "string"), "lengths_differ": FLAG, "zero_vectors": COUNT,
    "columns": [TEXT], "input": TABLE, "item_tower?": Each(TEXT), "filter": _FILTER,
    "build?": {"id_column": TEXT, "embedding_column": TEXT, "bloom_fpr": NUMBER, "filter_bytes": COUNT},
    "arrays": Each({"dtype": TEXT, "shape": [COUNT], "sha256": TEXT}),
}  # fmt: skip

INDEX_SHAPE: Shape = {**_ITEMS, "nulls_in_lists": COUNT, "rejected": COUNT}

_LEARNED: Shape = {"kind": TEXT, "tasks": [TEXT], "columns?": [TEXT], "config?": Each(ANY)}

ARTIFACT_SHAPE: Shape = {
    **_ITEMS, "index": TEXT, "embedding_dtype": one_of("float16", "float32", "none"), "embedding_dim": COUNT,
    "overarch?": _LEARNED, "tower?": _LEARNED, "shard?": {"number": COUNT, "shards": SOME, "first_row": COUNT},
    "value_models?": Each({"formula": TEXT, "nan": TEXT, "tasks": [TEXT]}),
}  # fmt: skip

SET_SHAPE: Shape = {
    "num_rows": COUNT, "num_items": COUNT,
    "shards": [
        {"file": TEXT, "fingerprint": TEXT, "first_row": COUNT, "num_items": COUNT, "first_cluster": COUNT,
         "num_clusters": COUNT},
    ],
    "fresh": Maybe({"file": TEXT, "fingerprint": TEXT, "num_items": COUNT, "items": TEXT, "input": TABLE}),
    "tombstones": Maybe({"file": TEXT, "sha256": TEXT, "count": COUNT}),
    "before?": TEXT, "drift?": Each(NUMBER), "tool_version": TEXT,
}  # fmt: skip

RESULTS_SHAPE: Shape = {
    "tool_version": TEXT, "counts": {"queries": COUNT, "results": COUNT, "short": COUNT},
    "calibration": Maybe(Each(ANY)),
    "identity": {"artifact": TEXT, "queries": {"rows": COUNT}},
    "parts": [{"name": TEXT, "rows": COUNT}],
}  # fmt: skip

REPORT_SHAPE: Shape = {
    "tool_version": TEXT, "date": TEXT, "command": TEXT, "k": SOME,
    "options": {
        "filter_column": Maybe(TEXT), "sample": SOME, "seed": COUNT, "target_recall": NUMBER, "batch_size": Maybe(SOME),
        "items": Maybe(TEXT), "truth": Maybe(TEXT),
    },
    "artifact": {"fingerprint": TEXT}, "queries": {"sampled": COUNT, "files": [ANY]}, "truth": {"over": TEXT},
    "machine": {"cpu": TEXT, "device": TEXT, "threads": COUNT}, "load": {"other_cores": Maybe(NUMBER)},
    "runs": [
        {"name": TEXT, "recall": {"mean": Maybe(NUMBER), "low": Maybe(NUMBER), "high": Maybe(NUMBER)},
         "queries_per_s": {"median": POSITIVE, "low": POSITIVE, "high": POSITIVE}},
    ],
    "latency": [{"batch_size": SOME, "ms": {"p50": NUMBER}}], "memory_bytes": Each(Maybe(COUNT)),
    "index_bytes": Each(COUNT), "checks": [{"name": TEXT, "ok": FLAG, "detail": TEXT}],
}  # fmt: skip
"""What `inspect` and `compare` read of a report; the page is drawn before it is written."""


def check_shape(value: Any, shape: Shape, where: Path | str, place: str = "") -> None:
    """Check that a part of a manifest has its shape; `place` is how a message calls the part.

    Raises:
        FormatError: naming what has another.
    """
    if isinstance(shape, Maybe):
        if value is not None:
            check_shape(value, shape.shape, where, place)
    elif isinstance(shape, Leaf):
        _require(shape.holds(value), value, shape.words, where, place)
    elif isinstance(shape, list | tuple):
        _require(isinstance(value, list), value, "a list", where, place)
        _require(isinstance(shape, list) or len(value) == len(shape), value, f"{len(shape)} entries", where, place)
        for number, entry in enumerate(value):
            check_shape(entry, shape[0], where, f"{place}[{number}]")
    else:
        _require(isinstance(value, Mapping), value, "an object", where, place)
        for key, part in (dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape).items():
            name = key.removesuffix("?")
            inside = f"{place}.{name}" if place else name
            if name in value:
                check_shape(value[name], part, where, inside)
            elif name == key:
                raise FormatError(f"{where}: has no {inside!r}, so it was edited; make it again")


def _require(holds: bool, value: Any, words: str, where: Path | str, place: str) -> None:
    if not holds:
        raise FormatError(
            f"{where}: {f'its {place!r}' if place else 'it'} is {brief(value)}, expected {words}; "
            "it was edited, make it again"
        )


def brief(value: Any) -> str:
    """A value as messages show it, 40 characters at most."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
