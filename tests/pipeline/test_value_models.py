"""Value models and rules of an artifact: packed, opened, and what they read of the kept columns."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import stcli
from stcli.errors import FormulaError, InputError
from stcli.ops.cap_groups import OWN_GROUP
from stcli.pipeline.columns import KeptColumns, formula_kind, formula_values
from stcli.pipeline.rules import read_rules
from stcli.pipeline.value_models import given_value_models, open_value_model
from stcli.storage.artifact import Artifact, open_artifact_file
from tests.index_tools import fixed, vectors, write_items

KEPT = {
    "price": pa.array([1.5, None, math.nan, 2.0**30 + 1] * 25),
    "is_new": pa.array([True, None, False, True] * 25),
    "seller": pa.array(["a", None, "b", "a"] * 25),
    "family": pa.array([1, 2, 2, None] * 25, pa.int32()),
    "tags": pa.array([["x"], [], None, ["y"]] * 25),
    "day": pa.array([datetime.date(2024, 1, 1)] * 100),
}


def kept_of(columns: dict[str, pa.Array]) -> KeptColumns:
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=30)
    arrays = {"columns": np.frombuffer(sink.getvalue(), np.uint8)}
    return KeptColumns(Artifact(Path("m"), {"columns": list(columns), "num_items": len(table)}, arrays))


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("value")
    items = write_items(folder / "items.parquet", {"embedding": fixed(vectors(100)), **KEPT})
    stcli.build_index(items, folder / "items.index", keep_columns=list(KEPT), clusters=4)
    return folder / "items.index"


def pack(index, path, **options):
    stcli.pack_model(index, path, **options)
    return open_artifact_file(path)


def test_value_models_are_packed_canonically_and_opened(tmp_path, index):
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"safe": {"weighted_sum": {"like": 2, "report": -3}, "nan": "error"}}))
    text = "feed=task.like+if(item.is_new,1,0)*query.hour"
    packed = pack(index, tmp_path / "m.safetensors", value_models=[text], value_model_file=str(file))
    entries = packed.manifest["value_models"]
    assert entries == {
        "feed": {"formula": "task.like + if(item.is_new, 1, 0) * query.hour", "nan": "lowest", "tasks": ["like"]},
        "safe": {"formula": "2 * task.like - 3 * task.report", "nan": "error", "tasks": ["like", "report"]},
    }
    kept = KeptColumns(packed)
    model = open_value_model(packed.manifest, "feed", ["like", "share"], kept)
    assert model.columns("item") == ("is_new",)
    assert model.columns("query") == ("hour",)
    rows = torch.tensor([[0, 1, 5]])
    values = {
        "task.like": torch.tensor([[1.0, 2.0, 3.0]]),
        "item.is_new": kept.values("is_new")[rows],
        "query.hour": torch.tensor([[10.0]]),
    }
    new = {row: bool(value) for row, value in zip(*_column(packed, kept, "is_new"), strict=True)}
    expected = [score + 10.0 * new[row] for score, row in zip([1.0, 2.0, 3.0], [0, 1, 5], strict=True)]
    assert model.evaluate(values)[0].tolist() == expected
    assert open_value_model(packed.manifest, "safe", ["like", "report"], kept).nan == "error"
    told = stcli.inspect(tmp_path / "m.safetensors")
    assert told["value_models"]["safe"] == "2 * task.like - 3 * task.report"


def _column(packed, kept, name):
    rows = range(100)
    return list(rows), kept.take(name, np.arange(100)).to_pylist()


def test_an_artifact_without_value_models_says_nothing_of_them(tmp_path, index):
    assert "value_models" not in pack(index, tmp_path / "m.safetensors").manifest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"value_models": ["task.like"]}, "expected NAME=FORMULA"),
        ({"value_models": ["=task.like"]}, "expected NAME=FORMULA"),
        ({"value_models": ["a b=task.like"]}, "a name has letters"),
        ({"value_models": ["v=1", "v=2"]}, "is given twice"),
        ({"value_models": ["v=item.prise"]}, r"did you mean 'item\.price'.*\n.*\n.*\n.*keep-columns"),
        ({"value_models": ["v=item.seller"]}, r"item\.seller is a string"),
        ({"value_models": ["v=item.tags"]}, r"item\.tags is a list"),
        ({"value_models": ["v=item.day + 1"]}, r"item\.day is a date32"),
        ({"value_models": ["v=item.is_new"]}, "the score must be a number"),
        ({"value_models": ["v=1 +"]}, "value model 'v': formula: expected"),
        ({"value_model_file": "nowhere.json"}, r"nowhere\.json: cannot be read"),
    ],
)
def test_wrong_value_models_are_refused_and_nothing_is_written(tmp_path, index, options, words):
    with pytest.raises(InputError, match=words):
        stcli.pack_model(index, tmp_path / "m.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_deep_json_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read"):
        given_value_models([], str(tmp_path / "deep.json"))


def test_a_value_model_is_opened_by_name_with_the_tasks_there_are(tmp_path, index):
    packed = pack(index, tmp_path / "m.safetensors", value_models=["feed=task.like"])
    kept = KeptColumns(packed)
    with pytest.raises(InputError, match=r"--value-model fed: .* did you mean 'feed'"):
        open_value_model(packed.manifest, "fed", ["like"], kept)
    with pytest.raises(FormulaError, match=r"there is no task\.like; .*there are: task\.share"):
        open_value_model(packed.manifest, "feed", ["share"], kept)


# ---- kept columns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, -3], pa.int8()), [1.0, math.nan, -3.0]),
        (pa.array([2**62 + 1, 16_777_217], pa.int64()), [float(2**62), 16_777_216.0]),
        (pa.array([2**64 - 1], pa.uint64()), [float(2**64)]),
        (pa.array([1e300, math.nan, -0.5], pa.float64()), [math.inf, math.nan, -0.5]),
        (pa.array([Decimal("1.25"), None], pa.decimal128(5, 2)), [1.25, math.nan]),
        (pa.array([1.5], pa.float16()), [1.5]),
        (pa.array([], pa.float32()), []),
    ],
)
def test_numbers_are_read_as_float32(column, expected):
    assert formula_kind(column.type) == "number"
    for given in (column, pa.chunked_array([column, column[:0]])):
        found = formula_values(given)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), np.array(expected, np.float32))


def test_booleans_are_read_with_null_as_false():
    assert formula_values(pa.array([True, None, False])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b", "a", ""] * 20),
        pa.array([7, None, -7, 7, 0] * 20),
        pa.array(["a", None, "b", "a", ""] * 20).dictionary_encode(),
        pa.array([True, None, False, True, False] * 20),
        pa.array([datetime.date(2024, 1, 1), None, datetime.date(2023, 1, 1)] * 20),
        pa.array([], pa.string()),
        pa.array([None, None], pa.int64()),
    ],
)
def test_groups_are_equal_exactly_for_equal_values(column):
    codes = kept_of({"c": column}).groups("c", "--max-per").tolist()
    values = column.to_pylist()
    assert [code == OWN_GROUP for code in codes] == [value is None for value in values]
    pairs = {(code, value) for code, value in zip(codes, values, strict=True) if value is not None}
    assert len(pairs) == len({code for code, _ in pairs}) == len({value for _, value in pairs})


# ---- rules ----------------------------------------------------------------------------------------------------


def test_rules_choose_by_kept_columns():
    kept = kept_of({"seller": pa.array(["a", "a", "a", "b", None, None]), "family": pa.array([1, 2, 3, 1, 9, 9])})
    rules = read_rules(["seller=2"], ["family"], kept)
    rows = torch.tensor([[0, 1, 2, 3, 4, 5]])
    # Item 2 is the third of seller a; item 3 is of the family of item 0, item 5 of that of item 4.
    assert rules.choose(rows, 4).tolist() == [[0, 1, 4, -1]]
    assert rules.to(torch.device("cpu")).choose(rows, 2).tolist() == [[0, 1]]
    assert read_rules([], [], kept) is None


def test_more_candidates_never_change_a_full_line():
    generator = torch.Generator().manual_seed(3)
    kept = kept_of({"seller": pa.array([f"s{i % 7}" for i in range(500)])})
    rules = read_rules(["seller=3"], [], kept)
    rows = torch.stack([torch.randperm(500, generator=generator) for _ in range(20)])
    whole = rules.choose(rows, 15)
    for count in (15, 20, 40, 80):
        some = rules.choose(rows[:, :count], 15)
        full = some[:, -1] >= 0
        assert torch.equal(some[full], whole[full])
    assert bool((whole[:, -1] >= 0).all())
    assert rules.choose(rows, 22)[:, -1].tolist() == [-1] * 20  # 7 sellers with 3 each are 21


@pytest.mark.parametrize(
    ("max_per", "distinct_by", "words"),
    [
        (["seller"], [], "expected COLUMN=N"),
        (["seller=0"], [], "expected COLUMN=N"),
        (["seller=-1"], [], "expected COLUMN=N"),
        (["seller=two"], [], "expected COLUMN=N"),
        (["=2"], [], "expected COLUMN=N"),
        (["seller=" + "9" * 5000], [], "expected COLUMN=N"),
        (["seller=2"], ["seller"], "has a rule already"),
        (["sellers=2"], [], "did you mean 'seller'"),
        ([], ["price"], "--distinct-by price: is double"),
        ([], ["tags"], "--distinct-by tags: is list"),
    ],
)
def test_wrong_rules_are_refused(max_per, distinct_by, words):
    with pytest.raises(InputError, match=words):
        read_rules(max_per, distinct_by, kept_of(KEPT))
