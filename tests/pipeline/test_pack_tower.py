"""Packing a tower: what stands in the artifact, what is refused, and that the opened tower is the one given."""

from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import torch

import stcli
from stcli.errors import InputError
from stcli.model.tower import Tower, load_tower
from stcli.model.tower_config import parse_tower
from stcli.storage.artifact import open_artifact_file
from stcli.storage.weights import write_weights
from tests.index_tools import fixed, vectors, write_items

CONFIG = {
    "kind": "hstu", "dim": 8, "max_history": 10, "heads": 1, "blocks": 1, "qk_dim": 4, "v_dim": 4, "tasks": ["like"],
    "columns": [{"name": "ctx__country", "kind": "category", "values": ["AT", "DE"], "dim": 3}],
}  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    items = write_items(folder / "items.parquet", {"embedding": fixed(vectors(60))})
    stcli.build_index(items, folder / "items.index", clusters=4)
    return folder / "items.index"


def write(path, config=CONFIG, **change):
    """Write a tower with random weights; return them."""
    config = {**config, **change}
    generator = torch.Generator().manual_seed(5)
    shapes = parse_tower(config, "").shapes()
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_weights(path, config, weights)
    return weights


def test_the_tower_is_packed_and_opened(tmp_path, index):
    weights = write(tmp_path / "tower.json")
    summary = stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"))
    packed = open_artifact_file(tmp_path / "m.safetensors", verify=True)
    tower = load_tower(packed.manifest["tower"], packed.arrays)
    assert isinstance(tower, Tower)
    assert tower.config == parse_tower(CONFIG, "")
    assert all(torch.equal(tower.weights[name], weights[name]) for name in weights)
    told = stcli.inspect(tmp_path / "m.safetensors")["tower"]
    assert told == summary["tower"]
    assert told["num_weights"] == sum(tensor.numel() for tensor in weights.values())
    assert told["columns"] == ["ctx__country"]


def test_without_a_tower_there_is_none(tmp_path, index):
    assert stcli.pack_model(index, tmp_path / "m.safetensors")["tower"] is None
    packed = open_artifact_file(tmp_path / "m.safetensors")
    assert load_tower(packed.manifest.get("tower"), packed.arrays) is None


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"dim": 16}, {}, "'dim' is 16, the packed embeddings have 8 dimensions"),
        ({}, {"embedding_dtype": "none"}, "the packed embeddings have no dimensions"),
    ],
)
def test_a_tower_of_other_embeddings_is_refused(tmp_path, index, change, options, words):
    write(tmp_path / "tower.json", **change)
    with pytest.raises(InputError, match=words):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"), **options)
    assert not (tmp_path / "m.safetensors").exists()


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def test_code_is_refused_and_not_run(tmp_path, index):
    write(tmp_path / "tower.json")
    weights = tmp_path / "tower.safetensors"
    weights.write_bytes(pickle.dumps(Explosive()))
    with pytest.raises(InputError, match="a pickle"):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"))
    with zipfile.ZipFile(weights, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data/sample_inputs/model.pt", pickle.dumps(Explosive()))
    with pytest.raises(InputError, match=r"torch\.export program"):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"))
    with pytest.raises(InputError, match=r"torch\.export program"):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(weights))
    assert not (tmp_path / "m.safetensors").exists()


def test_weights_of_another_shape_are_refused(tmp_path, index):
    write(tmp_path / "tower.json")
    (tmp_path / "tower.json").write_text(json.dumps({**CONFIG, "v_dim": 5}))
    with pytest.raises(InputError, match=r"tensor 'blocks\.0\.uvqk\.weight' is F32 \[16, 8\]; expected .*\[18, 8\]"):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"))
