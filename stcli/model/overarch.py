"""The OverArch of an artifact: a learned similarity that scores the candidates of a search again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from stcli.errors import InputError, nearest
from stcli.model.mlp import Mlp
from stcli.model.mol import Mol
from stcli.model.overarch_config import MlpConfig, MolConfig, OverArchConfig, parse_overarch
from stcli.ops.checks import Shapes
from stcli.ops.exponents import powers_of_two
from stcli.types import Embeddings

PREFIX = "overarch."
"""The names of its arrays in an artifact begin with this."""


class OverArch(nn.Module):
    """Scores candidates of a task; made by `load_overarch`.

    Attributes:
        tasks: names, in order.

    Args:
        config: of the model.
        scorer: the module that knows the kind.
    """

    def __init__(self, config: OverArchConfig, scorer: nn.Module) -> None:
        super().__init__()
        self.tasks, self.dim = config.tasks, config.dim
        self.scorer = scorer

    def forward(self, users: torch.Tensor, rows: torch.Tensor, task: str) -> torch.Tensor:
        """Score the candidates of each request for one task.

        A score depends on its user vector and its row, not on the batch.

        Args:
            users: float32 [B, D], the user vectors of this task.
            rows: int64 [B, M], item rows, or -1 for an empty slot.
            task: one of `tasks`.

        Returns:
            float32 [B, M], -inf in empty slots.

        Raises:
            InputError: there is no such task.
            TensorError: a tensor has another dtype or shape than stated.
        """
        if task not in self.tasks:
            raise InputError(f"task {task!r}: the OverArch has no such task; {nearest(task, list(self.tasks))}")
        shapes = Shapes()
        shapes.check("users", users, torch.float32, f"B {self.dim}")
        shapes.check("rows", rows, torch.int64, "B M")
        return self.scorer(users, rows, task)


class ItemInputs(nn.Module):
    """What the item side reads: packed embeddings, then features.

    Args:
        embeddings: gives the packed embeddings; asked for at each call, since their owner may move them.
        features: float32 [N, F], or None.
    """

    def __init__(self, embeddings: Callable[[], Embeddings | None], features: torch.Tensor | None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.register_buffer("features", features, persistent=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Float32 [R, D + F] for rows int64 [R]."""
        embeddings = self.embeddings()
        assert embeddings is not None
        values = embeddings_at(embeddings, rows)
        features: torch.Tensor | None = getattr(self, "features")  # noqa: B009
        return values if features is None else torch.cat([values, features[rows]], 1)


def embeddings_at(embeddings: Embeddings, rows: torch.Tensor) -> torch.Tensor:
    """Packed embeddings of rows int64 [R], float32 [R, D]."""
    values = embeddings.values[rows].float()
    if embeddings.exponents is not None:
        values *= powers_of_two(embeddings.exponents[rows])[:, None]
    return values


def load_overarch(
    entry: Mapping[str, Any] | None,
    arrays: Mapping[str, np.ndarray],
    embeddings: Callable[[], Embeddings | None] | None = None,
    backend: str = "auto",
) -> OverArch | None:
    """The OverArch of an artifact.

    Args:
        entry: `overarch` of its manifest, or None.
        arrays: of the artifact.
        embeddings: gives the packed embeddings, on the device of the model; default: those in `arrays`.
        backend: see `ops/dispatch.py`.

    Returns:
        None for the kind `dot` or no entry: candidates keep the dot product of `ops/rescore.py`.
    """
    if entry is None or entry["kind"] == "dot":
        return None
    config = parse_overarch(entry["config"], "artifact")
    tensors = {
        name.removeprefix(PREFIX): torch.from_numpy(array) for name, array in arrays.items() if name.startswith(PREFIX)
    }
    weights = {name.removeprefix("weights."): tensor for name, tensor in tensors.items() if name.startswith("weights.")}
    items = ItemInputs(embeddings or (lambda: _embeddings(arrays)), tensors.get("features"))
    if isinstance(config, MlpConfig):
        return OverArch(config, Mlp(config, weights, items)).eval()
    assert isinstance(config, MolConfig)
    return OverArch(config, Mol(config, weights, tensors, items, backend)).eval()


def _embeddings(arrays: Mapping[str, np.ndarray]) -> Embeddings:
    exponents = arrays.get("embedding_exponents")
    return Embeddings(
        torch.from_numpy(arrays["embedding_values"]), None if exponents is None else torch.from_numpy(exponents)
    )
