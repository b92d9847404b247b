"""Lay the terms of all items out as rows of bits."""

from __future__ import annotations

import bisect

import torch

from stcli.errors import TensorError
from stcli.ops import dispatch, native
from stcli.ops.bloom_hash import bloom_positions, bloom_rates
from stcli.ops.checks import Shapes
from stcli.ops.segments import lower_bound
from stcli.types import BLOCK_ROWS, BLOCK_WORDS, BitMatrix, MatrixPlan, Postings

FIXED_POINT = float(1 << 40)
"""False-positive rates are summed as multiples of 2^-40, so that the order of the sum cannot matter."""


def build_bit_matrix(terms: Postings, plan: MatrixPlan, *, backend: str = "auto") -> BitMatrix:
    """Build the bit matrix that `filter_match` reads.

    The Bloom rows of a block are as few as keep the mean false-positive rate of its items (`bloom_rates`) at or below
    `plan.bloom_fpr`; never fewer than `num_hashes`, and none where no item has a Bloom term. An item with
    `num_hashes * t > 4 * width` for its t Bloom terms has its whole column set: still a superset, and cheaper than to
    widen the block for it.

    Example: items with the terms {0}, {0, 1}, {} and own_row = [0, -1], bloom = [False, False]: own row 0 is 0b011.

    Args:
        terms: `Postings` int32, N lines, each ascending without repeats, values in 0 … V-1.
        plan: `MatrixPlan` for V terms.
        backend: see `ops/dispatch.py`.

    Returns:
        `BitMatrix` of N items; `own` has num_own * W * 8 bytes.

    Raises:
        TensorError: a tensor has another dtype, shape or device than stated, or a value is out of its range.
    """
    _check(terms, plan)
    run = _native if dispatch.resolve(backend, terms.values) == "native" else _torch
    return run(terms, plan)


def _check(terms: Postings, plan: MatrixPlan) -> None:
    shapes = Shapes()
    shapes.check("terms.values", terms.values, torch.int32, "T")
    shapes.check("terms.offsets", terms.offsets, torch.int64, "N+1")
    shapes.check("plan.own_row", plan.own_row, torch.int32, "V")
    shapes.check("plan.bloom", plan.bloom, torch.bool, "V")
    shapes.check("plan.slices", plan.slices, torch.int64, "S 5")
    shapes.check("plan.presence", plan.presence, torch.int64, "G 3")
    offsets, num_terms = terms.offsets, len(plan.own_row)
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(terms.values) or bool((offsets[1:] < offsets[:-1]).any()):
        raise TensorError(f"terms.offsets: ascending from 0 to {len(terms.values)} (from values) expected")
    first, bits, first_term, end_term, side = plan.slices.unbind(1)
    _check_range("terms.values", terms.values, 0, num_terms)
    _check_range("plan.own_row", plan.own_row, -1, plan.num_own)
    _check_range("plan.slices bits", bits, 0, 32)
    _check_range("plan.slices side", side, 0, 2)
    _check_range("plan.slices first_row", torch.cat([first, first + bits]), 0, plan.num_own + 1)
    _check_range("plan.presence row", plan.presence[:, 0], 0, plan.num_own)
    bounds = torch.cat([first_term, end_term, plan.presence[:, 1], plan.presence[:, 2]])
    _check_range("plan first_term, end_term", bounds, 0, num_terms + 1)
    if plan.num_hashes < 1 or not 0 < plan.bloom_fpr < 1:
        raise TensorError(
            f"plan: num_hashes >= 1 and 0 < bloom_fpr < 1 expected, got {plan.num_hashes} and {plan.bloom_fpr}"
        )
    if plan.fixed_width is not None and plan.fixed_width < 1:
        raise TensorError(f"plan.fixed_width: 1 or more expected, got {plan.fixed_width}")


def _check_range(name: str, values: torch.Tensor, first: int, end: int) -> None:
    if len(values) == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < first or high >= end:
        raise TensorError(f"{name}: {first} … {end - 1} expected, got {low} … {high}")


