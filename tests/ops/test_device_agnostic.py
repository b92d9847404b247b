"""The torch form of every operation stays on the device of its tensors; a GPU is not needed to see where it does not.

Each operation runs on `Far` tensors, which claim to be elsewhere: a copy to the CPU, a tensor made on the CPU, or a mix
of both is an error. The result is far away too, and equal to that of the same call on the CPU.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from stcli.errors import DeviceError
from stcli.index import kmeans
from stcli.ops.assign_clusters import assign_clusters
from stcli.ops.bloom_hash import bloom_positions
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.cap_groups import cap_groups
from stcli.ops.choose_probes import choose_probes
from stcli.ops.count_bits import count_bits
from stcli.ops.exponents import half_rows, powers_of_two, row_exponents
from stcli.ops.filter_match import filter_match
from stcli.ops.keys import best_keys, make_keys, split_keys
from stcli.ops.map_ids import id_table, map_ids
from stcli.ops.merge_lists import merge_lists
from stcli.ops.mol_score import mol_score
from stcli.ops.quantize_rows import quantize_rows
from stcli.ops.rescore import rescore
from stcli.ops.search_clusters import search_clusters
from stcli.ops.search_requests import search_requests
from stcli.ops.search_rows import search_rows
from stcli.ops.take_best import take_best
from stcli.ops.verify_terms import verify_terms
from stcli.types import Embeddings, MolCross, MolItems, MolQueries
from tests.far_device import FAR, Far, HiddenCopy, Watch, to_far, to_here
from tests.ops import filter_cases, search_cases

MAX_READS = 100
"""Single numbers that a call may read: checks and loop bounds. Hundreds of items must not become hundreds of reads."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(rows: int, dim: int, seed: int):
    return quantize_rows(normal(rows, dim, seed=seed), backend="torch")


def on_both(operation, *given, reads: bool = False, max_reads: int = MAX_READS, **options):
    """Run on the CPU and far away; the results must be equal."""
    expected = operation(*given, **options)
    with Watch(reads) as watch:
        found = operation(*(to_far(value) for value in given), **{k: to_far(value) for k, value in options.items()})
    assert watch.num_reads <= max_reads
    for far, near in zip(leaves(to_here(found)), leaves(expected), strict=True):
        assert far.dtype == near.dtype
        assert torch.equal(far, near)


