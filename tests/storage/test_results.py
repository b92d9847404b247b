"""The results directory: parts, resuming, and the manifest that makes it whole."""

from __future__ import annotations

import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stcli.errors import ExistsError, FormatError, InputError
from stcli.storage.results import ResultsWriter, open_results, part_info, part_name

SCHEMA = pa.schema([("query_id", pa.int64()), ("item_id", pa.list_(pa.int64())), ("score", pa.list_(pa.float32()))])
IDENTITY = {"artifact": "abc", "k": 3, "queries": {"rows": 4}}


def batch(first, rows):
    ids = list(range(first, first + rows))
    return pa.record_batch([ids, [[i, i + 1] for i in ids], [[0.5, 0.25]] * rows], schema=SCHEMA)


def write_parts(writer, numbers):
    for number in numbers:
        writer.write_part(number, [batch(2 * number, 1), batch(2 * number + 1, 1)], SCHEMA, lambda: {"rows": 2})


def finish(writer, parts=2):
    counts = {"queries": 2 * parts, "results": 0, "short": 0}
    return writer.finish({"tool_version": "1", "counts": counts}, parts, {"seconds": 1})


def test_a_whole_run(tmp_path):
    out = tmp_path / "results"
    writer = ResultsWriter(out, IDENTITY, resume=False, overwrite=False)
    write_parts(writer, [0, 1])
    assert not out.exists()
    manifest = finish(writer)
    assert sorted(path.name for path in out.iterdir()) == ["_manifest.json", "_run.json", part_name(0), part_name(1)]
    assert open_results(out) == manifest
    assert manifest["identity"] == IDENTITY
    assert manifest["parts"] == [{"name": part_name(number), "rows": 2} for number in (0, 1)]
    rows = [row for number in (0, 1) for row in pq.read_table(out / part_name(number)).to_pylist()]
    assert rows == [{"query_id": i, "item_id": [i, i + 1], "score": [0.5, 0.25]} for i in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_lists_of_every_kind_come_back(tmp_path):
    kinds = [pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.int64(), pa.float16(), pa.float32(), pa.float64()]
    lists = {str(kind): pa.array([[1, 0, 3], [], None, [7]], pa.list_(kind)) for kind in kinds}
    lists |= {
        "string": pa.array([["a", None], [], None, ["b"]], pa.list_(pa.string())),
        "bool": pa.array([[True], [], None, [False]], pa.list_(pa.bool_())),
        "nested": pa.array([[[1], []], [], None, [None]], pa.list_(pa.list_(pa.int64()))),
        "extremes": pa.array([[-(2**63), 2**63 - 1], [], None, [None, 0]], pa.list_(pa.int64())),
    }
    table = pa.table({"query_id": [1, 2, 3, 4], **lists})
    writer = ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=False)
    writer.write_part(0, table.to_batches(), table.schema, dict)
    path = writer.folder / part_name(0)
    assert pq.read_table(path).equals(table)
    with duckdb.connect() as base:
        known = [name for name in table.column_names if name != "halffloat"]
        read = base.sql(f"SELECT {', '.join(known)} FROM '{path}'").to_arrow_table()
    assert read.to_pylist() == table.select(known).to_pylist()


def test_resume_keeps_whole_parts_and_calibration(tmp_path):
    out = tmp_path / "results"
    writer = ResultsWriter(out, IDENTITY, resume=False, overwrite=False)
    writer.save_calibration({"probes": [1, 2]})
    write_parts(writer, [0])
    with pytest.raises(RuntimeError, match="killed"):
        writer.write_part(1, broken(), SCHEMA, dict)
    again = ResultsWriter(out, IDENTITY, resume=True, overwrite=False)
    assert again.has_part(0)
    assert not again.has_part(1)
    assert again.calibration() == {"probes": [1, 2]}
    assert again.part_info(0) == {"rows": 2}
    write_parts(again, [1])
    assert finish(again)["calibration"] == {"probes": [1, 2]}
    assert not (out / "_calibration.json").exists()


def broken():
    yield batch(2, 1)
    raise RuntimeError("killed")


def test_resume_without_a_run_starts_one(tmp_path):
    writer = ResultsWriter(tmp_path / "results", IDENTITY, resume=True, overwrite=False)
    assert writer.calibration() is None
    assert not writer.has_part(0)


def test_resume_refuses_other_inputs_and_names_them(tmp_path):
    ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=False)
    changed = {**IDENTITY, "k": 4, "probes": 7}
    with pytest.raises(InputError, match=r"k, probes changed since .* \(k was 3, is 4\)"):
        ResultsWriter(tmp_path / "results", changed, resume=True, overwrite=False)


def test_an_interrupted_run_is_not_lost_by_accident(tmp_path):
    write_parts(ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=False), [0])
    with pytest.raises(ExistsError, match=r"results.partial: an interrupted run is there; add --resume"):
        ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=False)
    writer = ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=True)
    assert not writer.has_part(0)


def test_an_old_output_stays_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "results"
    writer = ResultsWriter(out, IDENTITY, resume=False, overwrite=False)
    write_parts(writer, [0, 1])
    finish(writer)
    with pytest.raises(ExistsError, match="already exists"):
        ResultsWriter(out, IDENTITY, resume=False, overwrite=False)
    writer = ResultsWriter(out, {**IDENTITY, "k": 9}, resume=False, overwrite=True)
    write_parts(writer, [0])
    assert open_results(out)["identity"]["k"] == 3
    assert finish(writer, 1)["identity"]["k"] == 9
    assert open_results(out)["counts"]["queries"] == 2
    assert not (out / part_name(1)).exists()


def test_discard_leaves_nothing(tmp_path):
    ResultsWriter(tmp_path / "results", IDENTITY, resume=False, overwrite=False).discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["manifest", "gone", "short", "cut", "edited"])
def test_results_that_are_not_whole_are_refused(tmp_path, change):
    out = tmp_path / "results"
    writer = ResultsWriter(out, IDENTITY, resume=False, overwrite=False)
    write_parts(writer, [0, 1])
    finish(writer)
    part = out / part_name(1)
    if change == "manifest":
        (out / "_manifest.json").unlink()
    elif change == "gone":
        part.unlink()
    elif change == "short":
        pq.write_table(pa.Table.from_batches([batch(2, 1)]), part)
    elif change == "cut":
        part.write_bytes(part.read_bytes()[:-9])
    else:
        manifest = json.loads((out / "_manifest.json").read_text())
        (out / "_manifest.json").write_text(json.dumps({**manifest, "num_queries": 5}))
    with pytest.raises(FormatError, match=r"_manifest.json|part-00001.parquet"):
        open_results(out)


def test_a_part_of_another_is_no_part_of_ours(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    for name in ("a.parquet", "nothing.parquet"):
        with pytest.raises(FormatError, match=f"{name}: is no whole part of a results directory"):
            part_info(tmp_path / name)
