import pyarrow.parquet as pq
import pytest

import published_results
import stcli
from stcli.measure import against, ceilings, plots, trials
from stcli.pipeline import bench

QUICK = [
    (bench, "LATENCY_SECONDS", 0.02), (bench, "STAGE_REPEATS", 1), (trials, "LEAST_SECONDS", 0.0),
    (trials, "RUN_SECONDS", 0.0), (against, "LONG_SECONDS", 0.0), (ceilings, "SIDE", 64),
    (ceilings, "COPIED_BYTES", 1 << 16),
]  # fmt: skip


def test_tables_a_plot_and_the_readme(tiny, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for owner, name, value in QUICK:
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(
        plots, "available", lambda: False
    )  # the pages of the reports; the picture is drawn all the same
    readme, out = tmp_path / "README.md", tmp_path / "reports" / "today"
    readme.write_text(f"before\n{published_results.BEGIN}\nold\n{published_results.END}\nafter\n", encoding="utf-8")
    plain = pq.read_table(tiny.queries).drop_columns(["filter"])
    pq.write_table(plain, tmp_path / "plain.parquet")
    published_results.main(
        ["--corpus", f"tiny={tiny.items},{tiny.queries}", "--corpus", f"plain={tiny.items},{tmp_path}/plain.parquet",
         "--out", str(out), "--work", str(tmp_path / "work"), "--readme", str(readme),
         "--against", "torch,paper", "--k", "10", "--sample", "60", "--repeat", "2", "--at", "0.9"]
    )  # fmt: skip
    text = (out / "results.md").read_text(encoding="utf-8")
    assert "### tiny" in text
    assert "2,000 items of 16 dimensions, k = 10" in text
    assert "| without filters | exact | torch | exact | 1.0000 |" in text
    assert (out / "plain" / "report.json").exists()
    picture = (out / "results.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg")
    assert "prefers-color-scheme: dark" in picture
    assert "http" not in picture.replace("http://www.w3.org/", "")
    told = readme.read_text(encoding="utf-8")
    assert told.startswith("before\n")
    assert told.endswith("after\n")
    assert "old" not in told.split("\n")
    assert "| tiny, with filters | 0.9 in every band |" in told
    assert "one int8 scale for all items" in told
    assert "cannot express: " in told  # the tiny corpus asks for ranges
    assert "| no filters |" in told
    assert "(reports/today/results.svg)" in told
    assert "again with: python examples/published_results.py --corpus" in capsys.readouterr().out
    # Reports that are there are put together again without measuring.
    monkeypatch.setattr(stcli, "bench", None)
    monkeypatch.setattr(plots, "contests", lambda panels, *_: f"<svg>{list(panels)}</svg>")
    again = ["--corpus", "plain=,gone", "--corpus", "tiny=,gone", "--at", "0.9", "--k", "10", "--keep"]
    published_results.main([*again, "--out", str(out), "--work", str(tmp_path), "--readme", str(readme)])
    assert "| plain, without filters | 0.9 |" in readme.read_text(encoding="utf-8")
    assert (out / "results.md").read_text(encoding="utf-8").startswith("### plain")
    assert "'plain, without filters', 'tiny, with filters'" in (out / "results.svg").read_text(encoding="utf-8")


def test_what_cannot_be_used(tiny, tmp_path):
    with pytest.raises(SystemExit):
        published_results.main(["--corpus", "tiny", "--out", str(tmp_path), "--work", str(tmp_path)])
    (tmp_path / "README.md").write_text("no marks", encoding="utf-8")
    with pytest.raises(SystemExit, match="put them where the results belong"):
        published_results.insert(tmp_path / "README.md", [])