def leaves(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value if isinstance(value, tuple | list) else vars(value).values()
    return [leaf for part in parts if not isinstance(part, int | float | type(None)) for leaf in leaves(part)]


# ---- the operations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [None, 0.03])
def test_quantize_rows(dtype, scale):
    rows = normal(300, 20)
    rows[7] = 0
    on_both(lambda rows: quantize_rows(rows, scale=scale), rows.to(dtype))


def test_assign_clusters():
    rows, centroids = quantized(300, 20, 1), quantized(30, 20, 2)
    on_both(assign_clusters, rows, centroids, normal(30, seed=3).abs())


def test_kmeans():
    on_both(lambda points: kmeans.train(points, 12), normal(400, 16))
    on_both(lambda points: kmeans.train(points, 12), torch.eye(4, 8).repeat(10, 1))  # clusters become empty
    on_both(kmeans.assign, quantized(200, 16, 1), quantized(9, 16, 2))
    on_both(kmeans.squared_distances, quantized(200, 16, 1), quantized(9, 16, 2), torch.arange(200) % 9)


@pytest.mark.parametrize("num_probes", [1, 7, 99])
def test_choose_probes(num_probes):
    on_both(lambda a, b: choose_probes(a, b, num_probes=num_probes), quantized(50, 20, 1), quantized(40, 20, 2))


SEARCHES = [
    "plain",
    "ties",
    "empty_clusters",
    "filters",
    "selective_filters",
    "excluded",
    "bounds",
    "all_at_once",
    "no_rows",
]


@pytest.mark.parametrize("name", SEARCHES)
def test_search_clusters(name):
    case = search_cases.named_case(name)
    given = (case.queries, case.index, case.probes, case.words, case.filter_of_query)
    on_both(search_clusters, *given, reads=True, **case.rest())


@pytest.mark.parametrize("name", ["plain", "filters_and_ties", "excluded", "no_queries"])
def test_search_requests(name):
    case = search_cases.named_case(name)
    count = len(case.queries.scales) // 2
    excluded = None if case.excluded is None else case.excluded.take(slice(0, count))
    given = (case.queries, case.index, case.probes, case.words, case.filter_of_query[:count])
    on_both(search_requests, *given, reads=True, k0=case.k0, excluded=excluded)


@pytest.mark.parametrize("name", SEARCHES)
def test_search_rows(name):
    case = search_cases.named_case(name)
    on_both(search_rows, case.queries, case.index, case.words, case.filter_of_query, reads=True, **case.rest())


@pytest.mark.parametrize("kind", [torch.float16, torch.int8])
def test_mol_score(kind):
    components = normal(30, 2, 8)
    scales = torch.rand(30, 2) if kind == torch.int8 else None
    items = MolItems((20 * components).to(kind), scales, normal(30, 6).half())
    cross = MolCross(normal(5, 6), normal(5), normal(6, 5), normal(6))
    rows = torch.randint(-1, 30, (4, 50), generator=torch.Generator().manual_seed(1))
    queries = MolQueries(normal(4, 3, 8), normal(4, 6))
    on_both(mol_score, queries, items, cross, rows, tau=1.0, backend="torch", reads=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("with_exponents", [False, True])
def test_rescore(dtype, with_exponents):
    rows = torch.arange(7 * 30).reshape(7, 30) % 61 - 1
    exponents = (torch.arange(60) - 30).to(torch.int8) if with_exponents else None
    on_both(rescore, normal(7, 20), Embeddings(normal(60, 20, seed=2).to(dtype), exponents), rows)


def test_take_best():
    rows = torch.stack([torch.randperm(60)[:30] for _ in range(9)])
    rows[:, ::7] = -1
    scores = torch.randint(-5, 5, rows.shape).float()
    on_both(lambda *tensors: take_best(*tensors, k=20), rows, scores, torch.randperm(60))


def filters(seed: int, num_items: int = 5000, num_terms: int = 40):
    """Terms, a plan, its matrix, and programs of every kind of leaf."""
    rng = random.Random(seed)
    items = filter_cases.random_items(rng, num_items, num_terms)
    plan = filter_cases.random_plan(rng, num_terms)
    terms = filter_cases.postings(items)
    matrix = build_bit_matrix(terms, plan, backend="torch")
    row_leaves = filter_cases.random_leaves(rng, plan)
    row_ops = [filter_cases.random_ops(rng, len(row_leaves), rng.randint(1, 6)) for _ in range(9)]
    cuts = sorted(rng.sample(range(num_terms), 8))
    term_leaves = [[(cuts[0], cuts[1])], [], [(0, 3), (cuts[2], cuts[3])]]
    term_ops = [filter_cases.random_ops(rng, len(term_leaves), rng.randint(1, 6)) for _ in range(9)]
    return (
        terms,
        plan,
        matrix,
        filter_cases.make_program(row_leaves, row_ops),
        filter_cases.make_term_program(term_leaves, term_ops),
    )


def test_filter_match():
    _, _, matrix, program, _ = filters(1)
    on_both(filter_match, matrix, program, reads=True)
    out = torch.full((9, 79), 7)
    with Watch(reads=True):
        far = to_far(out)
        result = filter_match(to_far(matrix), to_far(program), out=far)
    assert torch.equal(to_here(result), filter_match(matrix, program, backend="torch"))
    assert torch.equal(out, to_here(result)), "the tensor given was filled"


def test_build_bit_matrix():
    terms, plan, *_ = filters(2)
    on_both(build_bit_matrix, terms, plan, reads=True, max_reads=200)  # a bisection for the width of each block


def test_verify_terms():
    terms, _, _, _, program = filters(3)
    rows = (torch.arange(30 * 50).reshape(30, 50) * 37) % 5001 - 1
    on_both(verify_terms, terms, program, rows, torch.arange(30) % 10 - 1)


def test_count_bits():
    on_both(count_bits, torch.arange(3 * 77).reshape(3, 77) * 0x123456789ABCDEF)


def test_map_ids():
    ids = torch.arange(500).flip(0) * 7919 % 100_003
    wanted = torch.arange(0, 100_003, 97)
    for given in (ids, ids * 1000):
        on_both(lambda ids, wanted: map_ids(wanted, ids, id_table(ids)), given, wanted)


def test_cap_groups():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(-1, 50, (5, 40), generator=generator)
    groups = torch.randint(-1, 9, (2, 50), generator=generator, dtype=torch.int32)
    on_both(cap_groups, rows, groups, torch.tensor([2, 5]), 12)


@pytest.mark.parametrize("everywhere", [False, True])
def test_merge_lists(everywhere):
    rows = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(n))[:20] for n in range(15)])
    on_both(merge_lists, rows.view(5, 3, 20), normal(5, 3, 20), everywhere=everywhere)


