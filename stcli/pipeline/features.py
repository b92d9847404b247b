"""Columns as the numbers that a model reads: scaled numbers, and rows of learned tables for categories."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import InputError
from stcli.model.config_fields import Column
from stcli.model.layers import Weights


def check_column(column: Column, kind: pa.DataType, where: str) -> None:
    """Check that a column of a table has a type that the model can read.

    Raises:
        InputError: a number was expected.
    """
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if column.kind == "number" and not numeric:
        raise InputError(f"{where} is {kind}; expected numbers, or the kind 'category'")


def column_numbers(column: Column, values: pa.Array, weights: Weights, where: str) -> torch.Tensor:
    """What a model reads of a column: float32 [rows, column.dim].

    Args:
        column: as the model's config has it.
        values: its values.
        weights: of the model.
        where: how messages call the config.

    Raises:
        InputError: the values of a category are of another type.
    """
    if column.kind == "number":
        numbers = torch.from_numpy(
            np.array(pc.fill_null(values.cast(pa.float64()), column.mean).to_numpy(zero_copy_only=False))
        )
        scaled = (numbers - column.mean) / column.std
        return torch.where(scaled.isfinite(), scaled, 0).float()[:, None]
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    try:
        known = pa.array(column.values).cast(values.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{where}: the values of column {column.name!r} are not {values.type}, as the table has it"
        ) from error
    place = pc.fill_null(pc.index_in(values, value_set=known), -1).to_numpy(zero_copy_only=False)
    return weights[f"columns.{column.name}.weight"][torch.from_numpy(place.astype(np.int64)) + 1]
