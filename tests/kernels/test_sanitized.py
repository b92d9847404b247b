"""Kernels under AddressSanitizer: no access beyond a tensor or beyond the shared memory that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulation.emulate import COMPILER, KERNELS, WHY_MISSING, sanitizing

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason=WHY_MISSING),
    pytest.mark.skipif(sanitizing(), reason="this is the run that the test starts"),
]

TREE = Path(__file__).parents[2]

TESTS = [
    "test_filter_match.py::test_equals_the_loop[65-30-2]",
    "test_filter_match.py::test_equals_the_loop[4097-12-1]",
    "test_filter_probes.py::test_equals_the_loop[65]",
    "test_filter_probes.py::test_equals_the_loop[4160]",
    "test_probe_tiles.py::test_each_pair_comes_once[300-33-20]",
    "test_probe_tiles.py::test_each_pair_comes_once[9-6000-64]",
    "test_rescore.py::test_equals_the_loop",
    "test_row_tiles.py",
    "test_verify_terms.py",
    "test_select_keys.py::test_the_best_stay[100-2500-random]",
    "test_select_keys.py::test_the_best_stay[1000-1200-few_scores]",
    "test_select_keys.py::test_a_sample_gives_thresholds_alone[150]",
    "test_take_best.py",
    *(
        f"test_score.py::test_equals_the_loop[{case}-{form}]"
        for case in ("all_at_once", "odd_width", "one_item")
        for form in ("dp4a", "mma", "mma_narrow")
    ),
]


def test_every_kernel_file_is_among_them():
    tests = "".join(TESTS)
    for path in KERNELS.glob("*.cu"):
        assert f"test_{path.stem.partition('_dp4a')[0].partition('_mma')[0]}.py" in tests


@pytest.mark.slow
def test_the_only_access_out_of_bounds_is_the_one_made_on_purpose():
    """Both in one process: to load torch under the sanitizer takes 8 s of CPU."""
    library = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_file():
        pytest.skip("the compiler has no AddressSanitizer")
    environment = os.environ | {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "STCLI_EMULATION_SANITIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    words = ["-q", "-p", "no:cacheprovider", *(f"tests/kernels/{test}" for test in TESTS)]
    command = [sys.executable, "-m", "tests.kernels.sanitized", *words]
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, text=True, check=False)
    assert "pytest: exit code 0" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
    assert done.returncode != 0
    assert "nothing was found" not in done.stdout
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "kernel.cu:3" in done.stderr
