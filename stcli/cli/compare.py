"""`compare`: two reports or two results directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output
from stcli.errors import ThresholdError


def compare(
    before: Annotated[Path, typer.Argument(help="Report or results directory.", show_default=False)],
    after: Annotated[Path, typer.Argument(help="Another of the same kind.", show_default=False)],
    k: Annotated[
        int | None,
        opt.option("--k", "Results of each query that are compared. [default: all]", min=1, show_default=False),
    ] = None,
    min_recall: Annotated[
        float | None,
        opt.option(
            "--min-recall",
            "Exit with 3 if the planned recall AFTER (reports), or the mean overlap (results), is below (0 to 1).",
            show_default=False,
        ),
    ] = None,
    max_slowdown: Annotated[
        float | None,
        opt.option(
            "--max-slowdown",
            "Exit with 3 if AFTER lost more than this share of its planned throughput, beyond noise (0 to 1; reports).",
            show_default=False,
        ),
    ] = None,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Tell what changed between two reports, or between two results directories.

    Reports: recall, throughput, latency, memory, and whether each changed beyond noise. Results: overlap of the lists,
    coverage of the items, share of the most returned ones, short queries.

    \b
    Examples:
      stcli compare report-main report-branch --min-recall 0.95 --max-slowdown 0.1
      stcli compare results-yesterday results-today --k 10
    """  # noqa: D301
    out = Output(as_json, quiet, True)
    try:
        summary = load("compare", None)(before, after, k=k, min_recall=min_recall, max_slowdown=max_slowdown)
    except ThresholdError as error:
        out.summary(error.summary)
        raise
    out.summary(summary)
