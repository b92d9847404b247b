"""`inspect` and `explain`: looking inside."""

from __future__ import annotations

from typing import Annotated

import typer

from stcli.cli import options as opt
from stcli.cli.load import load
from stcli.cli.output import Output
from stcli.errors import InputError


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
    filter: Annotated[str | None, typer.Option("--filter", help="The filter to explain.", show_default=False)] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="Query table, for the score of one request and item.")
    ] = None,
    query: Annotated[str | None, typer.Option("--query", help="Id of the request.", show_default=False)] = None,
    item: Annotated[str | None, typer.Option("--item", help="Id of the item.", show_default=False)] = None,
    value_model: Annotated[
        str | None, typer.Option("--value-model", help="Packed value model that scores. [default: the best task score]")
    ] = None,
    id_column: Annotated[str, opt.option("--id-column", "Column of query ids.")] = "query_id",
    embedding_column: opt.EmbeddingColumn = "embedding",
    task_embeddings: Annotated[
        str | None, opt.option("--task-embeddings", "Columns of the user vectors, as in retrieve.", show_default=False)
    ] = None,
    allow_model_code: opt.AllowModelCode = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Tell what becomes of a filter, or how the score of an item comes about.

    Of a filter: its plan, the rows it reads, how many items it admits and how many are eligible. Of a score: the
    scores of the tasks, and what each term of the value model adds.

    \b
    Examples:
      stcli explain model.safetensors --filter "category = 'book' AND NOT lang IN ('de', 'fr')"
      stcli explain model.safetensors --queries queries.parquet --query 42 --item 1007 --value-model feed
    """  # noqa: D301
    out = Output(as_json, quiet, True)
    asked = {"--queries": queries, "--query": query, "--item": item}
    if filter is not None and not any(asked.values()):
        out.summary(load("explain", None)(model, filter))
    elif filter is None and queries is not None and query is not None and item is not None:
        out.summary(
            load("explain_score", None)(
                model, queries, query, item, value_model=value_model, id_column=id_column,
                embedding_column=embedding_column, task_embeddings=task_embeddings, allow_model_code=allow_model_code,
            )
        )  # fmt: skip
    else:
        lacking = [name for name, value in asked.items() if value is None]
        missing = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing"
        raise InputError(
            "explain takes --filter, or --queries, --query and --item together; "
            + ("give one of the two" if filter is not None else missing)
        )
