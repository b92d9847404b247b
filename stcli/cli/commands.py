"""The five commands: their arguments, options, help and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.output import Output

IdColumn = Annotated[str, opt.option("--id-column", "Column of ids, integer or string.")]
EmbeddingColumn = Annotated[str, opt.option("--embedding-column", "Column of embeddings, a list of floats.")]


def build_index(
    items: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    id_column: IdColumn = "item_id",
    embedding_column: EmbeddingColumn = "embedding",
    feature_columns: Annotated[
        str | None,
        opt.option(
            "--feature-columns", "Columns to filter on, comma-separated. [default: all that can be]", show_default=False
        ),
    ] = None,
    small_features: Annotated[
        bool,
        typer.Option(
            help="Also index unnamed scalar columns with at most 256 distinct values; they cost a few bits an item."
        ),
    ] = True,
    keep_columns: Annotated[
        str | None,
        opt.option("--keep-columns", "Columns that retrieve can put beside each result.", show_default=False),
    ] = None,
    metric: Annotated[str, opt.option("--metric", "inner_product or cosine.")] = "inner_product",
    clusters: Annotated[
        int | None,
        opt.option(
            "--clusters",
            "k-means clusters. [default: the power of two nearest 4 * sqrt(items)]",
            min=1,
            show_default=False,
        ),
    ] = None,
    scale: Annotated[str, opt.option("--scale", "Int8 scale: one per row, or global (the paper's form).")] = "row",
    bloom_fpr: Annotated[
        float,
        opt.option("--bloom-fpr", "Share of items without a term that its Bloom rows let through (above 0, below 1)."),
    ] = 0.001,
    embedding_version: opt.EmbeddingVersion = None,
    bad_rows: opt.BadRows = "fail",
    max_bad_fraction: opt.MaxBadFraction = 0.001,
    memory_limit: opt.MemoryLimit = None,
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
) -> None:
    """Build an index directory from a Parquet item table.

    The index holds k-means clusters, int8 codes with a scale per row, the bit matrix of the filter,
    the exact terms and the embeddings.

    \b
    Examples:
      stcli build-index items.parquet -o items.index
      stcli build-index items/ -o items.index --feature-columns country,tags --keep-columns title
      stcli build-index s3://bucket/items -o items.index --metric cosine --memory-limit 8GB
    """  # noqa: D301
    from stcli.pipeline import build_index as pipeline

    out = Output(as_json, quiet, no_progress)
    summary = pipeline.build_index(
        items,
        output,
        progress=out.progress,
        id_column=id_column,
        embedding_column=embedding_column,
        feature_columns=None if feature_columns is None else opt.split(feature_columns),
        small_features=small_features,
        keep_columns=opt.split(keep_columns),
        metric=metric,
        clusters=clusters,
        scale=scale,
        bloom_fpr=bloom_fpr,
        embedding_version=embedding_version,
        bad_rows=bad_rows,
        max_bad_fraction=max_bad_fraction,
        memory_limit=memory_limit,
        seed=seed,
        device=device,
        backend=backend,
        threads=threads,
        overwrite=overwrite,
    )
    out.summary(summary)


def pack_model(
    index: Annotated[Path, typer.Argument(help="Directory made by build-index.", show_default=False)],
    output: opt.Output,
    embedding_dtype: Annotated[
        str, opt.option("--embedding-dtype", "float16, float32 or none: the embeddings that re-score the candidates.")
    ] = "float16",
    embeddings: Annotated[
        str | None,
        opt.option(
            "--embeddings",
            "Second, wider Parquet table of item embeddings, joined by id; its first dimensions search the index.",
            show_default=False,
        ),
    ] = None,
    id_column: IdColumn = "item_id",
    embedding_column: EmbeddingColumn = "embedding",
    overwrite: opt.Overwrite = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Pack an index and its embeddings into one model artifact.

    The artifact is one safetensors file: it opens by mapping, in well under a second whatever its size.

    \b
    Examples:
      stcli pack-model items.index -o model.safetensors
      stcli pack-model items.index -o model.safetensors --embedding-dtype float32
    """  # noqa: D301
    from stcli.pipeline import pack_model as pipeline

    out = Output(as_json, quiet, no_progress)
    summary = pipeline.pack_model(
        index,
        output,
        progress=out.progress,
        embedding_dtype=embedding_dtype,
        embeddings=embeddings,
        id_column=id_column,
        embedding_column=embedding_column,
        overwrite=overwrite,
    )
    out.summary(summary)


