"""Compiles kernel sources with NVRTC, and keeps what comes out on disk.

CuPy compiles with `-ftz=true` behind whatever options it is given, so that subnormal numbers become zero, which they do
not on the CPU. Here the options are ours, and so is the cache: a file for each source, options and version of NVRTC in
`$CUPY_CACHE_DIR`, else in `stcli` below `$XDG_CACHE_HOME` or `~/.cache`. Where no file can be written there, the
process has a folder of its own and compiles again the next time.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any


def architecture(nvrtc: Any, capability: tuple[int, int]) -> str:
    """What to compile for: `sm_90` for a GPU of compute capability (9, 0).

    For a GPU that is newer than NVRTC the newest `compute_…` before it: PTX, which the driver compiles further.
    """
    number, known = 10 * capability[0] + capability[1], nvrtc.getSupportedArchs()
    return f"sm_{number}" if number in known else f"compute_{max(older for older in known if older < number)}"


def options(target: str) -> list[str]:
    """Of NVRTC, for every kernel."""
    return [f"-arch={target}", "-std=c++17", "-ftz=false"]


def compile_text(nvrtc: Any, text: str, name: str, target: str, *more: str) -> tuple[bytes, str]:
    """The cubin, or the PTX for a `compute_…`, and the log of the compiler.

    Args:
        nvrtc: `cupy.cuda.nvrtc`.
        text: the source.
        name: its file, for messages.
        target: see `architecture`.
        more: options after those of every kernel.

    Raises:
        RuntimeError: with the log; the text does not compile.
    """
    program = nvrtc.createProgram(text, name, [], [])
    try:
        nvrtc.compileProgram(program, [*options(target), *more])
        log = nvrtc.getProgramLog(program)
        if target.startswith("compute"):
            return nvrtc.getPTX(program), log
        # CuPy takes the last byte for the end of a text and drops it. It is a zero, which CuPy itself finds behind any
        # bytes of Python when it loads them; a file has nothing there.
        return nvrtc.getCUBIN(program) + b"\0", log
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"{name} does not compile for {target}:\n{nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


def compiled(nvrtc: Any, text: str, name: str, capability: tuple[int, int]) -> Path:
    """The file of a source compiled for a GPU: a whole one from the cache, or a new one.

    Args:
        nvrtc, text, name: as `compile_text` has them.
        capability: of the GPU.
    """
    target = architecture(nvrtc, capability)
    key = _digest("\0".join([text, *options(target), str(nvrtc.getVersion())]).encode())
    stem, suffix = f"{Path(name).stem}-{target}-{key}", ".ptx" if target.startswith("compute") else ".cubin"
    for path in _cache_folder().glob(f"{stem}-*{suffix}"):
        try:
            if path.name == f"{stem}-{_digest(path.read_bytes())}{suffix}":
                return path
        except OSError:  # not ours to read
            continue
    code, _ = compile_text(nvrtc, text, name, target)
    file = f"{stem}-{_digest(code)}{suffix}"
    try:
        return _write(_cache_folder(), file, code)
    except OSError:
        return _write(_process_folder(), file, code)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _cache_folder() -> Path:
    folder = os.environ.get("CUPY_CACHE_DIR")
    if folder:
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stcli"
    except RuntimeError:  # a user without a home
        return _process_folder()


@functools.cache
def _process_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="stcli-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write(folder: Path, file: str, code: bytes) -> Path:
    """Under its name there is always a whole file, whoever else writes or reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, file)
        made.write_bytes(code)
        return made.replace(folder / file)
