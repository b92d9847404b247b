"""How `train_overarch.py` trains a net and ranks the held-out events; the same for dot products and OverArch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from overarch_data import RECENT, Histories
from overarch_nets import TASKS, Net
from sparse_svd import Sparse, truncated_svd

TARGETS = 3
"""Recent events that are hidden from the tower in a step and predicted from the others."""
ALL_ITEMS = 4_096
"""Up to so many items all are in the sum of a softmax; of more, so many random ones."""


def start_embeddings(data: Histories, dim: int) -> Tensor:
    """Item embeddings to begin with: right singular vectors of the interactions, rows of length 1; float32 [N, dim].

    Older and recent events of a user are rows of their own. An interaction weighs 1 / sqrt(events of the row * events
    of the item). With random embeddings the first thousand steps go into finding which items belong together.
    """
    num_users = len(data.recent)
    older = np.repeat(np.arange(num_users), data.offsets.diff().numpy())
    rows = np.concatenate([older, num_users + np.repeat(np.arange(num_users), RECENT)])
    items = torch.cat([data.older, data.recent.flatten()]).numpy()
    of_row, of_item = np.bincount(rows), np.bincount(items, minlength=len(data.item_ids))
    values = (1 / np.sqrt(of_row[rows] * of_item[items])).astype(np.float32)
    vectors, singular = truncated_svd(Sparse(rows, items, values, (2 * num_users, len(data.item_ids))), dim)
    return functional.normalize(torch.from_numpy(vectors * np.sqrt(singular)), dim=1)


def train(net: Net, data: Histories, older: Tensor, steps: int, rate: float, seed: int, batch: int = 64) -> None:
    """Train on random users: some of their recent events are predicted from the others and the older ones.

    The loss of an event is that of a softmax over all items; where there are more than ALL_ITEMS, its sum is estimated
    from random ones. An event that is not liked counts for `click` only. Adam, cosine schedule with a warm-up.

    Args:
        older: float32 [U, D], the mean embeddings of older events.
    """
    random = torch.Generator().manual_seed(seed)
    num_items = len(net.embeddings)
    optimizer = torch.optim.Adam(net.weights())
    own = torch.arange(batch * TARGETS).view(batch, TARGETS)
    for step in range(steps):
        warm, cosine = min(1.0, (step + 1) / 50), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        optimizer.param_groups[0]["lr"] = rate * warm * max(cosine, 0.02)
        some = torch.randint(len(data.recent), (batch,), generator=random)
        order = torch.rand(batch, RECENT, generator=random).argsort(1)
        items, liked = data.recent[some].gather(1, order), data.liked[some].gather(1, order)
        targets = items[:, :TARGETS]
        others = torch.arange(num_items)
        if num_items > ALL_ITEMS:
            others = torch.randint(num_items, (ALL_ITEMS,), generator=random)
        correction = math.log(num_items / len(others))
        users = net.users(items[:, TARGETS:], older[some])
        loss = torch.zeros(())
        for task in range(len(TASKS)):
            counted = torch.ones_like(targets) if task == 0 else liked[:, :TARGETS]
            scores = net.scores(users, task, torch.cat([targets.flatten(), others]))
            of_targets = scores.gather(1, own)
            everything = scores[:, own.numel() :].logsumexp(1, keepdim=True)
            if len(others) < num_items:
                everything = torch.logaddexp(everything + correction, of_targets)
            loss = loss + ((everything - of_targets) * counted).sum() / counted.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def hit_rate(net: Net, data: Histories, older: Tensor, k: int, event: int = 0, at_once: int = 256) -> float:
    """The share of users whose held-out event is among the k best clicks of all items that they do not have yet."""
    hits = 0
    everything = torch.arange(len(net.embeddings))
    owner = torch.arange(len(data.recent)).repeat_interleave(data.offsets.diff())
    for first in range(0, len(data.recent), at_once):
        some = slice(first, first + at_once)
        scores = net.scores(net.users(data.recent[some], older[some]), 0, everything)
        scores.scatter_(1, data.recent[some], -torch.inf)
        begin, end = data.offsets[first], data.offsets[min(first + at_once, len(data.recent))]
        scores[owner[begin:end] - first, data.older[begin:end]] = -torch.inf
        target = scores.gather(1, data.held_out[some, event, None])
        hits += int(((scores > target).sum(1) < k).sum())
    return hits / len(data.recent)
