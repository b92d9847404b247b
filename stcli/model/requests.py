"""What a batch of requests brings: user vectors of one or several tasks, filters, lists of items, columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from stcli.filters.source import FilterSource
from stcli.types import Lines


@dataclass(frozen=True)
class Requests:
    """B requests.

    Attributes:
        users: float32 [B, T, D], the user vector of each task.
        filters: of the B requests.
        tasks: the names of the T vectors; () for one vector without a name.
        excluded: rows that each must not get, or None.
        candidates: rows that each request wants ranked, distinct, or None for a search of the index.
        missing: int64 [B], ids among the candidates that are no item; None without candidates.
        values: the query columns that value models read, float32 or bool [B], by name; NaN for null.
        value_models: int64 [B], the value model of each request, -1 for none; None: the first one for all.
    """

    users: torch.Tensor
    filters: FilterSource
    tasks: tuple[str, ...] = ()
    excluded: Lines | None = None
    candidates: Lines | None = None
    missing: torch.Tensor | None = None
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    value_models: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)

    def slice(self, start: int, stop: int) -> Requests:
        """Requests `start … stop - 1`, with the filters of all."""
        part = slice(start, stop)
        return replace(
            self,
            users=self.users[part],
            excluded=None if self.excluded is None else self.excluded.take(part),
            candidates=None if self.candidates is None else self.candidates.take(part),
            missing=None if self.missing is None else self.missing[part],
            values={name: column[part] for name, column in self.values.items()},
            value_models=None if self.value_models is None else self.value_models[part],
        )


def padded(lines: Lines) -> torch.Tensor:
    """Lines as int64 [b, longest of them], filled up with -1."""
    lengths = lines.ends - lines.begins
    place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=lengths.device)
    inside = place < lengths[:, None]
    taken = torch.full(inside.shape, -1, device=lengths.device)
    taken[inside] = lines.values[(lines.begins[:, None] + place)[inside]]
    return taken
