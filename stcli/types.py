"""The nouns: frozen dataclasses of tensors, each field with shape, dtype and range.

Letters in shapes: B queries, N rows, D dimensions, Dp dimensions padded to a multiple of 32,
C clusters, P probes, K results, F distinct filters, W = ceil(N / 64) words.

Bit `i % 64` of word `i // 64` is row `i`, least significant bit first, on disk, in torch and in
native code. Words are 64-bit patterns carried in int64 tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch

T = TypeVar("T")

BLOCK_ROWS = 4096
"""Rows of one block of the bit matrix; 64 words."""

BLOCK_WORDS = BLOCK_ROWS // 64

PAD_ROW = -1
"""Row number of an empty slot; its score is -inf and it stands at the end of its line."""


def pad_dim(dim: int) -> int:
    """`dim` rounded up to a multiple of 32, the width of one VNNI or `mma` step."""
    return (dim + 31) // 32 * 32


@dataclass(frozen=True)
class Quantized:
    """Int8 rows with a float32 factor each: `vector ≈ code * scale`.

    Attributes:
        codes: int8 [R, Dp] in -127 … 127, columns beyond D are zero, contiguous.
        scales: float32 [R], positive; a zero vector has scale 1 and codes 0.
    """

    codes: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class Postings:
    """A ragged map: line `i` is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: int64 or int32 [offsets[-1]].
        offsets: int64 [lines + 1], ascending, first 0.
    """

    values: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True)
class Lines:
    """Lines chosen from a ragged map, without copying them: line `i` is `values[begins[i]:ends[i]]`.

    Attributes:
        values: int64 [E].
        begins, ends: int64 [lines], `0 <= begins <= ends <= E`.
    """

    values: torch.Tensor
    begins: torch.Tensor
    ends: torch.Tensor

    def take(self, lines: torch.Tensor | slice) -> Lines:
        """Some of the lines, by their numbers."""
        return Lines(self.values, self.begins[lines], self.ends[lines])

    def to(self, device: torch.device) -> Lines:
        """The same on another device; only the values that the lines span are copied."""
        if device == self.values.device or not len(self.begins):
            return self
        first, end = int(self.begins.min()), int(self.ends.max())
        return moved(Lines(self.values[first:end], self.begins - first, self.ends - first), device)


@dataclass(frozen=True)
class Clusters:
    """The rows in cluster order.

    Attributes:
        centroids: `Quantized` with codes int8 [C, Dp] and scales float32 [C].
        offsets: int64 [C + 1], ascending, first 0, last N; rows of cluster c are
            `offsets[c] … offsets[c + 1] - 1`.
        reaches: float32 [C], how much better than its centroid a cluster counts for a query of
            length 1; None for not at all.
    """

    centroids: Quantized
    offsets: torch.Tensor
    reaches: torch.Tensor | None = None


@dataclass(frozen=True)
class SearchIndex:
    """What the int8 search reads.

    Attributes:
        codes: int8 [N, Dp], rows in cluster order, contiguous.
        scales: float32 [N], positive.
        errors: float32 [N], not less than the norm of (packed embedding - code * scale).
        norms: float32 [N], not less than the norm of code * scale.
        clusters: the cluster centres and their spans of rows.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    errors: torch.Tensor
    norms: torch.Tensor
    clusters: Clusters


@dataclass(frozen=True)
class Embeddings:
    """The packed item embeddings: row r is `values[r].float() * 2 ** exponents[r]`.

    Attributes:
        values: float16 or float32 [N, D], contiguous.
        exponents: int8 [N], or None when every exponent is 0 (float32).
    """

    values: torch.Tensor
    exponents: torch.Tensor | None


@dataclass(frozen=True)
class MolItems:
    """The item side of a Mixture-of-Logits, as it is cached; `component ≈ values * scale`.

    Attributes:
        components: float32, float16 or int8 [N, Px, d], each of length about 1.
        scales: float32 [N, Px], with int8 components only.
        gates: float32 or float16 [N, L], L = Px * Pq, or None without an item gate. Logit `m * Pq + n` belongs to item
            component m and query component n.
    """

    components: torch.Tensor
    scales: torch.Tensor | None
    gates: torch.Tensor | None


@dataclass(frozen=True)
class MolQueries:
    """The query side of a Mixture-of-Logits.

    Attributes:
        components: float32 [B, Pq, d], each of length 1.
        gates: float32 [B, L], or None without a query gate.
    """

    components: torch.Tensor
    gates: torch.Tensor | None


@dataclass(frozen=True)
class MolCross:
    """The gate that looks at the logits: `second @ silu(first @ logits + first_bias) + second_bias`.

    Attributes:
        first: float32 [H, L].
        first_bias: float32 [H].
        second: float32 [L, H].
        second_bias: float32 [L].
    """

    first: torch.Tensor
    first_bias: torch.Tensor
    second: torch.Tensor
    second_bias: torch.Tensor


@dataclass(frozen=True)
class BitMatrix:
    """The filter index: one bit per (position, item), stored position-major ("rotated").

    Own rows (one frequent term, "has a value", or one bit of a rank) are exact and lie row-major
    over all items. Bloom rows hold the other terms of list features; each block of 4,096 items
    has as many as its items need.

    Attributes:
        own: int64 [R, W] words.
        bloom: int64 [bloom_offsets[-1], 64] words; block b has the rows
            `bloom_offsets[b] … bloom_offsets[b + 1] - 1`, each 64 words = 4,096 items.
        bloom_offsets: int64 [ceil(N / 4096) + 1].
        num_hashes: Bloom rows that a term sets in each block (the same row may come twice).
        num_items: N.
    """

    own: torch.Tensor
    bloom: torch.Tensor
    bloom_offsets: torch.Tensor
    num_hashes: int
    num_items: int


