"""examples/show_results.py on a results directory written by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import show_results as example


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        ("snow", None, ["☃", "⛄", "❄"], ["SNOWMAN", "SNOWMAN WITHOUT SNOW", "SNOWFLAKE"], [0.9, 0.8, 0.25]),
        ("accent", "category = 'Mn'", ["\u0301", "\u200b"], ["COMBINING ACUTE ACCENT", "ZERO WIDTH SPACE"], [0.5, 0.4]),
        ("void [b]", "category = 'Zz'", [], [], []),
    ]
    for number, part in enumerate((rows[:2], rows[2:])):
        columns = dict(zip(example.COLUMNS, map(list, zip(*part, strict=True)), strict=True))
        pq.write_table(pa.table({"query_id": range(len(part)), **columns}), tmp_path / f"part-{number:05d}.parquet")
    (tmp_path / "_manifest.json").write_text("{}")
    return tmp_path


def shown(results: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    example.main([str(results), *options])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_phrases_filters_and_characters_are_printed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(results, capsys) == [
        "snow",
        "☃ SNOWMAN 0.900",
        "⛄ SNOWMAN WITHOUT SNOW 0.800",
        "❄ SNOWFLAKE 0.250",
        "",
        "accent, where category = 'Mn'",
        "◌\u0301 COMBINING ACUTE ACCENT 0.500",
        "ZERO WIDTH SPACE 0.400",
        "",
        "void [b], where category = 'Zz'",
        "(nothing is eligible)",
        "",
    ]


def test_top_and_queries_bound_what_is_printed(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(results, capsys, "--top", "1", "--queries", "1") == ["snow", "☃ SNOWMAN 0.900", ""]
