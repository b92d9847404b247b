"""Named arrays on disk: how they are described, and safetensors files written without holding them in memory."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from stcli.errors import FormatError

COPY_BYTES = 1 << 24

SAFETENSORS_DTYPES = {
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float16": "F16",
    "int32": "I32",
    "float32": "F32",
    "int64": "I64",
    "float64": "F64",
}


@dataclass(frozen=True)
class LazyArray:
    """An array that is computed while it is written.

    Attributes:
        dtype: of the elements.
        shape: of the whole.
        chunks: yields C-contiguous pieces in order; together they are the whole array.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: Iterator[np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray | LazyArray], metadata: Callable[[dict[str, str]], str]
) -> str:
    """Write a safetensors file with one metadata key, `stcli`.

    The tensors stand by falling element size, then by name, so that each is aligned to its elements
    and equal content gives equal bytes. They are hashed as they are written, and the header, which
    holds the hashes, is written again at the end: its length must not depend on them.

    Args:
        path: the file, new.
        tensors: by name; arrays may be memory-mapped, `LazyArray`s are consumed.
        metadata: gives the text kept under `__metadata__.stcli` for the SHA-256 of each tensor.

    Returns:
        The metadata written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    entries: dict[str, object] = {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.nbytes
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end

    def header(text: str) -> bytes:
        raw = json.dumps(
            {"__metadata__": {"stcli": text}, **entries}, separators=(",", ":"), ensure_ascii=False
        ).encode()
        raw += b" " * (-(len(raw) + 8) % 64)
        return struct.pack("<Q", len(raw)) + raw

    hashes = dict.fromkeys(names, "0" * 64)
    placeholder = header(metadata(hashes))
    with path.open("wb") as file:
        file.write(placeholder)
        for name in names:
            digest = hashlib.sha256()
            for chunk in array_chunks(tensors[name]):
                digest.update(chunk)
                file.write(chunk)
            hashes[name] = digest.hexdigest()
        text = metadata(hashes)
        final = header(text)
        assert len(final) == len(placeholder)
        file.seek(0)
        file.write(final)
        file.flush()
        os.fsync(file.fileno())
    return text


def array_chunks(tensor: np.ndarray | LazyArray) -> Iterator[memoryview]:
    """The bytes of an array in pieces of some megabytes."""
    if isinstance(tensor, LazyArray):
        for chunk in tensor.chunks:
            yield np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
        return
    flat = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, COPY_BYTES):
        yield flat[start : start + COPY_BYTES].data


def map_npy(path: Path, mode: str | None) -> np.ndarray:
    """Map an `.npy` file.

    Args:
        path: the file.
        mode: "r" to read, "c" for copy-on-write; None for an array without elements, which cannot be mapped.

    Raises:
        FormatError: not there, truncated, or not as numpy writes an array here.
    """
    try:
        if mode is None:
            with path.open("rb") as file:
                array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        else:
            array = np.lib.format.open_memmap(path, mode=mode)
    except (OSError, EOFError, MemoryError, RecursionError, *_WRONG_HEADER) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise FormatError(f"{path}: cannot be read ({said}); it is damaged, copy it or make it again") from error
    if not array.dtype.isnative or not array.flags.c_contiguous:
        raise FormatError(f"{path}: has another order of bytes or axes than was written; copy it or make it again")
    return array


_WRONG_HEADER = (ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError)
"""What numpy raises for one, whose text it parses as Python."""


def read_safetensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Map a safetensors file: its `stcli` metadata, and arrays that load pages when touched.

    The library maps copy-on-write, so that torch may wrap the arrays; nothing here writes to them.

    Raises:
        FormatError: truncated, damaged, not safetensors, or without our metadata.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "stcli" not in metadata:
                raise FormatError(f"{path}: is a safetensors file, but was not made by stcli pack-model")
            return metadata["stcli"], {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:
        raise FormatError(
            f"{path}: is truncated, damaged or not a safetensors file ({error}); "
            "expected one made by stcli pack-model, copy or pack it again"
        ) from error
