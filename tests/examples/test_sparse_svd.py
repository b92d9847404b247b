"""examples/sparse_svd.py against dense float64 algebra."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_svd import Sparse, embedding_column, truncated_svd


def random_matrix(seed: int, shape: tuple[int, int], rank: int | None = None) -> tuple[Sparse, np.ndarray]:
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random(shape) < 0.3, rng.standard_normal(shape), 0)
    dense[3] = 0
    if rank is not None:
        dense = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    dense = dense.astype(np.float32)
    rows, columns = np.nonzero(dense)
    return Sparse(rows, columns, dense[rows, columns], shape), dense.astype(np.float64)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_product_equals_the_dense_one(chunk: int) -> None:
    sparse, dense = random_matrix(0, (23, 17))
    right = np.random.default_rng(1).standard_normal((17, 5), dtype=np.float32)
    # 17 products of size about 1, each sum rounded: 17 * 2**-24 * 10
    np.testing.assert_allclose(sparse.times(right, chunk), dense @ right, atol=1e-5)
    left = np.random.default_rng(2).standard_normal((23, 5), dtype=np.float32)
    np.testing.assert_allclose(sparse.transposed().times(left, chunk), dense.T @ left, atol=1e-5)


def test_svd_of_a_low_rank_matrix_is_exact() -> None:
    sparse, dense = random_matrix(3, (60, 40), rank=6)
    right, values = truncated_svd(sparse, 6)
    expected = np.linalg.svd(dense, compute_uv=False)[:6]
    np.testing.assert_allclose(values, expected, rtol=1e-4)  # squares of float32 numbers: half the digits
    np.testing.assert_allclose(right.T @ right, np.eye(6), atol=1e-3)
    np.testing.assert_allclose((dense @ right) @ right.T, dense, atol=1e-3 * np.abs(dense).max())


def test_directions_beyond_the_rank_are_zero() -> None:
    sparse, _ = random_matrix(4, (60, 40), rank=2)
    right, values = truncated_svd(sparse, 5)
    assert right.shape == (40, 5)
    assert np.all(values[:2] > 0)
    assert not values[2:].any()
    assert not right[:, 2:].any()


def test_a_matrix_smaller_than_dim_is_padded() -> None:
    sparse, _ = random_matrix(5, (8, 6))
    right, values = truncated_svd(sparse, 32)
    assert right.shape == (6, 32)
    assert values.shape == (32,)
    assert np.isfinite(right).all()


def test_embedding_column_keeps_the_rows() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert embedding_column(vectors).to_pylist() == vectors.tolist()
