"""Towers that are `torch.export` programs: consent, the pinned hash, what they compute, and what is never executed."""

from __future__ import annotations

import json
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import stcli
from stcli.errors import FormatError, InputError
from stcli.storage.artifact import open_artifact_file
from tests.index_tools import fixed, vectors, write_items
from tests.pipeline.retrieve_cases import read

HISTORY, BATCH, DIM = 4, 8, 8
CONFIG = {
    "kind": "program", "dim": DIM, "tasks": ["like", "buy"], "max_history": HISTORY, "times": True, "batch": BATCH,
    "columns": [{"name": "ctx__hour", "kind": "number", "mean": 12.0, "std": 6.0},
                {"name": "ctx__country", "kind": "category", "values": ["AT", "DE"], "dim": 1}],
}  # fmt: skip
HISTORIES = [[3, 7, 5], [], None, [1, 999, 2, 3, 4, 5], [9], *([n] for n in range(15))]
TIMES = [[10, 20, 500], [], None, [1, 2, 3, 4, 5, 6], [5], *([n] for n in range(15))]
HOURS = [0, 12, None, 23, *range(16)]
COUNTRIES = ["AT", None, "DE", "FR", *["DE"] * 16]


class Decayed(torch.nn.Module):
    """The sum of the events, those of even times doubled; the second task is moved by the columns."""

    def forward(self, items, lengths, times, features):
        weights = torch.where(times % 2 == 0, 2.0, 1.0)
        state = (items * weights[:, :, None]).sum(1) + lengths[:, None]
        return torch.stack([state, state + features[:, :1] - 3 * features[:, 1:]], 1)


INPUTS = (torch.zeros(BATCH, HISTORY, DIM), torch.zeros(BATCH, dtype=torch.int64),
          torch.zeros(BATCH, HISTORY, dtype=torch.int64), torch.zeros(BATCH, 2))  # fmt: skip


def write(folder, module=None, inputs=INPUTS, **change):
    """A config and its program, as a user exports them."""
    (folder / "tower.json").write_text(json.dumps({**CONFIG, **change}))
    torch.export.save(torch.export.export(module or Decayed(), inputs), folder / "tower.pt2")
    return str(folder / "tower.json")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("program")
    items = write_items(folder / "items.parquet", {"embedding": fixed(vectors(40))})
    stcli.build_index(items, folder / "items.index", clusters=4)
    return folder / "items.index"


@pytest.fixture(scope="module")
def packed(index, tmp_path_factory):
    """The artifact, and a table of 20 requests, more than two batches."""
    folder = tmp_path_factory.mktemp("packed")
    model, tower = folder / "m.safetensors", write(folder)
    stcli.pack_model(index, model, tower=tower, embedding_dtype="float32", allow_model_code=True)
    columns = {
        "query_id": pa.array(range(20)),
        "uih__item_id": pa.array(HISTORIES, pa.list_(pa.int64())),
        "uih__timestamp": pa.array(TIMES, pa.list_(pa.int64())),
        "ctx__hour": pa.array(HOURS, pa.int32()),
        "ctx__country": pa.array(COUNTRIES),
    }
    pq.write_table(pa.table(columns), folder / "q.parquet")
    return model, folder / "q.parquet"


def by_hand(row: int) -> list[np.ndarray]:
    """Both vectors of a request."""
    table = vectors(40).astype(np.float64)
    events = [(table[i], t) for i, t in zip(HISTORIES[row] or [], TIMES[row] or [], strict=True) if i < 40][-HISTORY:]
    state = sum((item * (1 if time % 2 else 2) for item, time in events), np.zeros(DIM)) + len(events)
    hour = HOURS[row] if HOURS[row] is not None else 12
    return [state, state + (hour - 12) / 6 - 3 * {"AT": 1, "DE": 2}.get(COUNTRIES[row], 0)]


def test_retrieves_what_its_vectors_retrieve(packed, tmp_path):
    model, queries = packed
    options = {"k": 5, "exact": True}
    stcli.retrieve(model, queries, tmp_path / "a", allow_model_code=True, batch_size=7, **options)
    given = np.array([by_hand(row) for row in range(20)], np.float32)
    columns = {f"user_embedding__{task}": fixed(given[:, n]) for n, task in enumerate(CONFIG["tasks"])}
    pq.write_table(pa.table({"query_id": pa.array(range(20)), **columns}), tmp_path / "v.parquet")
    stcli.retrieve(model, tmp_path / "v.parquet", tmp_path / "b", **options)
    assert read(tmp_path / "a")["item_id"].equals(read(tmp_path / "b")["item_id"])
    pq.write_table(pq.read_table(queries).slice(3, 1), tmp_path / "one.parquet")
    stcli.retrieve(model, tmp_path / "one.parquet", tmp_path / "c", allow_model_code=True, **options)
    assert read(tmp_path / "c").equals(read(tmp_path / "a").slice(3, 1))


