"""An index directory read back with nothing but json and numpy, and checked against plain Python and float64."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from stcli.storage.index_dir import open_index
from stcli.types import MatrixPlan
from tests import oracles_filter, oracles_search
from tests.index_tools import feature_values


@dataclass(frozen=True)
class Read:
    """An index directory.

    Attributes:
        manifest: `manifest.json`.
        arrays: every .npy file, by name.
        ids: id of each row.
        values: feature -> its values, ascending.
        terms: for each row, (feature, value) pairs in term order.
    """

    manifest: dict
    arrays: dict[str, np.ndarray]
    ids: list
    values: dict[str, list]
    terms: list[list[tuple[str, object]]]


def read_index(path: Path) -> Read:
    """Read an index directory back into plain Python objects."""
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    arrays = {file.stem: np.load(file) for file in path.glob("*.npy")}
    ids = arrays["item_ids"].tolist() if "item_ids" in arrays else texts(arrays, "item_id")
    values = {}
    named: list[tuple[str, object]] = []
    for number, feature in enumerate(manifest["filter"]["features"]):
        name = f"vocabulary_{number:03d}"
        raw = arrays[name].tolist() if name in arrays else [text.encode() for text in texts(arrays, name)]
        assert feature["first_term"] == len(named)
        assert feature["num_terms"] == len(raw)
        values[feature["name"]] = raw
        named += [(feature["name"], value) for value in raw]
    offsets = arrays["term_offsets"].tolist()
    flat = arrays["term_values"].tolist()
    terms = [[named[term] for term in flat[low:high]] for low, high in itertools.pairwise(offsets)]
    return Read(manifest, arrays, ids, values, terms)


def texts(arrays: dict[str, np.ndarray], name: str) -> list[str]:
    """The texts of a pair of arrays `name_bytes`, `name_offsets`."""
    raw, offsets = arrays[f"{name}_bytes"].tobytes(), arrays[f"{name}_offsets"].tolist()
    return [raw[low:high].decode() for low, high in itertools.pairwise(offsets)]


def check_index(path: Path, columns: dict[str, pa.Array], features: list[str], metric: str = "inner_product") -> None:
    """Check everything that an index promises about the table it was made from."""
    opened = open_index(path, verify=True)
    read = read_index(path)
    assert set(opened.arrays) == set(read.arrays)
    given = columns["item_id"].to_pylist()
    source = [given.index(row_id) for row_id in read.ids]
    assert sorted(source) == list(range(len(given)))
    exact = np.array(columns["embedding"].to_pylist(), np.float64)[source]
    assert (read.manifest["num_items"], read.manifest["dim"]) == exact.shape
    assert read.manifest["metric"] == metric
    if metric == "cosine":
        exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300)
        np.testing.assert_allclose(read.arrays["embeddings"], exact, rtol=2e-7, atol=1e-9)
    else:
        assert np.array_equal(read.arrays["embeddings"], exact.astype(read.arrays["embeddings"].dtype))
    check_clusters(read, source, exact)
    check_codes(read, exact)
    check_terms(read, source, {name: columns[name].to_pylist() for name in sorted(features)})
    check_matrix(read)


def check_clusters(read: Read, source: list[int], exact: np.ndarray) -> None:
    """Rows stand by cluster, within one the farthest first, and each is in its nearest cluster."""
    offsets = read.arrays["cluster_offsets"].tolist()
    assert offsets[0] == 0
    assert offsets[-1] == len(source)
    assert len(offsets) == read.manifest["num_clusters"] + 1
    centres = read.arrays["centroid_codes"].astype(np.float64) * read.arrays["centroid_scales"][:, None]
    restored = read.arrays["codes"].astype(np.float64) * read.arrays["scales"][:, None]
    radii = read.arrays["cluster_radii"]
    for (first, end), centre, radius in zip(itertools.pairwise(offsets), centres, radii, strict=True):
        away = ((restored[first:end] - centre) ** 2).sum(1)
        np.testing.assert_allclose(radius, np.sqrt(away.max(initial=0)), rtol=1e-5, atol=1e-6 * np.abs(centre).max())
        assert (np.diff(away) <= 1e-9 * away.max(initial=0)).all()
        same = (np.diff(restored[first:end], axis=0) == 0).all(1)
        assert (np.diff(source[first:end])[same] > 0).all()
    distance = ((exact[:, None] - centres[None, :, : exact.shape[1]]) ** 2).sum(2)
    mine = distance[np.arange(len(source)), np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))]
    # A row is assigned by its codes, which are up to half a step off in each dimension: it may lie that far off, too.
    away = np.abs(exact).max(1) / 254 * np.sqrt(exact.shape[1])
    assert (np.sqrt(mine) <= (np.sqrt(distance.min(1)) + 2 * away) * (1 + 1e-5)).all()


def check_codes(read: Read, exact: np.ndarray) -> None:
    """Codes and scales follow the stated float32 arithmetic, and are near a float64 quantizer."""
    codes, scales = oracles_search.quantize(read.arrays["embeddings"])
    assert np.array_equal(read.arrays["codes"], codes)
    assert np.array_equal(read.arrays["scales"], scales)
    ideal = np.abs(exact).max(1) / 127
    np.testing.assert_allclose(scales, np.where(ideal == 0, 1, ideal), rtol=3e-7)
    # Half a step, and what a relative error of 2^-22 of x / scale makes at 127.
    assert (np.abs(codes[:, : exact.shape[1]] - exact / scales[:, None].astype(np.float64)) <= 0.5 + 127 * 2**-22).all()


def check_terms(read: Read, source: list[int], columns: dict[str, list]) -> None:
    """Each row has the terms of its item, and the vocabulary is sorted and counted."""
    lines = {name: [feature_values(value) for value in column] for name, column in columns.items()}
    assert list(read.values) == list(lines)
    for name, values in read.values.items():
        assert values == sorted({value for line in lines[name] for value in line})
    assert read.terms == [[(name, value) for name in lines for value in lines[name][row]] for row in source]
    present = [sum(bool(line) for line in lines[name]) for name in lines]
    assert read.arrays["feature_present"].tolist() == present
    counts = [sum(value in line for line in lines[name]) for name in lines for value in read.values[name]]
    assert read.arrays["term_counts"].tolist() == counts


def check_matrix(read: Read) -> None:
    """The bit matrix is what the stored plan makes of the stored terms, bit by bit."""
    arrays, described = read.arrays, read.manifest["filter"]
    plan = MatrixPlan(
        *(torch.from_numpy(arrays[name]) for name in ("own_row", "bloom_terms", "slices", "presence")),
        num_own=described["own_rows"],
        bloom_fpr=described["bloom_fpr"],
        num_hashes=described["num_hashes"],
        fixed_width=described["fixed_width"],
    )
    flat, offsets = arrays["term_values"].tolist(), arrays["term_offsets"].tolist()
    own, blocks = oracles_filter.bit_matrix([flat[low:high] for low, high in itertools.pairwise(offsets)], plan)
    assert np.array_equal(arrays["own_words"], oracles_filter.words_of(own))
    assert np.array_equal(arrays["bloom_words"], oracles_filter.words_of(np.concatenate(blocks)))
    assert np.diff(arrays["bloom_offsets"]).tolist() == [len(block) for block in blocks]
