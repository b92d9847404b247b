"""From Arrow columns to arrays: ids, embeddings and features, with the reason for each bad row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stcli.errors import InputError


@dataclass(frozen=True)
class IdType:
    """How ids are kept: `int64`, or `string` as UTF-8 bytes."""

    name: str

    @property
    def is_string(self) -> bool:
        """Ids are strings."""
        return self.name == "string"


@dataclass
class BadRows:
    """Rows of a batch that cannot be used.

    Attributes:
        bad: bool [rows].
        reasons: reason of each bad row, by its number in the batch; the first one found stays.
    """

    bad: np.ndarray
    reasons: dict[int, str]

    @classmethod
    def none(cls, rows: int) -> BadRows:
        """No bad row among `rows`."""
        return cls(np.zeros(rows, bool), {})

    def mark(self, mask: np.ndarray, reason: str | list[str]) -> None:
        """Mark the rows of a bool mask; `reason` may be a list with one text a marked row."""
        for place, row in enumerate(np.flatnonzero(mask)):
            self.reasons.setdefault(int(row), reason if isinstance(reason, str) else reason[place])
        self.bad |= mask


def id_type(kind: pa.DataType, where: str) -> IdType:
    """Whether a column can serve as ids.

    Raises:
        InputError: neither integer nor string.
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind):
        return IdType("int64")
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return IdType("string")
    raise InputError(f"{where} is {kind}; ids must be an integer or a string column")


def read_ids(column: pa.Array, bad: BadRows, name: str = "id") -> pa.Array:
    """Ids as int64 or large_string; nulls and integers beyond int64 are marked bad (and become 0 or "").

    `name` is the column's, for the reasons.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    nulls = column.is_null().to_numpy(zero_copy_only=False)
    bad.mark(nulls, f"column {name!r} is null")
    if not pa.types.is_integer(column.type):
        return pc.fill_null(column.cast(pa.large_string()), "")
    if column.type == pa.uint64():
        over = pc.fill_null(pc.greater(column, pa.scalar(2**63 - 1, pa.uint64())), False).to_numpy(zero_copy_only=False)
        bad.mark(over, f"column {name!r} is above 2^63 - 1")
        column = pc.if_else(pa.array(over), pa.scalar(0, pa.uint64()), column)
    return pc.fill_null(column.cast(pa.int64()), 0)


def embedding_type(kind: pa.DataType, where: str) -> tuple[np.dtype, int | None]:
    """Dtype in which an embedding column is kept (float16 or float32), and its length if the type fixes it.

    Raises:
        InputError: not a list of floats.
    """
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{where} is {kind}; an embedding must be a list of float16, float32 or float64")
    dim = kind.list_size if pa.types.is_fixed_size_list(kind) else None
    return np.dtype(np.float16 if kind.value_type == pa.float16() else np.float32), dim


def usual_length(column: pa.Array) -> int | None:
    """Length of most lists that are neither null nor empty (a row that is wrong may be the first); None of none."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    counts = np.bincount(lengths[lengths > 0])
    return int(counts.argmax()) if len(counts) else None


def read_embeddings(column: pa.Array, dim: int, dtype: np.dtype, bad: BadRows, name: str = "embedding") -> np.ndarray:
    """Embeddings as [rows, dim]; null, another length, null inside, NaN and infinite values are marked bad.

    Bad rows are zero in the result. `name` is the column's, for the reasons.
    """
    where = f"column {name!r}"
    rows = len(column)
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    bad.mark(lengths == -1, f"{where} is null")
    wrong = (lengths != dim) & (lengths >= 0)
    bad.mark(wrong, [f"{where} has length {length} where {dim} was expected" for length in lengths[wrong]])
    usable = lengths == dim
    if not usable.all():
        column = column.filter(pa.array(usable))
    values = column.flatten()
    holes = None
    if values.null_count:
        holes = values.is_null().to_numpy(zero_copy_only=False).reshape(-1, dim).any(1)
        values = pc.fill_null(
            values, pa.scalar(0.0, values.type) if values.type != pa.float16() else pa.scalar(np.float16(0))
        )
    with np.errstate(over="ignore"):
        read = values.to_numpy(zero_copy_only=False).astype(dtype, copy=False).reshape(-1, dim)
    if usable.all() and holes is None and np.isfinite(read.max(initial=0)) and np.isfinite(read.min(initial=0)):
        return read
    result = np.zeros((rows, dim), dtype)
    result[usable] = read
    if holes is not None:
        bad.mark(_spread(holes, usable), f"{where} holds a null")
    bad.mark(np.any(np.isnan(result), axis=1), f"{where} holds a NaN")
    bad.mark(np.any(np.isinf(result), axis=1), f"{where} holds an infinite value")
    result[bad.bad] = 0
    return result


