import re

import numpy as np
import pyarrow.parquet as pq
import pytest

import stcli
import yfcc10m
from stcli.measure import plots, trials
from stcli.pipeline import bench


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A made set in the track's formats, and what became of it."""
    track, out = tmp_path_factory.mktemp("track"), tmp_path_factory.mktemp("yfcc")
    yfcc10m.make(track, items=3000, queries=80, tags=200, dim=48, seed=1)
    yfcc10m.convert(track, out)
    return track, out


def test_formats_byte_for_byte(tmp_path):
    # Written by hand, as the track describes them: two rows of three columns; bags {1, 4} and {}; one query, k = 2.
    (tmp_path / "v").write_bytes(bytes([2, 0, 0, 0, 3, 0, 0, 0, 1, 2, 3, 250, 251, 252]))
    assert yfcc10m.read_vectors(tmp_path / "v").tolist() == [[1, 2, 3], [250, 251, 252]]
    numbers = b"".join(value.to_bytes(8, "little") for value in (2, 5, 2, 0, 2, 2))
    (tmp_path / "t").write_bytes(numbers + bytes([1, 0, 0, 0, 4, 0, 0, 0]) + bytes([0, 0, 128, 63] * 2))
    tags = yfcc10m.read_tags(tmp_path / "t")
    assert [tags.row(0).tolist(), tags.row(1).tolist()] == [[1, 4], []]
    assert tags.column(0, 2).to_pylist() == [[1, 4], []]
    assert tags.column(1, 2).to_pylist() == [[]]
    (tmp_path / "g").write_bytes(bytes([1, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0]) + bytes(8))
    assert yfcc10m.read_truth(tmp_path / "g").tolist() == [[9, 7]]
    (tmp_path / "v").write_bytes((tmp_path / "v").read_bytes()[:-1])
    with pytest.raises(SystemExit, match="has 13 bytes, its header says 14"):
        yfcc10m.read_vectors(tmp_path / "v")


def test_inner_products_order_as_distances(folders):
    track, _ = folders
    base, asked = yfcc10m.read_vectors(track / yfcc10m.BASE), yfcc10m.read_vectors(track / yfcc10m.QUERY)
    lift = yfcc10m.Lift.of(base)
    items, queries = lift.items(base).astype(np.float64), lift.queries(asked).astype(np.float64)
    assert items.shape[1] == 64
    distances = ((base.astype(np.float64)[None] - asked.astype(np.float64)[:, None]) ** 2).sum(2)
    centred = asked - lift.mean.astype(np.float64)
    expected = ((centred**2).sum(1)[:, None] - distances) / 2 + lift.centre
    # The last column is rounded to float32: 2^-24 of at most extra * scale.
    assert np.allclose(queries @ items.T, expected, atol=0.05)
    assert np.abs(items[:, 48:]).max() < 20 * np.abs(items[:, :48]).std()  # 8 bits serve all columns alike


def test_the_track_with_stcli(folders, tmp_path, monkeypatch, capsys):
    _, out = folders
    monkeypatch.setattr(bench, "LATENCY_SECONDS", 0.02)
    monkeypatch.setattr(bench, "STAGE_REPEATS", 1)
    monkeypatch.setattr(plots, "available", lambda: False)
    for name, value in (("LEAST_SECONDS", 0.0), ("RUN_SECONDS", 0.0)):
        monkeypatch.setattr(trials, name, value)
    reached = yfcc10m.measure(out, sample=80, against=["torch"])
    assert "exact" in reached
    told = capsys.readouterr().out
    assert "fastest with recall@10 of 0.9" in told
    assert re.search(r"with filters, mean recall 0.9: torch [\d,]+ queries/s, exact", told)
    model = stcli.open_artifact(out / "yfcc.safetensors")
    queries = pq.read_table(out / "queries.parquet")
    vectors = np.array(queries["embedding"].to_pylist(), np.float32)
    found = model(vectors, queries["filter"].to_pylist(), k=10, exact=True)
    truth = pq.read_table(out / "truth.parquet")["item_id"].to_pylist()
    assert [len(ids) for ids in found.item_ids] == [len(line) for line in truth]
    shared = [len(set(ids.tolist()) & set(line)) for ids, line in zip(found.item_ids, truth, strict=True)]
    assert sum(shared) >= 0.98 * sum(map(len, truth))  # equal distances may change places


def test_missing_files_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        yfcc10m.main(["convert", str(tmp_path), "--out", str(tmp_path / "o")])
    assert "base.10M.u8bin" in capsys.readouterr().err


def test_try_makes_and_converts_before_it_measures(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(yfcc10m, "measure", lambda *given: asked.append(given))
    yfcc10m.main(["try", str(tmp_path), "--items", "300", "--queries", "5", "--tags", "50", "--against", "faiss"])
    assert asked == [(tmp_path, 10_000, ["faiss"])]
    assert pq.read_metadata(tmp_path / "items.parquet").num_rows == 300
    assert pq.read_metadata(tmp_path / "truth.parquet").num_rows == 5
