"""Finding, compiling and launching kernels, with a CuPy of our own in place of the real one."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import stcli
from stcli.errors import DeviceError
from stcli.ops import cuda
from stcli.ops.rescore import rescore
from stcli.types import Embeddings
from tests.ops.conftest import HAVE_KERNELS
from tests.ops.test_cubins import FakeNvrtc


@pytest.fixture(autouse=True)
def forget():
    for cached in (cuda._why_missing, cuda.real_launcher, cuda._too_old):
        cached.cache_clear()
    yield
    for cached in (cuda._why_missing, cuda.real_launcher, cuda._too_old):
        cached.cache_clear()


class Entered:
    """A context manager that writes down that it was entered."""

    def __init__(self, log, *what):
        self.log, self.what = log, what

    def __enter__(self):
        self.log.append(self.what)

    def __exit__(self, *_):
        self.log.append(("left", self.what[0]))


@pytest.fixture(params=[13, 14])
def fake_cupy(monkeypatch, request, tmp_path):
    """A CuPy that writes down what it is asked for; 14 has another way to take a stream."""
    log = []
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    class Function:
        def __init__(self, name):
            self.name = name
            self.max_dynamic_shared_size_bytes = 0

        def __call__(self, grid, block, arguments, shared_mem):
            log.append((self.name, grid, block, arguments, shared_mem, self.max_dynamic_shared_size_bytes))

    class RawModule:
        def __init__(self, path):
            log.append(("load", Path(path).read_bytes()))

        def get_function(self, name):
            return Function(name)

    def stream(speaker):
        return Entered(log, "stream", speaker.__cuda_stream__()[1])

    def deprecated(pointer, index):
        raise DeprecationWarning("use Stream.from_external")

    module = SimpleNamespace(
        RawModule=RawModule,
        cuda=SimpleNamespace(
            Device=lambda index: Entered(log, "device", index),
            Stream=SimpleNamespace(from_external=stream) if request.param == 14 else SimpleNamespace(),
            ExternalStream=deprecated
            if request.param == 14
            else lambda pointer, index: Entered(log, "stream", pointer),
            driver=SimpleNamespace(get_build_version=lambda: 99_010),
            nvrtc=FakeNvrtc(),
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    return log


def test_a_launch(fake_cupy, tmp_path, monkeypatch):
    (tmp_path / "add.cu").write_text('extern "C" __global__ void add(float* x, long long n, float y) {}')
    monkeypatch.setattr(cuda, "kernel_folder", lambda: tmp_path)
    numbers = torch.arange(4.0)
    for shared_bytes in (0, 1000, 49_000, 60_000, 50_000):
        cuda.launch("add.cu", "add", 3, 256, numbers, None, 2**40, 0.5, shared_bytes=shared_bytes)
    calls = [entry for entry in fake_cupy if entry[0] == "add"]
    assert len(sys.modules["cupy"].cuda.nvrtc.compiled) == 1, "compiled once a process"
    assert len([entry for entry in fake_cupy if entry[0] == "load"]) == 1
    assert ("load", b"cubin\0") in fake_cupy
    _, grid, block, arguments, _, _ = calls[0]
    assert (grid, block) == ((3, 1, 1), (256, 1, 1))
    assert arguments == (numbers.data_ptr(), 0, 2**40, 0.5)
    assert [type(item) for item in arguments] == [np.uint64, np.uint64, np.int64, np.float32]
    assert [call[4:] for call in calls] == [(0, 0), (1000, 0), (49_000, 49_000), (60_000, 60_000), (50_000, 60_000)]
    assert fake_cupy[0] == ("device", 0)
    assert fake_cupy[1] == ("stream", 77), "on torch's current stream"


def test_the_cupy_installed_takes_the_stream_without_a_warning():
    """Filters of pytest make an error of a warning: on a GPU every test would fail of it."""
    cupy = pytest.importorskip("cupy")
    if not hasattr(cupy.cuda.Stream, "from_external"):
        pytest.skip("CuPy 13 has ExternalStream, and does not warn")
    assert cupy.cuda.Stream.from_external(cuda._StreamPointer(77)).ptr == 77


def test_an_empty_grid_is_not_launched(fake_cupy):
    cuda.launch("add.cu", "add", 0, 256, torch.arange(4.0))
    cuda.launch("add.cu", "add", (5, 0, 1), 256, torch.arange(4.0))
    assert fake_cupy == []


def test_what_cannot_be_launched(fake_cupy):
    with pytest.raises(DeviceError, match=r"contiguous tensors on one device expected"):
        cuda.launch("add.cu", "add", 1, 256, torch.arange(8.0)[::2])
    with pytest.raises(DeviceError, match=r"add: a grid of .* is too large; search fewer queries at once"):
        cuda.launch("add.cu", "add", (1, 70_000, 1), 256, torch.arange(8.0))


def test_headers_are_put_in_once(tmp_path):
    (tmp_path / "a.cuh").write_text('#pragma once\n#include "b.cuh"\nint a;\n')
    (tmp_path / "b.cuh").write_text("#pragma once\nint b;\n")
    (tmp_path / "k.cu").write_text('#include "b.cuh"\n#include "a.cuh"\n#include <cuda_fp16.h>\nint k;\n')
    text = cuda.flat_source(tmp_path / "k.cu")
    lines = [line for line in text.splitlines() if not line.startswith("#line")]
    assert lines == ["int b;", "int a;", "#include <cuda_fp16.h>", "int k;"]
    assert '#line 3 "k.cu"' in text


def test_every_operation_with_kernels_is_tested_with_them():
    sources = Path(cuda.__file__).parent.glob("*.py")
    assert sorted(path.stem for path in sources if "kernel=" in path.read_text()) == sorted(HAVE_KERNELS)


def test_every_kernel_is_one_text():
    for path in sorted(cuda.kernel_folder().glob("*.cu")):
        assert '#include "' not in cuda.flat_source(path)


# ---- where kernels cannot run --------------------------------------------------------------------------------------


def rescore_with(backend):
    rows = torch.zeros(1, 1, dtype=torch.int64)
    return rescore(torch.ones(1, 4), Embeddings(torch.ones(3, 4), None), rows, backend=backend)


def test_tensors_on_the_cpu():
    with pytest.raises(
        DeviceError, match=r"^backend 'cuda' cannot run: the tensors are on cpu; or use --backend auto$"
    ):
        rescore_with("cuda")
    assert rescore_with("auto").item() == 4


def test_no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "CuPy cannot be imported" in cuda.why_not(torch.device("cuda"))
    assert "stcli[gpu13]" in cuda.why_not(torch.device("cuda"))


@pytest.fixture
def not_found(fake_cupy, monkeypatch, tmp_path):
    """Libraries that were opened by their path, without which a CuPy for CUDA 99 finds no NVRTC."""
    opened = []

    def version():
        if not opened:
            raise RuntimeError("libnvrtc.so.99:\ncannot open")
        return 99, 1

    sys.modules["cupy"].cuda.nvrtc.getVersion = version
    monkeypatch.setattr(ctypes, "CDLL", opened.append)
    monkeypatch.syspath_prepend(tmp_path)
    return opened


def test_no_nvrtc(not_found):
    assert cuda.why_not(torch.device("cuda", 0)) == (
        "NVRTC (libnvrtc.so.99), which compiles the kernels, cannot be loaded (libnvrtc.so.99: cannot open); "
        "install nvidia-cuda-nvrtc"
    )
    assert not_found == []


@pytest.mark.parametrize("folder", ["cuda_nvrtc", "cu99"])
def test_nvrtc_in_a_wheel_of_pip(not_found, tmp_path, folder):
    """Where the loader does not look: it is loaded by its path, and only the one that CuPy wants."""
    for name in ("libnvrtc.so.99", "libnvrtc.so.98", "libnvrtc.alt.so.99", "libnvrtc-builtins.so.99.1"):
        file = tmp_path / "nvidia" / folder / "lib" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert cuda.why_not(torch.device("cuda", 0)) is None
    assert not_found == [str(file.with_name("libnvrtc.so.99"))]


def test_an_old_gpu(fake_cupy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert cuda.why_not(torch.device("cuda", 0)) == "the GPU has compute capability 7.5, the kernels need 8.0"
    assert not cuda.runs_on(torch.device("cuda", 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_commands_say_it_in_one_sentence(tiny, tmp_path):
    with pytest.raises(DeviceError, match=r"^--device cuda: [^.]*; use --device cpu, or install"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", device="cuda")
    with pytest.raises(DeviceError, match=r"^backend 'cuda' cannot run: the tensors are on cpu"):
        stcli.retrieve(tiny.model, tiny.queries, tmp_path / "r", backend="cuda", exact=True)
    assert not (tmp_path / "r").exists()
