"""Oracles of the filter operations: plain loops over Python integers and lists, one item and one bit at a time."""

from __future__ import annotations

import bisect
import functools
import math
from collections import Counter

import numpy as np

MASK_64 = (1 << 64) - 1


def bloom_rows(term, block, width, num_hashes):
    """Bloom rows of a term in a block, each counted as often as it comes."""
    if width == 0:
        return []
    x = ((term + 1) * 0x9E3779B97F4A7C15 + block) & MASK_64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
    x ^= x >> 31
    rows = []
    for _ in range(num_hashes):
        rows.append((x // 2**32) * width // 2**32)
        x = x * 0xD1342543DE82EF95 % 2**64
    return rows


@functools.cache
def bloom_rate(terms, width, num_hashes):
    """Probability that `num_hashes` random rows of `width` are among those that so many terms set, one by one."""
    filled = np.zeros(width + 1)  # probability that so many rows are set
    filled[0] = 1
    rows = np.arange(width + 1)
    for _ in range(num_hashes * terms):
        fresh = filled * (width - rows) / width
        filled *= rows / width
        filled[1:] += fresh[:-1]
    return math.fsum(filled * (rows / width) ** num_hashes)


def block_width(counts, num_hashes, bloom_fpr):
    """Smallest width that keeps the mean false-positive rate."""
    if not any(counts):
        return 0

    def fits(width):
        rates = (n * bloom_rate(t, width, num_hashes) for t, n in Counter(counts).items())
        return math.fsum(rates) <= (bloom_fpr + 1e-12) * len(counts)

    return num_hashes + bisect.bisect_left(range(num_hashes, 1 << 16), True, key=fits)


def bit_matrix(items, plan):
    """Bits of `build_bit_matrix` for items that are lists of terms: own [R, N], and for each block [width, 4096]."""
    own = np.zeros((plan.num_own, len(items)), bool)
    for i, terms in enumerate(items):
        for term in terms:
            if plan.own_row[term] >= 0:
                own[plan.own_row[term], i] = True
        for first_row, num_bits, first_term, end_term, side in plan.slices.tolist():
            inside = [t for t in terms if first_term <= t < end_term]
            code = (max(inside) if side else min(inside)) - first_term + 1 if inside else 0
            for bit in range(num_bits):
                own[first_row + bit, i] |= code // 2**bit % 2 == 1
        for row, first_term, end_term in plan.presence.tolist():
            own[row, i] |= any(first_term <= t < end_term for t in terms)
    blocks = []
    for block, first in enumerate(range(0, len(items), 4096)):
        bloom_terms = [[t for t in terms if plan.bloom[t]] for terms in items[first : first + 4096]]
        width = plan.fixed_width or block_width([len(t) for t in bloom_terms], plan.num_hashes, plan.bloom_fpr)
        bits = np.zeros((width, 4096), bool)
        for i, terms in enumerate(bloom_terms):
            if plan.num_hashes * len(terms) > 4 * width:
                bits[:, i] = True
            for term in terms:
                for row in bloom_rows(term, block, width, plan.num_hashes):
                    bits[row, i] = True
        blocks.append(bits)
    return own, blocks


def words_of(bits):
    """int64 words [..., ceil(n / 64)] of booleans [..., n], built bit by bit."""
    bits = np.asarray(bits)
    words = np.zeros((*bits.shape[:-1], -(-bits.shape[-1] // 64)), np.uint64)
    for i in range(bits.shape[-1]):
        words[..., i // 64] |= bits[..., i].astype(np.uint64) << np.uint64(i % 64)
    return words.view(np.int64)


def run_postfix(ops, leaf_value):
    """Value of one postfix program for one item; `leaf_value(leaf)` is a bool."""
    stack = []
    for op in ops:
        if op >= 0:
            stack.append(leaf_value(op))
        elif op == -3:
            stack.append(not stack.pop())
        else:
            right, left = stack.pop(), stack.pop()
            stack.append((left and right) if op == -1 else (left or right))
    (value,) = stack
    return value


def filter_match(own, blocks, num_hashes, program):
    """Admitted items bool [F, N] from the bits that `bit_matrix` gives."""
    num_items = own.shape[1]

    def leaf_value(leaf, item):
        kind, a, b, c = (int(x) for x in program.leaves[leaf])
        if kind == 2:
            return bool(own[a, item])
        if kind == 3:
            bits = blocks[item // 4096]
            rows = bloom_rows(a, item // 4096, len(bits), num_hashes)
            return bool(rows) and all(bits[row, item % 4096] for row in rows)
        code = sum(2**bit * int(own[a + bit, item]) for bit in range(b)) if kind >= 4 else 0
        return [True, False, None, None, code < c, code == c][kind]

    known = {}

    def remembered(leaf, item):
        if (leaf, item) not in known:
            known[leaf, item] = leaf_value(leaf, item)
        return known[leaf, item]

    bounds = program.op_offsets.tolist()
    admitted = np.zeros((len(bounds) - 1, num_items), bool)
    for f in range(len(admitted)):
        ops = program.ops[bounds[f] : bounds[f + 1]].tolist()
        for item in range(num_items):
            admitted[f, item] = run_postfix(ops, lambda leaf, item=item: remembered(leaf, item))
    return admitted


def verify_terms(items, program, rows, filter_of_query):
    """Verified candidates bool [B, M] for items that are lists of terms."""
    bounds, leaf_bounds = program.op_offsets.tolist(), program.leaf_offsets.tolist()
    intervals = list(zip(program.lows.tolist(), program.highs.tolist(), strict=True))

    def holds(filter_, row):
        def leaf_value(leaf):
            inside = intervals[leaf_bounds[leaf] : leaf_bounds[leaf + 1]]
            return any(low <= term < high for term in items[row] for low, high in inside)

        return run_postfix(program.ops[bounds[filter_] : bounds[filter_ + 1]].tolist(), leaf_value)

    verified = np.zeros(tuple(rows.shape), bool)
    for b, line in enumerate(rows.tolist()):
        for m, row in enumerate(line):
            filter_ = int(filter_of_query[b])
            verified[b, m] = row >= 0 and (filter_ < 0 or holds(filter_, row))
    return verified
