"""An OverArch in the artifact: every cache scores like the formula, columns are read by row, misfits are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import stcli
from stcli.cli.main import run
from stcli.errors import ExistsError, InputError
from stcli.model.overarch import load_overarch
from stcli.model.overarch_config import parse_overarch
from stcli.storage.artifact import open_artifact_file
from stcli.storage.weights import write_weights
from tests import oracles_overarch as oracle
from tests.conftest import DIM, NUM_ITEMS

COLUMNS = [
    {"name": "price", "kind": "number", "mean": 50.0, "std": 25.0},
    {"name": "color", "kind": "category", "values": ["red", "blue"], "dim": 3},
]
MOL = {"kind": "mol", "tasks": ["like", "share"], "dim": DIM, "query_components": 3, "item_components": 2,
       "component_dim": 8, "query_hidden": 7, "gate_hidden": 9, "tau": 0.2, "columns": COLUMNS}  # fmt: skip
MLP = {"kind": "mlp", "tasks": ["like", "share"], "dim": DIM, "hidden": [8, 4], "columns": COLUMNS}


@pytest.fixture(scope="session")
def index(tiny, tmp_path_factory) -> Path:
    """The tiny corpus with kept columns."""
    path = tmp_path_factory.mktemp("kept") / "items.index"
    stcli.build_index(tiny.items, path, keep_columns=["price", "color"], feature_columns=["year"], clusters=8)
    return path


def write(folder: Path, raw: dict, scale: float = 0.3) -> Path:
    generator = torch.Generator().manual_seed(1)
    shapes = parse_overarch(raw, "test").shapes()
    weights = {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_weights(folder / "overarch.json", raw, weights)
    return folder / "overarch.json"


def item_inputs(tiny, weights, dtype: str) -> dict[int, np.ndarray]:
    """Embedding and features of each item id, computed here from the table."""
    found = {}
    for item, vector in zip(tiny.item_rows, tiny.embeddings, strict=True):
        place = {"red": 1, "blue": 2}.get(item["color"], 0)
        found[item["item_id"]] = np.concatenate(
            [vector, [(item["price"] - 50) / 25], weights["columns.color.weight"][place]]
        )
    return found


# Float16 components are within 2^-11 of each number, int8 codes within half a step of max/127; a logit moves by that
# times 1/tau at most, and the cross gate passes some of it on.
TOLERANCE = {"components": 0.05, "int8": 0.3, "none": 2e-3}


@pytest.mark.parametrize("cache", ["components", "int8", "none"])
def test_a_dry_run_tells_the_bytes_of_the_cache(cache, tiny, index, tmp_path):
    """Components: 2 x 8 float16 and 6 gates float16 an item; int8: 16 codes, 2 scales, the gates; none: 4 features."""
    options = {"overarch": str(write(tmp_path, MOL)), "overarch_cache": cache}
    told = stcli.pack_model(index, tmp_path / "m.safetensors", dry_run=True, **options)
    assert not (tmp_path / "m.safetensors").exists()
    made = stcli.pack_model(index, tmp_path / "m.safetensors", **options)
    assert told["bytes"] == made["bytes"]
    assert told["overarch"] == made["overarch"]
    assert told["overarch"]["bytes_per_item"] == {"components": 44, "int8": 36, "none": 16}[cache]


@pytest.mark.parametrize("raw", [MOL, MLP], ids=["mol", "mlp"])
@pytest.mark.parametrize("cache", ["components", "int8", "none"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_packed_overarch_scores_like_the_loops(raw, cache, dtype, tiny, index, tmp_path):
    path = write(tmp_path, raw)
    summary = stcli.pack_model(
        index, tmp_path / "m.safetensors", overarch=str(path), overarch_cache=cache, embedding_dtype=dtype
    )
    artifact = open_artifact_file(tmp_path / "m.safetensors", verify=True)
    overarch = load_overarch(artifact.manifest["overarch"], artifact.arrays)
    assert overarch is not None
    assert overarch.tasks == ("like", "share")
    assert summary["bytes"]["overarch"] > 0
    told = stcli.inspect(tmp_path / "m.safetensors", verify=True)["overarch"]
    assert told["cache"] == (cache if raw is MOL else "none")
    per_item = {"components": 2 * (16 + 6), "int8": 16 + 4 * 2 + 2 * 6, "none": 4 * 4}[told["cache"]]
    assert told["bytes_per_item"] == per_item
    rows = torch.randint(0, NUM_ITEMS, (4, 6), generator=torch.Generator().manual_seed(2))
    users = torch.from_numpy(tiny.vectors[:4])
    found = overarch(users, rows, "share")
    config = parse_overarch(raw, "test")
    weights = {
        name.removeprefix("overarch.weights."): array
        for name, array in artifact.arrays.items()
        if name.startswith("overarch.weights.")
    }
    inputs = item_inputs(tiny, weights, dtype)
    ids = artifact.arrays["item_ids"]
    score = oracle.mol if raw is MOL else oracle.mlp
    wanted = [
        [score(config, weights, "share", user, inputs[int(ids[row])]) for row in line]
        for user, line in zip(users.numpy(), rows.tolist(), strict=True)
    ]
    tolerance = TOLERANCE[told["cache"]] + (0.01 if dtype == "float16" else 0)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def test_equal_inputs_give_equal_bytes(index, tmp_path):
    path = write(tmp_path, MOL)
    for name in ("a", "b"):
        stcli.pack_model(index, tmp_path / name, overarch=str(path), overarch_cache="int8")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_columns_may_have_other_names_in_the_index(tiny, tmp_path):
    stcli.build_index(tiny.items, tmp_path / "i", keep_columns=["price", "color", "year"], feature_columns=["year"])
    renamed = [COLUMNS[0] | {"name": "cost"}, COLUMNS[1] | {"name": "paint"}]
    path = write(tmp_path, MOL | {"columns": renamed})
    stcli.pack_model(tmp_path / "i", tmp_path / "m", overarch=str(path), overarch_columns=["price", "color"])
    assert stcli.inspect(tmp_path / "m")["overarch"]["columns"] == "price, color"
    for names, message in (
        (["price"], "names 1 columns, .* has 2"),
        (["price", "year"], "values of column 'paint' are not int64"),
        (["color", "price"], "'color' is string; expected numbers"),
        (["price", "colour"], "'colour' is not kept in the index; build it with --keep-columns colour"),
    ):
        with pytest.raises(InputError, match=message):
            stcli.pack_model(tmp_path / "i", tmp_path / "n", overarch=str(path), overarch_columns=names)
        assert not list(tmp_path.glob("n*"))


def test_dot_is_recorded_and_is_no_module(tiny, tmp_path):
    (tmp_path / "dot.json").write_text(json.dumps({"kind": "dot", "tasks": ["like"]}))
    stcli.pack_model(tiny.index, tmp_path / "m", overarch=str(tmp_path / "dot.json"))
    artifact = open_artifact_file(tmp_path / "m")
    assert artifact.manifest["overarch"] == {"kind": "dot", "tasks": ["like"]}
    assert load_overarch(artifact.manifest["overarch"], artifact.arrays) is None


def test_what_does_not_fit_leaves_nothing(tiny, index, tmp_path):
    path = write(tmp_path, MOL | {"dim": DIM + 1})
    with pytest.raises(InputError, match=f"'dim' is {DIM + 1}, the packed embeddings have {DIM}"):
        stcli.pack_model(index, tmp_path / "m", overarch=str(path))
    path = write(tmp_path, MLP)
    with pytest.raises(InputError, match="computes from the embeddings at each request"):
        stcli.pack_model(index, tmp_path / "m", overarch=str(path), embedding_dtype="none")
    path = write(tmp_path, MOL, scale=1e5)
    with pytest.raises(InputError, match=r"beyond 65,504.*--overarch-cache none"):
        stcli.pack_model(index, tmp_path / "m", overarch=str(path))
    with pytest.raises(InputError, match="--overarch-columns names what"):
        stcli.pack_model(index, tmp_path / "m", overarch_columns=["price"])
    with pytest.raises(InputError, match="--overarch-cache 'float8'"):
        stcli.pack_model(index, tmp_path / "m", overarch=str(path), overarch_cache="float8")
    with pytest.raises((InputError, ExistsError)):
        stcli.pack_model(index, path, overarch=str(path), overwrite=True)
    assert not list(tmp_path.glob("m*"))


def test_a_pickle_is_refused_by_the_command(tiny, tmp_path, capsys):
    torch.save({"a": torch.ones(1)}, tmp_path / "overarch.pt")
    words = ["pack-model", tiny.index, "-o", tmp_path / "m", "--overarch", tmp_path / "overarch.pt"]
    assert run([str(word) for word in words]) == 2
    assert re.search(r"error: .*overarch.pt: is a pickle .*save_file\(.*\) instead", capsys.readouterr().err)
    assert not (tmp_path / "m").exists()
