"""Test and measure stcli on a GPU, from a checkout, within a time budget; `make gpu OUT=dir` calls it.

Stages, each written to report.json and report.html as it ends: the GPU tests, compute-sanitizer where it exists, the
measured ceilings of the device, every operation and kernel as a share of them, whole searches against plain torch on
the same device, ablations, and a large corpus if time is left. On another machine the same script runs with
`--device cpu --size toy`, to see that it works.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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

SANITIZED = "(test_search_clusters and (odd_width or all_at_once)) or (test_filter_probes and 130)"
"""Small tests of the kernels: under the sanitizer all takes some twenty times as long."""

GRACE = 10
"""Seconds after the end of the budget at which a measurement that still runs is given up."""


def main() -> None:
    """Run all stages that fit."""
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
    record = Record(options.out, device, options.seconds)
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, options.seconds + GRACE)
    try:
        run_stages(record, options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for text in record.skipped:
        print(f"left out: {text}")
    print(f"{options.out / 'report.html'}: {len(record.rows)} measurements, {record.left():.0f} s of the budget left")


def give_up(*_: object) -> None:
    """End what runs now; the record goes on, and finds no time left."""
    raise TimeoutError("the time is used up")


def run_stages(record: Record, options: argparse.Namespace) -> None:
    """All stages that fit."""
    device = record.device
    sizes, batch, ks, large = SIZES[options.size]
    toy = options.size == "toy"
    record.machine = describe(device)
    record.write()
    if device.type == "cuda":
        run_tests(record)
        run_sanitizer(record)
    ceilings = {"copy": 1.0, "int8": 1.0}
    with record.stage("ceilings", 5) as more:
        if more():
            ceilings = measure_ceilings(record, toy)
    for num_items in sizes:
        for name in ("R", "H"):
            needs = 2 if toy else 20 + num_items / 400_000
            with record.stage(f"corpus {name} of {num_items:,}", needs) as more:
                if more():
                    measure(record, name, num_items, batch, ks, options.backend, ceilings, more)
    with record.stage(f"exact search of {large:,}", 2 if toy else 40) as more:
        if more():
            measure_large(record, large, batch, options.backend)


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
    """The tests marked gpu, in a process of their own."""
    with record.stage("tests", 60) as more:
        if more():
            command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
            text, code = run(command, min(150, record.left() / 3))
            counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", text)}
            record.add("tests", "pytest -m gpu", exit_code=code, **counts)
            failed = "; ".join(line for line in text.splitlines() if line.startswith(("FAILED", "ERROR")))
            if code:
                record.add("tests", "what failed", text=(failed or text[-1500:])[:3000])


def run_sanitizer(record: Record) -> None:
    """One small run under compute-sanitizer, where it is installed."""
    with record.stage("sanitizer", 90) as more:
        tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if tool is None:
            record.skipped.append("sanitizer: compute-sanitizer is not installed")
        elif more():
            command = [tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-x", "-k", SANITIZED]
            text, code = run([*command, "tests/test_gpu.py"], 80)
            summary = [line for line in text.splitlines() if "ERROR SUMMARY" in line or " passed" in line]
            record.add("tests", "compute-sanitizer memcheck", exit_code=code, text="; ".join(summary)[-300:])


def run(command: list[str], seconds: float) -> tuple[str, int]:
    """Output and exit code of a command in the checkout; 124 where its time ran out."""
    # Plugins that happen to be installed are no part of the tests, and a warning of one would fail them all.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        return str(error), 124
    return done.stdout + done.stderr, done.returncode


def measure(
    record: Record,
    name: str,
    num_items: int,
    batch: int,
    ks: tuple[int, ...],
    backend: str,
    ceilings: dict[str, float],
    more: Callable[[], bool],
) -> None:
    """One corpus: kernels, searches, ablations."""
    corpus = make_corpus(name, num_items, batch, record.device, backend)
    record.write()
    if name == "R":
        measure_kernels(record, corpus, ceilings, backend, batch, ks, more)
        record.write()
    measure_searches(record, corpus, backend, batch, ks, more)
    record.write()
    if name == "R":
        measure_ablations(record, corpus, backend, batch, more)


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
    main()
