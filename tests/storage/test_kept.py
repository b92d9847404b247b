"""Kept columns: whole ones are read as they are, damaged ones refused before Arrow follows them."""

from __future__ import annotations

import contextlib
import datetime
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stcli.errors import FormatError
from stcli.pipeline.columns import KeptColumns
from stcli.storage.artifact import Artifact
from stcli.storage.kept import check_kept, read_kept

ROWS, BATCH = 600, 200
TEXTS = [None if row % 11 == 0 else f"sällér {row % 37}" for row in range(ROWS)]
COLUMNS = {
    "number": pa.array(range(ROWS)),
    "flag": pa.array([None if row % 5 == 0 else row % 3 == 0 for row in range(ROWS)]),
    "text": pa.array(TEXTS),
    "large": pa.array(TEXTS, pa.large_string()),
    "encoded": pa.array(TEXTS).dictionary_encode(),
    "list": pa.array([None if row % 7 == 0 else ["a", "bc"][: row % 3] for row in range(ROWS)]),
    "encoded list": pa.ListArray.from_arrays(
        pa.array(np.arange(ROWS + 1, dtype=np.int32)), pa.array(TEXTS).dictionary_encode()
    ),
    "pair": pa.array([{"x": row, "y": str(row)} for row in range(ROWS)]),
    "price": pa.array([decimal.Decimal(row) / 4 for row in range(ROWS)]),
    "day": pa.array([datetime.date(2024, 1, 1)] * ROWS),
}


def of(data: np.ndarray, **other) -> Artifact:
    return Artifact(Path("m.st"), {"columns": list(COLUMNS), "num_items": ROWS} | other, {"columns": data})


def file_of(columns: dict[str, pa.Array]) -> np.ndarray:
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table, max_chunksize=BATCH)
    return np.frombuffer(sink.getvalue(), np.uint8)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return file_of(COLUMNS)


def changed(data: np.ndarray, column: pa.Array, buffer: int, numbers: np.ndarray) -> np.ndarray:
    """The file with other numbers at the start of a buffer of a column."""
    found = column.buffers()[buffer]
    raw, made = data.tobytes(), data.copy()
    at = raw.index(found.to_pybytes()[: BATCH * numbers.itemsize])
    made[at : at + numbers.nbytes] = numbers.view(np.uint8)
    return made


def test_whole_columns_come_back(whole):
    kept = KeptColumns(of(whole))
    rows = np.array([5, 0, ROWS - 1, 5])
    for name, column in COLUMNS.items():
        assert kept.take(name, rows).to_pylist() == column.take(pa.array(rows)).to_pylist()
    again = pa.ipc.open_file(pa.py_buffer(kept.slice_bytes(150, 450))).read_all()
    assert again.to_pylist() == pa.table(COLUMNS).slice(150, 300).to_pylist()


def test_parts_follow_one_another():
    parts = [{"c": pa.array(texts).dictionary_encode()} for texts in (["a", "b", None], ["c", "b"])]
    kept = KeptColumns(*(of(file_of(part), columns=["c"], num_items=len(part["c"])) for part in parts))
    assert kept.take("c", np.array([3, 4, 0, 2, 1])).to_pylist() == ["c", "b", "a", None, "b"]
    numbers = of(file_of({"c": pa.array([1, 2])}), columns=["c"], num_items=2)
    with pytest.raises(FormatError, match=r"m\.st: .* has other types than that of the first file, so the content is"):
        KeptColumns(of(file_of(parts[0]), columns=["c"], num_items=3), numbers)


def test_nothing_kept():
    assert read_kept(Artifact(Path("m"), {"columns": [], "num_items": 3}, {})).schema.names == []


@pytest.mark.parametrize("other", [-1, -(2**30), 2**20, 2**31 - 1])
@pytest.mark.parametrize(
    ("name", "buffer", "place"),
    [("text", 1, 1), ("text", 1, 199), ("text", 1, 0), ("list", 1, 4), ("encoded", 1, 3), ("encoded list", 1, 0)],
)
def test_a_column_that_leads_astray_is_refused_where_it_is_used(whole, name, buffer, place, other):
    numbers = np.frombuffer(COLUMNS[name].buffers()[buffer], np.int32)[:BATCH].copy()
    numbers[place] = other
    damaged = of(changed(whole, COLUMNS[name], buffer, numbers))
    kept = KeptColumns(damaged)
    for use in (
        lambda: kept.take(name, np.arange(ROWS)),
        lambda: kept.groups(name, "--max-per"),
        lambda: kept.slice_bytes(0, 10),
        lambda: KeptColumns(of(whole), damaged).take(name, np.arange(3)),
    ):
        with pytest.raises(
            FormatError, match=rf"m\.st: the kept column '{name}' leads out of its data .*damaged"
        ) as said:
            use()
        assert "\n" not in str(said.value)
    assert kept.take("number", np.array([7])).to_pylist() == [7]


def test_a_dictionary_that_leads_astray(whole):
    column = COLUMNS["encoded"]
    numbers = np.frombuffer(column.dictionary.buffers()[1], np.int32)[: len(column.dictionary) + 1].copy()
    raw = whole.copy()
    at = raw.tobytes().index(numbers.tobytes())
    numbers[2] = 2**30
    raw[at : at + numbers.nbytes] = numbers.view(np.uint8)
    with pytest.raises(FormatError, match=r"the kept column 'encoded' leads out of its data"):
        check_kept(read_kept(of(raw))["encoded"], "m", "encoded")


@pytest.mark.parametrize("size", [0, 3, 100, -1, -200])
def test_a_cut_file(whole, size):
    with pytest.raises(FormatError, match=r"m\.st: the file of kept columns cannot be read .*, so the content is dam"):
        KeptColumns(of(whole[:size]))


@pytest.mark.parametrize("other", [{"num_items": ROWS + 1}, {"columns": ["number"]}])
def test_another_file(whole, other):
    with pytest.raises(FormatError, match=r"the file of kept columns has 600 rows of \['number', .*expected 60"):
        KeptColumns(of(whole, **other))
    with pytest.raises(FormatError, match=r"the file of kept columns cannot be read"):
        KeptColumns(Artifact(Path("m"), {"columns": ["a"], "num_items": 1}, {}))


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_ends_in_a_result_or_an_error_of_ours(whole, seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        data = whole.copy()
        near_the_end = rng.random() < 0.5
        at = rng.integers(max(len(data) - 6000, 0) if near_the_end else 0, len(data) - 8, rng.integers(1, 4))
        if rng.random() < 0.5:
            data[at] ^= np.uint8(1 << rng.integers(8))
        else:
            number = np.int64(rng.choice([-1, 2**31, 2**40, -(2**62)]))
            for place in at:
                data[place : place + 8] = np.frombuffer(number.tobytes(), np.uint8)
        with contextlib.suppress(FormatError):
            kept = KeptColumns(of(data))
            for name in kept.schema.names:
                with contextlib.suppress(FormatError):
                    kept.take(name, rng.integers(0, ROWS, 100)).validate(full=True)
