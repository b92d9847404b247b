"""How far newer items lie from the clusters that the main index was built with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from stcli.index.kmeans import assign, squared_distances
from stcli.storage.artifact import Artifact
from stcli.types import Quantized

SAMPLE_ROWS = 1 << 12
"""Rows of each side that are measured: the mean of so many distances is right within about 1 %."""


def measure_drift(
    shards: Sequence[Artifact], fresh: Artifact, before: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Mean distance of items to the nearest centroid of the main index, from a sample of whole clusters.

    Near 1, `distance_ratio` says that the fresh items look like those that the clusters were made for.

    Args:
        shards: the main index.
        fresh: the fresh file.
        before: what was measured of an earlier set with the same main index, whose `main_distance` is taken over.

    Returns:
        `main_distance` of main items, `fresh_distance` of fresh ones, `distance_ratio` of the second to the first.
    """
    arrays = shards[0].arrays
    centroids = _quantized(arrays["centroid_codes"], arrays["centroid_scales"])
    if before:
        main = before["main_distance"]
    else:
        found = np.concatenate([_distances(shard, centroids, len(shards)) for shard in shards])
        main = round(float(found.mean()), 6)
    newer = round(float(_distances(fresh, centroids, 1).mean()), 6)
    ratio = round(newer / main, 6) if main else 1.0
    return {"main_distance": main, "fresh_distance": newer, "distance_ratio": ratio}


def _distances(artifact: Artifact, centroids: Quantized, share: int) -> np.ndarray:
    rows = _sample(np.asarray(artifact.arrays["cluster_offsets"]), SAMPLE_ROWS // share)
    points = _quantized(artifact.arrays["codes"][rows], artifact.arrays["scales"][rows])
    nearest = assign(points, centroids)
    return squared_distances(points, centroids, nearest).clamp(min=0).sqrt().cpu().numpy()


def _sample(offsets: np.ndarray, most: int) -> np.ndarray:
    """Rows of whole clusters spread evenly over all, about `most`: runs of rows, of which few pages are read."""
    num_clusters, num_rows = len(offsets) - 1, int(offsets[-1])
    step = max(num_rows // max(most, 1), 1)
    return np.concatenate([np.arange(offsets[c], offsets[c + 1]) for c in range(0, num_clusters, step)])[: 2 * most]


def _quantized(codes: np.ndarray, scales: np.ndarray) -> Quantized:
    return Quantized(torch.from_numpy(np.array(codes)), torch.from_numpy(np.array(scales)))
