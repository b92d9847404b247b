"""What happens after the search, from names and texts: value models, rules, and the columns that they read."""

from __future__ import annotations

from collections.abc import Sequence

from stcli.config import RetrieveConfig
from stcli.errors import InputError
from stcli.model.retriever import Retriever
from stcli.model.scoring_options import ScoringOptions, scored_tasks
from stcli.pipeline.columns import KeptColumns
from stcli.pipeline.rules import read_rules
from stcli.pipeline.value_models import open_value_model


def scoring_options(
    model: Retriever,
    *,
    tasks: Sequence[str] = (),
    value_models: Sequence[str] = (),
    max_per: Sequence[str] = (),
    distinct_by: Sequence[str] = (),
    combine: str = "union",
    pool: int | None = None,
    overarch: bool = True,
) -> ScoringOptions:
    """Say what happens after the search, for `model(..., scoring=...)`.

    Args:
        model: the packed model.
        tasks: names of the user vectors that requests will bring; none for one vector without a name.
        value_models: names of packed value models; the first one scores.
        max_per: caps such as "seller=2", on kept item columns.
        distinct_by: kept item columns of which a request gets each value once.
        combine: "union" of what the tasks find, or "intersection", items found for every task.
        pool: K0, candidates of each task that the OverArch or value model scores; default: the larger of 1,000 and 4 k.
        overarch: score with the artifact's OverArch, if it has one.

    Raises:
        InputError: there is no such value model, task or column.
    """
    options = ScoringOptions(combine, pool, overarch)
    scored, kept = scored_tasks(model, options, tuple(tasks)), KeptColumns(*model.artifacts)
    values = tuple(open_value_model(model.manifest, name, scored, kept) for name in value_models)
    names = {column for value in values for column in value.columns("item")}
    columns = {name: kept.values(name) for name in sorted(names)}
    return ScoringOptions(combine, pool, overarch, values, columns, read_rules(max_per, distinct_by, kept))


def run_scoring(
    model: Retriever, config: RetrieveConfig, tasks: tuple[str, ...], there: Sequence[str]
) -> ScoringOptions:
    """What a run of `retrieve` asks for; with `--value-model-column`, every value model that its tasks allow.

    Args:
        model: the packed model.
        config: of the run.
        tasks: names of the user vectors.
        there: columns of the query table.

    Raises:
        InputError: as `scoring_options`.
    """
    names = [config.value_model] if config.value_model is not None else []
    overarch = config.overarch == "on"
    if config.value_model_column is not None:
        packed = sorted(model.manifest.get("value_models", {}))
        if not packed:
            raise InputError("--value-model-column: the artifact has no value models (pack-model --value-model)")
        names += [name for name in packed if name not in names and _opens(model, name, tasks, overarch, there)]
    return scoring_options(
        model, value_models=names, max_per=config.max_per, distinct_by=config.distinct_by, combine=config.combine,
        pool=config.rescore, tasks=tasks, overarch=overarch,
    )  # fmt: skip


def _opens(model: Retriever, name: str, tasks: tuple[str, ...], overarch: bool, there: Sequence[str]) -> bool:
    try:
        (value,) = scoring_options(model, value_models=[name], tasks=tasks, overarch=overarch).values
    except InputError:
        return False
    return set(value.columns("query")) <= set(there)
