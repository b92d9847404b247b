"""Row programs for the values of one clause, many at once: what `Bounder` does for a leaf, without a Python loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stcli.errors import InputError
from stcli.filters.bounds import MAX_BLOOM_TERMS, too_many
from stcli.filters.layout import Layout
from stcli.filters.pieces import Ops
from stcli.filters.ragged import offsets_of, places, sums
from stcli.filters.vocabulary import Feature
from stcli.types import LEAF_ALL, LEAF_BLOOM, LEAF_EQUAL, LEAF_LESS, LEAF_NONE, LEAF_OWN, OP_AND, OP_NOT, OP_OR


@dataclass(frozen=True)
class Runs:
    """Sets of values of one feature: D ragged lines of half-open intervals of ranks, ascending and apart.

    Attributes:
        lows, highs: int64 [runs].
        offsets: int64 [D + 1].
    """

    lows: np.ndarray
    highs: np.ndarray
    offsets: np.ndarray

    @property
    def owners(self) -> np.ndarray:
        """The line of each run; int64 [runs]."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


@dataclass(frozen=True)
class _Parts:
    """Parts of sets, to be ORed: a part is one leaf, or "the code is not below `begin`, and below `end`".

    Attributes:
        keys: int64 [P], `set << 32 | run`; the parts of a set stand in the order of its runs.
        ends, begins: int64 [n, 4], leaves of the parts that have an end, and of those that have a beginning; a part
            without beginning is the leaf `ends`.
        has_end, has_begin: bool [P].
    """

    keys: np.ndarray
    ends: np.ndarray
    begins: np.ndarray
    has_end: np.ndarray
    has_begin: np.ndarray


