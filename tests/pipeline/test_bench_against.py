"""`bench --against`: others measured beside."""

import re

import pytest

import stcli
from stcli.cli.output import rows_of
from stcli.errors import InputError
from stcli.measure import against, trials
from stcli.measure.record import summarize
from stcli.measure.report import read_report
from tests.pipeline.bench_cases import OPTIONS, QUICK, _quick, careless, failed, made, opening, read_page, run  # noqa: F401


@pytest.fixture(scope="module")
def contest(tiny, tmp_path_factory):
    """A benchmark against the peers that are always there."""
    output = tmp_path_factory.mktemp("against") / "report"
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, value in QUICK:
            patch.setattr(owner, name, value)
        patch.setattr(trials, "LEAST_SECONDS", 0.0)
        patch.setattr(trials, "PILOT", 0)
        patch.setattr(trials, "RUN_SECONDS", 0.0)
        patch.setattr(against, "LONG_SECONDS", 0.0)
        patch.setattr(against, "missing", lambda name: "faiss is not installed; get it" if name == "faiss" else None)
        stcli.bench(
            tiny.model, tiny.queries, output, **{**OPTIONS, "repeat": 2, "probes": (4,)},
            against=("faiss", "torch", "paper"), compare_at=(0.9, 0.95),
        )  # fmt: skip
    return read_report(output), output


def test_against_others_at_equal_recall(contest):
    compared = contest[0]["against"]
    assert [workload["name"] for workload in compared["workloads"]] == ["with filters", "without filters"]
    assert [peer["name"] for peer in compared["peers"]] == ["torch", "silvertorch preset"]
    filtered, free = compared["workloads"]
    assert [entry["name"] for entry in filtered["contenders"]] == ["stcli", "torch"]
    assert [entry["name"] for entry in free["contenders"]] == ["stcli", "torch", "silvertorch preset"]
    ours = {line["name"]: line for line in filtered["contenders"][0]["settings"]}
    assert ours["exact"]["recall"]["mean"] == 1
    assert ours["exact"]["queries"] == 60
    assert filtered["contenders"][1]["settings"][0]["queries"] == 60  # a block of torch holds them all
    # What decides is timed in turns, ours too; the rest of ours keeps what `runs` has.
    assert len(ours["exact"]["queries_per_s"]["runs"]) == 2
    sweep = {line["name"]: line["queries_per_s"]["runs"] for line in contest[0]["runs"]}
    assert ours["exact"]["queries_per_s"]["runs"] != sweep["exact"]
    assert ours["4 probes"]["queries_per_s"]["runs"] == sweep["4 probes"]
    assert {"planned for 0.9", "planned for 0.95"} <= set(ours)
    assert filtered["contenders"][1]["settings"][0]["recall"]["mean"] > 0.999
    assert [table["target"] for table in free["matched"]] == [0.9, 0.95, 0.999]
    for table in free["matched"]:
        for line in table["lines"]:
            assert line["setting"] is None or line["recall"] >= table["target"]
    assert free["matched"][-1]["lines"][1]["ratio"]["low"] > 0
    checks = {check["name"]: check["ok"] for check in contest[0]["checks"]}
    assert checks["Others' exact search agrees with the truth"]
    worst = max(line["ineligible"] for line in free["contenders"][2]["settings"])
    assert worst == 0


def test_who_could_not_take_part_is_named(contest):
    report, output = contest
    left_out = {entry["name"]: entry["reason"] for entry in report["against"]["left_out"]}
    assert left_out["faiss"] == "faiss is not installed; get it"
    assert "with filters" in left_out["silvertorch preset"]  # the paper's form knows no ranges
    page = read_page((output / "report.html").read_text(encoding="utf-8"))
    assert "Not measured: faiss: faiss is not installed; get it" in page.text
    assert "Against others, with filters" in page.text
    assert "At recall@10 of 0.95, every band" in page.text


def test_the_summary_has_a_line_for_each_at_each_recall(contest):
    report, output = contest
    told = {name: text for _, name, text in rows_of(summarize(report, output))}
    line = report["against"]["workloads"][1]["matched"][-1]["lines"][1]
    assert line["name"] == "torch"
    found = re.fullmatch(
        r"([\d,.]+) queries/s, recall (\S+), stcli is (\S+) times as fast", told["torch, without filters, exact"]
    )
    assert float(found[1].replace(",", "")) == pytest.approx(line["queries_per_s"], rel=0.01)
    assert (float(found[2]), float(found[3])) == pytest.approx((line["recall"], line["ratio"]["median"]), abs=0.005)
    ours = told["stcli, with filters, recall 0.95, every band"]
    assert "queries/s, recall" in ours
    assert "times as fast" not in ours
    assert told["faiss, not measured"] == "faiss is not installed; get it"
    assert told["against"] == f"{report['timings_s']['against']:,.2f} s"  # of all the time


def test_against_needs_packed_embeddings(tiny, tmp_path):
    stcli.pack_model(tiny.index, tmp_path / "m.safetensors", embedding_dtype="none")
    with pytest.raises(InputError, match="--against builds the others from the packed embeddings"):
        stcli.bench(
            tmp_path / "m.safetensors",
            tiny.queries,
            tmp_path / "r",
            items=str(tiny.items),
            against=["torch"],
            **OPTIONS,
        )
    with pytest.raises(InputError, match="--against 'fais'"):
        run(tiny, tmp_path, against=["fais"])
    with pytest.raises(InputError, match="--compare-at 2"):
        run(tiny, tmp_path, compare_at=[2.0])
