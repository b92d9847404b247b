import pytest
import torch

from stcli.errors import TensorError
from stcli.ops.rescore import rescore
from stcli.types import Embeddings
from tests import oracles_search as oracle


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 40, 128, 200])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("with_exponents", [False, True])
def test_equals_the_loop(dim, dtype, with_exponents, form):
    generator = torch.Generator().manual_seed(dim)
    values = torch.randn(50, dim, generator=generator).to(dtype)
    exponents = torch.randint(-30, 30, (50,), generator=generator, dtype=torch.int8) if with_exponents else None
    queries = torch.randn(7, dim, generator=generator)
    rows = torch.randint(-1, 50, (7, 13), generator=generator)
    rows[3] = -1
    found = rescore(queries, Embeddings(values, exponents), rows, backend=form)
    expected = oracle.rescore(
        queries.numpy(), values.numpy(), None if exponents is None else exponents.numpy(), rows.numpy()
    )
    assert found.tolist() == expected.tolist()
    exact = (values.double() * (1 if exponents is None else 2.0 ** exponents.double()[:, None])) @ queries.double().t()
    filled = rows >= 0
    near = exact.t().gather(1, rows.clamp_min(0))
    torch.testing.assert_close(found[filled].double(), near[filled], rtol=1e-4, atol=1e-4 * near.abs().max().item())


def test_order_of_additions(form):
    # 1e8 - 1e8 meet in lane 0 (d = 0 and 16), so that the 1 in lane 8 survives; left to right it would be lost.
    values, queries = torch.zeros(1, 17), torch.ones(1, 17)
    values[0, [0, 8, 16]] = torch.tensor([1e8, 1.0, -1e8])
    assert rescore(queries, Embeddings(values, None), torch.tensor([[0]]), backend=form).tolist() == [[1.0]]
    values[0, [0, 8, 16]] = torch.tensor([1e8, -1e8, 1.0])  # lane 0 rounds 1e8 + 1 to 1e8
    assert rescore(queries, Embeddings(values, None), torch.tensor([[0]]), backend=form).tolist() == [[0.0]]


def test_extreme_exponents_and_subnormal_halves(form):
    values = torch.tensor([[6e-8, 65504.0], [1.0, -6e-8], [6e-8, 1.0]], dtype=torch.float16)
    exponents = torch.tensor([-128, 100, 127], dtype=torch.int8)
    queries, rows = torch.tensor([[1.0, 0.5]]), torch.tensor([[0, 1, 2]])
    found = rescore(queries, Embeddings(values, exponents), rows, backend=form)
    assert found.tolist() == oracle.rescore(queries.numpy(), values.numpy(), exponents.numpy(), rows.numpy()).tolist()


def test_empty(form):
    embeddings = Embeddings(torch.zeros(3, 4, dtype=torch.float16), None)
    assert rescore(torch.zeros(0, 4), embeddings, torch.zeros(0, 5).long(), backend=form).shape == (0, 5)
    assert rescore(torch.zeros(2, 4), embeddings, torch.zeros(2, 0).long(), backend=form).shape == (2, 0)


def test_bad_arguments_are_named():
    embeddings = Embeddings(torch.zeros(3, 4), None)
    with pytest.raises(TensorError, match=r"rows: numbers in -1 … 2 expected, got 3 … 3"):
        rescore(torch.zeros(1, 4), embeddings, torch.tensor([[3]]))
    with pytest.raises(TensorError, match=r"embeddings.values: .* expected with D=5"):
        rescore(torch.zeros(1, 5), embeddings, torch.tensor([[0]]))