class Speller:
    """Spells sets of values of one feature over the rows of the bit matrix.

    Args:
        feature: of the values.
        layout: of the matrix.
        upper: give a program that holds for every eligible item; else one that holds for eligible items only.
    """

    def __init__(self, feature: Feature, layout: Layout, upper: bool) -> None:
        self._feature, self._paper = feature, layout.paper
        self._upper = upper or layout.paper  # the paper's NOT complements the one mask that there is
        place = layout.features[feature.name]
        self._presence, self._slices = place.presence_row, place.slices
        self._own_row = layout.plan.own_row.numpy()[feature.first_term : feature.end_term]
        self._bloom_before = offsets_of(self._own_row < 0)
        self._own_ranks = np.flatnonzero(self._own_row >= 0)

    def spell(self, runs: Runs) -> tuple[Ops, np.ndarray, np.ndarray]:
        """Give one program a set, never empty; their leaves int64 [leaves, 4]; and where they are exact, bool [D]."""
        lows, highs, owners = runs.lows, runs.highs, runs.owners
        single = highs == lows + 1
        whole = np.zeros(len(runs.offsets) - 1, bool)
        if self._presence >= 0:
            whole[owners[highs - lows == self._feature.num_terms]] = True
        if self._slices is None:
            num_bloom = self._bloom_before[highs] - self._bloom_before[lows]
        else:
            num_bloom = single & self._feature.multi & (self._own_row[lows] < 0)
        num_bloom = sums(num_bloom, runs.offsets)
        beyond = num_bloom > MAX_BLOOM_TERMS
        if self._paper and beyond.any():
            raise InputError(too_many(self._feature))
        exact = whole | (num_bloom == 0)
        replaced = whole | beyond if self._upper else whole
        presence = (LEAF_OWN, self._presence) if self._presence >= 0 else (LEAF_ALL, 0)
        parts = [_leaves(np.flatnonzero(replaced) << 32, *presence)]
        kept = ~replaced[owners]
        keys = (owners << 32 | np.arange(len(owners)))[kept]
        lows, highs, single = lows[kept], highs[kept], single[kept]
        if self._slices is None:
            parts.append(self._terms(keys, lows, highs))
        else:
            alone = single & ((self._own_row[lows] >= 0) | self._feature.multi)
            parts.append(self._terms(keys[alone], lows[alone], highs[alone]))
            parts += self._sliced(keys[~alone], lows[~alone] + 1, highs[~alone] + 1, exact)
        spelled = np.zeros(len(exact), bool)
        for part in parts:
            spelled[part.keys >> 32] = True
        parts.append(_leaves(np.flatnonzero(~spelled) << 32, LEAF_NONE, 0))
        return *_written(parts, len(exact)), exact & (not self._paper)

    def _terms(self, keys: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> _Parts:
        """Each term by itself; a lower bound has those with an own row only."""
        if self._upper:
            counts = highs - lows
            ranks = places(lows, counts)
        else:
            first = lows - self._bloom_before[lows]
            counts = highs - self._bloom_before[highs] - first
            ranks = self._own_ranks[places(first, counts)]
        rows = self._own_row[ranks]
        kinds = np.where(rows >= 0, LEAF_OWN, LEAF_BLOOM)
        return _leaves(np.repeat(keys, counts), kinds, np.where(rows >= 0, rows, self._feature.first_term + ranks))

    def _sliced(self, keys: np.ndarray, first: np.ndarray, last: np.ndarray, exact: np.ndarray) -> list[_Parts]:
        """Rank codes in first … last - 1, of which the smallest or largest of an item is known."""
        assert self._slices is not None
        (small, bits), (large, _) = self._slices
        if not self._feature.multi:
            equal = last == first + 1
            row = np.full(int(equal.sum()), small)
            return [
                _leaves(keys[equal], LEAF_EQUAL, row, bits, first[equal]),
                self._between(keys[~equal], first[~equal], last[~equal], small, large, bits),
            ]
        inner = (first > 1) & (last <= self._feature.num_terms)
        exact[keys[inner] >> 32] = False
        if self._upper:
            return [self._between(keys, first, last, small, large, bits)]
        return [
            self._between(keys[~inner], first[~inner], last[~inner], small, large, bits),
            *(self._between(keys[inner], first[inner], last[inner], row, row, bits) for row in (small, large)),
        ]

    def _between(
        self, keys: np.ndarray, first: np.ndarray, last: np.ndarray, small: int, large: int, bits: int
    ) -> _Parts:
        bounded = last <= self._feature.num_terms
        last = last[bounded]
        ends = _quads(len(last), LEAF_LESS, small, bits, last)
        begins = _quads(len(keys), LEAF_LESS, large, bits, first)
        return _Parts(keys, ends, begins, bounded, np.ones(len(keys), bool))


def _quads(count: int, kind: np.ndarray | int, a: np.ndarray | int, b: int, c: np.ndarray | int) -> np.ndarray:
    quads = np.empty((count, 4), np.int64)
    for column, values in enumerate((kind, a, b, c)):
        quads[:, column] = values
    return quads


def _leaves(
    keys: np.ndarray, kind: np.ndarray | int, a: np.ndarray | int, b: int = 0, c: np.ndarray | int = 0
) -> _Parts:
    quads, yes = _quads(len(keys), kind, a, b, c), np.ones(len(keys), bool)
    return _Parts(keys, quads, quads[:0], yes, ~yes)


def _written(groups: list[_Parts], count: int) -> tuple[Ops, np.ndarray]:
    """The OR of the parts of each of `count` sets, each of which has one."""
    groups = [group for group in groups if len(group.keys)] or groups[:1]
    keys = np.concatenate([group.keys for group in groups])
    ends = np.concatenate([group.ends for group in groups])
    begins = np.concatenate([group.begins for group in groups])
    has_end = np.concatenate([group.has_end for group in groups])
    has_begin = np.concatenate([group.has_begin for group in groups])
    end, begin = np.cumsum(has_end) - 1, np.cumsum(has_begin) + (len(ends) - 1)  # which leaf each part has
    if len(groups) > 1:
        order = np.argsort(keys, kind="stable")
        keys, has_end, has_begin, end, begin = (column[order] for column in (keys, has_end, has_begin, end, begin))
    owners = keys >> 32
    lengths = has_end + 2 * has_begin  # a leaf, and a leaf and NOT
    both = np.flatnonzero(has_end & has_begin)
    lengths[both] += 1  # AND
    lengths[1:] += owners[1:] == owners[:-1]  # OR
    offsets = offsets_of(lengths)
    starts = offsets[:-1]
    ops = np.full(offsets[-1], OP_OR, np.int32)
    ops[starts[has_end]] = end[has_end]
    if len(begins):
        second = starts + has_end
        ops[second[has_begin]] = begin[has_begin]
        ops[second[has_begin] + 1] = OP_NOT
        ops[second[both] + 2] = OP_AND
    firsts = np.searchsorted(owners, np.arange(count + 1))
    return Ops(ops, np.diff(offsets[firsts]), len(ends) + len(begins)), np.concatenate([ends, begins])
