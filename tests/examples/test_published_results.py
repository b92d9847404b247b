import pytest

import published_results
from stcli.measure import against
from stcli.pipeline import bench


def test_a_table_and_a_plot(tiny, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for owner, name, value in (
        (bench, "LATENCY_SECONDS", 0.02),
        (bench, "STAGE_REPEATS", 1),
        (against, "LEAST_SECONDS", 0.0),
        (against, "RUN_SECONDS", 0.0),
    ):
        monkeypatch.setattr(owner, name, value)
    published_results.main(
        ["--corpus", f"tiny={tiny.items},{tiny.queries}", "--out", str(tmp_path), "--against", "torch,paper",
         "--k", "10", "--sample", "60", "--repeat", "2", "--at", "0.9"]
    )  # fmt: skip
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "### tiny" in text
    assert "2,000 items of 16 dimensions, k = 10" in text
    assert "| without filters | exact | torch | exact | 1.0000 |" in text
    assert "one int8 scale for all items" in text
    assert "cannot express these filters" in text  # the tiny corpus asks for ranges
    assert "stcli bench" in text
    assert "<svg" in (tmp_path / "results.svg").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        published_results.main(["--corpus", "tiny", "--out", str(tmp_path)])
