"""Evaluate filters on the bit matrix: one word operation decides 64 items."""

from __future__ import annotations

import torch

from stcli.errors import TensorError
from stcli.ops import cuda, dispatch, native
from stcli.ops.bloom_hash import bloom_positions
from stcli.ops.checks import Shapes, check_range, describe
from stcli.ops.stack_programs import check_programs, run_programs
from stcli.types import (
    BLOCK_ROWS,
    BLOCK_WORDS,
    LEAF_ALL,
    LEAF_BLOOM,
    LEAF_EQUAL,
    LEAF_LESS,
    LEAF_OWN,
    BitMatrix,
    Program,
)


def filter_match(
    matrix: BitMatrix,
    program: Program,
    *,
    places: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Give the admitted items of each filter, as words.

    Each distinct leaf is evaluated once for all filters. A leaf on Bloom rows admits every item that has the term and
    a few that do not; all other leaves are exact.

    Example: 3 items, own row 0 = 0b011 and own row 1 = 0b110; leaves (LEAF_OWN, 0, 0, 0) and (LEAF_OWN, 1, 0, 0).
    The program `0, 1, OP_NOT, OP_AND` gives 0b001.

    Args:
        matrix: `BitMatrix` of N items.
        program: `Program` with F filters over L leaves; `LEAF_LESS` and `LEAF_EQUAL` have 0 … 62 bits.
        places: int64 [S], the only words to evaluate, each in 0 … W-1, ascending; None for all.
        out: int64 [F, W or S], contiguous, to be overwritten; allocated if None.
        backend: see `ops/dispatch.py`.

    Returns:
        int64 words [F, W] with W = ceil(N / 64), or [F, S]; bits >= N are zero, under NOT too.

    Raises:
        TensorError: a tensor has another dtype, shape or device than stated, or the program is not whole.
    """
    form = dispatch.resolve(backend, matrix.own, kernel=program.max_depth <= MOST_DEPTH)
    values = dispatch.reads_values(form, matrix.own)
    num_words = check_program(matrix, program, values=values)
    if places is not None:
        num_words = _check_places(places, num_words, values)
    num_filters = len(program.op_offsets) - 1
    if out is None:
        out = torch.empty(num_filters, num_words, dtype=torch.int64, device=matrix.own.device)
    elif out.shape != (num_filters, num_words) or out.dtype != torch.int64 or not out.is_contiguous():
        raise TensorError(f"out: contiguous int64 [F={num_filters}, {num_words}] expected, got {describe(out)}")
    if not num_filters or not num_words:
        return out
    if form == "native":
        native.call(
            "stcli_filter_match", *native_program(matrix, program), places, num_words, out, native.num_threads()
        )
    elif form == "cuda" and places is not None:
        _cuda_places(matrix, program, places, out)
    elif form == "cuda":
        _cuda(matrix, program, out)
    else:
        _torch(matrix, program, places, out)
    return out


def check_program(matrix: BitMatrix, program: Program, *, values: bool) -> int:
    """W, once a matrix and a program for it have been found in order, with `values` what they hold too.

    Raises:
        TensorError: as `filter_match`.
    """
    shapes = Shapes()
    shapes.check("matrix.own", matrix.own, torch.int64, "R W")
    shapes.check("matrix.bloom", matrix.bloom, torch.int64, f"H {BLOCK_WORDS}")
    shapes.check("matrix.bloom_offsets", matrix.bloom_offsets, torch.int64, "blocks+1")
    shapes.check("program.leaves", program.leaves, torch.int64, "L 4")
    shapes.check("program.ops", program.ops, torch.int32, "T")
    shapes.check("program.op_offsets", program.op_offsets, torch.int64, "F+1")
    num_words, num_blocks = -(-matrix.num_items // 64), -(-matrix.num_items // BLOCK_ROWS)
    if matrix.own.shape[1] != num_words or len(matrix.bloom_offsets) != num_blocks + 1:
        raise TensorError(
            f"matrix: own int64 [R, {num_words}] and {num_blocks + 1} bloom_offsets expected with "
            f"{matrix.num_items} items, got {describe(matrix.own)} and {len(matrix.bloom_offsets)}"
        )
    if matrix.num_hashes < 1:
        raise TensorError(f"matrix.num_hashes: 1 or more expected, got {matrix.num_hashes}")
    if values:
        _check_values(matrix, program)
    return num_words


def _check_places(places: torch.Tensor, num_words: int, values: bool) -> int:
    Shapes().check("places", places, torch.int64, "S")
    if values and len(places):
        check_range("places", places, num_words)
        if bool((places.diff() <= 0).any()) or int(places[0]) < 0:
            raise TensorError("places: ascending word numbers expected")
    return len(places)


def _check_values(matrix: BitMatrix, program: Program) -> None:
    heights = matrix.bloom_offsets[1:] - matrix.bloom_offsets[:-1]
    if (
        int(matrix.bloom_offsets[0]) != 0
        or int(matrix.bloom_offsets[-1]) != len(matrix.bloom)
        or bool((heights < 0).any())
    ):
        raise TensorError(f"matrix.bloom_offsets: ascending from 0 to {len(matrix.bloom)} (from bloom) expected")
    kind, first, bits, _ = program.leaves.unbind(1)
    sliced = (kind == LEAF_LESS) | (kind == LEAF_EQUAL)
    end = torch.where(sliced, first + bits, first + (kind == LEAF_OWN))
    wrong = (kind < LEAF_ALL) | (kind > LEAF_EQUAL) | (sliced & ((bits < 0) | (bits > 62)))
    wrong |= (sliced | (kind == LEAF_OWN)) & ((first < 0) | (end > len(matrix.own)))
    if bool(wrong.any()):
        leaf = int(torch.nonzero(wrong)[0])
        raise TensorError(
            f"program.leaves: leaf {leaf} is {program.leaves[leaf].tolist()}; a known kind and own rows below "
            f"{len(matrix.own)} expected"
        )
    check_programs(program.ops, program.op_offsets, len(program.leaves), program.max_depth)


# Words of all temporaries of one group of blocks: 32 MiB.
_GROUP_WORDS = 1 << 22


def _torch(matrix: BitMatrix, program: Program, places: torch.Tensor | None, out: torch.Tensor) -> None:
    num_filters, num_words = len(out), matrix.own.shape[1]
    lines_per_block = len(program.leaves) + num_filters * (program.max_depth + 2)
    group = max(1, _GROUP_WORDS // (lines_per_block * BLOCK_WORDS)) * BLOCK_WORDS
    filters = torch.arange(num_filters, device=out.device)
    for first in range(0, num_words, group):
        end = min(first + group, num_words)
        wanted = slice(first, end)
        if places is not None:
            wanted = slice(*torch.searchsorted(places, torch.tensor([first, end], device=places.device)).tolist())
            if wanted.start == wanted.stop:
                continue
        every_item = _every_item(matrix, first, end)
        masks = _leaf_masks(matrix, program.leaves, every_item, first)
        stack = masks.new_empty(program.max_depth, num_filters, len(every_item))

        def leaf_values(_: torch.Tensor, leaves: torch.Tensor, masks: torch.Tensor = masks) -> torch.Tensor:
            return masks[leaves]

        result = run_programs(program.ops, program.op_offsets, filters, stack, leaf_values) & every_item
        out[:, wanted] = result if places is None else result[:, places[wanted] - first]


def _every_item(matrix: BitMatrix, first: int, end: int) -> torch.Tensor:
    """Words first … end - 1 of the mask of all items; end is at most W."""
    words = torch.full((end - first,), -1, dtype=torch.int64, device=matrix.own.device)
    if end * 64 > matrix.num_items:
        words[-1] = (1 << (matrix.num_items % 64)) - 1
    return words


def _leaf_masks(matrix: BitMatrix, leaves: torch.Tensor, every_item: torch.Tensor, first: int) -> torch.Tensor:
    """Masks [L, G] of the leaves over the words first … first + G - 1; first is the start of a block."""
    own = matrix.own[:, first : first + len(every_item)]
    kind, a = leaves[:, 0], leaves[:, 1]
    masks = own.new_zeros(len(leaves), len(every_item))
    masks[kind == LEAF_ALL] = every_item
    masks[kind == LEAF_OWN] = own[a[kind == LEAF_OWN]]
    masks[kind == LEAF_BLOOM] = _bloom_masks(matrix, a[kind == LEAF_BLOOM], first, len(every_item))
    sliced = torch.nonzero((kind == LEAF_LESS) | (kind == LEAF_EQUAL)).squeeze(1)
    for place, (sort, row, bits, bound) in zip(sliced.tolist(), leaves[sliced].tolist(), strict=True):
        less, equal = _compare(own[row : row + bits], bound, every_item)
        masks[place] = less if sort == LEAF_LESS else equal
    return masks


def _compare(code: torch.Tensor, bound: int, every_item: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of the items whose rank code, in words [bits, G] from the lowest bit on, is < bound and == bound."""
    nothing = torch.zeros_like(every_item)
    if bound >> len(code):  # no code of so many bits reaches the bound, or the bound is negative
        return (every_item if bound > 0 else nothing), nothing
    # From the highest bit on: less where the codes first differ at a one of the bound, equal while they agree.
    less, equal = nothing, every_item
    for bit in reversed(range(len(code))):
        if bound >> bit & 1:
            less, equal = less | (equal & ~code[bit]), equal & code[bit]
        else:
            equal = equal & ~code[bit]
    return less, equal


def _bloom_masks(matrix: BitMatrix, terms: torch.Tensor, first: int, num_words: int) -> torch.Tensor:
    """AND of the Bloom rows of each term, block by block; nothing where a block has none. Words [terms, num_words]."""
    blocks = torch.arange(first // BLOCK_WORDS, -(-(first + num_words) // BLOCK_WORDS), device=terms.device)
    widths = matrix.bloom_offsets[blocks + 1] - matrix.bloom_offsets[blocks]
    masks = matrix.bloom.new_zeros(len(terms), len(blocks), BLOCK_WORDS)
    filled = widths > 0
    if len(terms) and bool(filled.any()):
        rows = bloom_positions(terms[:, None], blocks[filled], widths[filled], matrix.num_hashes)
        rows += matrix.bloom_offsets[blocks[filled], None]
        part = matrix.bloom[rows[..., 0]]
        for i in range(1, matrix.num_hashes):
            part &= matrix.bloom[rows[..., i]]
        masks[:, filled] = part
    return masks.flatten(1)[:, :num_words]


def native_program(matrix: BitMatrix, program: Program) -> list[torch.Tensor | int]:
    """A matrix and a program as the native functions take them."""
    return [
        matrix.own,
        matrix.bloom,
        matrix.bloom_offsets,
        matrix.num_hashes,
        matrix.num_items,
        program.leaves,
        len(program.leaves),
        program.ops,
        program.op_offsets,
        len(program.op_offsets) - 1,
    ]


# Bytes of the leaf masks of one group of words, which stay in the second-level cache of every GPU from sm_80 on.
_MASK_BYTES = 1 << 24
_THREADS = 256
_STACK_BYTES = 48 << 10
MOST_DEPTH = _STACK_BYTES // (8 * BLOCK_WORDS) + 1
"""Stack of the CUDA forms."""


def _cuda(matrix: BitMatrix, program: Program, out: torch.Tensor) -> None:
    num_filters, num_words = out.shape
    num_leaves, below = len(program.leaves), program.max_depth - 1
    warps = min(_STACK_BYTES // (8 * BLOCK_WORDS * max(below, 1)), _THREADS // 32)
    words = -(-num_words // BLOCK_WORDS) * BLOCK_WORDS
    group = min(max(_MASK_BYTES // (8 * max(num_leaves, 1)) // BLOCK_WORDS, 1) * BLOCK_WORDS, words)
    masks = torch.empty(num_leaves, group, dtype=torch.int64, device=out.device)
    for first in range(0, num_words, group):
        blocks = -(-min(group, num_words - first) // BLOCK_WORDS)
        cuda.launch(
            "filter_match.cu",
            "filter_leaves",
            (blocks, min(-(-num_leaves // (_THREADS // 32)), 64), 1),
            _THREADS,
            matrix.own,
            num_words,
            matrix.bloom,
            matrix.bloom_offsets,
            matrix.num_hashes,
            program.leaves,
            num_leaves,
            first,
            group,
            masks,
        )
        cuda.launch(
            "filter_match.cu",
            "filter_match",
            (blocks, min(-(-num_filters // warps), 64), 1),
            32 * warps,
            matrix.own,
            num_words,
            program.leaves,
            masks,
            group,
            program.ops,
            program.op_offsets,
            num_filters,
            program.max_depth,
            matrix.num_items,
            first,
            out,
            shared_bytes=warps * 8 * BLOCK_WORDS * below,
        )


def _cuda_places(matrix: BitMatrix, program: Program, places: torch.Tensor, out: torch.Tensor) -> None:
    """Each word is a cluster of its own, which every filter probes."""
    every = torch.arange(out.numel() + 1, device=out.device)
    offsets = (64 * torch.arange(matrix.own.shape[1] + 1, device=out.device)).clamp(max=matrix.num_items)
    launch_probes(matrix, program, None, every[: len(out)], places.expand_as(out), offsets, every[1:].view_as(out), out)


def launch_probes(
    matrix: BitMatrix,
    program: Program,
    allowed: torch.Tensor | None,
    filter_of_query: torch.Tensor,
    probes: torch.Tensor,
    offsets: torch.Tensor,
    ends: torch.Tensor,
    words: torch.Tensor,
) -> None:
    """Write the words of each pair of a query and a cluster; see `kernels/filter_probes.cu`."""
    below = program.max_depth - 1
    warps = min(_STACK_BYTES // (8 * 32 * max(below, 1)), _THREADS // 32)
    cuda.launch(
        "filter_probes.cu",
        "filter_probes",
        len(probes) if probes.numel() else 0,
        32 * warps,
        matrix.own,
        matrix.own.shape[1],
        matrix.bloom,
        matrix.bloom_offsets,
        matrix.num_hashes,
        matrix.num_items,
        program.leaves,
        program.ops,
        program.op_offsets,
        allowed,
        filter_of_query.contiguous(),
        probes.contiguous(),
        probes.shape[1],
        offsets,
        ends,
        words,
        words.numel(),
        shared_bytes=8 * 32 * warps * below,
    )
