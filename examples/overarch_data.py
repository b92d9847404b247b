"""Interactions for `train_overarch.py`: a made world of users with two interests, or a table; and their split in time.

**The made world.** Items are directions in a space of six dimensions. A user has a lasting interest and a present one,
each a direction. The older events are near the lasting one; of the last twelve each is near either, with equal chance.
Near means: the chance of an item falls off as exp(30 (cosine - 1)), so that an interest reaches some 1 % of the items.
An event is liked with a probability of 0.8 if the item is closer to its interest than such events mostly are, else 0.2.

What is likely next is the union of two balls. A dot product can draw that too, but only with all squares and products
of the six coordinates: on a sphere, 6 + 20 numbers. With 16 it must give something up. A maximum of two dot products
needs the 12 numbers of the interests and the 6 of an item.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

COLUMNS = ["user_id", "item_id", "timestamp", "like"]
RECENT = 10
"""Events that the tower reads as a history; older ones as their mean."""
HELD_OUT = 2
OLDER = 4
"""Fewest older events of a user that is kept."""

AT_ONCE = 1_000
"""Users whose events are drawn together, in 16 bytes for each item."""


def make_interactions(
    seed: int, num_items: int = 2_000, num_users: int = 12_000, dim: int = 6, sharpness: float = 30.0, older: int = 24
) -> pa.Table:
    """A table of COLUMNS from the made world; no user has an item twice for the same interest."""
    rng = np.random.default_rng(seed)
    items, lasting, present = (_directions(rng, count, dim) for count in (num_items, num_users, num_users))
    newer = RECENT + HELD_OUT
    chosen = _draw(rng, lasting, items, sharpness, older + newer)
    from_present = (np.arange(older + newer) >= older) & (rng.random(chosen.shape) < 0.5)
    others = np.pad(_draw(rng, present, items, sharpness, newer), ((0, 0), (older, 0)))
    chosen = np.where(from_present, others, chosen)
    interests = np.where(from_present[:, :, None], present[:, None], lasting[:, None])
    cosines = (interests * items[chosen]).sum(2)
    liked = rng.random(chosen.shape) < np.where(cosines > np.median(cosines), 0.8, 0.2)
    return pa.table(
        {
            "user_id": np.repeat(np.arange(num_users), older + newer),
            "item_id": chosen.ravel(),
            "timestamp": np.tile(np.arange(older + newer), num_users),
            "like": liked.ravel(),
        }
    )


def _directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Random vectors of length 1."""
    values = rng.normal(size=(count, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _draw(
    rng: np.random.Generator, interests: np.ndarray, items: np.ndarray, sharpness: float, count: int
) -> np.ndarray:
    """Draw `count` different items near each interest, in any order: int64 [U, count]."""
    drawn = []
    for start in range(0, len(interests), AT_ONCE):
        near = sharpness * (interests[start : start + AT_ONCE] @ items.T)
        # The largest of log-probability plus Gumbel noise are a sample without replacement.
        noise = -np.log(rng.standard_exponential(near.shape, dtype=np.float32) + 1e-30)
        drawn.append(rng.permuted(np.argpartition(-(near + noise), count, axis=1)[:, :count], axis=1))
    return np.concatenate(drawn)


@dataclass(frozen=True)
class Histories:
    """The events of U users, in time order, the last ones held out; items are rows of `item_ids`.

    Attributes:
        item_ids: int64 [N], ascending.
        older: int64 [S], the items of older events, users one after another.
        offsets: int64 [U + 1]; the older events of user u are `offsets[u] … offsets[u + 1] - 1`.
        recent: int64 [U, RECENT].
        liked: bool [U, RECENT].
        held_out: int64 [U, 2]: one to tune by, then one to report.
        held_out_liked: bool [U, 2].
    """

    item_ids: np.ndarray
    older: torch.Tensor
    offsets: torch.Tensor
    recent: torch.Tensor
    liked: torch.Tensor
    held_out: torch.Tensor
    held_out_liked: torch.Tensor

    def mean_of_older(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The mean embedding of the older events of each user: float32 [N, D] to [U, D]."""
        return torch.segment_reduce(embeddings[self.older], "mean", offsets=self.offsets, axis=0)


def split_by_time(table: pa.Table) -> Histories:
    """Hold out the last two events of each user; the RECENT ones before them are a history, the others are older.

    Users with fewer than OLDER older events are left out.
    """
    users, times = table["user_id"].to_numpy(), table["timestamp"].to_numpy()
    order = np.lexsort((times, users))
    liked = table["like"].to_numpy(zero_copy_only=False)[order]
    item_ids, rows = np.unique(table["item_id"].to_numpy()[order], return_inverse=True)
    counts = np.unique(users, return_counts=True)[1]
    ends = np.cumsum(counts)
    newer = RECENT + HELD_OUT
    kept = counts >= newer + OLDER
    places = ends[kept, None] - newer + np.arange(newer)
    is_older = np.repeat(kept, counts) & (np.arange(len(rows)) < np.repeat(ends - newer, counts))
    items, likes = torch.from_numpy(rows[places]), torch.from_numpy(liked[places])
    return Histories(
        item_ids,
        torch.from_numpy(rows[is_older]),
        torch.from_numpy(np.append(0, np.cumsum(counts[kept] - newer))),
        items[:, :RECENT],
        likes[:, :RECENT],
        items[:, RECENT:],
        likes[:, RECENT:],
    )
