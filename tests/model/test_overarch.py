"""OverArch modules against loops in float64, whatever the sizes, the cache and the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import InputError, TensorError
from stcli.model.layers import Weights
from stcli.model.mol import item_components, item_gates
from stcli.model.overarch import OverArch, load_overarch
from stcli.model.overarch_config import parse_overarch
from stcli.ops.tiles import TILE_QUERIES, TILE_ROWS, in_tiles, linear
from tests import oracles_overarch as oracle

NUM_ITEMS = 40

MOL = {"kind": "mol", "tasks": ["like", "share"], "dim": 6, "query_components": 3, "item_components": 2,
       "component_dim": 5, "query_hidden": 7, "gate_hidden": 9}  # fmt: skip
MLP = {"kind": "mlp", "tasks": ["like", "share"], "dim": 6, "hidden": [8, 4]}


def make_weights(config, seed: int = 0, scale: float = 0.6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in config.shapes().items()}


def make_arrays(config, weights, cached: bool = False) -> dict[str, np.ndarray]:
    """Arrays of an artifact with float32 embeddings and one feature if the config has a column."""
    rng = np.random.default_rng(7)
    arrays = {"embedding_values": rng.normal(size=(NUM_ITEMS, config.dim)).astype(np.float32)}
    inputs = torch.from_numpy(arrays["embedding_values"])
    if config.columns:
        arrays["overarch.features"] = rng.normal(size=(NUM_ITEMS, config.num_features)).astype(np.float32)
        inputs = torch.cat([inputs, torch.from_numpy(arrays["overarch.features"])], 1)
    if cached:
        arrays["overarch.components"] = item_components(config, Weights(weights), inputs).numpy()
        if "item" in config.gates:
            arrays["overarch.gates"] = item_gates(config, Weights(weights), inputs).numpy()
    return arrays | {f"overarch.weights.{name}": tensor.numpy() for name, tensor in weights.items()}


def load(raw: dict, cached: bool = False, seed: int = 0, backend: str = "auto") -> tuple[OverArch, dict]:
    config = parse_overarch(raw, "test")
    arrays = make_arrays(config, make_weights(config, seed), cached)
    overarch = load_overarch({"kind": raw["kind"], "config": raw}, arrays, backend=backend)
    assert overarch is not None
    return overarch, arrays


def expected(raw: dict, arrays: dict, users: torch.Tensor, rows: torch.Tensor, task: str) -> np.ndarray:
    config = parse_overarch(raw, "test")
    weights = {name.removeprefix("overarch.weights."): array for name, array in arrays.items()}
    items = arrays["embedding_values"]
    if "overarch.features" in arrays:
        items = np.concatenate([items, arrays["overarch.features"]], 1)
    score = oracle.mol if raw["kind"] == "mol" else oracle.mlp
    return np.array(
        [
            [-np.inf if row < 0 else score(config, weights, task, user, items[row]) for row in line]
            for user, line in zip(users.numpy(), rows.tolist(), strict=True)
        ]
    )


def batch(dim: int, num_queries: int = 3, num_slots: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, NUM_ITEMS, (num_queries, num_slots), generator=generator)
    return torch.randn(num_queries, dim, generator=generator), rows


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("task", ["like", "share"])
def test_mol_equals_the_loops(cached, backend, task):
    overarch, arrays = load(MOL, cached, backend=backend)
    users, rows = batch(6)
    np.testing.assert_allclose(overarch(users, rows, task), expected(MOL, arrays, users, rows, task), atol=1e-4)


GATES = st.sets(st.sampled_from(["query", "item", "cross"]), min_size=1).map(sorted)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_mol_of_any_shape_equals_the_loops(data):
    size = st.integers(1, 9)
    raw = MOL | {
        "tasks": ["like"],
        "query_components": data.draw(size),
        "item_components": data.draw(st.integers(1, 5)),
        "component_dim": data.draw(size),
        "query_hidden": data.draw(st.integers(0, 5)),
        "query_activation": data.draw(st.sampled_from(["geglu", "swiglu"])),
        "gate_hidden": data.draw(size),
        "tau": data.draw(st.sampled_from([0.05, 0.3, 1.0])),
        "gates": data.draw(GATES),
        "columns": data.draw(st.sampled_from([[], [{"name": "price", "kind": "number"}]])),
    }
    overarch, arrays = load(raw, data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)))
    users, rows = batch(6, 2, 3)
    found, wanted = overarch(users, rows, "like").numpy(), expected(raw, arrays, users, rows, "like")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 / raw["tau"])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.sampled_from(["relu", "silu", "gelu"]), st.booleans())
def test_mlp_of_any_shape_equals_the_loops(hidden, activation, with_column):
    columns = [{"name": "price", "kind": "number"}] if with_column else []
    raw = MLP | {"hidden": hidden, "activation": activation, "columns": columns}
    overarch, arrays = load(raw)
    users, rows = batch(6, 2, 3)
    wanted = expected(raw, arrays, users, rows, "share")
    np.testing.assert_allclose(overarch(users, rows, "share"), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("raw", [MOL, MLP], ids=["mol", "mlp"])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_score_does_not_depend_on_the_batch(raw, cached, backend):
    overarch, _ = load(raw, cached and raw is MOL, backend=backend)
    users, rows = batch(6, 20, 130)
    whole = overarch(users, rows, "like")
    for query in (0, 7, 19):
        one = slice(query, query + 1)
        assert torch.equal(overarch(users[one], rows[one], "like"), whole[one])
    assert torch.equal(overarch(users, rows[:, 40:90], "like"), whole[:, 40:90])


@pytest.mark.parametrize("raw", [MOL, MLP], ids=["mol", "mlp"])
def test_empty_slots_and_batches(raw):
    overarch, _ = load(raw)
    users, _ = batch(6)
    assert overarch(users, torch.full((3, 4), -1), "like").eq(-torch.inf).all()
    assert overarch(users, torch.zeros(3, 0).long(), "like").shape == (3, 0)
    assert overarch(users[:0], torch.zeros(0, 4).long(), "like").shape == (0, 4)


def test_what_does_not_fit_is_named():
    overarch, _ = load(MOL)
    users, rows = batch(6)
    with pytest.raises(InputError, match=r"task 'lik': .* did you mean 'like'"):
        overarch(users, rows, "lik")
    with pytest.raises(TensorError, match=r"users: float32 \[B, 6\] expected"):
        overarch(users[:, :5], rows, "like")


def test_dot_and_nothing_are_no_overarch():
    assert load_overarch(None, {}) is None
    assert load_overarch({"kind": "dot", "tasks": ["like"]}, {}) is None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 40), st.integers(1, TILE_ROWS - 1), st.sampled_from([TILE_ROWS, TILE_QUERIES])
)
def test_a_row_does_not_depend_on_its_place_in_the_tile(inputs, outputs, shift, size):
    generator = torch.Generator().manual_seed(inputs)
    rows, weight = (torch.randn(count, inputs, generator=generator) for count in (size, outputs))
    found = linear(rows, weight, weight[:, 0])
    torch.testing.assert_close(found.double(), rows.double() @ weight.double().T + weight[:, 0], rtol=0, atol=1e-3)
    assert torch.equal(linear(rows.roll(shift, 0), weight, weight[:, 0]), found.roll(shift, 0))


@pytest.mark.parametrize("rows", [0, 1, TILE_ROWS, TILE_ROWS + 1])
def test_tiles_have_one_size(rows):
    seen = []
    found = in_tiles(lambda tile: seen.append(len(tile)) or tile * 2, torch.ones(rows, 3))
    assert found.shape == (rows, 3)
    assert found.eq(2).all()
    assert set(seen) == {TILE_ROWS}
