"""Every kernel compiles for the GPUs it is meant for, without spills and within its registers; needs NVRTC, no GPU."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from stcli.ops import cuda
from stcli.ops.cubins import compile_text
from stcli.ops.scan_cuda import OWN_SHARED_BYTES
from tests.emulation.emulate import KERNELS, kernels_in

nvrtc = pytest.importorskip("cupy", reason="CuPy, which the compile check needs, is not installed").cuda.nvrtc


CEILINGS = {
    "begin_clusters": 32,
    "count_probes": 16,
    "cut_rows": 32,
    "cut_tiles": 32,
    "filter_leaves": 64,
    "filter_match": 48,
    "filter_probes": 48,
    "place_probes": 32,
    "raise_thresholds": 32,
    "rescore": 40,
    "score_dp4a": 80,
    "score_mma": 128,
    "score_mma_bounds": 128,
    "score_mma_narrow": 96,
    "score_mma_narrow_bounds": 96,
    "select_keys": 32,
    "sort_keys": 32,
    "take_best": 32,
    "verify_terms": 40,
}
"""Registers of a thread: at 256 threads a block, 128 let two blocks run on a multiprocessor, 80 three, 64 four; at
1,024 threads, as the selection has them, 32 let two."""

PEAK = Path(__file__).parents[2] / "examples" / "gpu_bench" / "mma_peak.cu"

FILES = sorted(path.name for path in KERNELS.glob("*.cu"))


def compile_for(text: str, name: str, capability: int) -> str:
    """The log of the compiler, with the registers of each kernel, as it is compiled at run time.

    Skips where no wheel of NVRTC is installed. One that cannot be loaded is an error: it would hide all of this.
    """
    why = cuda._why_missing()
    if why is not None:
        wheels = [wheel.name for wheel in metadata.distributions() if wheel.name.startswith("nvidia-cuda-nvrtc")]
        assert not wheels, f"{wheels[0]} is installed, but: {why}"
        pytest.skip(why)
    return compile_text(nvrtc, text, name, f"sm_{capability}", "--ptxas-options=-v", f"-I{KERNELS}")[1]


@pytest.mark.parametrize("capability", [80, 90, 100], ids="sm_{}".format)
@pytest.mark.parametrize("file", FILES)
def test_registers_and_spills(file, capability):
    text = cuda.flat_source(KERNELS / file)
    log = compile_for(text, file, capability)
    assert "warning" not in log, log
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers(?:, used \d+ barriers)?(?:, (\d+) bytes smem)?",
        log,
        re.DOTALL,
    )
    assert sorted(kernel for kernel, *_ in found) == sorted(kernels_in(text)), log
    for kernel, stack, stores, loads, registers, own_shared in found:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{kernel} spills"
        assert int(registers) <= CEILINGS[kernel], f"{kernel} uses {registers} registers"
        assert int(own_shared or 0) <= OWN_SHARED_BYTES, f"{kernel} declares {own_shared} bytes of shared memory"


@pytest.mark.parametrize("capability", [80, 90, 100], ids="sm_{}".format)
def test_the_ceiling_of_the_gpu_report(capability):
    """Were its sums spilled or its products optimized away, it would be no ceiling."""
    log = compile_for(PEAK.read_text(encoding="utf-8"), PEAK.name, capability)
    assert "warning" not in log, log
    assert "0 bytes spill stores" in log


def test_the_check_is_real():
    text = '#include "mma.cuh"\nextern "C" __global__ void k(i32* d) { asm volatile("mma.wrong;"); *d = 0; }'
    with pytest.raises(RuntimeError, match="mma"):
        compile_for(text, "wrong.cu", 80)


def test_every_kernel_has_a_header_and_a_ceiling():
    for file in FILES:
        text = (KERNELS / file).read_text(encoding="utf-8")
        header = "\n".join(re.match(r"(?://.*\n)+", text)[0].splitlines())
        for word in ("in ", "out ", "map ", "limits ", "cost "):
            assert f"//   {word}" in header.replace("in, out", "in \n//   out"), f"{file}: no line for {word}"
        assert set(kernels_in(text)) <= set(CEILINGS)
