"""What must hold in the arrays of an index or artifact and in the rows of a results directory, whatever its data.

Everything is read in pieces, so that checking takes little memory. FORMAT.md states each rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stcli.errors import FormatError
from stcli.filters.stored import load_vocabulary
from stcli.filters.vocabulary import Strings
from stcli.ops.count_bits import count_bits
from stcli.storage.ids import ItemIds
from stcli.storage.parquet import open_table
from stcli.storage.steering import PIECE, check_all, damage, pieces
from stcli.types import BLOCK_ROWS, BLOCK_WORDS


def check_arrays(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> list[str]:
    """Check the arrays of an index or an artifact; the names of the checks.

    Raises:
        FormatError: one does not hold.
    """
    return _Checker(manifest, arrays, where).run()


class _Checker:
    def __init__(self, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray], where: str) -> None:
        self.manifest, self.arrays, self.where = manifest, arrays, where
        self.num_items, self.num_terms = int(manifest["num_items"]), int(manifest["filter"]["num_terms"])
        self.checks = {
            "offsets ascend from 0 to the end": self._offsets,
            "codes are in -127 … 127 and zero beyond the dimensions": self._codes,
            "scales are positive": self._scales,
            "embeddings are finite": self._embeddings,
            "ids are unique and their order is sorted": self._ids,
            "terms ascend within each item": self._terms,
            "the vocabulary is sorted": self._vocabulary,
            "bits beyond the last item are zero": self._tail,
            "own rows have as many bits as their terms have items": self._own_rows,
        }

    def run(self) -> list[str]:
        for check in self.checks.values():
            check()
        return list(self.checks)

    def _fail(self, name: str, found: str) -> FormatError:
        return damage(self.where, name, found)

    def _require(self, holds: Any, name: str, found: str) -> None:
        if not bool(holds):
            raise self._fail(name, found)

    def _offsets(self) -> None:
        check_all(self.manifest, self.arrays, self.where)

    def _codes(self) -> None:
        dim = int(self.manifest["dim"])
        for name in ("codes", "centroid_codes"):
            codes = self.arrays[name]
            for part in pieces(len(codes), codes.shape[1]):
                self._require(codes[part].min(initial=0) >= -127, name, "hold -128")
                self._require(not codes[part, dim:].any(), name, f"are not zero beyond {dim} dimensions")

    def _scales(self) -> None:
        for name in ("scales", "centroid_scales", "cluster_radii", "errors", "norms"):
            if name not in self.arrays:
                continue
            for part in pieces(len(self.arrays[name])):
                values = self.arrays[name][part]
                fine = values > 0 if name.endswith("scales") else values >= 0
                self._require(
                    (fine & np.isfinite(values)).all(), name, "hold a value that is negative, zero or not finite"
                )

    def _embeddings(self) -> None:
        for name in ("embeddings", "embedding_values"):
            if name in self.arrays:
                values = self.arrays[name]
                for part in pieces(len(values), values.shape[1]):
                    self._require(np.isfinite(values[part]).all(), name, "hold a value that is not finite")

    def _ids(self) -> None:
        ids = ItemIds.from_arrays(self.arrays, self.where)
        known = ids.readable if not ids.is_string else ids.readable.cast(pa.large_binary())
        for part in pieces(self.num_items, overlap=1):
            rows = np.asarray(ids.order[part])
            self._require(
                rows.min() >= 0 and rows.max() < self.num_items, "id_order", "names a row that does not exist"
            )
            ranks = np.asarray(ids.rank[rows])
            own = np.arange(part.start, part.start + len(rows))
            # A shard has the places of its ids among those of the whole index.
            right = (np.diff(ranks) > 0).all() if "shard" in self.manifest else (ranks == own).all()
            self._require(right, "id_rank", "is not the inverse of id_order")
            taken = known.take(pa.array(rows))
            ascending = pc.all(pc.less(taken.slice(0, len(taken) - 1), taken.slice(1))).as_py()
            self._require(ascending is not False, "id_order", "does not sort the ids, or an id stands twice")

    def _terms(self) -> None:
        values, offsets = self.arrays["term_values"], self.arrays["term_offsets"]
        counts = np.zeros(self.num_terms, np.int64)
        step = max(PIECE // max(len(values) // max(self.num_items, 1), 1), 1)
        for start in range(0, self.num_items, step):
            places = offsets[start : start + step + 1]
            terms = values[places[0] : places[-1]].astype(np.int64)
            if not len(terms):
                continue
            self._require(
                terms.min() >= 0 and terms.max() < self.num_terms,
                "term_values",
                f"are not all in 0 … {self.num_terms - 1}",
            )
            fine = np.diff(terms) > 0
            starts = places[1:-1] - places[0]
            fine[starts[(starts > 0) & (starts < len(terms))] - 1] = True
            self._require(fine.all(), "term_values", "do not ascend within an item")
            counts += np.bincount(terms, minlength=self.num_terms)
        self._require((counts == self.arrays["term_counts"]).all(), "term_counts", "differ from the items of the terms")

    def _vocabulary(self) -> None:
        vocabulary = load_vocabulary(self.arrays, self.manifest["filter"])
        place = 0
        for feature in vocabulary.features:
            name = f"vocabulary of {feature.name!r}"
            self._require(feature.first_term == place, name, f"starts at term {feature.first_term}, expected {place}")
            place = feature.end_term
            if isinstance(feature.values, Strings):
                before = None
                for value in feature.values:
                    self._require(before is None or before < value, name, "is not sorted")
                    before = value
            else:
                self._require((np.diff(feature.values) > 0).all(), name, "is not sorted")
        self._require(place == self.num_terms, "vocabulary", f"has {place} terms, expected {self.num_terms}")

    def _tail(self) -> None:
        used = self.num_items % 64
        own = self.arrays["own_words"]
        if used and own.size:
            self._require(
                not (own[:, -1].astype(np.uint64) >> np.uint64(used)).any(),
                "own_words",
                "have bits beyond the last item",
            )
        last = self.num_items % BLOCK_ROWS
        bloom = (
            self.arrays["bloom_words"][self.arrays["bloom_offsets"][-2] :] if last else self.arrays["bloom_words"][:0]
        )
        whole = last // 64
        beyond = bloom[:, whole:BLOCK_WORDS].astype(np.uint64)
        if beyond.size:
            beyond[:, 0] >>= np.uint64(used)
            self._require(not beyond.any(), "bloom_words", "have bits beyond the last item")

    def _own_rows(self) -> None:
        own = self.arrays["own_words"]
        bits = np.zeros(len(own), np.int64)
        for part in pieces(len(own), max(own.shape[1], 1)):
            bits[part] = count_bits(torch.from_numpy(np.array(own[part]))).numpy()
        owned = np.flatnonzero(self.arrays["own_row"] >= 0)
        wanted = self.arrays["term_counts"][owned]
        self._require(
            (bits[self.arrays["own_row"][owned]] == wanted).all(), "own_words", "differ from the items of their terms"
        )
        for row, first, end in self.arrays["presence"]:
            feature = next(
                n
                for n, f in enumerate(self.manifest["filter"]["features"])
                if (f["first_term"], f["num_terms"]) == (first, end - first)
            )
            self._require(
                bits[row] == self.arrays["feature_present"][feature], "own_words", "differ from the items with a value"
            )


def check_results(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Check the rows of a results directory; the names of the checks.

    Raises:
        FormatError: one does not hold.
    """
    totals = {"queries": 0, "results": 0}
    exploded = bool(manifest["identity"].get("explode"))
    for part in manifest["parts"]:
        table = open_table(folder / part["name"])
        for _, batch in table.batches(table.schema.names, 1 << 14):
            totals["queries"] += batch.num_rows
            totals["results"] += (_check_rows if exploded else _check_lists)(batch, folder / part["name"])
    for name, found in totals.items():
        if found != manifest["counts"][name] and not (exploded and name == "queries"):
            raise FormatError(
                f"{folder}: holds {found} {name}, its manifest says {manifest['counts'][name]}; retrieve again"
            )
    rows = "each item has a score" if exploded else "each list has an item a score, best first"
    return ["the parts are whole", "counts agree with the manifest", rows]


