"""On a GPU: each operation's kernels against its torch form, and the commands against the CPU. `make gpu` runs this."""

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
from tests.ops import filter_cases, search_cases
from tests.ops.test_device_agnostic import filters, normal, quantized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no usable GPU"),
]

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


@pytest.fixture(autouse=True)
def kernels():
    why = cuda.why_not(torch.device("cuda", 0))
    if why is not None:
        pytest.skip(why)


def equal_on_gpu(operation, *given, **options):
    """The kernels on the GPU give bit for bit what the torch form gives on the CPU."""
    expected = operation(*given, **options, backend="torch")
    far = [moved(value, torch.device("cuda")) for value in given]
    found = operation(
        *far, **{name: moved(value, torch.device("cuda")) for name, value in options.items()}, backend="cuda"
    )
    pairs = (
        [(expected, found)]
        if isinstance(expected, torch.Tensor)
        else zip(*map(tensors, (expected, found)), strict=True)
    )
    for near, there in pairs:
        assert there.device.type == "cuda"
        assert torch.equal(near, there.cpu())


def tensors(value) -> list[torch.Tensor]:
    return [item for item in vars(value).values() if isinstance(item, torch.Tensor)]


def search_case(name):
    return search_cases.make_case(7, **LARGE[name]) if name in LARGE else search_cases.named_case(name)


@pytest.mark.parametrize("name", [*search_cases.NAMED, *LARGE])
def test_search_clusters(name):
    case = search_case(name)
    given = (case.queries, case.index, case.probes, case.words, case.filter_of_query)
    equal_on_gpu(search_clusters, *given, **case.rest())


@pytest.mark.parametrize("name", ["plain", "filters_and_ties", "excluded", *LARGE])
def test_search_requests(name):
    case = search_case(name)
    count = len(case.queries.scales) // 2
    excluded = None if case.excluded is None else case.excluded.take(slice(0, count))
    queries = Quantized(case.queries.codes[: 2 * count], case.queries.scales[: 2 * count])
    given = (queries, case.index, case.probes[: 2 * count], case.words, case.filter_of_query[:count])
    equal_on_gpu(search_requests, *given, k0=case.k0, excluded=excluded)


@pytest.mark.parametrize("name", [*search_cases.NAMED, *LARGE])
def test_search_rows(name):
    case = search_case(name)
    equal_on_gpu(search_rows, case.queries, case.index, case.words, case.filter_of_query, **case.rest())


@pytest.mark.parametrize("num_probes", [1, 30, 1000])
def test_choose_probes(num_probes):
    equal_on_gpu(choose_probes, quantized(500, 100, 1), quantized(1000, 100, 2), num_probes=num_probes)


@pytest.mark.parametrize("seed", range(3))
def test_filter_match(seed):
    _, _, matrix, program, _ = filters(seed, num_items=100_001, num_terms=300)
    equal_on_gpu(filter_match, matrix, program)
    equal_on_gpu(filter_match, matrix, program, places=torch.arange(0, 1500, 7))


@pytest.mark.parametrize("num_items", [130, 8300])
def test_filter_probes(num_items):
    given, allowed, _ = filter_cases.probed_case(num_items, num_items, 7, with_allowed=True)
    equal_on_gpu(filter_probes, *given, allowed=allowed)
    expected = filter_probes(*given, allowed=allowed, backend="torch")
    far = [moved(value, torch.device("cuda")) for value in (*given, allowed)]
    found = filter_probes(*far[:-1], allowed=far[-1], room=2 * len(expected.words), backend="cuda")
    assert torch.equal(found.starts.cpu(), expected.starts)
    assert torch.equal(found.words[: len(expected.words) - 1].cpu(), expected.words[:-1])


@pytest.mark.parametrize("name", ["filters", "many_queries", "large_filters"])
def test_search_clusters_by_spans(name):
    case = search_case(name)
    spans = search_cases.spans_of(case, case.filter_of_query >= 0)
    nobody = torch.full_like(case.filter_of_query, -1)
    equal_on_gpu(search_clusters, case.queries, case.index, case.probes, None, nobody, spans=spans, **case.rest())


@pytest.mark.parametrize("seed", range(3))
def test_verify_terms(seed):
    terms, _, _, _, program = filters(seed)
    rows = (torch.arange(300 * 50).reshape(300, 50) * 37) % 5001 - 1
    equal_on_gpu(verify_terms, terms, program, rows, torch.arange(300) % 10 - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [1, 100, 128, 1000])
def test_rescore(dtype, dim):
    rows = torch.arange(70 * 300).reshape(70, 300) % 601 - 1
    exponents = (torch.arange(600) % 100 - 50).to(torch.int8)
    equal_on_gpu(rescore, normal(70, dim), Embeddings(normal(600, dim, seed=2).to(dtype), exponents), rows)


@pytest.mark.parametrize(("slots", "k"), [(1, 1), (132, 100), (1300, 2000), (13_000, 10_000), (20_000, 10_000)])
def test_take_best(slots, k):
    rows = torch.arange(slots) * 7919 % 40_009 + torch.arange(30)[:, None]
    rows[:, ::5] = -1
    scores = (torch.arange(30 * slots) * 31 % 1009).view(30, slots).float() - 500
    equal_on_gpu(take_best, rows, scores, (torch.arange(50_000) * 7919) % 50_021, k=k)


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


def test_the_index_is_the_same(tiny, tmp_path):
    for device in ("cpu", "cuda"):
        stcli.build_index(tiny.items, tmp_path / device, device=device, seed=3)
    assert arrays(tmp_path / "cpu") == arrays(tmp_path / "cuda")


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("how", [{}, {"exact": True}, {"probes": 3}], ids=str)
def test_the_results_are_the_same(tiny, how, backend):
    queries = np.random.default_rng(5).standard_normal((40, 16), dtype=np.float32)
    texts = [None, "price < 20", "NOT tags = 't03'", "color = 'red' AND year >= 2000"] * 10
    here, there = (stcli.open_artifact(tiny.model, device=device, backend=backend) for device in ("cpu", "cuda"))
    expected, found = here(queries, texts, 7, **how), there(queries, texts, 7, **how)
    assert torch.equal(expected.rows, found.rows)
    assert torch.equal(expected.score_matrix, found.score_matrix)


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
