import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import ExistsError, FormatError, InputError, ThresholdError
from stcli.measure.advice import command_line, recommend
from stcli.measure.report import read_report, render
from stcli.measure.verdict import reaches, show_short
from stcli.pipeline import bench as module
from tests.conftest import NUM_ITEMS, NUM_QUERIES, lists
from tests.pipeline.bench_cases import OPTIONS, _quick, careless, failed, made, opening, read_page, run  # noqa: F401


def test_settings_and_their_recall(made):
    _, report, _, _ = made
    assert [(line["name"], line["kind"], line["probes"]) for line in report["runs"]] == [
        ("planned", "planned", None),
        ("4 probes", "probes", 4),
        ("32 probes", "probes", 32),
        ("exact", "exact", None),
    ]
    recall = {line["name"]: line["recall"]["mean"] for line in report["runs"]}
    assert recall["4 probes"] < recall["32 probes"] <= 1
    # float16 packing moves scores by up to 2^-11, so a few items at place k differ from the originals' best.
    assert recall["exact"] > 0.97
    assert report["runs"][3]["recall_packed"]["mean"] == 1
    assert report["truth"]["over"] == "original embeddings"
    assert failed(report) == []


def test_counts(made):
    _, report, _, _ = made
    queries = report["queries"]
    assert (queries["rows"], queries["sampled"], queries["rejected"]) == (NUM_QUERIES, 60, 0)
    for line in report["runs"]:
        assert sum(band["queries"] for band in line["bands"]) == 60 - queries["nothing_eligible"]
        assert (line["ineligible"], line["incomplete"], line["repeated"], line["differs"]) == (0, 0, 0, 0)
        assert len(line["queries_per_s"]["runs"]) == 2
        assert line["queries_per_s"]["low"] <= line["queries_per_s"]["median"] <= line["queries_per_s"]["high"]
    assert report["runs"][3]["short"] >= queries["nothing_eligible"] > 0
    assert report["filter"]["hidden"] == 0


