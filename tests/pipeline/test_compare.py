import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.cli.main import run as command
from stcli.errors import InputError, ThresholdError
from stcli.measure.compare_reports import LESS, MORE, SAME, recall_change, speed_change
from stcli.measure.report import read_report, write_report
from stcli.pipeline import bench as module


@pytest.fixture(scope="module")
def report(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LATENCY_SECONDS", 0.02)
        patch.setattr(module, "STAGE_REPEATS", 1)
        stcli.bench(tiny.model, tiny.queries, folder, filter_column="filter", k=10, sample=60, repeat=3, probes=(4,))
    return folder


def edited(report, folder, edit):
    """A report like another, with some numbers changed."""
    body = {key: value for key, value in read_report(report).items() if key not in ("format", "version", "fingerprint")}
    body = json.loads(json.dumps(body))
    edit(body)
    folder.mkdir()
    write_report(folder, body)
    return folder


def spread(low, median, high):
    return {"low": low, "median": median, "high": high, "runs": [low, median, high]}


def test_a_throughput_changed_if_the_ranges_are_apart():
    assert speed_change(spread(9, 10, 11), spread(10.5, 12, 13))["change"] == SAME
    assert speed_change(spread(9, 10, 11), spread(12, 13, 14)) == {"before": 10, "after": 13, "change": MORE}
    assert speed_change(spread(9, 10, 11), spread(5, 6, 7))["change"] == LESS


def test_a_recall_changed_if_the_intervals_say_so():
    def part(mean, half):
        return {"mean": mean, "low": mean - half, "high": mean + half}

    # Half-intervals of 0.03 and 0.04 add up, as independent errors do, to 0.05.
    assert recall_change(part(0.90, 0.03), part(0.949, 0.04))["change"] == SAME
    assert recall_change(part(0.90, 0.03), part(0.951, 0.04))["change"] == MORE
    assert recall_change(part(0.90, 0.03), part(0.849, 0.04))["change"] == LESS
    assert recall_change({"mean": None}, part(0.9, 0.1))["change"] == "not defined"


def test_a_report_against_itself(report):
    told = stcli.compare(report, report)
    assert {line["change"] for line in told["recall"].values()} == {SAME}
    assert {line["change"] for line in told["queries_per_s"].values()} == {SAME}
    assert set(told["recall"]) == {"planned", "4 probes", "exact"}
    assert told["memory_bytes"] == {}
    assert not [text for text in told["warnings"] if "differs" in text]


def test_what_was_measured_otherwise_is_named_in_one_line(report, tmp_path):
    def otherwise(body):
        body["options"] |= {"filter_column": None, "sample": 50, "target_recall": 0.9, "items": "items.parquet"}
        body["queries"]["files"] = []

    told = stcli.compare(report, edited(report, tmp_path / "unfiltered", otherwise))
    assert [text for text in told["warnings"] if "differ" in text] == [
        "the settings differ, so the numbers may not compare: --filter-column (filter and none), --sample (60 and 50), "
        "--target-recall (0.95 and 0.9), --items (none and items.parquet)",
        "query table differs",
    ]


def test_thresholds_of_reports(report, tmp_path):
    def slower(body):
        speeds = body["runs"][0]["queries_per_s"]
        for name in ("low", "median", "high"):
            speeds[name] /= 1000
        body["runs"][0]["recall"] |= {"mean": 0.5, "low": 0.49, "high": 0.51}
        body["k"], body["machine"]["cpu"] = 11, "another"

    other = edited(report, tmp_path / "slow", slower)
    told = stcli.compare(report, other)
    assert told["queries_per_s"]["planned"]["change"] == told["recall"]["planned"]["change"] == LESS
    assert "the settings differ, so the numbers may not compare: --k (10 and 11)" in told["warnings"]
    assert any("processor differs" in text for text in told["warnings"])
    with pytest.raises(ThresholdError, match=r"throughput is down by 99\.9%, beyond --max-slowdown 0\.1") as caught:
        stcli.compare(report, other, max_slowdown=0.1)
    assert caught.value.summary["recall"]["planned"]["after"] == 0.5
    with pytest.raises(ThresholdError, match=r"planned recall is 0.5000, below --min-recall 0.9"):
        stcli.compare(report, other, min_recall=0.9)
    stcli.compare(other, report, max_slowdown=0.1, min_recall=0.4)


def retrieve(tiny, folder, **options):
    stcli.retrieve(tiny.model, options.pop("queries", tiny.queries), folder, filter_column="filter", **options)
    return folder


@pytest.fixture(scope="module")
def exact(tiny, tmp_path_factory):
    return retrieve(tiny, tmp_path_factory.mktemp("compare") / "exact", k=10, exact=True, part_rows=50)


def test_results_against_plain_sets(tiny, tmp_path, exact):
    other = retrieve(tiny, tmp_path / "one", k=10, probes=1)
    told = stcli.compare(exact, other)
    first = {line["query_id"]: line["item_id"] for line in pq.read_table(exact).to_pylist()}
    second = {line["query_id"]: line["item_id"] for line in pq.read_table(other).to_pylist()}
    shares = [
        len(set(mine) & set(second[query])) / max(len(mine), len(second[query]))
        for query, mine in first.items()
        if mine or second[query]
    ]
    assert told["overlap"]["mean"] == pytest.approx(np.mean(shares))
    assert told["overlap"]["mean"] < 1
    assert told["overlap"]["equal lists"] == sum(set(first[query]) == set(second[query]) for query in first)
    items = [{item for line in lists.values() for item in line} for lists in (first, second)]
    assert told["distinct_items"] == {"before": len(items[0]), "after": len(items[1])}
    assert (told["items_new"], told["items_gone"]) == (len(items[1] - items[0]), len(items[0] - items[1]))
    assert told["results"]["before"] == sum(map(len, first.values()))
    assert told["queries"] == {"in both": 120, "only before": 0, "only after": 0}
    assert 0 < told["share_of_top_items"]["before"] < 1


def test_equal_results_and_depth(exact):
    told = stcli.compare(exact, exact, min_recall=1.0)
    assert told["overlap"]["mean"] == 1
    assert told["overlap"]["equal lists"] == 120
    assert stcli.compare(exact, exact, k=3)["results"]["after"] < told["results"]["after"]


def test_queries_in_another_order_and_missing(tiny, tmp_path, exact):
    table = pq.read_table(tiny.queries)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(120)[:100]))
    pq.write_table(shuffled, tmp_path / "q.parquet")
    told = stcli.compare(exact, retrieve(tiny, tmp_path / "r", queries=tmp_path / "q.parquet", k=10, exact=True))
    assert told["overlap"]["mean"] == 1
    assert told["queries"] == {"in both": 100, "only before": 20, "only after": 0}


