"""k-means: against a float64 Lloyd where they must agree, and equal bytes whatever the number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stcli.index import kmeans
from stcli.ops import native
from stcli.ops.quantize_rows import quantize_rows
from tests import oracles_search as oracle
from tests.index_tools import vectors


def points(rows=600, dim=12, seed=0):
    return torch.from_numpy(vectors(rows, dim, seed))


def centres_of(quantized, dim):
    return (quantized.codes[:, :dim].double() * quantized.scales.double()[:, None]).numpy()


@pytest.mark.parametrize(
    ("items", "clusters"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (100, 32), (12_000, 512), (10**6, 4096), (10**7, 16384)],
)
def test_default_number_is_the_nearest_power_of_two_of_four_roots(items, clusters):
    assert kmeans.default_num_clusters(items) == clusters


def test_the_sample_depends_on_numbers_and_seed_alone():
    first = kmeans.sample_rows(10_000, 20, 0)
    assert len(first) == 64 * 20
    assert (np.diff(first) > 0).all()
    assert first.min() >= 0
    assert first.max() < 10_000
    assert np.array_equal(first, kmeans.sample_rows(10_000, 20, 0))
    assert not np.array_equal(first, kmeans.sample_rows(10_000, 20, 1))
    assert kmeans.sample_rows(50, 20, 0).tolist() == list(range(50))


def test_equal_bytes_for_any_number_of_threads():
    rows = points(1500, 16)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            native.set_num_threads(threads)
            for _ in range(2):
                result = kmeans.train(rows, 30, seed=3)
                found.append((result.codes.numpy().tobytes(), result.scales.numpy().tobytes()))
    finally:
        torch.set_num_threads(before)
        native.set_num_threads(None)
    assert len(set(found)) == 1


def test_the_sums_are_cut_anywhere(monkeypatch):
    rows = points(500)
    whole = kmeans.train(rows, 9)
    monkeypatch.setattr(kmeans, "SUM_ROWS", 37)
    parts = kmeans.train(rows, 9)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


def test_another_seed_starts_elsewhere():
    rows = points()
    assert not torch.equal(kmeans.train(rows, 16, seed=0).codes, kmeans.train(rows, 16, seed=1).codes)


def test_one_iteration_is_the_float64_mean_of_the_nearest_points():
    rows = points(400, 10)
    start = kmeans.train(rows, 7, iterations=0)
    chosen = kmeans.assign(quantize_rows(rows), start).numpy()
    assert len(set(chosen)) == 7, "no empty cluster, which would be moved"
    means = np.stack([rows.double().numpy()[chosen == c].mean(0) for c in range(7)])
    found = centres_of(kmeans.train(rows, 7, iterations=1), 10)
    # The centre is a float32, whose code is within half a step of largest / 127.
    step = np.abs(means).max(1, keepdims=True) / 127
    assert (np.abs(found - means) <= step * 0.5 + 1e-6).all()


def test_it_finds_groups_that_are_far_apart():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 5, 1000)
    rows = torch.from_numpy((np.eye(8)[truth] * 10 + rng.normal(size=(1000, 8)) * 0.1).astype(np.float32))
    spread = []
    for seed in range(8):
        found = kmeans.train(rows, 5, seed=seed)
        chosen = kmeans.assign(quantize_rows(rows), found).numpy()
        distance = ((rows.double().numpy() - centres_of(found, 8)[chosen]) ** 2).sum(1).mean()
        spread.append(distance)
    one_centre = ((rows.double() - rows.double().mean(0)) ** 2).sum(1).mean().item()
    assert min(spread) < one_centre / 50
    assert max(spread) < one_centre


def test_assign_is_the_nearest_by_the_stated_arithmetic():
    rows, centres = quantize_rows(points(90, 12)), quantize_rows(points(11, 12, seed=4))
    squares = (centres.codes.numpy().astype(np.int64) ** 2).sum(1).astype(np.float32)
    half_norms = squares * centres.scales.numpy() * centres.scales.numpy() / np.float32(2)
    arrays = [x.numpy() for x in (rows.codes, rows.scales, centres.codes, centres.scales)]
    expected = oracle.assign(*arrays, half_norms)
    assert kmeans.assign(rows, centres).tolist() == expected
    exact = ((arrays[0] * arrays[1][:, None])[:, None] - (arrays[2] * arrays[3][:, None]).astype(np.float64)) ** 2
    distance = exact.sum(2)
    chosen = distance[np.arange(90), expected]
    assert (chosen <= distance.min(1) * (1 + 1e-4) + 1e-6).all()


def test_squared_distances_are_those_of_the_quantized_rows(monkeypatch):
    monkeypatch.setattr(kmeans, "DISTANCE_ROWS", 40)
    rows, centres = quantize_rows(points(90, 12)), quantize_rows(points(11, 12, seed=4))
    chosen = kmeans.assign(rows, centres)
    expected = ((centres_of(rows, 12) - centres_of(centres, 12)[chosen.numpy()]) ** 2).sum(1)
    np.testing.assert_allclose(kmeans.squared_distances(rows, centres, chosen).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_empty_clusters_are_put_beside_the_largest():
    # Four distinct points, ten clusters: at most four can have members, the others move but never become NaN.
    rows = torch.eye(4, 6).repeat(25, 1) * 3
    found = kmeans.train(rows, 10)
    assert bool(torch.isfinite(found.scales).all())
    chosen = kmeans.assign(quantize_rows(rows), found).numpy()
    assert len(set(chosen)) == 4
    assert np.allclose(centres_of(found, 6)[chosen], rows.numpy(), atol=3 * 2 / 127)


@pytest.mark.parametrize("factor", [1e-30, 1e-5, 1.0, 1e6, 1e30])
def test_the_unit_of_the_embeddings_does_not_matter(factor):
    rows = points(300, 8)
    plain = kmeans.assign(quantize_rows(rows), kmeans.train(rows, 6))
    scaled = rows * factor
    assert (kmeans.assign(quantize_rows(scaled), kmeans.train(scaled, 6)) == plain).float().mean() > 0.97


def test_as_many_clusters_as_points_and_zero_points():
    rows = torch.zeros(5, 8)
    rows[:3] = torch.eye(3, 8)
    found = kmeans.train(rows, 5)
    assert len(set(kmeans.assign(quantize_rows(rows[:3]), found).tolist())) == 3
    assert kmeans.train(torch.zeros(3, 4), 2).codes.abs().sum() == 0


def test_progress_names_each_iteration():
    seen = []
    kmeans.train(points(50), 4, progress=seen.append)
    assert seen == list(range(1, kmeans.ITERATIONS + 1))
