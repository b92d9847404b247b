"""From the filters of a batch to the tensors that the operations take.

A batch names each distinct filter once; `filter_of_query` says which one a query has. The same
filter becomes a row program (its upper bound on the bit matrix) and a term program (exact, for
verification).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from stcli.errors import FilterError
from stcli.filters.bounds import Bounder, Rows, TermSet, Unknown, resolve
from stcli.filters.layout import Layout
from stcli.filters.parse import parse
from stcli.filters.tree import And, Constant, Node, Not, Or, check
from stcli.filters.vocabulary import Vocabulary
from stcli.types import OP_AND, OP_NOT, OP_OR, Program, TermProgram

CACHE_SIZE = 1 << 16
"""Distinct filter texts whose plans are kept between batches."""


@dataclass(frozen=True)
class FilterPlan:
    """One filter, planned: everything that does not depend on the batch it is in.

    Attributes:
        rows: row expression of the upper bound.
        exact: the row expression holds for eligible items only.
        terms: the resolved tree, exact.
        unknown_values: literals that are no value of their feature.
    """

    rows: Rows
    exact: bool
    terms: Node
    unknown_values: int


@dataclass(frozen=True)
class FilterBatch:
    """The filters of a batch of queries.

    Attributes:
        filter_of_query: int64 [B], which filter a query has; -1 for none.
        program: F row programs, or None if no query has a filter.
        terms: F term programs, or None.
        num_filters: F, distinct filters.
    """

    filter_of_query: torch.Tensor
    program: Program | None
    terms: TermProgram | None
    num_filters: int

    def to(self, device: torch.device) -> FilterBatch:
        """The same on another device."""
        if device.type == "cpu" and self.filter_of_query.device.type == "cpu":
            return self
        return replace(
            self,
            filter_of_query=self.filter_of_query.to(device, non_blocking=True),
            program=None if self.program is None else _moved(self.program, device),
            terms=None if self.terms is None else _moved(self.terms, device),
        )


P = TypeVar("P", Program, TermProgram)


def _moved(program: P, device: torch.device) -> P:
    """A program with its tensors on `device`."""
    tensors: dict[str, Any] = {
        name: value.to(device, non_blocking=True)
        for name, value in vars(program).items()
        if isinstance(value, torch.Tensor)
    }
    return replace(program, **tensors)


@dataclass
class Planner:
    """Plans filters over one index; keeps the plans of recent texts.

    Attributes:
        vocabulary: the terms of the index.
        layout: its bit matrix.
    """

    vocabulary: Vocabulary
    layout: Layout
    _bounder: Bounder = field(init=False, repr=False)
    _plans: OrderedDict[str | Node, FilterPlan | None] = field(init=False, repr=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._bounder = Bounder(self.layout)

    def plan(self, given: str | Node | None) -> FilterPlan | None:
        """Plan one filter, a text or a tree; None (or empty text) means no filter.

        Raises:
            FilterError: it does not parse, names an unknown feature or compares with another type.
        """
        if given is None:
            return None
        if given in self._plans:
            self._plans.move_to_end(given)
            return self._plans[given]
        text = given if isinstance(given, str) else ""
        if isinstance(given, str):
            node = parse(given)
        else:
            check(given)
            node = given
        planned = None
        if node is not None:
            unknown = Unknown()
            terms = resolve(node, self.vocabulary, text, unknown)
            rows, exact = self._bounder.upper(terms)
            planned = FilterPlan(rows, exact, terms, unknown.values)
        self._plans[given] = planned
        if len(self._plans) > CACHE_SIZE:
            self._plans.popitem(last=False)
        return planned

    def check(self, given: Sequence[str | Node | None]) -> dict[int, FilterError]:
        """The queries whose filter cannot be used, with the reason."""
        failed: dict[int, FilterError] = {}
        known: dict[str | Node, FilterError] = {}
        for query, item in enumerate(given):
            if item is None:
                continue
            if item not in known and item not in self._plans:
                try:
                    self.plan(item)
                except FilterError as error:
                    known[item] = error
            if item in known:
                failed[query] = known[item]
        return failed

    def unknown_values(self, given: Sequence[str | Node | None]) -> int:
        """Literals in the filters of these queries that are no value of their feature."""
        plans = (self.plan(item) for item in given if item is not None)
        return sum(planned.unknown_values for planned in plans if planned is not None)

    def batch(self, given: Sequence[str | Node | None]) -> FilterBatch:
        """Plan the filters of a batch of queries.

        Raises:
            FilterError: as `plan`.
        """
        number: dict[int, int] = {}
        plans: list[FilterPlan] = []
        filter_of_query = torch.full((len(given),), -1, dtype=torch.int64)
        for query, item in enumerate(given):
            planned = self.plan(item)
            if planned is None:
                continue
            if id(planned) not in number:
                number[id(planned)] = len(plans)
                plans.append(planned)
            filter_of_query[query] = number[id(planned)]
        if not plans:
            return FilterBatch(filter_of_query, None, None, 0)
        return FilterBatch(filter_of_query, row_program(plans), term_program(plans), len(plans))


class _Writer:
    """Collects leaves and postfix operations of several filters."""

    def __init__(self) -> None:
        self.leaves: dict[object, int] = {}
        self.ops: list[int] = []
        self.op_offsets = [0]
        self.max_depth = 0
        self._depth = 0

    def leaf(self, key: object) -> None:
        self.ops.append(self.leaves.setdefault(key, len(self.leaves)))
        self._depth += 1
        self.max_depth = max(self.max_depth, self._depth)

    def operate(self, op: int) -> None:
        self.ops.append(op)
        self._depth -= op != OP_NOT

    def end(self) -> None:
        self.op_offsets.append(len(self.ops))
        self._depth = 0


def row_program(plans: Sequence[FilterPlan]) -> Program:
    """The row programs of F filters, each distinct leaf once."""
    writer = _Writer()

    def write(expression: Rows) -> None:
        if expression[0] == "leaf":
            writer.leaf(expression[1:])
        elif expression[0] == "not":
            write(expression[1])
            writer.operate(OP_NOT)
        else:
            for place, part in enumerate(expression[1:]):
                write(part)
                if place:
                    writer.operate(OP_AND if expression[0] == "and" else OP_OR)

    for plan in plans:
        write(plan.rows)
        writer.end()
    return Program(
        leaves=torch.tensor(list(writer.leaves), dtype=torch.int64).reshape(-1, 4),
        ops=torch.tensor(writer.ops, dtype=torch.int32),
        op_offsets=torch.tensor(writer.op_offsets, dtype=torch.int64),
        exact=torch.tensor([plan.exact for plan in plans]),
        max_depth=writer.max_depth,
    )


def term_program(plans: Sequence[FilterPlan]) -> TermProgram:
    """The term programs of F filters, each distinct leaf once."""
    writer = _Writer()

    def write(node: Node) -> None:
        if isinstance(node, TermSet):
            writer.leaf(node.intervals)
        elif isinstance(node, Constant):
            writer.leaf(())
            if node.value:
                writer.operate(OP_NOT)
        elif isinstance(node, Not):
            write(node.child)
            writer.operate(OP_NOT)
        else:
            assert isinstance(node, And | Or)
            for place, child in enumerate(node.children):
                write(child)
                if place:
                    writer.operate(OP_AND if isinstance(node, And) else OP_OR)

    for plan in plans:
        write(plan.terms)
        writer.end()
    intervals: list[tuple[tuple[int, int], ...]] = list(writer.leaves)  # type: ignore[arg-type]
    flat = torch.tensor([span for leaf in intervals for span in leaf], dtype=torch.int32).reshape(-1, 2)
    sizes = torch.tensor([0] + [len(leaf) for leaf in intervals], dtype=torch.int64)
    return TermProgram(
        lows=flat[:, 0].contiguous(),
        highs=flat[:, 1].contiguous(),
        leaf_offsets=torch.cumsum(sizes, 0),
        ops=torch.tensor(writer.ops, dtype=torch.int32),
        op_offsets=torch.tensor(writer.op_offsets, dtype=torch.int64),
        max_depth=writer.max_depth,
    )