LEAF_ALL, LEAF_NONE, LEAF_OWN, LEAF_BLOOM, LEAF_LESS, LEAF_EQUAL = range(6)
"""Kinds of a leaf, see `Program`."""

OP_AND, OP_OR, OP_NOT = -1, -2, -3
"""Operations of a program; a number >= 0 pushes the mask of that leaf."""


@dataclass(frozen=True)
class Program:
    """The distinct filters of a batch as row programs in postfix order.

    A leaf is four int64 numbers (kind, a, b, c), evaluated once per block for all filters:

        LEAF_ALL    every item               LEAF_NONE  no item
        LEAF_OWN    own row a
        LEAF_BLOOM  the AND of the num_hashes Bloom rows of term a
        LEAF_LESS   items whose rank code is < c: own rows a … a + b - 1 hold the b bits of
                    the code, least significant first (0 means "no value")
        LEAF_EQUAL  items whose rank code in own rows a … a + b - 1 is c

    Attributes:
        leaves: int64 [L, 4].
        ops: int32 [T]; >= 0 pushes leaf, OP_AND and OP_OR take two, OP_NOT takes one.
        op_offsets: int64 [F + 1]; filter f is `ops[op_offsets[f]:op_offsets[f + 1]]`, never empty.
        exact: bool [F]; the admitted set is the eligible set, verification may be skipped.
        max_depth: largest stack that any filter needs.
    """

    leaves: torch.Tensor
    ops: torch.Tensor
    op_offsets: torch.Tensor
    exact: torch.Tensor
    max_depth: int


@dataclass(frozen=True)
class Spans:
    """Words of filters on the clusters that their queries probe.

    The words of a pair (query, cluster) are those of the rows `offsets[c] // 64 * 64` on, as in the words of all rows;
    the first and the last may hold rows of the neighbours too.

    Attributes:
        words: int64 [S + 1]; the last one belongs to no pair, so that the word after those of a pair may be read. A
            kernel that was given more room leaves what is behind them as it was.
        starts: int64 [B, P], the first word of each pair; -1 where the query has no filter, the slot is unused or the
            cluster is empty.
    """

    words: torch.Tensor
    starts: torch.Tensor


@dataclass(frozen=True)
class TermProgram:
    """The distinct filters of a batch over exact terms, for verification.

    Leaf j holds for an item that has a term in one of the half-open intervals
    `[lows[i], highs[i])`, `i` in `leaf_offsets[j] … leaf_offsets[j + 1] - 1`; the intervals of a
    leaf are ascending and disjoint. NOT may stand anywhere.

    Attributes:
        lows, highs: int32 [I].
        leaf_offsets: int64 [L + 1].
        ops: int32 [T], as in `Program`.
        op_offsets: int64 [F + 1].
        max_depth: largest stack that any filter needs.
    """

    lows: torch.Tensor
    highs: torch.Tensor
    leaf_offsets: torch.Tensor
    ops: torch.Tensor
    op_offsets: torch.Tensor
    max_depth: int


@dataclass(frozen=True)
class Candidates:
    """Rows found for each query, best first; larger score first, then smaller row.

    Attributes:
        rows: int64 [B, M], -1 in empty slots, which stand last.
        scores: float32 [B, M], -inf in empty slots.
    """

    rows: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True)
class MatrixPlan:
    """Which term is stored where in the bit matrix; made from term counts alone.

    V terms are sorted by (feature, value), so that a feature is an interval of term ids.

    Attributes:
        own_row: int32 [V], the own row of a term, or -1.
        bloom: bool [V], the term is set on Bloom rows.
        slices: int64 [S, 5], lines (first_row, num_bits, first_term, end_term, side). The rank code
            of an item is `term - first_term + 1` of its smallest (side 0) or largest (side 1) term
            in the interval, 0 if it has none; bit i of the code stands in own row first_row + i.
        presence: int64 [G, 3], lines (row, first_term, end_term): own row of the items that have
            any term in the interval.
        num_own: R, own rows in all.
        bloom_fpr: wanted share of items without a term that its Bloom rows admit, 0 … 1.
        num_hashes: Bloom rows that a term sets in a block.
        fixed_width: Bloom rows of every block, or None to size each block from `bloom_fpr`.
    """

    own_row: torch.Tensor
    bloom: torch.Tensor
    slices: torch.Tensor
    presence: torch.Tensor
    num_own: int
    bloom_fpr: float
    num_hashes: int
    fixed_width: int | None = None


def mapped(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """The same with every tensor changed; looks into dataclasses and tuples."""
    if isinstance(value, torch.Tensor):
        return cast(T, change(value))
    if isinstance(value, tuple):
        return cast(T, tuple(mapped(item, change) for item in value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    parts: dict[str, Any] = {one.name: mapped(getattr(value, one.name), change) for one in fields(value)}
    return cast(T, replace(value, **parts))


def moved(value: T, device: torch.device) -> T:
    """The same with every tensor on a device; the host does not wait for copies to a GPU."""
    return mapped(value, lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))
