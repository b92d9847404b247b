"""One clause of a template over a batch: the sets of values that queries ask for, each distinct one written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stcli.errors import FilterError
from stcli.filters.layout import Layout
from stcli.filters.lexicon import Placeholder, value_text
from stcli.filters.literals import FITTING, Literals, Ranks, find_ranks, why_refused
from stcli.filters.pieces import Ops, Pieces
from stcli.filters.ragged import distinct_lines, distinct_rows, offsets_of
from stcli.filters.spell import Runs, Speller
from stcli.filters.tree import Between, Compare, In
from stcli.filters.vocabulary import Feature


@dataclass(frozen=True)
class Operands:
    """What the operands of a clause are for each query.

    Attributes:
        owners: for each operand, the queries that its values belong to, int64, ascending.
        ranks: for each operand, its values.
        dropped: bool [B], a null drops the clause.
        refused: what cannot be compared with the feature, by query.
    """

    owners: list[np.ndarray]
    ranks: list[Ranks]
    dropped: np.ndarray
    refused: dict[int, FilterError]

    @property
    def num_values(self) -> np.ndarray:
        """Values in the clause of each query, as the limit of a filter counts them; int64 [B]."""
        counts = np.sum([np.bincount(owners, minlength=len(self.dropped)) for owners in self.owners], axis=0)
        return np.where(self.dropped, 0, np.maximum(counts, 1))


@dataclass(frozen=True)
class BoundClause:
    """A clause over a batch.

    Attributes:
        codes: int64 [B], the piece of each query, -1 where the clause is dropped.
        pieces: one for each distinct set of values.
        unknown_values: int64 [B], literals that are no value of the feature.
    """

    codes: np.ndarray
    pieces: Pieces
    unknown_values: np.ndarray


class ClausePlan:
    """A comparison of a template that has placeholders.

    Args:
        leaf: the comparison.
        feature: that it names.
        layout: of the bit matrix.
        upper: an upper bound is wanted, since the clause stands under an even number of NOTs.
        text: of the template, for messages.

    Attributes:
        leaf, feature, upper: as given.

    Raises:
        InputError: a literal of another type than the feature.
    """

    def __init__(self, leaf: Compare | In | Between, feature: Feature, layout: Layout, upper: bool, text: str) -> None:
        self.leaf, self.feature, self.upper, self._text = leaf, feature, upper, text
        self._speller = Speller(feature, layout, upper)
        given = leaf.values if isinstance(leaf, In) else (leaf.low, leaf.high) if isinstance(leaf, Between) else ()
        self._operands = [
            value if isinstance(value, Placeholder) else feature.span(value)
            for value in ((leaf.value,) if isinstance(leaf, Compare) else given)
        ]

    def read(self, literals: Mapping[str, Literals], num_queries: int) -> Operands:
        """Look up the values of the placeholders.

        Raises:
            FilterError: a column has a type that the feature cannot be compared with.
        """
        queries = np.arange(num_queries)
        operands = Operands([], [], np.zeros(num_queries, bool), {})
        for operand in self._operands:
            if isinstance(operand, Placeholder):
                column = literals[operand.name]
                self._check_type(operand, column)
                operands.owners.append(np.repeat(queries, column.lengths))
                operands.ranks.append(find_ranks(column, self.feature))
                operands.dropped[column.null] = True
            else:
                before, after = (np.full(num_queries, rank) for rank in operand)
                operands.owners.append(queries)
                operands.ranks.append(Ranks(before, after, np.zeros(num_queries, bool)))
        for operand, owners, ranks in zip(self._operands, operands.owners, operands.ranks, strict=True):
            for place in np.flatnonzero(ranks.refused & ~operands.dropped[owners]).tolist():
                assert isinstance(operand, Placeholder)
                message = why_refused(literals[operand.name], self.feature, place)
                operands.refused.setdefault(int(owners[place]), self._error(operand, message))
        return operands

    def bind(self, operands: Operands) -> BoundClause:
        """Number the distinct sets of values and write each of them."""
        if isinstance(self.leaf, In):
            runs, codes, unknown = self._listed(operands)
        else:
            runs, codes, unknown = self._interval(operands)
        rows, leaves, exact = self._speller.spell(runs)
        count = len(exact)
        first = self.feature.first_term
        spans = np.stack([first + runs.lows, first + runs.highs], 1).astype(np.int32)
        terms = Ops(np.arange(count, dtype=np.int32), np.ones(count, np.int64), count)
        pieces = Pieces(rows, leaves, terms, spans, np.diff(runs.offsets), exact)
        kept = np.flatnonzero(~operands.dropped)
        all_codes, all_unknown = np.full(len(operands.dropped), -1), np.zeros(len(operands.dropped), np.int64)
        all_codes[kept], all_unknown[kept] = codes, unknown
        return BoundClause(all_codes, pieces, all_unknown)

    def _interval(self, operands: Operands) -> tuple[Runs, np.ndarray, np.ndarray]:
        """The distinct intervals of a comparison or BETWEEN; codes and unknown values of the queries not dropped."""
        kept = [~operands.dropped[owners] for owners in operands.owners]
        before, after = operands.ranks[0].before[kept[0]], operands.ranks[-1].after[kept[-1]]
        num_terms, op = self.feature.num_terms, self.leaf.op if isinstance(self.leaf, Compare) else "BETWEEN"
        if op in ("=", "BETWEEN"):
            low, high = before, after
        elif op in ("<", "<="):
            low, high = np.zeros_like(before), before if op == "<" else after
        else:
            low, high = after if op == ">" else before, np.full_like(before, num_terms)
        ends, codes = distinct_rows(np.where(low < high, low * (num_terms + 1) + high, 0)[:, None])
        low, high = np.divmod(ends[:, 0], num_terms + 1)
        filled = low < high
        return Runs(low[filled], high[filled], offsets_of(filled)), codes, (before == after) & (op == "=")

    def _listed(self, operands: Operands) -> tuple[Runs, np.ndarray, np.ndarray]:
        """The distinct sets of an IN, as runs of neighbouring values."""
        owners = np.concatenate(operands.owners)
        before = np.concatenate([ranks.before for ranks in operands.ranks])
        known = before < np.concatenate([ranks.after for ranks in operands.ranks])
        kept = ~operands.dropped[owners]
        keys = np.sort((owners << 32 | before)[known & kept])
        keys = keys[np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)]]
        count = len(operands.dropped)
        unknown = np.bincount(owners[~known], minlength=count)[~operands.dropped]
        lengths = np.bincount(keys >> 32, minlength=count)[~operands.dropped]
        values, offsets, codes = distinct_lines((keys & 0xFFFFFFFF).astype(np.int32), offsets_of(lengths))
        starts = np.ones(len(values) + 1, bool)
        starts[1:-1] = values[1:] != values[:-1] + 1
        starts[offsets] = True
        edges = np.flatnonzero(starts)
        lows, highs = values[edges[:-1]].astype(np.int64), values[edges[1:] - 1] + np.int64(1)
        return Runs(lows, highs, np.searchsorted(edges, offsets)), codes, unknown

    def _check_type(self, placeholder: Placeholder, column: Literals) -> None:
        name, feature = placeholder.name, self.feature
        if column.is_list and not placeholder.many:
            raise self._error(
                placeholder,
                f"column {name!r} holds lists, which stand for one value; write: {feature.name} IN ${name}",
            )
        if column.kind not in (*FITTING[feature.kind], "null"):
            raise self._error(
                placeholder,
                f"column {name!r} is {column.kind}, so it cannot be compared with feature {feature.name!r}, which is "
                f"{feature.kind}; give a column of type {' or '.join(FITTING[feature.kind])}",
            )

    def _error(self, placeholder: Placeholder, message: str) -> FilterError:
        return FilterError(f"filter: {value_text(placeholder)}: {message}", self._text, placeholder.position)
