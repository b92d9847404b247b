"""Oracles of the search operations: plain loops over Python and numpy scalars, slow and easy to check by eye."""

from __future__ import annotations

import numpy as np

F32 = np.float32


def quantize(vectors, scale=None, pad_to=32):
    """Codes [R, Dp] and scales [R] as the contract of `quantize_rows` states them."""
    num_rows, dim = vectors.shape
    codes = np.zeros((num_rows, -(-dim // pad_to) * pad_to), np.int8)
    scales = np.ones(num_rows, F32)
    for r, row in enumerate(vectors.astype(F32)):
        largest = max((abs(x) for x in row), default=F32(0))
        if scale is not None:
            scales[r] = F32(scale)
        elif largest > 0:
            scales[r] = max(F32(largest) / F32(127), np.finfo(F32).tiny)
        for d, x in enumerate(row):
            codes[r, d] = int(np.clip(np.rint(F32(x) / scales[r]), -127, 127))
    return codes, scales


def score(query_code, query_scale, row_code, row_scale):
    """The search score: an exact integer dot, then two float32 products."""
    dot = int(np.dot(query_code.astype(np.int64), row_code.astype(np.int64)))
    return F32(F32(F32(dot) * F32(query_scale)) * F32(row_scale)) + F32(0)


def assign(row_codes, row_scales, centroid_codes, centroid_scales, half_norms):
    """The first cluster of the largest value, for each row."""
    clusters = []
    for code, scale in zip(row_codes, row_scales, strict=True):
        values = [
            F32(score(code, centroid_scale, centroid, scale) - half)
            for centroid, centroid_scale, half in zip(centroid_codes, centroid_scales, half_norms, strict=True)
        ]
        clusters.append(max(range(len(values)), key=lambda c: (values[c], -c)))
    return clusters


def probes(query_codes, query_scales, centroid_codes, centroid_scales, num_probes, reaches=None):
    """The best clusters of each query."""
    reaches = np.zeros(len(centroid_scales), F32) if reaches is None else reaches
    lines = []
    for code, scale in zip(query_codes, query_scales, strict=True):
        length = F32(np.sqrt(F32(int((code.astype(np.int64) ** 2).sum()))) * scale)
        scores = [
            F32(score(code, scale, centroid, centroid_scale) + F32(length * reach))
            for centroid, centroid_scale, reach in zip(centroid_codes, centroid_scales, reaches, strict=True)
        ]
        lines.append(sorted(range(len(scores)), key=lambda c: (-scores[c], c))[:num_probes])
    return lines


def search(queries, index, rows_of_query, k0, bounds=None):
    """Rows [B, k0] and scores [B, k0] of the best of `rows_of_query[b]`.

    Args:
        queries: (codes, scales) as numpy arrays.
        index: dict of numpy arrays codes, scales, errors, norms.
        rows_of_query: for each query, the rows that it may see.
        bounds: (query_norms, query_errors) or None.
    """
    rows = np.full((len(queries[1]), k0), -1, np.int64)
    scores = np.full(rows.shape, -np.inf, F32)
    for b, (code, scale) in enumerate(zip(*queries, strict=True)):
        found = []
        for r in rows_of_query[b]:
            value = score(code, scale, index["codes"][r], index["scales"][r])
            if bounds is not None:
                slack = F32(F32(bounds[0][b] * index["errors"][r]) + F32(bounds[1][b] * index["norms"][r]))
                value = F32(value + slack)
            found.append((-value, r))
        for slot, (negative, r) in enumerate(sorted(found)[:k0]):
            rows[b, slot], scores[b, slot] = r, -negative
    return rows, scores


def admits(words, number, row):
    """Whether filter `number` (-1: none) admits the row."""
    return number < 0 or bool((int(words[number, row // 64]) >> (row % 64)) & 1)


def rescore(queries, values, exponents, rows):
    """16 lanes, product and sum rounded one by one, then folded in halves."""
    scores = np.full(rows.shape, -np.inf, F32)
    for b, line in enumerate(rows):
        for slot, r in enumerate(line):
            if r < 0:
                continue
            power = F32(2.0 ** (0 if exponents is None else int(exponents[r])))
            lanes = [F32(0)] * 16
            for d, (x, q) in enumerate(zip(values[r].astype(F32), queries[b], strict=True)):
                lanes[d % 16] = F32(lanes[d % 16] + F32(F32(x * power) * q))
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [F32(lanes[i] + lanes[i + half]) for i in range(half)]
            scores[b, slot] = lanes[0]
    return scores