def retrieve(
    model: Annotated[Path, typer.Argument(help="Artifact made by pack-model.", show_default=False)],
    queries: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    k: Annotated[int, opt.option("--k", "Results a query.", min=1)] = 100,
    id_column: IdColumn = "query_id",
    embedding_column: EmbeddingColumn = "embedding",
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
        opt.option("--calibration", "Reuse a calibration.json or manifest.json of an earlier run.", show_default=False),
    ] = None,
    rescore: Annotated[
        int | None,
        opt.option(
            "--rescore",
            "Candidates re-scored from the packed embeddings. [default: the larger of k + 32 and 1.3 k]",
            min=1,
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
        bool, opt.option("--explain", "Add how each query was searched: route, probes, admitted, items_scored.")
    ] = False,
    explode: Annotated[bool, opt.option("--explode", "One row for each result instead of one for each query.")] = False,
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
    device: opt.Device = "auto",
    backend: opt.Backend = "auto",
    threads: opt.Threads = None,
    resume: Annotated[
        bool, opt.option("--resume", "Go on with an interrupted run; refused if inputs or options changed.")
    ] = False,
    overwrite: opt.Overwrite = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
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
      stcli retrieve model.safetensors queries/ -o results --target-recall 0.99 --columns user --resume
    """  # noqa: D301
    from stcli.pipeline import retrieve as pipeline

    out = Output(as_json, quiet, no_progress)
    summary = pipeline.retrieve(
        model,
        queries,
        output,
        progress=out.progress,
        k=k,
        id_column=id_column,
        embedding_column=embedding_column,
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
        columns=opt.split(columns),
        item_columns=opt.split(item_columns),
        explain=explain,
        explode=explode,
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
        backend=backend,
        threads=threads,
        resume=resume,
        overwrite=overwrite,
    )
    out.summary(summary)


def bench(
    model: Annotated[Path, typer.Argument(help="Artifact made by pack-model.", show_default=False)],
    queries: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    k: Annotated[int, opt.option("--k", "Results a query.", min=1)] = 100,
    id_column: IdColumn = "query_id",
    embedding_column: EmbeddingColumn = "embedding",
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
    batch_size: Annotated[
        int | None,
        opt.option("--batch-size", "Queries of one batch. [default: all of the sample]", min=1, show_default=False),
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
) -> None:
    """Measure recall, throughput, latency and memory on a sample of your queries.

    Writes report.json and a page, report.html. Recall is against exact float32 search under the exact filter.

    \b
    Examples:
      stcli bench model.safetensors queries.parquet -o report --filter-column filter
      stcli bench model.safetensors queries.parquet -o report --k 10 --min-recall 0.95
    """  # noqa: D301
    from stcli.pipeline import bench as pipeline

    out = Output(as_json, quiet, no_progress)
    summary = pipeline.bench(
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
        batch_size=batch_size,
        seed=seed,
        device=device,
        backend=backend,
        threads=threads,
        overwrite=overwrite,
    )
    out.summary(summary)


def inspect(
    path: Annotated[Path, typer.Argument(help="Parquet, index, artifact, results or report.", show_default=False)],
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
    from stcli.pipeline import inspect as pipeline

    Output(as_json, quiet, True).summary({"command": "inspect", **pipeline.inspect(path, verify=verify)})
