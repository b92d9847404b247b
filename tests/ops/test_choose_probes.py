import pytest
import torch

from stcli.errors import InputError, TensorError
from stcli.ops.choose_probes import choose_probes
from stcli.types import Quantized
from tests import oracles_search as oracle


def random_codes(count, dim, seed, high=127):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-high, high + 1, (count, dim), generator=generator, dtype=torch.int8)
    return Quantized(codes, torch.rand(count, generator=generator) + 0.01)


@pytest.mark.parametrize(
    ("queries", "clusters", "dim", "num_probes"),
    [(1, 1, 32, 1), (3, 5, 32, 9), (17, 300, 64, 20), (5, 129, 384, 128), (33, 64, 32, 64)],
)
@pytest.mark.parametrize("high", [1, 127])
@pytest.mark.parametrize("reach", [None, 0.0, 30.0])
def test_equals_the_loop(queries, clusters, dim, num_probes, high, reach, form):
    left, right = random_codes(queries, dim, 1, high), random_codes(clusters, dim, 2, high)
    reaches = None if reach is None else reach * torch.rand(clusters, generator=torch.Generator().manual_seed(3))
    found = choose_probes(left, right, num_probes=num_probes, reaches=reaches, backend=form)
    arrays = [t.numpy() for t in (left.codes, left.scales, right.codes, right.scales)]
    expected = oracle.probes(*arrays, num_probes, None if reaches is None else reaches.numpy())
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_a_wide_cluster_comes_before_a_narrow_one_whose_centroid_is_nearer(form):
    codes = torch.zeros(2, 32, dtype=torch.int8)
    codes[0, 0], codes[1, 0] = 100, 90
    query = Quantized(codes[:1], torch.tensor([0.02]))  # of length 2
    centroids, reaches = Quantized(codes, torch.tensor([0.01, 0.01])), torch.tensor([0.0, 0.11])
    assert choose_probes(query, centroids, num_probes=2, backend=form).tolist() == [[0, 1]]
    assert choose_probes(query, centroids, num_probes=2, reaches=reaches, backend=form).tolist() == [[1, 0]]


def test_equal_scores_take_the_smaller_cluster_first(form):
    same = Quantized(torch.ones(2000, 32, dtype=torch.int8), torch.ones(2000))
    found = choose_probes(random_codes(3, 32, 1), same, num_probes=70, backend=form)
    assert found.tolist() == [list(range(70))] * 3


def test_no_queries(form):
    assert choose_probes(random_codes(0, 32, 1), random_codes(3, 32, 2), num_probes=2, backend=form).shape == (0, 2)


def test_bad_arguments_are_named():
    with pytest.raises(TensorError, match=r"centroids.codes: int8 \[C, Dp\] expected with Dp=32"):
        choose_probes(random_codes(2, 32, 1), random_codes(3, 64, 2), num_probes=2)
    with pytest.raises(InputError, match="num_probes is 0"):
        choose_probes(random_codes(2, 32, 1), random_codes(3, 32, 2), num_probes=0)
