"""The filters of many queries, handed out tile by tile as `FilterBatch`es."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa

from stcli.errors import FilterError
from stcli.filters.bind import ReadQueries, TemplatePlan
from stcli.filters.lexicon import FeatureValue
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.tree import Node


class FilterSource(Protocol):
    """Filters of a number of queries."""

    def __len__(self) -> int:
        """Number of queries."""

    def batch(self, start: int, stop: int) -> FilterBatch:
        """Plan the filters of queries `start … stop - 1`."""

    def take(self, queries: np.ndarray) -> FilterSource:
        """The filters of some queries, int64 [b]."""

    def over(self, planner: Planner) -> FilterSource:
        """The same filters, planned over another index with features of the same names and types."""

    def unknown_values(self, others: Sequence[Planner] = ()) -> int:
        """Literals in the filter texts that are no value of their feature, nor are over other planners."""

    def first_unknown(self, others: Sequence[Planner] = ()) -> FeatureValue | None:
        """The first of these literals."""


@dataclass(frozen=True)
class GivenFilters:
    """A text or tree, or None, for each query."""

    planner: Planner
    given: Sequence[str | Node | None]

    def __len__(self) -> int:
        return len(self.given)

    def check(self) -> dict[int, FilterError]:
        """The queries whose filter cannot be used, with the reason."""
        return self.planner.check(self.given)

    def batch(self, start: int, stop: int) -> FilterBatch:
        """Plan the filters of queries `start … stop - 1`."""
        return self.planner.batch(self.given[start:stop])

    def take(self, queries: np.ndarray) -> GivenFilters:
        """The filters of some queries, int64 [b]."""
        return GivenFilters(self.planner, [self.given[query] for query in queries.tolist()])

    def over(self, planner: Planner) -> GivenFilters:
        """The same filters, planned over another index."""
        return GivenFilters(planner, self.given)

    def unknown_values(self, others: Sequence[Planner] = ()) -> int:
        """Literals in the filters that are no value of their feature, nor are over other planners."""
        return self.planner.unknown_values(self.given, others)

    def first_unknown(self, others: Sequence[Planner] = ()) -> FeatureValue | None:
        """The first of these literals."""
        return self.planner.first_unknown(self.given, others)


@dataclass(frozen=True)
class BoundFilters:
    """One template for all queries, bound from a column for each placeholder, ANDed with a text for each query."""

    plan: TemplatePlan
    columns: Mapping[str, pa.Array]
    texts: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def _all(self) -> ReadQueries:
        return self.plan.read(self.columns, self.texts)

    def check(self) -> dict[int, FilterError]:
        """The queries whose filter cannot be used, with the reason."""
        return self.plan.check(self._all)

    def batch(self, start: int, stop: int) -> FilterBatch:
        """Bind and plan the filters of queries `start … stop - 1`."""
        if (start, stop) == (0, len(self)):
            return self.plan.batch(self._all)
        columns = {name: column.slice(start, stop - start) for name, column in self.columns.items()}
        return self.plan.batch(self.plan.read(columns, self.texts[start:stop]))

    def take(self, queries: np.ndarray) -> BoundFilters:
        """The filters of some queries, int64 [b]."""
        chosen = pa.array(queries)
        columns = {name: column.take(chosen) for name, column in self.columns.items()}
        return BoundFilters(self.plan, columns, [self.texts[query] for query in queries.tolist()])

    def over(self, planner: Planner) -> BoundFilters:
        """The same filters, planned over another index."""
        return BoundFilters(self.plan.over(planner), self.columns, self.texts)

    def unknown_values(self, others: Sequence[Planner] = ()) -> int:
        """Literals in texts and template that are no value of their feature, nor are over other planners.

        Bound values are not counted.
        """
        in_texts = self.plan.planner.unknown_values(self.texts, others)
        return in_texts + len(self) * len(self.plan.unknown_literals(others))

    def first_unknown(self, others: Sequence[Planner] = ()) -> FeatureValue | None:
        """The first of these literals."""
        return next(iter(self.plan.unknown_literals(others)), None) or self.plan.planner.first_unknown(
            self.texts, others
        )


@dataclass(frozen=True)
class PlannedFilters:
    """Filters that were planned before their search, so that whoever searches touches no planner.

    Attributes:
        source: what they were planned from.
        planned: all of them.
        elsewhere: the same over other planners, by their `id`.
    """

    source: FilterSource
    planned: FilterBatch
    elsewhere: Mapping[int, PlannedFilters]

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, start: int, stop: int) -> FilterBatch:
        """The filters of queries `start … stop - 1`."""
        return self.planned.slice(start, stop)

    def take(self, queries: np.ndarray) -> FilterSource:
        """The filters of some queries, int64 [b], not planned yet."""
        return self.source.take(queries)

    def over(self, planner: Planner) -> FilterSource:
        """The same filters over another index."""
        return self.elsewhere.get(id(planner)) or self.source.over(planner)

    def unknown_values(self, others: Sequence[Planner] = ()) -> int:
        """Literals in the filter texts that are no value of their feature, nor are over other planners."""
        return self.source.unknown_values(others)

    def first_unknown(self, others: Sequence[Planner] = ()) -> FeatureValue | None:
        """The first of these literals."""
        return self.source.first_unknown(others)
