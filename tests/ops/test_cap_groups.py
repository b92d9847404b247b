from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops import native
from stcli.ops.cap_groups import OWN_GROUP, cap_groups
from tests.filters.tree_strategies import FIXED

BACKENDS = ["torch", *(["native"] if native.library() is not None else [])]


def greedy(line: list[int], groups: list[list[int]], limits: list[int], k: int) -> list[int]:
    """The rule, one candidate at a time."""
    places: list[int] = []
    for place, row in enumerate(line):
        if row < 0 or len(places) == k:
            continue
        fits = True
        for kind, limit in zip(groups, limits, strict=True):
            same = sum(kind[line[other]] == kind[row] for other in places)
            fits &= kind[row] == OWN_GROUP or same < limit
        if fits:
            places.append(place)
    return places + [-1] * (k - len(places))


@st.composite
def cases(draw: st.DrawFn):
    num_items, kinds = draw(st.integers(1, 12)), draw(st.integers(0, 3))
    count, slots = draw(st.integers(0, 3)), draw(st.integers(0, 14))
    code = st.integers(OWN_GROUP, 4) | st.sampled_from([2**31 - 1, 2**31 - 2])
    groups = [draw(st.lists(code, min_size=num_items, max_size=num_items)) for _ in range(kinds)]
    row = st.integers(-1, num_items - 1)
    rows = [draw(st.lists(row, min_size=slots, max_size=slots)) for _ in range(count)]
    limits = draw(st.lists(st.integers(1, 3), min_size=kinds, max_size=kinds))
    return rows, groups, limits, draw(st.integers(0, 16)), num_items, slots


@pytest.mark.parametrize("backend", BACKENDS)
@FIXED
@given(cases())
def test_equals_the_rule(backend, case):
    rows, groups, limits, k, num_items, slots = case
    found = cap_groups(
        torch.tensor(rows, dtype=torch.int64).view(len(rows), slots),
        torch.tensor(groups, dtype=torch.int32).view(len(groups), num_items),
        torch.tensor(limits, dtype=torch.int64),
        k,
        backend=backend,
    )
    assert found.tolist() == [greedy(line, groups, limits, k) for line in rows]


@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend):
    """Items 0 to 5 of sellers A A A B B and none; families x y z x - -: two of a seller, one of a family."""
    groups = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 2, 0, -1, -1]], dtype=torch.int32)
    rows = torch.tensor([[0, 3, 1, 2, 4, 5], [5, 4, 3, -1, -1, -1]])
    limits = torch.tensor([2, 1])
    # The first: item 3 is of the family of item 0, item 2 the third of seller A.
    assert cap_groups(rows, groups, limits, 4, backend=backend).tolist() == [[0, 2, 4, 5], [0, 1, 2, -1]]


@pytest.mark.skipif(native.library() is None, reason="no native library here")
@pytest.mark.parametrize("k", [1, 10, 100, 1000])
def test_the_forms_agree_on_many_candidates(k):
    generator = torch.Generator().manual_seed(k)
    rows = torch.stack([torch.randperm(5000, generator=generator)[:600] for _ in range(40)])
    rows[:, 500:][torch.rand(40, 100, generator=generator) < 0.5] = -1
    groups = torch.randint(-1, 60, (2, 5000), generator=generator, dtype=torch.int32)
    limits = torch.tensor([2, 7])
    expected = cap_groups(rows, groups, limits, k, backend="torch")
    assert torch.equal(cap_groups(rows, groups, limits, k, backend="native"), expected)


def test_wrong_tensors_are_refused():
    rows, groups, limits = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int32), torch.ones(2)
    with pytest.raises(TensorError, match=r"limits: int64 \[G\]"):
        cap_groups(rows, groups, limits, 1)
    with pytest.raises(TensorError, match=r"limits: int64 \[G\] expected with G=1"):
        cap_groups(rows, groups, limits.long(), 1)
