"""The verification kernel against loops over lists."""

import random

import pytest
import torch

from tests import oracles_filter as oracle
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches
from tests.ops import filter_cases
from tests.ops.filter_cases import deep_ops, make_term_program, postings, random_items, random_ops

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


@pytest.mark.parametrize("longest", [0, 6, 32, 33, 90])
def test_equals_the_loop(longest):
    rng = random.Random(longest)
    items = random_items(rng, 60, 100, longest)
    leaves = [[], [(0, 100)], [(5, 5)]]
    for _ in range(12):
        cuts = sorted(rng.sample(range(101), 2 * rng.randint(1, 20)))
        leaves.append(list(zip(cuts[::2], cuts[1::2], strict=True)))
    programs = [[leaf] for leaf in range(len(leaves))]
    programs += [random_ops(rng, len(leaves), size) for size in (2, 3, 5, 8)]
    programs += [deep_ops(rng, len(leaves), 64)]
    program = make_term_program(leaves, programs)
    filter_of_query = torch.arange(-1, len(programs))
    rows = torch.tensor([[rng.randint(-1, 59) for _ in range(9)] for _ in filter_of_query])
    found = launches.verify_terms(postings(items), program, rows, filter_of_query, seed=longest)
    assert found.tolist() == oracle.verify_terms(items, program, rows, filter_of_query).tolist()


@pytest.mark.parametrize("how", filter_cases.DAMAGED_OFFSETS)
def test_damaged_lines_are_empty(how):
    terms, items = filter_cases.damaged_postings(how)
    program, rows = make_term_program([[(0, 9)]], [[0], [0, -3]]), torch.arange(len(items)).repeat(2, 1)
    found = launches.verify_terms(terms, program, rows, torch.arange(2))
    assert found.tolist() == oracle.verify_terms(items, program, rows, torch.arange(2)).tolist()


def test_worked_example():
    terms = postings([[2, 5], [3]])
    program = make_term_program([[(2, 3)], [(4, 9)]], [[0, 1, -3, -1]])
    found = launches.verify_terms(terms, program, torch.tensor([[0, 1, -1]]), torch.tensor([0]))
    assert found.tolist() == [[False, False, False]]
