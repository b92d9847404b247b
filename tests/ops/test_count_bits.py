import numpy as np
import torch

from stcli.ops.count_bits import _popcount, count_bits


def test_counts_every_bit_of_random_words_with_the_sign_bit_among_them():
    words = torch.from_numpy(np.random.default_rng(3).integers(-(2**63), 2**63, (7, 41), dtype=np.int64))
    words[0, 0], words[1, 0] = -1, -(2**63)
    expected = [sum(bin(int(word) & (2**64 - 1)).count("1") for word in line) for line in words]
    assert count_bits(words).tolist() == expected
    assert _popcount(words).sum(1).tolist() == expected