def test_bloom_positions():
    on_both(lambda *given: bloom_positions(*given, 5), torch.arange(99), torch.arange(99) // 7, torch.full((99,), 501))


def test_exponents():
    rows = normal(50, 8) * torch.logspace(-20, 20, 50)[:, None]
    on_both(row_exponents, rows)
    on_both(half_rows, rows, row_exponents(rows))
    on_both(powers_of_two, torch.arange(-126, 127))


def test_keys():
    scores, rows = normal(9, 40), torch.arange(360).reshape(9, 40)
    on_both(lambda scores, rows: split_keys(best_keys(make_keys(scores, rows), 50)), scores, rows)


def test_a_library_for_the_cpu_is_not_used_far_away():
    rows = to_far(normal(3, 4))
    with Watch(), pytest.raises(DeviceError, match=r"backend 'native' needs tensors on the CPU, got meta"):
        quantize_rows(rows, backend="native")


# ---- what the watch would catch -------------------------------------------------------------------------------------

ON_CPU = torch.arange(6)


def popcount_with_forgotten_device(words: torch.Tensor) -> torch.Tensor:
    """As an operation might be written: right on the CPU, and wrong elsewhere by one word."""
    bits = torch.arange(64)  # device=words.device is missing
    return ((words[..., None] >> bits) & 1).sum((1, 2))


def popcount_over_numpy(words: torch.Tensor) -> torch.Tensor:
    counted = np.bitwise_count(words.numpy().view(np.uint64)).sum(1)
    return torch.from_numpy(counted.astype(np.int64)).to(words.device)


BROKEN = {
    "arange without device": popcount_with_forgotten_device,
    "numpy in between": popcount_over_numpy,
    "cpu and back": lambda x: x.cpu().sum(1).to(x.device),
    "to('cpu') with a dtype": lambda x: x.to("cpu", torch.int32),
    "zeros without device": lambda x: torch.zeros(len(x), dtype=torch.int64),
    "zeros_like on the CPU": lambda x: torch.zeros_like(x, device="cpu"),
    "an index on the CPU": lambda x: x[:, ON_CPU],
    "a literal without device": lambda x: x[:, torch.tensor([1, 2])],
    "an operand on the CPU": lambda x: x + ON_CPU,
    "work on the CPU": lambda x: (ON_CPU + 1).to(x.device),
    "all values as a list": lambda x: torch.tensor(x.tolist(), device=x.device),
    "numpy.asarray": lambda x: np.asarray(x).sum(),
    "a result on the CPU": lambda x: ON_CPU,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_operation_is_caught(name):
    words = torch.arange(18).reshape(3, 6)
    BROKEN[name](words)  # nothing to see on the CPU
    with pytest.raises(HiddenCopy):
        on_both(BROKEN[name], words)


def test_a_sound_operation_is_not():
    def popcount(words: torch.Tensor) -> torch.Tensor:
        bits = torch.arange(64, device=words.device)
        return ((words[..., None] >> bits) & 1).sum((1, 2))

    on_both(popcount, torch.arange(18).reshape(3, 6))


def test_far_tensors_say_so_and_keep_their_values():
    near = torch.arange(6).reshape(2, 3)
    far = to_far(near)
    assert isinstance(far, Far)
    assert far.device == FAR
    assert far.shape == near.shape
    with Watch():
        far[0] = 7
        far[far > 3] += torch.tensor([1, 2, 3, 4, 5], device=FAR)
        doubled = far.T * 2
        assert int(doubled[0, 1]) == 6
    assert near.tolist() == [[8, 9, 10], [3, 8, 10]]
    assert to_here(doubled).tolist() == [[16, 6], [18, 16], [20, 20]]
