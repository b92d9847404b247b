"""`pack_model`: an index directory becomes one model artifact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stcli import __version__
from stcli.config import PackConfig, Progress, checked, no_progress
from stcli.errors import InputError
from stcli.events import Stages
from stcli.model.overarch_config import parse_overarch
from stcli.ops.exponents import half_rows, powers_of_two, row_exponents
from stcli.pipeline.columns import KeptColumns
from stcli.pipeline.estimate import estimate_pack, pack_arrays
from stcli.pipeline.memory import MemoryWatch
from stcli.pipeline.pack_overarch import Chunks, pack_overarch
from stcli.pipeline.pack_tower import pack_tower, tower_summary
from stcli.pipeline.shards import cut_blocks, write_shards
from stcli.pipeline.value_models import given_value_models, pack_value_models
from stcli.pipeline.wide import join_by_id, wide_dimensions
from stcli.storage import atomic
from stcli.storage.artifact import open_artifact_file, write_artifact
from stcli.storage.artifact_set import write_set
from stcli.storage.ids import ItemIds
from stcli.storage.index_dir import IndexDir, open_index
from stcli.storage.remote import on_any_filesystem
from stcli.storage.sizes import bytes_by_group, overarch_summary
from stcli.storage.steering import check_all, check_opened
from stcli.storage.tensors import LazyArray
from stcli.storage.weights import read_config
from stcli.types import pad_dim

CHUNK_ROWS = 1 << 14

WHOLE = "whole.safetensors"
"""The artifact that shards are cut from; gone when the set is whole."""

FLOAT32_ULP = 2.0**-23

INDEX_KEYS = (
    "num_items", "dim", "num_clusters", "cluster_sizes", "metric", "scale", "seed", "embedding_version",
    "ids", "lengths_differ", "zero_vectors", "filter", "columns", "input",
)  # fmt: skip


@on_any_filesystem("index")
def pack_model(
    index: str | Path, output: str | Path, *, progress: Progress = no_progress, **options: Any
) -> dict[str, Any]:
    """Pack an index directory into one artifact, or into a set of shards.

    Args:
        index: directory made by `build_index`.
        output: the file to create; with `shards`, the directory.
        progress: see `stcli.config.Progress`.
        options: fields of `stcli.config.PackConfig`, which lists them all with their defaults; `stcli pack-model -h`
            tells what each does, under the same name with dashes.

    Returns:
        Summary: counts, bytes of each part, timings in seconds, the fingerprint.

    Raises:
        InputError: an option or input cannot be used; nothing was written.
        FormatError: `index` is no whole index.
        ExistsError: `output` is there and `overwrite` is not set.
    """
    config = checked(PackConfig, "pack_model", options)
    path = Path(output)
    more = (config.embeddings, config.overarch, config.tower, config.value_model_file)
    inputs = [index, *(source for source in more if source is not None)]
    makes = atomic.ARTIFACT if config.shards is None else "an artifact set"
    atomic.check_output(path, config.overwrite, directory=config.shards is not None, makes=makes, inputs=inputs)
    start = time.perf_counter()
    formulas = given_value_models(config.value_models, config.value_model_file)
    opened = open_index(Path(index))
    check_opened(opened.manifest, opened.arrays, str(index))
    if config.dry_run:
        source = opened.arrays["embeddings"]
        wide_dim = int(source.shape[1]) if config.embeddings is None else wide_dimensions(config)
        told = {"command": "pack-model", "dry_run": True, "version": __version__, "options": asdict(config)}
        return told | _estimate(config, opened, wide_dim)
    packing = _Packing(config, opened, formulas, progress)
    shards: dict[str, int] = {}
    with MemoryWatch() as memory:
        if config.shards is None:
            with atomic.new_file(path, config.overwrite) as partial:
                sealed = packing.write(partial)
            fingerprint = str(sealed["fingerprint"])
        else:
            with atomic.new_directory(path, config.overwrite) as folder:
                sealed, shards, fingerprint = packing.write_shards(folder, config.shards)
    return {
        "command": "pack-model",
        "version": __version__,
        "options": asdict(config),
        "inputs": {
            "index": str(index),
            "embeddings": config.embeddings,
            "overarch": config.overarch,
            "tower": config.tower,
        },
        "counts": {key: sealed[key] for key in ("num_items", "dim", "embedding_dim", "num_clusters")},
        "bytes": bytes_by_group(sealed["arrays"]),
        "shards": shards,
        "overarch": overarch_summary(sealed),
        "tower": tower_summary(sealed),
        "value_models": {name: model["formula"] for name, model in sealed.get("value_models", {}).items()},
        "fingerprint": fingerprint,
        "memory_bytes": memory.summary(),
        "timings_s": {**packing.stages.rounded(), "total": round(time.perf_counter() - start, 3)},
        "outputs": {"model": str(path)},
    }


@dataclass
class _Packing:
    """One index being packed."""

    config: PackConfig
    opened: IndexDir
    formulas: Mapping[str, Any]
    progress: Progress
    stages: Stages = field(default_factory=Stages)

    def write_shards(self, folder: Path, count: int) -> tuple[dict[str, Any], dict[str, int], str]:
        """Write a set of shards; the manifest of the whole, the bytes of each file, and the fingerprint of the set."""
        opened = self.opened
        described = pack_arrays(opened, self.config.embedding_dtype, int(opened.manifest["dim"]))
        cut_blocks(described, opened.arrays, count)  # refuses before any work
        sealed = self.write(folder / WHOLE)
        check_all(opened.manifest, opened.arrays, str(opened.path))
        with self.stages("shards"):
            whole = open_artifact_file(folder / WHOLE)
            written = write_shards(whole, folder, cut_blocks(sealed["arrays"], whole.arrays, count))
            (folder / WHOLE).unlink()
            manifest = write_set(folder, written, body={"tool_version": __version__})
        sizes = {shard.file: (folder / shard.file).stat().st_size for shard in written}
        return sealed, sizes, str(manifest["fingerprint"])

    def write(self, path: Path) -> dict[str, Any]:
        """Write the artifact as one file; its manifest."""
        config, manifest, arrays = self.config, self.opened.manifest, dict(self.opened.arrays)
        source = arrays.pop("embeddings")
        kept = KeptColumns(self.opened)
        value_models = pack_value_models(self.formulas, _tasks(config.overarch), kept)
        wide = source
        with self.stages("embeddings"):
            if config.embeddings is not None:
                wide = join_by_id(config, ItemIds.from_arrays(arrays, str(self.opened.path)), manifest, path)
            packed = _pack_embeddings(wide, config.embedding_dtype, self.progress)
            if wide is source and packed:
                packed |= _error_bounds(source, packed, arrays["codes"], arrays["scales"])
        with self.stages("scoring"):
            chunks = _packed_chunks(wide, packed.get("embedding_exponents"))
            overarch, learned = _pack_overarch(config, chunks, len(wide), int(wide.shape[1]), kept)
            tower, layers = pack_tower(config.tower, int(wide.shape[1]) if packed else 0, config.allow_model_code)
        body = {
            **{key: manifest[key] for key in (*INDEX_KEYS, "item_tower", "build") if key in manifest},
            "tool_version": __version__,
            "index": manifest["fingerprint"],
            "embedding_dtype": config.embedding_dtype,
            "embedding_dim": int(wide.shape[1]) if packed else 0,
        }
        if overarch is not None:
            body["overarch"] = overarch
        if tower is not None:
            body["tower"] = tower
        if value_models:
            body["value_models"] = value_models
        with self.stages("write"):
            return write_artifact(path, arrays | packed | learned | layers, body)


def _tasks(overarch: str | None) -> tuple[str, ...] | None:
    """The tasks that an OverArch scores; None without one, when requests bring them."""
    return None if overarch is None else parse_overarch(read_config(Path(overarch)), overarch).tasks


def _pack_embeddings(source: np.ndarray, dtype: str, progress: Progress) -> dict[str, np.ndarray | LazyArray]:
    """`embedding_values`, converted while they are written, and for float16 their `embedding_exponents`."""
    if dtype == "none":
        return {}
    shape = (int(source.shape[0]), int(source.shape[1]))
    exponents = None
    if dtype == "float16":
        exponents = np.concatenate([row_exponents(rows).numpy() for _, rows in _chunks(source)])

    def pieces() -> Iterator[np.ndarray]:
        for part, rows in _chunks(source):
            packed = rows.float() if exponents is None else half_rows(rows, torch.from_numpy(exponents[part]))
            yield packed.numpy()
            progress("pack", min(part.stop, shape[0]), shape[0], "items")

    values = LazyArray(np.dtype(dtype), shape, pieces())
    return {"embedding_values": values} | ({"embedding_exponents": exponents} if exponents is not None else {})


def _packed_chunks(source: np.ndarray, exponents: np.ndarray | LazyArray | None) -> Chunks:
    """The embeddings as they are packed."""

    def embeddings() -> Iterator[tuple[slice, torch.Tensor]]:
        for part, rows in _chunks(source):
            if isinstance(exponents, np.ndarray):
                powers = torch.from_numpy(exponents[part])
                yield part, half_rows(rows, powers).float() * powers_of_two(powers)[:, None]
            else:
                yield part, rows.float()

    return embeddings


def _pack_overarch(
    config: PackConfig, chunks: Chunks, num_items: int, dim: int, kept: KeptColumns
) -> tuple[dict[str, Any] | None, dict[str, np.ndarray | LazyArray]]:
    """Manifest entry and arrays of `--overarch`, over the embeddings as they are packed."""
    if config.overarch is None:
        return None, {}
    entry, arrays = pack_overarch(
        Path(config.overarch), chunks, num_items, dim, kept, config.overarch_columns, config.overarch_cache
    )
    if config.embedding_dtype == "none" and entry.get("cache") == "none":
        raise InputError(
            f"{config.overarch}: computes from the embeddings at each request, and --embedding-dtype none leaves them "
            "out; pack them, or a mol OverArch with --overarch-cache components"
        )
    return entry, arrays


def _estimate(config: PackConfig, opened: IndexDir, dim: int) -> dict[str, Any]:
    """What `--dry-run` tells: the arrays of learned layers are described, not computed."""
    packed, kept = dim if config.embedding_dtype != "none" else 0, KeptColumns(opened)
    overarch, learned = _pack_overarch(config, lambda: iter(()), int(opened.manifest["num_items"]), dim, kept)
    _, layers = pack_tower(config.tower, packed, config.allow_model_code)
    described = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in (learned | layers).items()
    }
    found = estimate_pack(opened, config.embedding_dtype, dim, described, config.shards)
    return found | {"overarch": overarch_summary({"overarch": overarch})}


def _chunks(source: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, len(source), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        yield part, torch.from_numpy(np.array(source[part]))


def _error_bounds(
    source: np.ndarray, packed: dict[str, Any], codes: np.ndarray, scales: np.ndarray
) -> dict[str, np.ndarray]:
    """`errors` and `norms` of the int8 rows against the packed embeddings, see `SearchIndex`.

    Both are taken in units of the row's scale, where nothing overflows or vanishes, and rounded up by more than the
    float32 error of computing them and of a re-scored dot product, (D + 16) units in the last place, so that a bound
    made from them is safe.
    """
    num_items, dim = source.shape
    slack = (pad_dim(dim) + 16) * FLOAT32_ULP
    exponents = packed.get("embedding_exponents")
    errors, norms = np.empty(num_items, np.float32), np.empty(num_items, np.float32)
    for part, rows in _chunks(source):
        kept = rows.float()
        if exponents is not None:
            powers = torch.from_numpy(exponents[part])
            kept = half_rows(rows, powers).float() * powers_of_two(powers)[:, None]
        factors = torch.from_numpy(np.array(scales[part]))
        code = torch.from_numpy(np.array(codes[part, :dim])).float()
        size = code.norm(dim=1).double() * factors
        error = (kept / factors[:, None] - code).norm(dim=1).double() * factors
        norms[part] = _up(size * (1 + slack))
        errors[part] = _up(error * (1 + slack) + size * slack)
    return {"errors": errors, "norms": norms}


def _up(values: torch.Tensor) -> np.ndarray:
    """The next float32 above each float64."""
    return np.nextafter(values.numpy().astype(np.float32), np.float32(np.inf))
