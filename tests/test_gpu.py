"""On a GPU: each operation's kernels against its torch form, and the commands against the CPU. `make gpu` runs this.

The small cases of the operations run on the emulation too, so that no GPU is the first to see their code.
"""

import numpy as np
import pytest
import torch

import stcli
from stcli.ops import cuda
from stcli.ops.choose_probes import choose_probes
from stcli.ops.filter_match import filter_match
from stcli.ops.filter_probes import filter_probes
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_requests import search_requests
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import Embeddings, Quantized, moved
from tests.emulated import Emulated
from tests.emulation.emulate import COMPILER, WHY_MISSING
from tests.ops import filter_cases, search_cases
from tests.ops.test_device_agnostic import filters, normal, quantized

ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU"))

LARGE = {
    "large": {"queries": 300, "rows": 100_000, "dim": 128, "clusters": 64, "probes": 20, "k0": 132},
    "large_filters": {
        "queries": 300,
        "rows": 100_000,
        "dim": 96,
        "filters": 50,
        "rate": 0.05,
        "clusters": 64,
        "k0": 40,
    },
    "large_selective": {"queries": 300, "rows": 200_000, "filters": 50, "rate": 0.001, "clusters": 64, "k0": 40},
    "large_bounds": {
        "queries": 130,
        "rows": 60_000,
        "dim": 128,
        "bounds": True,
        "clusters": 9,
        "probes": 9,
        "k0": 1000,
    },
    "many_results": {"queries": 20, "rows": 60_000, "dim": 64, "clusters": 9, "probes": 9, "k0": 13_000},
    "two_samples": {"queries": 40, "rows": 300_000, "clusters": 64, "k0": 132},
    "large_ties": {"queries": 100, "rows": 60_000, "high": 1, "clusters": 9, "probes": 9, "k0": 500},
}


@pytest.fixture
def kernels():
    why = cuda.why_not(torch.device("cuda", 0))
    if why is not None:
        pytest.skip(why)


def on_gpu(test):
    for mark in (*ON_GPU, pytest.mark.usefixtures("kernels")):
        test = mark(test)
    return test


@pytest.fixture
def device(request):
    """Where the kernels run: a GPU, or the CPU with their emulation."""
    if request.param == "cuda":
        request.getfixturevalue("kernels")
        yield torch.device("cuda")
        return
    if COMPILER is None:
        pytest.skip(WHY_MISSING)
    with cuda.launching_with(Emulated()):
        yield torch.device("cpu")


def cases(names, small, large=()):
    """Small cases on both devices, large ones on a GPU alone; a case is a value, or a tuple of one for each name."""

    def case(device, values, marks=()):
        return pytest.param(device, *(values if isinstance(values, tuple) else (values,)), marks=marks)

    chosen = [case("emulation", values) for values in small]
    chosen += [case("cuda", values, ON_GPU) for values in (*small, *large)]
    return pytest.mark.parametrize(("device", *names.split()), chosen, indirect=["device"])


def check(device, operation, *given, **options):
    """The kernels give bit for bit what the torch form gives on the CPU."""
    expected = operation(*given, **options, backend="torch")
    far = [moved(value, device) for value in given]
    found = operation(*far, **{name: moved(value, device) for name, value in options.items()}, backend="cuda")
    pairs = (
        [(expected, found)]
        if isinstance(expected, torch.Tensor)
        else zip(*map(tensors, (expected, found)), strict=True)
    )
    for near, there in pairs:
        assert there.device.type == device.type
        assert torch.equal(near, there.cpu())


def tensors(value) -> list[torch.Tensor]:
    return [item for item in vars(value).values() if isinstance(item, torch.Tensor)]


def search_case(name):
    return search_cases.make_case(7, **LARGE[name]) if name in LARGE else search_cases.named_case(name)


@cases("name", search_cases.NAMED, LARGE)
def test_search_clusters(device, name):
    case = search_case(name)
    given = (case.queries, case.index, case.probes, case.words, case.filter_of_query)
    check(device, search_clusters, *given, **case.rest())


@cases("name", ["plain", "filters_and_ties", "excluded"], LARGE)
def test_search_requests(device, name):
    case = search_case(name)
    count = len(case.queries.scales) // 2
    excluded = None if case.excluded is None else case.excluded.take(slice(0, count))
    queries = Quantized(case.queries.codes[: 2 * count], case.queries.scales[: 2 * count])
    given = (queries, case.index, case.probes[: 2 * count], case.words, case.filter_of_query[:count])
    check(device, search_requests, *given, k0=case.k0, excluded=excluded)


@cases("name", search_cases.NAMED, LARGE)
def test_search_rows(device, name):
    case = search_case(name)
    check(device, search_rows, case.queries, case.index, case.words, case.filter_of_query, **case.rest())


@cases("queries centroids num_probes", [(30, 40, 1), (30, 40, 9)], [(500, 1000, count) for count in (1, 30, 1000)])
def test_choose_probes(device, queries, centroids, num_probes):
    given = quantized(queries, 100, 1), quantized(centroids, 100, 2)
    check(device, choose_probes, *given, num_probes=num_probes)


@cases("seed num_items num_terms", [(0, 1001, 40)], [(seed, 100_001, 300) for seed in range(3)])
def test_filter_match(device, seed, num_items, num_terms):
    _, _, matrix, program, _ = filters(seed, num_items, num_terms)
    check(device, filter_match, matrix, program)
    check(device, filter_match, matrix, program, places=torch.arange(0, matrix.own.shape[1], 7))


