"""Value models of an artifact: checked when packing, ready when scoring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stcli.errors import FormulaError, InputError, nearest
from stcli.formulas.parse import parse_formula
from stcli.formulas.sugar import ValueModelText, read_value_model, read_value_models
from stcli.formulas.tree import ALONE, Name, post_order
from stcli.formulas.value_model import ValueModel
from stcli.pipeline.columns import KeptColumns


def given_value_models(given: Sequence[str], path: str | None) -> dict[str, ValueModelText]:
    """The value models of `--value-model NAME=FORMULA` and of the JSON file of `--value-models`.

    Raises:
        InputError: the file cannot be read, an option has no name, or a name is given twice.
        FormulaError: a formula does not parse.
    """
    found: dict[str, ValueModelText] = {}
    if path is not None:
        try:
            text = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"--value-models {path}: cannot be read ({error}); expected a JSON object of formulas"
            ) from error
        found = read_value_models(text, f"--value-models {path}")
    for option in given:
        name, equals, text = option.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"--value-model {option[:60]!r}: expected NAME=FORMULA, such as feed='0.5 * task.like'")
        if name in found:
            raise InputError(f"--value-model {name}: is given twice; give each name once")
        found[name] = read_value_model(name, text)
    return found


def pack_value_models(
    texts: Mapping[str, ValueModelText], tasks: Sequence[str] | None, kept: KeptColumns
) -> dict[str, dict[str, Any]]:
    """Check value models against what the artifact has; what the manifest keeps of each.

    Args:
        texts: from `given_value_models`.
        tasks: names of the tasks, or None where no OverArch tells: then a formula may name any, and the requests must
            bring them.
        kept: the kept item columns.

    Raises:
        FormulaError: a name is unknown or of another type than its place needs.
    """
    entries = {}
    for name, text in texts.items():
        model = _resolved(name, text, tasks, kept)
        entries[name] = {"formula": str(model.formula), "nan": model.nan, "tasks": list(model.columns("task"))}
    return entries


def open_value_model(
    manifest: Mapping[str, Any], name: str, tasks: Sequence[str], kept: KeptColumns, where: str = "--value-model"
) -> ValueModel:
    """A value model of an artifact by name, ready to score requests that bring these tasks.

    Its `columns("item")` are read with `KeptColumns.values`, its `columns("query")` from the query table, where
    `formula_kind` must give what `kinds` says, with `formula_values`.

    Raises:
        InputError: there is none of that name, or it reads a task that there is not.
    """
    entries = manifest.get("value_models", {})
    if name not in entries:
        raise InputError(
            f"{where} {name}: the artifact has no such value model; {nearest(name, list(entries))} "
            "(pack-model --value-model)"
        )
    text = ValueModelText(entries[name]["formula"], entries[name]["nan"])
    return _resolved(name, text, tasks, kept)


def _resolved(name: str, text: ValueModelText, tasks: Sequence[str] | None, kept: KeptColumns) -> ValueModel:
    names = {f"item.{column}": kind for column, kind in kept.kinds().items()}
    names |= dict.fromkeys(ALONE, "number")
    if tasks is None:
        read = {node.name for node in post_order(parse_formula(text.formula).tree) if isinstance(node, Name)}
        names |= {name: "number" for name in read if name.startswith("task.")}
    else:
        names |= {f"task.{task}": "number" for task in tasks}
    try:
        return ValueModel.make(name, text.formula, names, open_scopes=("query",), nan=text.nan)
    except FormulaError as error:
        hint = "\nitem columns are kept by build-index --keep-columns" if "no item." in str(error) else ""
        raise FormulaError(f"value model {name!r}: {error}{hint}") from error
