"""`update`: from an artifact and a change to a set."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output


def update(
    model: Annotated[str, typer.Argument(help="Artifact of pack-model, or set of an update.", show_default=False)],
    output: opt.Output,
    upsert: Annotated[
        str | None,
        opt.option(
            "--upsert",
            "Parquet table of new and changed items, with the columns that the index was built from.",
            show_default=False,
        ),
    ] = None,
    delete: Annotated[
        str | None,
        opt.option(
            "--delete",
            "Parquet table of ids to delete; one that is upserted too is replaced, not deleted.",
            show_default=False,
        ),
    ] = None,
    compact: Annotated[
        bool,
        opt.option(
            "--compact",
            "Fold a set into one new artifact (-o is a file). The items are read back from the set: ids, kept columns "
            "and filter values exactly, embeddings as packed (float16 keeps 11 bits), none as their int8 codes.",
        ),
    ] = False,
    id_column: Annotated[
        str | None, opt.option("--id-column", "Column of ids. [default: as the index was built]", show_default=False)
    ] = None,
    embedding_column: Annotated[
        str | None,
        opt.option("--embedding-column", "Column of embeddings. [default: as the index was built]", show_default=False),
    ] = None,
    item_tower: Annotated[
        str | None,
        opt.option(
            "--item-tower",
            "JSON config of the item tower that the index was built with, if one was; its weights lie beside it.",
            show_default=False,
        ),
    ] = None,
    bad_rows: opt.BadRows = "fail",
    max_bad_fraction: opt.MaxBadFraction = 0.001,
    memory_limit: opt.MemoryLimit = None,
    device: opt.Device = "auto",
    backend: opt.Backend = "auto",
    threads: opt.Threads = None,
    overwrite: opt.Overwrite = False,
    dry_run: Annotated[
        bool, opt.option("--dry-run", "Check the options and the columns, tell counts and bytes, and write nothing.")
    ] = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    log_json: opt.LogJson = None,
    metrics: opt.Metrics = None,
) -> None:
    """Make an artifact set that has new, changed and deleted items, without building the index again.

    The main files are linked, not copied. New items form a fresh index beside them, built anew at each update together
    with those of earlier updates; rows that were deleted or replaced become tombstones. The set is used like an
    artifact. When inspect shows a large share of fresh rows or tombstones, or drift, --compact it.

    \b
    Examples:
      stcli update model.safetensors --upsert new.parquet --delete gone.parquet -o model2/
      stcli update model2/ --upsert newer.parquet -o model3/
      stcli update model3/ --compact -o model4.safetensors
    """  # noqa: D301
    out = Output(as_json, quiet, no_progress, log_json, metrics)
    summary = load("update", threads)(
        model,
        output,
        upsert=upsert,
        delete=delete,
        progress=out.progress,
        compact=compact,
        id_column=id_column,
        embedding_column=embedding_column,
        item_tower=item_tower,
        bad_rows=bad_rows,
        max_bad_fraction=max_bad_fraction,
        memory_limit=memory_limit,
        device=device,
        backend=backend,
        threads=threads,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    out.summary(summary)
