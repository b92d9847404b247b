"""Which term is stored where in the bit matrix, decided from term counts alone.

- "Has a value" has a row of its own for every feature, so that IS NULL is exact.
- A frequent term has a row of its own: exact, also under NOT.
- The other values of a feature with at most one value an item are rank slices: the rank of the
  item's value in ceil(log2(values + 1)) rows. Equality and ranges over them are exact.
- The other terms of a list feature share Bloom rows. If the feature is ordered, slices of the
  smallest and of the largest value are added for ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stcli.errors import InputError
from stcli.filters.vocabulary import Vocabulary
from stcli.types import MatrixPlan

NUM_HASHES = 7
"""Bloom rows of a term. At a rate of 0.001, 7 need 4 % more bits than the optimum of 10 and read 30 % fewer rows."""


@dataclass(frozen=True)
class FeatureLayout:
    """Where one feature stands in the bit matrix.

    Attributes:
        presence_row: own row "has a value", or -1 in the paper's form.
        slices: (first_row, num_bits) of the smallest and of the largest value, which are the same
            if no item has two values; None if the feature has no slices.
    """

    presence_row: int
    slices: tuple[tuple[int, int], tuple[int, int]] | None


@dataclass(frozen=True)
class Layout:
    """The whole matrix: the plan for building it and, for each feature, where it stands."""

    plan: MatrixPlan
    features: dict[str, FeatureLayout]


def frequency_for_own_row(bloom_fpr: float) -> float:
    """Share of items from which on a row of its own is smaller than a term's Bloom bits.

    A Bloom filter at its optimum takes log2(1 / fpr) / ln 2 bits a term occurrence (Bloom 1970); an
    own row takes one bit an item.
    """
    return float(np.log(2) / np.log2(1 / bloom_fpr))


def plan_layout(
    vocabulary: Vocabulary, num_items: int, *, bloom_fpr: float, own_rows_limit: int, num_hashes: int = NUM_HASHES
) -> Layout:
    """Lay out the bit matrix of a vocabulary.

    Args:
        vocabulary: features and counts.
        num_items: N.
        bloom_fpr: wanted share of items without a term that its Bloom rows admit.
        own_rows_limit: own rows for terms of list features and frequent terms, at most.
        num_hashes: Bloom rows of a term.

    Raises:
        InputError: `bloom_fpr` outside (0, 1).
    """
    if not 0 < bloom_fpr < 1:
        raise InputError(f"--bloom-fpr {bloom_fpr}: expected a share between 0 and 1, such as 0.001")
    counts = vocabulary.counts
    own_row = np.full(len(counts), -1, np.int32)
    bloom = np.zeros(len(counts), bool)
    slices: list[tuple[int, int, int, int, int]] = []
    presence: list[tuple[int, int, int]] = []
    features: dict[str, FeatureLayout] = {}
    rows = 0

    frequent = _frequent_terms(counts, num_items, frequency_for_own_row(bloom_fpr), own_rows_limit)
    for feature in vocabulary.features:
        first, end = feature.first_term, feature.end_term
        presence_row = rows
        presence.append((rows, first, end))
        rows += 1
        own = first + np.flatnonzero(frequent[first:end])
        own_row[own] = rows + np.arange(len(own))
        rows += len(own)
        tail = end - first - len(own)
        bounds: tuple[tuple[int, int], tuple[int, int]] | None = None
        num_bits = int(end - first).bit_length()
        if (feature.ordered and end > first + 1) or (not feature.multi and tail):
            sides = (0, 1) if feature.multi else (0,)
            placed = []
            for side in sides:
                slices.append((rows, num_bits, first, end, side))
                placed.append((rows, num_bits))
                rows += num_bits
            bounds = (placed[0], placed[-1])
        if feature.multi:
            bloom[first:end] = own_row[first:end] < 0
        features[feature.name] = FeatureLayout(presence_row, bounds)

    plan = MatrixPlan(
        own_row=torch.from_numpy(own_row),
        bloom=torch.from_numpy(bloom),
        slices=torch.tensor(slices, dtype=torch.int64).reshape(-1, 5),
        presence=torch.tensor(presence, dtype=torch.int64).reshape(-1, 3),
        num_own=rows,
        bloom_fpr=bloom_fpr,
        num_hashes=num_hashes,
    )
    return Layout(plan, features)


def _frequent_terms(counts: np.ndarray, num_items: int, frequency: float, limit: int) -> np.ndarray:
    """The terms with an own row: at least `frequency` of the items, at most `limit` of them, ties by id."""
    frequent = counts >= max(frequency * num_items, 1)
    if frequent.sum() > limit:
        order = np.argsort(-counts, kind="stable")[:limit]
        keep = np.zeros(len(counts), bool)
        keep[order] = True
        frequent &= keep
    return frequent
