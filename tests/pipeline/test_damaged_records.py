"""Records with anything anywhere end in one sentence that names the file: reports, results, calibrations."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

import stcli
from stcli.cli.main import run as command
from stcli.cli.output import rows_of
from stcli.errors import FormatError, InputError, StcliError
from stcli.measure.report import RECORD
from stcli.model.calibrate import read_calibration
from stcli.storage import manifest as m
from stcli.storage.results import MANIFEST, RUN, ResultsWriter, open_results
from tests.pipeline.bench_cases import QUICK

GONE = object()
DAMAGES = (GONE, None, "text", [], -1, 10**400)


@pytest.fixture(scope="module")
def report(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in QUICK:
            patch.setattr(owner, name, value)
        stcli.bench(tiny.model, tiny.queries, folder, filter_column="filter", k=5, sample=30, repeat=1, probes=(4,))
    return folder


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("records") / "results"
    stcli.retrieve(tiny.model, tiny.queries, folder, filter_column="filter", k=5, part_rows=60)
    return folder


def damaged(value: object) -> Iterator[tuple[tuple, object, object]]:
    """(place, damage, the value with it) for each damage of each place of a JSON value; of lists, the first entry."""
    for place in places(value):
        for damage in DAMAGES:
            changed = copy.deepcopy(value)
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            if damage is GONE:
                del inner[place[-1]]
            else:
                inner[place[-1]] = damage
            yield place, damage, changed


def places(value: object, before: tuple = ()) -> Iterator[tuple]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(min(len(value), 1)):
            yield (*before, key)
            yield from places(value[key], (*before, key))


def sealed_again(manifest: dict) -> dict:
    """With the fingerprint of what it is now, so that no hash tells of the damage."""
    body = {key: value for key, value in manifest.items() if key != "fingerprint"}
    return {**body, "fingerprint": m.fingerprint(body)}


def printed(summary: dict) -> bool:
    """The summary can be shown as a table and as JSON."""
    return bool(rows_of(summary) and json.dumps(summary, default=str))


def outcomes(calls: list[Callable[[], object]], file: Path | str) -> list[bool]:
    """Whether each call passes; those that do not name the file (or its folder) in one sentence."""
    errors = [error_of(call) for call in calls]
    for error in filter(None, errors):
        assert error.exit_code == 2
        assert str(getattr(file, "parent", file)) in str(error)
        assert "\n" not in str(error)
    return [error is None for error in errors]


def error_of(call: Callable[[], object]) -> StcliError | None:
    try:
        call()
    except StcliError as error:
        return error
    return None


@pytest.mark.parametrize(("kind", "name"), [("report", RECORD), ("results", MANIFEST)])
def test_a_record_with_anything_anywhere(request, tmp_path, kind, name):
    whole = request.getfixturevalue(kind)
    folder = shutil.copytree(whole, tmp_path / "damaged")
    record = json.loads((whole / name).read_text())
    calls = [
        lambda: printed(stcli.inspect(folder, verify=True)),
        lambda: printed(stcli.compare(folder, whole)),
        lambda: printed(stcli.compare(whole, folder)),
    ]
    assert outcomes(calls, folder / name) == [True] * 3
    for place, damage, changed in damaged(record):
        (folder / name).write_text(json.dumps(sealed_again(changed)))
        passed = outcomes(calls, folder / name)
        if damage is GONE:
            assert any(passed) <= (place not in NEEDED), place
            (folder / name).write_text(json.dumps(changed))
            assert outcomes(calls, folder / name) == [False] * 3


NEEDED = [("runs",), ("runs", 0, "recall"), ("runs", 0, "queries_per_s", "median"), ("k",), ("parts",), ("counts",)]


def test_a_run_record_with_anything_anywhere(results, tmp_path):
    folder = shutil.copytree(results, tmp_path / "damaged")
    calls = [lambda: printed(stcli.inspect(folder)), lambda: printed(stcli.compare(results, folder))]
    for _, _, changed in damaged(json.loads((results / RUN).read_text())):
        (folder / RUN).write_text(json.dumps(changed))
        assert outcomes(calls, folder / RUN)[1]  # compare does not look at it
    for text in ("", "[]", "null", '{"finished": NaN}', '{"finished": ' + "[" * 400 + "]" * 400 + "}"):
        (folder / RUN).write_text(text)
        assert outcomes(calls, folder / RUN) == [False, True]


def test_a_calibration_with_anything_anywhere(results, tmp_path):
    calibration = open_results(results)["calibration"]
    model = SimpleNamespace(fingerprint=calibration["artifact"])
    path = tmp_path / "given.json"

    def call():
        m.canonical(read_calibration(str(path), model, 5).to_json())  # as results keep it

    path.write_text(json.dumps(calibration))
    assert outcomes([call], str(path)) == [True]
    for place, damage, changed in damaged(calibration):
        path.write_text(json.dumps(changed))
        passed = outcomes([call], str(path))
        assert passed == [False] or damage is not GONE, place
    for key in ("target_recall", "seed"):
        path.write_text(json.dumps(calibration | {key: float("nan")}))
        with pytest.raises(InputError, match=rf"given.json: its '{key}' is nan, expected a"):
            call()
    for name in (RUN, "part-00000.parquet"):
        assert outcomes([lambda name=name: read_calibration(str(results / name), model, 5)], results / name) == [False]


TEXTS = {
    "": "is not JSON",
    '{"format": ': "is not JSON",
    "[]": r"it is \[\], expected an object",
    "null": "it is None, expected an object",
    "{}": "its format is None, expected 'stcli-report'",
    '{"format": "stcli-report"}': "states no format version",
    '{"format": "stcli-report", "version": [9, 0]}': "format version 9.0, this stcli reads 1.0",
    '{"format": "stcli-report", "version": [1, 0], "k": NaN}': "does not match its fingerprint",
    '{"format": "stcli-report", "version": [1, 0], "k": ' + "[" * 900 + "]" * 900 + "}": "fingerprint|is not JSON",
    '{"format": "' + "x" * 9999 + '"}': r"its format is 'x{36}\.\.\.",
    '{"machine": {}, "seconds": 1, "running": null, "rows": [], "skipped": []}': "is what make gpu measured",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:40])
def test_files_that_are_no_report(report, tmp_path, text, capsys):
    folder = shutil.copytree(report, tmp_path / "r")
    (folder / RECORD).write_text(text)
    with pytest.raises(FormatError, match=f"r/report.json: .*{TEXTS[text]}") as caught:
        stcli.inspect(folder)
    for words in (["inspect", folder], ["compare", report, folder], ["compare", folder, report]):
        assert command([str(word) for word in words]) == 2
        assert capsys.readouterr() == ("", f"stcli: error: {caught.value}\n")


def test_a_huge_record(report, tmp_path):
    folder = shutil.copytree(report, tmp_path / "r")
    with (folder / RECORD).open("r+b") as file:
        file.truncate(1 << 40)  # a hole, no bytes on the disk
    with pytest.raises(FormatError, match=r"report\.json: has 1,099,511,627,776 bytes, expected at most"):
        stcli.inspect(folder)


def test_reports_without_a_setting_in_common(report, tmp_path):
    folder = shutil.copytree(report, tmp_path / "r")
    record = json.loads((report / RECORD).read_text())
    for run in record["runs"]:
        run["name"] += "?"
    (folder / RECORD).write_text(json.dumps(sealed_again(record)))
    with pytest.raises(InputError, match=r"r: has none of the settings of .* \(planned, 4 probes, exact\)"):
        stcli.compare(report, folder)


def test_results_that_have_nothing_to_compare(tmp_path):
    """Of other ids, without queries, and of the same ids without a query in common."""
    for name, kind, queries, items in (
        ("numbers", pa.int64(), [1, 2], [[1, 2], []]),
        ("texts", pa.string(), [1, 2], [["a"], ["b"]]),
        ("others", pa.string(), [3, 4], [["a"], ["c"]]),
        ("none", pa.int64(), [], []),
    ):
        schema = pa.schema([("query_id", pa.int64()), ("item_id", pa.list_(kind))])
        writer = ResultsWriter(tmp_path / name, {"artifact": "a", "queries": {"rows": 2}}, False, False)
        writer.write_part(0, [pa.record_batch([queries, items], schema=schema)], schema, dict)
        counts = {"queries": len(queries), "results": 0, "short": 0}
        writer.finish({"tool_version": "1", "counts": counts}, 1, {})
    with pytest.raises(InputError, match=r"numbers has items as list<.*int64>, .*texts as list<.*string>"):
        stcli.compare(tmp_path / "numbers", tmp_path / "texts")
    with pytest.raises(InputError, match="none: has no queries; nothing to compare"):
        stcli.compare(tmp_path / "numbers", tmp_path / "none")
    told = stcli.compare(tmp_path / "texts", tmp_path / "others")
    assert told["queries"] == {"in both": 0, "only before": 2, "only after": 2}
    assert (told["items_new"], told["items_gone"]) == (1, 1)
