"""`retrieve`: answers to a table of queries."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output


def retrieve(
    model: Annotated[str, typer.Argument(help="Artifact made by pack-model.", show_default=False)],
    queries: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    k: Annotated[int, opt.option("--k", "Results a query.", min=1)] = 100,
    id_column: opt.IdColumn = "query_id",
    embedding_column: opt.EmbeddingColumn = "embedding",
    task_embeddings: Annotated[
        str | None,
        opt.option(
            "--task-embeddings",
            "User vectors of several tasks: like=column,share=column. [default: columns user_embedding__<task>, where "
            "there is no --embedding-column]",
            show_default=False,
        ),
    ] = None,
    combine: Annotated[
        str, opt.option("--combine", "union of what the tasks find, or intersection: items found for every task.")
    ] = "union",
    candidates_column: Annotated[
        str | None,
        opt.option(
            "--candidates-column",
            "Query column with a list of item ids to rank, instead of searching.",
            show_default=False,
        ),
    ] = None,
    query_item_column: Annotated[
        str | None,
        opt.option(
            "--query-item-column",
            "Query column with an item id: finds the items nearest to that item, without itself.",
            show_default=False,
        ),
    ] = None,
    k_column: Annotated[
        str | None,
        opt.option(
            "--k-column", "Query column with the results of each query, 1 to --k (NULL: --k).", show_default=False
        ),
    ] = None,
    allow_model_code: opt.AllowModelCode = False,
    value_model: Annotated[
        str | None,
        opt.option("--value-model", "Packed value model that gives the scores, by name.", show_default=False),
    ] = None,
    value_model_column: Annotated[
        str | None,
        opt.option(
            "--value-model-column",
            "Query column with the name of each query's value model (NULL: --value-model).",
            show_default=False,
        ),
    ] = None,
    overarch: Annotated[
        str, opt.option("--overarch", "on: score with the artifact's OverArch, if it has one; off: dot products.")
    ] = "on",
    max_per: Annotated[
        str | None,
        opt.option(
            "--max-per", "At most so many results of a group, by kept item columns: seller=2.", show_default=False
        ),
    ] = None,
    distinct_by: Annotated[
        str | None,
        opt.option("--distinct-by", "Kept item columns of which a query gets each value once.", show_default=False),
    ] = None,
    filter_column: opt.FilterColumn = None,
    filter: Annotated[
        str | None,
        opt.option(
            "--filter",
            "One filter for all queries; $name stands for the value of that query column. ANDed with --filter-column.",
            show_default=False,
        ),
    ] = None,
    exclude_column: Annotated[
        str | None,
        opt.option("--exclude-column", "Query column with a list of item ids it must not get.", show_default=False),
    ] = None,
    exclude_items: Annotated[
        str | None, opt.option("--exclude-items", "Parquet table of items that no query gets.", show_default=False)
    ] = None,
    only_items: Annotated[
        str | None,
        opt.option("--only-items", "Parquet table of the only items that any query gets.", show_default=False),
    ] = None,
    item_id_column: Annotated[
        str, opt.option("--item-id-column", "Id column of --exclude-items and --only-items.")
    ] = "item_id",
    target_recall: opt.TargetRecall = 0.95,
    probes: opt.Probes = None,
    exact: Annotated[
        bool,
        opt.option("--exact", "Look at every cluster and prove that the results are the best of all eligible items."),
    ] = False,
    calibration: Annotated[
        str | None,
        opt.option("--calibration", "Reuse the calibration of an earlier run: its _manifest.json.", show_default=False),
    ] = None,
    rescore: Annotated[
        int | None,
        opt.option(
            "--rescore",
            "Candidates re-scored from the packed embeddings [default: the larger of k + 32 and 1.3 k] or scored by an "
            "OverArch or a value model [default: the larger of 1000 and 4 k]; of each task.",
            min=1,
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        int | None,
        opt.option(
            "--audit",
            "Search so many random queries of this run exactly afterwards, and state their recall by band.",
            min=1,
            show_default=False,
        ),
    ] = None,
    min_recall: Annotated[
        float | None,
        opt.option(
            "--min-recall",
            "Exit with 3, results not published, if the audited recall is below (0 to 1); audits 1,000 by itself.",
            show_default=False,
        ),
    ] = None,
    max_short_fraction: Annotated[
        float | None,
        opt.option(
            "--max-short-fraction",
            "Exit with 3, results not published, if a larger share of queries has fewer than k results (0 to 1).",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None, opt.option("--columns", "Query columns copied to the output, comma-separated.", show_default=False)
    ] = None,
    item_columns: Annotated[
        str | None, opt.option("--item-columns", "Kept item columns given for each result.", show_default=False)
    ] = None,
    explain: Annotated[
        bool,
        opt.option("--explain", "Add how each query was searched: route, probes, estimated, admitted, items_scored."),
    ] = False,
    explode: Annotated[
        bool, opt.option("--explode", "One row for each result instead of one for each query; NULL item without any.")
    ] = False,
    verify: Annotated[
        str,
        opt.option(
            "--verify",
            "on: check candidates by their exact terms; off: ineligible ones may appear; "
            "auto: on, but off for the paper's preset.",
        ),
    ] = "auto",
    filter_scope: Annotated[
        str,
        opt.option(
            "--filter-scope",
            "Where filters are evaluated: all items; probed: the clusters that a query looks into, what they admit "
            "being estimated; auto: what costs less.",
        ),
    ] = "auto",
    min_score: Annotated[
        float | None, opt.option("--min-score", "Leave out results below this score.", show_default=False)
    ] = None,
    score_dtype: Annotated[str, opt.option("--score-dtype", "float32, float16 or none.")] = "float32",
    limit: Annotated[
        int | None, opt.option("--limit", "Answer only the first rows.", min=1, show_default=False)
    ] = None,
    embedding_version: opt.EmbeddingVersion = None,
    bad_rows: opt.BadRows = "fail",
    max_bad_fraction: opt.MaxBadFraction = 0.001,
    batch_size: Annotated[
        int | None, opt.option("--batch-size", "Queries searched at once. [default: 8192]", min=1, show_default=False)
    ] = None,
    part_rows: Annotated[
        int, opt.option("--part-rows", "Query rows of one output file, the unit of --resume.", min=1)
    ] = 65_536,
    memory_limit: opt.MemoryLimit = None,
    seed: opt.Seed = 0,
    device: opt.Devices = "auto",
    place: Annotated[
        str | None,
        opt.option(
            "--place",
            "On a GPU: embeddings=gpu|host,terms=gpu|host. [default: embeddings where they fit, terms on the host]",
            show_default=False,
        ),
    ] = None,
    backend: opt.Backend = "auto",
    threads: opt.Threads = None,
    engine: Annotated[
        str, opt.option("--engine", "local: processes of this machine; ray: actors of a Ray cluster (RAY_ADDRESS).")
    ] = "local",
    workers: Annotated[
        int, opt.option("--workers", "Processes or Ray actors that answer parts; they share the artifact.", min=1)
    ] = 1,
    resume: Annotated[
        bool, opt.option("--resume", "Go on with an interrupted run; refused if inputs or options changed.")
    ] = False,
    overwrite: opt.Overwrite = False,
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    log_json: opt.LogJson = None,
    metrics: opt.Metrics = None,
) -> None:
    """Answer a Parquet table of queries.

    Each query has its own filter, a text such as  category = 'book' AND NOT lang IN ('de', 'fr').
    Every result satisfies it; fewer than k come back only when fewer items do. The output is a
    directory of Parquet files: the query id, item_id and score lists, best first, and a status.

    \b
    Examples:
      stcli retrieve model.safetensors queries.parquet -o results --k 100 --filter-column filter
      stcli retrieve model.safetensors queries.parquet -o exact --exact
      stcli retrieve model.safetensors queries.parquet -o r --filter "lang IN $langs AND price <= $budget"
      stcli retrieve model.safetensors queries.parquet -o r --audit 1000 --min-recall 0.95
      stcli retrieve model.safetensors queries/ -o results --target-recall 0.99 --columns user --resume
      stcli retrieve model.safetensors queries.parquet -o results --task-embeddings like=like_user,buy=buy_user
      stcli retrieve model.safetensors items.parquet -o similar --query-item-column item_id --id-column item_id
      stcli retrieve model.safetensors queries.parquet -o ranked --candidates-column candidates --k 500
      stcli retrieve model.safetensors queries.parquet -o feed --value-model feed --max-per seller=2
    """  # noqa: D301
    out = Output(as_json, quiet, no_progress, log_json, metrics)
    summary = load("retrieve", threads)(
        model,
        queries,
        output,
        progress=out.progress,
        k=k,
        id_column=id_column,
        embedding_column=embedding_column,
        task_embeddings=task_embeddings,
        combine=combine,
        candidates_column=candidates_column,
        query_item_column=query_item_column,
        k_column=k_column,
        allow_model_code=allow_model_code,
        value_model=value_model,
        value_model_column=value_model_column,
        overarch=overarch,
        max_per=opt.split(max_per),
        distinct_by=opt.split(distinct_by),
        filter_column=filter_column,
        filter=filter,
        exclude_column=exclude_column,
        exclude_items=exclude_items,
        only_items=only_items,
        item_id_column=item_id_column,
        target_recall=target_recall,
        probes=probes,
        exact=exact,
        calibration=calibration,
        rescore=rescore,
        audit=audit,
        min_recall=min_recall,
        max_short_fraction=max_short_fraction,
        columns=opt.split(columns),
        item_columns=opt.split(item_columns),
        explain=explain,
        explode=explode,
        verify=verify,
        filter_scope=filter_scope,
        min_score=min_score,
        score_dtype=score_dtype,
        limit=limit,
        embedding_version=embedding_version,
        bad_rows=bad_rows,
        max_bad_fraction=max_bad_fraction,
        batch_size=batch_size,
        part_rows=part_rows,
        memory_limit=memory_limit,
        seed=seed,
        device=device,
        place=opt.split(place),
        backend=backend,
        threads=threads,
        engine=engine,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    out.summary(summary)
