"""A whole retrieval with every operation on the emulated kernels gives what the CPU gives, bit for bit."""

import pytest
import torch

import stcli
from stcli.ops import cuda
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


@pytest.mark.parametrize("how", [{"exact": True}, {"probes": 3}, {"target_recall": None}], ids=str)
def test_the_results_are_the_same(tiny, how):
    vectors, texts = tiny.vectors[:18], tiny.filters[:18]
    exclude = [None, [3, 10, 17]] * 9
    expected = stcli.open_artifact(tiny.model)(vectors, texts, 7, exclude=exclude, **how)
    model = stcli.open_artifact(tiny.model, backend="cuda")
    segment = model.only
    for name in ("codes", "centroid_codes"):
        setattr(segment, name, segment.get_buffer(name).clone())  # on a GPU they are aligned, in a file not always
    with cuda.launching_with(Emulated()):
        found = model(vectors, texts, 7, exclude=exclude, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert torch.equal(expected.work, found.work)
