"""Evaluate filters on the bit matrix where their queries look: on the clusters that they probe."""

from __future__ import annotations

from dataclasses import replace

import torch

from stcli.ops import dispatch, native
from stcli.ops.checks import Shapes, check_range
from stcli.ops.filter_match import MOST_DEPTH, check_program, filter_match, launch_probes, native_program
from stcli.ops.segments import expand
from stcli.types import BitMatrix, Program, Spans


def filter_probes(
    matrix: BitMatrix,
    program: Program,
    filter_of_query: torch.Tensor,
    probes: torch.Tensor,
    offsets: torch.Tensor,
    *,
    allowed: torch.Tensor | None = None,
    room: int | None = None,
    backend: str = "auto",
) -> Spans:
    """Give the words of each query's filter on the clusters that it probes, and nothing else.

    The bits are those of `filter_match`.

    Args:
        matrix: `BitMatrix` of N items.
        program: F filters.
        filter_of_query: int64 [B], which filter a query has, -1 for none.
        probes: int64 [B, P], each in 0 … C-1 or -1 for an unused slot, no repeats within a line.
        offsets: int64 [C + 1]; cluster c has the rows `offsets[c] … offsets[c + 1] - 1`.
        allowed: int64 [W] words, the only items that any query may get; None for all.
        room: words of all pairs at most, see `cluster_words`. A kernel gets as many places, so that the host need not
            wait for their number; None for no more than there are.
        backend: see `ops/dispatch.py`.

    Returns:
        `Spans`.

    Raises:
        TensorError: a tensor has another dtype, shape or range than stated.
    """
    form = dispatch.resolve(backend, matrix.own, kernel=program.max_depth <= MOST_DEPTH)
    values = dispatch.reads_values(form, matrix.own)
    num_words = check_program(matrix, program, values=values)
    shapes = Shapes()
    shapes.check("filter_of_query", filter_of_query, torch.int64, "B")
    shapes.check("probes", probes, torch.int64, "B P")
    shapes.check("offsets", offsets, torch.int64, "C+1")
    if allowed is not None:
        shapes.check("allowed", allowed, torch.int64, str(num_words))
    if values:
        check_range("filter_of_query", filter_of_query, len(program.op_offsets) - 1)
        check_range("probes", probes, len(offsets) - 1)
    forms = {"torch": _torch, "native": _native, "cuda": _cuda}
    return forms[form](matrix, program, filter_of_query, probes, offsets, allowed, room)


def cluster_words(offsets: torch.Tensor) -> torch.Tensor:
    """Words that hold the rows of each cluster, int64 [C], of offsets int64 [C + 1]; neighbours share some."""
    return torch.where(offsets.diff() > 0, -(-offsets[1:] // 64) - offsets[:-1] // 64, 0)


def _pairs(
    filter_of_query: torch.Tensor, probes: torch.Tensor, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many words each pair has, where they end among those of all, and their starts as `Spans` has them.

    Returns:
        int64 [B, P] each.
    """
    lengths = cluster_words(offsets)[probes.clamp(min=0)]
    lengths.masked_fill_((probes < 0) | (filter_of_query < 0)[:, None], 0)
    ends = lengths.flatten().cumsum(0).view_as(lengths)
    return lengths, ends, (ends - lengths).masked_fill(lengths == 0, -1)


def _num_words(ends: torch.Tensor) -> int:
    return int(ends[-1, -1]) if ends.numel() else 0


_GROUP_WORDS = 1 << 24
"""Words of the whole filters held at once: 128 MiB."""


def _torch(
    matrix: BitMatrix,
    program: Program,
    filter_of_query: torch.Tensor,
    probes: torch.Tensor,
    offsets: torch.Tensor,
    allowed: torch.Tensor | None,
    room: int | None,
) -> Spans:
    lengths, ends, starts = _pairs(filter_of_query, probes, offsets)
    words = lengths.new_zeros(_num_words(ends) + 1)
    first_words = (offsets[:-1] // 64)[probes.clamp(min=0)]
    num_filters, group = len(program.op_offsets) - 1, max(_GROUP_WORDS // max(matrix.own.shape[1], 1), 1)
    for first in range(0, num_filters, group):
        whole = filter_match(matrix, _slice(program, first, min(first + group, num_filters)), backend="torch")
        if allowed is not None:
            whole &= allowed
        mine = ((filter_of_query >= first) & (filter_of_query < first + group)).nonzero()[:, 0]
        pairs, places = expand(first_words[mine].flatten(), lengths[mine].flatten())
        _, targets = expand(starts[mine].flatten(), lengths[mine].flatten())
        lines = filter_of_query[mine][pairs // max(lengths.shape[1], 1)] - first
        words[targets] = whole[lines, places]
    return Spans(words, starts)


def _slice(program: Program, first: int, end: int) -> Program:
    offsets = program.op_offsets[first : end + 1]
    ops = program.ops[int(offsets[0]) : int(offsets[-1])]
    return replace(program, ops=ops, op_offsets=offsets - offsets[0], exact=program.exact[first:end])


def _native(
    matrix: BitMatrix,
    program: Program,
    filter_of_query: torch.Tensor,
    probes: torch.Tensor,
    offsets: torch.Tensor,
    allowed: torch.Tensor | None,
    room: int | None,
) -> Spans:
    starts, count = torch.empty(probes.shape, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
    pairs = filter_of_query, len(filter_of_query), probes, probes.shape[1], offsets, len(offsets) - 1, starts
    native.call("stcli_place_spans", *pairs, count)
    words = torch.empty(int(count) + 1, dtype=torch.int64)
    words[-1] = 0
    native.call("stcli_filter_probes", *native_program(matrix, program), *pairs, allowed, words, native.num_threads())
    return Spans(words, starts)


def _cuda(
    matrix: BitMatrix,
    program: Program,
    filter_of_query: torch.Tensor,
    probes: torch.Tensor,
    offsets: torch.Tensor,
    allowed: torch.Tensor | None,
    room: int | None,
) -> Spans:
    _, ends, starts = _pairs(filter_of_query, probes, offsets)
    words = ends.new_empty((_num_words(ends) if room is None else room) + 1)
    launch_probes(matrix, program, allowed, filter_of_query, probes, offsets, ends, words)
    return Spans(words, starts)
