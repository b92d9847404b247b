import numpy as np
import torch

import filter_cost as example
from stcli.filters.program import Planner
from stcli.index.build import measured_rate
from stcli.ops.build_bit_matrix import build_bit_matrix


def test_smaller_than_the_official_layout_at_its_rate():
    for heavy in (False, True):
        terms, vocabulary = example.make_terms(8192, heavy)
        size, rate = example.official(terms)
        layout = example.lay_out(vocabulary, 8192, rate)
        matrix = build_bit_matrix(terms, layout.plan)
        assert 8 * (matrix.own.numel() + matrix.bloom.numel()) / 8192 < size
        measured = measured_rate(matrix, vocabulary, layout, "auto")
        assert measured is not None
        assert measured < 1.2 * rate


def test_terms_and_filters():
    terms, vocabulary = example.make_terms(500, heavy=True)
    lines = np.split(terms.values.numpy(), terms.offsets[1:-1].numpy())
    assert all((np.diff(line) > 0).all() for line in lines)
    assert vocabulary.present.tolist() == [
        sum(bool(((line >= f.first_term) & (line < f.end_term)).any()) for line in lines) for f in vocabulary.features
    ]
    texts = example.make_filters(40)
    assert len(texts) == 40
    layout = example.lay_out(vocabulary, 500, 0.001)
    batch = Planner(vocabulary, layout).batch(texts)
    assert batch.unknown_values == 0
    assert torch.equal(batch.filter_of_query, torch.arange(40))
