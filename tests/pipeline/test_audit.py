"""`retrieve --audit`: the recall it states, and what happens below a threshold."""

from __future__ import annotations

import json

import numpy as np
import pytest

import stcli
from stcli.cli.main import run
from stcli.config import RetrieveConfig
from stcli.errors import InputError, ThresholdError
from stcli.pipeline.audit import check_thresholds
from tests.pipeline.retrieve_cases import FILTERED, contents, read, write_queries

ROUGH = {**FILTERED, "probes": 1, "seed": 3}


def recall_by_lists(found, true):
    """Mean share of each true list that is in the found one, empty lists left out."""
    shares = [len(set(a) & set(b)) / len(b) for a, b in zip(found, true, strict=True) if b]
    return np.mean(shares), len(shares)


def test_an_audit_of_every_query_is_the_recall_of_the_results(tiny, tmp_path):
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "rough", audit=500, **ROUGH)
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "exact", exact=True, **FILTERED)
    found, true = (read(tmp_path / name)["item_id"].to_pylist() for name in ("rough", "exact"))
    recall, defined = recall_by_lists(found, true)
    line = summary["audit"]["all queries"]
    assert (line["queries"], line["recall"]) == (defined, pytest.approx(recall))
    assert 0 < recall < 1
    assert line["low"] < recall < line["high"]
    plain = [number for number, text in enumerate(tiny.filters) if text is None]
    recall, defined = recall_by_lists([found[number] for number in plain], [true[number] for number in plain])
    assert summary["audit"]["no filter"]["queries"] == defined
    assert summary["audit"]["no filter"]["recall"] == pytest.approx(recall)
    bands = [line["queries"] for name, line in summary["audit"].items() if name != "all queries"]
    assert sum(bands) == summary["audit"]["all queries"]["queries"]
    kept = json.loads((tmp_path / "rough" / "_run.json").read_text())
    assert kept["audit"] == summary["audit"]


def test_an_audit_changes_no_result(tiny, tmp_path):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "plain", **ROUGH)
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "audited", audit=20, **ROUGH)
    assert contents(tmp_path / "plain") == contents(tmp_path / "audited")
    assert summary["audit"]["all queries"]["queries"] <= 20
    assert stcli.retrieve(tiny.model, tiny.queries, tmp_path / "none", **ROUGH)["audit"] is None


def test_an_audit_respects_exclusions(tiny, tmp_path):
    """Excluded items are no true results: the exact search of a run that is exact has a recall of 1."""
    best = stcli.open_artifact(tiny.model)(tiny.vectors, None, 3, exact=True)
    table = write_queries(tmp_path / "q.parquet", tiny.vectors, seen=[items.tolist() for items in best.item_ids])
    summary = stcli.retrieve(tiny.model, table, tmp_path / "out", k=10, exact=True, exclude_column="seen", audit=500)
    assert summary["audit"]["all queries"]["recall"] == 1.0


def test_a_missed_recall_keeps_the_parts_unpublished(tiny, tmp_path):
    with pytest.raises(ThresholdError, match=r"recall@10 of all queries is 0\.\d+ .*below --min-recall 0.99") as error:
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", min_recall=0.99, **ROUGH)
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "part-00000.parquet").exists()
    assert not (tmp_path / "out.partial" / "_manifest.json").exists()
    summary = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", min_recall=0.1, resume=True, **ROUGH)
    assert summary["counts"]["parts_resumed"] == 1
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "plain", **ROUGH)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


def test_a_missed_recall_of_one_band():
    """The mean of all is high enough, but one band is below with its whole interval, and is named."""
    audited = {
        "all queries": {"queries": 1000, "recall": 0.97, "low": 0.96, "high": 0.98},
        "no filter": {"queries": 900, "recall": 0.99, "low": 0.98, "high": 1.0},
        "2-10 %": {"queries": 40, "recall": 0.93, "low": 0.88, "high": 0.98},
        "> 10 %": {"queries": 60, "recall": 0.80, "low": 0.75, "high": 0.85},
    }
    with pytest.raises(ThresholdError, match=r"recall@100 of > 10 % is 0\.8000 .*out\.partial"):
        check_thresholds(RetrieveConfig(min_recall=0.95), audited, 1000, 0, "out.partial")
    del audited["> 10 %"]
    check_thresholds(RetrieveConfig(min_recall=0.95), audited, 1000, 0, "out.partial")


def test_too_many_short_queries(tiny, tmp_path):
    counts = stcli.retrieve(tiny.model, tiny.queries, tmp_path / "a", **FILTERED)["counts"]
    share = counts["short"] / counts["queries"]
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "b", max_short_fraction=share, **FILTERED)
    with pytest.raises(ThresholdError, match=rf"{counts['short']} of 120 queries have fewer than 10 results"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "c", max_short_fraction=share - 0.01, **FILTERED)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("wrong", [{"audit": 0}, {"min_recall": 1.5}, {"max_short_fraction": -0.1}], ids=str)
def test_values_that_make_no_sense(tiny, tmp_path, wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "out", **wrong)


def test_the_command_prints_the_audit_and_exits_with_3(tiny, tmp_path, capsys):
    words = ["retrieve", tiny.model, tiny.queries, "--filter-column", "filter", "--k", "10", "--probes", "1"]
    assert run([str(word) for word in [*words, "-o", tmp_path / "out", "--audit", "100"]]) == 0
    assert "all queries" in capsys.readouterr().out
    assert run([str(word) for word in [*words, "-o", tmp_path / "missed", "--min-recall", "1"]]) == 3
    assert "--min-recall" in capsys.readouterr().err
