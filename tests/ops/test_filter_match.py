"""filter_match against an oracle that decides item by item."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stcli.errors import TensorError
from stcli.ops.build_bit_matrix import build_bit_matrix
from stcli.ops.filter_match import filter_match
from stcli.types import OP_AND, OP_NOT, OP_OR, BitMatrix
from tests import oracles_filter
from tests.ops.filter_cases import (
    deep_ops,
    make_program,
    postings,
    random_items,
    random_leaves,
    random_ops,
    random_plan,
)


def expected_words(items, plan, program):
    own, blocks = oracles_filter.bit_matrix(items, plan)
    return oracles_filter.words_of(oracles_filter.filter_match(own, blocks, plan.num_hashes, program)).tolist()


def small_matrix(rows, num_items):
    return BitMatrix(
        torch.tensor(rows, dtype=torch.int64),
        torch.zeros(0, 64, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        3,
        num_items,
    )


def test_worked_example(form):
    program = make_program([(2, 0, 0, 0), (2, 1, 0, 0)], [[0, 1, OP_NOT, OP_AND]])
    assert filter_match(small_matrix([[0b011], [0b110]], 3), program, backend=form).tolist() == [[0b001]]


@pytest.mark.parametrize("num_items", [65, 4097])
@pytest.mark.parametrize("step", [1, 3, 40])
def test_only_the_words_asked_for(form, num_items, step):
    matrix, program, expected = edge_case(num_items)
    places = torch.arange(0, matrix.own.shape[1], step)
    if step == 3:
        places = torch.cat([places, torch.tensor([matrix.own.shape[1] - 1])]).unique()  # the last, partial word
    found = filter_match(matrix, program, places=places, backend=form)
    assert found.tolist() == [[line[place] for place in places.tolist()] for line in expected]


def test_no_words_asked_for(form):
    matrix, program, _ = edge_case(65)
    assert filter_match(matrix, program, places=torch.zeros(0).long(), backend=form).shape[1] == 0


@pytest.mark.parametrize("places", [[1, 0], [0, 0], [-1], [2]])
def test_places_out_of_order_or_range_are_refused(places):
    matrix, program, _ = edge_case(65)
    with pytest.raises(TensorError, match="places: "):
        filter_match(matrix, program, places=torch.tensor(places))


@functools.cache
def edge_case(num_items):
    rng = random.Random(num_items)
    items, plan = random_items(rng, num_items, 40), random_plan(rng, 40)
    leaves = random_leaves(rng, plan)
    shapes = [[leaf] for leaf in range(len(leaves))] + [[leaf, OP_NOT] for leaf in range(0, len(leaves), 3)]
    shapes += [random_ops(rng, len(leaves), rng.randint(2, 7)) for _ in range(8)]
    program = make_program(leaves, rng.sample(shapes, 14) if num_items > 100 else shapes)
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    return matrix, program, expected_words(items, plan, program)


@pytest.mark.parametrize("num_items", [1, 63, 64, 65, 4095, 4096, 4097])
def test_edges_of_words_and_blocks(form, num_items):
    matrix, program, expected = edge_case(num_items)
    assert filter_match(matrix, program, backend=form).tolist() == expected


@functools.cache
def bloom_case(num_leaves):
    rng = random.Random(num_leaves)
    items = random_items(rng, 4200, 30)
    plan = random_plan(rng, 30, own_share=0.0, bloom_share=1.0, fixed_width=40)
    leaves = [(3, term, 0, 0) for term in range(num_leaves)] + [(0, 0, 0, 0)]
    program = make_program(leaves, [[leaf, 0, OP_OR] for leaf in range(len(leaves))] + [[0, OP_NOT]])
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    return matrix, program, expected_words(items, plan, program)


@pytest.mark.parametrize("num_leaves", [0, 1, 2, 20])
def test_few_leaves_on_many_bloom_rows(form, num_leaves):
    matrix, program, expected = bloom_case(num_leaves)
    assert matrix.bloom_offsets.diff().tolist() == [40, 40]
    assert filter_match(matrix, program, backend=form).tolist() == expected


@pytest.mark.parametrize("case", ["no_own_rows", "no_bloom_rows", "empty_rows", "many_hashes", "fixed_width"])
def test_matrices(form, case):
    rng = random.Random(case)
    settings = {
        "no_own_rows": {"own_share": 0.0, "num_features": 0},
        "no_bloom_rows": {"bloom_share": 0.0},
        "many_hashes": {"num_hashes": 19, "bloom_fpr": 1e-4},
        "fixed_width": {"fixed_width": 3},
    }
    items = random_items(rng, 130, 30, longest=0 if case == "empty_rows" else 6)
    plan = random_plan(rng, 30, **settings.get(case, {}))
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), rng.randint(1, 6)) for _ in range(40)])
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    assert filter_match(matrix, program, backend=form).tolist() == expected_words(items, plan, program)


def test_a_block_without_bloom_rows_holds_no_bloom_term(form):
    items = [[0]] * 4096 + [[]] * 10
    plan = random_plan(random.Random(0), 1, own_share=0.0, bloom_share=1.0, num_features=0)
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    assert matrix.bloom_offsets.diff().tolist()[1] == 0
    words = filter_match(matrix, make_program([(3, 0, 0, 0)], [[0], [0, OP_NOT]]), backend=form)
    assert words.tolist() == [[-1] * 64 + [0], [0] * 64 + [1023]]


def test_deep_programs_and_and_chains(form):
    rng = random.Random(3)
    items, plan = random_items(rng, 300, 20), random_plan(rng, 20)
    leaves = random_leaves(rng, plan)
    chain = [0, *(x for leaf in range(2, 9) for x in (leaf, OP_AND))]
    programs = [deep_ops(rng, len(leaves), depth) for depth in (30, 2, 31, 1)] + [chain, [1, 2, OP_AND, 3, OP_AND]]
    program = make_program(leaves, programs)
    matrix = build_bit_matrix(postings(items), plan, backend="torch")
    assert filter_match(matrix, program, backend=form).tolist() == expected_words(items, plan, program)


@pytest.mark.parametrize("num_bits", range(1, 22))
def test_comparisons_of_rank_codes(form, num_bits):
    """Codes and bounds at both ends, around a random one, and beyond: LESS and EQUAL as integers compare."""
    rng = random.Random(num_bits)
    top = (1 << num_bits) - 1
    codes = [0, 1, top, max(top - 1, 0)] + [rng.randint(0, top) for _ in range(100)]
    bounds = [-1, 0, 1, top, top + 1, top + 9, codes[5], codes[6], codes[7] + 1]
    rows = [
        [sum((code >> bit & 1) << i for i, code in enumerate(codes[w : w + 64])) for w in (0, 64)]
        for bit in range(num_bits)
    ]
    rows = [[word - (1 << 64) if word >> 63 else word for word in row] for row in rows]
    leaves = [(kind, 0, num_bits, bound) for bound in bounds for kind in (4, 5)]
    words = filter_match(
        small_matrix(rows, len(codes)), make_program(leaves, [[i] for i in range(len(leaves))]), backend=form
    )
    bits = [[line[i // 64] >> (i % 64) & 1 for i in range(len(codes))] for line in words.tolist()]
    assert bits == [
        [int(code < bound if kind == 4 else code == bound) for code in codes] for kind, _, _, bound in leaves
    ]


def test_many_leaves_and_filters(form):
    """More leaves and filters than one tile of the native form holds."""
    rng = random.Random(11)
    num_items, num_rows = 4097, 3000
    rows = torch.randint(-(2**62), 2**62, (num_rows, 65), generator=torch.Generator().manual_seed(0))
    rows[:, 64] &= 1
    matrix = replace(small_matrix([[0]], num_items), own=rows, bloom_offsets=torch.zeros(3, dtype=torch.int64))
    programs = [[a, b, OP_AND] for a, b in (rng.sample(range(num_rows), 2) for _ in range(2000))]
    programs += [[0, *(x for leaf in range(1, num_rows) for x in (leaf, rng.choice((OP_AND, OP_OR))))]]
    words = filter_match(matrix, make_program([(2, i, 0, 0) for i in range(num_rows)], programs), backend=form)
    pairs = torch.tensor([program[:2] for program in programs[:2000]])
    assert torch.equal(words[:2000], rows[pairs[:, 0]] & rows[pairs[:, 1]])
    expected = rows[0]
    for leaf, op in zip(programs[-1][1::2], programs[-1][2::2], strict=True):
        expected = expected & rows[leaf] if op == OP_AND else expected | rows[leaf]
    assert torch.equal(words[2000], expected)


def test_out_is_written_and_returned(form):
    matrix, program = small_matrix([[0b011]], 3), make_program([(2, 0, 0, 0)], [[0], [0, OP_NOT]])
    out = torch.full((2, 1), 77)
    assert filter_match(matrix, program, out=out, backend=form) is out
    assert out.tolist() == [[0b011], [0b100]]


def test_no_items_and_no_filters(form):
    empty = replace(
        small_matrix([[0]], 0), own=torch.zeros(1, 0, dtype=torch.int64), bloom_offsets=torch.zeros(1).long()
    )
    assert filter_match(empty, make_program([(0, 0, 0, 0)], [[0]]), backend=form).shape == (1, 0)
    assert filter_match(small_matrix([[0]], 3), make_program([], []), backend=form).shape == (0, 1)


def test_threads_do_not_change_the_words(monkeypatch):
    rng = random.Random(5)
    items, plan = random_items(rng, 3 * 4096 + 5, 40), random_plan(rng, 40)
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), 5) for _ in range(50)])
    matrix = build_bit_matrix(postings(items), plan)
    words = filter_match(matrix, program, backend="torch")
    for threads in (1, 2, 5):
        monkeypatch.setattr("stcli.ops.native._num_threads", threads)
        assert torch.equal(filter_match(matrix, program), words)
        again = build_bit_matrix(postings(items), plan)
        assert torch.equal(again.own, matrix.own)
        assert torch.equal(again.bloom, matrix.bloom)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(0, 20))
def test_property_equals_oracle(seed, num_items, num_terms):
    rng = random.Random(seed)
    items, plan = random_items(rng, num_items, num_terms), random_plan(rng, num_terms, own_share=rng.random())
    leaves = random_leaves(rng, plan)
    program = make_program(leaves, [random_ops(rng, len(leaves), rng.randint(1, 8)) for _ in range(rng.randint(1, 9))])
    expected = expected_words(items, plan, program)
    matrix = build_bit_matrix(postings(items), plan)
    for form in ("torch", "auto"):
        assert filter_match(matrix, program, backend=form).tolist() == expected


@pytest.mark.parametrize(
    ("leaves", "ops", "message"),
    [
        ([(2, 1, 0, 0)], [0], "leaf 0 is .2, 1, 0, 0."),
        ([(4, 0, 2, 1)], [0], "own rows below 1"),
        ([(9, 0, 0, 0)], [0], "known kind"),
        ([(0, 0, 0, 0)], [1], "program 0 has op 1"),
        ([(0, 0, 0, 0)], [0, OP_AND], "program 0 has op -1"),
        ([(0, 0, 0, 0)], [0, 0], "stack of 2 after it"),
        ([(0, 0, 0, 0)], [0, -4], "op -4"),
        ([(0, 0, 0, 0)], [], "empty"),
    ],
)
def test_wrong_programs_are_refused(leaves, ops, message):
    with pytest.raises(TensorError, match=message):
        filter_match(small_matrix([[0]], 3), make_program(leaves, [ops]))


def test_wrong_matrices_are_refused():
    program, matrix = make_program([(0, 0, 0, 0)], [[0]]), small_matrix([[0]], 3)
    with pytest.raises(TensorError, match="bloom_offsets"):
        filter_match(replace(matrix, bloom_offsets=torch.tensor([0, 4])), program)
    with pytest.raises(TensorError, match="65 items"):
        filter_match(replace(matrix, num_items=65), program)
    with pytest.raises(TensorError, match="out: contiguous"):
        filter_match(matrix, program, out=torch.zeros(1, 2, dtype=torch.int64))
