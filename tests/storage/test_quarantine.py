"""Bad rows: the first one fails, or they are set aside with their reason."""

from __future__ import annotations

import errno

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stcli.errors import InputError, RunError
from stcli.storage.columns import BadRows
from stcli.storage.parquet import open_table
from stcli.storage.quarantine import Quarantine, rejected_path


@pytest.fixture
def table(tmp_path):
    pq.write_table(pa.table({"id": range(20)}), tmp_path / "items.parquet")
    return open_table(tmp_path / "items.parquet")


def bad_rows(count, reasons):
    bad = BadRows.none(count)
    for row, reason in reasons.items():
        bad.mark(np.arange(count) == row, reason)
    return bad


def test_fail_names_file_row_and_id(table):
    quarantine = Quarantine(table, "fail", 1.0)
    with pytest.raises(
        InputError, match=r"items.parquet: row 12 \(id 'x'\): too odd; mend it, or use --bad-rows quarantine"
    ):
        quarantine.take(10, bad_rows(4, {3: "too even", 2: "too odd"}), pa.array(["u", "v", "x", "y"]))


def test_fail_leaves_the_caret_under_a_filter_alone(table):
    with pytest.raises(InputError, match=r"\^\nmend it"):
        Quarantine(table, "fail", 1.0).add(0, 1, "filter: odd\n  x = $y\n      ^")


def test_quarantine_lists_them_in_table_order(table, tmp_path):
    quarantine = Quarantine(table, "quarantine", 0.5)
    quarantine.take(10, bad_rows(4, {3: "c", 2: "b"}), pa.array([1, 2, None, 4]))
    quarantine.add(3, "x", "a")
    assert len(quarantine) == 3
    assert quarantine.entries(1) == [(13, "4", "c"), (3, "x", "a")]
    path = quarantine.write(tmp_path / "out")
    assert path == tmp_path / "out.rejected.parquet"
    assert pq.read_table(path).to_pylist() == [
        {"row": 3, "id": "x", "reason": "a"},
        {"row": 12, "id": None, "reason": "b"},
        {"row": 13, "id": "4", "reason": "c"},
    ]


def test_rows_of_an_interrupted_run_are_taken_over_once(table):
    first, again = (Quarantine(table, "quarantine", 0.5) for _ in range(2))
    for row in (3, 9):
        first.add(row, row, "bad")
    again.add(9, 9, "bad")
    again.restore(first.entries())
    assert sorted(again.entries()) == first.entries()


def test_without_bad_rows_an_old_list_goes(table, tmp_path):
    rejected_path(tmp_path / "out").write_text("old")
    assert Quarantine(table, "quarantine", 0.5).write(tmp_path / "out") is None
    assert not rejected_path(tmp_path / "out").exists()


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.05, 1), (0.1, 2), (0.149, 2), (1.0, 20)])
def test_too_many_fail(table, share, allowed):
    quarantine = Quarantine(table, "quarantine", share)
    for row in range(allowed):
        quarantine.add(row, row, "bad")
    if allowed < 20:
        with pytest.raises(
            InputError, match=rf"{allowed + 1} bad rows so far, the last row 7 \(why\); more than --max-bad"
        ):
            quarantine.add(7, 7, "why")


def test_a_full_disk_leaves_no_half_list(table, tmp_path, monkeypatch):
    def full(_table, path):
        path.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    quarantine = Quarantine(table, "quarantine", 0.5)
    quarantine.add(1, 1, "bad")
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(RunError, match="the disk is full"):
        quarantine.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]
