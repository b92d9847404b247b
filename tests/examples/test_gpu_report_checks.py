"""What the GPU report says of the tests and sanitizers that it runs."""

import json
import sys
import textwrap

import pytest
import torch

import gpu_report
from gpu_bench.record import Record


def test_what_became_of_each_test(tmp_path, monkeypatch):
    (tmp_path / "test_some.py").write_text(
        textwrap.dedent("""
            import pytest
            pytestmark = pytest.mark.gpu
            @pytest.mark.parametrize("word", ["a b", "c"])
            def test_right(word): pass
            def test_wrong(): assert False, "PASSED"
            def test_elsewhere(): pytest.skip("no kernels: here")
        """)
    )
    monkeypatch.setattr(gpu_report, "TESTS", str(tmp_path / "test_some.py"))
    record = Record(tmp_path, torch.device("cpu"), 1000)
    gpu_report.run_tests(record)
    row, what = record.rows
    assert row | {"exit_code": 1, "passed": 2, "failed": 1, "skipped": 1} == row
    assert what["text"] == "failed test_wrong"
    assert record.failed
    assert record.skipped[0].startswith("tests: 1 skipped (")
    assert record.skipped[0].endswith("no kernels: here): test_elsewhere")
    assert record.skipped[1] == "tests: ended with exit code 1, 2 passed, 1 did not"


def test_what_was_printed_before_the_time_ran_out(tmp_path, monkeypatch):
    """And a process that was started by the one that is ended does not hold it up."""
    text, code = gpu_report.run(["sh", "-c", "echo a.py::test_one PASSED; printf 'a.py::test_two '; sleep 600"], 3)
    assert (text, code) == ("a.py::test_one PASSED\na.py::test_two ", gpu_report.TIMED_OUT)
    monkeypatch.setattr(gpu_report, "run", lambda command, seconds: (text, code))
    record = Record(tmp_path, torch.device("cpu"), 1000)
    gpu_report.run_tests(record)
    assert record.rows[0] == {
        "stage": "tests", "name": "pytest -m gpu", "exit_code": 124, "passed": 1, "unfinished": 1
    }  # fmt: skip
    assert record.rows[1]["text"] == "unfinished test_two"
    assert record.skipped == ["tests: ran out of time, 1 passed, 1 did not"]
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == record.rows


def test_each_tool_of_the_sanitizer_has_its_own_time(tmp_path, monkeypatch):
    ends = {
        "memcheck": ("========= ERROR SUMMARY: 0 errors\n3 passed in 2 s", 0),
        "racecheck": ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 9),
        "synccheck": ("========= COMPUTE-SANITIZER", gpu_report.TIMED_OUT),
    }
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_report, "run", lambda command, seconds: ends[command[2]])
    record = Record(tmp_path, torch.device("cpu"), 1000)
    gpu_report.run_sanitizers(record)
    assert [(row["name"], row["exit_code"]) for row in record.rows] == [
        ("compute-sanitizer memcheck", 0),
        ("compute-sanitizer racecheck", 9),
        ("compute-sanitizer synccheck", 124),
    ]
    assert "2 hazards" in record.rows[1]["text"]
    failed, left_out = record.skipped
    assert failed.startswith("sanitizer: racecheck ended with exit code 9: ")
    assert left_out == "sanitizer: synccheck was not done in 30 s"


def test_a_sanitizer_that_saw_no_test_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: name)
    monkeypatch.setattr(gpu_report, "run", lambda command, seconds: ("3 skipped in 1 s", 0))
    record = Record(tmp_path, torch.device("cpu"), 1000)
    gpu_report.run_sanitizers(record)
    assert record.failed
    assert record.skipped[0] == "sanitizer: memcheck ended with exit code 0: 3 skipped in 1 s"


@pytest.mark.slow
def test_the_sanitizer_has_tests_to_run():
    for tests in {tests for tests, _ in gpu_report.SANITIZED.values()}:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-k", tests, gpu_report.TESTS]
        text, code = gpu_report.run(command, 300)
        assert code == 0, text
        assert f"{gpu_report.TESTS}::test_search_clusters[cuda-odd_width]" in text
        assert "emulation" not in text
