import numpy as np
import pytest
import torch

from stcli.errors import InputError, TensorError
from stcli.ops.quantize_rows import quantize_rows
from tests import oracles_search as oracle


@pytest.mark.parametrize("dim", [1, 2, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [None, 0.01])
def test_equals_the_loop(dim, dtype, scale, form):
    vectors = torch.randn(37, dim, generator=torch.Generator().manual_seed(dim)).to(dtype)
    vectors[3] = 0
    found = quantize_rows(vectors, scale=scale, backend=form)
    codes, scales = oracle.quantize(vectors.numpy(), scale)
    assert found.codes.dtype == torch.int8
    assert found.codes.tolist() == codes.tolist()
    assert found.scales.tolist() == scales.tolist()


def test_worked_example(form):
    found = quantize_rows(torch.tensor([[1.0, -0.5, 0.0]]), backend=form)
    assert found.codes[0, :4].tolist() == [127, -64, 0, 0]  # -63.5 is rounded to the even -64
    assert found.scales.tolist() == [float(np.float32(1) / np.float32(127))]


def test_zero_rows_and_no_rows(form):
    found = quantize_rows(torch.zeros(2, 5), backend=form)
    assert found.scales.tolist() == [1.0, 1.0]
    assert not found.codes.any()
    assert quantize_rows(torch.zeros(0, 5), backend=form).codes.shape == (0, 32)


def test_smallest_and_largest_numbers(form):
    tiny = torch.tensor([[1e-45, 0.0], [1.2e-38, -3e-39], [3.4e38, -1e38]])
    found = quantize_rows(tiny, backend=form)
    codes, scales = oracle.quantize(tiny.numpy())
    assert found.codes.tolist() == codes.tolist()
    assert found.scales.tolist() == scales.tolist()
    assert (found.scales > 0).all()


def test_ties_are_rounded_to_even(form):
    vectors = torch.arange(-127.5, 128.0, 0.5)[None]
    found = quantize_rows(vectors, scale=1.0, backend=form)
    assert found.codes.tolist() == oracle.quantize(vectors.numpy(), 1.0)[0].tolist()


def test_bad_arguments_are_named():
    with pytest.raises(TensorError, match=r"vectors: float16 or float32 \[R, D\] expected, got float64 \[2, 2\]"):
        quantize_rows(torch.zeros(2, 2, dtype=torch.float64))
    with pytest.raises(InputError, match=r"scale is 0\.0"):
        quantize_rows(torch.zeros(2, 2), scale=0.0)
