"""Random corpora, plans and programs for the tests of the filter operations."""

from __future__ import annotations

import itertools
import random

import torch

from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.types import OP_AND, OP_NOT, OP_OR, MatrixPlan, Postings, Program, TermProgram
from tests import oracles_filter


def postings(items: list[list[int]]) -> Postings:
    lengths = torch.tensor([0] + [len(terms) for terms in items])
    flat = [term for terms in items for term in terms]
    return Postings(torch.tensor(flat, dtype=torch.int32), lengths.cumsum(0))


def random_items(rng: random.Random, num_items: int, num_terms: int, longest: int = 6) -> list[list[int]]:
    """Items with 0 … longest terms, half of them drawn from the first few terms."""
    if num_terms == 0:
        return [[] for _ in range(num_items)]
    few = min(num_terms, 4)
    return [
        sorted({rng.randrange(few if rng.random() < 0.5 else num_terms) for _ in range(rng.randint(0, longest))})
        for _ in range(num_items)
    ]


def random_plan(
    rng: random.Random,
    num_terms: int,
    *,
    own_share: float = 0.3,
    bloom_share: float = 0.7,
    num_features: int = 2,
    num_hashes: int = 3,
    bloom_fpr: float = 0.02,
    fixed_width: int | None = None,
) -> MatrixPlan:
    """A plan whose own rows are: frequent terms, then presence rows, then slices of both sides."""
    rows, own_row, presence, slices = 0, [], [], []
    for _ in range(num_terms):
        own_row.append(rows if rng.random() < own_share else -1)
        rows += own_row[-1] >= 0
    bounds = sorted(rng.randint(0, num_terms) for _ in range(num_features + 1))
    for first, end in itertools.pairwise(bounds):
        presence.append([rows, first, end])
        rows += 1
        for side in (0, 1):
            slices.append([rows, (end - first).bit_length(), first, end, side])
            rows += (end - first).bit_length()
    return MatrixPlan(
        own_row=torch.tensor(own_row, dtype=torch.int32),
        bloom=torch.tensor([rng.random() < bloom_share for _ in range(num_terms)], dtype=torch.bool),
        slices=torch.tensor(slices, dtype=torch.int64).reshape(-1, 5),
        presence=torch.tensor(presence, dtype=torch.int64).reshape(-1, 3),
        num_own=rows,
        bloom_fpr=bloom_fpr,
        num_hashes=num_hashes,
        fixed_width=fixed_width,
    )


def random_ops(rng: random.Random, num_leaves: int, size: int) -> list[int]:
    """A postfix program with `size` leaves, NOT anywhere."""
    if size == 1:
        ops = [rng.randrange(num_leaves)]
    else:
        left = rng.randint(1, size - 1)
        ops = random_ops(rng, num_leaves, left) + random_ops(rng, num_leaves, size - left)
        ops.append(rng.choice((OP_AND, OP_AND, OP_OR)))
    return ops + [OP_NOT] * rng.choice((0, 0, 0, 1, 2))


def deep_ops(rng: random.Random, num_leaves: int, depth: int) -> list[int]:
    """A program that pushes `depth` leaves before it joins any."""
    return [rng.randrange(num_leaves) for _ in range(depth)] + [rng.choice((OP_AND, OP_OR)) for _ in range(depth - 1)]


def stack_depth(ops: list[int]) -> int:
    depth = deepest = 0
    for op in ops:
        depth += 1 if op >= 0 else (0 if op == OP_NOT else -1)
        deepest = max(deepest, depth)
    return deepest


