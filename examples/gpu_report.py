"""Test and measure stcli on a GPU, from a checkout, within a time budget; `make gpu OUT=dir` calls it.

Stages: the GPU tests, compute-sanitizer where it exists, the measured ceilings of the device, every operation and
kernel as a share of them, whole searches against plain torch on the same device, ablations, and a large corpus if time
is left. Each figure is in report.json and report.html as soon as it is measured. The exit code is 1 where anything
failed: a test, a measurement, the kernels, or the time limit. On another machine the same script runs with
`--device cpu --size toy`, to see that it works.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from pathlib import Path

START = time.perf_counter()  # to import torch takes its time too

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import torch  # noqa: E402

import stcli  # noqa: E402
from gpu_bench.corpora import make_corpus  # noqa: E402
from gpu_bench.kernels import measure_ceilings, measure_kernels  # noqa: E402
from gpu_bench.record import Record, seconds_of  # noqa: E402
from gpu_bench.searches import measure_ablations, measure_searches  # noqa: E402
from stcli.ops import cuda  # noqa: E402
from stcli.ops.quantize_rows import quantize_rows  # noqa: E402
from stcli.ops.search_rows import search_rows  # noqa: E402
from stcli.types import Clusters, Quantized, SearchIndex  # noqa: E402

SIZES = {
    "toy": ((4_000,), 32, (10, 50), 8_000),
    "full": ((1_000_000, 10_000_000), 4096, (100, 1_000, 10_000), 80_000_000),
}
"""Items of the corpora, queries of a batch, results of a query, items of the large corpus."""

TESTS = "tests/test_gpu.py"

SANITIZED = {
    "memcheck": ("(test_search_clusters and (odd_width or all_at_once)) or (test_filter_probes and 130)", 60),
    "racecheck": ("test_search_clusters and odd_width", 40),
    "synccheck": ("test_search_clusters and odd_width", 30),
}
"""Of compute-sanitizer: which of the tests each of its tools runs, and seconds; most of them go by before a kernel."""

TEST_SECONDS = 150

TIMED_OUT = 124
"""As exit code."""

GRACE = 10
"""Seconds after the end of the budget at which the process is ended, whatever it does."""


def main(start: float) -> int:
    """Run all stages that fit in the time since `start`; 1 if one failed, or could not show what it was to show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of report.json and report.html")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:<number> or cpu [default: cuda]")
    parser.add_argument("--size", choices=SIZES, default="full", help="toy is for a look on a CPU [default: full]")
    parser.add_argument("--backend", default="auto", help="form of the operations [default: auto]")
    parser.add_argument("--seconds", type=float, default=520, help="time budget [default: 520]")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_report.py: torch finds no usable GPU; on another machine try --device cpu --size toy")
    record = Record(options.out, device, options.seconds, start)
    # A kernel that hangs keeps the main thread in C, and perhaps with it Python's lock: neither a signal handler nor
    # another Python thread would run. This thread needs neither; it prints where it hangs and ends the process with
    # exit code 1. The record is on disk already. It stays armed, since to leave a device that hangs may hang too.
    faulthandler.dump_traceback_later(max(record.left() + GRACE, 0.1), exit=True, file=2)
    run_stages(record, options)
    for text in record.skipped:
        print(f"left out: {text}")
    print(f"{options.out / 'report.html'}: {len(record.rows)} measurements, {record.left():.0f} s of the budget left")
    return int(record.failed)


def run_stages(record: Record, options: argparse.Namespace) -> None:
    """All stages that fit."""
    device = record.device
    sizes, batch, ks, large = SIZES[options.size]
    toy = options.size == "toy"
    record.machine = record.attempt("machine", partial(describe, device), needs=0) or {}
    if device.type == "cuda":
        why = cuda.why_not(device)
        if why is not None:
            record.fail(f"kernels: {why}; every figure here is one of the torch forms")
        record.attempt("tests", partial(run_tests, record), needs=60)
        run_sanitizers(record)
    ceilings = measure_ceilings(record, toy)
    for num_items in sizes:
        for name in ("R", "H"):
            needs = 2 if toy else 20 + num_items / 400_000
            work = partial(measure, record, name, num_items, batch, ks, options.backend, ceilings)
            record.attempt(f"corpus {name} of {num_items:,}", work, needs)
    work = partial(measure_large, record, large, batch, options.backend)
    record.attempt(f"exact search of {large:,}", work, needs=2 if toy else 40)


