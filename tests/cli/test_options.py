"""Where options come from: the command line, variables of the environment, a file, defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import read, retrieve


def found_k(cli, tiny, *more: object) -> int:
    words = ["retrieve", tiny.model, tiny.queries, "-o", "out", "--overwrite", "--limit", 1, "--json", *more]
    code, out, err = cli(*words)
    assert code == 0, err
    told = json.loads(out)
    assert told["options"]["k"] == len(read()[0]["item_id"])
    return told["options"]["k"]


def test_option_before_variable_before_file_before_default(cli, tiny, monkeypatch):
    assert found_k(cli, tiny) == 100
    Path("run.toml").write_text("k = 7\n")
    assert found_k(cli, tiny, "--config", "run.toml") == 7
    monkeypatch.setenv("STCLI_K", "6")
    assert found_k(cli, tiny) == 6
    assert found_k(cli, tiny, "--config", "run.toml") == 6
    assert found_k(cli, tiny, "--config", "run.toml", "--k", 5) == 5


def test_everything_may_stand_in_the_file(cli, tiny):
    Path("run.toml").write_text(
        'output = "there"\nk = 4\nfilter-column = "filter"\nexplain = true\ncolumns = ["filter"]\njson = true\n'
        "min_score = 0.5\ntarget-recall = 0.9\n"
    )
    code, out, _ = cli("retrieve", tiny.model, tiny.queries, "--config", "run.toml")
    assert code == 0
    options = json.loads(out)["options"]
    assert (options["k"], options["columns"], options["explain"], options["min_score"]) == (4, ["filter"], True, 0.5)
    assert Path("there/_manifest.json").exists()


def test_flags_as_variables(cli, tiny, monkeypatch):
    monkeypatch.setenv("STCLI_EXPLAIN", "1")
    monkeypatch.setenv("STCLI_JSON", "true")
    code, out, _ = cli(*retrieve(tiny))
    assert code == 0
    assert json.loads(out)["options"]["explain"] is True
    assert "route" in read()[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("filter-colum = 'x'", "'filter-colum' is no option of retrieve; did you mean 'filter-column'"),
        ("as_json = true", "'as_json' is no option of retrieve"),
        ("[retrieve]\nk = 3", "'retrieve' is no option of retrieve"),
        ("k = ", "--config run.toml: cannot be read"),
        ("k = 'many'", "--k"),
        ("k = 0", "--k"),
    ],
)
def test_a_bad_file_of_options(cli, tiny, content, message):
    Path("run.toml").write_text(content)
    code, out, err = cli(*retrieve(tiny)[:5], "--config", "run.toml")
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("out").exists()


def test_a_missing_file_of_options(cli, tiny):
    code, _, err = cli(*retrieve(tiny), "--config", "no.toml")
    assert code == 2
    assert "no.toml: cannot be read" in err