def test_what_cannot_be_compared(tiny, tmp_path, exact, report):
    with pytest.raises(InputError, match="expected two reports or two results directories"):
        stcli.compare(exact, report)
    with pytest.raises(InputError, match="--max-slowdown compares reports"):
        stcli.compare(exact, exact, max_slowdown=0.1)
    with pytest.raises(InputError, match="--explode"):
        stcli.compare(exact, retrieve(tiny, tmp_path / "rows", k=10, explode=True))
    with pytest.raises(InputError, match="--min-recall 2"):
        stcli.compare(exact, exact, min_recall=2)


def test_the_command(tiny, tmp_path, exact, report, capsys):
    other = retrieve(tiny, tmp_path / "one", k=10, probes=1)
    assert command(["compare", str(exact), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap"]["mean"] < 1
    assert command(["compare", str(exact), str(other), "--min-recall", "1"]) == 3
    captured = capsys.readouterr()
    assert "below --min-recall 1" in captured.err
    assert "distinct items" in captured.out
    assert command(["compare", str(report), str(report)]) == 0
    assert "within noise" in capsys.readouterr().out
    assert command(["compare", str(report), str(tmp_path / "nothing")]) == 2


def test_a_report_without_its_page_is_still_a_report(report, tmp_path):
    shutil.copytree(report, tmp_path / "r")
    (tmp_path / "r" / "report.html").unlink()
    assert stcli.compare(report, tmp_path / "r")["recall"]
