"""A build that fails or is killed half-way leaves the old index whole, and nothing beside it."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import stcli
from stcli.errors import InputError, RunError
from stcli.index import ingest, kmeans, write
from stcli.storage.index_dir import IndexWriter, open_index
from tests.index_tools import OPTIONS, mixed_items, tree
from tests.oracles_index import check_index


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A Parquet file of all kinds of features, and its columns."""
    folder = tmp_path_factory.mktemp("items")
    pq.write_table(pa.table(mixed_items()), folder / "items.parquet", row_group_size=64)
    return folder / "items.parquet", mixed_items()


STAGES = {
    "read": (ingest, "read_feature"),
    "cluster": (kmeans, "train"),
    "terms": (write, "write_terms"),
    "matrix": (write, "write_matrix"),
    "seal": (IndexWriter, "finish"),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(errno.ENOSPC, "No space left on device"), RunError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "Ctrl-C"],
)
def test_a_failure_half_way_keeps_the_old_index(tmp_path, table, monkeypatch, stage, error, seen):
    source, _ = table
    stcli.build_index(source, tmp_path / "out", feature_columns=["date"], **OPTIONS)
    before = tree(tmp_path)

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*STAGES[stage], fail)
    with pytest.raises(seen) as caught:
        stcli.build_index(source, tmp_path / "out", overwrite=True, **OPTIONS)
    if seen is RunError:
        assert caught.value.exit_code == 1
        assert "out.partial: the disk is full; nothing was published" in str(caught.value)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_all_of_the_old(tmp_path, table):
    source, columns = table
    stcli.build_index(source, tmp_path / "out", keep_columns=["string"], **OPTIONS)
    stcli.build_index(source, tmp_path / "out", overwrite=True, feature_columns=["date"], **OPTIONS)
    stcli.build_index(source, tmp_path / "new", feature_columns=["date"], **OPTIONS)
    assert tree(tmp_path / "out") == tree(tmp_path / "new")
    check_index(tmp_path / "out", columns, ["date"])


KILLED = """
import os, signal, sys, stcli
def progress(stage, done, total, unit):
    if stage == "quantize":
        os.kill(os.getpid(), signal.SIGKILL)
stcli.build_index(sys.argv[1], sys.argv[2], progress=progress, clusters=8)
"""


def test_a_killed_build_is_not_taken_for_an_index(tmp_path, table):
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, table[0], out], cwd=Path.cwd(), timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with pytest.raises(InputError, match="no whole index"):
        open_index(tmp_path / "out.partial")
    stcli.build_index(table[0], out, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