def _torch(terms: Postings, plan: MatrixPlan) -> BitMatrix:
    num_items, device = len(terms.offsets) - 1, terms.values.device
    own = torch.zeros(plan.num_own, -(-num_items // 64), dtype=torch.int64, device=device)
    bloom = []
    for block, first in enumerate(range(0, num_items, BLOCK_ROWS)):
        offsets = terms.offsets[first : first + BLOCK_ROWS + 1]
        values = terms.values[int(offsets[0]) : int(offsets[-1])]
        offsets = offsets - offsets[0]
        words = _own_block(values, offsets, plan)
        start = first // 64
        own[:, start : start + BLOCK_WORDS] = words[:, : own.shape[1] - start]
        bloom.append(_bloom_block(values, offsets, plan, block))
    heights = torch.tensor([0] + [len(part) for part in bloom], device=device)
    rows = torch.cat(bloom) if bloom else own.new_empty(0, BLOCK_WORDS)
    return BitMatrix(own, rows, heights.cumsum(0), plan.num_hashes, num_items)


def _own_block(values: torch.Tensor, offsets: torch.Tensor, plan: MatrixPlan) -> torch.Tensor:
    """Own rows of one block, int64 [R, 64]."""
    num_items = len(offsets) - 1
    bits = torch.zeros(plan.num_own, BLOCK_ROWS, dtype=torch.bool, device=values.device)
    item = torch.repeat_interleave(offsets.diff())
    row = plan.own_row[values]
    bits[row[row >= 0], item[row >= 0]] = True

    def first_at_least(term: int) -> torch.Tensor:
        return lower_bound(values, offsets[:-1], offsets[1:], torch.full_like(offsets[1:], term))

    for first_row, num_bits, first_term, end_term, side in plan.slices.tolist():
        begin, end = first_at_least(first_term), first_at_least(end_term)
        code, found = torch.zeros_like(begin), end > begin
        code[found] = values[(end - 1 if side else begin)[found]].long() - first_term + 1
        for bit in range(num_bits):
            bits[first_row + bit, :num_items] |= (code >> bit & 1).bool()
    for row, first_term, end_term in plan.presence.tolist():
        bits[row, :num_items] |= first_at_least(end_term) > first_at_least(first_term)
    return _pack(bits)


def _bloom_block(values: torch.Tensor, offsets: torch.Tensor, plan: MatrixPlan, block: int) -> torch.Tensor:
    """Bloom rows of one block, int64 [width, 64]."""
    num_items = len(offsets) - 1
    on_bloom = plan.bloom[values]
    term, item = values[on_bloom].long(), torch.repeat_interleave(offsets.diff())[on_bloom]
    counts = torch.bincount(item, minlength=num_items)
    width = _width(counts, plan) if plan.fixed_width is None else plan.fixed_width
    bits = torch.zeros(width, BLOCK_ROWS, dtype=torch.bool, device=values.device)
    if width:
        position = bloom_positions(term, torch.full_like(term, block), torch.full_like(term, width), plan.num_hashes)
        bits[position, item[:, None]] = True
        bits[:, :num_items] |= plan.num_hashes * counts > 4 * width
    return _pack(bits)


def _width(counts: torch.Tensor, plan: MatrixPlan) -> int:
    """Bloom rows of a block whose items have `counts` Bloom terms, int64 [items]."""
    lengths, items = torch.unique(counts, return_counts=True)
    if int(lengths[-1]) == 0:
        return 0

    def fits(width: int) -> bool:
        rates = torch.round(bloom_rates(lengths, width, plan.num_hashes) * FIXED_POINT).long()
        # One unit an item more, for rates that are exactly the one asked for but for rounding.
        return int((items * rates).sum()) <= (plan.bloom_fpr * FIXED_POINT + 1) * len(counts)

    return plan.num_hashes + bisect.bisect_left(range(plan.num_hashes, 1 << 31), True, key=fits)


def _pack(bits: torch.Tensor) -> torch.Tensor:
    """Words int64 [R, 64] of booleans [R, 4096]."""
    weights = 1 << torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.view(len(bits), BLOCK_ROWS // 8, 8) * weights).sum(2, dtype=torch.uint8).view(torch.int64)


def _native(terms: Postings, plan: MatrixPlan) -> BitMatrix:
    num_items, threads = len(terms.offsets) - 1, native.num_threads()
    num_words, num_blocks = -(-num_items // 64), -(-num_items // BLOCK_ROWS)
    bloom_offsets = torch.zeros(num_blocks + 1, dtype=torch.int64)
    if plan.fixed_width is not None:
        widths = torch.full((num_blocks,), plan.fixed_width)
    else:
        widths = torch.empty(num_blocks, dtype=torch.int64)
        native.call(
            "stcli_matrix_widths",
            terms.values,
            terms.offsets,
            num_items,
            plan.bloom,
            plan.num_hashes,
            plan.bloom_fpr,
            widths,
            threads,
        )
    torch.cumsum(widths, 0, out=bloom_offsets[1:])
    own = torch.empty(plan.num_own, num_words, dtype=torch.int64)
    bloom = torch.empty(int(bloom_offsets[-1]), BLOCK_WORDS, dtype=torch.int64)
    native.call(
        "stcli_matrix_fill",
        terms.values,
        terms.offsets,
        num_items,
        plan.own_row,
        plan.bloom,
        len(plan.own_row),
        plan.slices,
        len(plan.slices),
        plan.presence,
        len(plan.presence),
        plan.num_own,
        plan.num_hashes,
        bloom_offsets,
        own,
        bloom,
        threads,
    )
    return BitMatrix(own, bloom, bloom_offsets, plan.num_hashes, num_items)
