"""A whole retrieval with every operation on the emulated kernels gives what the CPU gives, bit for bit.

The tensors claim to be on a device far away (see `tests/far_device.py`), so that each wait of the host for it is seen.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import stcli
from stcli.ops import cuda
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.far_device import Far, Watch, to_far

pytestmark = pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)


class FarKernels(Emulated):
    """Runs the kernels on the far device, where neither the host nor a watch sees what they do."""

    def launch(self, source, kernel, grid, threads, shared_bytes, arguments) -> None:
        near = tuple(item.here if isinstance(item, Far) else item for item in arguments)
        with _disable_current_modes():
            super().launch(source, kernel, grid, threads, shared_bytes, near)


COPIES, NUMBERS = "aten::_to_copy", "aten::_local_scalar_dense"
RESULTS = 4
"""Copies of rows, scores, counts and work."""


@pytest.mark.parametrize(
    ("how", "waits"),
    [
        # What the filters admit, floors, the end of each of two attempts.
        ({"exact": True}, {COPIES: 1 + 1 + 2 + RESULTS}),
        ({"probes": 3}, {COPIES: 1 + 3 + RESULTS}),
        ({"target_recall": None}, {COPIES: 1 + 3 + RESULTS}),
        # Estimates and their deviations, counts near a threshold and of a search of all rows; of two attempts by
        # clusters how many words there are on these.
        ({"probes": 3, "filter_scope": "probed"}, {COPIES: 2 + 2 + 3 + RESULTS, NUMBERS: 2}),
    ],
    ids=str,
)
def test_the_results_are_the_same_and_the_host_waits_between_attempts_only(tiny, how, waits):
    vectors, texts = tiny.vectors[:18], tiny.filters[:18]
    exclude = [None, [3, 10, 17]] * 9
    expected = stcli.open_artifact(tiny.model)(vectors, texts, 7, exclude=exclude, **how)
    model = stcli.open_artifact(tiny.model, backend="cuda")
    segment = model.only
    for name, buffer in list(segment.named_buffers(recurse=False)):
        setattr(segment, name, to_far(buffer.clone()))  # on a GPU they are aligned, in a file not always
    segment.terms = to_far(segment.terms)
    with cuda.launching_with(FarKernels()), Watch(both=True) as watch:
        found = model(vectors, texts, 7, exclude=exclude, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert torch.equal(expected.work, found.work)
    assert Counter(watch.waits) == waits
