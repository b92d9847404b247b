"""`--log-json` and `--metrics`: a line of JSON for each event, and the summary in a file."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from stcli.cli.main import Terminated, run
from stcli.events import LOGGER, Stages, tell
from tests.conftest import Tiny

STAGES = {
    "build-index": ["read", "cluster", "assign", "quantize", "terms", "filter", "ids", "seal"],
    "pack-model": ["embeddings", "scoring", "write"],
    "retrieve": ["calibrate", "search", "audit"],
    "bench": ["calibrate", "measure", "latency", "truth"],
}


def words_of(tiny: Tiny, command: str) -> list[object]:
    return {
        "build-index": [command, tiny.items, "-o", "out", "--clusters", 8, "--feature-columns", "color"],
        "pack-model": [command, tiny.index, "-o", "out"],
        "retrieve": [command, tiny.model, tiny.queries, "-o", "out", "--filter-column", "filter", "--k", 5],
        "bench": [command, tiny.model, tiny.queries, "-o", "out", "--k", 5, "--sample", 8, "--repeat", 1],
    }[command]


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    yield call
    assert not LOGGER.isEnabledFor(logging.INFO)  # a command leaves no handler behind
    assert [type(handler) for handler in LOGGER.handlers] == [logging.NullHandler]


def lines(text: str) -> list[dict]:
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert list(line) == ["time", "level", "event", "stage", "fields"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in ("info", "warning", "error")
    return found


@pytest.mark.parametrize(
    "command", ["build-index", "pack-model", "retrieve", pytest.param("bench", marks=pytest.mark.slow)]
)
def test_every_stage_is_told_with_its_seconds(cli, tiny, command):
    code, out, _ = cli(*words_of(tiny, command), "--log-json", "log", "--metrics", "metrics.json", "--json")
    assert code == 0
    found = lines(Path("log").read_text())
    assert [line["stage"] for line in found if line["event"] == "stage_start"] == STAGES[command]
    ended = {line["stage"]: line["fields"]["seconds"] for line in found if line["event"] == "stage_end"}
    summary = json.loads(out)
    assert list(ended) == STAGES[command]
    assert ended.items() <= summary["timings_s"].items()
    progress = [line["fields"] for line in found if line["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]
    assert (found[-1]["event"], found[-1]["fields"]["command"]) == ("done", command)
    assert json.loads(Path("metrics.json").read_text()) == summary
    assert summary["memory_bytes"]["peak_private"] > 0


def test_parts_and_warnings(cli, tiny):
    code, _, err = cli(*words_of(tiny, "retrieve"), "--log-json", "log", "--part-rows", 50)
    assert code == 0
    found = lines(Path("log").read_text())
    parts = [line["fields"] for line in found if line["event"] == "part"]
    assert [(part["number"], part["queries"], part["resumed"]) for part in parts] == [
        (0, 50, False),
        (1, 50, False),
        (2, 20, False),
    ]
    (warning,) = [line for line in found if line["level"] == "warning"]
    assert (
        warning["fields"]["message"]
        == "13 filter values do not occur in the index and match nothing, such as color = 'no such colour'"
    )
    assert err == f"stcli: warning: {warning['fields']['message']}\n"
    record = json.loads(Path("out/_run.json").read_text())
    assert {"finished", "output", "timings_s", "queries_per_s", "memory_bytes", "retries"} == record.keys()
    assert record["retries"] == 0
    assert set(record["timings_s"]) == set(STAGES["retrieve"])


def test_on_stderr_there_is_nothing_else(cli, tiny):
    code, out, err = cli(*words_of(tiny, "retrieve"), "--log-json", "-", "--json")
    assert code == 0
    assert json.loads(out)["command"] == "retrieve"
    assert "warning" in [line["event"] for line in lines(err)]


def test_errors_are_told_and_the_log_goes_on_in_the_same_file(cli, tiny):
    words = [*words_of(tiny, "retrieve"), "--log-json", "log"]
    assert cli(*words, "--id-column", "nobody")[0] == 2
    (error,) = lines(Path("log").read_text())
    assert (error["level"], error["event"], error["fields"]["exit_code"]) == ("error", "error", 2)
    assert "nobody" in error["fields"]["message"]
    assert cli(*words)[0] == 0
    assert lines(Path("log").read_text())[0] == error


@pytest.mark.parametrize("command", STAGES)
def test_a_stop_is_clean_and_told(tiny, tmp_path, monkeypatch, command):
    """SIGTERM in the midst of the work: its exit code, nothing published, and only what --resume needs is kept."""
    monkeypatch.chdir(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise Terminated(143)

    for place in ("index.kmeans.train", "pipeline.pack_model._error_bounds", "pipeline.engine.Engine._answer"):
        monkeypatch.setattr(f"stcli.{place}", stop)
    monkeypatch.setattr("stcli.pipeline.bench.Bench._warm_up", stop)
    with pytest.raises(Terminated) as stopped:
        run([str(word) for word in [*words_of(tiny, command), "--log-json", "log"]])
    assert stopped.value.code == 143
    last = lines(Path("log").read_text())[-1]
    assert (last["event"], last["fields"]) == ("stopped", {"signal": "SIGTERM", "exit_code": 143})
    left = {path.name for path in Path().iterdir()}
    assert left == ({"log", "out.partial"} if command == "retrieve" else {"log"})


@pytest.mark.parametrize("option", ["--log-json", "--metrics"])
@pytest.mark.parametrize("path", ["no/such/folder/file", "."])
def test_a_file_that_cannot_be_written(cli, tiny, option, path):
    code, out, err = cli(*words_of(tiny, "pack-model"), option, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"stcli: error: {option} {path}: cannot be written")
    assert list(Path().iterdir()) == []


def test_a_handler_of_the_caller_hears_it(caplog):
    stages = Stages()
    with caplog.at_level(logging.INFO, "stcli"), stages("read"):
        tell("progress", stage="read", done=1)
    assert [record.getMessage() for record in caplog.records][:2] == ["stage_start read", "progress read done=1"]
    assert caplog.records[1].fields == {"done": 1}
    assert list(stages.seconds) == ["read"]