@cases("num_items", [130, 8300])
def test_filter_probes(device, num_items):
    """The words of pairs, without the one behind them, which a kernel leaves as it was."""
    given, allowed, _ = filter_cases.probed_case(num_items, num_items, 7, with_allowed=True)
    expected = filter_probes(*given, allowed=allowed, backend="torch")
    num_words = len(expected.words) - 1
    far = [moved(value, device) for value in (*given, allowed)]
    for room in (None, 2 * num_words):
        found = filter_probes(*far[:-1], allowed=far[-1], room=room, backend="cuda")
        assert len(found.words) == (room or num_words) + 1
        assert torch.equal(found.starts.cpu(), expected.starts)
        assert torch.equal(found.words[:num_words].cpu(), expected.words[:num_words])


@cases("name", ["filters", "many_queries"], ["large_filters"])
def test_search_clusters_by_spans(device, name):
    case = search_case(name)
    spans = search_cases.spans_of(case, case.filter_of_query >= 0)
    nobody = torch.full_like(case.filter_of_query, -1)
    given = (case.queries, case.index, case.probes, None, nobody)
    check(device, search_clusters, *given, spans=spans, **case.rest())


@cases("seed", range(3))
def test_verify_terms(device, seed):
    terms, _, _, _, program = filters(seed)
    rows = (torch.arange(300 * 50).reshape(300, 50) * 37) % 5001 - 1
    check(device, verify_terms, terms, program, rows, torch.arange(300) % 10 - 1)


@cases("dtype dim", [(dtype, dim) for dtype in (torch.float16, torch.float32) for dim in (1, 100, 128, 1000)])
def test_rescore(device, dtype, dim):
    rows = torch.arange(70 * 300).reshape(70, 300) % 601 - 1
    exponents = (torch.arange(600) % 100 - 50).to(torch.int8)
    check(device, rescore, normal(70, dim), Embeddings(normal(600, dim, seed=2).to(dtype), exponents), rows)


@cases("dtype", [torch.float16, torch.float32])
def test_rescore_of_subnormal_numbers(device, dtype):
    """Products of numbers of some 1e-20, and float16 rows scaled to it: none is flushed to zero."""
    queries, values = 1e-20 * normal(7, 20), normal(50, 20, seed=2)
    exponents = torch.full((50,), -66, dtype=torch.int8) if dtype == torch.float16 else None
    embeddings = Embeddings(values.half() if exponents is not None else 1e-20 * values, exponents)
    rows = torch.arange(350).reshape(7, 50) % 50
    scores = rescore(queries, embeddings, rows, backend="torch")
    assert bool(((scores != 0) & (scores.abs() < torch.finfo(torch.float32).tiny)).all())
    check(device, rescore, queries, embeddings, rows)


@cases("slots k", [(1, 1), (132, 100), (1300, 2000)], [(13_000, 10_000), (20_000, 10_000)])
def test_take_best(device, slots, k):
    rows = torch.arange(slots) * 7919 % 40_009 + torch.arange(30)[:, None]
    rows[:, ::5] = -1
    scores = (torch.arange(30 * slots) * 31 % 1009).view(30, slots).float() - 500
    check(device, take_best, rows, scores, (torch.arange(50_000) * 7919) % 50_021, k=k)


@on_gpu
def test_kernels_take_their_turn_on_torchs_stream():
    """What torch does before and after a launch on another stream is seen and waited for."""
    stream = torch.cuda.Stream()
    values = Embeddings(torch.zeros(4096, 128, device="cuda"), None)
    queries, rows = torch.ones(64, 128, device="cuda"), torch.arange(4096, device="cuda").expand(64, -1).contiguous()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for number in range(20):
            values.values.fill_(number)
            found = rescore(queries, values, rows, backend="cuda").clone()
            assert bool((found == 128 * number).all())


# ---- commands ------------------------------------------------------------------------------------------------------


def arrays(path):
    return {file.name: file.read_bytes() for file in path.glob("*.npy")}


@on_gpu
def test_the_index_is_the_same(tiny, tmp_path):
    for device in ("cpu", "cuda"):
        stcli.build_index(tiny.items, tmp_path / device, device=device, seed=3)
    assert arrays(tmp_path / "cpu") == arrays(tmp_path / "cuda")


@on_gpu
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("how", [{}, {"exact": True}, {"probes": 3}], ids=str)
def test_the_results_are_the_same(tiny, how, backend):
    queries = np.random.default_rng(5).standard_normal((40, 16), dtype=np.float32)
    texts = [None, "price < 20", "NOT tags = 't03'", "color = 'red' AND year >= 2000"] * 10
    here, there = (stcli.open_artifact(tiny.model, device=device, backend=backend) for device in ("cpu", "cuda"))
    expected, found = here(queries, texts, 7, **how), there(queries, texts, 7, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)


@on_gpu
@pytest.mark.parametrize("place", [(), ("embeddings=host",), ("terms=gpu",)], ids=str)
@pytest.mark.parametrize("batches", [{}, {"batch_size": 7}], ids=["one_batch", "two_at_once"])
def test_retrieve_writes_the_same_rows(tiny, tmp_path, place, batches):
    stcli.retrieve(tiny.model, tiny.queries, tmp_path / "cpu", k=5, filter_column="filter", device="cpu", **batches)
    summary = stcli.retrieve(
        tiny.model, tiny.queries, tmp_path / "gpu", k=5, filter_column="filter", device="cuda", place=place, **batches
    )
    parts = [(tmp_path / device / "part-00000.parquet").read_bytes() for device in ("cpu", "gpu")]
    assert parts[0] == parts[1]
    assert "kernels" in summary["device"]
