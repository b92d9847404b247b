"""A whole retrieval with every operation on the emulated kernels gives what the CPU gives, bit for bit.

The tensors claim to be on a device far away (see `tests/far_device.py`), so that each wait of the host for it is seen.
"""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import _disable_current_modes

import stcli
from stcli.model import joint, segment_search
from stcli.ops import cuda, scan_cuda
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


def far_model(tiny):
    """The model with all that a GPU may have on the far device."""
    model = stcli.open_artifact(tiny.model, backend="cuda")
    segment = model.only
    for name, buffer in list(segment.named_buffers(recurse=False)):
        setattr(segment, name, to_far(buffer.clone()))  # on a GPU they are aligned, in a file not always
    segment.terms = to_far(segment.terms)
    return model


COPIES = "aten::_to_copy"
RESULTS = 3
"""Copies of rows, scores and work."""


@pytest.mark.parametrize(
    ("how", "waits"),
    [
        # What the filters admit, the end of each of two attempts.
        ({"exact": True}, {COPIES: 1 + 2 + RESULTS}),
        ({"probes": 3}, {COPIES: 1 + 3 + RESULTS}),
        ({"target_recall": None}, {COPIES: 1 + 3 + RESULTS}),
        # Estimates and their deviations, counts near a threshold.
        ({"probes": 3, "filter_scope": "probed"}, {COPIES: 2 + 1 + 3 + RESULTS}),
    ],
    ids=str,
)
def test_the_results_are_the_same_and_the_host_waits_between_attempts_only(tiny, how, waits):
    vectors, texts = tiny.vectors[:18], tiny.filters[:18]
    exclude = [None, [3, 10, 17]] * 9
    expected = stcli.open_artifact(tiny.model)(vectors, texts, 7, exclude=exclude, **how)
    model = far_model(tiny)
    with cuda.launching_with(FarKernels()), Watch(both=True) as watch:
        found = model(vectors, texts, 7, exclude=exclude, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert torch.equal(expected.work, found.work)
    assert Counter(watch.waits) == waits


@pytest.mark.parametrize("how", [{"exact": True}, {"probes": 3}, {"target_recall": None}], ids=str)
def test_requests_of_several_tasks_are_answered_without_a_wait_that_is_no_copy_to_the_host(tiny, how):
    queries, texts = {"like": tiny.vectors[:18], "buy": tiny.vectors[17::-1].copy()}, tiny.filters[:18]
    expected = stcli.open_artifact(tiny.model)(queries, texts, 7, **how)
    model = far_model(tiny)
    with cuda.launching_with(FarKernels()), Watch(both=True) as watch:
        found = model(queries, texts, 7, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert set(watch.waits) == {COPIES}


@pytest.mark.parametrize(
    ("how", "operation", "module"),
    [
        ({"exact": True}, "search_rows", segment_search),
        ({"probes": 3}, "search_clusters", segment_search),
        ({"probes": 3, "tasks": True}, "search_requests", joint),
    ],
    ids=["rows", "clusters", "requests"],
)
def test_queries_that_the_kernels_cannot_answer_are_asked_again(tiny, how, operation, module, monkeypatch):
    """With hardly any room for what they collect; the host learns of them at the end of an attempt, with all else."""
    vectors, texts, how = tiny.vectors[:18], tiny.filters[:18], dict(how)
    queries = {"like": vectors, "buy": vectors[::-1].copy()} if how.pop("tasks", False) else vectors
    expected = stcli.open_artifact(tiny.model)(queries, texts, 7, **how)
    model = stcli.open_artifact(tiny.model, backend="cuda")
    for name, buffer in list(model.only.named_buffers(recurse=False)):
        setattr(model.only, name, buffer.clone())
    asked = []
    whole = getattr(module, operation)

    def asking(*given, unsure, **more):
        asked.append(unsure)
        return whole(*given, unsure=unsure, **more)

    monkeypatch.setattr(scan_cuda, "capacity_for", lambda num_rows, k0: k0 + 1)
    monkeypatch.setattr(scan_cuda, "REDOS", 0)
    monkeypatch.setattr(module, operation, asking)
    with cuda.launching_with(Emulated()):
        found = model(queries, texts, 7, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)
    assert bool(torch.cat([line for lines in asked if lines for line in lines]).any())
    assert operation == "search_requests" or any(lines is None for lines in asked)
