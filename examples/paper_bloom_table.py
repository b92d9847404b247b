"""The Bloom table of the SilverTorch paper, measured with its own form here: 60 values an item, 5 rows a value.

    python examples/paper_bloom_table.py [--items 262144]

Published figures: arXiv 2511.14881 v5, the Bloom index tables (false positives in percent; bytes for 40 million items).
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from stcli.filters.layout import paper_layout
from stcli.filters.vocabulary import Feature, Vocabulary
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.count_bits import count_bits
from stcli.ops.filter_match import filter_match
from stcli.types import LEAF_BLOOM, Postings, Program

VALUES, HASHES, VOCABULARY, QUERIES = 60, 5, 100_000, 512
PUBLISHED_RATE = {512: "6.98", 1024: "0.067"}
PUBLISHED_GB = {512: "2.56", 768: "3.84", 1024: "5", 2048: "10"}


def make_terms(items: int) -> Postings:
    """60 distinct values of 100,000 for each item, ascending."""
    rng = np.random.default_rng(0)
    step = VOCABULARY // VALUES
    values = rng.integers(0, step, (items, VALUES)) + step * np.arange(VALUES)
    offsets = np.arange(items + 1, dtype=np.int64) * VALUES
    return Postings(torch.from_numpy(values.astype(np.int32).reshape(-1)), torch.from_numpy(offsets))


def measure(terms: Postings, bits: int) -> tuple[float, float]:
    """False-positive rate of one value (mean over values, 0 … 1), and bytes an item."""
    items = len(terms.offsets) - 1
    counts = np.bincount(terms.values.numpy(), minlength=VOCABULARY)
    feature = Feature("value", "integer", 0, VOCABULARY, True, np.arange(VOCABULARY))
    layout = paper_layout(Vocabulary((feature,), counts, np.array([items])), bits, HASHES)
    matrix = build_bit_matrix(terms, layout.plan)
    asked = np.random.default_rng(1).choice(VOCABULARY, QUERIES, replace=False)
    leaves = torch.zeros(QUERIES, 4, dtype=torch.int64)
    leaves[:, 0], leaves[:, 1] = LEAF_BLOOM, torch.from_numpy(asked)
    each = torch.arange(QUERIES)
    program = Program(leaves, each.int(), torch.arange(QUERIES + 1), torch.zeros(QUERIES, dtype=torch.bool), 1)
    admitted = count_bits(filter_match(matrix, program)).numpy()
    rate = (admitted - counts[asked]) / (items - counts[asked])
    return float(rate.mean()), matrix.bloom.numel() * 8 / items


def main(items: int) -> Table:
    """Measure every width; return the table."""
    terms = make_terms(items)
    table = Table(title=f"{items:,} items, {VALUES} values each, {HASHES} rows a value")
    for name in ("bits", "measured %", "theory %", "published %", "bytes an item", "GB at 40 M", "published GB"):
        table.add_column(name, justify="right")
    for bits in (512, 768, 1024, 2048):
        rate, size = measure(terms, bits)
        theory = (1 - math.exp(-HASHES * VALUES / bits)) ** HASHES
        published = PUBLISHED_RATE.get(bits, "-"), PUBLISHED_GB[bits]
        cells = (
            f"{rate:.4%}"[:-1],
            f"{theory:.4%}"[:-1],
            published[0],
            f"{size:.0f}",
            f"{size * 0.04:.2f}",
            published[1],
        )
        table.add_row(str(bits), *cells)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1 << 18)
    Console().print(main(parser.parse_args().items))