def flatten(programs: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """ops, op_offsets and max_depth of some programs."""
    ops = torch.tensor([op for program in programs for op in program], dtype=torch.int32)
    offsets = torch.tensor([0] + [len(program) for program in programs]).cumsum(0)
    return ops, offsets, max((stack_depth(program) for program in programs), default=0)


def make_program(leaves: list[tuple[int, int, int, int]], programs: list[list[int]]) -> Program:
    ops, offsets, depth = flatten(programs)
    exact = torch.zeros(len(programs), dtype=torch.bool)
    return Program(torch.tensor(leaves, dtype=torch.int64).reshape(-1, 4), ops, offsets, exact, depth)


def make_term_program(leaves: list[list[tuple[int, int]]], programs: list[list[int]]) -> TermProgram:
    ops, offsets, depth = flatten(programs)
    flat = torch.tensor([pair for leaf in leaves for pair in leaf], dtype=torch.int32).reshape(-1, 2)
    leaf_offsets = torch.tensor([0] + [len(leaf) for leaf in leaves]).cumsum(0)
    return TermProgram(flat[:, 0].contiguous(), flat[:, 1].contiguous(), leaf_offsets, ops, offsets, depth)


def random_leaves(rng: random.Random, plan: MatrixPlan, num_random: int = 8) -> list[tuple[int, int, int, int]]:
    """Leaves of every kind that the plan allows; rank codes at, around and beyond their limits."""
    leaves = [(0, 0, 0, 0), (1, 0, 0, 0), (4, 0, 0, 0), (4, 0, 0, 1), (5, 0, 0, 0), (5, 0, 0, 1)]
    for first_row, num_bits, *_ in plan.slices.tolist():
        for bound in {-1, 0, 1, 2**num_bits - 1, 2**num_bits, rng.randint(0, 2**num_bits)}:
            leaves += [(4, first_row, num_bits, bound), (5, first_row, num_bits, bound)]
    for _ in range(num_random):
        if plan.num_own:
            leaves.append((2, rng.randrange(plan.num_own), 0, 0))
        if len(plan.own_row):
            leaves.append((3, rng.randrange(len(plan.own_row)), 0, 0))
    return leaves


def probed_case(seed, num_items, num_clusters, num_queries=9, num_probes=4, with_allowed=False):
    """Arguments of filter_probes, and what a query may get of each item, bool [F, N]."""
    rng = random.Random(seed)
    items, plan = random_items(rng, num_items, 30), random_plan(rng, 30)
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), rng.randint(1, 6)) for _ in range(5)])
    own, blocks = oracles_filter.bit_matrix(items, plan)
    words = torch.from_numpy(
        oracles_filter.words_of(oracles_filter.filter_match(own, blocks, plan.num_hashes, program))
    )
    cuts = sorted(rng.randint(0, num_items) for _ in range(num_clusters - 1))
    offsets = torch.tensor([0, *cuts, num_items])
    filter_of_query = torch.tensor([rng.randrange(-1, 5) for _ in range(num_queries)]).long()
    chosen = [rng.sample(range(num_clusters), min(num_probes, num_clusters)) for _ in range(num_queries)]
    probes = torch.tensor([[c if rng.random() < 0.9 else -1 for c in line] for line in chosen]).long()
    allowed = torch.randint(-(2**62), 2**62, (words.shape[1],)) if with_allowed else None
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    return (
        (matrix, program, filter_of_query, probes.view(num_queries, min(num_probes, num_clusters)), offsets),
        allowed,
        words,
    )


DAMAGED_OFFSETS = {
    "descending": [0, 2, 1, 4, 5],
    "negative": [0, -(2**40), 3, 4, 5],
    "past the end": [0, 2, 2**40, 4, 5],
    "last past the end": [0, 2, 3, 4, 2**40],
    "first negative": [-1, 2, 3, 4, 5],
}


def damaged_postings(how: str) -> tuple[Postings, list[list[int]]]:
    """Offsets of four rows that lead out of their five terms, and the terms of each row, none where its own do so."""
    values, offsets = [1, 3, 5, 7, 8], DAMAGED_OFFSETS[how]
    pairs = itertools.pairwise(offsets)
    items = [values[begin:end] if 0 <= begin <= end <= 5 else [] for begin, end in pairs]
    return Postings(torch.tensor(values, dtype=torch.int32), torch.tensor(offsets)), items
