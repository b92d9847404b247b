"""The rules on results that a run was given, with the groups of its artifact's items."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stcli.errors import InputError
from stcli.model.rules import Rules
from stcli.pipeline.columns import KeptColumns


def read_rules(max_per: Sequence[str], distinct_by: Sequence[str], kept: KeptColumns) -> Rules | None:
    """The rules of `--max-per COLUMN=N` and `--distinct-by COLUMN`; None if there are none.

    Raises:
        InputError: not of that form, a column twice, or one that is not kept or makes no groups.
    """
    limits: dict[str, int] = {}
    for option, column, limit in [("--max-per", *_cap(text)) for text in max_per] + [
        ("--distinct-by", column, 1) for column in distinct_by
    ]:
        if column in limits:
            raise InputError(f"{option} {column}: the column has a rule already; give one rule a column")
        limits[column] = limit
    if not limits:
        return None
    options = {column: "--distinct-by" if column in distinct_by else "--max-per" for column in limits}
    groups = [kept.groups(column, options[column]) for column in limits]
    return Rules(torch.stack(groups), torch.tensor(list(limits.values()), dtype=torch.int64))


def _cap(text: str) -> tuple[str, int]:
    column, _, limit = text.rpartition("=")
    if not column or not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:18]) < 2**31:
        raise InputError(f"--max-per {text[:60]!r}: expected COLUMN=N with N at least 1, such as seller=2")
    return column, int(limit)
