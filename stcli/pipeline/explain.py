"""`explain`: what becomes of one filter, and what it costs."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli.errors import InputError
from stcli.filters.bounds import Rows
from stcli.filters.exact import TermRows
from stcli.filters.lexicon import feature_text, value_text
from stcli.filters.parse import parse
from stcli.filters.program import FilterPlan, row_program
from stcli.filters.source import GivenFilters
from stcli.filters.tree import to_text
from stcli.filters.vocabulary import Feature
from stcli.model.admitted import Admitted
from stcli.model.open import open_artifact
from stcli.model.retriever import Retriever
from stcli.model.segment import Segment
from stcli.storage.remote import on_any_filesystem
from stcli.storage.steering import check_all
from stcli.types import LEAF_ALL, LEAF_BLOOM, LEAF_EQUAL, LEAF_LESS, LEAF_NONE, LEAF_OWN

LEAVES_SHOWN = 24
NEIGHBOURS = 2_000
"""Values on either side of the place of an unknown one, among which the most similar is looked for."""


@on_any_filesystem("model")
def explain(model: str | Path, filter: str) -> dict[str, Any]:
    """Explain a filter on an artifact.

    Args:
        model: artifact made by `pack_model`.
        filter: its text.

    Returns:
        The canonical text, the row program and the rows it reads (after an update as a mapping, for the `main` part and
        the `fresh` one), whether it is exact, how candidates are verified, how many items the bit matrix admits, how
        many are eligible and how many of these it lost (the paper's form loses some under NOT), the measured share of
        ineligible items that it admits, and each literal that is no value of its feature with the value nearest to it.

    Raises:
        FilterError: it does not parse or names something unknown.
        InputError: it is empty.
    """
    opened = open_artifact(model)
    for part in opened.artifacts:
        check_all(part.manifest, part.arrays, str(part.path))
    # Shards have one vocabulary, and so one plan; fresh items have another.
    fresh = [segment for segment in opened.segments if segment.planner is not opened.planner]
    named = dict(zip(("main", "fresh"), (opened.segments[0], *fresh), strict=False))
    tree = parse(filter)
    plans = {name: plan for name, part in named.items() if (plan := part.planner.plan(filter)) is not None}
    if tree is None or not plans:
        raise InputError("--filter: is empty; expected a condition such as  category = 'book'")
    shown = {name: show_rows(plan.rows, named[name]) for name, plan in plans.items()}
    read = {name: rows_read(plan, named[name]) for name, plan in plans.items()}
    exact = all(plan.exact for plan in plans.values())
    filters = GivenFilters(opened.planner, [filter])
    ((_, batch),) = opened.batches(filters, 0, 1)
    parts = zip(opened.segments, opened.admit(batch), strict=True)
    admitted, eligible, both = np.sum([count_items(*part, filter) for part in parts], axis=0).tolist()
    ineligible = opened.num_items - eligible
    return {
        "command": "explain",
        "filter": to_text(tree),
        "plan": shown if fresh else shown["main"],
        "rows_read": read if fresh else read["main"],
        "exact": exact,
        "verification": verification(exact, opened.manifest["filter"]["paper"]),
        "items": {"all": opened.num_items, "admitted": admitted, "eligible": eligible, "lost": eligible - both},
        "false_positives": (admitted - both) / ineligible if ineligible else 0.0,
        "unknown_values": unknown_values(opened, filter),
    }


def verification(exact: bool, paper: bool) -> str:
    """What `retrieve` does by default about admitted items that are not eligible."""
    if exact:
        return "not needed, the plan is exact"
    return "none, as in the paper's form" if paper else "candidates are checked by their exact terms"


def unknown_values(model: Retriever, filter: str) -> dict[str, str]:
    """The literals of a filter that no segment knows, each with what is nearest to it."""
    known_nowhere = set.intersection(*(set(segment.planner.unknown_literals(filter)) for segment in model.segments))
    return {
        f"{feature_text(name)} = {value_text(literal)}": nearest_value(model.planner.vocabulary.by_name[name], literal)
        for name, literal in model.planner.unknown_literals(filter)
        if (name, literal) in known_nowhere
    }


def nearest_value(feature: Feature, literal: Any) -> str:
    """Tells the most similar string, or the numbers or times before and after."""
    place, _ = feature.span(literal)
    reach = NEIGHBOURS if feature.kind == "string" else 1
    near = [feature.value(rank) for rank in range(max(place - reach, 0), min(place + reach, feature.num_terms))]
    if feature.kind == "string":
        near = get_close_matches(literal, near, n=1)
    return "nearest " + " and ".join(value_text(value) for value in near) if near else "nothing near"


def count_items(segment: Segment, part: Admitted, filter: str) -> tuple[int, int, int]:
    """Items of a segment that its bit matrix admits, that satisfy the filter by their exact terms, and both."""
    rows = segment.living_rows()
    eligible = TermRows(segment.terms, rows).eligible(segment.planner.plan(filter))
    admitted = np.ones(len(rows), bool)
    words, lines = part.whole(torch.zeros(1, dtype=torch.int64))
    if words is not None and lines[0] >= 0:
        line = words[lines[0]].cpu().numpy()
        admitted = np.unpackbits(line.view(np.uint8), bitorder="little")[rows] > 0
    return int(admitted.sum()), int(eligible.sum()), int((admitted & eligible).sum())


def rows_read(plan: FilterPlan, segment: Segment) -> int:
    """Rows of the bit matrix that the program reads, each distinct leaf once."""
    program = row_program([plan])
    sizes = {LEAF_OWN: 1, LEAF_BLOOM: int(segment.manifest["filter"]["num_hashes"])}
    leaves = program.leaves[torch.unique(program.ops[program.ops >= 0]).long()]
    return sum(sizes.get(kind, bits if kind in (LEAF_LESS, LEAF_EQUAL) else 0) for kind, _, bits, _ in leaves.tolist())


def show_rows(expression: Rows, segment: Segment) -> str:
    """A row expression for people, with the names of features and values."""
    if expression[0] == "leaf":
        return _show_leaf(expression[1:], segment)
    if expression[0] == "not":
        return f"NOT {show_rows(expression[1], segment)}"
    parts = [show_rows(part, segment) for part in expression[1 : LEAVES_SHOWN + 1]]
    parts += [f"... {len(expression) - 1 - LEAVES_SHOWN} more"] if len(expression) - 1 > LEAVES_SHOWN else []
    return "(" + f" {expression[0].upper()} ".join(parts) + ")"


def _show_leaf(leaf: tuple[int, int, int, int], segment: Segment) -> str:
    kind, first, _, code = leaf
    if kind in (LEAF_ALL, LEAF_NONE):
        return "everything" if kind == LEAF_ALL else "nothing"
    if kind == LEAF_BLOOM:
        return f"bloom[{segment.planner.vocabulary.describe(first)}]"
    layout = segment.planner.layout
    for feature in segment.planner.vocabulary.features:
        place = layout.features[feature.name]
        if kind == LEAF_OWN and place.presence_row == first:
            return f"row[{feature.name} has a value]"
        if kind != LEAF_OWN and place.slices is not None and first in (place.slices[0][0], place.slices[1][0]):
            side = "" if not feature.multi else "largest " if first == place.slices[1][0] else "smallest "
            if kind == LEAF_LESS and code == 1:
                return f"slices[{feature.name} has no value]"
            value = feature.value(min(code - 1, feature.num_terms - 1))
            sign = "=" if kind == LEAF_EQUAL else "<" if code <= feature.num_terms else "<="
            return f"slices[{side}{feature.name} {sign} {value!r}]"
    term = int(torch.nonzero(layout.plan.own_row == first)[0])
    return f"row[{segment.planner.vocabulary.describe(term)}]"