def test_latency_stages_memory_and_sizes(made):
    _, report, _, _ = made
    assert [line["batch_size"] for line in report["latency"]] == [1, 16, 25]
    for line in report["latency"]:
        assert 0 < line["ms"]["p50"] <= line["ms"]["p95"] <= line["ms"]["p99"]
    assert report["latency"][2]["batches"] >= 4  # two repetitions of 60 queries in batches of 25, of which two are full
    assert {"plan filters", "filter_match", "quantize_rows", "rescore", "everything else"} <= set(report["stages_s"])
    work = sum(report["stages_s"][name] for name in ("plan filters", "filter_match", "count_bits"))
    assert 60 * report["filter"]["us_per_query"] >= 0.99e6 * work > 0
    assert report["memory_bytes"]["peak_private"] >= report["memory_bytes"]["before"]
    sizes = report["index_bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name != "total")
    assert sizes["embeddings"] == NUM_ITEMS * (16 * 2 + 1)


def test_what_it_says_about_itself(tiny, made):
    _, report, output, _ = made
    assert report["artifact"]["fingerprint"] == stcli.open_artifact(tiny.model).fingerprint
    assert {"stcli", "python", "torch", "numpy"} <= set(report["versions"])
    assert report["machine"]["cores"] >= 1
    assert report["command"] == (
        f"stcli bench {tiny.model} {tiny.queries} -o {output} --filter-column filter --k 10 --sample 60 --repeat 2 "
        f"--probes 4,32 --items {tiny.items} --batch-size 25"
    )
    assert report["recommended"]["command"].startswith(f"stcli retrieve {tiny.model} {tiny.queries} -o results --k 10")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", report["date"])


def test_summary_and_progress(made):
    summary, report, output, seen = made
    assert summary["command"] == "bench"
    assert summary["outputs"] == {"report": str(output), "page": str(output / "report.html")}
    assert summary["fingerprint"] == report["fingerprint"]
    assert summary["recall"]["planned"] == report["runs"][0]["recall"]["mean"]
    json.dumps(summary)
    stages = {stage for stage, *_ in seen}
    assert {"warm up", "measure", "latency", "truth"} <= stages
    assert all(0 <= done <= total for _, done, total, _ in seen)


def test_the_same_seed_gives_the_same_recall(tiny, tmp_path, made):
    _, report, _, _ = made
    again = run(tiny, tmp_path, items=str(tiny.items))
    assert again["runs"][0]["recall"] == report["runs"][0]["recall"]
    assert again["runs"][1]["recall"] == report["runs"][1]["recall"]


def test_recall_below_the_minimum(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "calibrate", careless)
    with pytest.raises(ThresholdError, match=r"recall@10 is 0\.\d+, below --min-recall 0.99"):
        run(tiny, tmp_path, min_recall=0.99)
    assert read_report(tmp_path / "r")["runs"]


def test_bad_queries_are_left_out_and_counted(tiny, tmp_path):
    vectors = tiny.vectors.copy()
    vectors[3, 2] = np.nan
    filters = list(tiny.filters)
    filters[5] = "colour = 'red'"
    table = pa.table(
        {"query_id": np.arange(NUM_QUERIES), "embedding": lists(vectors), "filter": pa.array(filters, pa.string())}
    )
    pq.write_table(table, tmp_path / "q.parquet")
    stcli.bench(
        tiny.model, tmp_path / "q.parquet", tmp_path / "r", **{**OPTIONS, "sample": 1000, "repeat": 1, "probes": (4,)}
    )
    queries = read_report(tmp_path / "r")["queries"]
    assert (queries["sampled"], queries["rejected"]) == (NUM_QUERIES - 2, 2)
    assert any("NaN" in reason for reason in queries["reasons"])
    assert any("colour" in reason for reason in queries["reasons"])


def test_no_usable_query(tiny, tmp_path):
    table = pq.read_table(tiny.queries).set_column(2, "filter", pa.array(["colour = 'red'"] * NUM_QUERIES))
    pq.write_table(table, tmp_path / "q.parquet")
    with pytest.raises(InputError, match=r"none of 60 queries can be used; row .*colour"):
        stcli.bench(tiny.model, tmp_path / "q.parquet", tmp_path / "r", **OPTIONS)
    assert not (tmp_path / "r").exists()


def test_artifact_without_embeddings_needs_the_items(tiny, tmp_path):
    stcli.pack_model(tiny.index, tmp_path / "m.safetensors", embedding_dtype="none")
    with pytest.raises(InputError, match="--items"):
        stcli.bench(tmp_path / "m.safetensors", tiny.queries, tmp_path / "r", **OPTIONS)
    stcli.bench(
        tmp_path / "m.safetensors", tiny.queries, tmp_path / "r", items=str(tiny.items),
        **{**OPTIONS, "repeat": 1, "probes": (32,)},
    )  # fmt: skip
    report = read_report(tmp_path / "r")
    assert report["index_bytes"]["embeddings"] == 0
    assert 0.8 < report["runs"][1]["recall"]["mean"] < 1


def test_items_that_are_not_those_of_the_artifact(tiny, tmp_path):
    items = pq.read_table(tiny.items)
    pq.write_table(items.slice(1), tmp_path / "fewer.parquet")
    with pytest.raises(InputError, match=r"no usable embedding for item .* and 0 more of 2000"):
        run(tiny, tmp_path, items=str(tmp_path / "fewer.parquet"))
    narrow = items.set_column(1, "embedding", lists(np.zeros((NUM_ITEMS, 3), np.float32)))
    pq.write_table(narrow, tmp_path / "narrow.parquet")
    with pytest.raises(InputError, match="has 3 dimensions, the artifact 16"):
        run(tiny, tmp_path, items=str(tmp_path / "narrow.parquet"))
    assert not (tmp_path / "r").exists()


def test_output_exists(tiny, tmp_path):
    (tmp_path / "r").mkdir()
    with pytest.raises(ExistsError, match="already exists"):
        run(tiny, tmp_path)


def test_k_above_the_items(tiny, tmp_path):
    report = run(tiny, tmp_path, k=5000, sample=3, probes=(32,))
    assert report["k"] == NUM_ITEMS
    assert report["runs"][-1]["recall"]["mean"] == 1


def test_an_edited_record_is_refused(made, tmp_path):
    shutil.copytree(made[2], tmp_path / "r")
    text = (tmp_path / "r" / "report.json").read_text(encoding="utf-8")
    (tmp_path / "r" / "report.json").write_text(text.replace('"ineligible": 0', '"ineligible": 1'), encoding="utf-8")
    with pytest.raises(FormatError, match="edited"):
        read_report(tmp_path / "r")


def test_command_line_quotes_and_leaves_defaults_out():
    from stcli.config import BenchConfig

    config = BenchConfig(probes=[1, 2], filter_column="my filter", overwrite=True)
    assert (
        command_line("m", ["a", "b"], "out", config)
        == "stcli bench m a b -o out --filter-column 'my filter' --probes 1,2"
    )


def test_recall_against_given_lists(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "exact", k=10, exact=True, filter_column="filter")
    report = run(tiny, tmp_path, truth=str(tmp_path / "exact"))
    assert report["truth"]["over"] == "given lists"
    assert report["runs"][-1]["recall"]["mean"] == 1
    assert report["runs"][1]["recall"]["mean"] == pytest.approx(
        report["runs"][1]["recall_exact"]["mean"], abs=0.02
    )  # twins tie
    assert "Truth: the lists in" in read_page(render(report)).text
    # Half of each list replaced by items that nobody returns: recall halves, and the page opens with that.
    halved = pq.read_table(tmp_path / "exact").to_pylist()
    lists = pa.array(
        [[item if place % 2 else -1 - place for place, item in enumerate(line["item_id"])] for line in halved]
    )
    ids = pa.array([line["query_id"] for line in halved])
    pq.write_table(pa.table({"query_id": ids, "best": pa.array(lists)}), tmp_path / "t.parquet")
    report = run(tiny, tmp_path, truth=str(tmp_path / "t.parquet"), truth_column="best", overwrite=True)
    assert report["runs"][-1]["recall"]["mean"] == pytest.approx(0.5, abs=0.05)
    assert opening(report)[0] == "poor"


def test_relevant_items_and_cost(tiny, tmp_path):
    exact = stcli.open_artifact(tiny.model)(tiny.vectors, tiny.filters, 10, exact=True)
    third = [ids[2:3].tolist() if len(ids) > 2 else [] for ids in exact.item_ids]
    table = pq.read_table(tiny.queries).append_column("liked", pa.array(third, pa.list_(pa.int64())))
    pq.write_table(table, tmp_path / "q.parquet")
    stcli.bench(
        tiny.model, tmp_path / "q.parquet", tmp_path / "r", relevant_column="liked", price_per_hour=3.6,
        **{**OPTIONS, "repeat": 1, "probes": (4,)},
    )  # fmt: skip
    report = read_report(tmp_path / "r")
    best = report["runs"][-1]["relevance"]
    assert best["hit_rate"]["mean"] == best["recall"]["mean"] == 1
    assert best["ndcg"]["mean"] == pytest.approx(0.5)  # third place: 1 / log2(4)
    assert report["runs"][1]["relevance"]["ndcg"]["mean"] < 0.5
    assert report["cost"]["per_million"] == pytest.approx(1000 / report["runs"][0]["queries_per_s"]["median"])
    page = read_page((tmp_path / "r" / "report.html").read_text(encoding="utf-8"))
    assert "NDCG@10" in page.text
    assert "Cost of a million queries" in page.text
    with pytest.raises(InputError, match="--relevant-column"):
        run(tiny, tmp_path, relevant_column="likes", overwrite=True)
    with pytest.raises(InputError, match="--price-per-hour"):
        run(tiny, tmp_path, price_per_hour=0.0, overwrite=True)


def test_recommended_setting():
    from stcli.config import BenchConfig

    def line(name, kind, mean, band, speed):
        return {
            "name": name,
            "kind": kind,
            "probes": 8,
            "recall": {"mean": mean},
            "bands": [
                {"band": "no filter", "queries": 90, "mean": band, "high": band + 0.01},
                {"band": "> 10 %", "queries": 0, "mean": None, "high": None},
            ],
            "queries_per_s": {"median": speed},
        }

    runs = [
        line("planned", "planned", 0.96, 0.95, 50),
        line("8", "probes", 0.97, 0.80, 90),
        line("exact", "exact", 1, 1, 9),
    ]
    assert recommend(runs, "m", ["q"], BenchConfig())["command"].endswith("--target-recall 0.95")
    assert recommend(runs, "m", ["q"], BenchConfig(target_recall=0.99))["command"].endswith("--exact")
    assert recommend(runs, "m", ["q"], BenchConfig(target_recall=0.75))["command"].endswith("--probes 8")
    assert not recommend(runs[1:2], "m", ["q"], BenchConfig())["reaches_target"]
    noisy = [line("planned", "planned", 0.97, 0.949, 50), line("8", "probes", 0.97, 0.949, 90), runs[2]]
    assert (reaches(noisy[0], 0.95), recommend(noisy, "m", ["q"], BenchConfig())["setting"]) == (True, "planned")
    assert show_short(noisy[0], 0.95) == "no filter (0.9490, within the noise of 90 queries)"
    low = [line("planned", "planned", 0.97, 0.93, 50), *noisy[1:]]
    assert (reaches(low[0], 0.95), recommend(low, "m", ["q"], BenchConfig())["setting"]) == (False, "exact")
    assert show_short(low[0], 0.95) == "no filter (0.9300)"
    assert show_short(runs[0], 0.95) == ""


@pytest.mark.parametrize(
    ("option", "value"), [("probes", (0,)), ("min_recall", 1.5), ("target_recall", 0), ("repeat", 0), ("sample", 0)]
)
def test_options_that_mean_nothing(tiny, tmp_path, option, value):
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} "):
        run(tiny, tmp_path, **{option: value})