def _check_rows(batch: pa.RecordBatch, where: Path) -> int:
    """Check that each result of --explode has a score; how many there are (a query without any has a row of nulls)."""
    empty = [batch.column(name).is_null() for name in ("item_id", "score") if name in batch.schema.names]
    if not empty[-1].equals(empty[0]):
        raise FormatError(f"{where}: an item has no score, or a score has no item; retrieve again")
    return int(batch.num_rows - batch.column("item_id").null_count)


def _check_lists(batch: pa.RecordBatch, where: Path) -> int:
    """Check that the lists of each row agree in length and that scores descend; the number of results."""
    names = [field.name for field in batch.schema if field.name in ("item_id", "score")]
    lengths = [
        pc.fill_null(pc.list_value_length(batch.column(name)), 0).to_numpy(zero_copy_only=False) for name in names
    ]
    if any((other != lengths[0]).any() for other in lengths):
        raise FormatError(f"{where}: a query has more items than scores, or fewer; retrieve again")
    if "score" in names:
        scores = batch.column("score").flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        falling = np.diff(scores) <= 0
        ends = np.cumsum(lengths[0])[:-1]
        falling[ends[(ends > 0) & (ends < len(scores))] - 1] = True
        if not (falling.all() and np.isfinite(scores).all()):
            raise FormatError(f"{where}: the scores of a query do not descend, or are not finite; retrieve again")
    return int(lengths[0].sum())
