"""The command line: exit code, stdout and stderr of every command."""

from __future__ import annotations

import errno
import io
import json
import re
import sys
from pathlib import Path

import pytest

import stcli
from stcli.cli import main
from tests import process
from tests.cli.conftest import read, retrieve

# ---- the commands ----------------------------------------------------------------------------------


def test_from_a_table_to_results(cli, tiny):
    """The commands of the README, word by word but for the columns."""
    ids = ["--id-column", "item_id", "--embedding-column", "embedding"]
    features = ["--feature-columns", "color,tags,price,year,in_stock,day"]
    code, out, err = cli("build-index", tiny.items, "-o", "items.index", *ids, *features, "--clusters", 32)
    assert (code, err) == (0, "")
    assert out.startswith("build-index")
    assert "2,000" in out
    code, out, err = cli("pack-model", "items.index", "-o", "model.safetensors")
    assert (code, err) == (0, "")
    assert re.search(r"outputs +model +model.safetensors", out)
    ids = ["--id-column", "query_id", "--embedding-column", "embedding", "--filter-column", "filter"]
    code, out, err = cli("retrieve", "model.safetensors", tiny.queries, "-o", "results", "--k", 100, *ids)
    assert code == 0
    unknown = "13 filter values do not occur in the index and match nothing, such as color = 'no such colour'"
    assert err == f"stcli: warning: {unknown}\n"
    assert re.search(r"counts +queries +120", out)
    assert sorted(path.name for path in Path().iterdir()) == ["items.index", "model.safetensors", "results"]
    assert [row["query_id"] for row in read("results")] == [f"q{number:03d}" for number in range(120)]
    # The same artifact as that of the fixture, and so the same results, byte by byte.
    assert Path("model.safetensors").read_bytes() == tiny.model.read_bytes()


