"""What the filter costs: bytes an item beside the official operators' layout, build seconds, and time of full masks.

    python examples/filter_cost.py [--items 1000000] [--filters 1024]

Items have some 19 terms in 8 list features, as many for each by chance ("even") or log-normally ("heavy"); values
follow Zipf's law. The official layout (meta-recsys/silvertorch 1.0: 3 hashes a term, multiplier 5, blocks of 2,048
items as wide as their longest) is not run here: its bytes and its rate are computed from the same items. Filters have
3 to 5 terms in four shapes with AND, OR and NOT.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from stcli.filters.layout import Layout, plan_layout
from stcli.filters.program import Planner
from stcli.filters.vocabulary import Feature, Strings, Vocabulary
from stcli.index.build import measured_rate
from stcli.ops import native
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.filter_match import filter_match
from stcli.types import Postings

VALUES = (10, 50, 200, 1_000, 5_000, 20_000, 50_000, 100_000)
SHAPES = (
    "({} OR {}) AND {} AND NOT {}",
    "{} AND {} AND {}",
    "({} OR {} OR {}) AND NOT ({} OR {})",
    "{} AND ({} OR {}) AND ({} OR {})",
)
FIRST = np.concatenate(([0], np.cumsum(VALUES)))


def names(count: int) -> Strings:
    """The strings v000000, v000001 and so on."""
    data = np.frombuffer(b"".join(b"v%06d" % value for value in range(count)), np.uint8)
    return Strings(data, np.arange(count + 1, dtype=np.int64) * 7)


def zipf(rng: np.random.Generator, features: np.ndarray) -> np.ndarray:
    """A value of each feature, the r-th with a frequency of about 1 / r."""
    return (np.array(VALUES)[features] ** rng.random(len(features))).astype(np.int64) - 1


def make_terms(items: int, heavy: bool) -> tuple[Postings, Vocabulary]:
    """The terms of all items, ascending and distinct, and the vocabulary."""
    rng = np.random.default_rng(0)
    lengths = np.rint(rng.lognormal(2.54, 0.8, items)).astype(int) if heavy else rng.poisson(19, items)
    features = rng.integers(0, len(VALUES), lengths.sum())
    keys = np.repeat(np.arange(items) << 32, lengths) | FIRST[features] + zipf(rng, features)
    keys.sort()
    keys = keys[np.diff(keys, prepend=-1) != 0]
    terms, owner = keys & 0xFFFFFFFF, keys >> 32
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owner, minlength=items))))
    feature_of_term = np.repeat(np.arange(len(VALUES)), VALUES)
    pairs = np.diff(owner * len(VALUES) + feature_of_term[terms], prepend=-1) != 0
    present = np.bincount(feature_of_term[terms[pairs]], minlength=len(VALUES))
    spans = enumerate(zip(FIRST, VALUES, strict=False))
    known = tuple(Feature(f"f{i}", "string", int(first), count, True, names(count)) for i, (first, count) in spans)
    vocabulary = Vocabulary(known, np.bincount(terms, minlength=FIRST[-1]), present)
    return Postings(torch.from_numpy(terms.astype(np.int32)), torch.from_numpy(offsets)), vocabulary


def official(terms: Postings) -> tuple[float, float]:
    """Bytes an item of the official layout, and the rate of its Bloom rows."""
    lengths = terms.offsets.diff().numpy()
    starts = np.arange(0, len(lengths), 2048)
    width = np.floor(np.maximum.reduceat(lengths, starts) * 3 * 5.0).clip(1)
    filled = 1 - np.exp(-3 * lengths / np.repeat(width, 2048)[: len(lengths)])
    return float(width.mean() / 8), float((filled**3).mean())


def lay_out(vocabulary: Vocabulary, items: int, rate: float) -> Layout:
    """Our layout in the default 56 bytes an item, or as many times more as the rate needs."""
    for filter_bytes in range(56, 1024, 56):
        layout = plan_layout(vocabulary, items, bloom_fpr=rate, filter_bytes=filter_bytes)
        if layout.plan.bloom_fpr <= rate:
            break
    return layout


def make_filters(count: int) -> list[str]:
    """Texts whose values follow Zipf's law."""
    rng = np.random.default_rng(1)
    texts = []
    for number in range(count):
        features = rng.integers(0, len(VALUES), 5)
        asked = zip(features, zipf(rng, features), strict=True)
        texts.append(SHAPES[number % 4].format(*(f"f{feature} = 'v{value:06d}'" for feature, value in asked)))
    return texts


def main(items: int, filters: int) -> Table:
    """Measure both corpora; return the table."""
    table = Table(title=f"{items:,} items, {filters:,} filters, {native.num_threads()} threads")
    for name in ("items", "peer bytes", "rate", "our bytes", "rate", "exact terms", "build s", "ms a mask"):
        table.add_column(name, justify="right")
    for heavy in (False, True):
        terms, vocabulary = make_terms(items, heavy)
        peer_bytes, peer_rate = official(terms)
        begin = time.perf_counter()
        layout = lay_out(vocabulary, items, peer_rate)
        matrix = build_bit_matrix(terms, layout.plan)
        build_s = time.perf_counter() - begin
        rate = measured_rate(matrix, vocabulary, layout, "auto")
        texts = make_filters(filters)
        program = Planner(vocabulary, layout).batch(texts).program
        assert program is not None
        out = torch.zeros(filters, (items + 63) // 64, dtype=torch.int64)
        seconds = []
        for _ in range(9):
            begin = time.perf_counter()
            filter_match(matrix, program, out=out)
            seconds.append(time.perf_counter() - begin)
        table.add_row(
            "heavy" if heavy else "even",
            f"{peer_bytes:.1f}",
            f"{peer_rate:.4%}",
            f"{8 * (matrix.own.numel() + matrix.bloom.numel()) / items:.1f}",
            f"{rate:.4%}",
            f"{4 * len(terms.values) / items:.1f}",
            f"{build_s:.2f}",
            f"{1e3 * np.median(seconds) / filters:.4f}",
        )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--filters", type=int, default=1024)
    given = parser.parse_args()
    Console().print(main(given.items, given.filters))
