import pytest

import paper_bloom_table as example


@pytest.mark.parametrize("bits", [512, 1024])
def test_measures_what_theory_says(bits):
    rate, size = example.measure(example.make_terms(16_384), bits)
    theory = (1 - (1 - 1 / bits) ** (example.HASHES * example.VALUES)) ** example.HASHES
    assert size == bits / 8
    # 512 values x 16,384 items: the mean of so many near-independent bits lies within 10 % of its expectation at 0.1 %.
    assert rate == pytest.approx(theory, rel=0.15)
