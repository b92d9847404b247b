"""What a peer is: another way to answer the same queries over the same items, measured beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from stcli.errors import InputError
from stcli.filters.source import GivenFilters
from stcli.filters.tree import Node
from stcli.model.retriever import Retriever
from stcli.ops.exponents import powers_of_two
from stcli.peers.bitmaps import Bitmaps

CHUNK_ROWS = 1 << 16

WHOLE_BATCH = 1 << 31
"""More queries than anybody asks at once."""


@dataclass(frozen=True)
class Items:
    """What every peer is built from.

    Attributes:
        model: the opened artifact.
        vectors: float32 [N, D], the packed embeddings in row order.
        bitmaps: exact, of every condition in the filters that will be asked.
        threads: CPU threads that a search may use.
        seed: of random choices.
    """

    model: Retriever
    vectors: np.ndarray
    bitmaps: Bitmaps
    threads: int
    seed: int

    @classmethod
    def of(cls, model: Retriever, threads: int, seed: int) -> Items:
        """Unpack the embeddings of an artifact.

        Raises:
            InputError: it has none.
        """
        packed = model.embeddings
        if packed is None:
            raise InputError("--against: the artifact holds no embeddings to build the others from; pack it with them")
        vectors = np.empty(tuple(packed.values.shape), np.float32)
        for start in range(0, len(vectors), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            rows = packed.values[part].float().cpu()
            if packed.exponents is not None:
                rows = rows * powers_of_two(packed.exponents[part].cpu())[:, None]
            vectors[part] = rows.numpy()
        return cls(model, vectors, Bitmaps(model.terms, model.num_items), threads, seed)


@dataclass(frozen=True)
class Queries:
    """Queries as each kind of peer wants them.

    Attributes:
        raw: float32 [B, D], as they came.
        vectors: float32 [B, D], of length 1 if the metric is cosine.
        given: the filter of each, a text or tree or None.
        trees: the same with every condition resolved to an interval of terms, or None.
    """

    raw: torch.Tensor
    vectors: np.ndarray
    given: Sequence[str | Node | None]
    trees: Sequence[Node | None]

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def of(cls, model: Retriever, vectors: torch.Tensor, given: Sequence[str | Node | None]) -> Queries:
        """Resolve the filters against a model's vocabulary."""
        plans = [model.planner.plan(item) for item in given]
        trees = [None if plan is None else plan.terms for plan in plans]
        return cls(vectors, model.normalized(vectors).numpy(), given, trees)

    def take(self, part: slice) -> Queries:
        """Some of them."""
        return Queries(self.raw[part], self.vectors[part], self.given[part], self.trees[part])

    @property
    def filtered(self) -> bool:
        """Some query has a filter."""
        return any(tree is not None for tree in self.trees)

    def source(self, model: Retriever) -> GivenFilters:
        """The filters, to be planned by a model."""
        return GivenFilters(model.planner, self.given)


class Peer(Protocol):
    """Another way to search.

    Attributes:
        name: how the report calls it.
        how: one line on how it was built and is used.
    """

    name: str
    how: str

    def build(self, items: Items) -> None:
        """Build whatever is searched."""

    @property
    def index_bytes(self) -> int:
        """Bytes of what was built."""

    def parameters(self, filtered: bool, k: int) -> Iterator[tuple[str, Any]]:
        """Settings from fast to slow, each with its name; none if this peer has no way to search like that."""

    def at_once(self, filtered: bool) -> int:
        """Queries that a batch needs to show this peer's speed: 1 if they share nothing, else as many as fill it."""

    def refuses(self, queries: Queries) -> str | None:
        """Why it cannot answer these queries, or None."""

    def search(self, queries: Queries, k: int, parameter: Any) -> np.ndarray:
        """Rows int64 [B, k] of the best items, best first, -1 in empty slots."""
