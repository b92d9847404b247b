"""What a build does elsewhere than on the CPU, with a device that is not there."""

from types import SimpleNamespace

import pytest
import torch

import stcli
from stcli.index import build
from stcli.ops import int_dot


def test_the_matrix_may_be_built_in_torch_on_the_device(tiny, tmp_path, monkeypatch):
    """Without the C++ library the terms go to the device; here `cpu` under another name."""
    stcli.build_index(tiny.items, tmp_path / "here", feature_columns=("tags", "price"))
    moved = []
    matrix = build.Build._matrix

    def elsewhere(self, *given):
        self.device = SimpleNamespace(type="cuda")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build.dispatch, "resolve", lambda backend, tensor, **more: "torch")
            to = torch.Tensor.to

            def stay(tensor, where, *more, **options):
                if where is not self.device:
                    return to(tensor, where, *more, **options)
                moved.append(tensor)
                return tensor

            patch.setattr(torch.Tensor, "to", stay)
            return matrix(self, *given)

    monkeypatch.setattr(build.Build, "_matrix", elsewhere)
    stcli.build_index(tiny.items, tmp_path / "there", feature_columns=("tags", "price"))
    assert len(moved) == 6
    for name in ("own_words", "bloom_words", "bloom_offsets"):
        assert (tmp_path / "here" / f"{name}.npy").read_bytes() == (tmp_path / "there" / f"{name}.npy").read_bytes()


@pytest.mark.parametrize(("left", "right"), [(1, 1), (17, 9), (40, 16), (33, 5)])
def test_products_padded_for_the_library_of_a_gpu(left, right):
    generator = torch.Generator().manual_seed(left)
    a, b = (torch.randint(-127, 128, (rows, 64), generator=generator, dtype=torch.int8) for rows in (left, right))
    dots = int_dot._gpu_mm(a, b)
    assert dots.dtype == torch.int32
    assert torch.equal(dots, (a.int() @ b.int().t()))
    assert int_dot._gpu_mm_is_exact(torch.device("cpu"))
