"""The commands as Python calls, on a made table: build, pack, open, search.

python examples/python_api.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stcli
from stcli.filters.tree import Compare, In


def make_items(path: Path, count: int = 5_000, dim: int = 32) -> np.ndarray:
    """Write items with a price, a language and tags; return their embeddings float32 [count, dim]."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((count, dim), dtype=np.float32)
    tags = np.array(["new", "sale", "classic", "award"])
    table = pa.table(
        {
            "item_id": np.arange(count),
            "embedding": pa.FixedSizeListArray.from_arrays(embeddings.reshape(-1), dim),
            "language": rng.choice(["de", "en", "fr"], count),
            "price": rng.integers(1, 100, count),
            "tags": [list(rng.choice(tags, rng.integers(0, 3), replace=False)) for _ in range(count)],
        }
    )
    pq.write_table(table, path)
    return embeddings


def main(folder: Path) -> None:
    """Build, pack, open and search in `folder`."""
    embeddings = make_items(folder / "items.parquet")
    stcli.build_index(folder / "items.parquet", folder / "items.index", overwrite=True)
    stcli.pack_model(folder / "items.index", folder / "model.safetensors", overwrite=True)

    model = stcli.open_artifact(folder / "model.safetensors")  # an nn.Module; its tensors are mapped, not read
    queries = embeddings[:3] + 0.1
    filters = [
        "language = 'de' AND price < 20",  # a text
        (Compare("language", "=", "en") | In("tags", ("award",))) & ~Compare("price", ">", 50),  # a tree
        None,  # no filter
    ]
    results = model(queries, filters, k=5)
    for query, (ids, scores) in enumerate(zip(results.item_ids, results.scores, strict=True)):
        print(f"query {query}: {filters[query]}")
        print("   " + ", ".join(f"{item} ({score:.2f})" for item, score in zip(ids, scores, strict=True)))

    exact = model(queries, filters, k=5, exact=True)
    print("same as the exact search:", all(map(np.array_equal, results.item_ids, exact.item_ids)))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
