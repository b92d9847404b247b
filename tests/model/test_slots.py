import pytest
import torch

from stcli.model.slots import num_taken


@pytest.mark.parametrize("num_slots", [0, 1, 2, 3, 4, 7, 8, 9, 100])
def test_counts_the_slots_before_the_empty_ones(num_slots):
    counts = torch.arange(num_slots + 1)
    rows = torch.where(torch.arange(num_slots) < counts[:, None], 5, -1)
    assert torch.equal(num_taken(rows), counts)


def test_no_lines():
    assert num_taken(torch.empty((0, 3), dtype=torch.int64)).tolist() == []
