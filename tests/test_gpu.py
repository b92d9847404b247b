"""On a GPU, through the torch forms: the same index, byte for byte, and the same results as on the CPU."""

import numpy as np
import pytest
import torch

import stcli

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU"),
]


def arrays(path):
    return {file.name: file.read_bytes() for file in path.glob("*.npy")}


def test_the_index_is_the_same(tiny, tmp_path):
    for device in ("cpu", "cuda"):
        stcli.build_index(tiny.items, tmp_path / device, device=device, backend="torch", seed=3)
    assert arrays(tmp_path / "cpu") == arrays(tmp_path / "cuda")


@pytest.mark.parametrize("how", [{}, {"exact": True}, {"probes": 3}], ids=str)
def test_the_results_are_the_same(tiny, how):
    queries = np.random.default_rng(5).standard_normal((40, 16), dtype=np.float32)
    filters = [None, "price < 20", "NOT tags = 't03'", "color = 'red' AND year >= 2000"] * 10
    here, there = (stcli.open_artifact(tiny.model, device=device) for device in ("cpu", "cuda"))
    expected, found = here(queries, filters, 7, **how), there(queries, filters, 7, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)


def test_retrieve_writes_the_same_rows(tiny, tmp_path):
    for device in ("cpu", "cuda"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / device, k=5, filter_column="filter", device=device)
    parts = [(tmp_path / device / "part-00000.parquet").read_bytes() for device in ("cpu", "cuda")]
    assert parts[0] == parts[1]
