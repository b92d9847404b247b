"""Commands of the command line, called in this process."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stcli.cli.main import run
from tests.conftest import Tiny


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


def retrieve(tiny: Tiny, *more: object) -> list[object]:
    return ["retrieve", tiny.model, tiny.queries, "-o", "out", "--filter-column", "filter", "--k", 5, *more]


def read(path: str = "out") -> list[dict]:
    return pq.read_table(sorted(Path(path).glob("part-*.parquet"))).to_pylist()
