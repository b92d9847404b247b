"""Float16 rows times a power of two: eleven significant bits, whatever the length of a row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stcli.ops.exponents import half_rows, powers_of_two, row_exponents


def packed(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The restored rows in float64, and the exponents."""
    exponents = row_exponents(rows)
    halves = half_rows(rows, exponents)
    assert halves.dtype == torch.float16
    assert exponents.dtype == torch.int8
    return halves.double().numpy() * 2.0 ** exponents.double().numpy()[:, None], exponents.numpy()


@pytest.mark.parametrize("factor", [1e-37, 1e-30, 1e-5, 1.0, 1e6, 1e30, 3e37])
def test_rows_of_any_length_keep_eleven_bits(factor):
    rows = (torch.randn(100, 12, generator=torch.Generator().manual_seed(1)).clamp(-4, 4) * factor).float()
    found, _ = packed(rows)
    exact = rows.double().numpy()
    assert np.isfinite(found).all()
    largest = np.abs(exact).max(1, keepdims=True)
    assert (np.abs(found - exact) <= 2.0**-11 * np.maximum(np.abs(exact), 2.0**-28 * largest)).all()


def test_exponents_by_hand():
    rows = torch.tensor([[1.0, -0.5], [0.0, 0.0], [-(2.0**20), 1.0], [2.0**-20, 0.0], [32767.0, 0.0], [32768.0, 0.0]])
    found, exponents = packed(rows)
    # The largest value stands in 2^14 … 2^15: 1 = 2^14 * 2^-14, and so on.
    assert exponents.tolist() == [-14, 0, 6, -34, 0, 1]
    assert found[:4].tolist() == rows[:4].tolist()


def test_half_rows_come_back_unchanged():
    rows = torch.tensor([[6e-8, -6e-8, 1.0], [65504.0, -0.125, 3.0], [6e-5, 0.0, 6e-8], [0.0, 0.0, 0.0]]).half()
    found, _ = packed(rows)
    assert found.tolist() == rows.double().tolist()


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126, 127)
    assert powers_of_two(exponents).tolist() == [math.ldexp(1, exponent) for exponent in exponents.tolist()]
    assert powers_of_two(exponents.to(torch.int8)).dtype == torch.float32
