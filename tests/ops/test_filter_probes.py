"""filter_probes against the words of whole filters from the oracle, cut out item by item."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops.filter_probes import cluster_words, filter_probes
from tests.ops.filter_cases import probed_case


def check(found, given, allowed, words, room=None):
    _, _, filter_of_query, probes, offsets = given
    if allowed is not None:
        words = words & allowed
    used = 0
    for query, line in enumerate(probes.tolist()):
        for slot, cluster in enumerate(line):
            number, start = int(filter_of_query[query]), int(found.starts[query, slot])
            begin, end = offsets[cluster : cluster + 2].tolist() if cluster >= 0 else (0, 0)
            if number < 0 or begin == end:
                assert start == -1
                continue
            span = words[number, begin // 64 : -(-end // 64)]
            assert torch.equal(found.words[start : start + len(span)], span)
            used += len(span)
    assert len(found.words) == (used if room is None else room) + 1


@pytest.mark.parametrize("num_items", [1, 64, 130, 4097, 8300])
@pytest.mark.parametrize("with_allowed", [False, True])
def test_equals_the_words_of_whole_filters(form, num_items, with_allowed):
    given, allowed, words = probed_case(num_items, num_items, 7, with_allowed=with_allowed)
    check(filter_probes(*given, allowed=allowed, backend=form), given, allowed, words)


@pytest.mark.parametrize("num_items", [1, 130, 8300])
def test_room_for_the_largest_clusters_is_enough(form, num_items):
    given, allowed, words = probed_case(num_items, num_items, 7)
    *_, probes, offsets = given
    room = int(cluster_words(offsets).sort(descending=True).values[: probes.shape[1]].sum()) * len(probes)
    found = filter_probes(*given, room=room, backend=form)
    check(found, given, allowed, words, room if form == "cuda" else None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 300), max_size=8))
def test_cluster_words_hold_every_row(sizes):
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    assert cluster_words(offsets).tolist() == [len({row // 64 for row in range(*span)}) for span in spans]


def test_one_cluster_over_several_blocks(form):
    given, allowed, words = probed_case(3, 9000, 1, num_probes=1)
    check(filter_probes(*given, backend=form), given, allowed, words)


@pytest.mark.parametrize(("queries", "probes"), [(0, 3), (4, 0)])
def test_nothing_asked(form, queries, probes):
    given, _, _ = probed_case(1, 100, 3, num_queries=queries, num_probes=probes)
    found = filter_probes(*given, backend=form)
    assert found.starts.shape == (queries, probes)
    assert len(found.words) == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 12), st.booleans())
def test_property(seed, num_items, num_clusters, with_allowed):
    given, allowed, words = probed_case(seed, num_items, num_clusters, with_allowed=with_allowed)
    for form in ("torch", "auto"):
        check(filter_probes(*given, allowed=allowed, backend=form), given, allowed, words)


def test_threads_do_not_change_the_words(monkeypatch):
    given, allowed, words = probed_case(8, 5000, 20, num_queries=50)
    for threads in (1, 2, 5):
        monkeypatch.setattr("stcli.ops.native._num_threads", threads)
        check(filter_probes(*given), given, allowed, words)


def test_wrong_arguments_are_refused():
    matrix, program, filters, probes, offsets = probed_case(2, 100, 3)[0]
    with pytest.raises(TensorError, match="probes: numbers in -1"):
        filter_probes(matrix, program, filters, probes + 3, offsets)
    with pytest.raises(TensorError, match="filter_of_query: numbers in -1"):
        filter_probes(matrix, program, filters + 5, probes, offsets)
    with pytest.raises(TensorError, match="allowed: int64"):
        filter_probes(matrix, program, filters, probes, offsets, allowed=torch.zeros(1).long())
