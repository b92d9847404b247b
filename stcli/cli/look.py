"""`inspect` and `explain`: looking inside."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output


def inspect(
    path: Annotated[str, typer.Argument(help="Parquet, index, artifact, results or report.", show_default=False)],
    verify: Annotated[
        bool, opt.option("--verify", "Check the hash of all content and the invariants of the tensors.")
    ] = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Tell what a file or directory is, and whether it is whole.

    \b
    Examples:
      stcli inspect items.parquet
      stcli inspect model.safetensors --verify
    """  # noqa: D301
    Output(as_json, quiet, True).summary({"command": "inspect", **load("inspect", None)(path, verify=verify)})


def explain(
    model: Annotated[str, typer.Argument(help="Artifact made by pack-model.", show_default=False)],
    filter: Annotated[str, typer.Option("--filter", help="The filter to explain.", show_default=False)],
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Tell what becomes of a filter: its plan, the rows it reads, how many items it admits and how many are eligible.

    \b
    Examples:
      stcli explain model.safetensors --filter "category = 'book' AND NOT lang IN ('de', 'fr')"
    """  # noqa: D301
    Output(as_json, quiet, True).summary(load("explain", None)(model, filter))
