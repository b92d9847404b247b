import numpy as np
import pytest
import torch

from stcli.ops.count_bits import count_bits


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1, 1), (7, 41), (3, 5000)])
def test_counts_every_bit_the_sign_bit_too(shape, form):
    words = torch.from_numpy(np.random.default_rng(3).integers(-(2**63), 2**63, shape, dtype=np.int64))
    if words.numel() > 1:
        words[0, 0], words[-1, -1] = -1, -(2**63)
    expected = [sum(bin(int(word) & (2**64 - 1)).count("1") for word in line) for line in words]
    assert count_bits(words, backend=form).tolist() == expected
