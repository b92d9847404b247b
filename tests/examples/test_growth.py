"""The growth example at a toy size: a line for each setting, a table and a plot."""

from __future__ import annotations

import pytest

import growth as example


def test_writes_a_table_and_a_plot(tmp_path):
    pytest.importorskip("matplotlib")
    example.main(["--out", str(tmp_path), "--items", "2000,4000", "--k", "5,20", "--queries", "50"])
    lines = [line.split("|") for line in (tmp_path / "growth.md").read_text().splitlines() if line.startswith("| ")]
    assert [(line[1].strip(), line[3].strip()) for line in lines[1:]] == [
        (items, k) for items in ("2,000", "4,000") for k in ("5", "5", "20", "20")
    ]
    assert (tmp_path / "growth.svg").read_bytes().startswith(b"<?xml")
