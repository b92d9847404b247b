"""Turn Mixture-of-Logits weights of the public RAILS code (github.com/bailuding/rails) into an OverArch.

Save the state dict as safetensors where the checkpoint is trusted, then convert it:

    safetensors.torch.save_file(torch.load("ml-1m.ckpt", weights_only=True)["model_state_dict"], "ml-1m.safetensors")
    python examples/import_rails.py ml-1m.safetensors --component-dim 64 --out overarch.json
    stcli pack-model items.index -o model.safetensors --overarch overarch.json

Names may have any prefix, such as `_ndp_module.`; other tensors of the model are left out. The item side must be one
linear layer, as in all published configurations. Components looked up by user id are refused: an OverArch sees user
vectors only, so train without them (`uid_embedding_hash_sizes = []`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stcli.errors import InputError, StcliError
from stcli.model.overarch_config import parse_overarch
from stcli.storage.weights import refuse_code, write_weights

ANCHOR = "_gating_fn."
"""Part of every Mixture-of-Logits there; what stands before it is the prefix."""

ITEM = ("_item_embeddings_fn._item_emb_proj_module", "_item_proj_module")
"""Where the item projection stands, in the newer and the older code."""

QUERY = "_query_embeddings_fn._query_emb_proj_module"


def convert(
    state: Mapping[str, torch.Tensor], component_dim: int, task: str, tau: float, activation: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config and the weights of an OverArch.

    Args:
        state: the state dict; layers stand behind a dropout layer, so their numbers begin with 1 in most places.
        component_dim: d, which the shapes do not tell.
        task: what to call the task.
        tau: temperature, which the shapes do not tell.
        activation: `geglu` or `swiglu`, which the shapes do not tell.

    Raises:
        InputError: a part is missing or is not of the form that can be converted.
    """
    prefixes = {name.split(ANCHOR)[0] for name in state if ANCHOR in name}
    if len(prefixes) != 1:
        raise InputError(
            f"the state dict holds {len(prefixes)} Mixture-of-Logits (names with {ANCHOR!r}); expected one"
        )
    prefix = prefixes.pop()
    mol = {name.removeprefix(prefix): tensor.float() for name, tensor in state.items() if name.startswith(prefix)}
    if any("_uid_embeddings_" in name for name in mol):
        raise InputError(
            "the query side has components looked up by user id, which an OverArch cannot have; train without them"
        )
    item = next((name for name in ITEM if f"{name}.1.weight" in mol), None)
    if item is None:
        raise InputError(f"the item side is not one linear layer; expected a tensor {ITEM[0]}.1.weight")
    weights = {f"item.projection.{part}": mol[f"{item}.1.{part}"] for part in ("weight", "bias")}
    gates = {
        "query": (f"{ANCHOR}_query_only_partial_module", 0, f"tasks.{task}.query.gate"),
        "item": (f"{ANCHOR}_item_only_partial_module", 1, "item.gate"),
        "cross": (f"{ANCHOR}_qi_partial_module", 1, f"tasks.{task}.cross"),
    }
    gates = {gate: place for gate, place in gates.items() if f"{place[0]}.{place[1]}.weight" in mol}
    for source, first, target in gates.values():
        for layer in (0, 2):
            for part in ("weight", "bias"):
                if f"{source}.{first + layer}.{part}" in mol:
                    weights[f"{target}.{layer}.{part}"] = mol[f"{source}.{first + layer}.{part}"]
    hidden = 0
    if f"{QUERY}.1._w" in mol:  # a gated layer, stored as [inputs, outputs]
        hidden = mol[f"{QUERY}.1._w"].shape[1] // 2
        weights[f"tasks.{task}.query.glu.weight"] = mol[f"{QUERY}.1._w"].t()
        weights[f"tasks.{task}.query.glu.bias"] = mol[f"{QUERY}.1._b"].flatten()
    for part in ("weight", "bias"):
        name = f"{QUERY}.{2 if hidden else 1}.{part}"
        if name not in mol:
            raise InputError(f"the query projection has no tensor {name}; expected a linear layer")
        weights[f"tasks.{task}.query.projection.{part}"] = mol[name]
    first_biases = [len(weights[f"{place[2]}.0.bias"]) for place in gates.values()]
    config = {
        "kind": "mol",
        "tasks": [task],
        "dim": mol[f"{item}.1.weight"].shape[1],
        "query_components": len(weights[f"tasks.{task}.query.projection.bias"]) // component_dim,
        "item_components": len(weights["item.projection.bias"]) // component_dim,
        "component_dim": component_dim,
        "query_hidden": hidden,
        "query_activation": activation,
        "gate_hidden": first_biases[0] if first_biases else 1,
        "tau": tau,
        "gates": list(gates),
    }
    _check(config, weights)
    return config, weights


def _check(config: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    shapes = parse_overarch(config, "converted config").shapes()
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted({*shapes, *found}):
        if shapes.get(name) != found.get(name):
            raise InputError(
                f"{name}: shape {found.get(name)} found, {shapes.get(name)} expected; "
                "check --component-dim, and that all gates have one hidden size"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and convert the file."""
    parser = argparse.ArgumentParser(description="Turn RAILS weights into an OverArch config with weights.")
    parser.add_argument("state", type=Path, help="state dict, saved with safetensors.torch.save_file")
    parser.add_argument("--component-dim", type=int, required=True, help="numbers of a component: 64, 128, 32, ...")
    parser.add_argument("--out", type=Path, required=True, help="JSON config to write; the weights go beside it")
    parser.add_argument("--task", default="main", help="name of the task (default main)")
    parser.add_argument("--tau", type=float, default=0.05, help="temperature (default 0.05)")
    parser.add_argument("--activation", choices=("geglu", "swiglu"), default="geglu", help="of the query side")
    arguments = parser.parse_args(argv)
    try:
        refuse_code(arguments.state)
        state = load_file(arguments.state)
        config, weights = convert(state, arguments.component_dim, arguments.task, arguments.tau, arguments.activation)
        write_weights(arguments.out, config, weights)
    except StcliError as error:
        parser.error(str(error))
    size = f"{config['query_components']} x {config['item_components']} x {config['component_dim']}"
    print(f"{arguments.out}: Mixture-of-Logits {size}, {sum(map(torch.numel, weights.values())):,} weights")


if __name__ == "__main__":
    main()
