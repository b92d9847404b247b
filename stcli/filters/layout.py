"""Which term is stored where in the bit matrix, decided from term counts alone.

- "Has a value" has a row of its own for every feature, so that IS NULL is exact.
- A frequent term has a row of its own: exact, also under NOT. From a frequency of 7 % on (at a rate of 0.001) that is
  smaller than its Bloom bits; more terms get one while there is room.
- The other values of a feature with at most one value an item are rank slices: the rank of the
  item's value in ceil(log2(values + 1)) rows. Equality and ranges over them are exact.
- The other terms of a list feature share Bloom rows. If the feature is ordered, slices of the
  smallest and of the largest value are added for ranges.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
import torch

from stcli.errors import InputError
from stcli.filters.vocabulary import Feature, Vocabulary
from stcli.ops.bloom_hash import bloom_rates
from stcli.types import MatrixPlan

NUM_HASHES = 7
"""Bloom rows of a term. At a rate of 0.001, 7 need 4 % more bits than the optimum of 10 and read 30 % fewer rows."""

LEAST_OWN_FREQUENCY = 1 / 1024
"""A rarer term gets no own row, even where there is room."""


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
    """The whole matrix: the plan for building it and, for each feature, where it stands.

    Attributes:
        plan: which rows hold what.
        features: where each feature stands.
        paper: every term is on Bloom rows only, and NOT complements them, as in the SilverTorch paper.
    """

    plan: MatrixPlan
    features: dict[str, FeatureLayout]
    paper: bool = False

    def numbers(self, feature: Feature) -> list[int]:
        """A feature as `FilterFeature` in `kernels/filter_values.h` has it, from `first_term` to `bits`."""
        place = self.features[feature.name]
        (smallest, bits), (largest, _) = place.slices or ((0, 0), (0, 0))
        return [
            feature.first_term, feature.num_terms, int(feature.multi), place.presence_row, smallest, largest, bits
        ]  # fmt: skip


def plan_layout(
    vocabulary: Vocabulary,
    num_items: int,
    *,
    bloom_fpr: float,
    filter_bytes: int = 56,
    own_rows_limit: int | None = None,
    num_hashes: int = NUM_HASHES,
) -> Layout:
    """Lay out the bit matrix of a vocabulary.

    Own rows are given by falling frequency as long as all of it fits in `filter_bytes` an item. If not even the
    smallest layout fits, the Bloom rows become fewer and their false-positive rate larger; results do not change, since
    candidates are verified.

    Args:
        vocabulary: features and counts.
        num_items: N.
        bloom_fpr: wanted share of items without a term that its Bloom rows admit.
        filter_bytes: bytes an item that the matrix may take.
        own_rows_limit: terms with an own row, at most; None: as many as fit.
        num_hashes: Bloom rows of a term.

    Raises:
        InputError: `bloom_fpr` outside (0, 1), or `filter_bytes` too small for the features.
    """
    if not 0 < bloom_fpr < 1:
        raise InputError(f"--bloom-fpr {bloom_fpr}: expected a share between 0 and 1, such as 0.001")
    counts = vocabulary.counts
    limit = len(counts) if own_rows_limit is None else own_rows_limit
    frequent, bloom_fpr = _share_budget(vocabulary, num_items, bloom_fpr, 8.0 * filter_bytes, limit, num_hashes)
    own_row = np.full(len(counts), -1, np.int32)
    bloom = np.zeros(len(counts), bool)
    slices: list[tuple[int, int, int, int, int]] = []
    presence: list[tuple[int, int, int]] = []
    features: dict[str, FeatureLayout] = {}
    rows = 0

    for feature in vocabulary.features:
        first, end = feature.first_term, feature.end_term
        presence_row = rows
        presence.append((rows, first, end))
        rows += 1
        own = first + np.flatnonzero(frequent[first:end])
        own_row[own] = rows + np.arange(len(own))
        rows += len(own)
        bounds: tuple[tuple[int, int], tuple[int, int]] | None = None
        if _is_sliced(feature):
            num_bits = feature.num_terms.bit_length()
            placed = []
            for side in (0, 1) if feature.multi else (0,):
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


def paper_layout(vocabulary: Vocabulary, bits: int, hashes: int) -> Layout:
    """The form of the SilverTorch paper (arXiv 2511.14881): `bits` Bloom rows, every term on `hashes` of them.

    Raises:
        InputError: bits or hashes outside what the paper's form allows.
    """
    if not 512 <= bits <= 2048:
        raise InputError(f"--bloom-bits {bits}: expected 512 to 2048")
    if not 1 <= hashes <= 32:
        raise InputError(f"--bloom-hashes {hashes}: expected 1 to 32")
    plan = MatrixPlan(
        own_row=torch.full((vocabulary.num_terms,), -1, dtype=torch.int32),
        bloom=torch.ones(vocabulary.num_terms, dtype=torch.bool),
        slices=torch.zeros(0, 5, dtype=torch.int64),
        presence=torch.zeros(0, 3, dtype=torch.int64),
        num_own=0,
        bloom_fpr=0.001,  # unused: the width is fixed
        num_hashes=hashes,
        fixed_width=bits,
    )
    return Layout(plan, {feature.name: FeatureLayout(-1, None) for feature in vocabulary.features}, paper=True)


def _is_sliced(feature: Feature) -> bool:
    """A feature with at most one value an item, or an ordered one, has rank slices; a single value needs none."""
    return feature.num_terms > 1 and (feature.ordered or not feature.multi)


def _share_budget(
    vocabulary: Vocabulary, num_items: int, bloom_fpr: float, budget: float, limit: int, num_hashes: int
) -> tuple[np.ndarray, float]:
    """Which terms get an own row, bool [V], and the false-positive rate that the Bloom rows are sized for.

    Args:
        vocabulary: features and counts.
        num_items: N.
        bloom_fpr: wanted rate.
        budget: bits an item for everything.
        limit: terms with an own row, at most.
        num_hashes: Bloom rows of a term.
    """
    fixed = len(vocabulary.features)  # presence
    on_bloom = np.zeros(vocabulary.num_terms, bool)
    for feature in vocabulary.features:
        fixed += feature.num_terms.bit_length() * (1 + feature.multi) if _is_sliced(feature) else 0
        on_bloom[feature.first_term : feature.end_term] = feature.multi
    order = np.argsort(-vocabulary.counts, kind="stable")
    frequency = vocabulary.counts[order] / max(num_items, 1)
    tail = np.where(on_bloom, vocabulary.counts, 0)[order] / max(num_items, 1)
    tail_left = np.concatenate(([tail.sum()], tail.sum() - np.cumsum(tail)))
    tail_left = tail_left.clip(0)
    bits = (fixed + np.arange(len(order) + 1) + _bloom_rows(tail_left, bloom_fpr, num_hashes))[: limit + 1]
    smallest = int(bits.argmin())
    useful = int((frequency >= LEAST_OWN_FREQUENCY).sum())
    fitting = np.flatnonzero(bits[: max(useful, smallest) + 1] <= budget)
    chosen = max(int(fitting[-1]), smallest) if len(fitting) else smallest
    if bits[chosen] > budget:
        room = (budget - fixed - chosen) / max(tail_left[chosen], 1e-12)
        if room < 1:
            raise InputError(
                f"--filter-bytes {budget / 8:g}: the features need at least "
                f"{int(np.ceil((fixed + chosen + tail_left[chosen]) / 8))} bytes an item; give more, or fewer columns"
            )
        bloom_fpr = _mean_rate(tail_left[chosen], int(budget - fixed - chosen), num_hashes)
    frequent = np.zeros(vocabulary.num_terms, bool)
    frequent[order[:chosen]] = True
    return frequent, bloom_fpr


def _bloom_rows(mean_terms: np.ndarray, bloom_fpr: float, num_hashes: int) -> np.ndarray:
    """Bloom rows that keep the rate where items have so many Bloom terms on average, float64, the shape given.

    How the terms spread over the items is not known here; as by chance, it is taken to be (Poisson).
    """
    most = float(mean_terms.max(initial=0.0))
    if most == 0:
        return np.zeros_like(mean_terms)
    known = np.geomspace(min(most, 1e-3), most, 32 if most > 1e-3 else 1)
    rows = [num_hashes]
    for mean in known:
        rows.append(_rows_for(float(mean), bloom_fpr, num_hashes, rows[-1]))
    return np.where(mean_terms > 0, np.interp(mean_terms, known, rows[1:]), 0.0)


def _rows_for(mean_terms: float, bloom_fpr: float, num_hashes: int, least: int) -> int:
    end = least
    while _mean_rate(mean_terms, end, num_hashes) > bloom_fpr:
        end *= 2
    return least + bisect.bisect_left(
        range(least, end), True, key=lambda width: _mean_rate(mean_terms, width, num_hashes) <= bloom_fpr
    )


def _mean_rate(mean_terms: float, width: int, num_hashes: int) -> float:
    """False-positive rate of Bloom rows where items have a Poisson number of Bloom terms."""
    lengths = np.arange(int(mean_terms + 10 * np.sqrt(mean_terms) + 10))
    logs = np.concatenate(([0.0], np.cumsum(np.log(lengths[1:]))))
    share = np.exp(lengths * np.log(mean_terms) - mean_terms - logs)
    return float(share @ bloom_rates(torch.from_numpy(lengths), width, num_hashes).numpy())
