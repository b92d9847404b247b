"""A table's filter index made in memory, and the three answers to a filter that the tests compare."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stcli.filters.layout import NUM_HASHES, Layout, paper_layout, plan_layout
from stcli.filters.program import FilterBatch, Planner
from stcli.filters.tree import Node
from stcli.filters.vocabulary import Vocabulary
from stcli.index.terms import TermCollector
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.filter_match import filter_match
from stcli.ops.verify_terms import verify_terms
from stcli.storage.columns import feature_kind, read_feature
from stcli.types import BitMatrix, Postings


@dataclass(frozen=True)
class Sizes:
    """How the bit matrix is made; the defaults are those of `build-index`."""

    bloom_fpr: float = 0.001
    filter_bytes: int = 48
    own_rows: int | None = None
    hashes: int = NUM_HASHES
    width: int | None = None
    paper: bool = False


@dataclass(frozen=True)
class Indexed:
    """The filter index of a table; item i is row i of the table."""

    vocabulary: Vocabulary
    layout: Layout
    terms: Postings
    matrix: BitMatrix
    planner: Planner

    @property
    def num_items(self) -> int:
        return self.matrix.num_items

    def batch(self, filters: Sequence[str | Node]) -> FilterBatch:
        """The filters planned, every one of them distinct from None."""
        batch = self.planner.batch(filters)
        assert batch.program is not None
        assert batch.terms is not None
        return batch

    def admitted(self, batch: FilterBatch) -> np.ndarray:
        """What the bit matrix lets through: bool [filters, items]; no bit stands beyond the items."""
        words = filter_match(self.matrix, batch.program)
        bits = unpack(words)
        assert not bits[:, self.num_items :].any()
        return bits[batch.filter_of_query.numpy(), : self.num_items]

    def verified(self, batch: FilterBatch) -> np.ndarray:
        """What the exact terms say: bool [filters, items]."""
        rows = torch.arange(self.num_items).expand(len(batch.filter_of_query), -1).contiguous()
        return verify_terms(self.terms, batch.terms, rows, batch.filter_of_query).numpy()

    def exact(self, batch: FilterBatch) -> np.ndarray:
        """Where the plan promises that nothing but eligible items is admitted: bool [filters]."""
        return batch.program.exact.numpy()[batch.filter_of_query.numpy()]

    def check(self, filters: Sequence[str | Node], eligible: np.ndarray) -> None:
        """Compare everything that is said of some filters with the truth, bool [filters, items]."""
        batch = self.batch(filters)
        admitted, exact = self.admitted(batch), self.exact(batch)
        wrong = {
            "an eligible item is not admitted": eligible & ~admitted,
            "the plan is exact, but an ineligible item is admitted": admitted & ~eligible & exact[:, None],
            "verification differs from the truth": self.verified(batch) != eligible,
        }
        for what, where in wrong.items():
            for number, item in np.argwhere(where)[:1]:
                raise AssertionError(f"{what}: item {item}, filter {filters[number]}")


def unpack(words: torch.Tensor) -> np.ndarray:
    """Bits of int64 words [F, W] as bool [F, 64 W], least significant first."""
    return np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little").astype(bool)


def index_table(table: pa.Table, sizes: Sizes = Sizes(), *, batch_rows: int | None = None) -> Indexed:
    """Index every column of a table as `build-index` does, without its files."""
    kinds = {name: feature_kind(table.schema.field(name).type, name) for name in table.column_names}
    with tempfile.TemporaryDirectory() as folder:
        collector = TermCollector({name: kind for name, (kind, _) in kinds.items()}, Path(folder))
        for batch in table.to_batches(batch_rows):
            found = {name: read_feature(batch.column(name), kind, many, name) for name, (kind, many) in kinds.items()}
            collector.add(found, batch.num_rows)
        collected = collector.finish()
        values, lengths = collected.of_rows(np.arange(table.num_rows))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    counts = np.bincount(values, minlength=sum(feature.num_terms for feature in collected.features))
    owner = np.repeat(np.arange(table.num_rows), lengths)
    present = [
        len(np.unique(owner[(values >= feature.first_term) & (values < feature.end_term)]))
        for feature in collected.features
    ]
    vocabulary = Vocabulary(collected.features, counts, np.array(present))
    layout = layout_of(vocabulary, table.num_rows, sizes)
    terms = Postings(torch.from_numpy(values), torch.from_numpy(offsets))
    matrix = build_bit_matrix(terms, layout.plan)
    return Indexed(vocabulary, layout, terms, matrix, Planner(vocabulary, layout))


def layout_of(vocabulary: Vocabulary, num_items: int, sizes: Sizes) -> Layout:
    if sizes.paper:
        return paper_layout(vocabulary, 512, sizes.hashes)
    layout = plan_layout(
        vocabulary,
        num_items,
        bloom_fpr=sizes.bloom_fpr,
        filter_bytes=sizes.filter_bytes,
        own_rows_limit=sizes.own_rows,
        num_hashes=sizes.hashes,
    )
    if sizes.width is None:
        return layout
    return Layout(dataclasses.replace(layout.plan, fixed_width=sizes.width), layout.features)


def random_sizes(rng: random.Random) -> Sizes:
    """Anything from the defaults to a matrix so small that most of what it admits is wrong."""
    return Sizes(
        bloom_fpr=rng.choice([0.001, 0.05, 0.5, 0.99]),
        filter_bytes=10**6,
        own_rows=rng.choice([0, 1, 3, None]),
        hashes=rng.choice([1, 2, 7]),
        width=rng.choice([None, None, 1, 5, 40]),
    )
