"""The re-score kernel: bit for bit the stated order of additions."""

import pytest
import torch

from stcli.types import Embeddings
from tests import oracles_search as oracle
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernels import launches

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [1, 15, 16, 17, 64, 100, 129, 384])
def test_equals_the_loop(dim, dtype):
    generator = torch.Generator().manual_seed(dim)
    queries = torch.randn(5, dim, generator=generator)
    values = (torch.randn(50, dim, generator=generator) * 3).to(dtype)
    values[3], values[4, ::2] = 0, -0.0
    exponents = torch.randint(-20, 20, (50,), generator=generator, dtype=torch.int8) if dim % 2 else None
    rows = torch.randint(-1, 50, (5, 7), generator=generator)
    found = launches.rescore(queries, Embeddings(values, exponents), rows, seed=dim)
    expected = oracle.rescore(
        queries.numpy(), values.numpy(), None if exponents is None else exponents.numpy(), rows.numpy()
    )
    assert found.tolist() == expected.tolist()


def test_every_exponent_and_every_half():
    """Powers of two down to the subnormal ones, and all finite float16 numbers, are what torch has."""
    exponents = torch.arange(-128, 128).to(torch.int8)
    found = launches.rescore(torch.ones(1, 1), Embeddings(torch.ones(256, 1), exponents), torch.arange(256)[None])
    assert found[0].tolist() == [2.0**exponent for exponent in range(-128, 128)]
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()]
    found = launches.rescore(torch.ones(1, 1), Embeddings(halves[:, None], None), torch.arange(len(halves))[None])
    assert torch.equal(found[0], halves.float() + 0.0)
