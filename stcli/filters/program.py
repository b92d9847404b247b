"""From the filters of a batch to the tensors that the operations take.

A batch names each distinct filter once; `filter_of_query` says which one a query has. The same
filter becomes a row program (its upper bound on the bit matrix) and a term program (exact, for
verification).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from stcli.errors import FilterError
from stcli.filters.bounds import Bounder, Rows, Unknown, resolve
from stcli.filters.layout import Layout
from stcli.filters.lexicon import FeatureValue
from stcli.filters.parse import parse
from stcli.filters.pieces import Code, Pieces
from stcli.filters.texts import TextReader
from stcli.filters.tree import Node, check
from stcli.filters.vocabulary import Vocabulary
from stcli.ops.segments import expand
from stcli.types import Program, TermProgram, moved

CACHE_SIZE = 1 << 16
"""Distinct filter texts whose plans are kept between batches."""

LEAST_TEXTS = 4
"""Texts that are read together: a call takes 0.18 ms, planning a text in Python 0.03 to 0.3 ms."""


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

    def code(self) -> Code:
        """Both forms as bytes."""
        return Code.of(self.rows, self.exact, self.terms, self.unknown_values)


@dataclass(frozen=True)
class FilterBatch:
    """The filters of a batch of queries.

    Attributes:
        filter_of_query: int64 [B], which filter a query has; -1 for none.
        program: F row programs, or None if no query has a filter.
        terms: F term programs, or None.
        num_filters: F, distinct filters.
        unknown_values: literals that are no value of their feature, summed over the queries.
        sent: the same on devices that it was sent to ahead.
    """

    filter_of_query: torch.Tensor
    program: Program | None
    terms: TermProgram | None
    num_filters: int
    unknown_values: int = 0
    sent: Mapping[torch.device, FilterBatch] = field(default_factory=dict)

    @classmethod
    def of(cls, filter_of_query: np.ndarray, filters: Pieces, unknown_values: int) -> FilterBatch:
        """Write the programs of F filters, one a piece."""
        count = len(filters.exact)
        rows, terms = (filters.program(), filters.term_program()) if count else (None, None)
        return cls(torch.from_numpy(filter_of_query), rows, terms, count, unknown_values)

    def split(self, most: int) -> Iterator[tuple[int, FilterBatch]]:
        """Cut into runs of queries with at most `most` distinct filters each, as (number of queries, batch).

        Their `unknown_values` are 0.
        """
        filters = self.filter_of_query
        if self.num_filters <= most:
            yield len(filters), self
            return
        before = _last_before(filters)
        start = 0
        while start < len(filters):
            distinct = ((before[start:] < start) & (filters[start:] >= 0)).cumsum(0)
            count = int((distinct <= most).sum())
            yield count, self.only(filters[start : start + count])
            start += count

    def slice(self, start: int, stop: int) -> FilterBatch:
        """The filters of queries `start … stop - 1`; their `unknown_values` are 0 unless these are all."""
        part = self.filter_of_query[start:stop]
        return self if len(part) == len(self.filter_of_query) else self.only(part)

    def only(self, filter_of_query: torch.Tensor) -> FilterBatch:
        """The filters of some queries, int64 [b], and no others; their `unknown_values` are 0."""
        used, number = filter_of_query.unique(return_inverse=True)
        unfiltered = int((used < 0).sum())
        used = used[unfiltered:]
        if self.program is None or self.terms is None or not len(used):
            return FilterBatch(filter_of_query, None, None, 0)
        program = replace(_programs(self.program, used), exact=self.program.exact[used])
        pushed = program.ops >= 0
        leaves, leaf = program.ops[pushed].unique(return_inverse=True)
        program.ops[pushed] = leaf.int()
        program = replace(program, leaves=program.leaves[leaves.long()])
        return FilterBatch(number - unfiltered, program, _programs(self.terms, used), len(used))

    def to(self, device: torch.device) -> FilterBatch:
        """The same on another device."""
        if device in self.sent:
            return self.sent[device]
        if device.type == "cpu" and self.filter_of_query.device.type == "cpu":
            return self
        return moved(self, device)


P = TypeVar("P", Program, TermProgram)


def _programs(programs: P, which: torch.Tensor) -> P:
    """The operations of some filters."""
    lengths = programs.op_offsets.diff()[which]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    _, places = expand(programs.op_offsets[which], lengths)
    return replace(programs, ops=programs.ops[places], op_offsets=offsets)


def _last_before(numbers: torch.Tensor) -> torch.Tensor:
    """Where the same number stands last before each place, or -1."""
    order = torch.argsort(numbers, stable=True)
    same = numbers[order[1:]] == numbers[order[:-1]]
    before = torch.full_like(numbers, -1)
    before[order[1:][same]] = order[:-1][same]
    return before


@dataclass
class Planner:
    """Plans filters over one index; keeps what it made of recent ones.

    Attributes:
        vocabulary: the terms of the index.
        layout: its bit matrix.
    """

    vocabulary: Vocabulary
    layout: Layout
    _bounder: Bounder = field(init=False, repr=False)
    _reader: TextReader = field(init=False, repr=False)
    _plans: OrderedDict[str | Node, FilterPlan | None] = field(init=False, repr=False, default_factory=OrderedDict)
    _codes: OrderedDict[str | Node, Code | None] = field(init=False, repr=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._bounder = Bounder(self.layout)
        self._reader = TextReader(self.vocabulary, self.layout)

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
        planned = self._plan(given)
        _keep(self._plans, given, planned)
        return planned

    def check(self, given: Sequence[str | Node | None]) -> dict[int, FilterError]:
        """The queries whose filter cannot be used, with the reason."""
        failed: dict[str | Node | None, FilterError] = {}
        for item in self._made_together(given):
            try:
                self._code(item)
            except FilterError as error:
                failed[item] = error
        return {query: failed[item] for query, item in enumerate(given) if item in failed} if failed else {}

    def unknown_values(self, given: Sequence[str | Node | None], others: Sequence[Planner] = ()) -> int:
        """Literals in the filters of these queries that are no value of their feature, nor are over other planners."""
        codes, code_of_query = self.codes(given)
        if not others or not any(code.unknown_values for code in codes):
            return _sum_unknown(codes, code_of_query)
        return sum(count * len(self._unknown_to_all(item, others)) for item, count in Counter(given).items())

    def first_unknown(self, given: Sequence[str | Node | None], others: Sequence[Planner] = ()) -> FeatureValue | None:
        """The first of these literals."""
        found = (self._unknown_to_all(item, others) for item in dict.fromkeys(given))
        return next((literals[0] for literals in found if literals), None)

    def _unknown_to_all(self, given: str | Node | None, others: Sequence[Planner]) -> list[FeatureValue]:
        code = self._code(given)
        if code is None or not code.unknown_values:
            return []
        elsewhere = [set(other.unknown_literals(given)) for other in others]
        return [literal for literal in self.unknown_literals(given) if all(literal in found for found in elsewhere)]

    def unknown_literals(self, given: str | Node | None) -> list[FeatureValue]:
        """The literals of a filter that are no value of their feature, as (feature, literal)."""
        node, unknown = parse(given) if isinstance(given, str) else given, Unknown()
        if node is not None:
            resolve(node, self.vocabulary, unknown=unknown)
        return unknown.literals

    def batch(self, given: Sequence[str | Node | None]) -> FilterBatch:
        """Plan the filters of a batch of queries.

        Raises:
            FilterError: as `plan`.
        """
        codes, code_of_query = self.codes(given)
        return FilterBatch.of(code_of_query, Pieces.of_codes(codes), _sum_unknown(codes, code_of_query))

    def codes(self, given: Sequence[str | Node | None]) -> tuple[list[Code], np.ndarray]:
        """Write the distinct filters among those given.

        Returns:
            The distinct filters, and which of them each query has, int64 [B], -1 for none.

        Raises:
            FilterError: as `plan`.
        """
        codes: list[Code] = []
        number: dict[str | Node | None, int] = {}
        for item in self._made_together(given):
            code = self._code(item)
            number[item] = -1 if code is None else len(codes)
            if code is not None:
                codes.append(code)
        return codes, np.fromiter(map(number.__getitem__, given), np.int64, len(given))

    def _made_together(self, given: Sequence[str | Node | None]) -> dict[str | Node | None, None]:
        """The distinct filters among those given, once the plain texts have been written."""
        items = dict.fromkeys(given)
        texts = [item for item in items if isinstance(item, str) and item not in self._codes]
        if len(texts) >= LEAST_TEXTS:
            for text, code in self._reader.codes(texts):
                _keep(self._codes, text, code)
        return items

    def _code(self, given: str | Node | None) -> Code | None:
        if given is None:
            return None
        if given in self._codes:
            self._codes.move_to_end(given)
            return self._codes[given]
        planned = self._plan(given)
        code = planned.code() if planned is not None else None
        _keep(self._codes, given, code)
        return code

    def _plan(self, given: str | Node) -> FilterPlan | None:
        text = given if isinstance(given, str) else ""
        node = parse(given) if isinstance(given, str) else given
        if node is None:
            return None
        if not text:
            check(node)
        unknown = Unknown()
        terms = resolve(node, self.vocabulary, text, unknown)
        rows, exact = self._bounder.upper(terms)
        return FilterPlan(rows, exact, terms, unknown.values)


T = TypeVar("T")


def _keep(cache: OrderedDict[str | Node, T], key: str | Node, value: T) -> None:
    cache[key] = value
    if len(cache) > CACHE_SIZE:
        cache.popitem(last=False)


def _sum_unknown(codes: Sequence[Code], code_of_query: np.ndarray) -> int:
    return int(np.array([code.unknown_values for code in codes] + [0], np.int64)[code_of_query].sum())


def row_program(plans: Sequence[FilterPlan]) -> Program:
    """The row programs of some filters, each distinct leaf once."""
    return Pieces.of_codes([plan.code() for plan in plans]).program()
