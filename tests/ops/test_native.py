"""Memory that runs out in the native library becomes a MemoryError."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch

from stcli.ops import native
from stcli.ops.assign_clusters import assign_clusters
from stcli.ops.choose_probes import choose_probes
from stcli.ops.count_bits import count_bits
from stcli.ops.cuda import kernel_folder
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.take_best import take_best
from stcli.types import Embeddings, Quantized

KERNELS = kernel_folder()
FUNCTION = re.compile(r'^extern "C" int (stcli_\w+)\([^{]*\{.*?^\}.*?$', re.MULTILINE | re.DOTALL)

VECTORS = torch.ones(3, 32)
CODES = Quantized(torch.ones(3, 32, dtype=torch.int8), torch.ones(3))
ROWS = torch.zeros(3, 2, dtype=torch.int64)

CALLS = {
    "assign_clusters": lambda: assign_clusters(CODES, CODES, torch.zeros(3), backend="native"),
    "choose_probes": lambda: choose_probes(CODES, CODES, num_probes=2, backend="native"),
    "count_bits": lambda: count_bits(ROWS, backend="native"),
    "quantize_rows": lambda: quantize_rows(VECTORS, backend="native"),
    "rescore": lambda: rescore(VECTORS, Embeddings(VECTORS, None), ROWS, backend="native"),
    "take_best": lambda: take_best(ROWS, torch.zeros(3, 2), torch.arange(3), k=2, backend="native"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_the_library_returns_is_told(name, monkeypatch):
    failing = SimpleNamespace(**{f"stcli_{name}": lambda *_: 1})
    monkeypatch.setattr(native, "library", lambda: failing)
    with pytest.raises(MemoryError, match=f"{name}: out of memory"):
        CALLS[name]()


def test_every_parallel_function_catches_what_its_threads_throw():
    found = {
        match[1]: match[0]
        for path in sorted(KERNELS.glob("*.cpp"))
        for match in FUNCTION.finditer(path.read_text(encoding="utf-8"))
    }
    assert len(found) == sum(path.read_text(encoding="utf-8").count('extern "C"') for path in KERNELS.glob("*.cpp"))
    parallel = {name for name, text in found.items() if "parallel_for(" in text}
    assert len(parallel) >= 10
    caught = {name for name, text in found.items() if "catch (const std::bad_alloc&)" in text}
    assert parallel <= caught
    assert {"stcli_search_rows", "stcli_search_clusters", "stcli_choose_probes"} <= caught