@pytest.mark.parametrize("command", ["build-index", "pack-model", "retrieve", "inspect", "explain"])
def test_json_is_exactly_one_object(cli, tiny, command):
    words = {
        "build-index": [tiny.items, "-o", "out"],
        "pack-model": [tiny.index, "-o", "out"],
        "retrieve": [tiny.model, tiny.queries, "-o", "out", "--k", 3],
        "inspect": [tiny.model],
        "explain": [tiny.model, "--filter", "color = 'red' AND NOT tags = 't01'"],
    }[command]
    code, out, err = cli(command, *words, "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    told = json.loads(out)
    assert told["command"] == command
    if command in ("build-index", "pack-model", "retrieve"):
        assert {"version", "inputs", "options", "counts", "timings_s", "outputs"} <= told.keys()
        assert told["version"] == stcli.__version__
        assert told["timings_s"]["total"] >= 0


@pytest.mark.slow
def test_bench_writes_a_report(cli, tiny):
    pytest.importorskip("matplotlib")
    words = ["bench", tiny.model, tiny.queries, "-o", "report", "--k", 5, "--sample", 40, "--repeat", 1, "--json"]
    code, out, _ = cli(*words)
    assert code == 0
    assert json.loads(out)["command"] == "bench"
    assert {"report.json", "report.html"} <= {path.name for path in Path("report").iterdir()}
    assert cli(*words, "--min-recall", 1.1)[0] == 2


def test_quiet_and_json(cli, tiny):
    assert cli(*retrieve(tiny, "-q")) == (0, "", "")
    code, out, err = cli(*retrieve(tiny, "-q", "--json", "--overwrite"))
    assert (code, err) == (0, "")
    assert json.loads(out)["counts"]["queries"] == 120


def test_tables_are_plain_text_where_there_is_no_terminal(cli, tiny):
    _, out, _ = cli(*retrieve(tiny))
    assert "\x1b" not in out


def test_bars_are_on_stderr_of_a_terminal_only(cli, tiny, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    code, out, _ = cli(*retrieve(tiny, "--json"))
    assert code == 0
    assert json.loads(out)
    assert "retrieve" in shown.getvalue()
    assert "queries" in shown.getvalue()
    hidden = Terminal()
    monkeypatch.setattr(sys, "stderr", hidden)
    assert cli(*retrieve(tiny, "--no-progress", "--overwrite"))[0] == 0
    assert "%" not in hidden.getvalue()


def test_the_summary_names_what_ran(cli, tiny):
    _, out, _ = cli(*retrieve(tiny, "--json", "--backend", "torch", "--seed", 3))
    told = json.loads(out)
    assert told["device"].startswith("cpu")
    assert (told["options"]["seed"], told["options"]["backend"], told["options"]["k"]) == (3, "torch", 5)
    assert told["inputs"] == {"model": str(tiny.model), "queries": [str(tiny.queries)]}
    assert told["outputs"]["results"] == "out"


def test_pass_through_options(cli, tiny):
    cli("build-index", tiny.items, "-o", "index", "--feature-columns", "tags", "--keep-columns", "color,price")
    cli("pack-model", "index", "-o", "model")
    copied = ["--columns", "filter", "--item-columns", "price, color", "--explode", "--explain"]
    scores = ["--min-score", 1, "--score-dtype", "float16"]
    assert cli("retrieve", "model", tiny.queries, "-o", "out", "--limit", 4, "--k", 2, *copied, *scores)[0] == 0
    rows = read()
    assert list(rows[0]) == ["query_id", "filter", "item_id", "score", "price", "color", "status", "route", "probes",
                             "estimated", "admitted", "items_scored"]  # fmt: skip
    assert {row["query_id"] for row in rows} <= {"q000", "q001", "q002", "q003"}
    assert all(row["score"] >= 1 for row in rows)


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--id-column", "nope"], ["no column 'nope'", "--id-column", "query_id, embedding, filter"]),
        (["--embedding-column", "embeding"], ["did you mean 'embedding'"]),
        (["--filter-column", "nope"], ["no column 'nope'", "--filter-column"]),
        (["--columns", "a,b"], ["no column 'a'", "--columns"]),
        (["--item-columns", "title"], ["keeps no column 'title'"]),
        (["--filter", "colour = 'red'"], ["no feature 'colour'", "did you mean 'color'"]),
        (["--filter", "color = "], ["filter:", "^"]),
        (["--filter", "price = 'low'"], ["'price' is float", "write a number"]),
        (["--device", "gpu"], ["--device 'gpu'", "auto, cpu, cuda"]),
        (["--backend", "c"], ["backend 'c'"]),
        (["--rescore", "2"], ["--rescore 2", "at least 5"]),
        (["--exact", "--probes", "3"], ["--exact", "--probes"]),
        (["--score-dtype", "int8"], ["float32, float16, none"]),
        (["--memory-limit", "lots"], ["'lots'", "2GB"]),
        (["--embedding-column", "filter"], ["is string", "list of float"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_one_sentence_and_nothing_is_written(cli, tiny, change, words):
    code, out, err = cli(*retrieve(tiny, *change))
    assert (code, out) == (2, "")
    assert err.startswith("stcli: error: ")
    assert "Traceback" not in err
    assert all(word in err for word in words), err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retrieve", "MODEL", "QUERIES"], "Missing option '-o'"),
        (["retrieve", "MODEL", "-o", "out"], "Missing argument"),
        (["retrieve", "MODEL", "QUERIES", "-o", "out", "--k", "0"], "--k"),
        (["retrieve", "MODEL", "QUERIES", "-o", "out", "--k", "many"], "--k"),
        (["retrieve", "MODEL", "QUERIES", "-o", "out", "--filter-colum", "filter"], "--filter-column"),
        (["retreive", "MODEL"], "Did you mean 'retrieve'"),
        (["build_index", "x"], "Did you mean 'build-index'"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_say_which_and_how_to_get_help(cli, tiny, words, message):
    code, out, err = cli(*({"MODEL": tiny.model, "QUERIES": tiny.queries}.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert "-h" in err
    assert not list(Path().iterdir())


def test_missing_and_foreign_files(cli, tiny):
    Path("text").write_text("not a model")
    Path("short").write_bytes(tiny.model.read_bytes()[:-1000])
    expected = {tiny.folder / "nothing": "not there", tiny.index: "is a directory", "text": "safetensors",
                "short": "safetensors", tiny.queries: "safetensors"}  # fmt: skip
    for model, message in expected.items():
        code, out, err = cli("retrieve", model, tiny.queries, "-o", "out")
        assert (code, out) == (2, "")
        assert message in err
        assert str(model) in err
    for index in (tiny.folder / "nothing", tiny.model, tiny.folder):
        code, out, err = cli("pack-model", index, "-o", "out")
        assert (code, out) == (2, "")
        assert str(index) in err
    assert cli("build-index", "nothing.parquet", "-o", "out")[0] == 2
    assert not Path("out").exists()


def test_an_output_that_is_there(cli, tiny):
    for words in (
        ["build-index", tiny.items],
        ["pack-model", tiny.index],
        ["retrieve", tiny.model, tiny.queries, "--k", 2],
    ):
        assert cli(*words, "-o", words[0])[0] == 0
        before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
        code, out, err = cli(*words, "-o", words[0])
        assert (code, out) == (2, "")
        assert err == f"stcli: error: {words[0]}: already exists; choose another -o or add --overwrite to replace it\n"
        assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
        assert cli(*words, "-o", words[0], "--overwrite")[0] == 0
        assert cli(*words, "-o", f"no/{words[0]}")[0] == 2


def test_a_full_disk(cli, tiny, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out.partial")

    for words, where, name in (
        (["build-index", tiny.items], "stcli.storage.index_dir.np", "save"),
        (["pack-model", tiny.index], "stcli.storage.tensors.os", "fsync"),
        (["retrieve", tiny.model, tiny.queries], "stcli.storage.results.pq.ParquetWriter", "write_batch"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"{where}.{name}", full)
            code, out, err = cli(*words, "-o", "out")
        assert (code, out) == (1, "")
        assert err.startswith("stcli: error: out.partial")
        assert "disk is full" in err or "No space left" in err
        assert err.count("\n") == 1
        assert not Path("out").exists()


def test_verbose_adds_the_trace(cli, tiny):
    code, _, err = cli(*retrieve(tiny, "--id-column", "x", "-v"))
    assert code == 2
    assert "Traceback" in err
    assert "stcli: error: queries.parquet: no column 'x'" in err


def test_a_bug_keeps_its_trace(cli, tiny, monkeypatch):
    monkeypatch.setattr("stcli.pipeline.run.open_artifact", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli(*retrieve(tiny))


@pytest.mark.parametrize(("command", "kept"), [("retrieve", "--resume"), ("build-index", "nothing was written")])
def test_interrupted(cli, tiny, monkeypatch, command, kept):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stcli.pipeline.engine.Engine._answer", interrupt)
    monkeypatch.setattr("stcli.index.kmeans.train", interrupt)
    words = retrieve(tiny) if command == "retrieve" else [command, tiny.items, "-o", "out"]
    code, out, err = cli(*words)
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert kept in err
    assert Path("out.partial").exists() == (command == "retrieve")


def test_out_of_memory(cli, tiny, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("stcli.pipeline.engine.Engine._answer", full)
    code, out, err = cli(*retrieve(tiny))
    assert (code, out) == (1, "")
    assert "--batch-size" in err


# ---- as a process ----------------------------------------------------------------------------------


def test_a_process_without_warnings(tiny, tmp_path):
    words = retrieve(tiny, "--json", "--limit", 4)
    code, out, err = process.finish(*words, python=("-W", "error"), cwd=tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out)["counts"]["queries"] == 4


def test_a_process_that_fails(tiny, tmp_path):
    code, out, err = process.finish(*retrieve(tiny, "--id-column", "x"), cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("stcli: error: queries.parquet: no column 'x'")


def test_main_leaves_with_the_exit_code(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["stcli", "--version"])
    monkeypatch.setattr(main.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 0
