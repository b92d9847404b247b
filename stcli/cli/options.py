"""Options that mean the same in every command, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(name: str, text: str, short: str | None = None, **more: Any) -> Any:
    """An option `--name` with the environment variable STCLI_NAME."""
    variable = "STCLI_" + name.strip("-").split("/")[0].replace("-", "_").upper()
    return typer.Option(*([short] if short else []), name, help=text, envvar=variable, show_envvar=False, **more)


def split(text: str | None) -> tuple[str, ...]:
    """A comma-separated list of columns."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def split_numbers(name: str, text: str | None) -> tuple[int, ...]:
    """A comma-separated list of whole numbers.

    Raises:
        InputError: one of them is none.
    """
    from stcli.errors import InputError

    try:
        return tuple(int(part) for part in split(text))
    except ValueError as error:
        raise InputError(f"{name} {text!r}: expected whole numbers with commas, such as 4,16,64") from error


def split_shares(name: str, text: str | None) -> tuple[float, ...]:
    """A comma-separated list of numbers.

    Raises:
        InputError: one of them is none.
    """
    from stcli.errors import InputError

    try:
        return tuple(float(part) for part in split(text))
    except ValueError as error:
        raise InputError(f"{name} {text!r}: expected numbers with commas, such as 0.95,0.98") from error


Output = Annotated[str, typer.Option("-o", "--output", help="Where the result goes.", show_default=False)]
Overwrite = Annotated[bool, option("--overwrite", "Replace an existing output, once the new one is whole.")]
DryRun = Annotated[
    bool, option("--dry-run", "Check the inputs, tell bytes and seconds from a sample, and write nothing.")
]
AsJson = Annotated[bool, option("--json", "Print one JSON object on stdout instead of a table.")]
Device = Annotated[str, option("--device", "auto, cpu, cuda or cuda:<number>.")]
Devices = Annotated[
    str,
    option("--device", "auto, cpu, cuda, cuda:<number>, or cuda:all: a copy on every GPU, or a set's files over them."),
]
Backend = Annotated[str, option("--backend", "Form of the operations: auto, native (C++), cuda (kernels) or torch.")]
Threads = Annotated[int | None, option("--threads", "CPU threads. [default: all cores]", min=1, show_default=False)]
MemoryLimit = Annotated[
    str | None,
    option(
        "--memory-limit",
        "Anonymous and shared memory to use, e.g. 2GB. [default: 80 % of what is free]",
        show_default=False,
    ),
]
Seed = Annotated[int, option("--seed", "Seed of every random choice; recorded in the output.")]
IdColumn = Annotated[str, option("--id-column", "Column of ids, integer or string.")]
EmbeddingColumn = Annotated[str, option("--embedding-column", "Column of embeddings, a list of floats.")]
BadRows = Annotated[
    str,
    option("--bad-rows", "fail: stop at the first unusable row; quarantine: set them aside in OUT.rejected.parquet."),
]
MaxBadFraction = Annotated[
    float, option("--max-bad-fraction", "With quarantine, stop when more than this share of the rows is bad (0 to 1).")
]
EmbeddingVersion = Annotated[
    str | None,
    option(
        "--embedding-version",
        "Version of the embeddings; a run that mixes two is refused. [default: from the Parquet metadata]",
        show_default=False,
    ),
]
FilterColumn = Annotated[
    str | None,
    option("--filter-column", "Query column with a filter text for each query (NULL: no filter).", show_default=False),
]
Probes = Annotated[
    int | None,
    option(
        "--probes",
        "Clusters to look at for every query, instead of planning each one. [default: planned]",
        min=1,
        show_default=False,
    ),
]
TargetRecall = Annotated[
    float,
    option(
        "--target-recall",
        "recall@k to reach in every band of the pass rate, measured on these queries first (above 0, up to 1).",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with defaults for these options.",
        is_eager=True,
        callback=lambda ctx, value: load_config(ctx, value),
        show_default=False,
    ),
]
AllowModelCode = Annotated[
    bool,
    option("--allow-model-code", "A tower that is a torch.export program may run. It is code: trust where it is from."),
]
Quiet = Annotated[bool, option("--quiet", "Print only errors.", "-q")]
Verbose = Annotated[bool, option("--verbose", "Print details, and stack traces of errors.", "-v")]
LogJson = Annotated[
    str | None,
    option(
        "--log-json",
        "Add one JSON object a line to this file, or print it on stderr (-): stages, progress, warnings, errors.",
        show_default=False,
    ),
]
Metrics = Annotated[
    str | None,
    option(
        "--metrics",
        "Write the summary of --json to this file, too: seconds of each stage, rates, peak memory, retries.",
        show_default=False,
    ),
]
NoProgress = Annotated[bool, option("--no-progress", "No progress bars, even on a terminal.")]


def load_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of a command from a TOML file.

    Raises:
        InputError: the file cannot be read, or has a key that is no option.
    """
    import tomllib

    from stcli.errors import InputError, nearest

    if path is None:
        return None
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: cannot be read ({error}); expected a TOML file of options") from error
    # By the option's name, since the parameter of --json is called something else.
    known = {name.lstrip("-"): item.name for item in context.command.params for name in item.opts if name[:2] == "--"}
    many = {item.name for item in context.command.params if getattr(item, "multiple", False)}
    known = {key: name for key, name in known.items() if key not in ("config", "help")}
    for key, value in data.items():
        option = key.replace("_", "-")
        if option not in known:
            there = nearest(option, sorted(known))
            raise InputError(f"--config {path}: {key!r} is no option of {context.info_name}; {there}")
        listed = isinstance(value, list) and known[option] not in many
        joined = ",".join(map(str, value)) if listed else value
        context.default_map = {**(context.default_map or {}), known[option]: joined}
    return path
