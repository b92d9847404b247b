import pyarrow.parquet as pq
import pytest

import recall_on_real_data
from tests.conftest import NUM_QUERIES


def test_reaches_the_target_on_stretched_rows_too(tiny, tmp_path, capsys):
    corpus = f"tiny={tiny.items},{tiny.queries}"
    recall_on_real_data.main(["--corpus", corpus, "--work", str(tmp_path / "w"), "--k", "10", "--target", "0.9"])
    text = capsys.readouterr().out
    assert f"| tiny | {NUM_QUERIES} | all queries | " in text
    assert f"| tiny, log-normal rows | {NUM_QUERIES} | " in text
    assert "**no**" not in text
    ids = [pq.read_table(path, columns=["item_id"]) for path in (tiny.items, tmp_path / "w" / "stretched.parquet")]
    assert ids[0].equals(ids[1])
    with pytest.raises(SystemExit):
        recall_on_real_data.main(["--corpus", "tiny", "--work", str(tmp_path / "w")])
