import numpy as np
import pytest
import torch

from stcli.ops import native
from stcli.ops.map_ids import id_table, map_ids

BACKENDS = ["torch", pytest.param("native", marks=pytest.mark.skipif(native.library() is None, reason="not built"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [0, 1, 2, 1000, 4097])
def test_equals_a_dictionary(backend, count):
    rng = np.random.default_rng(count)
    ids = np.unique(rng.integers(-(2**63), 2**63, 2 * count, dtype=np.int64))[:count]
    ids = rng.permutation(np.concatenate([ids[: max(count - 2, 0)], [-1, 0][: min(count, 2)]])).astype(np.int64)
    wanted = np.concatenate([ids, rng.integers(-5, 5, 50), [2**63 - 1, -(2**63)]]).astype(np.int64)
    rng.shuffle(wanted)
    where = {int(item): row for row, item in enumerate(ids)}
    expected = [where.get(int(item), -1) for item in wanted]
    given = torch.from_numpy(ids)
    found = map_ids(torch.from_numpy(wanted), given, id_table(given, backend=backend), backend=backend)
    assert found.tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [-(2**63), -7, 0, 10**12, 2**63 - 120])
def test_dense_ids(backend, first):
    rng = np.random.default_rng(3)
    ids = first + rng.permutation(120)[:70]
    wanted = np.concatenate([first + np.arange(120), [-(2**63), 2**63 - 1, -1, 0], rng.permutation(ids)])
    where = {int(item): row for row, item in enumerate(ids)}
    given = torch.from_numpy(ids)
    table = id_table(given, backend=backend)
    assert table.first == ids.min()
    found = map_ids(torch.from_numpy(wanted), given, table, backend=backend)
    assert found.tolist() == [where.get(int(item), -1) for item in wanted]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_that_share_a_slot_stay_apart(backend):
    ids = torch.arange(0, 1 << 40, 1 << 33)
    wanted = torch.cat([ids.flip(0), ids + 1])
    found = map_ids(wanted, ids, id_table(ids, backend=backend), backend=backend)
    assert found.tolist() == [*range(len(ids) - 1, -1, -1), *[-1] * len(ids)]
