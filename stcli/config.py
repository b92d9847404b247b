"""The options of the commands, as the Python calls take them; the command line fills the same classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from stcli.errors import InputError

Config = TypeVar("Config", bound="BuildConfig | PackConfig | UpdateConfig | RetrieveConfig | BenchConfig")

Progress = Callable[[str, int, int, str], None]
"""`progress(stage, done, total, unit)`, called now and then while a stage runs; must be quick."""


def no_progress(stage: str, done: int, total: int, unit: str) -> None:
    """The progress that shows nothing."""


UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str | int) -> int:
    """`"2GB"`, `"512MiB"` or a number of bytes, as bytes.

    Raises:
        InputError: not a size.
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise InputError(f"size {text!r}: expected a number with a unit, such as 2GB or 512MiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def available_memory() -> int:
    """Bytes this process may still take: the control group's limit or the machine's free memory."""
    free = 1 << 62
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            bound = Path("/sys/fs/cgroup", limit).read_text().strip()
            if bound != "max":
                free = min(free, int(bound) - int(Path("/sys/fs/cgroup", used).read_text()))
        except (OSError, ValueError):
            continue
    return free


@dataclass
class BuildConfig:
    """Options of `build_index`; see `stcli build-index --help`."""

    id_column: str = "item_id"
    embedding_column: str = "embedding"
    item_tower: str | None = None
    feature_columns: Sequence[str] | None = None
    small_features: bool = True
    keep_columns: Sequence[str] = ()
    metric: str = "inner_product"
    clusters: int | None = None
    scale: str = "row"
    preset: str | None = None
    bloom_fpr: float = 0.001
    bloom_bits: int = 1024
    bloom_hashes: int = 5
    filter_bytes: int = 56
    embedding_version: str | None = None
    bad_rows: str = "fail"
    max_bad_fraction: float = 0.001
    memory_limit: str | int | None = None
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Check what can be checked without files.

        Raises:
            InputError: an option has no usable value.
        """
        if self.preset is not None:
            one_of("--preset", self.preset, ("silvertorch",))
            self.scale = "global"
        elif (self.bloom_bits, self.bloom_hashes) != (BuildConfig.bloom_bits, BuildConfig.bloom_hashes):
            raise InputError(
                "--bloom-bits and --bloom-hashes: only --preset silvertorch has a fixed number of Bloom rows; "
                "without it use --bloom-fpr and --filter-bytes"
            )
        one_of("--metric", self.metric, ("inner_product", "cosine"))
        one_of("--scale", self.scale, ("row", "global"))
        one_of("--bad-rows", self.bad_rows, ("fail", "quarantine"))
        if not 0 < self.bloom_fpr < 1:
            raise InputError(f"--bloom-fpr {self.bloom_fpr}: expected a share above 0 and below 1, such as 0.001")
        at_least("--clusters", self.clusters, 1)
        at_least("--seed", self.seed, 0)
        at_least("--threads", self.threads, 1)
        at_least("--filter-bytes", self.filter_bytes, 1)
        fraction("--max-bad-fraction", self.max_bad_fraction)


@dataclass
class PackConfig:
    """Options of `pack_model`; see `stcli pack-model --help`."""

    embedding_dtype: str = "float16"
    embeddings: str | None = None
    id_column: str = "item_id"
    embedding_column: str = "embedding"
    overarch: str | None = None
    overarch_columns: Sequence[str] | None = None
    overarch_cache: str = "components"
    tower: str | None = None
    allow_model_code: bool = False
    value_models: Sequence[str] = ()
    value_model_file: str | None = None
    shards: int | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Check what can be checked without files.

        Raises:
            InputError: an option has no usable value.
        """
        at_least("--shards", self.shards, 1)
        one_of("--overarch-cache", self.overarch_cache, ("components", "int8", "none"))
        if self.overarch is None and self.overarch_columns is not None:
            raise InputError("--overarch-columns names what an OverArch reads; give --overarch too, or leave it out")
        one_of("--embedding-dtype", self.embedding_dtype, ("float16", "float32", "none"))
        if self.embedding_dtype == "none" and self.embeddings is not None:
            raise InputError("--embeddings names what --embedding-dtype none leaves out; give one of them")


@dataclass
class UpdateConfig:
    """Options of `update`; see `stcli update --help`."""

    id_column: str | None = None
    embedding_column: str | None = None
    item_tower: str | None = None
    compact: bool = False
    bad_rows: str = "fail"
    max_bad_fraction: float = 0.001
    memory_limit: str | int | None = None
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Check what can be checked without files.

        Raises:
            InputError: an option has no usable value.
        """
        one_of("--bad-rows", self.bad_rows, ("fail", "quarantine"))
        fraction("--max-bad-fraction", self.max_bad_fraction)
        at_least("--threads", self.threads, 1)


@dataclass
class RetrieveConfig:
    """Options of `retrieve`; see `stcli retrieve --help`."""

    id_column: str = "query_id"
    embedding_column: str = "embedding"
    task_embeddings: str | None = None
    combine: str = "union"
    candidates_column: str | None = None
    query_item_column: str | None = None
    k_column: str | None = None
    allow_model_code: bool = False
    overarch: str = "on"
    value_model: str | None = None
    value_model_column: str | None = None
    max_per: Sequence[str] = ()
    distinct_by: Sequence[str] = ()
    filter_column: str | None = None
    filter: str | None = None
    exclude_column: str | None = None
    exclude_items: str | None = None
    only_items: str | None = None
    item_id_column: str = "item_id"
    columns: Sequence[str] = ()
    item_columns: Sequence[str] = ()
    k: int = 100
    probes: int | None = None
    exact: bool = False
    target_recall: float = 0.95
    calibration: str | None = None
    rescore: int | None = None
    audit: int | None = None
    min_recall: float | None = None
    max_short_fraction: float | None = None
    verify: str = "auto"
    filter_scope: str = "auto"
    min_score: float | None = None
    limit: int | None = None
    explode: bool = False
    explain: bool = False
    score_dtype: str = "float32"
    embedding_version: str | None = None
    bad_rows: str = "fail"
    max_bad_fraction: float = 0.001
    batch_size: int | None = None
    part_rows: int = 65_536
    memory_limit: str | int | None = None
    seed: int = 0
    device: str = "auto"
    place: Sequence[str] = ()
    backend: str = "auto"
    threads: int | None = None
    engine: str = "local"
    workers: int = 1
    overwrite: bool = False
    dry_run: bool = False
    resume: bool = False

    def check(self) -> None:
        """Check what can be checked without files.

        Raises:
            InputError: an option has no usable value.
        """
        at_least("--k", self.k, 1)
        at_least("--probes", self.probes, 1)
        at_least("--rescore", self.rescore, self.k)
        at_least("--batch-size", self.batch_size, 1)
        at_least("--part-rows", self.part_rows, 1)
        at_least("--limit", self.limit, 1)
        at_least("--workers", self.workers, 1)
        one_of("--engine", self.engine, ("local", "ray"))
        at_least("--audit", self.audit, 1)
        fraction("--min-recall", self.min_recall)
        fraction("--max-short-fraction", self.max_short_fraction)
        one_of("--bad-rows", self.bad_rows, ("fail", "quarantine"))
        one_of("--score-dtype", self.score_dtype, ("float32", "float16", "none"))
        one_of("--verify", self.verify, ("auto", "on", "off"))
        one_of("--filter-scope", self.filter_scope, ("auto", "probed", "all"))
        if self.candidates_column is not None and (self.audit is not None or self.min_recall is not None):
            raise InputError("--candidates-column searches nothing, so there is no recall to --audit; leave one out")
        if self.query_item_column is not None and self.task_embeddings is not None:
            raise InputError("--query-item-column and --task-embeddings both say what the queries are; leave one out")
        one_of("--overarch", self.overarch, ("on", "off"))
        one_of("--combine", self.combine, ("union", "intersection"))
        fraction("--max-bad-fraction", self.max_bad_fraction)
        if not 0 < self.target_recall <= 1:
            raise InputError(
                f"--target-recall {self.target_recall}: expected a share above 0 and up to 1, such as 0.95"
            )
        if self.exact and self.probes is not None:
            raise InputError("--exact looks at every cluster, so --probes has no meaning beside it; leave one out")
        if self.resume and self.overwrite:
            raise InputError("--resume goes on with what is there and --overwrite replaces it; choose one")


@dataclass
class BenchConfig:
    """Options of `bench`; see `stcli bench --help`."""

    id_column: str = "query_id"
    embedding_column: str = "embedding"
    filter_column: str | None = None
    k: int = 100
    sample: int = 1000
    repeat: int = 5
    probes: Sequence[int] = ()
    target_recall: float = 0.95
    min_recall: float | None = None
    items: str | None = None
    item_id_column: str = "item_id"
    item_embedding_column: str = "embedding"
    batch_size: int | None = None
    truth: str | None = None
    truth_column: str = "item_id"
    relevant_column: str | None = None
    price_per_hour: float | None = None
    against: Sequence[str] = ()
    compare_at: Sequence[float] = ()
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Check what can be checked without files.

        Raises:
            InputError: an option has no usable value.
        """
        at_least("--k", self.k, 1)
        if self.price_per_hour is not None and not 0 < self.price_per_hour < math.inf:
            raise InputError(f"--price-per-hour {self.price_per_hour:g}: expected a price above 0")
        for name in self.against:
            one_of("--against", name, ("faiss", "torch", "paper"))
        for target in self.compare_at:
            if not 0 < target <= 1:
                raise InputError(f"--compare-at {target:g}: expected recalls above 0 and up to 1, such as 0.95,0.98")
        at_least("--sample", self.sample, 1)
        at_least("--repeat", self.repeat, 1)
        at_least("--batch-size", self.batch_size, 1)
        for probes in self.probes:
            at_least("--probes", probes, 1)
        if not 0 < self.target_recall <= 1:
            raise InputError(
                f"--target-recall {self.target_recall}: expected a share above 0 and up to 1, such as 0.95"
            )
        fraction("--min-recall", self.min_recall)


def checked(kind: type[Config], command: str, options: dict[str, Any]) -> Config:
    """The options of a Python call, checked as far as that needs no files.

    Args:
        kind: class that lists the options of the command.
        command: the function called, for the message.
        options: keyword arguments as given.

    Raises:
        InputError: an option that there is not; the message names the most similar one. Or one without a usable value.
    """
    known = {field.name.replace("_", ""): field.name for field in fields(kind)}
    for name in sorted(options.keys() - known.values()):
        near = known[get_close_matches(name.replace("_", "").lower(), known, 1, cutoff=0)[0]]
        raise InputError(
            f"{command}: there is no option {name!r}; the nearest is {near!r}, "
            f"and stcli.config.{kind.__name__} lists all"
        )
    config = kind(**options)
    config.check()
    return config


def one_of(option: str, value: str, allowed: Sequence[str]) -> None:
    """Check that an option is one of some words."""
    if value not in allowed:
        raise InputError(f"{option} {value!r}: expected one of {', '.join(allowed)}")


def at_least(option: str, value: int | None, least: int) -> None:
    """Check that an option, if given, is not below `least`, and has its place in 64 bits."""
    if value is not None and not least <= value < 2**63:
        raise InputError(f"{option} {value}: expected a whole number of at least {least}, and below 2^63")


def fraction(option: str, value: float | None) -> None:
    """Check that an option, if given, lies in 0 … 1."""
    if value is not None and not 0 <= value <= 1:
        raise InputError(f"{option} {value}: expected a fraction from 0 to 1")
