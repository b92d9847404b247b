"""Tiles of all rows, against loops."""

import pytest
import torch

from stcli.ops import cuda, row_tiles
from stcli.ops.rounds import Fit
from stcli.ops.row_tiles import RowTiles
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernel_stand_in import StandIn

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("num_queries", "num_rows", "share"),
    [(1, 1, None), (7, 5000, None), (40, 700, 0.3), (300, 12_345, 0.9), (300, 999, 0.0), (300, 999, 1.0), (5, 0, 0.5)],
)
@pytest.mark.parametrize("row_step", [1, 61])
def test_equals_the_loop(monkeypatch, num_queries, num_rows, share, row_step):
    monkeypatch.setattr(row_tiles, "TILE_ROWS", 100)
    generator = torch.Generator().manual_seed(num_queries)
    listed = None if share is None else torch.rand(num_queries, generator=generator) < share
    found, expected = [], []
    for works, launcher in ((found, Emulated(num_rows)), (expected, StandIn())):
        with cuda.launching_with(launcher):
            tiles = RowTiles.of(num_queries, num_rows, CPU, Fit(128, 163 << 10), listed)
            works += tiles.work(row_step) + tiles.work(row_step, large_tiles=True)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.form == other.form
        assert torch.equal(one.tiles, other.tiles)
