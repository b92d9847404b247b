"""The filter kernels against loops over bits, in one group of words and in several."""

import random

import pytest
import torch

from stcli.types import BitMatrix
from tests import oracles_filter as oracle
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches
from tests.ops.filter_cases import deep_ops, make_program, random_items, random_leaves, random_ops, random_plan

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


def matrix_of(items, plan):
    """A bit matrix, and the oracle's bits of it."""
    own, blocks = oracle.bit_matrix(items, plan)
    widths = torch.tensor([0] + [len(bits) for bits in blocks])
    bloom = [torch.from_numpy(oracle.words_of(bits)).reshape(-1, 64) for bits in blocks]
    words = torch.from_numpy(oracle.words_of(own)).reshape(plan.num_own, -(-len(items) // 64))
    bloom_words = torch.cat([torch.empty(0, 64, dtype=torch.int64), *bloom])
    return BitMatrix(words, bloom_words, widths.cumsum(0), plan.num_hashes, len(items)), own, blocks


@pytest.mark.parametrize(
    ("num_items", "num_terms", "group"),
    [(1, 1, 1), (63, 9, 1), (64, 5, 1), (65, 30, 2), (4096, 40, 1), (4097, 12, 1), (4160, 7, 3), (8300, 25, 2)],
)
def test_equals_the_loop(num_items, num_terms, group):
    rng = random.Random(num_items)
    plan = random_plan(rng, num_terms)
    items = random_items(rng, num_items, num_terms)
    matrix, own, blocks = matrix_of(items, plan)
    leaves = random_leaves(rng, plan, 4)
    programs = [[leaf] for leaf in range(len(leaves))] if num_items < 100 else []
    programs += [random_ops(rng, len(leaves), size) for size in (1, 2, 3, 4, 6)] + [deep_ops(rng, len(leaves), 9)]
    program = make_program(leaves, programs)
    found = launches.filter_match(matrix, program, group, seed=num_items)
    admitted = oracle.filter_match(own, blocks, plan.num_hashes, program)
    assert torch.equal(found, torch.from_numpy(oracle.words_of(admitted)))


def test_no_items_bits_beyond_the_end_under_not():
    rng = random.Random(1)
    matrix, *_ = matrix_of(random_items(rng, 70, 3), random_plan(rng, 3))
    found = launches.filter_match(matrix, make_program([(1, 0, 0, 0)], [[0, -3]]), 1, seed=0)
    assert found.tolist() == [[-1, 63]]
