"""The GPU report runs from end to end on a CPU at toy size, so that a GPU is not spent on a trivial mistake."""

import faulthandler
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import gpu_report
from gpu_bench import kernels, searches
from gpu_bench.launches import measure_launches
from gpu_bench.record import Record
from stcli.ops import cuda, scan_cuda
from stcli.ops.search_rows import search_rows
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.kernel_stand_in import StandIn
from tests.ops.search_cases import make_case

SCRIPT = Path(__file__).parents[2] / "examples" / "gpu_report.py"


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Runs the script in this process; what it wrote, what it printed and its exit code."""

    def run(*options):
        words = [str(SCRIPT), "--out", str(tmp_path), "--device", "cpu", "--size", "toy", *options]
        monkeypatch.setattr(sys, "argv", words)
        code = gpu_report.main(time.perf_counter())
        return read(tmp_path), capsys.readouterr().out, code

    yield run
    faulthandler.cancel_dump_traceback_later()


def read(folder):
    return json.loads((folder / "report.json").read_text())


def test_all_stages(report, tmp_path):
    data, _, code = report()
    assert code == 0
    assert data["skipped"] == []
    assert data["running"] == ""
    stages = {row["stage"] for row in data["rows"]}
    assert stages == {"ceilings", "operations", "search", "ablations", "large"}
    exact = [row for row in data["rows"] if row["stage"] == "search" and row["name"].endswith("exact")]
    assert len(exact) == 2 * 2 * 2
    assert all(row["recall"] > 0.99 for row in exact)
    assert "none of these figures says anything about a GPU" in data["machine"]["device"]
    page = (tmp_path / "report.html").read_text()
    assert page.count("<table>") == 6
    assert "Not finished" not in page


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
        data, _, code = report("--backend", "cuda")
    assert code == 0
    assert data["skipped"] == []
    rows = [row for row in data["rows"] if row["stage"] == "kernels"]
    launched = {row["name"].rpartition(" ")[2] for row in rows}
    assert launched == {
        "begin_clusters", "count_probes", "cut_rows", "cut_tiles", "filter_leaves", "filter_match", "filter_probes",
        "place_probes", "rescore", "score_dp4a", "score_mma_narrow", "score_mma_narrow_bounds", "select_keys",
        "sort_keys", "take_best", "verify_terms",
    }  # fmt: skip
    assert all(0 < row["share"] <= 1 for row in rows)
    unmeasured = {row["name"].rpartition(" ")[2] for row in rows if "of_copy" not in row}
    assert unmeasured == {"begin_clusters", "cut_rows", "cut_tiles", "filter_leaves"}
    selection = [row for row in data["rows"] if row["stage"] == "selection"]
    assert all(0 < row["share"] < 1 for row in selection)
    for name in ("search_rows, no filter, k=3", "by arithmetic: search_rows, no filter, k=3", "search_rows, filters"):
        assert sum(row["name"] == name for row in selection) == 1
    forms = [row["name"].partition(": ")[2] for row in data["rows"] if row["stage"] == "forms"]
    assert [f"no filter, {count} queries, {form}" for count in (1, 8, 16, 20) for form in ("mma", "dp4a")] == forms[:8]
    assert len(forms) == 8 + len(searches.SELECTIVE) * 2 * 2


@pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING)
@pytest.mark.parametrize("batch", [1, 20])
def test_each_form_of_scoring_runs_where_it_is_named(tmp_path, monkeypatch, batch):
    """The searches with `mma` have no pairs for another kernel, and those with `dp4a` neither."""
    corpus = gpu_report.make_corpus("R", 600, 20, torch.device("cpu"), "torch")
    device = Emulated()
    with_pairs = {}

    class Watched:
        def launch(self, source, kernel, grid, threads, shared_bytes, arguments):
            if kernel.startswith("score"):
                tiles = next(item for item in reversed(arguments) if getattr(item, "shape", (0,))[1:] == (4,))
                if bool((tiles[:, 1] > tiles[:, 0]).any()):
                    with_pairs.setdefault(record.running, set()).add(kernel)
            device.launch(source, kernel, grid, threads, shared_bytes, arguments)

    monkeypatch.setattr(searches, "SELECTIVE", (16,))
    monkeypatch.setattr(searches, "seconds_of", lambda device, work, **_: 1e-3 if work() is not None else None)
    record = Record(tmp_path, torch.device("cpu"), 1000)
    with cuda.launching_with(Watched()):
        searches.measure_forms(record, corpus, "cuda", batch)
    assert record.skipped == []
    assert len(with_pairs) == (4 if batch == 1 else 8 + 4)
    for name, found in with_pairs.items():
        assert found == {"score_mma_narrow" if name.endswith("mma") else "score_dp4a"}


@pytest.mark.parametrize("share", [16, 64])
def test_filters_of_a_known_rate(share):
    torch.manual_seed(1)
    words = searches.random_words(8, 100_001, share, torch.device("cpu"))
    assert words.shape == (8, 1563)
    counts = [sum((word % 2**64).bit_count() for word in line) for line in words.tolist()]
    assert all(abs(count - 100_001 / share) < 6 * (100_001 / share) ** 0.5 for count in counts)
    assert not bool((words[:, -1] >> (100_001 % 64)).any())


def test_bytes_of_a_selection(tmp_path, monkeypatch):
    """A sample and all rows, which are scored twice more for nobody: keys come from memory once where there are new."""
    case, batch, k0, needed = make_case(1, queries=6, rows=30_000, dim=32), 6, 132, {}

    class Counting(StandIn):
        def raise_thresholds(self, grid, keys, counts, *rest):
            needed["raise_thresholds"] = 8 * sum(counts.tolist()) + batch * 16
            super().raise_thresholds(grid, keys, counts, *rest)

        def select_keys(self, grid, keys, counts, capacity, k, most, *rest):
            many = [found for found in counts.tolist() if found > most]
            assert len(many) in (0, batch)
            needed["select_keys"] = needed.get("select_keys", 0) + 8 * sum(many) + batch * 24
            super().select_keys(grid, keys, counts, capacity, k, most, *rest)

        def sort_keys(self, grid, keys, counts, *rest):
            needed["sort_keys"] = 8 * sum(counts.tolist()) + batch * k0 * 12
            super().sort_keys(grid, keys, counts, *rest)

    def work():
        nobody = torch.full((batch,), -1)
        return search_rows(case.queries, case.index, None, nobody, k0=k0, backend="cuda")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(scan_cuda, "SORTED_AT_ONCE", 0)
    record = Record(tmp_path, torch.device("cpu"), 1000)
    with cuda.launching_with(Counting()):
        measure_launches(record, "search", work, {}, {"copy": 1e9})
    rows = {row["name"]: row for row in record.rows if row["stage"] == "kernels"}
    for kernel in ("raise_thresholds", "select_keys", "sort_keys"):
        row = rows[f"search: {kernel}"]
        assert row["bytes"] == needed[kernel]
        assert row["of_copy"] == pytest.approx(needed[kernel] / (row["ms"] * 1e-3) / 1e9)


# ---- recall --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filtered", [False, True])
def test_the_truth_is_that_of_float64(filtered):
    corpus = gpu_report.make_corpus("H", 700, 12, torch.device("cpu"), "torch")
    scores = corpus.queries.double() @ corpus.embeddings.values.double().T
    if filtered:
        words = searches.filter_match(corpus.matrix, corpus.program, backend="torch")
        bits = [[word >> bit & 1 for word in line for bit in range(64)][:700] for line in words.tolist()]
        scores[~torch.tensor(bits).bool()] = -torch.inf
    found = searches.baseline(corpus, 12, 10, filtered, "torch").rows
    for line, rows in zip(scores, found.tolist(), strict=True):
        best = line.sort(descending=True)
        expected = [row for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True) if score > -1e9]
        assert {row for row in rows if row >= 0} == set(expected[:10])


def test_the_recall_of_the_baseline_is_measured_too(tmp_path, monkeypatch):
    """A baseline that rounds to 8 bits is no truth: the exact search next to it is."""
    device, plain = torch.device("cpu"), searches.baseline

    def rounded(corpus, batch, k, filtered, backend, dtype=None):
        if dtype is None:
            return plain(corpus, batch, k, filtered, backend)
        return plain(corpus, batch, k, filtered, backend, torch.bfloat16)

    monkeypatch.setattr(searches, "baseline", rounded)
    record = Record(tmp_path, device, 1000)
    searches.measure_searches(record, gpu_report.make_corpus("R", 4000, 32, device, "torch"), "torch", 32, (100,))
    recall = {row["name"].rpartition(": ")[2]: row["recall"] for row in record.rows if "no filter" in row["name"]}
    assert recall["torch matmul, mask, topk"] < 0.999 < recall["exact"]


def test_queries_without_a_true_row_do_not_count():
    true = torch.tensor([[3, 5], [7, -1], [-1, -1]])
    assert searches.agreement(torch.tensor([[5, 1], [7, -1], [-1, -1]]), true) == 0.75


# ---- what fails ----------------------------------------------------------------------------------------------------


def test_no_time_left(report, monkeypatch):
    monkeypatch.setattr(gpu_report, "GRACE", 100)  # on a busy machine, to begin takes more than ten seconds
    data, out, code = report("--seconds", "0")
    assert code == 0
    assert data["rows"] == []
    assert len(data["skipped"]) == 5
    assert "left out: ceilings: copy: 0 s left, it needs 10" in out


@pytest.mark.slow
def test_a_kernel_that_hangs_ends_with_what_was_measured(tmp_path):
    """Python's lock is held by a C function that does not return: neither signals nor threads of Python get a turn."""
    hanging = f"""
        import ctypes, sys, time
        sys.path[:0] = [{str(SCRIPT.parent)!r}]
        import gpu_report
        def measure_ceilings(record, small):
            record.add("ceilings", "copy", gb_per_s=1.0)
            record.attempt("ceilings: matmul", lambda: ctypes.PyDLL(None).pause())
        gpu_report.measure_ceilings = measure_ceilings
        gpu_report.GRACE = -595
        sys.argv = ["", "--out", {str(tmp_path)!r}, "--device", "cpu", "--size", "toy", "--seconds", "600"]
        gpu_report.main(time.perf_counter())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(hanging)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert "in attempt" in done.stderr  # where it hung
    data = read(tmp_path)
    assert data["rows"] == [{"stage": "ceilings", "name": "copy", "gb_per_s": 1.0}]
    assert data["running"] == "ceilings: matmul"
    assert "it ran <b>ceilings: matmul</b>" in (tmp_path / "report.html").read_text()


def test_a_stage_that_fails_costs_only_itself(tmp_path):
    record = Record(tmp_path, torch.device("cpu"), 1000)

    def fails():
        raise ValueError("no such kernel")

    record.attempt("first", fails)
    record.attempt("second", lambda: record.add("second", "copy", ms=1.0))
    data = read(tmp_path)
    assert data["skipped"] == ["first: failed with ValueError('no such kernel')"]
    assert data["rows"] == [{"stage": "second", "name": "copy", "ms": 1.0}]
    assert record.failed


@pytest.mark.parametrize("seen", ["at once", "afterwards"])
def test_a_device_that_broke_is_not_asked_again(tmp_path, monkeypatch, seen):
    """After an illegal access every call of the CUDA runtime raises, and so does the one that would free memory."""
    healthy = True

    def call(*_):
        if not healthy:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def breaks():
        nonlocal healthy
        healthy = False
        if seen == "at once":
            call()

    monkeypatch.setattr(torch.cuda, "synchronize", call)
    monkeypatch.setattr(torch.cuda, "empty_cache", call)
    record = Record(tmp_path, torch.device("cuda"), 1000)
    record.attempt("first", lambda: record.add("first", "copy", ms=1.0))
    record.attempt("outer", lambda: (record.attempt("inner", breaks), record.attempt("next", pytest.fail)))
    record.attempt("last", pytest.fail)
    data = read(tmp_path)
    assert data["rows"] == [{"stage": "first", "name": "copy", "ms": 1.0}]
    failed = [text for text in data["skipped"] if "illegal memory access" in text]
    assert [text.partition(":")[0] for text in failed] == ["inner"] * len(failed) != []
    assert data["skipped"][len(failed) :] == [
        "next: the device cannot be used since 'inner'",
        "last: the device cannot be used since 'inner'",
    ]
    assert record.failed


def test_memory_that_is_short_breaks_nothing(tmp_path, monkeypatch):
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    record = Record(tmp_path, torch.device("cuda"), 1000)

    def fails():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    record.attempt("first", fails)
    assert record.attempt("second", lambda: 5) == 5


def test_kernels_that_cannot_run_are_said_to_be_missing(report, monkeypatch):
    """On a GPU whose driver fails afterwards, so that here nothing else runs."""
    why = "NVRTC, which compiles the kernels, was not found"
    skipped = "tests/test_gpu.py::test_rescore[1] SKIPPED (NVRTC...)\n\nSKIPPED [1] tests/test_gpu.py:60: " + why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "why_not", lambda device: why)
    monkeypatch.setattr(gpu_report, "run", lambda command, seconds: (skipped, 0))
    monkeypatch.setattr(gpu_report, "describe", lambda device: {"device": "a GPU"})
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    data, out, code = report("--device", "cuda")
    assert code == 1
    assert data["skipped"][0] == f"kernels: {why}; every figure here is one of the torch forms"
    assert data["skipped"][1] == f"tests: 1 skipped (tests/test_gpu.py:60: {why}): test_rescore[1]"
    assert data["skipped"][2] == "tests: ended with exit code 0, 0 passed, 0 did not"
    assert f"left out: kernels: {why}" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("torch finds no usable GPU; on another machine try --device cpu --size toy")
