"""The audit of a run: some of its own queries, searched exactly once the results are there.

Results do not depend on the batch a query stands in, so the sample is searched again with the options of the run
and compared with the proven best items under the same filter and exclusions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stcli.config import RetrieveConfig
from stcli.errors import ThresholdError
from stcli.measure.metrics import mean_recall, recall_by_band
from stcli.model.calibrate import bands_of_queries
from stcli.model.planner import SearchOptions
from stcli.model.results import Results
from stcli.model.retriever import Retriever
from stcli.pipeline.queries import QueryBatch

ALL = "all queries"

DEFAULT_SAMPLE = 1000
"""Queries that are audited when only `--min-recall` is given."""

SEED_APART = 5
"""Added to the seed, so that the audit does not judge the calibration by the queries that it was made on."""


def audit(model: Retriever, sample: QueryBatch, options: SearchOptions) -> dict[str, dict[str, Any]]:
    """Recall@k of sampled queries, searched as the run did, against the exact search.

    Args:
        model: the packed model.
        sample: queries of the run.
        options: of the run.

    Returns:
        For `all queries` and each band of the pass rate that has some: `queries`, `recall` (the mean over queries that
        have an eligible item) and its normal 95 % interval `low` to `high`.
    """
    found, true = (
        model.search(sample.vectors, sample.filters, asked, sample.excluded)
        for asked in (options, replace(options, exact=True, probes=None))
    )
    recall = recall_of(found, true)
    bands = bands_of_queries(model, sample.filters, options.allowed).numpy()
    lines = [{"band": ALL, **mean_recall(recall)}, *recall_by_band(recall, bands)]
    return {
        line["band"]: {"queries": line["queries"], "recall": line["mean"], "low": line["low"], "high": line["high"]}
        for line in lines
        if line["queries"]
    }


def recall_of(found: Results, true: Results) -> np.ndarray:
    """Share of the true results that were found; float64 [B], NaN for a query that has none."""
    line = torch.arange(len(true.rows))[:, None] << 32
    hits = (torch.isin(true.rows + line, found.rows + line) & (true.rows >= 0)).sum(1).double()
    return (hits / true.counts).numpy()


def check_thresholds(
    config: RetrieveConfig, audited: Mapping[str, Mapping[str, Any]] | None, answered: int, short: int, folder: str
) -> None:
    """Stop a run that missed what its user asked for, before its results are marked as whole.

    Recall is missed if the mean of all audited queries is below `--min-recall`, or if a band's whole interval is.

    Args:
        config: of the run.
        audited: what `audit` returned, or None.
        answered: queries that were answered.
        short: queries of those with fewer than k results.
        folder: where the parts are.

    Raises:
        ThresholdError: a threshold was missed.
    """
    kept = f"{folder} is kept without a manifest; accept it by --resume with another threshold, or use --overwrite"
    if config.min_recall is not None and audited:
        for band, line in audited.items():
            value = line["recall"] if band == ALL else line["high"]
            if value < config.min_recall:
                raise ThresholdError(
                    f"recall@{config.k} of {band} is {line['recall']:.4f} ({line['low']:.4f} to {line['high']:.4f} on "
                    f"{line['queries']} audited), below --min-recall {config.min_recall:g}; {kept} with a "
                    "higher --target-recall"
                )
    if config.max_short_fraction is not None and short > config.max_short_fraction * answered:
        raise ThresholdError(
            f"{short} of {answered} queries have fewer than {config.k} results, more than --max-short-fraction "
            f"{config.max_short_fraction:g}; {kept} with wider filters"
        )
