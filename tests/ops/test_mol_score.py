"""mol_score against loops in float64, in every form; a score depends on its query and row alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops import native
from stcli.ops.mol_score import mol_score
from stcli.types import MolCross, MolItems, MolQueries
from tests import oracles_overarch as oracle

NUM_ITEMS = 60


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(values: torch.Tensor) -> torch.Tensor:
    return values / values.norm(dim=-1, keepdim=True)


def make(
    per_query: int = 8,
    per_item: int = 4,
    dim: int = 64,
    hidden: int = 128,
    *,
    num_queries: int = 3,
    kind: torch.dtype = torch.float32,
    half_gates: bool = True,
    without: tuple[str, ...] = (),
    size: float = 0.3,
) -> tuple[MolQueries, MolItems, MolCross | None]:
    logits = per_query * per_item
    components, scales = unit(normal(NUM_ITEMS, per_item, dim, seed=1)), None
    if kind == torch.int8:
        scales = components.abs().amax(2) / 127
        components = (components / scales[:, :, None]).round()
    gates = normal(NUM_ITEMS, logits, seed=2).to(torch.float16 if half_gates else torch.float32)
    items = MolItems(components.to(kind), scales, None if "item" in without else gates)
    user = None if "query" in without else normal(num_queries, logits, seed=4)
    queries = MolQueries(unit(normal(num_queries, per_query, dim, seed=3)), user)
    cross = MolCross(
        size * normal(hidden, logits, seed=5),
        size * normal(hidden, seed=6),
        size * normal(logits, hidden, seed=7),
        size * normal(logits, seed=8),
    )
    return queries, items, None if "cross" in without else cross


def lists(tensor: torch.Tensor | None, row: int) -> list[float] | None:
    return None if tensor is None else [float(value) for value in tensor[row]]


def expected(queries: MolQueries, items: MolItems, cross: MolCross | None, rows: torch.Tensor, tau: float):
    """Float64 scores, loops over every number."""
    weights = {}
    if cross is not None:
        weights = {"c.0.weight": cross.first.numpy(), "c.0.bias": cross.first_bias.numpy(),
                   "c.2.weight": cross.second.numpy(), "c.2.bias": cross.second_bias.numpy()}  # fmt: skip
    scores = torch.full(rows.shape, -math.inf, dtype=torch.float64)
    for query, line in enumerate(rows.tolist()):
        for slot, row in enumerate(line):
            if row < 0:
                continue
            logits = []
            for m, component in enumerate(items.components[row].tolist()):
                scale = 1.0 if items.scales is None else float(items.scales[row, m])
                for other in queries.components[query].tolist():
                    logits.append(math.fsum(a * scale * b for a, b in zip(component, other, strict=True)) / tau)
            gate = oracle.gate(weights, "c", logits) if cross is not None else None
            scores[query, slot] = oracle.mixture(logits, lists(queries.gates, query), lists(items.gates, row), gate)
    return scores


def check(given, rows: torch.Tensor, tau: float, form: str) -> None:
    found, wanted = mol_score(*given, rows, tau=tau, backend=form), expected(*given, rows, tau)
    assert found.dtype == torch.float32
    # A logit is off by some 2^-23 / tau, and the gates of these tests pass on up to ten times that.
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 / tau)


def draw_rows(num_queries: int, num_slots: int, seed: int = 9) -> torch.Tensor:
    return torch.randint(-1, NUM_ITEMS, (num_queries, num_slots), generator=torch.Generator().manual_seed(seed))


def test_by_hand(form):
    """Two logits, 1 and -1, with gates silu(2) and silu(0) = 0: the score is tanh(silu(2) / 2)."""
    queries = MolQueries(torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[2.0, 0.0]]))
    items = MolItems(torch.ones(1, 1, 1), None, None)
    found = mol_score(queries, items, None, torch.tensor([[0]]), tau=1.0, backend=form)
    assert found.item() == pytest.approx(math.tanh(2 / (1 + math.exp(-2)) / 2), abs=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("half_gates", [False, True])
def test_published_size(kind, half_gates, form):
    check(make(kind=kind, half_gates=half_gates), draw_rows(3, 30), 0.05, form)


@pytest.mark.parametrize("without", [("query",), ("item",), ("cross",), ("query", "item"), ("query", "cross"),
                                     ("item", "cross")])  # fmt: skip
def test_each_gate_may_be_missing(without, form):
    check(make(3, 2, 5, 7, without=without), draw_rows(3, 4), 0.2, form)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    per_query=st.integers(1, 20),
    per_item=st.integers(1, 6),
    dim=st.integers(1, 40),
    hidden=st.integers(1, 40),
    slots=st.integers(0, 30),
    kind=st.sampled_from([torch.float32, torch.float16, torch.int8]),
)
def test_any_shape(form, per_query, per_item, dim, hidden, slots, kind):
    check(make(per_query, per_item, dim, hidden, kind=kind, num_queries=2), draw_rows(2, slots), 0.3, form)


def test_gates_from_one_end_of_the_exponential_to_the_other(form):
    """With logits 1 and -1 the score is tanh(silu(x) / 2), which tells silu and the softmax apart from their limits."""
    gates = torch.cat([torch.linspace(-120, 120, 2001), torch.linspace(-3, 3, 2001), torch.tensor([1e4, -1e4, 3e38])])
    queries = MolQueries(
        torch.tensor([[[1.0], [-1.0]]]).expand(len(gates), 2, 1).contiguous(),
        torch.stack([gates, torch.zeros_like(gates)], 1),
    )
    rows = torch.zeros(len(gates), 1, dtype=torch.int64)
    found = mol_score(queries, MolItems(torch.ones(1, 1, 1), None, None), None, rows, tau=1.0, backend=form)[:, 0]
    wide = gates.double()
    torch.testing.assert_close(found.double(), torch.tanh(wide * torch.sigmoid(wide) / 2), rtol=0, atol=1e-6)


def test_large_gates_do_not_overflow(form):
    queries, items, cross = make(4, 4, 8, 16, size=6.0)
    check((MolQueries(queries.components, 50 * queries.gates), items, cross), draw_rows(3, 10), 1.0, form)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.int8])
def test_a_score_depends_on_its_query_and_row_alone(kind, form):
    queries, items, cross = make(kind=kind, num_queries=20)
    rows = draw_rows(20, 500)
    whole = mol_score(queries, items, cross, rows, tau=0.05, backend=form)
    for query in (0, 11, 19):
        one = slice(query, query + 1)
        alone = MolQueries(queries.components[one], queries.gates[one])
        for slots in (slice(0, 500), slice(100, 101), slice(37, 300)):
            found = mol_score(alone, items, cross, rows[one, slots], tau=0.05, backend=form)
            assert torch.equal(found, whole[one, slots])
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mol_score(queries, items, cross, rows[:, order], tau=0.05, backend=form), whole[:, order])


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads, form):
    given, rows = make(num_queries=5), draw_rows(5, 1000)
    try:
        native.set_num_threads(1)
        alone = mol_score(*given, rows, tau=0.05, backend=form)
        native.set_num_threads(threads)
        assert torch.equal(mol_score(*given, rows, tau=0.05, backend=form), alone)
    finally:
        native.set_num_threads(None)


def test_empty(form):
    queries, items, cross = make(2, 2, 3, 4)
    rows = torch.full((3, 50), -1)
    assert mol_score(queries, items, cross, rows, tau=1.0, backend=form).eq(-math.inf).all()
    assert mol_score(queries, items, cross, rows[:, :0], tau=1.0, backend=form).shape == (3, 0)
    nobody = MolQueries(queries.components[:0], queries.gates[:0])
    assert mol_score(nobody, items, cross, rows[:0], tau=1.0, backend=form).shape == (0, 50)


def test_bad_arguments_are_named():
    queries, items, cross = make(2, 2, 3, 4)
    rows = draw_rows(3, 4)
    with pytest.raises(TensorError, match=r"rows: numbers in -1 … 59 expected"):
        mol_score(queries, items, cross, rows + NUM_ITEMS, tau=1.0)
    with pytest.raises(TensorError, match=r"items.components: .* expected with d=3"):
        mol_score(queries, MolItems(torch.zeros(5, 2, 4), None, None), cross, rows, tau=1.0)
    with pytest.raises(TensorError, match=r"items.gates: .* \[N, 4\] expected"):
        mol_score(queries, MolItems(items.components, None, items.gates[:, :3]), cross, rows, tau=1.0)
    with pytest.raises(TensorError, match=r"items.scales: .* with int8 components only"):
        mol_score(queries, MolItems(items.components, torch.ones(NUM_ITEMS, 2), None), cross, rows, tau=1.0)
    with pytest.raises(TensorError, match=r"queries.gates: float32 \[B, 4\] expected"):
        mol_score(MolQueries(queries.components, queries.gates[:2]), items, cross, rows, tau=1.0)