def test_nothing_runs_without_consent(packed, tmp_path, monkeypatch):
    model, queries = packed
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("the program was read"))
    with pytest.raises(InputError, match=r"torch\.export program, which is code; .*--allow-model-code"):
        stcli.retrieve(model, queries, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    opened = stcli.open_artifact(model)  # what needs no tower works
    assert opened(vectors(2), None, 3, exact=True).counts.tolist() == [3, 3]
    told = stcli.inspect(model, verify=True)["tower"]
    assert told["program_sha256"] == open_artifact_file(model).manifest["tower"]["program_sha256"]


def test_a_changed_program_is_refused_unread(packed, tmp_path, monkeypatch):
    model, queries = packed
    content, code = bytearray(model.read_bytes()), open_artifact_file(model).arrays["tower.program"].tobytes()
    content[bytes(content).index(code) + len(code) // 2] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("the program was read"))
    with pytest.raises(FormatError, match=r"SHA-256 .* was changed and is not run"):
        stcli.retrieve(tmp_path / "m.safetensors", queries, tmp_path / "out", allow_model_code=True)


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def hostile(kind: str, path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Explosive()))
        return
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr("model/data/sample_inputs/model.pt", pickle.dumps(Explosive()))


@pytest.mark.parametrize(
    ("kind", "allowed", "words"),
    [
        ("pickle", True, "is a pickle .*; expected a torch.export program"),
        ("torchscript", True, "is a TorchScript program; expected a torch.export program"),
        (
            "pt2",
            False,
            r"names a torch\.export program, which is code; .*--allow-model-code.* save the weights with safe",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_hostile_files_are_refused_unread(index, tmp_path, kind, allowed, words):
    (tmp_path / "tower.json").write_text(json.dumps(CONFIG))
    hostile(kind, tmp_path / "tower.pt2")
    with pytest.raises(InputError, match=words):
        stcli.pack_model(
            index, tmp_path / "m.safetensors", tower=str(tmp_path / "tower.json"), allow_model_code=allowed
        )
    assert not (tmp_path / "m.safetensors").exists()


class Narrow(torch.nn.Module):
    def forward(self, items, lengths, times, features):
        return items.sum(1)[:, None, :3] + 0 * (lengths.sum() + times.sum() + features.sum())


@pytest.mark.parametrize(
    ("module", "inputs", "change", "words"),
    [
        (Narrow(), INPUTS, {}, r"gives torch.float32 \[8, 1, 3\]; expected floats \[8, 2, 8\]"),
        (None, INPUTS, {"batch": 9}, r"cannot be called with \[9, 4, 8\], \[9\], \[9, 4\], \[9, 2\] .*export it for"),
        (None, INPUTS, {"max_history": 0}, "'times' must be false"),
        (None, INPUTS, {"columns": [{"name": "a", "kind": "category", "values": [1], "dim": 2}]}, "'dim' above 1"),
        (None, INPUTS, {"hidden": [3]}, "unknown key 'hidden'"),
        (None, INPUTS, {"program": "../x.pt2"}, "'program' is '../x.pt2'; expected the name of a file"),
    ],
)
def test_what_does_not_fit_is_found_while_packing(index, tmp_path, module, inputs, change, words):
    tower = write(tmp_path, module, inputs, **change)
    with pytest.raises(InputError, match=words):
        stcli.pack_model(index, tmp_path / "m.safetensors", tower=tower, allow_model_code=True)
    assert not (tmp_path / "m.safetensors").exists()


def test_a_program_may_take_any_batch(index, tmp_path):
    """Exported with a batch that varies, columns only, one vector a request without a name."""

    class Plain(torch.nn.Module):
        def forward(self, features):
            return features.repeat(1, 8)

    batch = torch.export.Dim("batch", min=1, max=4096)
    (tmp_path / "tower.json").write_text(
        json.dumps({"kind": "program", "dim": 8, "columns": [{"name": "x", "kind": "number"}], "batch": 1})
    )
    exported = torch.export.export(Plain(), (torch.zeros(4, 1),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "tower.pt2")
    model = tmp_path / "m.safetensors"
    stcli.pack_model(index, model, tower=str(tmp_path / "tower.json"), allow_model_code=True)
    pq.write_table(pa.table({"query_id": [1, 2], "x": [1.0, -1.0]}), tmp_path / "q.parquet")
    stcli.retrieve(model, tmp_path / "q.parquet", tmp_path / "out", k=3, exact=True, allow_model_code=True)
    opened = stcli.open_artifact(model)
    expected = opened(np.array([[1.0] * 8, [-1.0] * 8], np.float32), None, 3, exact=True)
    assert read(tmp_path / "out")["item_id"].to_pylist() == [items.tolist() for items in expected.item_ids]
