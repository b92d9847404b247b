"""Small item tables of all kinds of columns."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EPOCH = datetime.date(1970, 1, 1)
MOMENT = datetime.datetime(1970, 1, 1)


def write_items(path: Path, columns: dict, **options) -> Path:
    """A Parquet file of the columns; `item_id` is 0, 1, 2 … unless given."""
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"item_id": pa.array(range(rows), pa.int64()), **columns}), path, **options)
    return path


def vectors(rows: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """float32 [rows, dim] around a few centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, dim))
    return (centres[rng.integers(8, size=rows)] + 0.4 * rng.normal(size=(rows, dim))).astype(np.float32)


def fixed(values: np.ndarray) -> pa.Array:
    """Vectors [rows, dim] as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def mixed_columns(rows: int, seed: int = 0) -> dict[str, pa.Array]:
    """A feature of each type and shape, with nulls, empty lists, nulls in lists and repeated values."""
    rng = np.random.default_rng(seed)

    def scalar(values, kind):
        picked = [values[i] for i in rng.integers(0, len(values), rows)]
        return pa.array([None if rng.random() < 0.1 else value for value in picked], kind)

    def several(values, kind):
        lists = [[values[i] for i in rng.integers(0, len(values), size)] for size in rng.integers(0, 5, rows)]
        lists = [[None if rng.random() < 0.1 else value for value in line] for line in lists]
        return pa.array([None if rng.random() < 0.1 else line for line in lists], kind)

    days = [EPOCH + datetime.timedelta(int(day)) for day in rng.integers(-400, 20_000, 30)]
    moments = [MOMENT + datetime.timedelta(microseconds=int(us)) for us in rng.integers(-(10**15), 10**15, 30)]
    numbers = [*rng.integers(-(2**62), 2**62, 20).tolist(), 0, 1, 2, 3]
    floats = [*rng.normal(size=20).tolist(), 0.0, -0.0, float("inf"), float("nan")]
    words = ["", "a", "ab", "B", "ä", "\U0001f600", *(f"w{i}" for i in range(30))]
    return {
        "boolean": scalar([True, False], pa.bool_()),
        "date": scalar(days, pa.date32()),
        "dates": several(days, pa.list_(pa.date32())),
        "float": scalar(floats, pa.float64()),
        "floats": several(floats, pa.list_(pa.float64())),
        "integer": scalar(numbers, pa.int64()),
        "integers": several(numbers, pa.list_(pa.int64())),
        "string": scalar(words, pa.string()),
        "strings": several(words, pa.large_list(pa.large_string())),
        "timestamp": scalar(moments, pa.timestamp("us")),
    }


def feature_values(value: object) -> list:
    """What the item has of a feature, as it is kept: distinct, ascending; strings by their UTF-8 bytes."""
    found = set()
    for one in value if isinstance(value, list) else [value]:
        if one is None or one != one:
            continue
        if isinstance(one, str):
            found.add(one.encode())
        elif isinstance(one, datetime.datetime):
            found.add((one - MOMENT) // datetime.timedelta(microseconds=1))
        elif isinstance(one, datetime.date):
            found.add((one - EPOCH).days)
        else:
            found.add(one + 0.0 if isinstance(one, float) else int(one))
    return sorted(found)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ROWS, DIM = 240, 10
OPTIONS = {"clusters": 8, "small_features": False}
"""Of a build of `mixed_items`."""


def mixed_items(seed: int = 0, rows: int = ROWS) -> dict[str, pa.Array]:
    """Ids in no order, embeddings, and a feature of each type and shape."""
    ids = np.random.default_rng(seed).permutation(rows) * 3 - 50
    return {"item_id": pa.array(ids), "embedding": fixed(vectors(rows, DIM, seed)), **mixed_columns(rows, seed)}
