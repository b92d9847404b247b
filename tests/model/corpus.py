"""Small corpora packed into models, and the true best items of a query by brute force in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import stcli
from stcli.filters.parse import parse
from stcli.model.results import Results
from stcli.model.retriever import Retriever
from tests.conftest import lists
from tests.oracles_tree import eligible_rows


@dataclass(frozen=True)
class Corpus:
    """A packed model and what went into it.

    Attributes:
        path: the artifact.
        model: the artifact, opened.
        ids: of the items, in table order.
        vectors: float64 [N, D] as they are scored: normalised, rounded to the packed precision.
        item_rows: the features of the items as Python objects.
        cosine: queries are normalised.
    """

    path: Path
    model: Retriever
    ids: list[Any]
    vectors: np.ndarray
    item_rows: list[dict]
    cosine: bool

    def eligible(self, text: str | None) -> np.ndarray:
        return np.array(eligible_rows(self.item_rows, parse(text) if text else None))


def packed_values(embeddings: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of embeddings float32 [N, D] when they are packed: float16 times a power of two of each row."""
    if dtype != "float16":
        return embeddings.astype(np.float64)
    largest = np.abs(embeddings).max(1, keepdims=True)
    unit = 2.0 ** (np.frexp(np.where(largest > 0, largest, 1))[1] - 15.0)
    return (embeddings / unit).astype(np.float16).astype(np.float64) * unit


def make(
    folder: Path,
    embeddings: np.ndarray,
    *,
    ids: Sequence[Any] | None = None,
    features: dict[str, Any] | None = None,
    dtype: str = "float16",
    wide: np.ndarray | None = None,
    **build: Any,
) -> Corpus:
    """Build and pack a corpus; `wide` are second embeddings, given to pack-model in another order."""
    ids = list(range(len(embeddings))) if ids is None else list(ids)
    columns = {"item_id": pa.array(ids), "embedding": lists(embeddings)} | (features or {})
    table = pa.table(columns)
    pq.write_table(table, folder / "items.parquet")
    stcli.build_index(folder / "items.parquet", folder / "index", **build)
    pack: dict[str, Any] = {"embedding_dtype": dtype}
    if wide is not None:
        order = np.random.default_rng(9).permutation(len(ids))
        second = pa.table({"item_id": pa.array(ids), "embedding": lists(wide)}).take(pa.array(order))
        pq.write_table(second, folder / "wide.parquet")
        pack["embeddings"] = str(folder / "wide.parquet")
    stcli.pack_model(folder / "index", folder / "model", **pack)
    scored = (embeddings if wide is None else wide).astype(np.float32)
    cosine = build.get("metric") == "cosine"
    if cosine:
        norms = np.sqrt((scored.astype(np.float64) ** 2).sum(1, keepdims=True))
        scored = (scored / np.where(norms == 0, 1, norms)).astype(np.float32)
    return Corpus(
        folder / "model",
        stcli.open_artifact(folder / "model"),
        ids,
        packed_values(scored, dtype),
        table.select(list(features or {})).to_pylist() if features else [{}] * len(ids),
        cosine,
    )


def tolerance(corpus: Corpus, queries: np.ndarray) -> np.ndarray:
    """How far a score may lie from the true one; float64 [B].

    A re-scored sum has D / 16 + 5 roundings a product (16 lanes, then 4 folds, and the product itself), each half a
    unit in the last place of at most |q||x|. Normalising items and queries in float32 costs D + 4 roundings more.
    """
    dim = queries.shape[1]
    roundings = dim / 16 + 6 + (2 * dim + 8 if corpus.cosine else 0)
    lengths = np.ones(len(queries)) if corpus.cosine else np.linalg.norm(queries, axis=1)
    return roundings * 2.0**-24 * lengths * np.linalg.norm(corpus.vectors, axis=1).max(initial=0) + 1e-300


def true_scores(corpus: Corpus, queries: np.ndarray) -> np.ndarray:
    """Float64 [B, N]."""
    queries = queries.astype(np.float64)
    if corpus.cosine:
        norms = np.linalg.norm(queries, axis=1, keepdims=True)
        queries = queries / np.where(norms == 0, 1, norms)
    return queries @ corpus.vectors.T


def check_results(
    corpus: Corpus, queries: np.ndarray, filters: Sequence[str | None], k: int, results: Results, *, exact: bool
) -> float:
    """Check results against the truth; the recall over all queries.

    Always: min(k, eligible) results, none ineligible, none twice, scores right, order by score and then id. With
    `exact`, also nothing missing that is better than the last, by more than the rounding of two scores.
    """
    scores, allowed = true_scores(corpus, queries), tolerance(corpus, queries)
    place = {item: number for number, item in enumerate(corpus.ids)}
    hits = wanted = 0
    known = {text: corpus.eligible(text) for text in dict.fromkeys(filters)}
    assert len(results) == len(results.item_ids) == len(results.scores) == len(queries)
    for query, text in enumerate(filters):
        items, given = results.item_ids[query].tolist(), results.scores[query]
        found = [place[item] for item in items]
        eligible = known[text]
        count = min(k, int(eligible.sum()))
        assert len(found) == len(set(found)) == len(given) == count, (query, text)
        assert eligible[found].all(), (query, text)
        assert np.abs(given - scores[query, found]).max(initial=0) <= allowed[query], (query, text)
        pairs = [(-float(score), item) for score, item in zip(given, items, strict=True)]
        assert pairs == sorted(pairs), (query, text)
        if not count:
            continue
        last = np.sort(scores[query, eligible])[-count]
        hits += int((scores[query, found] >= last - 2 * allowed[query]).sum())
        wanted += count
        if exact:
            better = np.flatnonzero(eligible & (scores[query] > last + 2 * allowed[query]))
            assert set(better) <= set(found), (query, text)
            assert (scores[query, found] >= last - 2 * allowed[query]).all(), (query, text)
    return hits / max(wanted, 1)
