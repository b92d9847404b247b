"""filter_probes against the words of whole filters from the oracle, cut out item by item."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.filter_probes import filter_probes
from tests import oracles_filter
from tests.ops.filter_cases import make_program, postings, random_items, random_leaves, random_ops, random_plan


def random_case(seed, num_items, num_clusters, num_queries=9, num_probes=4, with_allowed=False):
    """Arguments of filter_probes, and what a query may get of each item, bool [F, N]."""
    rng = random.Random(seed)
    items, plan = random_items(rng, num_items, 30), random_plan(rng, 30)
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), rng.randint(1, 6)) for _ in range(5)])
    own, blocks = oracles_filter.bit_matrix(items, plan)
    words = torch.from_numpy(
        oracles_filter.words_of(oracles_filter.filter_match(own, blocks, plan.num_hashes, program))
    )
    cuts = sorted(rng.randint(0, num_items) for _ in range(num_clusters - 1))
    offsets = torch.tensor([0, *cuts, num_items])
    filter_of_query = torch.tensor([rng.randrange(-1, 5) for _ in range(num_queries)]).long()
    chosen = [rng.sample(range(num_clusters), min(num_probes, num_clusters)) for _ in range(num_queries)]
    probes = torch.tensor([[c if rng.random() < 0.9 else -1 for c in line] for line in chosen]).long()
    allowed = torch.randint(-(2**62), 2**62, (words.shape[1],)) if with_allowed else None
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    return (
        (matrix, program, filter_of_query, probes.view(num_queries, min(num_probes, num_clusters)), offsets),
        allowed,
        words,
    )


def check(found, given, allowed, words):
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
    assert len(found.words) == used + 1


@pytest.mark.parametrize("num_items", [1, 64, 130, 4097, 8300])
@pytest.mark.parametrize("with_allowed", [False, True])
def test_equals_the_words_of_whole_filters(form, num_items, with_allowed):
    given, allowed, words = random_case(num_items, num_items, 7, with_allowed=with_allowed)
    check(filter_probes(*given, allowed=allowed, backend=form), given, allowed, words)


def test_one_cluster_over_several_blocks(form):
    given, allowed, words = random_case(3, 9000, 1, num_probes=1)
    check(filter_probes(*given, backend=form), given, allowed, words)


@pytest.mark.parametrize(("queries", "probes"), [(0, 3), (4, 0)])
def test_nothing_asked(form, queries, probes):
    given, _, _ = random_case(1, 100, 3, num_queries=queries, num_probes=probes)
    found = filter_probes(*given, backend=form)
    assert found.starts.shape == (queries, probes)
    assert found.words.tolist() == [0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 12), st.booleans())
def test_property(seed, num_items, num_clusters, with_allowed):
    given, allowed, words = random_case(seed, num_items, num_clusters, with_allowed=with_allowed)
    for form in ("torch", "auto"):
        check(filter_probes(*given, allowed=allowed, backend=form), given, allowed, words)


def test_threads_do_not_change_the_words(monkeypatch):
    given, allowed, words = random_case(8, 5000, 20, num_queries=50)
    for threads in (1, 2, 5):
        monkeypatch.setattr("stcli.ops.native._num_threads", threads)
        check(filter_probes(*given), given, allowed, words)


def test_wrong_arguments_are_refused():
    matrix, program, filters, probes, offsets = random_case(2, 100, 3)[0]
    with pytest.raises(TensorError, match="probes: numbers in -1"):
        filter_probes(matrix, program, filters, probes + 3, offsets)
    with pytest.raises(TensorError, match="filter_of_query: numbers in -1"):
        filter_probes(matrix, program, filters + 5, probes, offsets)
    with pytest.raises(TensorError, match="allowed: int64"):
        filter_probes(matrix, program, filters, probes, offsets, allowed=torch.zeros(1).long())
