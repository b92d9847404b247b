"""Compiled kernels on disk: found again, mended, written by several processes; and what NVRTC is asked for."""

import atexit
import multiprocessing
import shutil
import struct

import pytest

from stcli.ops import cubins, cuda
from stcli.ops.cubins import architecture, compile_text, compiled

TEXT = 'extern "C" __global__ void add(float* x, float y) { *x = y * *x; }'


class FakeNvrtc:
    """An NVRTC of CUDA 13.0 as CuPy wraps it, whose cubins say what they are made of; keeps what it was asked for."""

    class NVRTCError(Exception):
        pass

    def __init__(self):
        self.compiled = []
        self.version = (13, 0)
        self.open = 0

    def getVersion(self):
        return self.version

    def getSupportedArchs(self):
        return (75, 80, 90, 100)

    def createProgram(self, text, name, headers, names):
        self.open += 1
        return [text, name]

    def compileProgram(self, program, options):
        self.compiled.append((*program, options))
        if "wrong" in program[0]:
            raise self.NVRTCError("compilation")

    def getProgramLog(self, program):
        return "line 1: wrong"

    def getCUBIN(self, program):
        return b"cubin"  # without its last byte, as CuPy gives it

    def getPTX(self, program):
        return b"ptx"

    def destroyProgram(self, program):
        self.open -= 1


@pytest.fixture
def nvrtc():
    return FakeNvrtc()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_compiled_once_for_all_processes(nvrtc, cache):
    path = compiled(nvrtc, TEXT, "add.cu", (9, 0))
    assert path.parent == cache
    assert path.read_bytes() == b"cubin\0"
    assert path.name.startswith("add-sm_90-")
    assert compiled(nvrtc, TEXT, "add.cu", (9, 0)) == path
    assert nvrtc.compiled == [(TEXT, "add.cu", ["-arch=sm_90", "-std=c++17", "-ftz=false"])]
    assert nvrtc.open == 0
    assert list(cache.iterdir()) == [path]


def test_another_text_gpu_option_or_compiler_is_another_file(nvrtc, cache, monkeypatch):
    paths = [compiled(nvrtc, text, "add.cu", gpu) for text in (TEXT, TEXT + "\n") for gpu in ((8, 0), (9, 0))]
    nvrtc.version = (13, 1)
    paths.append(compiled(nvrtc, TEXT, "add.cu", (9, 0)))
    monkeypatch.setattr(cubins, "options", lambda target: [f"-arch={target}"])
    paths.append(compiled(nvrtc, TEXT, "add.cu", (9, 0)))
    assert len(set(paths)) == len(nvrtc.compiled) == 6


@pytest.mark.parametrize("content", [b"", b"cubi", b"cubin\0\0", b"xubin\0"])
def test_a_broken_file_is_compiled_again(nvrtc, cache, content):
    path = compiled(nvrtc, TEXT, "add.cu", (9, 0))
    path.write_bytes(content)
    assert compiled(nvrtc, TEXT, "add.cu", (9, 0)) == path
    assert path.read_bytes() == b"cubin\0"
    assert len(nvrtc.compiled) == 2


def test_a_gpu_newer_than_nvrtc_gets_ptx(nvrtc, cache):
    assert [architecture(nvrtc, gpu) for gpu in ((8, 0), (8, 6), (10, 3))] == ["sm_80", "compute_80", "compute_100"]
    path = compiled(nvrtc, TEXT, "add.cu", (10, 3))
    assert path.suffix == ".ptx"
    assert path.read_bytes() == b"ptx"
    assert compiled(nvrtc, TEXT, "add.cu", (10, 3)) == path
    assert len(nvrtc.compiled) == 1


def test_where_files_are_kept(nvrtc, monkeypatch, tmp_path):
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert compiled(nvrtc, TEXT, "add.cu", (9, 0)).parent == tmp_path / "xdg" / "stcli"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled(nvrtc, TEXT, "add.cu", (9, 0)).parent == tmp_path / "home" / ".cache" / "stcli"


def test_a_folder_that_takes_no_files(nvrtc, cache, monkeypatch):
    """Then the process has one of its own, which goes when it ends."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *call, **options: at_exit.append((call, options)))
    cubins._process_folder.cache_clear()
    cache.write_text("a file, which is no folder")
    path = compiled(nvrtc, TEXT, "add.cu", (9, 0))
    assert path.read_bytes() == b"cubin\0"
    [((remove, folder), options)] = at_exit
    assert str(path.parent) == folder
    assert remove is shutil.rmtree
    remove(folder, **options)
    assert not path.parent.exists()
    cubins._process_folder.cache_clear()


def test_a_text_that_does_not_compile(nvrtc, cache):
    with pytest.raises(RuntimeError, match=r"wrong.cu does not compile for sm_90:\nline 1: wrong"):
        compiled(nvrtc, "wrong", "wrong.cu", (9, 0))
    assert nvrtc.open == 0
    assert not cache.exists()


class Slow(FakeNvrtc):
    """Both processes are at work when either goes on."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def compileProgram(self, program, options):
        self.barrier.wait(60)
        super().compileProgram(program, options)


def test_two_processes_at_once(cache):
    context = multiprocessing.get_context("fork")
    barrier, paths = context.Barrier(2), context.SimpleQueue()

    def work():
        path = compiled(Slow(barrier), TEXT, "add.cu", (9, 0))
        paths.put((path, path.read_bytes()))

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    found = [paths.get() for _ in processes]
    for process in processes:
        process.join()
    assert found == [(found[0][0], b"cubin\0")] * 2
    assert list(cache.iterdir()) == [found[0][0]]


# ---- with the NVRTC of this machine --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_nvrtc():
    why = cuda._why_missing()
    if why is not None:
        pytest.skip(why)  # tests/kernels/test_compile.py says whether it ought to be there
    import cupy

    return cupy.cuda.nvrtc


def test_a_whole_cubin(real_nvrtc, cache):
    """To the last byte of the tables that its header tells of."""
    code = compiled(real_nvrtc, TEXT, "add.cu", (9, 0)).read_bytes()
    assert code[:4] == b"\x7fELF"
    programs, sections = struct.unpack_from("<QQ", code, 32)
    program_bytes, num_programs, section_bytes, num_sections = struct.unpack_from("<HHHH", code, 54)
    assert len(code) == max(programs + program_bytes * num_programs, sections + section_bytes * num_sections)


def test_subnormal_numbers_are_kept(real_nvrtc):
    """No instruction of any kernel flushes them; with the option that CuPy adds, one of this text does."""
    for path in sorted(cuda.kernel_folder().glob("*.cu")):
        ptx, _ = compile_text(real_nvrtc, cuda.flat_source(path), path.name, "compute_80")
        assert b".entry" in ptx
        assert b".ftz" not in ptx, path.name
    assert b"mul.f32" in compile_text(real_nvrtc, TEXT, "add.cu", "compute_80")[0]
    assert b"mul.ftz.f32" in compile_text(real_nvrtc, TEXT, "add.cu", "compute_80", "-ftz=true")[0]


def test_for_a_gpu_that_is_not_made_yet(real_nvrtc, cache):
    path = compiled(real_nvrtc, TEXT, "add.cu", (99, 0))
    assert path.suffix == ".ptx"
    assert b".visible .entry add(" in path.read_bytes()