def describe(device: torch.device) -> dict[str, object]:
    """Device and versions."""
    told: dict[str, object] = {"stcli": stcli.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    if device.type != "cuda":
        return told | {"device": "cpu, so none of these figures says anything about a GPU"}
    properties = torch.cuda.get_device_properties(device)
    return told | {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "kernels": cuda.why_not(device) or "compiled at run time",
    }


def run_tests(record: Record) -> None:
    """The tests marked gpu, in a process of their own; by name what did not pass, also where their time ran out."""
    command = [sys.executable, "-m", "pytest", "-v", "-ra", "-m", "gpu", "-p", "no:cacheprovider", TESTS]
    text, code = run(command, min(TEST_SECONDS, record.left() / 3))
    names = defaultdict(list)
    for test, outcome in re.findall(r"^(\S+::.+?)(?: (PASSED|FAILED|ERROR|SKIPPED)\b.*|\s*)$", text, re.MULTILINE):
        names[outcome.lower() or "unfinished"].append(test.partition("::")[2])
    record.add("tests", "pytest -m gpu", exit_code=code, **{outcome: len(tests) for outcome, tests in names.items()})
    if names["skipped"]:
        reasons = "; ".join(dict.fromkeys(re.findall(r"^SKIPPED \[\d+\] (.+)", text, re.MULTILINE)))
        record.skipped.append(
            f"tests: {len(names['skipped'])} skipped ({reasons}): {', '.join(names['skipped'])}"[:3000]
        )
    wrong = [f"{outcome} {test}" for outcome in ("failed", "error", "unfinished") for test in names[outcome]]
    if code or not names["passed"]:
        record.add("tests", "what failed", text="; ".join(wrong)[:3000], output=text[-1500:])
        ended = "ran out of time" if code == TIMED_OUT else f"ended with exit code {code}"
        record.fail(f"tests: {ended}, {len(names['passed'])} passed, {len(wrong)} did not")


def run_sanitizers(record: Record) -> None:
    """A few small tests under each tool of compute-sanitizer, where it is installed."""
    program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if program is None:
        record.skipped.append("sanitizer: compute-sanitizer is not installed")
        return

    def check(tool: str, tests: str, seconds: float) -> None:
        command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-x"]
        text, code = run([*command, "-p", "no:cacheprovider", "-m", "gpu", "-k", tests, TESTS], seconds)
        summary = [
            line for line in text.splitlines() if "SUMMARY" in line or re.search(r"\d (passed|failed|skipped)", line)
        ]
        told = "; ".join(summary)[-300:] or text[-1500:]
        record.add("tests", f"compute-sanitizer {tool}", exit_code=code, text=told)
        if code == TIMED_OUT:
            record.skipped.append(f"sanitizer: {tool} was not done in {seconds} s")
        elif code or " passed" not in text:  # tests that skip end with 0 too
            record.fail(f"sanitizer: {tool} ended with exit code {code}: {told}")

    for tool, (tests, seconds) in SANITIZED.items():
        record.attempt(f"sanitizer: {tool}", partial(check, tool, tests, seconds), needs=seconds)


def run(command: list[str], seconds: float) -> tuple[str, int]:
    """Output and exit code of a command in the checkout; TIMED_OUT, and the output so far, where its time ran out."""
    # Plugins that happen to be installed are no part of the tests, and a warning of one would fail them all.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with tempfile.TemporaryFile() as output:  # no pipe: what the command has started itself could hold it open
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
            os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # the driver may hold on to a process for ever
                process.wait(5)
        output.seek(0)
        return output.read().decode(errors="replace"), code


def measure(
    record: Record,
    name: str,
    num_items: int,
    batch: int,
    ks: tuple[int, ...],
    backend: str,
    ceilings: dict[str, float],
) -> None:
    """One corpus: kernels, searches, ablations."""
    corpus = make_corpus(name, num_items, batch, record.device, backend)
    called = f"{name} {num_items:,}"
    if name == "R":
        kernels = partial(measure_kernels, record, corpus, ceilings, backend, batch, ks)
        record.attempt(f"kernels: {called}", kernels)
    measure_searches(record, corpus, backend, batch, ks)
    if name == "R":
        record.attempt(f"ablations: {called}", partial(measure_ablations, record, corpus, backend, batch))


def measure_large(record: Record, num_items: int, batch: int, backend: str) -> None:
    """Exact search of random codes, which need no clustering: bytes and products are those of a real corpus."""
    device, dim = record.device, 128
    codes = torch.empty(num_items, dim, dtype=torch.int8, device=device)
    for part in codes.split(1 << 22):
        part.copy_(torch.randint(-127, 128, part.shape, dtype=torch.int8, device=device))
    ones = torch.rand(num_items, device=device) + 0.5
    centroids = Quantized(codes[:1], ones[:1])
    index = SearchIndex(codes, ones, ones, ones, Clusters(centroids, torch.tensor([0, num_items], device=device)))
    quantized = quantize_rows(torch.randn(batch, dim, device=device), backend=backend)
    nobody = torch.full((batch,), -1, dtype=torch.int64, device=device)
    seconds = seconds_of(
        device, lambda: search_rows(quantized, index, None, nobody, k0=132, backend=backend), repeat=2, most=10
    )
    record.add("large", f"exact int8 search of {num_items:,} items, B={batch}, k0=132", vectors_per_s=batch / seconds)


if __name__ == "__main__":
    sys.exit(main(START))
