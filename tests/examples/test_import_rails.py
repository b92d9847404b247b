"""Weights in the layout of the RAILS code become an OverArch that scores as written in that layout."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import import_rails
from stcli.errors import InputError
from stcli.model.overarch import load_overarch
from stcli.model.overarch_config import parse_overarch
from stcli.storage.weights import read_config, read_weights, weights_beside

DIM, PER_QUERY, PER_ITEM, SIZE, HIDDEN, GATE = 10, 4, 3, 8, 12, 6
LOGITS = PER_QUERY * PER_ITEM


def made_state(prefix: str = "_ndp_module.", hidden: bool = True, legacy: bool = False) -> dict[str, torch.Tensor]:
    """A made state dict with the names and shapes of that code."""
    generator = torch.Generator().manual_seed(0)
    item = "_item_proj_module" if legacy else "_item_embeddings_fn._item_emb_proj_module"
    query = "_query_embeddings_fn._query_emb_proj_module"
    shapes = {
        f"{item}.1.weight": (PER_ITEM * SIZE, DIM),
        f"{item}.1.bias": (PER_ITEM * SIZE,),
        "_gating_fn._query_only_partial_module.0.weight": (GATE, DIM),
        "_gating_fn._query_only_partial_module.0.bias": (GATE,),
        "_gating_fn._query_only_partial_module.2.weight": (LOGITS, GATE),
        "_gating_fn._item_only_partial_module.1.weight": (GATE, DIM),
        "_gating_fn._item_only_partial_module.1.bias": (GATE,),
        "_gating_fn._item_only_partial_module.3.weight": (LOGITS, GATE),
        "_gating_fn._qi_partial_module.1.weight": (GATE, LOGITS),
        "_gating_fn._qi_partial_module.1.bias": (GATE,),
        "_gating_fn._qi_partial_module.3.weight": (LOGITS, GATE),
        "_gating_fn._qi_partial_module.3.bias": (LOGITS,),
    }
    if hidden:
        shapes |= {f"{query}.1._w": (DIM, 2 * HIDDEN), f"{query}.1._b": (1, 2 * HIDDEN),
                   f"{query}.2.weight": (PER_QUERY * SIZE, HIDDEN), f"{query}.2.bias": (PER_QUERY * SIZE,)}  # fmt: skip
    else:
        shapes |= {f"{query}.1.weight": (PER_QUERY * SIZE, DIM), f"{query}.1.bias": (PER_QUERY * SIZE,)}
    state = {prefix + name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return state | {"_embedding_module._item_emb.weight": torch.ones(5, DIM)}


def scores(state: dict[str, torch.Tensor], users: torch.Tensor, items: torch.Tensor, act, legacy: bool) -> torch.Tensor:
    """Float64 scores [B, N] straight from the state dict."""
    mol = {name.removeprefix("_ndp_module."): tensor.double() for name, tensor in state.items()}
    users, items = users.double(), items.double()

    def layer(name: str, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, mol[f"{name}.weight"], mol.get(f"{name}.bias"))

    query, inputs = "_query_embeddings_fn._query_emb_proj_module.", users
    if f"{query}1._w" in mol:
        left, right = (users @ mol[f"{query}1._w"] + mol[f"{query}1._b"]).split(HIDDEN, 1)
        inputs = act(left) * right
    found = layer(f"{query}2" if f"{query}1._w" in mol else f"{query}1", inputs).view(-1, PER_QUERY, SIZE)
    f = functional.normalize(found, dim=2, eps=1e-6)
    item = "_item_proj_module.1" if legacy else "_item_embeddings_fn._item_emb_proj_module.1"
    g = functional.normalize(layer(item, items).view(-1, PER_ITEM, SIZE), dim=2, eps=1e-6)
    logits = torch.einsum("bnd,xmd->bxnm", f, g).reshape(len(users), len(items), LOGITS) / 0.05
    gating = "_gating_fn._"
    user_gate = layer(f"{gating}query_only_partial_module.2",
                      functional.silu(layer(f"{gating}query_only_partial_module.0", users)))  # fmt: skip
    item_gate = layer(f"{gating}item_only_partial_module.3",
                      functional.silu(layer(f"{gating}item_only_partial_module.1", items)))  # fmt: skip
    cross = layer(f"{gating}qi_partial_module.3", functional.silu(layer(f"{gating}qi_partial_module.1", logits)))
    gates = user_gate[:, None] * item_gate + cross
    return (torch.softmax(gates * torch.sigmoid(gates), 2) * logits).sum(2)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("activation", ["geglu", "swiglu"])
def test_converted_weights_score_alike(hidden, legacy, activation, tmp_path, capsys):
    state = made_state(hidden=hidden, legacy=legacy)
    save_file(state, tmp_path / "state.safetensors")
    out = tmp_path / "overarch.json"
    import_rails.main(
        [str(tmp_path / "state.safetensors"), "--component-dim", str(SIZE), "--out", str(out),
         "--activation", activation]
    )  # fmt: skip
    assert f"{PER_QUERY} x {PER_ITEM} x {SIZE}" in capsys.readouterr().out
    raw = read_config(out)
    config = parse_overarch(raw, str(out))
    weights = read_weights(weights_beside(out, raw), config.shapes())
    items, users = (torch.randn(count, DIM, generator=torch.Generator().manual_seed(count)) for count in (20, 3))
    arrays = {"embedding_values": items.numpy()} | {f"overarch.weights.{k}": v.numpy() for k, v in weights.items()}
    overarch = load_overarch({"kind": "mol", "config": raw}, arrays)
    found = overarch(users, torch.arange(20).expand(3, 20).contiguous(), "main")
    act = functional.gelu if activation == "geglu" else functional.silu
    torch.testing.assert_close(found.double(), scores(state, users, items, act, legacy), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_ndp_module._query_embeddings_fn._uid_embeddings_0.weight": torch.ones(9, SIZE)}, "looked up by user id"),
        ({"_ndp_module._gating_fn._qi_partial_module.3.bias": torch.ones(7)}, r"cross.2.bias: shape \(7,\) found"),
        ({"other._gating_fn._x": torch.ones(1)}, "holds 2 Mixture-of-Logits"),
    ],
)
def test_what_cannot_be_converted_is_named(change, message):
    with pytest.raises(InputError, match=message):
        import_rails.convert(made_state() | change, SIZE, "main", 0.05, "geglu")


def test_a_missing_part_is_named():
    state = {name: tensor for name, tensor in made_state().items() if "_item_emb_proj" not in name}
    with pytest.raises(InputError, match="not one linear layer"):
        import_rails.convert(state, SIZE, "main", 0.05, "geglu")


def test_a_pickle_is_refused(tmp_path, capsys):
    torch.save(made_state(), tmp_path / "state.pt")
    with pytest.raises(SystemExit):
        import_rails.main([str(tmp_path / "state.pt"), "--component-dim", "8", "--out", str(tmp_path / "o.json")])
    assert "can run code when it is read" in capsys.readouterr().err
    assert not (tmp_path / "o.json").exists()
