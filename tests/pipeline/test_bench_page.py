"""The page of a benchmark: whole, self-contained, and loud about wrong results."""

import json
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.measure import plots
from stcli.measure.report import read_report, render
from stcli.model.lookup import IdLookup
from stcli.pipeline import bench as module
from stcli.storage.ids import ItemIds
from tests.conftest import NUM_ITEMS, NUM_QUERIES
from tests.pipeline.bench_cases import OPTIONS, _quick, careless, failed, made, opening, read_page, run  # noqa: F401


def test_page_is_whole_and_self_contained(made):
    pytest.importorskip("matplotlib")
    _, report, output, _ = made
    page = read_page((output / "report.html").read_text(encoding="utf-8"))
    assert page.fetched == []
    assert page.figures == 3
    assert not re.search(
        r"url\((?!#)|@import|#0[0-9]0[0-9]0[0-9]", (output / "report.html").read_text(encoding="utf-8")
    )
    for words in (
        report["command"],
        report["recommended"]["command"],
        "Every result satisfies its filter",
        "32 probes",
    ):
        assert words in page.text


def test_page_without_matplotlib(made, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    page = read_page(render(made[1]))
    assert page.figures == 0
    assert "stcli[bench]" in page.text


def test_page_escapes_what_users_wrote(made):
    report = json.loads(json.dumps(made[1]))
    report["inputs"]["model"] = "<b>&.safetensors"
    page = read_page(render(report))
    assert "<b>&.safetensors" in page.text


@pytest.mark.slow
def test_page_in_a_browser(made, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    pytest.importorskip("matplotlib")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    page = subprocess.run([*command, (made[2] / "report.html").as_uri()], capture_output=True, text=True, timeout=60)
    assert page.stdout.count("<svg") == 3
    assert "Recall against throughput" in page.stdout


def test_a_right_result_says_so(made):
    level, text = opening(made[1])
    assert level in ("good", "unsure")
    assert re.match(r"Results are right: recall@10 (0\.9|1\.0)\d+ at", text)


def test_a_filter_that_is_ignored_shows(tiny, tmp_path, monkeypatch):
    search = stcli.Retriever.search

    def ignoring(self, vectors, filters, options, *more):
        return search(self, vectors, self._source(None, len(vectors)), options, *more)

    monkeypatch.setattr(stcli.Retriever, "search", ignoring)
    report = run(tiny, tmp_path)
    assert "Every result satisfies its filter" in failed(report)
    assert report["runs"][0]["ineligible"] > 0
    level, text = opening(report)
    assert level == "wrong"
    assert re.search(r"Do not trust these results: [\d,]+ results do not satisfy their filter", text)
    assert "Every result satisfies its filter" not in read_page(render(report)).text
    assert "results do not satisfy their filter" in read_page(render(report)).text


def test_shuffled_ids_show(tiny, tmp_path, monkeypatch):
    opened = stcli.open_artifact(tiny.model)
    shuffled = opened.ids.ids.take(pa.array(np.random.default_rng(0).permutation(NUM_ITEMS)))
    opened.ids = ItemIds.of(shuffled)
    opened.lookup = IdLookup(opened.ids)
    monkeypatch.setattr(module, "open_artifact", lambda *_, **__: opened)
    report = run(tiny, tmp_path, items=str(tiny.items))
    assert {"Scores belong to their items", "Recall reaches the target"} <= set(failed(report))
    assert report["runs"][0]["recall"]["mean"] < 0.5
    level, text = opening(report)
    assert level == "wrong"
    assert "of the scores are those of the item returned" in text


def test_poor_recall_shows(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "calibrate", careless)
    report = run(tiny, tmp_path)
    assert failed(report) == ["Recall reaches the target"]
    assert report["runs"][0]["recall"]["mean"] < 0.9
    assert report["recommended"]["setting"] == "exact"
    level, text = opening(report)
    assert level == "poor"
    assert text.startswith("Too few of the right items are found: recall 0.")
    assert "for a target of 0.95" in text


def test_results_that_differ_between_repetitions_show(tiny, tmp_path, monkeypatch):
    search, calls = stcli.Retriever.search, []

    def drifting(self, vectors, filters, options, *more):
        results = search(self, vectors, filters, options, *more)
        calls.append(len(vectors))
        results.rows[0] = results.rows[0].roll(len(calls))
        return results

    monkeypatch.setattr(stcli.Retriever, "search", drifting)
    assert "Repetitions agree" in failed(run(tiny, tmp_path))


def test_the_papers_form_is_measured_as_retrieve_runs_it(tiny, tmp_path):
    index, model = tmp_path / "i.index", tmp_path / "m.safetensors"
    stcli.build_index(
        tiny.items, index, feature_columns=("color", "tags", "in_stock", "price", "year", "day"), clusters=32,
        preset="silvertorch", bloom_bits=512, bloom_hashes=1,
    )  # fmt: skip
    stcli.pack_model(index, model)
    half = ", ".join(f"'t{number:02d}'" for number in range(30))
    shapes = ("tags = 't{:02d}' AND NOT color = 'red'", f"NOT tags IN ({half})")
    texts = [shapes[number % 2].format(number % 60) for number in range(NUM_QUERIES)]
    table = pq.read_table(tiny.queries).set_column(2, "filter", pa.array(texts))
    pq.write_table(table, tmp_path / "q.parquet")
    stcli.bench(model, tmp_path / "q.parquet", tmp_path / "r", **{**OPTIONS, "repeat": 1, "probes": (4,)})
    report = read_report(tmp_path / "r")
    assert report["calibration"] is None
    assert report["runs"][0]["probes"] == 24
    # Bloom rows let wrong items through and, under NOT, hide right ones; nothing is verified, and the report says so.
    assert {"Every result satisfies its filter", "The filter hides nothing"} <= set(failed(report))
    assert "Scores belong to their items" not in failed(report)
    read_page(render(report))
