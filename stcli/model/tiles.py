"""The search of any number of queries, in tiles that fit in memory."""

from __future__ import annotations

import torch

from stcli.errors import RunError
from stcli.filters.program import FilterBatch
from stcli.filters.source import FilterSource
from stcli.model.corpus import Corpus
from stcli.model.eligibility import Excluded
from stcli.model.placement import LEAST_QUERIES
from stcli.model.planner import LEAST_WORDS, SearchOptions
from stcli.model.results import Results, concatenate
from stcli.model.search import Search, Tile
from stcli.types import Lines, moved


def search(
    model: Corpus,
    vectors: torch.Tensor,
    filters: FilterSource,
    options: SearchOptions,
    excluded: Excluded | None = None,
) -> Results:
    """Search checked queries float32 [B, D].

    Where the device runs out of memory, the tile is halved and searched again; results do not depend on tiles.

    Raises:
        RunError: a tile of 64 queries does not fit in the memory of the device.
    """
    parts: list[Results] = []
    start = 0
    while start < len(vectors):
        stop = min(start + model.tile_queries, len(vectors))
        for count, batch in model.batches(filters, start, stop, filters_at_once(model, options)):
            here = slice(start, start + count)
            lines = excluded.rows.take(here) if excluded is not None else None
            try:
                parts.append(search_tile(model, vectors[here], batch, options, lines))
            except torch.OutOfMemoryError:
                found = False
            else:
                found = True
            if not found:  # outside of `except`, where the error would keep the tensors of the failed tile alive
                _shrink_tiles(model, count)
                break
            start += count
    return concatenate(parts, model.ids, options.k)


def search_tile(
    model: Corpus,
    vectors: torch.Tensor,
    filters: tuple[FilterBatch, ...],
    options: SearchOptions,
    excluded: Lines | None,
) -> Results:
    """Search the queries of one tile."""
    users = model.normalized(moved(vectors, model.device))
    lines = excluded.to(model.device) if excluded is not None else None
    return Search(model, make_tile(model, users, filters, options, lines), options).run()


def evaluates_everywhere(model: Corpus, options: SearchOptions) -> bool:
    """Whether the filters of a tile are evaluated at once for all rows, or where and when they are asked for."""
    if options.filter_scope == "probed":
        return False
    small = model.num_words < LEAST_WORDS or bool(model.other_planners)
    return options.filter_scope == "all" or options.exact or small


def filters_at_once(model: Corpus, options: SearchOptions) -> int | None:
    """Distinct filters that a tile may have, or None for any number."""
    return model.filters_at_once if evaluates_everywhere(model, options) else None


def make_tile(
    model: Corpus,
    vectors: torch.Tensor,
    filters: tuple[FilterBatch, ...],
    options: SearchOptions,
    excluded: Lines | None,
    each: int = 1,
) -> Tile:
    """A tile of queries.

    Args:
        model: the packed items.
        vectors: float32 [B * each, D] on the model's device.
        filters: of B requests, for every segment.
        options: how to search.
        excluded: rows that each request must not get, or None.
        each: consecutive vectors that belong to one request.
    """
    admitted = model.admit(filters, options.allowed, evaluates_everywhere(model, options))
    filtered = (filters[0].filter_of_query >= 0) | (options.allowed is not None)
    if each > 1:
        own = torch.arange(len(filtered)).repeat_interleave(each)
        admitted, filtered = tuple(part.take(own) for part in admitted), filtered[own]
        excluded = None if excluded is None else excluded.take(moved(own, model.device))
    return Tile(vectors, admitted, filtered, excluded)


def _shrink_tiles(model: Corpus, failed: int) -> None:
    """Half as many queries at once, after a tile of `failed` queries did not fit."""
    if failed <= LEAST_QUERIES:
        raise RunError(
            f"{model.device}: out of memory with {failed} queries at once; free memory on it, lower --rescore, or "
            "use --device cpu"
        )
    model.tile_queries = max(failed // 2, LEAST_QUERIES)
    model.words_bytes = min(model.words_bytes, model.tile_queries * 8 * model.num_words)
    model.forget_words()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    model.warnings.append(f"{model.device} ran out of memory; going on with {model.tile_queries} queries at once")
