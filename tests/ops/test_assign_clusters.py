import pytest
import torch

from stcli.errors import InputError, TensorError
from stcli.ops.assign_clusters import assign_clusters
from stcli.types import Quantized
from tests import oracles_search as oracle


def random_codes(count, dim, seed, high=127):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-high, high + 1, (count, dim), generator=generator, dtype=torch.int8)
    return Quantized(codes, torch.rand(count, generator=generator) + 0.01)


@pytest.mark.parametrize(("rows", "clusters", "dim"), [(1, 1, 32), (70, 33, 32), (130, 100, 96), (5, 17, 1024)])
@pytest.mark.parametrize("high", [1, 127])
def test_equals_the_loop(rows, clusters, dim, high, form):
    left, right = random_codes(rows, dim, 1, high), random_codes(clusters, dim, 2, high)
    half_norms = torch.rand(clusters, generator=torch.Generator().manual_seed(3)) * 100
    found = assign_clusters(left, right, half_norms, backend=form)
    expected = oracle.assign(*(t.numpy() for t in (left.codes, left.scales, right.codes, right.scales, half_norms)))
    assert found.tolist() == expected


def test_equal_values_take_the_smaller_cluster(form):
    rows = random_codes(50, 32, 4)
    same = Quantized(random_codes(1, 32, 5).codes.repeat(40, 1), torch.ones(40))
    assert assign_clusters(rows, same, torch.zeros(40), backend=form).tolist() == [0] * 50
    half_norms = torch.cat([torch.ones(7), torch.zeros(33)])
    assert assign_clusters(rows, same, half_norms, backend=form).tolist() == [7] * 50


def test_worked_example(form):
    rows = Quantized(torch.zeros(1, 32, dtype=torch.int8), torch.tensor([0.5]))
    rows.codes[0, :2] = torch.tensor([2, 4])
    centroids = Quantized(torch.zeros(2, 32, dtype=torch.int8), torch.tensor([1.0, 2.0]))
    centroids.codes[:, :2] = torch.tensor([[10, 0], [1, 1]])
    # dots 20 and 6, values 20 * 1 * 0.5 - 9 = 1 and 6 * 2 * 0.5 - 4 = 2
    assert assign_clusters(rows, centroids, torch.tensor([9.0, 4.0]), backend=form).tolist() == [1]


def test_no_rows(form):
    assert assign_clusters(random_codes(0, 32, 1), random_codes(3, 32, 2), torch.zeros(3), backend=form).shape == (0,)


def test_bad_arguments_are_named():
    with pytest.raises(TensorError, match=r"half_norms: float32 \[C\] expected with C=3"):
        assign_clusters(random_codes(2, 32, 1), random_codes(3, 32, 2), torch.zeros(4))
    with pytest.raises(InputError, match="centroids are empty"):
        assign_clusters(random_codes(2, 32, 1), random_codes(0, 32, 2), torch.zeros(0))
