"""Binding a template for many queries at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from stcli.filters.parse import parse
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.template import Template
from stcli.filters.tree import all_of


class TemplatePlan:
    """A template over one index."""

    def __init__(self, template: Template, planner: Planner) -> None:
        self.template, self.planner = template, planner

    def batch(self, columns: Mapping[str, pa.Array], texts: Sequence[str | None] | None = None) -> FilterBatch:
        """Bind the template for B queries; each is ANDed with its text."""
        count = len(next(iter(columns.values()))) if columns else len(texts or ())
        values = {name: column.to_pylist() for name, column in columns.items()}
        trees = []
        for query in range(count):
            bound = self.template.bind({name: column[query] for name, column in values.items()})
            text = parse(texts[query]) if texts is not None and texts[query] is not None else None
            parts = [node for node in (bound, text) if node is not None]
            trees.append(all_of(parts) if parts else None)
        return self.planner.batch(trees)
