"""`bench`: recall and speed on a sample of queries."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output


def bench(
    model: Annotated[str, typer.Argument(help="Artifact made by pack-model.", show_default=False)],
    queries: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    k: Annotated[int, opt.option("--k", "Results a query.", min=1)] = 100,
    id_column: opt.IdColumn = "query_id",
    embedding_column: opt.EmbeddingColumn = "embedding",
    filter_column: opt.FilterColumn = None,
    sample: Annotated[int, opt.option("--sample", "Queries to measure with, drawn by the seed.", min=1)] = 1000,
    repeat: Annotated[
        int, opt.option("--repeat", "Measured repetitions of each setting, after one warm-up.", min=1)
    ] = 5,
    target_recall: opt.TargetRecall = 0.95,
    min_recall: Annotated[
        float | None,
        opt.option("--min-recall", "Exit with 3 if the default setting's recall is below.", show_default=False),
    ] = None,
    items: Annotated[
        str | None,
        opt.option(
            "--items", "Item table: recall against its embeddings instead of the packed ones.", show_default=False
        ),
    ] = None,
    probes: Annotated[
        str | None,
        opt.option(
            "--probes", "Numbers of clusters to measure, e.g. 4,16,64. [default: powers of two]", show_default=False
        ),
    ] = None,
    item_id_column: Annotated[str, opt.option("--item-id-column", "Id column of --items.")] = "item_id",
    item_embedding_column: Annotated[
        str, opt.option("--item-embedding-column", "Embedding column of --items.")
    ] = "embedding",
    batch_size: Annotated[
        int | None,
        opt.option("--batch-size", "Queries of one batch. [default: all of the sample]", min=1, show_default=False),
    ] = None,
    truth: Annotated[
        str | None,
        opt.option(
            "--truth",
            "Parquet table with query ids and the right item ids, best first: recall against these lists.",
            show_default=False,
        ),
    ] = None,
    truth_column: Annotated[str, opt.option("--truth-column", "Column of --truth with the lists of item ids.")] = (
        "item_id"
    ),
    relevant_column: Annotated[
        str | None,
        opt.option(
            "--relevant-column",
            "Query column with a list of relevant item ids: hit rate, recall and NDCG.",
            show_default=False,
        ),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        opt.option(
            "--price-per-hour",
            "What this machine costs an hour, in any currency: cost of a million queries.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        opt.option(
            "--against",
            "Other ways to search the same items, measured in turns with ours: faiss, torch, paper (comma-separated).",
            show_default=False,
        ),
    ] = None,
    compare_at: Annotated[
        str | None,
        opt.option(
            "--compare-at",
            "With --against: recalls at which speeds are compared, e.g. 0.95,0.98. [default: --target-recall]",
            show_default=False,
        ),
    ] = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    backend: opt.Backend = "auto",
    threads: opt.Threads = None,
    overwrite: opt.Overwrite = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    log_json: opt.LogJson = None,
    metrics: opt.Metrics = None,
) -> None:
    """Measure recall, throughput, latency and memory on a sample of your queries.

    Writes report.json and a page, report.html. Recall is against exact search under the exact filter, or against
    your own --truth.

    \b
    Examples:
      stcli bench model.safetensors queries.parquet -o report --filter-column filter
      stcli bench model.safetensors queries.parquet -o report --k 10 --min-recall 0.95
      stcli bench model.safetensors queries.parquet -o report --filter-column filter --against faiss,torch,paper
    """  # noqa: D301
    out = Output(as_json, quiet, no_progress, log_json, metrics)
    summary = load("bench", threads)(
        model,
        queries,
        output,
        progress=out.progress,
        k=k,
        id_column=id_column,
        embedding_column=embedding_column,
        filter_column=filter_column,
        sample=sample,
        repeat=repeat,
        target_recall=target_recall,
        min_recall=min_recall,
        items=items,
        probes=opt.split_numbers("--probes", probes),
        item_id_column=item_id_column,
        item_embedding_column=item_embedding_column,
        batch_size=batch_size,
        truth=truth,
        truth_column=truth_column,
        relevant_column=relevant_column,
        price_per_hour=price_per_hour,
        against=opt.split(against),
        compare_at=opt.split_shares("--compare-at", compare_at),
        seed=seed,
        device=device,
        backend=backend,
        threads=threads,
        overwrite=overwrite,
    )
    out.summary(summary)
