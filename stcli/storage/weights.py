"""Model weights from outside: a JSON config and a safetensors file beside it. Nothing here can run code.

A file is judged by its content, whatever its name: pickles (`torch.save`), TorchScript and `torch.export` programs run
code when they are read, so they are refused without reading further than their first and last bytes.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stcli.errors import FormatError, InputError, nearest

MAX_CONFIG_BYTES = 1 << 24
MAX_HEADER_BYTES = 1 << 24
WAY_OUT = "save the weights with safetensors.torch.save_file(model.state_dict(), PATH) instead"

EXPORTED = "a torch.export program (.pt2)"
MAX_PROGRAM_BYTES = 1 << 31

DTYPES = ("F16", "BF16", "F32", "F64")
PEEK_BYTES = 1 << 16


def read_config(path: Path) -> dict[str, Any]:
    """Read the JSON object that describes a model.

    Raises:
        InputError: missing, too long, not a JSON object, or a file that could run code.
    """
    refuse_code(path)
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: has {size:,} bytes, a config at most {MAX_CONFIG_BYTES:,}; expected a JSON object")
    try:
        config = json.loads(
            path.read_bytes().decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repeats
        )
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: is not a JSON config ({reason}); expected an object with the key 'kind'") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds a JSON {type(config).__name__}; expected an object with the key 'kind'")
    return config


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def weights_beside(config_path: Path, config: Mapping[str, Any]) -> Path:
    """The safetensors file of a config: its key `weights`, a file name, or else its own name with `.safetensors`.

    Raises:
        InputError: `weights` is not a plain file name.
    """
    return _beside(config_path, config, "weights", ".safetensors")


def _beside(config_path: Path, config: Mapping[str, Any], key: str, suffix: str) -> Path:
    name = config.get(key, config_path.with_suffix(suffix).name)
    if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
        raise InputError(f"{config_path}: {key!r} is {name!r}; expected the name of a file in the same folder")
    return config_path.with_name(name)


def read_program(config_path: Path, config: Mapping[str, Any]) -> bytes:
    """The bytes of the `torch.export` program of a config: its key `program`, or else its own name with `.pt2`.

    Nothing of it is run; who loads it runs it.

    Raises:
        InputError: not there, too large, or anything but a `torch.export` program.
    """
    path = _beside(config_path, config, "program", ".pt2")
    kind = _kind_of(path)
    if kind != EXPORTED:
        raise InputError(f"{path}: is {kind or 'no zip archive'}; expected {EXPORTED}, written by torch.export.save")
    if path.stat().st_size > MAX_PROGRAM_BYTES:
        raise InputError(f"{path}: has {path.stat().st_size:,} bytes, a program at most {MAX_PROGRAM_BYTES:,}")
    return path.read_bytes()


def read_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read the tensors named in `shapes` as float32; names and shapes are checked before any number is read.

    Args:
        path: a safetensors file with exactly these tensors, in float16, bfloat16, float32 or float64.
        shapes: the shape that each must have.

    Returns:
        Float32 tensors by name, finite.

    Raises:
        InputError: a file that could run code; a tensor is missing, unknown, misshapen or not finite.
        FormatError: truncated, damaged or not safetensors.
    """
    refuse_code(path)
    _check_header(path)
    weights = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _check_names(path, names, shapes)
            for name, shape in shapes.items():
                view = file.get_slice(name)
                if view.get_dtype() not in DTYPES or tuple(view.get_shape()) != shape:
                    raise InputError(
                        f"{path}: tensor {name!r} is {view.get_dtype()} {view.get_shape()}; "
                        f"expected floats of shape {list(shape)}, as its config says"
                    )
            for name in shapes:
                weights[name] = file.get_tensor(name).to(torch.float32).contiguous().clone()
    except (SafetensorError, OSError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{path}: is truncated, damaged or not a safetensors file ({error}); {WAY_OUT}") from error
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: tensor {name!r} holds NaN or infinite values; expected finite weights")
    return weights


def write_weights(config_path: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Write a config and its weights, as `read_config` and `read_weights` read them."""
    config_path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()},
        weights_beside(config_path, config),
    )


def _check_names(path: Path, names: list[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in shapes if name not in names]
    if missing:
        raise InputError(f"{path}: tensor {missing[0]!r} is missing; {nearest(missing[0], names)}")
    unknown = sorted(set(names) - set(shapes))
    if unknown:
        raise InputError(
            f"{path}: tensor {unknown[0]!r} is not part of the model that its config describes; "
            f"{nearest(unknown[0], list(shapes))}"
        )


def _check_header(path: Path) -> None:
    """Bound what the safetensors reader will allocate; it checks the rest of the header itself."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    length = struct.unpack("<Q", head[:8])[0] if len(head) == 9 else 0
    if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES) or head[8:] != b"{":
        raise FormatError(
            f"{path}: is not a safetensors file (no JSON header of 2 to {MAX_HEADER_BYTES:,} bytes); {WAY_OUT}"
        )


def refuse_code(path: Path) -> None:
    """Refuse a file that could run code when it is read, by its first and last bytes.

    Raises:
        InputError: not a file; a pickle, TorchScript, a `torch.export` program, a shared library or another archive.
    """
    kind = _kind_of(path)
    if kind is not None:
        raise InputError(f"{path}: is {kind}, which can run code when it is read; {WAY_OUT}")


def _kind_of(path: Path) -> str | None:
    """What a file is that could run code, or None for any other file."""
    if not path.is_file():
        raise InputError(f"{path}: is {'a directory' if path.is_dir() else 'not there'}; expected a file")
    with path.open("rb") as file:
        head = file.read(PEEK_BYTES)
        file.seek(max(0, os.fstat(file.fileno()).st_size - PEEK_BYTES))
        tail = file.read(PEEK_BYTES)
    return _code_kind(head, tail)


def _code_kind(head: bytes, tail: bytes) -> str | None:
    # A safetensors file may begin with the same two bytes: they are the length of its header, which stands at byte 8.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[8:9] != b"{":
        return "a pickle (torch.save of an old version)"
    if head[:4] == b"\x7fELF":
        return "a shared library"
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06"):
        return None
    # The directory of a zip archive stands at its end, so that its names are found without unpacking anything.
    marks = {
        b"aotinductor": "an AOTInductor package (.pt2)",
        b"archive_format": EXPORTED,
        b"serialized_exported_program": EXPORTED,
        b"/constants.pkl": "a TorchScript program",
        b"/data.pkl": "a pickle (torch.save)",
    }
    return next((kind for mark, kind in marks.items() if mark in head or mark in tail), "a zip archive")
