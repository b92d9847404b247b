"""`build-index` and `pack-model`: from a table to an artifact."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output


def build_index(
    items: Annotated[list[str], typer.Argument(help="Parquet file, files, directory or URI.", show_default=False)],
    output: opt.Output,
    id_column: opt.IdColumn = "item_id",
    embedding_column: opt.EmbeddingColumn = "embedding",
    item_tower: Annotated[
        str | None,
        opt.option(
            "--item-tower",
            "JSON config of a tower (mlp) that computes the embeddings from item columns; its weights lie beside it as "
            "safetensors. [default: the embedding column]",
            show_default=False,
        ),
    ] = None,
    feature_columns: Annotated[
        str | None,
        opt.option(
            "--feature-columns",
            "Columns to filter on, comma-separated. [default: all that can be, kept ones too]",
            show_default=False,
        ),
    ] = None,
    small_features: Annotated[
        bool,
        typer.Option(
            envvar="STCLI_SMALL_FEATURES",
            show_envvar=False,
            help="Also index unnamed scalar columns with at most 256 distinct values; they cost a few bits an item.",
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
    preset: Annotated[
        str | None,
        opt.option(
            "--preset",
            "silvertorch: the paper's form, every term on --bloom-bits Bloom rows and one global scale; unverified.",
            show_default=False,
        ),
    ] = None,
    bloom_bits: Annotated[
        int, opt.option("--bloom-bits", "With --preset silvertorch: Bloom rows (512 to 2048).")
    ] = 1024,
    bloom_hashes: Annotated[int, opt.option("--bloom-hashes", "With --preset silvertorch: Bloom rows of a term.")] = 5,
    filter_bytes: Annotated[
        int, opt.option("--filter-bytes", "Bytes an item that the bit matrix may take.", min=1)
    ] = 56,
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
    dry_run: opt.DryRun = False,
    as_json: opt.AsJson = False,
    config: opt.Config = None,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
    no_progress: opt.NoProgress = False,
    log_json: opt.LogJson = None,
    metrics: opt.Metrics = None,
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
    out = Output(as_json, quiet, no_progress, log_json, metrics)
    summary = load("build_index", threads)(
        items,
        output,
        progress=out.progress,
        id_column=id_column,
        embedding_column=embedding_column,
        item_tower=item_tower,
        feature_columns=None if feature_columns is None else opt.split(feature_columns),
        small_features=small_features,
        keep_columns=opt.split(keep_columns),
        metric=metric,
        clusters=clusters,
        scale=scale,
        preset=preset,
        bloom_bits=bloom_bits,
        bloom_hashes=bloom_hashes,
        filter_bytes=filter_bytes,
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
        dry_run=dry_run,
    )
    out.summary(summary)


def pack_model(
    index: Annotated[str, typer.Argument(help="Directory made by build-index.", show_default=False)],
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
    id_column: opt.IdColumn = "item_id",
    embedding_column: opt.EmbeddingColumn = "embedding",
    overarch: Annotated[
        str | None,
        opt.option(
            "--overarch",
            "JSON config of a learned similarity that scores the candidates again (dot, mlp or mol); its weights "
            "lie beside it as safetensors. [default: the dot product]",
            show_default=False,
        ),
    ] = None,
    overarch_columns: Annotated[
        str | None,
        opt.option(
            "--overarch-columns",
            "Kept item columns that the OverArch reads, comma-separated, in the order of its config. "
            "[default: those that its config names]",
            show_default=False,
        ),
    ] = None,
    overarch_cache: Annotated[
        str,
        opt.option(
            "--overarch-cache",
            "What a mol OverArch keeps of each item: components (float16), int8, or none, computed at each request.",
        ),
    ] = "components",
    tower: Annotated[
        str | None,
        opt.option(
            "--tower",
            "JSON config of a tower that makes user vectors of a history and query columns (mlp, mean_pool or hstu); "
            "its weights lie beside it as safetensors. [default: vectors stand in the query table]",
            show_default=False,
        ),
    ] = None,
    allow_model_code: opt.AllowModelCode = False,
    value_model: Annotated[
        list[str] | None,
        typer.Option(
            "--value-model",
            help="NAME=FORMULA that makes one score of task scores and columns; repeatable. See FORMULAS.md.",
            show_default=False,
        ),
    ] = None,
    value_models: Annotated[
        str | None,
        opt.option("--value-models", "JSON file with a formula for each name of a value model.", show_default=False),
    ] = None,
    shards: Annotated[
        int | None,
        opt.option(
            "--shards",
            "Split the artifact into so many files of equal bytes; the output is a directory. [default: one file]",
            show_default=False,
        ),
    ] = None,
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
    """Pack an index and its embeddings into one model artifact.

    The artifact is one safetensors file: it opens by mapping, in well under a second whatever its size.

    \b
    Examples:
      stcli pack-model items.index -o model.safetensors
      stcli pack-model items.index -o model.safetensors --embedding-dtype float32
      stcli pack-model items.index -o model --shards 4
      stcli pack-model items.index -o model.safetensors --overarch overarch.json --overarch-cache int8
      stcli pack-model items.index -o model.safetensors --value-model feed='0.5 * task.like + 13.5 * task.reply'
    """  # noqa: D301
    out = Output(as_json, quiet, no_progress, log_json, metrics)
    summary = load("pack_model", None)(
        index,
        output,
        progress=out.progress,
        embedding_dtype=embedding_dtype,
        embeddings=embeddings,
        id_column=id_column,
        embedding_column=embedding_column,
        overarch=overarch,
        overarch_columns=None if overarch_columns is None else opt.split(overarch_columns),
        overarch_cache=overarch_cache,
        tower=tower,
        allow_model_code=allow_model_code,
        value_models=value_model or (),
        value_model_file=value_models,
        shards=shards,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    out.summary(summary)
