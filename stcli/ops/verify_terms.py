"""Check candidates against the exact terms of their rows."""

from __future__ import annotations

from functools import partial

import torch

from stcli.errors import TensorError
from stcli.ops import cuda, dispatch, native
from stcli.ops.checks import Shapes
from stcli.ops.segments import expand, lower_bound, split
from stcli.ops.stack_programs import check_programs, run_programs
from stcli.types import Postings, TermProgram


def verify_terms(
    terms: Postings,
    program: TermProgram,
    rows: torch.Tensor,
    filter_of_query: torch.Tensor,
    *,
    backend: str = "auto",
) -> torch.Tensor:
    """Tell which candidates truly satisfy the filter of their query.

    Example: row 0 has the terms {2, 5}, row 1 has {3}; leaf 0 is [2, 3), leaf 1 is [4, 9). The program
    `0, 1, OP_NOT, OP_AND` is false for row 0, which has term 5, and false for row 1, which lacks term 2.

    Args:
        terms: `Postings` int32, N lines, each ascending without repeats. A line whose offsets do not lie within the
            values counts as empty: they come from a file, and are too many to be checked when it is opened.
        program: `TermProgram` with F filters over L leaves.
        rows: int64 [B, M], 0 … N-1, or -1 in empty slots.
        filter_of_query: int64 [B], 0 … F-1, or -1 where every row is fine.
        backend: see `ops/dispatch.py`.

    Returns:
        bool [B, M], false in empty slots.

    Raises:
        TensorError: a tensor has another dtype, shape or device than stated, or a value is out of its range.
    """
    form = dispatch.resolve(backend, rows, kernel=program.max_depth <= _MOST_DEPTH)
    _check(terms, program, rows, filter_of_query, dispatch.reads_values(form, rows))
    return {"torch": _torch, "native": _native, "cuda": _cuda}[form](terms, program, rows, filter_of_query)


def _check(
    terms: Postings, program: TermProgram, rows: torch.Tensor, filter_of_query: torch.Tensor, values: bool
) -> None:
    shapes = Shapes()
    shapes.check("terms.values", terms.values, torch.int32, "X")
    shapes.check("terms.offsets", terms.offsets, torch.int64, "N+1")
    shapes.check("program.lows", program.lows, torch.int32, "I")
    shapes.check("program.highs", program.highs, torch.int32, "I")
    shapes.check("program.leaf_offsets", program.leaf_offsets, torch.int64, "L+1")
    shapes.check("program.ops", program.ops, torch.int32, "T")
    shapes.check("program.op_offsets", program.op_offsets, torch.int64, "F+1")
    shapes.check("rows", rows, torch.int64, "B M")
    shapes.check("filter_of_query", filter_of_query, torch.int64, "B")
    if not values:
        return
    leaf_offsets, num_intervals = program.leaf_offsets, len(program.lows)
    counts = leaf_offsets.diff()
    if int(leaf_offsets[0]) != 0 or int(leaf_offsets[-1]) != num_intervals or bool((counts < 0).any()):
        raise TensorError(f"program.leaf_offsets: ascending from 0 to {num_intervals} (from lows) expected")
    if bool((program.highs < program.lows).any()):
        raise TensorError("program: highs >= lows expected")
    check_programs(program.ops, program.op_offsets, len(leaf_offsets) - 1, program.max_depth)
    for name, numbers, end in (
        ("rows", rows, len(terms.offsets) - 1),
        ("filter_of_query", filter_of_query, len(program.op_offsets) - 1),
    ):
        if numbers.numel():
            low, high = (int(bound) for bound in torch.aminmax(numbers))
            if low < -1 or high >= end:
                raise TensorError(f"{name}: -1 … {end - 1} expected, got {low} … {high}")


_MOST_DEPTH = 64
"""The CUDA form keeps the stack of a candidate in the bits of a word."""

_THREADS = 256

# Candidates of one pass, and (candidate, term) pairs of one step: some 10 int64 temporaries of each, 200 MiB in all.
_LINES = 1 << 20
_PAIRS = 1 << 20


def _torch(terms: Postings, program: TermProgram, rows: torch.Tensor, filter_of_query: torch.Tensor) -> torch.Tensor:
    verified = rows >= 0
    query, slot = torch.nonzero(verified & (filter_of_query >= 0)[:, None], as_tuple=True)
    for first in range(0, len(query), _LINES):
        place = query[first : first + _LINES], slot[first : first + _LINES]
        filters = filter_of_query[place[0]]
        stack = torch.empty(program.max_depth, len(filters), dtype=torch.bool, device=rows.device)
        leaf_values = partial(_has_term, terms, program, rows[place])
        verified[place] = run_programs(program.ops, program.op_offsets, filters, stack, leaf_values)
    return verified


def _has_term(
    terms: Postings, program: TermProgram, rows: torch.Tensor, which: torch.Tensor, leaves: torch.Tensor
) -> torch.Tensor:
    """Whether row `rows[which[y]]` has a term in an interval of leaf `leaves[y]`: bool [Y]; all int64.

    Each term looks for its interval, rather than each interval for its term: an item has some tens of terms, an IN
    may have ten thousand values.
    """
    rows = rows[which]
    starts, ends = terms.offsets[rows], terms.offsets[rows + 1]
    whole = (starts >= 0) & (starts <= ends) & (ends <= len(terms.values))
    counts = torch.where(whole, ends - starts, 0)
    found = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    if len(program.lows) == 0:
        return found
    for first, end in split(counts, _PAIRS):
        pair, position = expand(starts[first:end], counts[first:end])
        term, leaf = terms.values[position].long(), leaves[first:end][pair]
        begin = program.leaf_offsets[leaf]
        interval = lower_bound(program.lows, begin, program.leaf_offsets[leaf + 1], term + 1) - 1
        hit = (interval >= begin) & (program.highs[interval.clamp(min=0)] > term)
        found[first + pair[hit]] = True
    return found


def _native(terms: Postings, program: TermProgram, rows: torch.Tensor, filter_of_query: torch.Tensor) -> torch.Tensor:
    verified = torch.empty(rows.shape, dtype=torch.bool)
    native.call(
        "stcli_verify_terms",
        terms.values,
        terms.offsets,
        len(terms.values),
        program.lows,
        program.highs,
        program.leaf_offsets,
        program.ops,
        program.op_offsets,
        len(program.op_offsets) - 1,
        rows,
        filter_of_query,
        *rows.shape,
        verified,
        native.num_threads(),
    )
    return verified


def _cuda(terms: Postings, program: TermProgram, rows: torch.Tensor, filter_of_query: torch.Tensor) -> torch.Tensor:
    verified = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    cuda.launch(
        "verify_terms.cu",
        "verify_terms",
        -(-rows.numel() // (_THREADS // 32)),  # a warp a candidate
        _THREADS,
        terms.values,
        terms.offsets,
        len(terms.values),
        program.lows,
        program.highs,
        program.leaf_offsets,
        program.ops,
        program.op_offsets,
        rows.contiguous(),
        filter_of_query.contiguous(),
        *rows.shape,
        verified,
    )
    return verified
