"""The filter parts of an artifact or index directory, read back into a vocabulary, a layout and a bit matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stcli.filters.layout import FeatureLayout, Layout
from stcli.filters.vocabulary import Feature, Strings, Vocabulary
from stcli.types import BitMatrix, MatrixPlan, Postings


def load_vocabulary(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary from its arrays and the manifest's `filter` part."""
    features = []
    for number, entry in enumerate(description["features"]):
        name = f"vocabulary_{number:03d}"
        values = arrays[name] if name in arrays else Strings(arrays[f"{name}_bytes"], arrays[f"{name}_offsets"])
        features.append(
            Feature(entry["name"], entry["kind"], entry["first_term"], entry["num_terms"], entry["multi"], values)
        )
    return Vocabulary(tuple(features), arrays["term_counts"], arrays["feature_present"])


def load_layout(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> Layout:
    """Where each term stands in the bit matrix."""
    plan = MatrixPlan(
        own_row=_tensor(arrays["own_row"]),
        bloom=_tensor(arrays["bloom_terms"]),
        slices=_tensor(arrays["slices"]),
        presence=_tensor(arrays["presence"]),
        num_own=description["own_rows"],
        bloom_fpr=description["bloom_fpr"],
        num_hashes=description["num_hashes"],
        fixed_width=description["fixed_width"],
    )
    features = {}
    for entry in description["features"]:
        slices = entry["slices"]
        placed = ((slices[0][0], slices[0][1]), (slices[1][0], slices[1][1])) if slices else None
        features[entry["name"]] = FeatureLayout(entry["presence_row"], placed)
    return Layout(plan, features, paper=description["paper"])


def load_matrix(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any], num_items: int) -> BitMatrix:
    """The bit matrix."""
    return BitMatrix(
        own=_tensor(arrays["own_words"]),
        bloom=_tensor(arrays["bloom_words"]),
        bloom_offsets=_tensor(arrays["bloom_offsets"]),
        num_hashes=description["num_hashes"],
        num_items=num_items,
    )


def load_terms(arrays: Mapping[str, np.ndarray]) -> Postings:
    """The exact terms of each row: int32 values, ascending within a row."""
    return Postings(_tensor(arrays["term_values"]), _tensor(arrays["term_offsets"]))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array) if array.flags.writeable else np.array(array))
