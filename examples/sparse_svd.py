"""What the examples that make embeddings share: a sparse matrix, its truncated SVD, and the embedding column."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Sparse:
    """A sparse matrix [num_rows, num_columns] as triples sorted by row.

    Attributes:
        rows, columns: integers [n], rows ascending.
        values: float32 [n].
        shape: (num_rows, num_columns).
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def transposed(self) -> Sparse:
        """The matrix with rows and columns exchanged."""
        order = np.argsort(self.columns, kind="stable")
        return Sparse(self.columns[order], self.rows[order], self.values[order], (self.shape[1], self.shape[0]))

    def times(self, dense: np.ndarray, chunk: int = 1 << 16) -> np.ndarray:
        """The product with a dense float32 [num_columns, d]: float32 [num_rows, d].

        Works on `chunk` triples at a time, or one row if that has more; memory beside the result: 8 * chunk * d bytes.
        """
        out = np.zeros((self.shape[0], dense.shape[1]), np.float32)
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        ends = np.append(starts[1:], len(self.rows))
        first = 0
        while first < len(starts):
            last = max(first + 1, int(np.searchsorted(ends, starts[first] + chunk, side="right")))
            span = slice(starts[first], ends[last - 1])
            products = dense[self.columns[span]] * self.values[span, None]
            out[self.rows[starts[first:last]]] = np.add.reduceat(products, starts[first:last] - starts[first])
            first = last
        return out


def truncated_svd(matrix: Sparse, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The `dim` largest singular values S and their right vectors V of `matrix` = U S V^T.

    By random projection to a few more dimensions and one power iteration, which is near enough for embeddings.

    Returns:
        V float32 [num_columns, dim] with orthonormal columns, and S float32 [dim], descending. Where the matrix has
        a rank below `dim`, the remaining columns of V and values of S are zero.
    """
    transposed = matrix.transposed()
    sketch = np.random.default_rng(seed).standard_normal((matrix.shape[1], dim + 10), dtype=np.float32)
    for _ in range(2):
        basis = np.linalg.qr(matrix.times(sketch))[0]
        sketch = transposed.times(basis)
    squares, vectors = np.linalg.eigh((sketch.T @ sketch).astype(np.float64))
    keep = np.argsort(-squares)[:dim]
    real = squares[keep] > 1e-9 * squares.max()
    values = np.sqrt(np.where(real, squares[keep], 0.0))
    right = (sketch @ (vectors[:, keep] * np.where(real, 1 / np.where(real, values, 1.0), 0.0))).astype(np.float32)
    pad = dim - len(values)  # a matrix with fewer rows or columns than dim
    return np.pad(right, ((0, 0), (0, pad))), np.pad(values, (0, pad)).astype(np.float32)


def embedding_column(vectors: np.ndarray) -> pa.Array:
    """Float32 [n, d] as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
