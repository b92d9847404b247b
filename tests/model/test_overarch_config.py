"""The config of an OverArch: defaults, the shapes that follow, and one sentence for whatever does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import InputError
from stcli.model.overarch_config import MolConfig, parse_overarch

MOL = {"kind": "mol", "tasks": ["like"], "dim": 50}


def test_the_defaults_are_the_published_sizes():
    config = parse_overarch(MOL, "c.json")
    assert isinstance(config, MolConfig)
    assert config.num_logits == 32
    assert config.tau == 0.05
    shapes = config.shapes()
    assert shapes["item.projection.weight"] == (4 * 64, 50)
    assert shapes["item.gate.0.weight"] == (128, 50)
    assert shapes["item.gate.2.weight"] == (32, 128)
    assert shapes["tasks.like.query.glu.weight"] == (1024, 50)
    assert shapes["tasks.like.query.projection.weight"] == (8 * 64, 512)
    assert shapes["tasks.like.cross.0.weight"] == (128, 32)
    assert shapes["tasks.like.cross.2.bias"] == (32,)
    assert "item.gate.2.bias" not in shapes


def test_columns_widen_the_item_side():
    columns = [
        {"name": "price", "kind": "number", "mean": 3, "std": 2},
        {"name": "genre", "kind": "category", "values": ["a", "b"], "dim": 4},
    ]
    shapes = parse_overarch(MOL | {"columns": columns}, "c").shapes()
    assert shapes["item.projection.weight"] == (256, 55)
    assert shapes["columns.genre.weight"] == (3, 4)
    mlp = {"kind": "mlp", "tasks": ["a", "b"], "dim": 50, "hidden": [7], "columns": columns}
    shapes = parse_overarch(mlp, "c").shapes()
    assert shapes["tasks.b.layers.0.weight"] == (7, 155)
    assert shapes["tasks.b.layers.1.bias"] == (1,)


def test_dot_needs_nothing_but_tasks():
    assert parse_overarch({"kind": "dot", "tasks": ["like"]}, "c").shapes() == {}


CATEGORY = {"name": "x", "kind": "category", "values": [1], "dim": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "transformer"}, "'kind' is 'transformer'; expected one of dot, mlp, mol"),
        ({"tasks": []}, "'tasks' is"),
        ({"tasks": ["like", "like"]}, "different names"),
        ({"tasks": ["a.b"]}, "letters, digits and _"),
        ({"dim": 0}, "'dim' is 0; expected a whole number from 1"),
        ({"dim": True}, "'dim' is True"),
        ({"dim": None}, "'dim' is missing"),
        ({"dim": 10**30}, "expected a whole number"),
        ({"query_components": 64, "item_components": 64}, "is 4096; expected at most 1024"),
        ({"tau": 0}, "'tau' is 0.0"),
        ({"tau": "x"}, "'tau' is 'x'; expected a number"),
        ({"tau": 10**400}, "expected a number"),
        ({"gates": []}, "'gates' is"),
        ({"gates": ["item", "item"]}, "'gates' is"),
        ({"gates": [["item"]]}, "'gates' is"),
        ({"query_activation": "relu"}, "expected one of geglu, swiglu"),
        ({"component_dims": 8}, "unknown key 'component_dims'; did you mean 'component_dim'"),
        ({"columns": [1]}, r"columns\[0\] is 1"),
        ({"columns": [{"name": "x", "kind": "number", "std": 0}]}, "'std' is 0.0"),
        ({"columns": [{"name": "x", "kind": "text"}]}, "expected one of number, category"),
        ({"columns": [CATEGORY | {"values": [1, 1]}]}, "must be different"),
        ({"columns": [CATEGORY | {"values": [[1]]}]}, "must be different"),
        ({"columns": [CATEGORY, CATEGORY]}, "stands twice in 'columns'"),
        ({"columns": [CATEGORY | {"colour": 1}]}, r"columns\[0\]: unknown key 'colour'"),
        ({"weights": 5}, "'weights' is 5; expected a text"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InputError, match=rf"c\.json.*{message}"):
        parse_overarch(MOL | change, "c.json")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([
    "kind", "tasks", "dim", "columns", "hidden", "activation", "query_components", "item_components", "component_dim",
    "query_hidden", "query_activation", "gate_hidden", "tau", "gates", "weights",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["mol", "mlp", "dot"]), st.dictionaries(KEYS, ANYTHING, max_size=3))
def test_any_json_gives_a_config_or_one_sentence(kind, change):
    said = ""
    try:
        config = parse_overarch({"kind": kind, "tasks": ["like"], "dim": 5} | change, "c.json")
        assert all(size >= 1 for shape in config.shapes().values() for size in shape)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