def row_norms(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms, float64 [rows]: the square of a small or large float32 has no place in a float32."""
    wide = vectors.astype(np.float64)
    return np.sqrt(np.einsum("ij,ij->i", wide, wide))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """The rows divided by their norms, float32 [rows, dim]; zero rows stay zero."""
    norms = row_norms(vectors)
    return (vectors / np.where(norms == 0, 1, norms)[:, None]).astype(np.float32)


def _spread(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    full = np.zeros(len(places), bool)
    full[places] = mask
    return full


FEATURE_KINDS = ("string", "integer", "float", "boolean", "date", "timestamp")


def feature_kind(kind: pa.DataType, where: str) -> tuple[str, bool]:
    """Kind of a feature column (one of FEATURE_KINDS) and whether it is a list.

    Raises:
        InputError: the type cannot be a feature.
    """
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    value = kind.value_type if is_list else kind
    value = value.value_type if pa.types.is_dictionary(value) else value
    tests = {
        "string": pa.types.is_string(value) or pa.types.is_large_string(value),
        "integer": pa.types.is_integer(value),
        "float": pa.types.is_floating(value) or pa.types.is_decimal(value),
        "boolean": pa.types.is_boolean(value),
        "date": pa.types.is_date(value),
        "timestamp": pa.types.is_timestamp(value),
    }
    for name, holds in tests.items():
        if holds:
            return name, is_list
    raise InputError(
        f"{where} is {kind}; a feature must be a string, integer, float, boolean, date or timestamp, or a list of these"
    )


@dataclass(frozen=True)
class FeatureValues:
    """Values of one feature over the rows of a batch.

    Attributes:
        values: int64, double or large_binary, without nulls.
        lengths: int64 [rows], values a row.
        dropped: nulls inside lists and NaN, which count as no value.
    """

    values: pa.Array
    lengths: np.ndarray
    dropped: int


STORED_TYPE = {
    "string": pa.large_binary(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.int64(),
    "date": pa.int64(),
    "timestamp": pa.int64(),
}


def read_feature(column: pa.Array, kind: str, is_list: bool, where: str) -> FeatureValues:
    """The values of a feature column; dates become days, timestamps microseconds since 1970.

    Raises:
        InputError: an unsigned integer above 2^63 - 1.
    """
    if is_list:
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = column.flatten()
        if pa.types.is_fixed_size_list(column.type):
            lengths = np.where(column.is_null().to_numpy(zero_copy_only=False), 0, column.type.list_size).astype(
                np.int64
            )
    else:
        lengths = np.ones(len(column), np.int64)
        values = column
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    if kind == "float":
        values = values.cast(pa.float64())
        nan = pc.is_nan(values)
        values = pc.if_else(pc.fill_null(nan, True), pa.scalar(None, pa.float64()), values)
    missing = values.null_count
    if missing:
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        lengths = np.bincount(owner[valid], minlength=len(lengths)).astype(np.int64)
        values = values.drop_null()
    return FeatureValues(_stored(values, kind, where), lengths, missing if is_list else 0)


def _stored(values: pa.Array, kind: str, where: str) -> pa.Array:
    if kind == "string":
        return values.cast(pa.large_string()).cast(pa.large_binary())
    if kind == "float":
        return pc.add(values, 0.0)  # -0.0 + 0.0 = 0.0: the two zeros are one value
    if kind == "boolean":
        return values.cast(pa.int8()).cast(pa.int64())
    if kind == "date":
        return values.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    if kind == "timestamp":
        return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64())
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{where} holds an integer above 2^63 - 1, which cannot be kept; drop or rescale it"
        ) from error
