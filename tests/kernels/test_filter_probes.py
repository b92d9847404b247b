"""The filter kernel of probed clusters against the words of whole filters from the loop over bits."""

import random

import pytest
import torch

from stcli.ops import cuda
from stcli.ops.filter_probes import filter_probes
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels.test_filter_match import matrix_of
from tests.ops.filter_cases import deep_ops, make_program, random_items, random_leaves, random_ops, random_plan
from tests.ops.test_filter_probes import check
from tests.oracles_filter import filter_match, words_of

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


@pytest.mark.parametrize("num_items", [1, 64, 65, 4160, 8300])
def test_equals_the_loop(num_items):
    """Deep programs, empty clusters, one over several blocks, queries without a filter, slots without a cluster."""
    rng = random.Random(num_items)
    plan, items = random_plan(rng, 20), random_items(rng, num_items, 20)
    matrix, own, blocks = matrix_of(items, plan)
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), size) for size in (1, 4)] + [deep_ops(rng, 9, 9)])
    offsets = torch.tensor(sorted([0, 0, num_items // 3, num_items // 3, num_items // 3 + 1, num_items]))
    given = (
        matrix,
        program,
        torch.tensor([2, -1, 0, 1, 2]),
        torch.tensor([[4, -1, 2], [0, 1, 2]] * 2 + [[-1] * 3]),
        offsets,
    )
    room = None if num_items % 2 else 15 * (num_items // 64 + 1)
    with cuda.launching_with(Emulated(num_items)):
        found = filter_probes(*given, room=room, backend="cuda")
    words = torch.from_numpy(words_of(filter_match(own, blocks, plan.num_hashes, program)))
    check(found, given, None, words, room)
