"""The GPU report runs from end to end on a CPU at toy size, so that a GPU is not spent on a trivial mistake."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gpu_report
from gpu_bench import kernels, searches
from gpu_bench.record import Record
from stcli.ops import cuda
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING

SCRIPT = Path(__file__).parents[2] / "examples" / "gpu_report.py"


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Runs the script in this process; what it wrote and what it printed."""

    def run(*options):
        words = [str(SCRIPT), "--out", str(tmp_path), "--device", "cpu", "--size", "toy", *options]
        monkeypatch.setattr(sys, "argv", words)
        gpu_report.main()
        printed = capsys.readouterr()
        return json.loads((tmp_path / "report.json").read_text()), printed.out

    return run


def test_all_stages(report, tmp_path):
    data, _ = report()
    assert data["skipped"] == []
    stages = {row["stage"] for row in data["rows"]}
    assert stages == {"ceilings", "operations", "search", "ablations", "large"}
    exact = [row for row in data["rows"] if row["stage"] == "search" and row["name"].endswith("exact")]
    assert len(exact) == 2 * 2 * 2
    assert all(row["recall"] > 0.99 for row in exact)
    assert "none of these figures says anything about a GPU" in data["machine"]["device"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == 6


class Event:
    """Of a device that takes a millisecond for everything."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, end):
        return 1.0


@pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)
def test_with_the_kernels(report, monkeypatch):
    """What a GPU runs beside: its kernels one by one, and dp4a against mma."""
    monkeypatch.setitem(gpu_report.SIZES, "toy", ((600,), 20, (3,), 300))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for module in (gpu_report, kernels, searches):
        monkeypatch.setattr(module, "seconds_of", lambda device, work, **_: 1e-3 if work() is not None else None)
    with cuda.launching_with(Emulated()):
        data, _ = report("--backend", "cuda")
    assert data["skipped"] == []
    rows = [row for row in data["rows"] if row["stage"] == "kernels"]
    launched = {row["name"].rpartition(" ")[2] for row in rows}
    assert launched == {
        "filter_leaves", "filter_match", "filter_probes", "rescore", "score_dp4a", "score_mma_narrow",
        "score_mma_narrow_bounds", "select_keys", "sort_keys", "take_best", "verify_terms",
    }  # fmt: skip
    assert all(0 < row["share"] <= 1 for row in rows)
    selection = [row for row in data["rows"] if row["stage"] == "selection"]
    assert all(0 < row["share"] < 1 for row in selection)
    for name in ("search_rows, no filter, k=3", "by arithmetic: search_rows, no filter, k=3", "search_rows, filters"):
        assert sum(row["name"] == name for row in selection) == 1
    assert sum("with mma" in row["name"] or "with dp4a" in row["name"] for row in data["rows"]) == 2


def test_no_time_left(report, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 100)  # on a busy machine, to begin takes more than ten seconds
    data, out = report("--seconds", "0")
    assert data["rows"] == []
    assert len(data["skipped"]) == 4
    assert "left out: ceilings" in out


def test_a_measurement_that_does_not_end_is_given_up(report, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", -19.5)  # in half a second, with time left for other stages
    monkeypatch.setattr(gpu_report, "measure_ceilings", lambda record, small: time.sleep(60))
    data, out = report("--seconds", "20")
    assert data["skipped"][0] == "ceilings: failed with TimeoutError('the time is used up')"
    assert "left out: ceilings" in out


def test_a_stage_that_fails_costs_only_itself(tmp_path, capsys):
    record = Record(tmp_path, torch.device("cpu"), 100)
    with record.stage("first", 1):
        raise ValueError("no such kernel")
    with record.stage("second", 1) as more:
        assert more()
        record.add("second", "copy", ms=1.0)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["skipped"] == ["first: failed with ValueError('no such kernel')"]
    assert data["rows"] == [{"stage": "second", "name": "copy", "ms": 1.0}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("torch finds no usable GPU; on another machine try --device cpu --size toy")
